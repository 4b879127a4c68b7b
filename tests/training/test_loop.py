from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from racm3.errors import CheckpointError, ConfigError, RACM3Error
from racm3.training.checkpoint import load_state, save_state
from racm3.training.loop import LoopConfig, Metrics, fit
from racm3.training.optimiser import OptimiserConfig, build_optimisers, lr_factor

OPTIMISER = OptimiserConfig(lr=1e-2, muon_lr=1e-2, warmup_steps=3)
LOOP = LoopConfig(steps=12, dtype="float32", log_every_s=0)
STOP_AT = 5


class Model(nn.Module):
    """A matrix for Muon (its name has ``.layers.``), a bias and a tied output for AdamW."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Linear(width, width)])
        self.table = nn.Linear(width, 4, bias=False)
        self.tied = nn.Linear(width, 4, bias=False)
        self.tied.weight = self.table.weight

    def loss_of(self, step: int) -> tuple[Tensor, Metrics]:
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        y = self.tied(torch.tanh(self.body.layers[0](x)))  # type: ignore[index, operator]
        loss = (y - x[:, :4]).square().mean()
        return loss, {"mse": loss.detach()}


def train(
    folder: Path, loss_of: Callable[[Model, int], tuple[Tensor, Metrics]] = Model.loss_of, loop: LoopConfig = LOOP
) -> Model:
    model = Model()
    fit(model, lambda step: loss_of(model, step), OPTIMISER, loop, folder, "test")
    return model


def rows(folder: Path) -> list[dict[str, float]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def interrupted(at: int, how: Callable[[], None]) -> Callable[[Model, int], tuple[Tensor, Metrics]]:
    def loss_of(model: Model, step: int) -> tuple[Tensor, Metrics]:
        if step == at:
            how()
        return model.loss_of(step)

    return loss_of


def ctrl_c_in_the_middle() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_and_resumed_equals_an_unbroken_one(tmp_path: Path, number: signal.Signals) -> None:
    whole = train(tmp_path / "whole")
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=f"stopped and saved at step {STOP_AT + 1}; the same command resumes"):
        train(tmp_path / "broken", interrupted(STOP_AT, lambda: signal.raise_signal(number)))
    assert signal.getsignal(number) is handler
    steps: list[int] = []
    resumed = train(tmp_path / "broken", lambda model, step: steps.append(step) or model.loss_of(step))  # type: ignore[func-returns-value]
    assert steps == list(range(STOP_AT + 1, LOOP.steps))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    logged = [(row["step"], row["loss"]) for row in rows(tmp_path / "broken")]
    assert logged == [(row["step"], row["loss"]) for row in rows(tmp_path / "whole")]


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    often = replace(LOOP, checkpoint_every_s=0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", interrupted(STOP_AT, ctrl_c_in_the_middle), often)
    resumed = train(tmp_path / "broken", loop=often)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    whole = train(tmp_path)
    again = train(tmp_path, interrupted(0, ctrl_c_in_the_middle))
    assert torch.equal(whole.table.weight, again.table.weight)
    assert not again.training


def test_metrics_are_json(tmp_path: Path) -> None:
    train(tmp_path)
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == list(range(1, LOOP.steps + 1))
    assert all(row.keys() == {"step", "loss", "mse", "grad_norm", "lr", "elapsed_s"} for row in logged)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(tmp_path: Path, factor: float) -> None:
    seen: list[Model] = []

    def explode(model: Model, step: int) -> tuple[Tensor, Metrics]:
        seen.append(model)
        loss, metrics = model.loss_of(step)
        return loss * (factor if step == STOP_AT else 1), metrics

    with pytest.raises(RACM3Error, match=f"at step {STOP_AT}; lower the learning rate"):
        train(tmp_path, explode)
    assert all(torch.isfinite(value).all() for value in seen[-1].parameters())


# State on disk


def state(folder: Path) -> Path:
    model = Model()
    save_state(folder, 7, model, build_optimisers(model.named_parameters(), OPTIMISER))
    return folder / "state"


def load(folder: Path, model: nn.Module | None = None, config: OptimiserConfig = OPTIMISER) -> int:
    model = model or Model()
    return load_state(folder, model, build_optimisers(model.named_parameters(), config))


def test_a_state_is_read_back(tmp_path: Path) -> None:
    assert load(tmp_path) == 0
    state(tmp_path)
    model = Model()
    with torch.no_grad():
        model.table.weight.zero_()
    assert load(tmp_path, model) == 7
    assert torch.equal(model.tied.weight, Model().tied.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_kill_between_the_renames_leaves_the_last_state(tmp_path: Path) -> None:
    state(tmp_path).rename(tmp_path / "state.old")
    assert load(tmp_path) == 7
    state(tmp_path)
    assert load(tmp_path) == 7


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.pt", "step.json"])
@pytest.mark.parametrize("how", ["half of it", "empty", "noise", "missing"])
def test_a_damaged_state_is_named(tmp_path: Path, name: str, how: str) -> None:
    file = state(tmp_path) / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes({"half of it": content[: len(content) // 2], "empty": b"", "noise": b"\x93" * 100}[how])
    if (name, how) == ("step.json", "missing"):  # written last: without it there is no state
        assert load(tmp_path) == 0
        return
    with pytest.raises(CheckpointError, match="written by another model or is damaged; choose another --out"):
        load(tmp_path)


class Smaller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(8, 4, bias=False)


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    state(tmp_path)
    for model, config in (
        (Model(width=9), OPTIMISER),
        (Smaller(), OPTIMISER),
        (Model(), replace(OPTIMISER, muon_lr=0)),
    ):
        with pytest.raises(CheckpointError, match="written by another model or is damaged"):
            load(tmp_path, model, config)


# Optimisers


def test_every_parameter_has_one_optimiser() -> None:
    model = Model()
    muon, adamw = build_optimisers(model.named_parameters(), OPTIMISER)
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(8, 8)]
    matrices, vectors = adamw.param_groups
    assert ([p is model.table.weight for p in matrices["params"]], matrices["weight_decay"]) == ([True], 0.01)
    assert ([p.ndim for p in vectors["params"]], vectors["weight_decay"]) == ([1], 0.0)
    (alone,) = build_optimisers(model.named_parameters(), replace(OPTIMISER, muon_lr=0))
    assert sum(len(group["params"]) for group in alone.param_groups) == 3


def test_the_schedule() -> None:
    config = OptimiserConfig(warmup_steps=10)
    assert [lr_factor(step, 110, config) for step in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1, 1, 0.5, 0])
    cosine = replace(config, decay="cosine")
    assert [lr_factor(step, 110, cosine) for step in (9, 10, 60, 110)] == pytest.approx([1, 1, 0.5, 0])
    assert [lr_factor(step, 110, replace(config, decay="none")) for step in (9, 10, 60, 110)] == [1, 1, 1, 1]


@pytest.mark.parametrize("fields", [{"lr": 0}, {"muon_lr": -1}, {"clip_norm": 0}, {"decay": "sine"}])
def test_optimiser_settings_out_of_range(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="lr > 0"):
        OptimiserConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"steps": 0}, {"threads": -1}, {"dtype": "float16"}])
def test_loop_settings_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="steps >= 1"):
        LoopConfig(**fields)  # type: ignore[arg-type]
