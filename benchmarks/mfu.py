"""Share of a card's matrix product rate that a training step reaches: the paper's 1.3B, 4,096 tokens, bf16.

The rate is that of a large dense bf16 product, measured on the same card first. The step is that of training: packed
rows, compiled layers, FlashAttention for sequences of unequal length, float32 weights under AdamW; layers are computed
again in the backward pass only if memory does not suffice otherwise. Its loss is compared with that of the plain model
before the clock starts. FLOPs are the model's (``Generator.flops_per_token``): what is computed again counts nothing.

    python benchmarks/mfu.py                        # on a CUDA machine
    python benchmarks/mfu.py --shape tiny           # anywhere: a dry run

Without a CUDA device it is the dry run. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import numpy as np
import torch

from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.presets import preset
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.generator_recipe import PackedBatch, ShapeConfig, can_compile, packed_loss
from racm3.training.loop import matmul_flops
from racm3.training.optimiser import build_optimisers

SHAPES = {
    "tiny": ShapeConfig(32, 2, 2, 2, 16, 64, context_tokens=128),
    "1.3b": preset("paper-1.3b").generator.model,
    "2.7b": preset("paper-2.7b").generator.model,
}
WARMUP_STEPS = 3


def full_batch(vocabulary: Vocabulary, sequences: int, tokens: int, seed: int) -> PackedBatch:
    """Sequences of random ids that fill the context."""
    ids = np.random.default_rng(seed).integers(1, vocabulary.size, (sequences, tokens + 1))
    count = sequences * tokens
    return PackedBatch(
        ids=ids[:, :-1].ravel(),
        targets=ids[:, 1:].ravel(),
        weights=np.ones(count, np.float32),
        main=np.ones(count, bool),
        offsets=np.arange(sequences + 1) * tokens,
        rows=np.arange(sequences),
        normaliser=float(count),
    )


@torch.no_grad()
def plain_loss(generator: Generator, batch: PackedBatch) -> float:
    """The loss without packing, compilation and 16 bits, one sequence after the other."""
    device = generator.lm_head.weight.device
    rows = (torch.from_numpy(values).to(device).view(len(batch.rows), 1, -1) for values in (batch.ids, batch.targets))
    losses = [
        weighted_cross_entropy(generator(ids), generator, targets, torch.ones_like(targets)).cross_entropy.item()
        for ids, targets in zip(*rows, strict=True)
    ]
    return sum(losses) / len(losses)


def measure(shape: str, device: torch.device, sequences: int, rounds: int, recompute: bool) -> dict[str, object]:
    """Raises torch.OutOfMemoryError if the step does not fit."""
    torch.manual_seed(0)
    run, vocabulary = preset("paper-1.3b").generator, Vocabulary(49_152, 8_000)
    with device:
        config = GeneratorConfig(vocabulary_size=vocabulary.size, **asdict(SHAPES[shape]))
        generator = Generator(config)
    compiled = can_compile(device)
    generator.train_fast(compile=compiled, recompute_layers=recompute)
    optimisers = build_optimisers(generator.named_parameters(), run.optimiser)

    def step(batch: PackedBatch) -> float:
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = packed_loss(generator, batch, vocabulary, z_loss=0.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), run.optimiser.clip_norm)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return loss.item()  # waits for the loss, and the next step for the rest

    batches = [full_batch(vocabulary, sequences, config.context_tokens, seed) for seed in range(WARMUP_STEPS + rounds)]
    expected = plain_loss(generator, batches[0])
    times = []
    for number, batch in enumerate(batches):
        started = time.perf_counter()
        loss = step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        if number == 0 and abs(loss - expected) > 1e-2 * expected:
            raise RuntimeError(f"the loss is {loss}, and {expected} in the plain model")
    elapsed, tokens = median(times[WARMUP_STEPS:]), len(batches[0].ids)
    return {
        "tokens_per_s": round(tokens / elapsed),
        "step_ms": round(elapsed * 1e3, 1),
        "flops_per_s": generator.flops_per_token(config.context_tokens) * tokens / elapsed,
        "tokens": tokens,
        "parameters": generator.parameter_count,
        "loss_equal": True,
        "compile": compiled,
        "recompute_layers": recompute,
    }


def main(given: Sequence[str] | None = None) -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.3b" if cuda else "tiny")
    parser.add_argument("--sequences", type=int, default=4, help="of 4,096 tokens, in a step")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(given)
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else "CPU"
    rate = matmul_flops(device, bfloat16=True)
    print(f"{name}: dense bf16 products at {rate / 1e12:.2f} TFLOP/s")
    for recompute in (False, True):
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            result = measure(options.shape, device, options.sequences, options.rounds, recompute)
            break
        except torch.OutOfMemoryError:
            if recompute:
                raise
            print("out of memory: layers are computed again in the backward pass")
    reached = result.pop("flops_per_s")
    assert isinstance(reached, float)
    print(f"{options.shape}: {result['step_ms']} ms a step, {reached / 1e12:.2f} TFLOP/s of the model")
    line = {"mfu": round(reached / rate, 3), "matmul_tflops": round(rate / 1e12, 2), "shape": options.shape} | result
    if cuda:
        line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    attention = "FlashAttention, sequences of unequal length" if cuda else "scaled dot product, sequence by sequence"
    print(json.dumps(line | {"device": name, "attention": attention, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
