"""The harness of the quick evaluation: a model that draws the truth gets all of it, one that draws nothing none."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from racm3.open_scenes import open_evaluation
from racm3.open_scenes.open_evaluation import ROWS, Examiner, drawing, moved, several
from racm3.open_scenes.open_protocol import Trial
from racm3.open_scenes.scene import PICTURE_PX, draw
from racm3.pipeline import Settings

COUNT = 3


def examiner(monkeypatch: pytest.MonkeyPatch, right: bool) -> Examiner:
    made = Examiner(SimpleNamespace(), Settings(), COUNT)  # type: ignore[arg-type]

    def pictures(_model: object, some: Sequence[Trial], *_: object) -> list[np.ndarray]:
        art = next(world.art for world in made.worlds.values() if some[0].scene.placed[0].cutout in world.art.by_id)
        return [draw(one.scene, art) if right else np.full((PICTURE_PX, PICTURE_PX, 3), 128, np.uint8) for one in some]

    monkeypatch.setattr(open_evaluation, "drawn", pictures)
    monkeypatch.setattr(open_evaluation, "ceiling", pictures)
    return made


def test_the_truth_is_all_right_and_the_returned_picture_shows_the_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    made = examiner(monkeypatch, right=True)
    values = drawing(made, "novel")
    assert values["novel_entity"] == values["novel_all"] == values["novel_ceiling"] == 1
    assert values["novel_returned"] >= 2 / 3  # a source may be tinted, the true answer is not
    assert drawing(made, "foreign")["foreign_share"] == 1  # of what the ceiling has, whatever that is


def test_an_empty_picture_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = examiner(monkeypatch, right=False)
    assert drawing(made, "novel")["novel_entity"] == 0
    assert moved(made) == {"novel_moved": 0, "novel_same_ground": 0}
    values = several(made)
    assert values["two_both"] == values["two_swapped"] == 0


def test_rows_are_known_by_their_names() -> None:
    assert {"novel", "foreign", "several", "wordings", "captions", "one-shot"} <= set(ROWS)
