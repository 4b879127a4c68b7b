from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from racm3.errors import ConfigError
from racm3.training.optimiser import Muon, OptimiserConfig, build_optimisers, lr_factor, orthogonal, set_learning_rates
from tests.training.toy import Toy

CONFIG = OptimiserConfig(lr=1e-2, muon_lr=2e-2)


def test_every_parameter_has_one_optimiser() -> None:
    model = Toy()
    muon, adamw = build_optimisers(model.named_parameters(), CONFIG)
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(8, 8), (8, 8)]
    matrices, vectors = adamw.param_groups
    assert ([p is model.table.weight for p in matrices["params"]], matrices["weight_decay"]) == ([True], 0.01)
    assert ([p.ndim for p in vectors["params"]], vectors["weight_decay"]) == ([1, 1], 0.0)
    (alone,) = build_optimisers(model.named_parameters(), replace(CONFIG, muon_lr=0))
    assert sum(len(group["params"]) for group in alone.param_groups) == 5


def test_the_learning_rates_are_those_of_the_settings() -> None:
    optimisers = build_optimisers(Toy().named_parameters(), CONFIG)
    set_learning_rates(optimisers, CONFIG, 0.5)
    assert [group["lr"] for optimiser in optimisers for group in optimiser.param_groups] == [0.01, 0.005, 0.005]


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon([ours], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        other.step()
    assert torch.equal(ours, theirs)


def test_the_singular_values_of_an_orthogonal_matrix() -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(20, 12, generator=torch.Generator().manual_seed(0))).float())
    assert values.shape == (12,)
    assert ((0.6 < values) & (values < 1.3)).all()


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.1, 1, 1, 0.5, 0.25, 0]),
        ("cosine", [0.1, 1, 1, 0.5, 0.1464, 0]),
        ("wsd", [0.1, 1, 1, 1, 0.5, 0]),
        ("none", [0.1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_schedule(decay: Any, expected: list[float]) -> None:
    config = OptimiserConfig(warmup_steps=10, decay=decay, decay_share=50 / 110)
    assert [lr_factor(step, 110, config) for step in (0, 9, 10, 60, 85, 110)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("fields", [{"lr": 0}, {"muon_lr": -1}, {"clip_norm": 0}, {"decay": "sine"}])
def test_settings_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="lr > 0"):
        OptimiserConfig(**fields)


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_decay_share_out_of_range(share: float) -> None:
    with pytest.raises(ConfigError, match="decay_share is above 0 and at most 1"):
        OptimiserConfig(decay_share=share)
