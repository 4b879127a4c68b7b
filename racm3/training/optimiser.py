"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from racm3.errors import ConfigError


@dataclass(frozen=True)
class OptimiserConfig:
    """``muon_lr`` > 0 gives the matrices inside the blocks to Muon; everything else goes to AdamW.

    The paper's run is AdamW alone: 0.9 / 0.98, peak 1e-4, 1500 warm-up steps, linear decay, clip 1.0 (second-hand).
    """

    lr: float = 1e-3
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay: Literal["linear", "cosine", "none"] = "linear"
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.lr <= 0 or self.muon_lr < 0 or self.clip_norm <= 0 or self.decay not in ("linear", "cosine", "none"):
            raise ConfigError(f"lr > 0, muon_lr >= 0, clip_norm > 0 and decay linear, cosine or none; given {self}")


def build_optimisers(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimiserConfig
) -> list[torch.optim.Optimizer]:
    """One or two optimisers that together hold every parameter exactly once."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        hidden_matrix = parameter.ndim == 2 and ".layers." in name
        (matrices if config.muon_lr and hidden_matrix else rest).append(parameter)
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        optimisers.append(
            torch.optim.Muon(
                matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimisers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers


def lr_factor(step: int, steps: int, config: OptimiserConfig) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear warm-up, then the chosen decay to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.decay == "linear":
        return left
    if config.decay == "cosine":
        return float(0.5 - 0.5 * torch.cos(torch.tensor(torch.pi * left)))
    return 1.0
