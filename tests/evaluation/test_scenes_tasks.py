"""The tasks ask what they say, and are scored by what is true."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.evaluation.scenes_tasks import LABELS, box_of, edit, examine_tasks, infill, one_shot, style, untouched
from racm3.pipeline import RACM3, Settings
from racm3.scenes.caption import read
from racm3.scenes.draw import Scene, draw
from racm3.scenes.judges import Judge
from racm3.scenes.world import HELD_OUT_STYLE, World

WORLD = World()
TESTS = [(scene, caption) for _, scene, caption in islice(WORLD.scenes("test-novel"), 4)]
SETTINGS = Settings(samples=1)


def seen_in(document: Document) -> Scene:
    """What the caption of a document says."""
    scene = read(document.text or "")
    assert scene is not None
    return scene


def test_infill_hides_the_entity_and_nothing_else() -> None:
    task = infill(TESTS)
    for document, scene in zip(task.documents, task.scenes, strict=True):
        (image,) = document.images
        other = draw(replace(scene, entities=("fox",)))
        assert image.mask is not None
        assert (image.pixels == other)[~image.mask].all()
        assert image.mask.sum() == box_of(scene)[2] ** 2
        assert seen_in(document) == scene


def test_an_edit_shows_one_entity_and_wants_another() -> None:
    task = edit(TESTS, WORLD)
    assert all(document.text is None for document in task.documents)
    for (before, _), wanted, (control,) in zip(TESTS, task.scenes, task.retrieved or [], strict=True):
        assert wanted.entities == seen_in(control).entities != before.entities
        assert replace(wanted, entities=before.entities) == before
        assert control.images[0] == Image(draw(seen_in(control)))


def test_demonstrations_share_the_style_and_nothing_else() -> None:
    task = style(TESTS, WORLD)
    for asked, wanted, shown in zip(task.documents, task.scenes, task.retrieved or [], strict=True):
        assert seen_in(asked) == wanted
        assert [seen_in(document).style for document in (asked, *shown)] == [HELD_OUT_STYLE] * 3
        assert len({seen_in(document).entities for document in (asked, *shown)}) == 3


def test_untouched_sees_one_pixel(retrieval: RACM3) -> None:
    task = infill(TESTS[:2])
    done = retrieval.complete(task.documents, SETTINGS)
    assert untouched(task.documents, done).all()
    image = done[0].document.images[0]
    left, top, side, _ = box_of(TESTS[0][0])
    for (row, column), expected in (((top, left), 1.0), ((top, (left + side) % 64), 0.5)):
        pixels = image.pixels.copy()
        pixels[row, column] ^= 1
        changed = replace(done[0], document=Document.of(Image(pixels)))
        assert untouched(task.documents, [changed, done[1]]).mean() == expected


def test_shots_are_the_first_of_eight_contexts(retrieval: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is right in the contexts 1 and 2 only, and surer when it is wrong."""

    def compare(images: list[Image], examples: dict[str, list[Image]], by: str) -> np.ndarray:
        assert by == "picture"
        assert list(examples) == list(LABELS)
        pictures = [images[0], *examples[LABELS[0]], *examples[LABELS[1]]]
        assert len({picture.png() for picture in pictures}) == 17
        shares = np.full((1, 8, 2), 0.5)
        shares[0, :, 0] = [0.6, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
        return shares

    monkeypatch.setattr(retrieval, "compare", compare)
    found = one_shot(retrieval, WORLD, 1, "picture")
    assert found == {"1": 1.0, "2": 1.0, "4": 0.0, "8": 0.0, "n": 1}


def test_every_task_is_scored_for_both_models(retrieval: RACM3, vanilla: RACM3, judge: Judge) -> None:
    models = {"retrieval": retrieval, "vanilla": vanilla}
    results = examine_tasks({"seen": TESTS[:2], "novel": TESTS[2:]}, models, judge, WORLD, SETTINGS, trials=1)
    assert {task: list(splits) for task, splits in results.items()} == {
        "infill": ["seen", "novel"],
        "edit": ["novel"],
        "style": ["seen"],
        "one_shot": ["novel"],
        "one_shot_by_label": ["novel"],
    }
    for task, splits in results.items():
        for rows in splits.values():
            assert list(rows) == ["retrieval", "vanilla"]
            for scores in rows.values():
                assert all(0 <= share <= 1 for key, share in scores.items() if key not in ("n", "interval"))
                assert scores.get("untouched", 1.0) == 1.0, task
