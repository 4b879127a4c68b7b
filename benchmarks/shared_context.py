"""Sixteen samples of one prompt with two retrieved documents, against sixteen separate prompts of the same lengths.

The engine reads the prompt of the samples once, and keeps it once. Memory is all that a run takes beyond the weights:
each side runs in a process of its own, which reports by how much its resident memory grew at the peak (Linux only).
Answers are compared first: the samples, each run alone, are the same.

Ends with one JSON line: time and memory of the samples / of the separate prompts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from racm3.generator.constraints import ImageSpan
from racm3.generator.engine import Engine, SequenceRequest
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.sampling import Sampling
from racm3.tokens.vocabulary import Vocabulary

V = Vocabulary(text_size=4_000, image_size=1_000)


def make_engine(args: argparse.Namespace) -> Engine:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    heads = args.width // 64
    context = args.prompt_tokens + args.new_tokens
    config = GeneratorConfig(V.size, args.width, args.layers, heads, heads, 64, args.width * 8 // 3, context)
    return Engine(Generator(config).eval(), V)


def requests(args: argparse.Namespace, separate: bool) -> list[SequenceRequest]:
    """Samples of one prompt, or as many prompts."""
    span = ImageSpan(V, args.new_tokens)
    prompts = np.random.default_rng(0).integers(V.text_start, V.size, (args.samples, args.prompt_tokens)).tolist()
    return [SequenceRequest(prompts[i if separate else 0], span, Sampling(), seed=i) for i in range(args.samples)]


def peak_bytes(args: argparse.Namespace, separate: bool) -> int:
    """Growth of this process's peak memory while it runs the requests."""
    engine = make_engine(args)
    engine.run(
        requests(argparse.Namespace(**{**vars(args), "prompt_tokens": 8, "new_tokens": 2}), False)[:2]
    )  # lays out
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory_bytes("VmRSS")
    engine.run(requests(args, separate))
    return memory_bytes("VmHWM") - before


def memory_bytes(field: str) -> int:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=600, help="two documents of 256 codes, and captions")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    engine = make_engine(args)
    samples, separate = requests(args, False), requests(args, True)
    together = engine.run(samples)
    equal = [one.tokens for one in together] == [engine.run([request])[0].tokens for request in samples]
    engine.run(separate[:1])
    times: dict[str, list[float]] = {"samples": [], "separate": []}
    for _ in range(args.rounds):
        for name, work in (("samples", samples), ("separate", separate)):
            started = time.perf_counter()
            engine.run(work)
            times[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(values) for name, values in times.items()}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = [pool.apply(peak_bytes, (args, separate)) for separate in (False, True)]
    print(f"{args.samples} samples of one prompt: {middle['samples']:.2f} s, {memory[0] / 1e6:.0f} MB")
    print(f"{args.samples} separate prompts: {middle['separate']:.2f} s, {memory[1] / 1e6:.0f} MB")
    result = {
        "time_ratio": round(middle["samples"] / middle["separate"], 3),
        "memory_ratio": round(memory[0] / memory[1], 3),
        "equal": equal,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
