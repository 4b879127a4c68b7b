"""A small model and its recipe, for the tests of the loop; and processes to train it in."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig

LOOP = LoopConfig(steps=12, dtype="float32", log_every_s=0)
ROWS = 16  # documents of a step


@dataclass(frozen=True)
class ToyRun:
    loop: LoopConfig = LOOP
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-2, muon_lr=1e-2, warmup_steps=3)
    width: int = 8


class Toy(nn.Module):
    """Two matrices for Muon (their names have ``.layers.``), biases and a tied output for AdamW."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.table = nn.Linear(width, 4, bias=False)
        self.tied = nn.Linear(width, 4, bias=False)
        self.tied.weight = self.table.weight
        self.register_buffer("unsaved", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body.layers:  # type: ignore[union-attr]
            x = torch.tanh(layer(x))
        return self.tied(x)


def batch(step: int, part: int, parts: int) -> Batch:
    """Rows ``part``, ``part + parts``, ... of the step, each with a weight of its own."""
    generator = torch.Generator().manual_seed(step)
    x, weights = torch.randn(ROWS, 8, generator=generator), torch.rand(ROWS, generator=generator)
    rows = range(part, ROWS, parts)
    content = {"x": x[part::parts], "weights": weights[part::parts]}
    return Batch(content, [f"row {step}.{row}" for row in rows], weights[part::parts].sum().item(), tokens=len(rows))


def loss_of(model: nn.Module, given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
    x, weights = given.content["x"], given.content["weights"]
    error = (model(x) - x[:, :4]).square().mean(dim=1)
    positive = x[:, 0] > 3  # none in most parts
    metrics: Metrics = {"mse": (error.detach().sum(), len(error)), "rare": (positive.sum(), positive.sum())}
    return (weights * error).sum() / normaliser, metrics


def train(folder: Path, run: ToyRun = ToyRun(), model: nn.Module | None = None, **recipe: Any) -> nn.Module:
    model = model or Toy(run.width)
    given = {"batch": batch, "loss": lambda part, normaliser: loss_of(model, part, normaliser)} | recipe
    fit(model, Recipe("toy", **given), run, folder)
    return model


def rows(folder: Path) -> list[dict[str, float]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def curve(folder: Path) -> list[tuple[float, ...]]:
    """What of the rows does not depend on the time."""
    return [tuple(row[key] for key in ("step", "loss", "mse", "grad_norm", "lr")) for row in rows(folder)]


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(*arguments)`` in ``count`` connected processes, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [
        context.Process(target=_placed, args=(rank, count, port, work, arguments), daemon=True) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count


def _placed(rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    work(*arguments)
