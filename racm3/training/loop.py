"""The training loop that all recipes share, in one process or many.

A recipe says what a step's batch is and what its loss; the loop does the rest: it makes batches ahead of time, splits a
step over processes and accumulation, keeps the weights' average, stops for signals and for numbers that are not finite,
and resumes a broken run exactly where it stood. That a batch depends on its step alone is what makes this possible.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from racm3.errors import ConfigError, RACM3Error, values
from racm3.training.average import Average
from racm3.training.checkpoint import Checkpoints
from racm3.training.distributed import Processes, connect, scalar, shard
from racm3.training.journal import Journal, write_run
from racm3.training.optimiser import OptimiserConfig, build_optimisers, lr_factor, set_learning_rates
from racm3.util.config import dotted, to_dict

T = TypeVar("T")
Metrics = dict[str, tuple[Tensor | float, Tensor | float]]
"""(sum, weight) each, so that the mean over the parts of a step is right; weight 0 where a part has none of it."""

AHEAD = 2
"""Batches that are made before they are asked for: one would do if all took as long, two outlast a slow one."""

DOCUMENTS_NAMED = 20
"""Documents that an error names; the step says the others, for a batch is a function of it."""

MAY_CHANGE = {
    "compile",
    "recompute_layers",
    "loop.steps",
    "loop.accumulate",
    "loop.threads",
    "loop.log_every_s",
    "loop.checkpoint_every_s",
    "loop.look_every",
    "loop.tensorboard",
}
"""Settings that may differ when a run goes on: they say how, not what, is computed; and a run may be made longer."""


@dataclass(frozen=True)
class LoopConfig:
    """``dtype`` auto: bfloat16 where the processor multiplies it natively, else float32.

    ``accumulate``: parts that a step is computed in, one after the other, in each process. ``ema``: decay of the
    average weights that the run ends with, 0 for none. ``look_every``: steps between two looks at what the model can
    do, sample pictures or what else the recipe has to show, 0 for none.
    """

    steps: int = 1000
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0
    accumulate: int = 1
    ema: float = 0.0
    log_every_s: float = 10.0
    checkpoint_every_s: float = 120.0
    look_every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.threads < 0 or self.dtype not in ("auto", "float32", "bfloat16"):
            given = values(self, "steps", "threads", "dtype")
            raise ConfigError(f"steps >= 1, threads >= 0, dtype auto, float32 or bfloat16; given {given}")
        if self.accumulate < 1 or not 0 <= self.ema < 1 or self.look_every < 0:
            given = values(self, "accumulate", "ema", "look_every")
            raise ConfigError(f"accumulate >= 1, ema from 0 to below 1, look_every >= 0; given {given}")


class Run(Protocol):
    """The settings of a training run: a dataclass with at least these two."""

    @property
    def loop(self) -> LoopConfig: ...
    @property
    def optimiser(self) -> OptimiserConfig: ...


@dataclass(frozen=True)
class Batch:
    """One part of a step's data.

    ``content`` is what the recipe's loss reads, on the CPU: the loss brings it to the model's device. ``documents``
    name what is in it; its loss is divided by ``weight`` if it is the whole step; ``tokens`` counts what the model
    reads, padding left out, and is 0 where it does not read tokens.
    """

    content: Any
    documents: Sequence[str]
    weight: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a kind of model adds to the loop.

    ``batch(step, part, parts)`` is a function of these three alone; the parts of a step together are its batch.
    ``loss(batch, normaliser)`` is a sum over the part divided by the normaliser, the weight of the whole step, and its
    metrics have the same names for every part. With ``splits=False`` the loss compares the members of a batch: a step
    then has one part. ``made_of`` are hashes of data and models that went in. ``look(step)`` draws or measures
    something without a gradient, in every process alike; its numbers go into the row.
    """

    name: str
    batch: Callable[[int, int, int], Batch]
    loss: Callable[[Batch, float], tuple[Tensor, Metrics]]
    splits: bool = True
    made_of: Mapping[str, str] = field(default_factory=dict)
    flops_per_token: float = 0.0
    look: Callable[[int], Mapping[str, float]] | None = None


