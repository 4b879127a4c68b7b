"""Decoding: racm3's engine against transformers' ``generate`` on the exported checkpoint, with its fastest cache.

Same process, threads, float32 weights, prompts and number of new tokens, every id allowed; the tokens are compared
before the clock starts, and the two sides take turns. Reading the prompt is timed by asking for a single token, decoding
is the rest. The engine compiles nothing; the time it takes to lay out its weights is printed. Models: the shipped one,
and one of the paper's 125M shape with random weights. Then bfloat16 and int8 weights: their speed against float32, and
what they cost in accuracy on texts and pictures that the shipped model wrote itself.

Ends with one JSON line: decoding speed of racm3 / of transformers at batch 1 and 8, with guidance (shipped, batch 1), and
the share of the memory bandwidth (weights and cache read a step / measured bandwidth) at 125M, batch 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from racm3.generator.cache import Passage, token_bytes
from racm3.generator.decoding import Sampling
from racm3.generator.engine import Engine, Job
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.reader import Reader, Weights
from racm3.pipeline import SCENES
from racm3.tokens.vocabulary import Vocabulary

GUIDANCE = 2.0


class Anything:
    """A constraint that allows every id, ``count`` times: what transformers does."""

    def __init__(self, vocabulary_size: int, count: int) -> None:
        self.max_steps = self.left = count
        self.all = np.ones(vocabulary_size, dtype=bool)

    @property
    def done(self) -> bool:
        return self.left == 0

    def allowed(self) -> np.ndarray:
        return self.all

    def push(self, id: int) -> bool:
        self.left -= 1
        return True


@dataclass
class Sides:
    """One model, opened by both."""

    generator: Generator
    vocabulary: Vocabulary
    peer: Any

    def ours(self, engine: Engine, ids: torch.Tensor, other: torch.Tensor | None, new: int) -> list[tuple[int, ...]]:
        sampling = Sampling(temperature=0, guidance=1.0 if other is None else GUIDANCE)
        constraint = Anything(self.vocabulary.size, new)
        unconditional = [None] * len(ids) if other is None else other.tolist()
        jobs = [
            Job(own, constraint, sampling, unconditional=un)
            for own, un in zip(ids.tolist(), unconditional, strict=True)
        ]
        return [completion.tokens for completion in engine.run(jobs)]

    @torch.inference_mode()
    def theirs(self, cache: str, ids: torch.Tensor, other: torch.Tensor | None, new: int) -> list[tuple[int, ...]]:
        guided = {} if other is None else {"guidance_scale": GUIDANCE, "negative_prompt_ids": other}
        out = self.peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
            eos_token_id=None,
            pad_token_id=self.vocabulary.pad,
            cache_implementation=cache,
            **guided,
        )
        return [tuple(row) for row in out[:, ids.shape[1] :].tolist()]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(sides: Sides, engine: Engine, batch: int, guided: bool, args: argparse.Namespace) -> tuple[float, float]:
    """(ratio of decoding speeds, seconds of one of our steps); raises if the tokens differ."""
    rng = np.random.default_rng(batch)
    prompts = rng.integers(sides.vocabulary.text_start, sides.vocabulary.size, (2, batch, args.prompt_tokens))
    ids = torch.from_numpy(prompts[0])
    other = torch.from_numpy(prompts[1]) if guided else None
    new = args.new_tokens
    answer = sides.ours(engine, ids, other, new)
    caches = {}
    for cache in ("dynamic", "static"):
        caches[cache] = seconds(lambda cache=cache: sides.theirs(cache, ids, other, 2))
        caches[cache] = seconds(lambda cache=cache: sides.theirs(cache, ids, other, 8))
    fastest = min(caches, key=caches.__getitem__)
    if sides.theirs(fastest, ids, other, new) != answer:
        raise SystemExit(f"batch {batch}, guided {guided}: the tokens differ")
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "our prompt": [], "their prompt": []}
    for _ in range(args.rounds):
        times["our prompt"].append(seconds(lambda: sides.ours(engine, ids, other, 1)))
        times["ours"].append(seconds(lambda: sides.ours(engine, ids, other, new)))
        times["their prompt"].append(seconds(lambda: sides.theirs(fastest, ids, other, 1)))
        times["theirs"].append(seconds(lambda: sides.theirs(fastest, ids, other, new)))
    middle = {name: statistics.median(values) for name, values in times.items()}
    ours = (middle["ours"] - middle["our prompt"]) / (new - 1)
    theirs = (middle["theirs"] - middle["their prompt"]) / (new - 1)
    print(
        f"  batch {batch}{' guided' if guided else '       '}: {batch / ours:7.1f} tokens/s, {1e3 * ours:.2f} ms a step; "
        f"transformers ({fastest} cache) {batch / theirs:7.1f}; decoding {theirs / ours:.2f} x, "
        f"prompt {middle['their prompt'] / middle['our prompt']:.2f} x",
        flush=True,
    )
    return theirs / ours, ours


def bandwidth() -> float:
    """Bytes a second at which this process reads memory: the sum of 1 GB, best of several."""
    block = torch.ones(2**28)
    return block.numel() * 4 / min(seconds(block.sum) for _ in range(7))


def bytes_a_step(config: GeneratorConfig, tokens: int) -> int:
    """Read from memory for one token of one row: all matrices but the embedding table, and the cache."""
    attention = config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    matrices = config.layers * config.width * (attention + 3 * config.mlp_width)
    return 4 * (matrices + config.vocabulary_size * config.width) + tokens * token_bytes(config, torch.float32)


@torch.inference_mode()
def divergence(sides: Sides, weights: Weights, sequences: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(mean Kullback-Leibler divergence of the predictions from float32's, in nats; share of equal best tokens)."""
    reader = Reader(sides.generator, sides.vocabulary.image_start, weights)
    divergences, agreed = [], []
    for ids in sequences:
        row = torch.tensor(ids)
        passage = Passage(reader.config, len(ids), reader.cache_dtype, reader.device)
        passage.pending = len(ids)
        ours = reader.logits(reader.read(row, [passage]), True, True).log_softmax(-1)
        exact = sides.generator.logits(sides.generator(row[None]))[0].log_softmax(-1)
        divergences.append((exact.exp() * (exact - ours)).sum(-1))
        agreed.append(exact.argmax(-1) == ours.argmax(-1))
    return float(torch.cat(divergences).mean()), float(torch.cat(agreed).float().mean())


