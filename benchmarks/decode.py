"""Decoding: racm3's engine against transformers' ``generate`` on the exported checkpoint, with its fastest cache.

The work is a picture behind a prompt with two retrieved documents, greedy: both sides may write image codes only (the
engine by its constraint, transformers by a logits processor that hides the rest). Same process, threads, float32
weights, prompts and number of new tokens; the tokens are compared before the clock starts, and the two take turns.
Reading the prompt is timed by asking for a single token; decoding is the rest. The time to compile the engine's
step, once, and to lay out the weights of a model is printed apart. Models: the shipped one, and one of the paper's
125M shape with random weights. Then a row in which every id is allowed, and bfloat16 and int8 weights: their speed
against float32, and what they cost in accuracy on documents that the shipped model wrote itself.

Ends with one JSON line: decoding speed of racm3 / of transformers at batch 1 and 8, with guidance (the shipped model,
batch 1), and the share of the memory bandwidth (bytes of weights and cache that a step reads / measured bandwidth) at
125M, batch 1.
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
from transformers import LogitsProcessorList, Qwen3ForCausalLM

from racm3.generator.engine import Engine, SequenceRequest
from racm3.generator.kv_cache import token_bytes
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.model_runner import ModelRunner, Weights
from racm3.generator.native import compiled
from racm3.generator.sampling import Sampling
from racm3.model_folder import ModelFolder
from racm3.tokens.vocabulary import Vocabulary

GUIDANCE = 2.0


class Codes:
    """Image codes only, or with ``every`` any id, ``count`` times."""

    def __init__(self, vocabulary: Vocabulary, count: int, every: bool = False) -> None:
        self.max_steps = self.left = count
        self.ids = np.ones(vocabulary.size, dtype=bool)
        self.ids[: 0 if every else vocabulary.image_start] = False

    @property
    def done(self) -> bool:
        return self.left == 0

    def allowed(self) -> np.ndarray:
        return self.ids

    def push(self, id: int) -> bool:
        self.left -= 1
        return True


@dataclass(frozen=True)
class Work:
    """What both sides do: prompts (B, T), those of the guidance streams or None, and which ids may come."""

    ids: torch.Tensor
    other: torch.Tensor | None
    every: bool

    @classmethod
    def random(cls, vocabulary: Vocabulary, batch: int, tokens: int, guided: bool = False, every: bool = False) -> Work:
        rng = np.random.default_rng(batch)
        prompts = torch.from_numpy(rng.integers(vocabulary.text_start, vocabulary.size, (2, batch, tokens)))
        return cls(prompts[0], prompts[1] if guided else None, every)


@dataclass
class Sides:
    """One model, opened by both."""

    generator: Generator
    vocabulary: Vocabulary
    peer: Any

    def ours(self, engine: Engine, work: Work, new: int) -> list[tuple[int, ...]]:
        sampling = Sampling(temperature=0, guidance=1.0 if work.other is None else GUIDANCE)
        constraint = Codes(self.vocabulary, new, work.every)
        others = [None] * len(work.ids) if work.other is None else work.other.tolist()
        prompts = zip(work.ids.tolist(), others, strict=True)
        requests = [SequenceRequest(own, constraint, sampling, unconditional=other) for own, other in prompts]
        return [output.tokens for output in engine.run(requests)]

    @torch.inference_mode()
    def theirs(self, cache: str, work: Work, new: int) -> list[tuple[int, ...]]:
        def codes_only(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[:, : self.vocabulary.image_start] = -torch.inf
            return scores

        guided = {} if work.other is None else {"guidance_scale": GUIDANCE, "negative_prompt_ids": work.other}
        out = self.peer.generate(
            work.ids,
            attention_mask=torch.ones_like(work.ids),
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
            eos_token_id=None,
            pad_token_id=self.vocabulary.pad,
            cache_implementation=cache,
            logits_processor=LogitsProcessorList([] if work.every else [codes_only]),
            **guided,
        )
        return [tuple(row) for row in out[:, work.ids.shape[1] :].tolist()]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(sides: Sides, engine: Engine, work: Work, new: int, rounds: int) -> tuple[float, float]:
    """(ratio of decoding speeds, seconds of one of our steps); raises if the tokens differ."""
    batch = len(work.ids)
    name = f"batch {batch}{'' if work.other is None else ', guided'}{', every id' if work.every else ''}"
    caches = {}
    for cache in ("dynamic", "static"):
        sides.theirs(cache, work, 2)
        caches[cache] = min(seconds(lambda cache=cache: sides.theirs(cache, work, 8)) for _ in range(2))
    fastest = min(caches, key=caches.__getitem__)
    if sides.theirs(fastest, work, new) != sides.ours(engine, work, new):
        raise SystemExit(f"{name}: the tokens differ")
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "our prompt": [], "their prompt": []}
    for _ in range(rounds):
        times["our prompt"].append(seconds(lambda: sides.ours(engine, work, 1)))
        times["ours"].append(seconds(lambda: sides.ours(engine, work, new)))
        times["their prompt"].append(seconds(lambda: sides.theirs(fastest, work, 1)))
        times["theirs"].append(seconds(lambda: sides.theirs(fastest, work, new)))
    middle = {side: statistics.median(values) for side, values in times.items()}
    ours = (middle["ours"] - middle["our prompt"]) / (new - 1)
    theirs = (middle["theirs"] - middle["their prompt"]) / (new - 1)
    print(
        f"  {name:18}: {batch / ours:7.1f} tokens/s, {1e3 * ours:6.2f} ms a step; transformers, {fastest} cache: "
        f"{batch / theirs:7.1f}; decoding {theirs / ours:.2f} x, prompt "
        f"{middle['their prompt'] / middle['our prompt']:.2f} x",
        flush=True,
    )
    return theirs / ours, ours


def bandwidth() -> float:
    """Bytes a second at which this process reads memory: the sum of 1 GB, best of several."""
    block = torch.ones(2**28)
    return block.numel() * 4 / min(seconds(block.sum) for _ in range(7))


def bytes_a_step(sides: Sides, tokens: int) -> int:
    """Read from memory for one code of one picture: all matrices, of the output projection its codes, and the cache."""
    c = sides.generator.config
    attention = c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    matrices = c.layers * c.width * (attention + 3 * c.mlp_width) + sides.vocabulary.image_size * c.width
    return 4 * matrices + tokens * token_bytes(c, torch.float32)


@torch.inference_mode()
def divergence(sides: Sides, weights: Weights, sequences: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(mean Kullback-Leibler divergence of the predictions from float32's, in nats; share of equal best tokens)."""
    runner = ModelRunner(sides.generator, sides.vocabulary.image_start, weights)
    divergences, agreed = [], []
    for ids in sequences:
        row = torch.tensor(ids)
        cache = runner.prompt_cache(len(ids))
        cache.pending = len(ids)
        ours = runner.logits(runner.forward(row, [cache]), ("text", "image")).log_softmax(-1)
        exact = sides.generator.logits(sides.generator(row[None]))[0].log_softmax(-1)
        divergences.append((exact.exp() * (exact - ours)).sum(-1))
        agreed.append(exact.argmax(-1) == ours.argmax(-1))
    return float(torch.cat(divergences).mean()), float(torch.cat(agreed).float().mean())


