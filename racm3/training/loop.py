"""The training loop that all recipes share.

A recipe gives ``loss_of(step)``: the loss of that step's batch and some numbers to show. Its batch must depend on the
step alone (seed your generator with it), so a resumed run continues exactly where the broken one stood.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from racm3.errors import ConfigError, RACM3Error
from racm3.training.checkpoint import load_state, save_state
from racm3.training.optimiser import OptimiserConfig, build_optimisers, lr_factor

Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class LoopConfig:
    """``dtype`` auto: bfloat16 where the processor multiplies it natively, else float32."""

    steps: int = 1000
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0
    log_every_s: float = 10.0
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.threads < 0 or self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"steps >= 1, threads >= 0, dtype auto, float32 or bfloat16; given {self}")


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware."""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_units())


def _has_bf16_units() -> bool:
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def fit(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, Metrics]],
    optimiser_config: OptimiserConfig,
    config: LoopConfig,
    folder: Path,
    name: str,
) -> None:
    """Train ``model`` in place for ``config.steps`` steps; resume from ``folder`` if it holds a state.

    Writes ``metrics.jsonl`` and, every ``checkpoint_every_s``, on Ctrl-C and on SIGTERM, the training state.
    Raises RACM3Error if the loss or its gradient is not finite, CheckpointError if the state is not this model's.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    optimisers = build_optimisers(model.named_parameters(), optimiser_config)
    first = load_state(folder, model, optimisers)
    if first:
        print(f"{name}: resumed at step {first} of {config.steps}", file=sys.stderr)
    device_type = next(model.parameters()).device.type
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and native_bfloat16())
    model.train()
    started = logged = saved = time.monotonic()
    with stop_requests() as stop, open(folder / "metrics.jsonl", "a", encoding="utf-8") as log:
        for step in range(first, config.steps):
            factor = lr_factor(step, config.steps, optimiser_config)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak_lr"] * factor
            with torch.autocast(device_type, torch.bfloat16, enabled=half):
                loss, metrics = loss_of(step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), optimiser_config.clip_norm)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise RACM3Error(f"{name}: loss {loss} and gradient {norm} at step {step}; lower the learning rate")
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            now = time.monotonic()
            last = step + 1 == config.steps or stop.requested
            if now - logged > config.log_every_s or last or step == first:
                logged = now
                row = {"step": step + 1, "loss": loss.item(), "grad_norm": float(norm), "lr": factor}
                row |= {key: float(value) for key, value in metrics.items()} | {"elapsed_s": now - started}
                log.write(json.dumps(row) + "\n")
                log.flush()
                left = (now - started) / (step + 1 - first) * (config.steps - step - 1)
                shown = "  ".join(f"{key} {float(value):.4f}" for key, value in metrics.items())
                print(
                    f"{name}: step {step + 1}/{config.steps}  loss {loss:.4f}  {shown}  {left / 60:.1f} min left",
                    file=sys.stderr,
                )
            if now - saved > config.checkpoint_every_s or last:
                saved = now
                save_state(folder, step + 1, model, optimisers)
            if stop.requested:
                raise KeyboardInterrupt(f"{name}: stopped and saved at step {step + 1}; the same command resumes")
    model.eval()


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
