from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from racm3 import cli
from racm3.errors import CheckpointError
from racm3.scenes.draw import BACKGROUNDS, POSITIONS, STYLES, Scene, draw
from racm3.scenes.glyphs import load_glyphs
from racm3.scenes.judges import Judge

PICTURES = np.stack([draw(Scene(("fox",), "snow", position)) for position in POSITIONS])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps from the command line."""
    out = tmp_path_factory.mktemp("judge")
    settings = ["loop.steps=2", "batch_size=4", "optimiser.warmup_steps=1"]
    assert cli.main(["train", "judge", "--out", str(out), "--set", *settings]) == 0
    return out


def test_a_verdict_answers_every_question() -> None:
    torch.manual_seed(0)
    verdict = Judge(load_glyphs().names).verdict(PICTURES)
    for answers, allowed in (
        (verdict.entity, load_glyphs().names),
        (verdict.background, BACKGROUNDS),
        (verdict.position, POSITIONS),
        (verdict.style, STYLES),
    ):
        assert len(answers) == len(PICTURES)
        assert set(answers) <= set(allowed)


def test_training_changes_it_and_it_comes_back_from_disk(trained: Path) -> None:
    torch.manual_seed(0)  # the seed of the run, so the judge as it was before the first step
    start, judge = Judge(load_glyphs().names), Judge.from_pretrained(trained)
    moved = [
        not torch.allclose(before, after, atol=1e-3)
        for before, after in zip(start.state_dict().values(), judge.state_dict().values(), strict=True)
    ]
    assert any(moved)
    assert not judge.training
    judge.save_pretrained(trained / "again")
    again = Judge.from_pretrained(trained / "again")
    assert all(torch.equal(a, b) for a, b in zip(judge.state_dict().values(), again.state_dict().values(), strict=True))
    assert judge.verdict(PICTURES) == again.verdict(PICTURES)


def test_a_run_keeps_its_settings_and_resumes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["--out", str(trained), "--config", str(trained / "run.json"), "--set", "loop.steps=3"]
    assert cli.main(["train", "judge", *again]) == 0
    assert "resumed at step 2 of 3" in capsys.readouterr().err


def test_a_folder_without_one_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="racm3 train judge --out"):
        Judge.from_pretrained(tmp_path)