def fit(model: nn.Module, recipe: Recipe, run: Run, folder: Path) -> None:
    """Train ``model`` in place for ``run.loop.steps`` steps; resume from ``folder`` if it holds a checkpoint.

    Writes ``run.json``, ``metrics.jsonl`` and, every ``checkpoint_every_s``, on Ctrl-C and on SIGTERM, a checkpoint.
    Under torchrun the model is sharded and stays so; ``distributed.whole`` gathers it.
    Raises RACM3Error if the loss or its gradient is not finite, ConfigError for settings that the recipe has no use
    for, CheckpointError if the checkpoint is another run's, or another process is at work in the folder.
    """
    config, processes = run.loop, connect()
    _check(recipe, config, processes)
    if config.threads:
        torch.set_num_threads(config.threads)
    bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and native_bfloat16())
    home = next(model.parameters()).device
    shard(model, processes, bfloat16)
    optimisers = build_optimisers(model.named_parameters(), run.optimiser)
    average = Average(model, config.ema) if config.ema else None
    settings = to_dict(run)  # type: ignore[arg-type]
    identity = _identity(settings, recipe.made_of)
    with Checkpoints(folder / "checkpoints", processes, identity) as checkpoints:
        first = checkpoints.restore(model, optimisers, average)
        if first > config.steps:
            raise ConfigError(f"loop.steps={config.steps}, but {checkpoints.newest} is further; give at least {first}")
        model.train()
        parts = config.accumulate * processes.size
        mine = range(processes.rank * config.accumulate, (processes.rank + 1) * config.accumulate)

        def batch_of(step: int) -> list[Batch]:
            return [recipe.batch(step, part, parts) for part in mine]

        with (
            stop_requests() as stop,
            Journal(folder, recipe.name, first, config.steps, config.tensorboard, processes.main) as journal,
            closing(ahead(batch_of, range(first, config.steps))) as steps,
        ):
            if processes.main:
                write_run(folder, settings, recipe.made_of, processes.size)
            clock = _Clock(recipe, processes, bfloat16)
            for step, batch, waited_s in steps:
                torch.manual_seed(int(np.random.SeedSequence((config.seed, step, processes.rank)).generate_state(1)[0]))
                factor = lr_factor(step, config.steps, run.optimiser)
                set_learning_rates(optimisers, run.optimiser, factor)
                numbers, losses = _gradient(recipe, batch, processes, bfloat16)
                norm = scalar(nn.utils.clip_grad_norm_(model.parameters(), run.optimiser.clip_norm))
                if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
                    checkpoints.wait()
                    raise RACM3Error(
                        f"{recipe.name}: loss {numbers['loss']} and gradient {norm} at step {step}, before they "
                        f"reached the weights. Documents: {_named(batch, losses, processes)}. Last good checkpoint: "
                        f"{checkpoints.newest or 'none'}. Look at these documents, or lower the learning rate"
                    )
                for optimiser in optimisers:
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                if average:
                    average.update()

                clock.count(numbers.pop("tokens"), waited_s)
                log = clock.since_row_s > config.log_every_s
                save = clock.since_save_s > config.checkpoint_every_s and not checkpoints.busy
                # A signal counts whoever got it, but only the first process's clock.
                flags = processes.total([stop.requested, log and processes.main, save and processes.main])
                stopped, log, save = (bool(flag) for flag in flags)
                last = stopped or step + 1 == config.steps
                if recipe.look and config.look_every and (step + 1) % config.look_every == 0:
                    numbers |= _look(recipe.look, step + 1, model, average)
                    log = True
                if log or last or step == first:
                    left_s = clock.elapsed_s / (step + 1 - first) * (config.steps - step - 1)
                    row = numbers | {"grad_norm": norm, "lr": run.optimiser.lr * factor} | clock.row()
                    journal.write(step + 1, row, numbers, left_s)
                if save or last:
                    journal.sync()
                    checkpoints.save(step + 1, model, optimisers, average)
                    clock.saved()
                if stopped:
                    checkpoints.wait()
                    message = f"{recipe.name}: stopped and saved at step {step + 1}; the same command resumes"
                    raise KeyboardInterrupt(message)
            checkpoints.wait()
    if average:
        average.swap()
    model.eval()
    if processes.size == 1:
        model.to(home)


def _gradient(
    recipe: Recipe, batch: Sequence[Batch], processes: Processes, bfloat16: bool
) -> tuple[dict[str, float], list[float]]:
    """Add up the gradient of a step's parts; returns the step's numbers, and the loss of each part of this process."""
    (normaliser,) = processes.total([sum(part.weight for part in batch)])
    losses: list[Tensor] = []
    sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}
    for part in batch:
        # Among several processes FSDP casts the weights instead.
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bfloat16 and processes.size == 1):
            loss, metrics = recipe.loss(part, normaliser or 1.0)
        (loss * processes.size).backward()  # FSDP takes the mean over processes where the sum is wanted
        losses.append(loss.detach())
        for name, (total, weight) in metrics.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + total, before[1] + weight
    here = [float(loss) for loss in losses]
    pairs = [float(value) for pair in sums.values() for value in pair]
    loss_sum, tokens, *pairs = processes.total([sum(here), sum(part.tokens for part in batch), *pairs])
    means = {name: total / weight for name, total, weight in zip(sums, pairs[::2], pairs[1::2], strict=True) if weight}
    return {"loss": loss_sum} | means | {"tokens": tokens}, here


