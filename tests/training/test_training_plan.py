from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from racm3.errors import ConfigError
from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.presets import preset
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.generator_recipe import GeneratorRun, PackedBatch, ShapeConfig, packed_loss
from racm3.training.optimiser import OptimiserConfig, build_optimisers
from racm3.training.training_plan import Assumptions, check, lines, plan, step_memory

SHAPE = ShapeConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=48, context_tokens=64)
RUN = GeneratorRun(model=SHAPE, optimiser=OptimiserConfig(muon_lr=1e-3))
CONFIG = GeneratorConfig(vocabulary_size=500, **asdict(SHAPE))
TOKENS = 256


def step(generator: Generator) -> None:
    """A step as in training: four sequences laid end to end."""
    ids = np.random.default_rng(0).integers(500, size=TOKENS + 1)
    ones = np.ones(TOKENS, np.float32)
    batch = PackedBatch(ids[:-1], ids[1:], ones, ones > 0, np.arange(0, TOKENS + 1, 64), np.arange(4), TOKENS)
    packed_loss(generator, batch, Vocabulary(400, 62), RUN.z_loss)[0].backward()


def test_flops_are_those_that_torch_counts() -> None:
    """Torch counts the whole square of attention, of which we count the causal half."""
    generator = Generator(CONFIG)
    ids = torch.randint(500, (4, 64))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        weighted_cross_entropy(generator(ids), generator, ids, torch.ones(4, 64)).total.backward()
    assert generator.flops_per_token(2 * 64) * TOKENS == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_what_is_allocated(dtype: str) -> None:
    generator = Generator(CONFIG)
    optimisers = build_optimisers(generator.named_parameters(), RUN.optimiser)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        step(generator)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
    with profile(profile_memory=True) as profiled, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        step(generator)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    states = [value for optimiser in optimisers for state in optimiser.state.values() for value in state.values()]
    standing = sum(t.nbytes for t in (*generator.parameters(), *states) if t.numel() > 1)
    run = replace(RUN, loop=replace(RUN.loop, dtype=dtype))  # type: ignore[arg-type]
    planned = step_memory(CONFIG, run, TOKENS)
    assert planned.weights + planned.optimiser == standing
    assert planned.total == pytest.approx(standing + peak, rel=0.1)


def test_more_gpus_share_what_can_be_shared() -> None:
    two, eight = (step_memory(CONFIG, RUN, TOKENS, gpus) for gpus in (2, 8))
    assert (two.weights, two.gradients, two.optimiser) == tuple(
        4 * share for share in (eight.weights, eight.gradients, eight.optimiser)
    )
    assert (two.activations, two.working, two.gathered) == (eight.activations, eight.working, eight.gathered)
    assert two.weights == 4 * Generator(CONFIG).parameter_count // 2
    averaged = step_memory(CONFIG, replace(RUN, loop=replace(RUN.loop, ema=0.999)), TOKENS, 2)
    assert averaged.optimiser == two.optimiser + two.weights


def test_recomputing_layers_keeps_their_inputs() -> None:
    usual, recomputed = (step_memory(CONFIG, RUN, TOKENS, 2, recompute=flag) for flag in (False, True))
    a_layer = (usual.activations - recomputed.activations) / 2 + TOKENS * 32 * 2
    deeper = step_memory(replace(CONFIG, layers=5), RUN, TOKENS, 2)
    assert deeper.activations - usual.activations == pytest.approx(2 * a_layer)


def test_a_plan_is_arithmetic_on_what_it_assumes() -> None:
    runs = preset("scenes")
    runs = replace(runs, generator=replace(runs.generator, query_dropout=0.2))
    assumed = Assumptions(tokens=1e9, caption_tokens=10, epochs=2, pair_kb=5, gpu_tflops=1, mfu=0.5, gpu_hour_price=3)
    made = plan(runs, assumed)
    document = 4 + 10 + 64  # <doc> <text> ... <image> ... </doc>
    assert made.documents == pytest.approx(1e9 / (2 * document) / 2)
    assert made.raw_bytes == pytest.approx(made.documents * 5000)
    assert made.token_cache_bytes == pytest.approx(made.documents * (2 * document + 8))
    assert made.vector_bytes == pytest.approx(made.documents * 5 * 128 * 4)
    assert made.neighbour_bytes == pytest.approx(made.documents * 4 * 2 * 4)
    undropped = plan(replace(runs, generator=replace(runs.generator, query_dropout=0)), assumed)
    assert undropped.vector_bytes == pytest.approx(made.vector_bytes * 3 / 5)  # a draw of both queries, and the whole
    assert undropped.neighbour_bytes == pytest.approx(made.neighbour_bytes / 2)
    seen = round(document * (1 + 4 + 9) / 6)  # of 6 tokens 1 is in a sequence of one document, 2 of two, 3 of three
    assert made.flops_per_token == 6 * (3_701_184 - 192 * 13 - 6 * 96) + 6 * 6 * 192 * seen
    assert made.flops == 1e9 * made.flops_per_token
    assert made.hours == pytest.approx(made.flops / 0.5e12 / 3600)
    assert made.cost == pytest.approx(3 * made.hours)
    assert plan(runs, replace(assumed, tokens=0)).tokens == runs.generator.loop.steps * 3840


def test_every_assumption_is_printed() -> None:
    text = "\n".join(lines(plan(preset("scenes"), Assumptions(tokens=12345))))
    for name in asdict(Assumptions()):
        assert f"\n  {name} " in text
    assert "  tokens              12345" in text


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 4.5 GB of each GPU, but it has 2; it would fit with more --gpus, or"):
        check(plan(preset("scenes"), Assumptions(gpu_memory_gb=2)))
    with pytest.raises(ConfigError, match="in 100 parts are 38 for each, less than one sequence"):
        plan(preset("scenes"), Assumptions(gpus=100))
    with pytest.raises(ConfigError, match="639 tokens, but the context holds 512"):
        plan(preset("scenes"), Assumptions(caption_tokens=145))
    for wrong in ({"gpus": 0}, {"mfu": 1.5}, {"tokens": -1.0}):
        with pytest.raises(ConfigError):
            Assumptions(**wrong)  # type: ignore[arg-type]