def shipped() -> Sides:
    folder = SCENES / "generator"
    facts = json.loads((folder / "racm3.json").read_text(encoding="utf-8"))
    peer = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Sides(Generator.from_pretrained(folder).eval(), Vocabulary(facts["text_size"], facts["image_size"]), peer)


def m125() -> Sides:
    vocabulary = Vocabulary(text_size=42_000, image_size=8_192)  # 8,192: the paper's codebook
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(vocabulary.size, 768, 12, 12, 12, 64, 2048, context_tokens=4096)).eval()
    with tempfile.TemporaryDirectory() as folder:
        generator.save_pretrained(Path(folder))
        peer = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Sides(generator, vocabulary, peer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=170, help="two retrieved documents and a caption")
    parser.add_argument("--new-tokens", type=int, default=64, help="a picture of the built-in world")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, float] = {}
    for name, make in (("shipped", shipped), ("m125", m125)):
        sides = make()
        engine = Engine(sides.generator, sides.vocabulary)
        laid_out = seconds(lambda: Reader(sides.generator, sides.vocabulary.image_start))
        print(f"{name}: {sides.generator.parameter_count / 1e6:.1f}M parameters, weights laid out in {laid_out:.2f} s")
        for batch, guided in ((1, False), (8, False), (1, True), (8, True)):
            own = replace_rounds(args, name)
            ratio, step_s = compared(sides, engine, batch, guided, own)
            result[f"{name}_b{batch}{'_guided' if guided else ''}"] = round(ratio, 2)
            if name == "m125" and batch == 1 and not guided:
                read = bytes_a_step(sides.generator.config, args.prompt_tokens + args.new_tokens // 2)
                limit = bandwidth()
                result["bandwidth_share"] = round(read / limit / step_s, 2)
                print(f"  {read / 1e6:.0f} MB a step, memory gives {limit / 1e9:.1f} GB/s")
        if name == "shipped":
            writer = Job([sides.vocabulary.doc], Anything(sides.vocabulary.size, 120))
            written = engine.run([replace(writer, seed=seed) for seed in range(16)])
            sequences = [(sides.vocabulary.doc, *completion.tokens) for completion in written]
            for weights in ("bfloat16", "int8"):
                nats, agreed = divergence(sides, weights, sequences)
                result[f"{weights}_divergence_nats"] = round(nats, 5)
                print(f"  {weights} weights: divergence {nats:.5f} nats a token, the same best token {agreed:.1%}")
            continue
        for weights in ("bfloat16", "int8"):
            small = Engine(sides.generator, sides.vocabulary, weights=weights)
            for batch in (1, 8):
                ids = torch.from_numpy(np.random.default_rng(batch).integers(38, 1000, (batch, args.prompt_tokens)))
                speed = alternated(sides, engine, small, ids, args.new_tokens)
                result[f"{weights}_b{batch}"] = round(speed, 2)
                print(f"  {weights} weights, batch {batch}: {speed:.2f} x the speed of float32")
    result["guided"] = result["shipped_b1_guided"]
    print(json.dumps(result))


def replace_rounds(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """Fewer rounds and tokens for the large model: its steps are long, so their time is known better."""
    if name == "shipped":
        return args
    return argparse.Namespace(**{**vars(args), "rounds": min(args.rounds, 3), "new_tokens": min(args.new_tokens, 32)})


def alternated(sides: Sides, exact: Engine, small: Engine, ids: torch.Tensor, new: int) -> float:
    """How much faster the second engine decodes."""
    new = min(new, 32)
    times: dict[Engine, list[float]] = {exact: [], small: []}
    for engine in (exact, small):
        sides.ours(engine, ids, None, 2)
    for _ in range(3):
        for engine, own in times.items():
            prompt = seconds(lambda engine=engine: sides.ours(engine, ids, None, 1))
            own.append(seconds(lambda engine=engine: sides.ours(engine, ids, None, new)) - prompt)
    return statistics.median(times[exact]) / statistics.median(times[small])


if __name__ == "__main__":
    main()
