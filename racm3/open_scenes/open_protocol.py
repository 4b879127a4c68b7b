"""What a model makes of pictures it has never met: drawn, described and judged.

A trial is a request, the documents that a memory would give for it, and what a true answer shows. Seen, novel and
foreign trials differ in the cut-outs alone; vanilla is asked the same without documents.

    ceiling    the true picture, through the image tokenizer and back
    returned   the picture of the first document, nothing generated
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from racm3.document import Document, Hole, Image
from racm3.open_scenes.art import Art, Cutout
from racm3.open_scenes.judge import GroundJudge, Seen, box_mask, candidates, find
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PATCH_PX, PICTURE_PX, POSITIONS, Scene, draw, position
from racm3.open_scenes.sequences import Kinds, Plan, Planner
from racm3.open_scenes.wording import WHERE, describe, facts
from racm3.pipeline import RACM3, Settings

NEAR_PX = round(PICTURE_PX / 7)
"""Pixels by which the middle of an entity may be off the third of the picture that was asked for: half a third."""


@dataclass(frozen=True)
class Trial:
    """``documents`` are what is retrieved; ``scene`` is one true answer, ``caption`` tells all of it."""

    plan: Plan
    caption: str
    documents: tuple[Document, ...]

    @property
    def scene(self) -> Scene:
        return self.plan.main.scene

    @property
    def variants(self) -> list[tuple[int, bool]]:
        """Sizes, and whether mirrored, in which an entity asked for stands in a document."""
        asked = {one.cutout for one in self.scene.placed}
        shown = [one for source in self.plan.sources for one in source.scene.placed] or list(self.scene.placed)
        return list(dict.fromkeys((one.size, one.mirrored) for one in shown if one.cutout in asked))


@dataclass(frozen=True)
class Verdict:
    """What of a request a picture shows: every entity (the nearest of 100), each in its place, the background."""

    entities: tuple[bool, ...]
    places: tuple[bool, ...]
    ground: bool

    @property
    def all_right(self) -> bool:
        return all(self.entities) and all(self.places) and self.ground


def trials(
    world: World,
    kind: str,
    count: int,
    wording: str = "plain",
    seed: int = 0,
    step_px: int = PATCH_PX,
    task: str = "draw",
    same_ground: float = 0.0,
    same_place: float = 1.0,
) -> list[Trial]:
    """The same at every call; ``kind``, ``same_ground`` and ``same_place`` are those of ``sequences.Kinds``.

    Every caption names places and background.
    """
    rng = np.random.default_rng((seed, 77))
    planner = Planner(world, Kinds(same_ground=same_ground, same_place=same_place), step_px, ("plain",))
    found = []
    for number in range(count):
        plan = planner.plan(rng, task, kind)
        plain_tints = tuple(replace(one, tint="") for one in plan.main.scene.placed)
        plan = replace(plan, main=replace(plan.main, scene=replace(plan.main.scene, placed=plain_tints)))
        dice = random.Random(f"{seed} {number}")
        told = facts(plan.main.scene, dice, world.art, places=1, grounds=1)
        caption = describe(told, wording, dice)
        documents = [Document.of(one.caption, Image(draw(one.scene, world.art))) for one in plan.sources]
        found.append(Trial(plan, caption, tuple(documents)))
    return found


def drawn(model: RACM3, some: Sequence[Trial], settings: Settings, documents: bool = True) -> list[np.ndarray]:
    """The pictures that a model draws for the captions, (H, W, 3) uint8 each."""
    asked = [Document.of(trial.caption, Hole("image")) for trial in some]
    given = [trial.documents if documents else () for trial in some]
    return [done.document.images[0].pixels for done in model.complete(asked, settings, retrieved=given)]


def ceiling(model: RACM3, some: Sequence[Trial], art: World) -> list[np.ndarray]:
    """The true pictures, as the image tokenizer keeps them."""
    pixels = (
        torch.from_numpy(np.stack([draw(trial.scene, art.art) for trial in some])).permute(0, 3, 1, 2).float() / 255
    )
    kept = model.image.decode(model.image.encode(pixels)).permute(0, 2, 3, 1)
    return list((kept * 255).round().to(torch.uint8).numpy())


def judge(
    picture: np.ndarray, trial: Trial, world: World, others: Sequence[Cutout], grounds: GroundJudge, seed: int
) -> Verdict:
    """Compare a picture with what was asked."""
    true = trial.scene.cutouts(world.art)
    found = find(picture, candidates(true, others, seed), trial.variants)
    own, rest = found[: len(true)], found[len(true) :]
    best = min(one.missing for one in rest)
    entities = tuple(one.missing < best and one.missing < 0.6 for one in own)
    places = tuple(_in_place(seen, placed.box(world.art)) for seen, placed in zip(own, trial.scene.placed, strict=True))
    hidden = np.any([box_mask(one.box, PICTURE_PX) for one in own], axis=0)
    return Verdict(entities, places, grounds(picture, hidden) == trial.scene.ground.name)


def _in_place(seen: Seen, asked: tuple[int, int, int, int]) -> bool:
    """Whether the middle of what was found is in the third that was asked for, or half a third beside it."""
    third = PICTURE_PX / 3
    row, column = divmod(POSITIONS.index(position(asked)), 3)
    left, top, width, height = seen.box
    across, down = left + width / 2, top + height / 2
    return (
        abs(across - (column + 0.5) * third) <= third / 2 + NEAR_PX
        and abs(down - (row + 0.5) * third) <= third / 2 + NEAR_PX
    )


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares of the trials, from 0 to 1. ``entity``: of the entities; ``every``: of the trials with all of them."""
    return {
        "entity": float(np.mean([hit for one in verdicts for hit in one.entities])),
        "every": float(np.mean([all(one.entities) for one in verdicts])),
        "place": float(np.mean([hit for one in verdicts for hit in one.places])),
        "ground": float(np.mean([one.ground for one in verdicts])),
        "all": float(np.mean([one.all_right for one in verdicts])),
    }


