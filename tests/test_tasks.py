"""Tasks by name: ours are the methods of the model, another package's are one function and one registration."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from racm3.completion import Request
from racm3.document import Document, Hole, Text
from racm3.errors import ConfigError, DocumentError
from racm3.pipeline import RACM3
from racm3.tasks import TASKS
from tests.test_pipeline import SETTINGS, masked, memory_path, model, models, picture, same  # noqa: F401  (fixtures)

PLUGIN = '''
from racm3.completion import Request
from racm3.document import Document, Hole
from racm3.tasks import TASKS


@TASKS.register("describe-between")
def describe_between(first, second):
    """Words between two pictures, then a third picture; the words are the answer."""
    return Request(Document.of(first, Hole("text"), second, Hole("image")), answer=1)
'''


def test_a_task_of_another_package(model: RACM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    (tmp_path / "plugin_task.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TASKS, "_known", dict(TASKS._known))
    with pytest.raises(ConfigError, match="unknown task 'describe-between'"):
        model.run("describe-between", picture(1), picture(2))
    done = model.run("plugin_task:describe_between", picture(1), picture(2), settings=SETTINGS)  # imported by its name
    assert same(model.run("describe-between", picture(1), second=picture(2), settings=SETTINGS), done)
    assert isinstance(done.answer, Text)
    assert done.answer == done.document.parts[1]
    (expected,) = model.complete([Document.of(picture(1), Hole("text"), picture(2), Hole("image"))], SETTINGS)
    assert same(done, expected)
    del sys.modules["plugin_task"]


def test_ours_are_the_methods(model: RACM3) -> None:  # noqa: F811
    hidden, control = masked(picture(8), slice(8, 24), slice(0, 16)), picture(9)
    for done, expected in (
        (model.run("generate-image", "a fox", settings=SETTINGS), model.generate_image("a fox", SETTINGS)),
        (model.run("caption", picture(7), settings=SETTINGS), model.caption(picture(7), SETTINGS)),
        (model.run("infill", hidden, "a fox", settings=SETTINGS), model.infill(hidden, "a fox", SETTINGS)),
        (model.run("edit", hidden, control, settings=SETTINGS), model.edit(hidden, control, settings=SETTINGS)),
    ):
        assert same(done, expected)
        assert done.answer == done.document.parts[done.answers[-1].part]
    assert TASKS.names() == ("generate-image", "caption", "infill", "edit")


def test_a_task_may_have_settings_of_its_own(model: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(TASKS, "_known", dict(TASKS._known))
    own = replace(SETTINGS, k=0, seed=5)
    TASKS.register("alone")(lambda words: Request(Document.of(words, Hole("image")), own))
    assert model.run("alone", "a fox").settings == own
    assert model.run("alone", "a fox", settings=SETTINGS).settings == SETTINGS
    with pytest.raises(DocumentError, match="infill needs a part that hides something"):
        model.run("infill", picture(1))
