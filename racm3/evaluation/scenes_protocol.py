"""Protocol: what the system makes of Emoji Scenes that it has never seen (``racm3 evaluate scenes``).

The memory holds the world's ``memory`` split. Each caption of a test split is drawn, and the judge tells from the
picture which entity stands there, on what and where:

    retrieval   the generator with the documents it retrieved
    vanilla     the generator of the same size and compute that was trained and is used without retrieval
    returned    the best-ranked retrieved picture itself, nothing generated
    ceiling     the true picture, through the image tokenizer and back
    judge       the true picture itself: the judge's own accuracy

``fd`` is the Frechet distance between the encoder's unit vectors of the pictures and of the true ones, times 100, and
``clip_score`` is of picture and caption. Each test picture is also captioned, with and without retrieval; ``tasks.py``
adds infill, edit, style and one-shot classification. The generators never met an entity of the novel split; image
tokenizer and encoder, which count as pretrained, saw all entities.

N pictures, D features, H W pixels.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from racm3.document import Document, Hole, Image
from racm3.errors import ConfigError, InputError, MemoryStoreError
from racm3.evaluation.bootstrap import Scores, interval, means
from racm3.evaluation.cider import cider_d
from racm3.evaluation.clipscore import clip_score
from racm3.evaluation.frechet import Moments, frechet_distance
from racm3.evaluation.protocol import about_code, about_memory, weights_digest
from racm3.evaluation.scenes_tasks import SHOTS, Tests, examine_tasks
from racm3.evaluation.words import words
from racm3.generator.sampling import Sampling
from racm3.memory.memory import Memory
from racm3.model_folder import SHIPPED, ModelFolder
from racm3.pipeline import RACM3, Completion, Settings
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import ingest, memory_of
from racm3.scenes.caption import FORMS, describe, read, read_place
from racm3.scenes.draw import SCENE_PX, Scene, draw
from racm3.scenes.glyphs import load_glyphs
from racm3.scenes.judges import Judge, Verdict
from racm3.scenes.world import World
from racm3.tokens.codec import image_codes
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.util.config import to_dict
from racm3.util.progress import Report, counted, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

SPLITS = {"seen": "test-seen", "novel": "test-novel"}
ROWS = ("retrieval", "vanilla", "returned", "ceiling", "judge")
QUESTIONS = ("entity", "background", "position")
QUICK = 100
"""Pictures of each split in the quick run: a share then has a standard error of at most 5 points."""
QUICK_TRIALS = 60
AT_ONCE = 256  # pictures encoded together
NOTE = (
    "The generators never saw the novel entities; image tokenizer, encoder and judge saw all glyphs. "
    "No test combination of entity, background and position was in any training split."
)

FD_SCALE = 100
"""Of distances between unit vectors, which are small numbers (ours)."""
FD_RESAMPLES = 100


@dataclass(frozen=True)
class Protocol:
    """``n``: at most so many pictures of each test split, its first. ``drawing`` and ``captioning`` hold for both
    generators, but that vanilla has k = 0, and so no context to be aware of. Of 4 drawings the best by the encoder's
    score of picture and words is kept (ours; the paper draws 10); captions are greedy. ``filling`` is for the tasks of
    ``tasks.py``, of which one-shot classification has so many ``trials``."""

    n: int = 600
    trials: int = 300
    world: World = World()
    drawing: Settings = Settings(k=2, samples=4, image=Sampling(temperature=0.5, top_p=0.9, context_aware=1.25), seed=0)
    captioning: Settings = Settings(k=2, text=Sampling(temperature=0.0, context_aware=1.25), max_text_tokens=48, seed=0)
    filling: Settings = Settings(k=2, samples=1, image=Sampling(temperature=0.5, top_p=0.9, context_aware=1.25), seed=0)

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.world.tests:
            raise ConfigError(f"n is {self.n}; each test split holds {self.world.tests} pictures: give 1 to that many")
        if self.trials < 1:
            raise ConfigError(f"trials is {self.trials}; it must be 1 or above")

    def with_context_aware(self, strength: float) -> Protocol:
        """The same with context-aware decoding of another strength in all that is generated."""

        def own(settings: Settings) -> Settings:
            image, text = (replace(one, context_aware=strength) for one in (settings.image, settings.text))
            return replace(settings, image=image, text=text)

        return replace(self, drawing=own(self.drawing), captioning=own(self.captioning), filling=own(self.filling))


def evaluate_scenes(
    models: str | Path = "scenes", memory: Path | None = None, protocol: Protocol = Protocol()
) -> dict[str, Any]:
    """Examine a folder of models, "scenes" for the shipped ones, with progress on stderr; returns what ``examine`` does
    for "seen" and "novel", what ``examine_tasks`` does as "tasks", and the "protocol".

    ``memory``: where the world's memory is, or is made if nothing is there; a temporary folder if not given.
    Raises CheckpointError, MemoryStoreError or EncoderMismatchError.
    """
    started = time.monotonic()
    folder = ModelFolder.open(models).path
    judge = Judge.from_pretrained(folder / "judge")
    vanilla = RACM3.from_pretrained(folder, generator="vanilla")
    retrieval = RACM3.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as temporary, progress() as on_step:
        path = memory or Path(temporary) / "memory"
        retrieval.memory = world_memory(path, protocol.world, retrieval.encoder, on_step)
        results: dict[str, Any] = {}
        tests = {
            name: [(scene, caption) for _, scene, caption in islice(protocol.world.scenes(split), protocol.n)]
            for name, split in SPLITS.items()
        }
        for name, own in tests.items():
            results[name] = examine(own, retrieval, vanilla, judge, protocol, within(on_step, name))
        rows, world = {"retrieval": retrieval, "vanilla": vanilla}, protocol.world
        results["tasks"] = examine_tasks(tests, rows, judge, world, protocol.filling, protocol.trials, on_step)
        about = about_scenes(protocol, retrieval, folder, SHIPPED)
    return results | {"protocol": about | {"elapsed_s": round(time.monotonic() - started)}}


def about_scenes(protocol: Protocol, model: RACM3, folder: Path, weights: Sequence[str]) -> dict[str, Any]:
    """The protocol as a result file has it. ``weights``: names of the models in ``folder`` that had a part in it."""
    assert model.memory is not None
    return (
        to_dict(protocol)
        | {
            "ids": {name: [f"{split}-{i:04d}" for i in (0, protocol.n - 1)] for name, split in SPLITS.items()},
            "memory": about_memory(model.memory, "racm3.scenes, split memory"),
            "encoder": model.encoder.fingerprint,
            "extractor": "the encoder",
            "weights": {name: weights_digest(folder / name) for name in weights},
            "picture_px": SCENE_PX,
            "resize": "none",
            "note": NOTE,
        }
        | about_code()
    )


def world_memory(path: Path, world: World, encoder: Encoder, on_step: Report = lambda *_: None) -> Memory:
    """The memory of a world: made if it is not there, completed if documents are missing.

    Raises MemoryStoreError if there are other documents in it, EncoderMismatchError if another encoder made it.
    """
    expected = {id_ for id_, _, _ in world.scenes("memory")}
    memory = memory_of(path, encoder, counted(world.items("memory"), "memory", on_step, len(expected)))
    if not expected.issuperset(memory.ids):
        raise MemoryStoreError(
            f"the memory {path} holds {len(memory)} documents, and not the {len(expected)} of {world}; "
            "give the path of that one, or one where nothing is yet"
        )
    if len(memory) < len(expected):
        ingest(memory, encoder, counted(world.items("memory"), "memory", on_step, len(expected)))
    return memory


def examine(
    tests: Tests,
    retrieval: RACM3,
    vanilla: RACM3,
    judge: Judge,
    protocol: Protocol,
    on_step: Report = lambda *_: None,
) -> dict[str, Any]:
    """One row of shares for each of ``ROWS``, and "caption", of scenes with their captions.

    ``retrieval`` has its memory. Raises InputError if for one of the captions no picture is retrieved.
    """
    gauge = Gauge(tests, judge, retrieval.encoder)
    pictures = draw_all(tests, retrieval, vanilla, protocol.drawing, on_step)
    results: dict[str, Any] = {row: gauge.scores(pictures[row]) for row in ROWS}
    captions = caption_all(tests, retrieval, vanilla, protocol.captioning, on_step)
    scenes = [scene for scene, _ in tests]
    results["caption"] = {row: caption_scores(captions[row], scenes) for row in ("retrieval", "vanilla")}
    return results


def draw_all(
    tests: Tests, retrieval: RACM3, vanilla: RACM3, settings: Settings, on_step: Report = lambda *_: None
) -> dict[str, list[Image]]:
    """The pictures of each of ``ROWS`` for the captions of scenes."""
    requests = [Document.of(caption, Hole("image")) for _, caption in tests]
    truth = [Image(draw(scene)) for scene, _ in tests]
    done = retrieval.complete(requests, settings, on_step=partial(on_step, "pictures, retrieval"))
    without = vanilla.complete(requests, replace(settings, k=0), on_step=partial(on_step, "pictures, vanilla"))
    return {
        "retrieval": [one.document.images[0] for one in done],
        "vanilla": [one.document.images[0] for one in without],
        "returned": [best_retrieved(one) for one in done],
        "ceiling": through_tokenizer(truth, retrieval.image),
        "judge": truth,
    }


def caption_all(
    tests: Tests, retrieval: RACM3, vanilla: RACM3, settings: Settings, on_step: Report = lambda *_: None
) -> dict[str, list[str]]:
    """The captions of scenes' pictures: "retrieval", "vanilla", and "returned", those of the best-ranked document."""
    requests = [Document.of(Hole("text"), Image(draw(scene))) for scene, _ in tests]
    done = retrieval.complete(requests, settings, on_step=partial(on_step, "captions, retrieval"))
    without = vanilla.complete(requests, replace(settings, k=0), on_step=partial(on_step, "captions, vanilla"))
    return {
        "retrieval": [one.document.text or "" for one in done],
        "vanilla": [one.document.text or "" for one in without],
        "returned": [one.sources[0].document.text or "" for one in done],
    }


