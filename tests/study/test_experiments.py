"""On tiny random models: each experiment gives the rows and pictures that it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from racm3.document import Document, Hole, Image
from racm3.evaluation.scenes_protocol import Gauge, Protocol
from racm3.evaluation.scenes_tasks import each_alone, two_entities
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.retriever.retriever import Retriever
from racm3.retriever.strategy import Relevance
from racm3.scenes.draw import Scene, draw
from racm3.scenes.judges import Judge
from racm3.scenes.world import World
from study.experiments import EXPERIMENTS, SHOWN, Lab, examine_generator

N = 2
USUAL = Protocol()
PROTOCOL = Protocol(
    n=N,
    trials=1,
    drawing=replace(USUAL.drawing, samples=1),
    captioning=replace(USUAL.captioning, max_text_tokens=4),
)


@pytest.fixture(scope="module")
def lab(retrieval: RACM3, vanilla: RACM3, judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """With a memory of seen and novel entities."""
    novel = set(World().novel)
    items = [item for item in islice(World().items("memory"), 120) if item.metadata["scene"]["size"] == "normal"]
    known = [item for item in items if item.metadata["scene"]["entities"][0] not in novel][:8]
    new = [item for item in items if item.metadata["scene"]["entities"][0] in novel][:8]
    assert len(new) == len(known) == 8
    encoder = retrieval.encoder
    memory = Memory.create(tmp_path_factory.mktemp("lab") / "m", encoder.fingerprint, encoder.dimension)
    memory.add([*known, *new], encoder.embed([item.document for item in [*known, *new]]))
    model = RACM3(retrieval.generator, retrieval.text, retrieval.image, retrieval.markup, encoder, memory)
    return Lab(model, vanilla, judge, PROTOCOL)


ROWS = {
    "pictures": 2 * 5,
    "captions": 2 * 3,
    "one-shot": 2 * 2 * 4,
    "two-entities": 6,
    "tasks": 4 * 2,
    "knowledge": 2 * 2,
    "documents": 8,
    "caption-documents": 4,
    "context-aware": 4 * 2,
    "retriever": 2 * 2 * 2,
    "perplexity": 2 * (3 + 1),
}


@pytest.mark.parametrize("name", EXPERIMENTS.names())
def test_rows_have_labels_and_scores_with_intervals(name: str, lab: Lab) -> None:
    found = EXPERIMENTS.get(name)(lab)
    assert len(found.rows) == ROWS[name]
    labels = [
        tuple(str(row[key]) for key in row if key not in ("n", "interval", *row["interval"])) for row in found.rows
    ]
    assert len(set(labels)) == len(labels)
    for row in found.rows:
        assert row["n"] == (PROTOCOL.trials if name == "one-shot" else N)
        assert row["interval"]
        for score, (low, high) in row["interval"].items():
            assert low <= high, score
            assert np.isfinite(row[score]), score
    if found.sheet:
        assert 0 < len(found.sheet.lines) <= 3 * SHOWN
        assert all(len(images) == len(found.sheet.heads) for _, images in found.sheet.lines)


def test_before_no_novel_entity_is_in_memory(lab: Lab) -> None:
    rows = EXPERIMENTS.get("knowledge")(lab).rows
    assert {row["novel documents"]: row["in memory"] for row in rows} == {"before": 8, "after": 16}
    assert len(lab.memory) == 16  # the lab's own is left alone


def test_documents_are_given_as_the_row_says(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the generator is given by hand, against a retriever asked here."""
    given: list[list[list[Document]] | None] = []
    complete = lab.retrieval.complete

    def spy(*arguments: object, **named: object) -> object:
        given.append(named.get("retrieved"))  # type: ignore[arg-type]
        return complete(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(lab.retrieval, "complete", spy)
    rows = EXPERIMENTS.get("documents")(lab).rows
    asked = [Document.of(caption, Hole("image")) for _, caption in lab.tests("novel")]
    by_hand = {row["given"]: own for row, own in zip(rows, given, strict=True) if own is not None}
    assert list(by_hand) == ["2 documents, text alone", "2 documents, image alone", "2 documents, redundant ones too"]
    assert all(not document.images for own in by_hand["2 documents, text alone"] for document in own)
    assert all(document.text is None for own in by_hand["2 documents, image alone"] for document in own)
    hits = Retriever(lab.memory, lab.retrieval.encoder, Relevance()).retrieve(asked, 2)
    assert by_hand["2 documents, redundant ones too"] == [[hit.document for hit in own] for own in hits]


def test_each_of_two_is_judged_alone(lab: Lab) -> None:
    """Cut from a true picture and scaled, an entity is nearly as it is drawn alone, and white is around it."""
    task = two_entities(lab.tests("novel"))
    alone = each_alone([Image(draw(scene)) for scene in task.scenes], task.scenes)
    assert alone.shape == (N, 2, 64, 64, 3)
    for own, scene in zip(alone, task.scenes, strict=True):
        for picture, name in zip(own, scene.entities, strict=True):
            assert np.abs(picture.astype(int) - draw(Scene((name,), "white"))).mean() < 12


def test_a_generator_is_examined_with_and_without_documents(lab: Lab) -> None:
    rows = examine_generator(lab, (2, 0))
    assert [(row["documents"], row["entities"]) for row in rows] == [
        (2, "seen"),
        (2, "novel"),
        (0, "seen"),
        (0, "novel"),
    ]
    assert {"all_correct", "fd", "cider_d", "entity_named"} <= rows[0]["interval"].keys()


def test_the_gauge_of_the_truth_is_zero_apart(lab: Lab) -> None:
    tests = lab.tests("seen")
    gauge = Gauge(tests, lab.judge, lab.retrieval.encoder)
    true = [Image(draw(scene)) for scene, _ in tests]
    assert gauge.scores(true)["fd"] == 0 < gauge.scores(true[::-1] if N > 2 else [true[0]] * 2)["fd"]