def shipped() -> Sides:
    folder = ModelFolder.open("scenes")
    peer = Qwen3ForCausalLM.from_pretrained(folder.generator_path, dtype=torch.float32).eval()
    return Sides(folder.generator(), folder.markup.vocabulary, peer)


def m125() -> Sides:
    vocabulary = Vocabulary(text_size=42_000, image_size=8_192)  # 8,192: the paper's codebook
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(vocabulary.size, 768, 12, 12, 12, 64, 2048, context_tokens=4096)).eval()
    with tempfile.TemporaryDirectory() as folder:
        generator.save_pretrained(Path(folder))
        peer = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Sides(generator, vocabulary, peer)


def faster(sides: Sides, exact: Engine, small: Engine, work: Work, new: int) -> float:
    """How many times as fast the second engine decodes."""
    times: dict[Engine, list[float]] = {exact: [], small: []}
    for _ in range(3):
        for engine, own in times.items():
            prompt = seconds(lambda engine=engine: sides.ours(engine, work, 1))
            own.append(seconds(lambda engine=engine: sides.ours(engine, work, new)) - prompt)
    return statistics.median(times[exact]) / statistics.median(times[small])


def measure(name: str, sides: Sides, prompt: int, new: int, rounds: int) -> dict[str, float]:
    """All rows of one model."""
    result: dict[str, float] = {}
    vocabulary = sides.vocabulary
    laid_out = seconds(lambda: ModelRunner(sides.generator, vocabulary.image_start))
    print(f"{name}: {sides.generator.parameter_count / 1e6:.1f}M parameters, weights laid out in {laid_out:.2f} s")
    engine = Engine(sides.generator, vocabulary)
    for batch, guided, every in ((1, False, False), (8, False, False), (1, True, False), (1, False, True)):
        key = f"{name}_b{batch}{'_guided' * guided}{'_every_id' * every}"
        ratio, step_s = compared(sides, engine, Work.random(vocabulary, batch, prompt, guided, every), new, rounds)
        result[key] = round(ratio, 2)
        if key == "m125_b1":
            read, limit = bytes_a_step(sides, prompt + new // 2), bandwidth()
            result["bandwidth_share"] = round(read / limit / step_s, 2)
            print(f"    {read / 1e6:.0f} MB a step; memory gives {limit / 1e9:.1f} GB/s")
    for weights in ("bfloat16", "int8"):
        small = Engine(sides.generator, vocabulary, weights=weights)
        for batch in (1, 8):
            speed = faster(sides, engine, small, Work.random(vocabulary, batch, prompt), new)
            result[f"{name}_{weights}_b{batch}"] = round(speed, 2)
            print(f"  {weights} weights, batch {batch}: {speed:.2f} x the speed of float32", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=170)
    parser.add_argument("--new-tokens", type=int, default=64, help="a picture of the built-in world")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compile_s = seconds(lambda: compiled(4))
    print("no C compiler: steps are in operators" if compiled(4) is None else f"step compiled in {compile_s:.1f} s")
    sides = shipped()
    result = {"compile_s": round(compile_s, 1)}
    result |= measure("shipped", sides, args.prompt_tokens, args.new_tokens, args.rounds)
    writer = SequenceRequest([sides.vocabulary.doc], Codes(sides.vocabulary, 120, every=True))
    written = Engine(sides.generator, sides.vocabulary).run([replace(writer, seed=seed) for seed in range(16)])
    for weights in ("bfloat16", "int8"):
        ids = [(sides.vocabulary.doc, *output.tokens) for output in written]
        nats, agreed = divergence(sides, weights, ids)
        result[f"{weights}_divergence_nats"] = round(nats, 5)
        print(f"  {weights} weights: divergence {nats:.5f} nats a token, the same best token {agreed:.1%}")
    # Steps of the large model are long: fewer of them are known as well.
    result |= measure("m125", m125(), args.prompt_tokens, max(2, args.new_tokens // 2), min(args.rounds, 3))
    result["guided"] = result["shipped_b1_guided"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
