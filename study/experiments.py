"""Experiments: what trained models make of Emoji Scenes, one function a claim. Nothing is trained here.

Each is a function of a ``Lab`` and gives rows: labels (entities, model, what was varied) and scores with intervals;
and, where there is something to see, a sheet of pictures, the first of the seeded test splits. ``runs.py`` says when
they are run and keeps what they find, ``report.py`` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from racm3.classification import By
from racm3.data import Item
from racm3.document import Document, Hole, Image, Modality
from racm3.evaluation.bootstrap import means
from racm3.evaluation.perplexity import document_perplexity
from racm3.evaluation.recall import found_within
from racm3.evaluation.scenes_protocol import (
    ROWS,
    SPLITS,
    Gauge,
    Protocol,
    caption_all,
    caption_scores,
    draw_all,
    through_tokenizer,
    within,
)
from racm3.evaluation.scenes_tasks import (
    SHOTS,
    Task,
    Tests,
    all_tasks,
    example,
    one_shot,
    pair_scores,
    scored,
    style,
    two_entities,
)
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3, Completion, Settings
from racm3.retriever.retriever import Retriever
from racm3.retriever.strategy import Relevance, Strategy
from racm3.scenes.caption import describe
from racm3.scenes.draw import Scene, draw
from racm3.scenes.judges import Judge
from racm3.util.progress import Report
from racm3.util.registry import Registry

__all__ = ["EXPERIMENTS", "Found", "Lab", "Sheet", "examine_generator"]

SHOWN = 8
"""Requests on a sheet: the first of a test split."""
STRENGTHS = (1.0, 1.25, 1.5, 2.0)

Row = dict[str, Any]


@dataclass(frozen=True)
class Lab:
    """The models under examination, ``retrieval`` with its memory, and what they are examined with."""

    retrieval: RACM3
    vanilla: RACM3
    judge: Judge
    protocol: Protocol
    on_step: Report = lambda *_: None

    @property
    def memory(self) -> Memory:
        assert self.retrieval.memory is not None
        return self.retrieval.memory

    @property
    def single(self) -> Settings:
        """One drawing a request: what varies is then the model, and not how well the encoder chooses."""
        return replace(self.protocol.drawing, samples=1)

    def tests(self, entities: str) -> Tests:
        """The first scenes of a test split, "seen" or "novel", with their captions."""
        scenes = self.protocol.world.scenes(SPLITS[entities])
        return [(scene, caption) for _, scene, caption in islice(scenes, self.protocol.n)]

    def named(self, what: str) -> Report:
        """``on_step``, told what it is of."""
        return within(self.on_step, what)


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side, one line a request: a title, and a picture below each of the heads."""

    heads: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Image, ...]], ...]


@dataclass(frozen=True)
class Found:
    """What an experiment found. ``decoding``: its settings, beside those of the lab's protocol."""

    rows: list[Row]
    sheet: Sheet | None = None
    decoding: Mapping[str, Settings] = field(default_factory=dict)


EXPERIMENTS: Registry[Callable[[Lab], Found]] = Registry("experiment")
"""By name, the most telling first. One of another package is asked for as MODULE:FUNCTION."""


@EXPERIMENTS.register("pictures")
def pictures(lab: Lab) -> Found:
    """Caption -> image: with retrieval, without, the returned picture, the tokenizer's ceiling, the true picture."""
    rows: list[Row] = []
    lines: list[tuple[str, tuple[Image, ...]]] = []
    for entities in SPLITS:
        tests = lab.tests(entities)
        drawn = draw_all(tests, lab.retrieval, lab.vanilla, lab.protocol.drawing, lab.named(entities))
        gauge = Gauge(tests, lab.judge, lab.retrieval.encoder)
        rows += [{"entities": entities, "model": row} | gauge.scores(drawn[row]) for row in ROWS]
        shown = zip(*(drawn[row] for row in ROWS), strict=True)
        lines += [
            (f"{caption} ({entities})", own) for (_, caption), own in islice(zip(tests, shown, strict=True), SHOWN)
        ]
    return Found(rows, Sheet((*ROWS[:-1], "true"), tuple(lines)))


@EXPERIMENTS.register("captions")
def captions(lab: Lab) -> Found:
    """Image -> caption: with retrieval, without, and the caption of the best-ranked document itself."""
    rows: list[Row] = []
    for entities in SPLITS:
        tests = lab.tests(entities)
        told = caption_all(tests, lab.retrieval, lab.vanilla, lab.protocol.captioning, lab.named(entities))
        scenes = [scene for scene, _ in tests]
        rows += [{"entities": entities, "model": row} | caption_scores(own, scenes) for row, own in told.items()]
    return Found(rows)