def _named(batch: Sequence[Batch], losses: Sequence[float], processes: Processes) -> str:
    """The documents of those parts of a step whose loss is not finite; if it is the gradient alone, all of them."""
    wrong = [part for part, loss in zip(batch, losses, strict=True) if not math.isfinite(loss)]
    names = processes.gathered([name for part in wrong for name in part.documents])
    names = names or processes.gathered([name for part in batch for name in part.documents])
    more = f" and {len(names) - DOCUMENTS_NAMED} more" if len(names) > DOCUMENTS_NAMED else ""
    return ", ".join(names[:DOCUMENTS_NAMED]) + more


@torch.no_grad()
def _look(
    look: Callable[[int], Mapping[str, float]], step: int, model: nn.Module, average: Average | None
) -> Mapping[str, float]:
    """What the recipe sees in the weights that the run would end with now."""
    model.eval()
    if average:
        average.swap()
    seen = look(step)
    if average:
        average.swap()
    model.train()
    return seen


def _check(recipe: Recipe, config: LoopConfig, processes: Processes) -> None:
    """Raises ConfigError for settings that the recipe has no use for."""
    if not recipe.splits and (processes.size > 1 or config.accumulate > 1):
        raise ConfigError(
            f"the loss of the {recipe.name} compares the members of a batch with each other and does not split: train "
            f"it in one process with loop.accumulate=1; {processes.size} and {config.accumulate} were given"
        )
    if config.look_every and recipe.look is None:
        raise ConfigError(f"loop.look_every={config.look_every}, but the {recipe.name} has nothing to show; give 0")


def _identity(settings: Mapping[str, Any], made_of: Mapping[str, str]) -> dict[str, Any]:
    """What must be the same for a run to go on, by dotted name."""
    named = dotted(settings) | dotted({"made_of": made_of})
    return {name: value for name, value in named.items() if name not in MAY_CHANGE}


class _Clock:
    """Time and tokens since the last row, the last checkpoint and the start."""

    def __init__(self, recipe: Recipe, processes: Processes, bfloat16: bool) -> None:
        self.flops_per_token, self.peak_flops = recipe.flops_per_token, math.inf
        if recipe.flops_per_token:
            self.peak_flops = processes.size * matmul_flops(processes.device, bfloat16)
        self.started = self.row_at = self.saved_at = time.monotonic()
        self.tokens = self.waited_s = 0.0

    def count(self, tokens: float, waited_s: float) -> None:
        self.tokens += tokens
        self.waited_s += waited_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def since_row_s(self) -> float:
        return time.monotonic() - self.row_at

    @property
    def since_save_s(self) -> float:
        return time.monotonic() - self.saved_at

    def saved(self) -> None:
        self.saved_at = time.monotonic()

    def row(self) -> dict[str, float]:
        """Speeds since the last row. ``mfu``: share of the rate at which this machine multiplies large matrices."""
        tokens_per_s = self.tokens / self.since_row_s
        speeds = {"tokens_per_s": tokens_per_s} if tokens_per_s else {}
        if self.flops_per_token:
            speeds["mfu"] = self.flops_per_token * tokens_per_s / self.peak_flops
        speeds |= {"data_wait_share": self.waited_s / self.since_row_s, "elapsed_s": self.elapsed_s}
        self.row_at, self.tokens, self.waited_s = time.monotonic(), 0.0, 0.0
        return speeds


def ahead(make: Callable[[int], T], steps: range) -> Generator[tuple[int, T, float]]:
    """``(step, make(step), seconds waited for it)`` in order, each made in a background thread some steps early."""
    upcoming = iter(steps)
    with ThreadPoolExecutor(1) as pool:
        made = deque((step, pool.submit(make, step)) for step in islice(upcoming, AHEAD))
        try:
            while made:
                step, future = made.popleft()
                made.extend((following, pool.submit(make, following)) for following in islice(upcoming, 1))
                asked = time.monotonic()
                value = future.result()
                yield step, value, time.monotonic() - asked
        finally:
            for _, future in made:
                future.cancel()


def matmul_flops(device: torch.device, bfloat16: bool) -> float:
    """Floating point operations a second of a large square matrix product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=torch.bfloat16 if bfloat16 else torch.float32, device=device)
    best_s = math.inf
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # the number is waited for
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * size**3 / best_s


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware."""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_units())


def _has_bf16_units() -> bool:
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class _Stop:
    requested = False


@contextmanager
def stop_requests() -> Iterator[_Stop]:
    """Within the block Ctrl-C and SIGTERM set ``requested`` instead of breaking off in the middle of a step."""
    stop = _Stop()

    def request(*_: object) -> None:
        stop.requested = True

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: no signals there
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
