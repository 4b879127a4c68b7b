"""The other tasks on Emoji Scenes: infill, edit, style and one-shot classification, with and without retrieval.

    infill      the entity of a test picture is hidden, the caption is given: does the judge see it again?
    edit        the same with no words, and another novel entity's picture as control: does the region become that one?
    style       a picture in sepia is asked for, a style never met in training, after two demonstrations of it
    one-shot    two novel entities, called "animal X" and "animal Y", one example each: which is a third picture of?
                Then with 2, 4 and 8 examples each, by averaging as many contexts. Chance is 50 %. By the probability
                of the picture, and, as in the paper, by that of the label

In edit, style and one-shot no memory is asked, and the vanilla model reads the very same context as the other. Outside
of a hidden region no pixel may change: ``untouched`` is the share of pictures in which none did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from racm3.classification import By
from racm3.document import Document, Hole, Image
from racm3.evaluation.bootstrap import Scores, means
from racm3.pipeline import RACM3, Completion, Settings
from racm3.scenes.caption import describe
from racm3.scenes.draw import SCENE_PX, Scene, background, draw
from racm3.scenes.judges import Judge
from racm3.scenes.world import HELD_OUT_STYLE, World
from racm3.util.progress import Report

LABELS = ("animal X", "animal Y")
"""Words that mean nothing; those of the paper."""
SHOTS = (1, 2, 4, 8)
"""Examples of each label; those of the paper."""

Tests = Sequence[tuple[Scene, str]]


@dataclass(frozen=True)
class Task:
    """``documents`` to be completed, each with its ``retrieved`` ones (None: from the memory), towards ``scenes``."""

    documents: list[Document]
    retrieved: list[list[Document]] | None
    scenes: list[Scene]


def infill(tests: Tests) -> Task:
    """The entity of each test scene is hidden and to be drawn again from the caption."""
    documents = [Document.of(caption, Image(draw(scene)).hiding(box_of(scene))) for scene, caption in tests]
    return Task(documents, None, [scene for scene, _ in tests])


def edit(tests: Tests, world: World) -> Task:
    """The entity of each test scene is to become that of the next."""
    documents, retrieved, scenes = [], [], []
    for (scene, _), (other, _) in zip(tests, [*tests[1:], tests[0]], strict=True):
        control = example(world, other.entities[0], 0)
        documents.append(Document.of(Image(draw(scene)).hiding(box_of(scene))))
        retrieved.append([Document.of(describe(control), Image(draw(control)))])
        scenes.append(replace(scene, entities=other.entities))
    return Task(documents, retrieved, scenes)


def style(tests: Tests, world: World) -> Task:
    """The demonstrations are of the next two test entities."""
    asked = [replace(scene, style=HELD_OUT_STYLE) for scene, _ in tests]
    names = [scene.entities[0] for scene in asked]
    shown = [replace(example(world, name, 0), style=HELD_OUT_STYLE) for name in names]
    demonstrations = [Document.of(describe(scene), Image(draw(scene))) for scene in shown]
    turned = zip(*([*demonstrations[i:], *demonstrations[:i]] for i in (1, 2)), strict=True)
    documents = [Document.of(describe(scene), Hole("image")) for scene in asked]
    return Task(documents, [list(two) for two in turned], asked)


def example(world: World, entity: str, number: int) -> Scene:
    """The entity in a combination of background and position that no test has."""
    return Scene((entity,), *world.combinations(entity)[number])


def box_of(scene: Scene) -> tuple[int, int, int, int]:
    """Where the scene's entity stands: left, top, width, height in px."""
    ((left, top, side),) = scene.boxes
    return left, top, side, side


def two_entities(tests: Tests) -> Task:
    """The entity of each test scene beside that of the next, on its background."""
    pairs = zip(tests, [*tests[1:], tests[0]], strict=True)
    scenes = [Scene((one.entities[0], other.entities[0]), one.background) for (one, _), (other, _) in pairs]
    return Task([Document.of(describe(scene), Hole("image")) for scene in scenes], None, scenes)


def each_alone(images: Sequence[Image], scenes: Sequence[Scene]) -> np.ndarray:
    """(N, 2, 64, 64, 3) uint8: each of a picture's two entities cut out and put, as large as usual, on white: the judge
    knows pictures of one entity only."""
    shown = np.zeros((len(images), 2, SCENE_PX, SCENE_PX, 3), np.uint8)
    for number, (image, scene) in enumerate(zip(images, scenes, strict=True)):
        for place, (left, top, side) in enumerate(scene.boxes):
            alone = Scene((scene.entities[place],), "white")
            x, y, size, _ = box_of(alone)
            shown[number, place] = background(alone.background)
            cut = Image(image.pixels[top : top + side, left : left + side])
            shown[number, place, y : y + size, x : x + size] = cut.resized(size).pixels
    return shown


