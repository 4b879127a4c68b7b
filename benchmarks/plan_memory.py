"""`racm3 train plan` against reality, on two shapes: FLOPs and peak memory of a training step that is really made.

FLOPs: torch's own counter over a forward and backward pass. It counts the whole square of attention, the plan its
causal half, which is what has to be computed: so the plan is asked for twice the length. Memory: every allocation of
the second step (the first makes the optimiser's state) as torch's profiler reports it, above weights and that state.

    python benchmarks/plan.py
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.presets import preset
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.generator_recipe import GeneratorRun, PackedBatch, packed_loss
from racm3.training.optimiser import build_optimisers
from racm3.training.training_plan import step_memory


def rows_of(config: GeneratorConfig, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T + 1) and weights (B, T) of about ``tokens`` tokens, in rows of at most the context."""
    rows = -(-tokens // config.context_tokens)
    return torch.randint(config.vocabulary_size, (rows, tokens // rows + 1)), torch.ones(rows, tokens // rows)


def flops_error(config: GeneratorConfig, tokens: int) -> float:
    generator = Generator(config)
    ids, weights = rows_of(config, tokens)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights).total.backward()
    planned = generator.flops_per_token(2 * weights.shape[1]) * weights.numel()
    return planned / counter.get_total_flops() - 1


def memory_error(config: GeneratorConfig, run: GeneratorRun, tokens: int) -> float:
    generator = Generator(config)
    optimisers = build_optimisers(generator.named_parameters(), run.optimiser)
    ids, weights = (values.numpy() for values in rows_of(config, tokens))
    rows, length = weights.shape
    batch = PackedBatch(
        ids=ids[:, :-1].flatten(),
        targets=ids[:, 1:].flatten(),
        weights=weights.flatten(),
        main=np.ones(weights.size, bool),
        offsets=length * np.arange(rows + 1),
        rows=np.arange(rows),
        normaliser=weights.size,
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.loop.dtype != "float32"):
            loss, _ = packed_loss(generator, batch, Vocabulary(config.vocabulary_size - 138, 100), run.z_loss)
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), run.optimiser.clip_norm)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    step()
    with profile(profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    states = [value for optimiser in optimisers for state in optimiser.state.values() for value in state.values()]
    standing = sum(t.nbytes for t in (*generator.parameters(), *states) if isinstance(t, torch.Tensor))
    planned = step_memory(config, run, tokens)
    print(f"  planned {planned.total / 1e6:8.1f} MB   measured {(standing + peak) / 1e6:8.1f} MB")
    return planned.total / (standing + peak) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["scenes", "paper-125m"])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[5437, 16384])
    parser.add_argument("--tokens", type=int, nargs="+", default=[3840, 1024])
    given = parser.parse_args()
    flops, memory = [], []
    for name, vocabulary, tokens in zip(given.presets, given.vocabulary, given.tokens, strict=True):
        run = preset(name).generator
        config = GeneratorConfig(vocabulary_size=vocabulary, **asdict(run.model))
        print(f"{name}, {tokens} tokens, vocabulary {vocabulary}")
        flops.append(flops_error(config, tokens))
        memory += [
            memory_error(config, replace(run, loop=replace(run.loop, dtype=dtype)), tokens)
            for dtype in ("float32", "bfloat16")
        ]
        print(f"  FLOPs {flops[-1]:+.2%}   memory {memory[-2]:+.2%} in float32, {memory[-1]:+.2%} in bfloat16")
    print(json.dumps({"flops_error": max(map(abs, flops)), "memory_error": max(map(abs, memory))}))


if __name__ == "__main__":
    main()
