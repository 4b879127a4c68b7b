"""The quick evaluation of the open world: rows of trials, and one flat line of shares from 0 to 1.

Documents are those that a memory should give, one of two as a rule showing what is asked for, so that the generator
alone is measured; what an encoder finds is measured by itself. ``there``: what is asked for stands where its source
shows it. ``moved``: in the middle of another third, where the caption says.

Beside each row of the main table stand the ceiling (the true picture through the image tokenizer and back) and
``returned``: the picture of the document as the answer, whose background is another one, so it is never all right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from racm3.document import Document, Image
from racm3.open_scenes.art import Art, Cutout, load_art
from racm3.open_scenes.foreign import drawn as drawn_by_code
from racm3.open_scenes.judge import GroundJudge
from racm3.open_scenes.names import made_up
from racm3.open_scenes.open_encoder_recipe import recalls
from racm3.open_scenes.open_protocol import (
    Trial,
    Verdict,
    captions,
    ceiling,
    drawn,
    edited,
    filled,
    judge,
    read,
    shares,
    swapped,
    trials,
)
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PICTURE_PX, Scene, draw
from racm3.open_scenes.wording import HELD_OUT, TRAINED
from racm3.pipeline import RACM3, Settings

__all__ = ["ROWS", "Examiner", "examine"]

SHOTS = 8
"""Most examples of each label: a context each, and the probabilities are averaged."""

Values = dict[str, float]


@dataclass(frozen=True)
class Examiner:
    """A model, how it draws, and the trials that it is given; ``count`` of them a row."""

    model: RACM3
    settings: Settings
    count: int
    foreign: Art | None = None

    @cached_property
    def worlds(self) -> dict[str, World]:
        """Seen, novel and foreign entities, all on backgrounds that were met."""
        novel = World.of("novel", "seen")
        return {
            "seen": World.of("seen"),
            "novel": novel,
            "foreign": World(self.foreign or drawn_by_code(), novel.grounds),
        }

    @cached_property
    def grounds(self) -> GroundJudge:
        return GroundJudge(PICTURE_PX)

    def verdicts(self, pictures: Sequence[np.ndarray], some: Sequence[Trial], split: str) -> list[Verdict]:
        """Each picture judged against what was asked."""
        world = self.worlds[split]
        others = world.art.cutouts if split == "foreign" else load_art().cutouts
        pairs = enumerate(zip(pictures, some, strict=True))
        return [judge(picture, trial, world, others, self.grounds, number) for number, (picture, trial) in pairs]

    def drawn(self, some: Sequence[Trial], split: str, documents: bool = True) -> list[Verdict]:
        """What the model draws, judged."""
        return self.verdicts(drawn(self.model, some, self.settings, documents), some, split)

    def ceiling(self, some: Sequence[Trial], split: str) -> list[Verdict]:
        """What the image tokenizer keeps of the true pictures, judged."""
        return self.verdicts(ceiling(self.model, some, self.worlds[split]), some, split)


def drawing(examiner: Examiner, split: str) -> Values:
    """A row of the main table."""
    some = trials(examiner.worlds[split], "distracted", examiner.count)
    own, best = shares(examiner.drawn(some, split)), shares(examiner.ceiling(some, split))
    values = {f"{split}_entity": own["entity"], f"{split}_all": own["all"], f"{split}_ceiling": best["entity"]}
    values |= {f"{split}_place": own["place"], f"{split}_ground": own["ground"]}
    returned = [_showing(trial).images[0].pixels for trial in some]
    values[f"{split}_returned"] = shares(examiner.verdicts(returned, some, split))["entity"]
    if split == "foreign":
        values["foreign_share"] = own["entity"] / max(best["entity"], 1e-9)
    return values


def _showing(trial: Trial) -> Document:
    """The document that shows what is asked for."""
    asked = {one.cutout for one in trial.scene.placed}
    for source, document in zip(trial.plan.sources, trial.documents, strict=True):
        if asked & {one.cutout for one in source.scene.placed}:
            return document
    return trial.documents[0]


def moved(examiner: Examiner) -> Values:
    """Novel entities in another third than their source's, and on the very ground of their source."""
    apart = trials(examiner.worlds["novel"], "distracted", examiner.count, same_place=0.0)
    alike = trials(examiner.worlds["novel"], "once", examiner.count, same_ground=1.0)
    return {
        "novel_moved": shares(examiner.drawn(apart, "novel"))["entity"],
        "novel_same_ground": shares(examiner.drawn(alike, "novel"))["entity"],
    }


def without(examiner: Examiner) -> Values:
    """The same model without documents."""
    some = trials(examiner.worlds["novel"], "distracted", examiner.count)
    verdict = shares(examiner.drawn(some, "novel", documents=False))
    return {"without_novel": verdict["entity"], "without_novel_all": verdict["all"]}