@EXPERIMENTS.register("one-shot")
def shots(lab: Lab) -> Found:
    """One-shot classification of novel entities with labels that mean nothing, and averages of 2, 4 and 8 contexts."""
    rows: list[Row] = []
    models: tuple[tuple[str, RACM3], ...] = (("retrieval", lab.retrieval), ("vanilla", lab.vanilla))
    protocols: tuple[By, ...] = ("picture", "label")
    for by, (row, model) in product(protocols, models):
        found = one_shot(model, lab.protocol.world, lab.protocol.trials, by, lab.named(f"{row}, by {by}"))
        n = int(found["n"])
        for count in SHOTS:
            right = np.arange(n) < round(found[str(count)] * n)
            rows.append({"entities": "novel", "by": by, "model": row, "contexts": count} | means({"right": right}))
    return Found(rows)


@EXPERIMENTS.register("two-entities")
def two(lab: Lab) -> Found:
    """Two novel entities in one picture, from the memory, or with a document of each given by hand: of the one entity
    large, as in most documents, or twice, as small as it is to be drawn."""
    task, world = two_entities(lab.tests("novel")), lab.protocol.world
    alone = [[example(world, name, 0) for name in scene.entities] for scene in task.scenes]
    settings = lab.single
    ways: dict[str, tuple[RACM3, Settings, list[list[Document]] | None]] = {
        "retrieval": (lab.retrieval, settings, None),
        "given": (lab.retrieval, settings, [[_shown(scene) for scene in own] for own in alone]),
        "given small": (lab.retrieval, settings, [[_shown(_twice(scene)) for scene in own] for own in alone]),
        "vanilla": (lab.vanilla, replace(settings, k=0), None),
    }
    drawn = {
        row: _pictures(model.complete(task.documents, own, retrieved=given, on_step=partial(lab.on_step, row)))
        for row, (model, own, given) in ways.items()
    }
    truth = [Image(draw(scene)) for scene in task.scenes]
    drawn |= {"ceiling": through_tokenizer(truth, lab.retrieval.image), "true": truth}
    rows = [
        {"entities": "novel", "model": row} | pair_scores(own, task.scenes, lab.judge) for row, own in drawn.items()
    ]
    return Found(rows, _sheet([describe(scene) for scene in task.scenes], drawn), {"usual": settings})


@EXPERIMENTS.register("tasks")
def tasks(lab: Lab) -> Found:
    """Infilling, editing by a picture, and a style that is only demonstrated: the tasks of ``tasks.py``."""
    asked = all_tasks({entities: lab.tests(entities) for entities in SPLITS}, lab.protocol.world)
    rows: list[Row] = []
    lines: list[tuple[str, tuple[Image, ...]]] = []
    for (name, entities), task in asked.items():
        drawn = {}
        for model, one in (("retrieval", lab.retrieval), ("vanilla", lab.vanilla)):
            settings = lab.protocol.filling if model == "retrieval" else replace(lab.protocol.filling, k=0)
            step = partial(lab.on_step, f"{entities}: {name}, {model}")
            done = one.complete(task.documents, settings, retrieved=task.retrieved, on_step=step)
            rows.append({"task": name, "entities": entities, "model": model} | scored(name, task, done, lab.judge))
            drawn[model] = _pictures(done)
        if entities == "novel" or name == "style":
            truth = [Image(draw(scene)) for scene in task.scenes]
            given = [_given(task, number) for number in range(len(truth))]
            shown = zip(given, drawn["retrieval"], drawn["vanilla"], truth, strict=True)
            titles = [f"{name}: {describe(scene)}" for scene in task.scenes]
            lines += islice(zip(titles, shown, strict=True), SHOWN)
    return Found(rows, Sheet(("given", "retrieval", "vanilla", "wanted"), tuple(lines)))


