from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from racm3.errors import ConfigError
from racm3.training.journal import Journal, fingerprint
from racm3.util.config import load, to_dict
from tests.training.toy import LOOP, ToyRun, rows, train

BOARD = ToyRun(replace(LOOP, tensorboard=True))


def journal(folder: Path, first: int, main: bool = True) -> Journal:
    return Journal(folder, "test", first, 9, tensorboard=False, main=main)


def test_rows_beyond_where_it_goes_on_are_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with journal(tmp_path, 0) as one:
        for step in (1, 2, 3):
            one.write(step, {"loss": step / 10, "lr": 1.0}, ["loss"], left_s=90)
    assert capsys.readouterr().err.splitlines()[-1] == "test: step 3/9  loss 0.3000  1.5 min left"
    with journal(tmp_path, 2) as other:
        assert capsys.readouterr().err == "test: resumed at step 2 of 9\n"
        other.write(3, {"loss": 9.0}, [], left_s=0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 9.0)]


def test_only_the_first_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with journal(tmp_path, 2, main=False) as silent:
        silent.write(3, {"loss": 1.0}, ["loss"], left_s=0)
        silent.sync()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    train(tmp_path, made_of={"data": "hash"})
    about = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert about["settings"] == to_dict(ToyRun())
    assert about["made_of"] == {"data": "hash"}
    assert about["processes"] == 1
    assert {"python", "torch", "racm3"} <= about["versions"].keys()
    assert load(ToyRun, tmp_path / "run.json") == ToyRun()


def test_fingerprints() -> None:
    array = np.arange(6)
    assert fingerprint(array) == fingerprint(array.copy())
    assert fingerprint(array[::-1]) == fingerprint(array[::-1].copy())
    others = [array + 1, array.reshape(2, 3), array.astype(np.int32), array[::-1]]
    assert len({fingerprint(other) for other in [array, *others]}) == 5


def test_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, BOARD)
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "mse", "grad_norm", "lr"} <= set(board.Tags()["scalars"])
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in rows(tmp_path)]


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'racm3\[train\]'"):
        train(tmp_path, BOARD)