# What is judged --------------------------------------------------------------------------------------------------


def best_retrieved(done: Completion) -> Image:
    """The picture of the best-ranked source that has one. Raises InputError if none has."""
    for source in done.sources:
        if source.document.images:
            return source.document.images[0]
    raise InputError(f"no picture was retrieved for {done.document.text!r}; the memory holds none that is near")


def through_tokenizer(images: Sequence[Image], tokenizer: ImageTokenizer) -> list[Image]:
    """The pictures as the image tokenizer gives them back: the best that any generator on its codes can draw."""
    decoded: list[Image] = []
    for start in range(0, len(images), AT_ONCE):
        codes = image_codes(images[start : start + AT_ONCE], tokenizer)  # (N, codes)
        values = tokenizer.decode(torch.from_numpy(codes)).permute(0, 2, 3, 1)  # (N, H, W, 3)
        decoded += [Image(picture) for picture in (values * 255).round().to(torch.uint8).numpy()]
    return decoded


def pixels(images: Sequence[Image]) -> np.ndarray:
    """(N, 64, 64, 3) uint8, as the judge takes them."""
    return np.stack([image.resized(SCENE_PX).pixels for image in images])


# Scores ----------------------------------------------------------------------------------------------------------


class Gauge:
    """What pictures of these scenes are measured with: the judge, and the encoder's vectors of captions and truth."""

    def __init__(self, tests: Tests, judge: Judge, encoder: Encoder) -> None:
        self.scenes = [scene for scene, _ in tests]
        self.judge, self.encoder = judge, encoder
        self.words = encoder.embed_texts([caption for _, caption in tests])  # (N, D)
        self.truth = encoder.embed_images([Image(draw(scene)) for scene in self.scenes])  # (N, D)

    def scores(self, images: Sequence[Image]) -> Scores:
        """What ``accuracy`` tells of a picture a scene; ``clip_score`` and ``fd``."""
        scores = accuracy(self.judge.verdict(pixels(images)), self.scenes)
        vectors = self.encoder.embed_images(images)  # (N, D)
        fits = means({"clip_score": clip_score(self.words, vectors)})
        ends = dict(scores["interval"]) | fits["interval"]
        scores |= {"clip_score": fits["clip_score"]}
        if len(images) > 1:

            def fd(rows: np.ndarray) -> float:
                return FD_SCALE * frechet_distance(Moments.of(vectors[rows]), Moments.of(self.truth[rows]))

            scores["fd"] = round(fd(np.arange(len(images))), 3)
            ends["fd"] = [round(end, 3) for end in interval(fd, len(images), FD_RESAMPLES)]
        return scores | {"interval": ends}