def several(examiner: Examiner) -> Values:
    """Two and three entities, a source each."""
    values: Values = {}
    for name, kind in (("two", "two"), ("three", "three")):
        some = trials(examiner.worlds["novel"], kind, examiner.count)
        verdicts = examiner.drawn(some, "novel")
        values |= {f"{name}_both": shares(verdicts)["every"], f"{name}_swapped": swapped(verdicts)}
        values[f"{name}_both_ceiling"] = shares(examiner.ceiling(some, "novel"))["every"]
    return values


def wordings(examiner: Examiner) -> Values:
    """All wordings; ``wording_drop``: the plain one less the mean of the others."""
    values: Values = {}
    for wording in (*TRAINED, *HELD_OUT):
        some = trials(examiner.worlds["novel"], "distracted", max(examiner.count // 2, 1), wording)
        values[f"wording_{wording}"] = shares(examiner.drawn(some, "novel"))["entity"]
    others = [value for name, value in values.items() if name != "wording_plain"]
    return values | {"wording_drop": values["wording_plain"] - float(np.mean(others))}


def reading(examiner: Examiner) -> Values:
    """Captions of true pictures, with their documents."""
    values: Values = {}
    for split, world in examiner.worlds.items():
        some = trials(world, "distracted", examiner.count)
        said = captions(examiner.model, some, world.art, examiner.settings)
        found = [read(text, trial, world.art) for text, trial in zip(said, some, strict=True)]
        values[f"caption_{split}"] = float(np.mean([one.named for one in found]))
        values[f"caption_position_{split}"] = float(np.mean([one.place for one in found]))
        values[f"caption_ground_{split}"] = float(np.mean([one.ground for one in found]))
    return values | {"caption_position": values["caption_position_novel"]}


def filling(examiner: Examiner) -> Values:
    """Regions of pictures drawn anew: what the caption and the documents say was there, or what a document shows."""
    values: Values = {}
    for split in ("novel", "foreign"):
        world = examiner.worlds[split]
        some = trials(world, "once", examiner.count)
        done = filled(examiner.model, some, world.art, examiner.settings)
        values[f"infill_{split}"] = shares(examiner.verdicts(done, some, split))["entity"]
        done = edited(examiner.model, some, world.art, examiner.settings)
        values[f"edit_{split}"] = shares(examiner.verdicts(done, some, split))["entity"]
    return values


def one_shot(examiner: Examiner) -> Values:
    """Which of two made-up words a picture has, by the word's probability behind an example of each; of ``SHOTS``
    examples the probabilities are averaged. ``one_shot_picture``: the model predicts the picture instead, which needs
    no more than copying; ``one_shot_cosine``: the encoder, no generator."""
    world, rng = examiner.worlds["novel"], np.random.default_rng(5)
    right: dict[str, list[bool]] = {"one_shot": [], f"one_shot_{SHOTS}": [], "one_shot_picture": [], "cosine": []}
    for trial in range(examiner.count):
        pair, truth = world.others(2, rng), trial % 2
        words = [made_up(rng), made_up(rng)]

        examples = {
            word: [_picture(world, one, rng) for _ in range(SHOTS)] for word, one in zip(words, pair, strict=True)
        }
        asked = _picture(world, pair[truth], rng)
        found = examiner.model.compare([asked], examples, "label")[0]  # (shots, 2)
        right["one_shot"].append(bool(found[0].argmax() == truth))
        right[f"one_shot_{SHOTS}"].append(bool(found.mean(0).argmax() == truth))
        first = {word: some[:1] for word, some in examples.items()}
        by_picture = examiner.model.compare([asked], first, "picture")[0]
        right["one_shot_picture"].append(bool(by_picture[0].argmax() == truth))
        own, *kept = examiner.model.encoder.embed_images([asked, *(some[0] for some in first.values())])
        right["cosine"].append(bool((np.stack(kept) @ own).argmax() == truth))
    return {name: float(np.mean(hits)) for name, hits in right.items()}


def _picture(world: World, cutout: Cutout, rng: np.random.Generator) -> Image:
    return Image(draw(Scene(world.ground(rng), (world.placed(cutout, rng),)), world.art))


def finding(examiner: Examiner) -> Values:
    """What the encoder finds among 200 pictures of novel entities, and of seen ones by their names."""
    novel, seen = (recalls(examiner.model.encoder, examiner.worlds[split]) for split in ("novel", "seen"))
    return {
        "recall_jitter": novel["taken"],
        "recall_recomposed": novel["recomposed"],
        "recall_name_seen": seen["name"],
        "recall_caption_novel": novel["caption"],
    }


ROWS: dict[str, Callable[[Examiner], Values]] = {
    "novel": lambda examiner: drawing(examiner, "novel"),
    "seen": lambda examiner: drawing(examiner, "seen"),
    "foreign": lambda examiner: drawing(examiner, "foreign"),
    "moved": moved,
    "without": without,
    "several": several,
    "wordings": wordings,
    "captions": reading,
    "filling": filling,
    "one-shot": one_shot,
    "finding": finding,
}


def examine(examiner: Examiner, rows: Sequence[str] = tuple(ROWS)) -> Iterator[tuple[str, Values]]:
    """Each row as soon as it is there."""
    for name in rows:
        yield name, ROWS[name](examiner)