@EXPERIMENTS.register("knowledge")
def knowledge(lab: Lab) -> Found:
    """Novel entities are added to a live memory that knew none: the same requests and weights, before and after."""
    items, vectors, novel = list(lab.memory.items()), lab.memory.vectors, set(lab.protocol.world.novel)
    new = np.array([any(name in novel for name in item.metadata["scene"]["entities"]) for item in items])
    rows: list[Row] = []
    drawn: dict[str, list[Image]] = {}
    with TemporaryDirectory() as folder:
        memory = Memory.create(Path(folder) / "memory", lab.memory.encoder_fingerprint, lab.memory.dimension)
        memory.add(_where(items, ~new), vectors[~new])
        for when in ("before", "after"):
            started = time.monotonic()
            if when == "after":
                memory.add(_where(items, new), vectors[new])
            added_s = round(time.monotonic() - started, 2)
            for entities in SPLITS:
                tests = lab.tests(entities)
                asked = [Document.of(caption, Hole("image")) for _, caption in tests]
                step = partial(lab.on_step, f"{entities}, {when}")
                found = _pictures(lab.retrieval.complete(asked, lab.single, memory=memory, on_step=step))
                labels = {
                    "entities": entities,
                    "novel documents": when,
                    "in memory": len(memory),
                    "added in s": added_s,
                }
                rows.append(labels | Gauge(tests, lab.judge, lab.retrieval.encoder).scores(found))
                if entities == "novel":
                    drawn[when] = found
                    drawn["true"] = [Image(draw(scene)) for scene, _ in tests]
    titles = [caption for _, caption in lab.tests("novel")]
    return Found(
        rows, _sheet(titles, {name: drawn[name] for name in ("before", "after", "true")}), {"usual": lab.single}
    )


@EXPERIMENTS.register("documents")
def documents(lab: Lab) -> Found:
    """What is retrieved: how many documents, whole ones or one part of them, redundant ones skipped or not."""
    tests = lab.tests("novel")
    asked = [Document.of(caption, Hole("image")) for _, caption in tests]
    gauge, usual, rows = Gauge(tests, lab.judge, lab.retrieval.encoder), replace(lab.single, k=2), list[Row]()
    by_hand: dict[str, list[list[Document]]] = {
        "2 documents, text alone": _found(lab, asked, "text"),
        "2 documents, image alone": _found(lab, asked, "image"),
        "2 documents, redundant ones too": _found(lab, asked, None, Relevance()),
    }
    ways: dict[str, tuple[Settings, list[list[Document]] | None]] = {
        "no document": (replace(usual, k=0), None),
        "1 document": (replace(usual, k=1), None),
        "2 documents": (usual, None),
        **{what: (usual, given) for what, given in by_hand.items()},
        "2 contexts of 2": (replace(usual, contexts=2), None),
        "4 contexts of 2": (replace(usual, contexts=4), None),
    }
    for what, (settings, given) in ways.items():
        step = partial(lab.on_step, what)
        drawn = _pictures(lab.retrieval.complete(asked, settings, retrieved=given, on_step=step))
        rows.append({"entities": "novel", "given": what} | gauge.scores(drawn))
    return Found(rows, decoding={"usual": usual})


@EXPERIMENTS.register("caption-documents")
def caption_documents(lab: Lab) -> Found:
    """The same for captions: how many documents the generator reads beside the picture."""
    tests, rows = lab.tests("novel"), list[Row]()
    scenes = [scene for scene, _ in tests]
    asked = [Document.of(Hole("text"), Image(draw(scene))) for scene in scenes]
    usual = replace(lab.protocol.captioning, k=2)
    ways = {
        "no document": replace(usual, k=0),
        "1 document": replace(usual, k=1),
        "2 documents": usual,
        "2 contexts of 2": replace(usual, contexts=2),
    }
    for what, settings in ways.items():
        done = lab.retrieval.complete(asked, settings, on_step=partial(lab.on_step, what))
        rows.append(
            {"entities": "novel", "given": what} | caption_scores([d.document.text or "" for d in done], scenes)
        )
    return Found(rows, decoding={"usual": usual})


@EXPERIMENTS.register("context-aware")
def context_aware(lab: Lab) -> Found:
    """How much more than usual the retrieved documents count: what is drawn and told, and a style only demonstrated."""
    rows: list[Row] = []
    shown = style(lab.tests("seen"), lab.protocol.world)
    for strength in STRENGTHS:
        own = replace(lab, protocol=lab.protocol.with_context_aware(strength))
        for entities in SPLITS:
            row: Row = {"entities": entities, "context_aware": strength} | _drawn_and_told(own, entities, 2)
            if entities == "seen":
                step = partial(lab.on_step, f"style, context-aware {strength}")
                filling = own.protocol.filling
                done = lab.retrieval.complete(shown.documents, filling, retrieved=shown.retrieved, on_step=step)
                found = scored("style", shown, done, lab.judge)
                row |= {"style": found["style"], "interval": row["interval"] | {"style": found["interval"]["style"]}}
            rows.append(row)
    return Found(rows)


