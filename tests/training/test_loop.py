from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from racm3.errors import CheckpointError, ConfigError, RACM3Error
from racm3.training.generator_recipe import GeneratorRun
from racm3.training.loop import AHEAD, MAY_CHANGE, Batch, LoopConfig, Metrics, ahead
from racm3.util.config import dotted, to_dict
from tests.training.toy import LOOP, Toy, ToyRun, batch, curve, loss_of, rows, train

STOP_AT = 5


def calling(at: int, what: Callable[[], Any], model: nn.Module) -> Callable[[Batch, float], tuple[Tensor, Metrics]]:
    """The loss, which does ``what`` at a step."""

    def loss(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        if given.documents[0].startswith(f"row {at}."):
            what()
        return loss_of(model, given, normaliser)

    return loss


def break_off() -> None:
    raise KeyboardInterrupt


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_and_resumed_equals_an_unbroken_one(tmp_path: Path, number: signal.Signals) -> None:
    whole = train(tmp_path / "whole")
    handler, model = signal.getsignal(number), Toy()
    stopping = calling(STOP_AT, lambda: signal.raise_signal(number), model)
    with pytest.raises(KeyboardInterrupt, match=f"stopped and saved at step {STOP_AT + 1}; the same command resumes"):
        train(tmp_path / "broken", model=model, loss=stopping)
    assert signal.getsignal(number) is handler
    assert len(rows(tmp_path / "broken")) == STOP_AT + 1
    resumed = train(tmp_path / "broken")
    assert equal(whole, resumed)
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


@pytest.mark.parametrize("often_s", [0, 1000])
def test_a_run_that_was_broken_off_goes_on_from_its_last_checkpoint(tmp_path: Path, often_s: float) -> None:
    whole = train(tmp_path / "whole")
    run, model = ToyRun(replace(LOOP, checkpoint_every_s=often_s)), Toy()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", run, model, loss=calling(STOP_AT, break_off, model))
    with open(tmp_path / "broken" / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 6, "lo')  # torn, as by a kill in the middle of a line
    resumed = train(tmp_path / "broken", run)
    assert equal(whole, resumed)
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


def test_kills_at_random_moments_leave_no_trace() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "resume.py"
    command = [sys.executable, str(benchmark), "--kills", "2", "--steps", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["kills"], result["bit_equal"]) == (2, True)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    whole, model = train(tmp_path), Toy()
    again = train(tmp_path, model=model, loss=calling(0, break_off, model))
    assert equal(whole, again)
    assert not again.training
    longer = train(tmp_path, ToyRun(replace(LOOP, steps=14)))
    assert not equal(whole, longer)
    assert len(rows(tmp_path)) == 14
    with pytest.raises(ConfigError, match=r"loop.steps=12, but .* is further; give at least 14"):
        train(tmp_path)


def test_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, made_of={"data": "one"})
    harmless = ToyRun(replace(LOOP, threads=1, accumulate=2, log_every_s=1, checkpoint_every_s=1))
    train(tmp_path, harmless, made_of={"data": "one"})
    with pytest.raises(CheckpointError, match=r"belongs to another run: optimiser.lr was 0.01 and is 0.02. Give what"):
        train(tmp_path, ToyRun(optimiser=replace(ToyRun().optimiser, lr=0.02)), made_of={"data": "one"})
    with pytest.raises(CheckpointError, match="made_of.data was 'one' and is 'two'"):
        train(tmp_path, made_of={"data": "two"})


def test_what_may_change_are_settings() -> None:
    assert dotted(to_dict(GeneratorRun())).keys() >= MAY_CHANGE


def test_rows(tmp_path: Path) -> None:
    train(tmp_path, flops_per_token=100.0)
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == list(range(1, LOOP.steps + 1))
    always = {"step", "loss", "mse", "grad_norm", "lr", "tokens_per_s", "mfu", "data_wait_share", "elapsed_s"}
    assert all(row.keys() - {"rare"} == always for row in logged)
    with_rare = [row["step"] for row in logged if "rare" in row]  # a mean over nothing is no number
    assert with_rare == [
        step + 1 for step in range(LOOP.steps) if (batch(step, 0, 1).content["x"][:, 0] > 3).any().item()
    ]
    assert [row["lr"] for row in logged][:4] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01])
    assert all(0 < row["mfu"] < 1 and 0 <= row["data_wait_share"] <= 1 for row in logged)