def pair_scores(images: Sequence[Image], scenes: Sequence[Scene], judge: Judge) -> Scores:
    """The share of entities that the judge sees in their place, and of pictures in which it sees both."""
    alone = each_alone([image.resized(SCENE_PX) for image in images], scenes)  # (N, 2, H, W, 3)
    names = np.array(judge.verdict(alone.reshape(-1, *alone.shape[2:])).entity).reshape(-1, 2)
    right = names == np.array([scene.entities for scene in scenes])  # (N, 2)
    return means({"each": right.mean(axis=1), "both": right.all(axis=1)})


def untouched(asked: Sequence[Document], done: Sequence[Completion]) -> np.ndarray:
    """(N,) bool: in which completions the pixels outside of the hidden region are those that were given."""
    kept = []
    for document, completion in zip(asked, done, strict=True):
        given, filled = document.images[0], completion.document.images[0]
        assert given.mask is not None
        kept.append(bool((given.pixels == filled.pixels)[~given.mask].all()))
    return np.array(kept)


def all_tasks(tests: Mapping[str, Tests], world: World) -> dict[tuple[str, str], Task]:
    """The tasks whose answer is a picture, by name and split."""
    return {
        ("infill", "seen"): infill(tests["seen"]),
        ("infill", "novel"): infill(tests["novel"]),
        ("edit", "novel"): edit(tests["novel"], world),
        ("style", "seen"): style(tests["seen"], world),
    }


def examine_tasks(
    tests: Mapping[str, Tests],
    models: Mapping[str, RACM3],
    judge: Judge,
    world: World,
    settings: Settings,
    trials: int,
    on_step: Report = lambda *_: None,
) -> dict[str, Any]:
    """Shares by task, then by split ("seen" and "novel", as in ``tests``), then by model: "retrieval", which has its
    memory, and "vanilla"."""
    results: dict[str, Any] = {}
    for (name, split), task in all_tasks(tests, world).items():
        for row, model in models.items():
            own = replace(settings, k=0) if row == "vanilla" else settings
            step = partial(on_step, f"{split}: {name}, {row}")
            done = model.complete(task.documents, own, retrieved=task.retrieved, on_step=step)
            results.setdefault(name, {}).setdefault(split, {})[row] = scored(name, task, done, judge)
    by: tuple[tuple[str, By], ...] = (("one_shot", "picture"), ("one_shot_by_label", "label"))
    for name, what in by:
        shares = {row: one_shot(model, world, trials, what, on_step) for row, model in models.items()}
        results[name] = {"novel": shares}
    return results


def scored(name: str, task: Task, done: Sequence[Completion], judge: Judge) -> Scores:
    """The share of pictures with the right entity, and with the right style or untouched outside of the region."""
    verdict = judge.verdict(np.stack([completion.document.images[-1].pixels for completion in done]))
    entity = np.array([one == scene.entities[0] for one, scene in zip(verdict.entity, task.scenes, strict=True)])
    if name == "style":
        return means({"entity": entity, "style": np.array(verdict.style) == HELD_OUT_STYLE})
    return means({"entity": entity, "untouched": untouched(task.documents, done)})


def one_shot(model: RACM3, world: World, trials: int, by: By, on_step: Report = lambda *_: None) -> dict[str, float]:
    """The share of right answers by the number of examples of each label, and the number of trials.

    Trial i is of novel entities 2i and 2i + 1 in the order of the test split, and asks for them in turn.
    """
    names = [scene.entities[0] for _, scene, _ in world.scenes("test-novel")]
    right = np.zeros((trials, len(SHOTS)))
    for trial in range(trials):
        pair = names[(2 * trial) % len(names)], names[(2 * trial + 1) % len(names)]
        truth = trial % 2
        asked = Image(draw(example(world, pair[truth], max(SHOTS))))
        examples = {
            label: [Image(draw(example(world, name, shot))) for shot in range(max(SHOTS))]
            for label, name in zip(LABELS, pair, strict=True)
        }
        found = model.compare([asked], examples, by)[0]  # (shots, 2)
        for column, shots in enumerate(SHOTS):
            right[trial, column] = found[:shots].mean(0).argmax() == truth
        on_step("novel: one-shot", trial + 1, trials)
    shares = right.mean(0).tolist()
    return {str(shots): round(share, 4) for shots, share in zip(SHOTS, shares, strict=True)} | {"n": trials}