def accuracy(verdict: Verdict, scenes: Sequence[Scene]) -> Scores:
    """The share of pictures in which the judge sees the right entity, background, position, and all three."""
    truth = {
        "entity": [scene.entities[0] for scene in scenes],
        "background": [scene.background for scene in scenes],
        "position": [scene.position for scene in scenes],
    }
    right = np.array([np.array(getattr(verdict, q)) == np.array(truth[q]) for q in QUESTIONS])  # (3, N)
    return means(dict(zip(QUESTIONS, right, strict=True)) | {"all_correct": right.all(axis=0)})


def caption_scores(captions: Sequence[str], scenes: Sequence[Scene]) -> Scores:
    """The share of captions that name their scene's entity, that tell its background and its position, and the mean
    CIDEr-D (0 to 10) against every way of ``describe`` to say the scene."""
    places = [read_place(caption) for caption in captions]
    right = {
        "entity_named": [entity_named(caption, own.entities[0]) for caption, own in zip(captions, scenes, strict=True)],
        "background_told": [place[1] == scene.background for place, scene in zip(places, scenes, strict=True)],
        "position_told": [place[2] == scene.position for place, scene in zip(places, scenes, strict=True)],
    }
    references = [list(dict.fromkeys(describe(scene, form) for form in range(FORMS))) for scene in scenes]
    scores = cider_d([words(caption) for caption in captions], [[words(text) for text in own] for own in references])
    return means({name: np.array(own) for name, own in right.items()} | {"cider_d": scores})