@EXPERIMENTS.register("retriever")
def retriever(lab: Lab) -> Found:
    """How often the entity of a query is among the first documents retrieved, for a query of words and of a picture."""
    rows: list[Row] = []
    for entities in SPLITS:
        tests = lab.tests(entities)
        queries = {
            "words": [Document.of(caption) for _, caption in tests],
            "picture": [Document.of(Image(draw(scene))) for scene, _ in tests],
        }
        for kind, asked in queries.items():
            for what, strategy in (("skipped", None), ("kept", Relevance())):
                hits = Retriever(lab.memory, lab.retrieval.encoder, strategy).retrieve(asked, 2)
                relevant = [
                    [scene.entities[0] in hit.metadata["scene"]["entities"] for hit in own]
                    for own, (scene, _) in zip(hits, tests, strict=True)
                ]
                found = means({f"recall at {k}": found_within(relevant, k) for k in (1, 2)})
                rows.append({"entities": entities, "query": kind, "redundant documents": what} | found)
    return Found(rows)


@EXPERIMENTS.register("perplexity")
def perplexities(lab: Lab) -> Found:
    """Perplexity of test documents behind the documents that their words retrieve."""
    rows: list[Row] = []
    for entities in SPLITS:
        tests = lab.tests(entities)
        whole = [Document.of(caption, Image(draw(scene))) for scene, caption in tests]
        hits = Retriever(lab.memory, lab.retrieval.encoder).retrieve([Document.of(words) for _, words in tests], 2)
        for row, model, most in (("retrieval", lab.retrieval, 2), ("vanilla", lab.vanilla, 0)):
            for k in range(most + 1):
                given = [[hit.document for hit in own[:k]] for own in hits]
                found = document_perplexity(model, whole, given)
                rows.append({"entities": entities, "model": row, "documents": k} | found)
    return Found(rows)


def examine_generator(lab: Lab, documents: Iterable[int]) -> list[Row]:
    """What a generator of the study, ``lab.retrieval``, draws and tells with so many retrieved documents."""
    return [
        {"entities": entities, "documents": k} | _drawn_and_told(lab, entities, k)
        for k in documents
        for entities in SPLITS
    ]


def _drawn_and_told(lab: Lab, entities: str, k: int) -> Row:
    """The scores of one drawing a caption and of one caption a picture, behind k retrieved documents."""
    tests = lab.tests(entities)
    scenes, truth = [scene for scene, _ in tests], [Image(draw(scene)) for scene, _ in tests]
    what = f"{entities}, {k} documents, context-aware {lab.single.image.context_aware}"
    asked = [Document.of(caption, Hole("image")) for _, caption in tests]
    step = partial(lab.on_step, f"{what}: pictures")
    drawn = _pictures(lab.retrieval.complete(asked, replace(lab.single, k=k), on_step=step))
    holes = [Document.of(Hole("text"), image) for image in truth]
    step = partial(lab.on_step, f"{what}: captions")
    told = lab.retrieval.complete(holes, replace(lab.protocol.captioning, k=k), on_step=step)
    seen = Gauge(tests, lab.judge, lab.retrieval.encoder).scores(drawn)
    read = caption_scores([done.document.text or "" for done in told], scenes)
    return seen | read | {"interval": seen["interval"] | read["interval"]}


def _pictures(done: Sequence[Completion]) -> list[Image]:
    return [one.document.images[-1] for one in done]


def _shown(scene: Scene) -> Document:
    return Document.of(describe(scene), Image(draw(scene)))


def _twice(scene: Scene) -> Scene:
    return replace(scene, position="centre", count=2)


def _found(
    lab: Lab, asked: Sequence[Document], modality: Modality | None, strategy: Strategy | None = None
) -> list[list[Document]]:
    hits = Retriever(lab.memory, lab.retrieval.encoder, strategy).retrieve(asked, 2, modality=modality)
    return [[hit.document for hit in own] for own in hits]


def _where(items: Sequence[Item], chosen: np.ndarray) -> list[Item]:
    return [item for item, kept in zip(items, chosen, strict=True) if kept]


def _given(task: Task, number: int) -> Image:
    """What a request shows: the picture with its hidden region in grey, or the first demonstration."""
    image = next(iter(task.documents[number].images), None)
    if image is not None and image.mask is not None:
        return Image(np.where(image.mask[..., None], np.uint8(128), image.pixels))
    assert task.retrieved is not None
    return task.retrieved[number][0].images[0]


def _sheet(titles: Sequence[str], drawn: Mapping[str, Sequence[Image]]) -> Sheet:
    lines = zip(titles, zip(*drawn.values(), strict=True), strict=True)
    return Sheet(tuple(drawn), tuple(islice(lines, SHOWN)))
