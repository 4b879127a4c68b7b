"""Presets: every one builds at the size that its docstring says, and a misspelt one names the nearest."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from racm3 import cli
from racm3.errors import ConfigError
from racm3.generator.model import Generator, GeneratorConfig
from racm3.presets import PRESETS, preset
from racm3.tokens.image_tokenizer import FSQImageTokenizer
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.training.encoder_recipe import new_encoder
from racm3.training.generator_recipe import ShapeConfig
from racm3.training.models import Runs
from racm3.util.config import from_dict, to_dict

QWEN3_TEXT_IDS = 151_669  # of its tokenizer.json; its table has 151,936 rows


def by_hand(v: int, s: ShapeConfig) -> int:
    """Weights of a generator, counted from its description."""
    attention = 2 * s.width * s.heads * s.head_dim + 2 * s.width * s.kv_heads * s.head_dim
    norms = 2 * s.width + 2 * s.head_dim
    return v * s.width + s.layers * (attention + 3 * s.width * s.mlp_width + norms) + s.width


@pytest.mark.parametrize(
    ("name", "codes", "text_ids", "millions"),
    [
        ("scenes", 4375, 1024, 3.7),
        ("scenes-vanilla", 4375, 1024, 3.7),
        ("scenes-tasks", 4375, 1024, 3.7),
        ("pictures", 4375, 1024, 3.7),
        ("paper-125m", 8000, 49_152, 128.9),
        ("paper-350m", 8000, 49_152, 366.8),
        ("paper-760m", 8000, 49_152, 767.4),
        ("paper-1.3b", 8000, 49_152, 1331.4),
        ("paper-2.7b", 8000, 49_152, 2684.1),
        ("finetune-qwen3", 8000, QWEN3_TEXT_IDS, 604.0),
    ],
)
def test_every_preset_builds_at_its_size(name: str, codes: int, text_ids: int, millions: float) -> None:
    runs = preset(name)
    with torch.device("meta"):
        image = FSQImageTokenizer(runs.image_tokenizer.model)
        size = 38 + (runs.generator.text_ids or text_ids) + image.codebook_size
        generator = Generator(GeneratorConfig(vocabulary_size=size, **asdict(runs.generator.model)))
    assert (image.codebook_size, runs.generator.text_ids or text_ids) == (codes, text_ids)
    assert generator.parameter_count == by_hand(size, runs.generator.model)
    assert generator.parameter_count / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_preset_is_tested() -> None:
    marks = test_every_preset_builds_at_its_size.pytestmark  # type: ignore[attr-defined]
    assert [row[0] for row in marks[0].args[1]] == list(PRESETS.names())


@pytest.mark.parametrize("name", PRESETS.names())
def test_every_encoder_builds_and_every_run_is_kept(name: str) -> None:
    runs = preset(name)
    words = TextTokenizer.train(["a fox"], 256)._tokenizer
    with torch.device("meta"):
        encoder = new_encoder(words, runs.encoder)
    assert encoder.dimension == runs.encoder.dimension
    for run in (runs.image_tokenizer, runs.encoder, runs.generator):
        assert from_dict(type(run), to_dict(run)) == run


@pytest.mark.parametrize("name", [name for name in PRESETS.names() if name.startswith("paper")])
def test_the_papers_pictures_optimiser_and_objective(name: str) -> None:
    runs = preset(name)
    assert (runs.image_tokenizer.model.image_size_px, runs.image_tokenizer.model.patch_px) == (256, 8)  # 1,024 codes
    assert runs.generator.model.context_tokens == 4096
    assert runs.generator.model.heads * runs.generator.model.head_dim == runs.generator.model.width
    rates = runs.generator.optimiser
    assert (rates.lr, rates.betas, rates.warmup_steps, rates.decay, rates.clip_norm, rates.muon_lr) == (
        (1e-4, (0.9, 0.98), 1500, "linear", 1.0, 0.0)
    )
    run = runs.generator
    assert (run.alpha, run.retrieved_shares, run.rename_share) == (0.1, (1 / 3, 1 / 3, 1 / 3), 0.0)
    assert run.masking.whole_text_share == run.masking.region_share == 0
    assert runs == replace(runs, generator=replace(preset("paper-125m").generator, model=runs.generator.model))


def test_the_vanilla_preset_differs_from_the_other_only_in_that_it_retrieves_nothing() -> None:
    usual = preset("scenes")
    assert preset("scenes-vanilla") == Runs(
        usual.image_tokenizer, usual.encoder, replace(usual.generator, retrieved_shares=(1.0,))
    )


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'scene'; did you mean 'scenes'"):
        preset("scene")


THEIRS = """
from dataclasses import replace

from racm3.presets import scenes


def small():
    usual = scenes()
    return replace(usual, generator=replace(usual.generator, tokens_per_step=512))
"""


def test_a_preset_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_presets.py").write_text(THEIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert preset("their_presets:small").generator == replace(preset("scenes").generator, tokens_per_step=512)
    assert cli.main(["train", "plan", "--preset", "their_presets:small"]) == 0
    with pytest.raises(ConfigError, match="preset 'their_presets:large' cannot be imported"):
        preset("their_presets:large")
