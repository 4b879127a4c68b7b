"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from racm3.errors import ConfigError, values

MOMENTUM = 0.95
"""Muon's, as its author has it."""

Decay = Literal["linear", "cosine", "wsd", "none"]


@dataclass(frozen=True)
class OptimiserConfig:
    """``muon_lr`` > 0 gives the matrices inside the blocks to Muon; everything else goes to AdamW.

    ``decay``: linear or cosine to 0 right after the warm-up; wsd (warm-up, stable, decay) keeps the peak until the last
    ``decay_share`` of the steps and then falls linearly, so that a run can be made longer; none keeps it to the end.
    The paper's run is AdamW alone: 0.9 / 0.98, peak 1e-4, 1500 warm-up steps, linear decay, clip 1.0 (second-hand).
    """

    lr: float = 1e-3
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay: Decay = "linear"
    decay_share: float = 0.2
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        decays = ("linear", "cosine", "wsd", "none")
        if self.lr <= 0 or self.muon_lr < 0 or self.clip_norm <= 0 or self.decay not in decays:
            given = values(self, "lr", "muon_lr", "clip_norm", "decay")
            raise ConfigError(f"lr > 0, muon_lr >= 0, clip_norm > 0 and decay {', '.join(decays)}; given {given}")
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"decay_share is above 0 and at most 1, but {self.decay_share} was given")


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
        optimisers.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimisers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True))
    return optimisers


def set_learning_rates(optimisers: Iterable[torch.optim.Optimizer], config: OptimiserConfig, factor: float) -> None:
    """Give each optimiser ``factor`` times its peak, which the settings say and no checkpoint."""
    for optimiser in optimisers:
        peak = config.muon_lr if isinstance(optimiser, Muon) else config.lr
        for group in optimiser.param_groups:
            group["lr"] = peak * factor


def lr_factor(step: int, steps: int, config: OptimiserConfig) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear warm-up, then the chosen decay to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.decay == "linear":
        return left
    if config.decay == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * left)
    if config.decay == "wsd":
        return min(1.0, (steps - step) / max(1.0, config.decay_share * steps))
    return 1.0


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised, matrix by matrix (Jordan et al. 2024), sized like AdamW's steps.

    The mathematics is ``torch.optim.Muon``'s with ``adjust_lr_fn="match_rms_adamw"``. That one, given matrices sharded
    by FSDP, communicates in each of its 15 products; here every process orthogonalises its share of the matrices. All
    of them are 170 TFLOP in the paper's 2.7B, about what a step of 2 M tokens is for each of 256 devices.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            for matrix, direction in zip(matrices, orthogonals(map(self._ahead, matrices)), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def _ahead(self, matrix: Tensor) -> Tensor:
        """The mean gradient and the last one: Nesterov's look ahead."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(mean, MOMENTUM)


def orthogonals(matrices: Iterable[Tensor]) -> Iterator[Tensor]:
    """``orthogonal`` of each, sharded as it was given. To be called on all processes that hold a share.

    Sharded matrices are taken as many at a time as there are processes. Each keeps one of those that are gathered, all
    work at the same time, and each hands its own to the others.
    """
    matrices = iter(matrices)
    for first in matrices:
        if not isinstance(first, DTensor):
            yield orthogonal(first)
            continue
        mesh, me = first.device_mesh, first.device_mesh.get_local_rank()
        some = cast("list[DTensor]", [first, *islice(matrices, mesh.size() - 1)])
        mine = torch.empty(0)
        for owner, matrix in enumerate(some):
            whole = cast(DTensor, matrix.bfloat16()).full_tensor()
            mine = whole if owner == me else mine
        if me < len(some):
            mine = orthogonal(mine).contiguous()
        for owner, matrix in enumerate(some):
            whole = mine if owner == me else torch.empty(matrix.shape, dtype=torch.bfloat16, device=mesh.device_type)
            dist.broadcast(whole, group=mesh.get_group(), group_src=owner)
            replicated = DTensor.from_local(whole, mesh, [Replicate()])
            yield replicated.redistribute(placements=matrix.placements)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the (M, N) matrix U S V^T: five quintic Newton-Schulz steps in bfloat16.

    Jordan's coefficients bring all singular values to between 0.7 and 1.2, in the fewest steps.
    """
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x