def entity_named(caption: str, entity: str) -> bool:
    """Whether a caption names an entity: "a teddy bear in the snow" names the teddy bear, and no bear.

    A caption that ``read`` understands is taken at its word; in any other, names stand as whole words, and one inside
    a longer one does not count.
    """
    scene = read(caption)
    if scene is not None:
        return entity in scene.entities
    said, asked = _spaced(caption), _spaced(entity)
    if asked not in said:
        return False
    for name in load_glyphs().names:
        longer = _spaced(name)
        if asked in longer and name != entity:
            said = said.replace(longer, " | ")
    return asked in said


def _spaced(text: str) -> str:
    """Lower-case words without punctuation, with a space on both sides of each."""
    return " ".join(["", *re.findall(r"[^\s,.;:!?()\"]+", text.lower()), ""])


# Showing ---------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> list[RenderableType]:
    """What ``evaluate_scenes`` found, to be printed with rich."""
    from rich.table import Table

    n = results["novel"]["judge"]["n"]
    error = 100 * 0.5 / n**0.5
    drawn = Table(title="Caption -> picture: right by the judge, %", caption=f"n = {n}; standard error <= {error:.1f}")
    told = Table(title="Picture -> caption", caption="told right in %, CIDEr-D 0 to 10")
    for table, columns in ((drawn, (*QUESTIONS, "all correct", "FD")), (told, (*QUESTIONS, "CIDEr-D"))):
        table.add_column("entities")
        table.add_column("picture" if table is drawn else "caption")
        for column in columns:
            table.add_column(column, justify="right")
    for split in SPLITS:
        for row in ROWS:
            shares = [results[split][row][key] for key in (*QUESTIONS, "all_correct")]
            cells = [*(f"{100 * share:.1f}" for share in shares), f"{results[split][row].get('fd', math.nan):.2f}"]
            drawn.add_row(split, row, *cells, end_section=row == ROWS[-1])
        for row, scores in results[split]["caption"].items():
            shares = [scores[key] for key in ("entity_named", "background_told", "position_told")]
            told.add_row(split, row, *(f"{100 * share:.1f}" for share in shares), f"{scores['cider_d']:.2f}")
    return [drawn, told, *_task_tables(results["tasks"])]


def _task_tables(results: dict[str, Any]) -> list[RenderableType]:
    from rich.table import Table

    filled = Table(title="Other tasks, %")
    for column in ("task", "entities", "model"):
        filled.add_column(column)
    for column in ("entity", "style", "untouched"):
        filled.add_column(column, justify="right")
    for task in ("infill", "edit", "style"):
        for split, rows in results[task].items():
            for row, scores in rows.items():
                found = [scores.get(key) for key in ("entity", "style", "untouched")]
                shares = ["" if share is None else f"{100 * share:.1f}" for share in found]
                filled.add_row(task, split, row, *shares)
    shots = Table(title="One-shot classification, and averages of several, % right", caption="chance is 50")
    shots.add_column("by")
    shots.add_column("model")
    for count in SHOTS:
        shots.add_column(str(count), justify="right")
    for by, task in (("picture", "one_shot"), ("label", "one_shot_by_label")):
        for row, scores in results[task]["novel"].items():
            shots.add_row(by, row, *(f"{100 * scores[str(count)]:.1f}" for count in SHOTS))
    return [filled, shots]


def within(on_step: Report, name: str) -> Report:
    """``on_step``, told what it is a part of."""
    return lambda what, done, total: on_step(f"{name}: {what}", done, total)