def swapped(verdicts: Sequence[Verdict]) -> float:
    """Share of two-entity trials in which both are there and neither is where it was asked for."""
    return float(np.mean([all(one.entities) and not any(one.places) for one in verdicts]))


@dataclass(frozen=True)
class Read:
    """What of a picture a caption tells: the name, the place, the background."""

    named: bool
    place: bool
    ground: bool


def read(caption: str, trial: Trial, art: Art) -> Read:
    """Compare a caption with what a picture of one entity shows; any name and any phrase of the place will do."""
    words = f" {re.sub('[^a-z ]', ' ', caption.lower())} "
    (one,) = trial.scene.placed
    names = art.by_id[one.cutout].names
    phrases = [(phrase, place) for place, some in WHERE.items() for phrase in (*some, place)]
    found = [place for phrase, place in sorted(phrases, key=lambda pair: -len(pair[0])) if f" {phrase} " in words]
    ground = re.sub("^(an?|the) ", "", trial.scene.ground.name)
    return Read(
        any(f" {name} " in words for name in names),
        (found[0] if found else "centre") == position(one.box(art)),
        f" {ground} " in words,
    )


def captions(model: RACM3, some: Sequence[Trial], art: Art, settings: Settings, documents: bool = True) -> list[str]:
    """What a model says of the true pictures."""
    asked = [Document.of(Hole("text"), Image(draw(trial.scene, art))) for trial in some]
    given = [trial.documents if documents else () for trial in some]
    return [done.document.text or "" for done in model.complete(asked, settings, retrieved=given)]


def hidden(trial: Trial, art: Art) -> np.ndarray:
    """The pixels around the entities, (H, W) bool: what is to be filled in."""
    boxes = [one.box(art) for one in trial.scene.placed]
    return np.any([box_mask((left - 2, top - 2, w + 4, h + 4), PICTURE_PX) for left, top, w, h in boxes], axis=0)


def edited(model: RACM3, some: Sequence[Trial], art: Art, settings: Settings) -> list[np.ndarray]:
    """The true backgrounds with other entities on them, whose regions become what a document shows."""
    done = []
    for trial, other in zip(some, [*some[1:], some[0]], strict=True):
        (own,), (there, *_) = trial.scene.placed, other.scene.placed
        before = draw(replace(trial.scene, placed=(replace(there, left=own.left, top=own.top, size=own.size),)), art)
        image = Image(before, hidden(trial, art))
        done.append(model.edit(image, trial.documents[0], trial.caption, settings=settings).document.images[0].pixels)
    return done


def filled(model: RACM3, some: Sequence[Trial], art: Art, settings: Settings) -> list[np.ndarray]:
    """The true pictures, the region of the entities drawn anew from caption and documents."""
    asked = [Document.of(trial.caption, Image(draw(trial.scene, art), hidden(trial, art))) for trial in some]
    done = model.complete(asked, settings, retrieved=[trial.documents for trial in some])
    return [one.document.images[0].pixels for one in done]