def test_accumulation_is_one_big_batch(tmp_path: Path) -> None:
    def double(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        x, weights = given.content["x"].double(), given.content["weights"].double()
        error = (model(x) - x[:, :4]).square().mean(dim=1)
        return (weights * error).sum() / normaliser, {"mse": (error.detach().sum(), len(error))}

    results = []
    for accumulate in (1, 3):  # 16 rows in parts of 6, 5 and 5
        model = Toy().double()
        run = ToyRun(replace(LOOP, accumulate=accumulate), replace(ToyRun().optimiser, muon_lr=0.0))
        train(tmp_path / str(accumulate), run, model, loss=double)
        results.append((curve(tmp_path / str(accumulate)), model.state_dict()))
    (whole, weights), (parts, same) = results
    for one, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(one, rel=1e-6)  # weights of a part are summed in float32
    for name, value in weights.items():
        assert torch.allclose(value, same[name], rtol=1e-6), name


def test_the_average(tmp_path: Path) -> None:
    run, model, passed = ToyRun(replace(LOOP, ema=0.8)), Toy(), []

    def recording(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        passed.append({name: value.clone() for name, value in model.state_dict().items()})
        return loss_of(model, given, normaliser)

    averaged = train(tmp_path / "averaged", run, model, loss=recording).state_dict()
    first, *after = *passed, train(tmp_path / "plain").state_dict()
    for name, value in first.items():
        expected = value
        for weights in after:
            expected = 0.8 * expected + 0.2 * weights[name]
        assert torch.allclose(averaged[name], expected, atol=1e-6), name
    stopping = calling(STOP_AT, lambda: signal.raise_signal(signal.SIGINT), broken := Toy())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", run, broken, loss=stopping)
    assert equal(model, train(tmp_path / "broken", run))


def test_a_look(tmp_path: Path) -> None:
    model, seen = Toy(), []

    def look(step: int) -> dict[str, float]:
        assert not model.training
        seen.append(model.table.weight.detach().clone())
        assert model(torch.ones(8)).grad_fn is None
        return {"seen": step}

    run = ToyRun(replace(LOOP, look_every=5, log_every_s=1000, ema=0.5))
    train(tmp_path, run, model, look=look)
    assert [(row["step"], row.get("seen")) for row in rows(tmp_path)] == [(1, None), (5, 5), (10, 10), (12, None)]
    blind = train(tmp_path / "blind", replace(run, loop=replace(run.loop, look_every=0)), look=look)
    assert equal(model, blind)
    assert not torch.equal(seen[1], seen[0])
    with pytest.raises(ConfigError, match="loop.look_every=5, but the toy has nothing to show; give 0"):
        train(tmp_path, run)


def test_a_loss_that_does_not_split(tmp_path: Path) -> None:
    train(tmp_path, splits=False)
    with pytest.raises(ConfigError, match=r"does not split: train it in one process with loop.accumulate=1; 1 and 2"):
        train(tmp_path, ToyRun(replace(LOOP, accumulate=2)), splits=False)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_numbers_that_are_not_finite_end_the_run_before_they_reach_the_weights(tmp_path: Path, factor: float) -> None:
    model, before = Toy(), {}

    def explode(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        loss, metrics = loss_of(model, given, normaliser)
        if f"row {STOP_AT}.1" in given.documents:  # the second of two parts
            before.update({name: value.clone() for name, value in model.state_dict().items()})
            loss = loss * factor
        return loss, metrics

    run = ToyRun(replace(LOOP, accumulate=2, checkpoint_every_s=0))
    with pytest.raises(RACM3Error, match=f"at step {STOP_AT}, before they reached the weights") as raised:
        train(tmp_path, run, model, loss=explode)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    message = str(raised.value)
    assert "row 5.1, row 5.3, row 5.5" in message
    assert "row 5.0" not in message
    assert f"Last good checkpoint: {tmp_path / 'checkpoints' / 'step-000000005'}." in message


def test_what_is_drawn_at_random_in_a_step_is_the_steps_own(tmp_path: Path) -> None:
    drawn: list[float] = []

    def loss(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        drawn.append(torch.rand(()).item())
        return loss_of(model, given, normaliser)

    for folder in ("one", "other"):
        model = Toy()
        torch.manual_seed(len(drawn))
        train(tmp_path / folder, model=model, loss=loss)
    assert drawn[: LOOP.steps] == drawn[LOOP.steps :]
    assert len(set(drawn)) == LOOP.steps


# Batches ahead of time


def test_batches_come_in_order_and_are_made_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        return step**2

    coming = ahead(make, range(3, 9))
    step, value, waited_s = next(coming)
    assert (step, value) == (3, 9)
    assert waited_s >= 0
    deadline = time.monotonic() + 10
    while len(made) < 1 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [3, 4, 5]  # and no more before the next is asked for
    assert [(step, value) for step, value, _ in coming] == [(step, step**2) for step in range(4, 9)]
    assert list(ahead(make, range(0))) == []


def test_an_error_in_a_batch_is_raised_where_it_is_asked_for() -> None:
    coming = ahead(lambda step: 1 // (2 - step), range(9))
    assert [next(coming)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(coming)


@pytest.mark.parametrize("fields", [{"steps": 0}, {"threads": -1}, {"dtype": "float16"}])
def test_loop_settings_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="steps >= 1"):
        LoopConfig(**fields)


@pytest.mark.parametrize("fields", [{"accumulate": 0}, {"ema": 1}, {"ema": -0.1}, {"look_every": -1}])
def test_more_loop_settings_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="accumulate >= 1"):
        LoopConfig(**fields)
