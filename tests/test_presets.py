"""Presets: every one builds, and a misspelt one names the nearest."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from racm3.errors import ConfigError
from racm3.generator.model import Generator, GeneratorConfig
from racm3.presets import PRESETS, preset
from racm3.training.generator import GeneratorRun


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in PRESETS.items() for name in names])
def test_every_preset_is_a_run_of_its_kind(kind: type, name: str) -> None:
    assert isinstance(preset(kind, name), kind)


def test_the_vanilla_preset_differs_from_the_other_only_in_that_it_retrieves_nothing() -> None:
    with_retrieval, vanilla = asdict(preset(GeneratorRun, "scenes")), asdict(preset(GeneratorRun, "scenes-vanilla"))
    assert {key for key in vanilla if vanilla[key] != with_retrieval[key]} == {"retrieved_shares"}
    assert vanilla["retrieved_shares"] == (1.0,)


def test_the_generator_has_the_size_that_its_preset_says() -> None:
    """3.7 million, counted by hand."""
    shape = preset(GeneratorRun, "scenes").model
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(vocabulary_size=38 + 1024 + 4375, **asdict(shape)))
    attention, mlp, norms = 4 * 192 * 192, 3 * 192 * 512, 2 * 192 + 2 * 48
    assert generator.parameter_count == 5437 * 192 + 6 * (attention + mlp + norms) + 192 == 3_701_184


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'scene'; did you mean 'scenes'"):
        preset(GeneratorRun, "scene")
