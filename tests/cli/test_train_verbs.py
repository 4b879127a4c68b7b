from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from racm3.cli import main
from racm3.model_folder import ModelFolder
from tests.cli.as_typed import SHAPE, run


def test_a_run_keeps_its_settings_and_resumes(
    data: Path, image_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--out", str(image_tokenizer), "--config", str(image_tokenizer / "run.json"), "--set", "loop.steps=3"]
    assert main(["train", "image-tokenizer", str(data), *again]) == 0
    assert "resumed at step 2 of 3" in capsys.readouterr().err


@pytest.mark.parametrize("vanilla", [True, False])
def test_a_generator_is_trained(
    vanilla: bool, data: Path, image_tokenizer: Path, encoder: Path, tmp_path: Path
) -> None:
    run = ["train", "generator", str(data), "--out", str(tmp_path), "--image-tokenizer", str(image_tokenizer)]
    settings = ["--set", "text_ids=270", *SHAPE.split(), "tokens_per_step=100", "loop.steps=2"]
    if vanilla:
        assert main([*run, *settings, "retrieved_shares=[1]"]) == 0
    else:
        assert main([*run, "--encoder", str(encoder), *settings]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json", "run.json"} <= {p.name for p in tmp_path.iterdir()}


def test_one_command_says_what_to_try(
    data: Path, image_tokenizer: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "encoder").symlink_to(encoder)
    (tmp_path / "image-tokenizer").symlink_to(image_tokenizer)
    command = ["train", "generator", str(data), "--out", str(tmp_path / "generator")]
    settings = ["--set", "text_ids=270", *SHAPE.split(), "tokens_per_step=100", "loop.steps=1"]
    assert main([*command, *settings]) == 0
    generate, caption = (line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[-2:])
    assert run(generate) == 0
    assert run(caption) == 0


def test_a_plan_is_printed_and_what_cannot_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plan", "--tokens", "1e9", "--mfu", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "3,701,184" in printed
    assert "mfu                 0.5" in printed
    assert main(["train", "plan", "--gpu-memory-gb", "1"]) == 2
    assert "more --gpus" in capsys.readouterr().err


def test_a_generator_goes_on_from_a_language_model(models: Path, data: Path, tmp_path: Path) -> None:
    """Whose folder is as a generator's own, without the facts of racm3."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "qwen3").mkdir(exist_ok=True)
        shutil.copy(models / "generator" / name, tmp_path / "qwen3")
    command = f"train generator {{data}} --image-tokenizer {{models}}/image-tokenizer --out {{out}} --set {SHAPE} "
    command += "init_from={qwen3} text_ids=0 retrieved_shares=[1] tokens_per_step=100 loop.steps=1"
    assert run(command, models=models, data=data, out=tmp_path / "out", qwen3=tmp_path / "qwen3") == 0
    written, given = (ModelFolder.around(folder) for folder in (tmp_path / "out", tmp_path / "qwen3"))
    assert written.text().fingerprint == given.text().fingerprint
    assert written.has_facts
    assert not given.has_facts
