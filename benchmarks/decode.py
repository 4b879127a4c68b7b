"""Decoding: racm3's engine against transformers' ``generate`` on the exported checkpoint, with its fastest cache.

The work is a picture behind a prompt with two retrieved documents, greedy: both sides may write image codes only (the
engine by its constraint, transformers by a logits processor that hides the rest). Same process, threads, float32
weights, prompts and number of new tokens; the tokens are compared before the clock starts, and the two take turns.
Reading the prompt is timed by asking for a single token; decoding is the rest. The time to compile the engine's
step, once, and to lay out the weights of a model is printed apart. Models: the shipped one, and one of the paper's
125M shape with random weights. Then a row in which every id is allowed, and bfloat16 and int8 weights: their speed
against float32, and what they cost in accuracy on documents that the shipped model wrote itself.

Drafts from the sources: pictures of 16 captions behind two documents of their entity, as the shipped model draws them
by default, with guidance, and plainly (no further stream), the engine with drafts against the same without; the outputs
are compared first. At 125M the weights are random and the acceptance is that of the shipped model: the same prompts,
and in the place of each code drawn the one that the shipped model drew. ``--drafts`` measures these alone.

Ends with one JSON line: decoding speed of racm3 / of transformers at batch 1 and 8, with guidance (the shipped model,
batch 1), and the share of the memory bandwidth (bytes of weights and cache that a step reads / measured bandwidth) at
125M, batch 1; speed with drafts / without (``drafted_b1``, ``drafted_b8``, ``m125_drafted_b1`` and so on), codes of a
pass (``accepted_per_pass``), and with drafts / transformers (``vs_transformers_b1``, greedy).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, Qwen3ForCausalLM

from racm3 import RACM3, Document, Hole, Image
from racm3.generator import engine as engine_module
from racm3.generator.batch import Draw
from racm3.generator.constraints import ImageSpan
from racm3.generator.engine import Engine, SequenceOutput, SequenceRequest
from racm3.generator.kv_cache import token_bytes
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.model_runner import ModelRunner, Weights
from racm3.generator.native import compiled
from racm3.generator.sampling import Sampling
from racm3.model_folder import ModelFolder
from racm3.pipeline import Settings
from racm3.scenes.draw import draw
from racm3.scenes.world import World
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


clock = time.perf_counter


def seconds(work: Callable[[], object]) -> float:
    started = clock()
    work()
    return clock() - started


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


def drawings(sampling: Sampling, count: int = 16) -> list[SequenceRequest]:
    """What the shipped model is asked for to draw captions, half of them of novel entities, each behind two
    documents of its entity."""
    world = World()
    novel = islice(world.scenes("test-novel"), count - count // 2)
    tests = [(scene, caption) for _, scene, caption in (*novel, *islice(world.scenes("test-seen"), count // 2))]
    sources: dict[str, list[Document]] = {scene.entities[0]: [] for scene, _ in tests}
    for _, scene, caption in world.scenes("memory"):
        if len(known := sources.get(scene.entities[0], [None, None])) < 2:
            known.append(Document.of(caption, Image(draw(scene))))
    model = RACM3.from_pretrained("scenes")
    asked: list[SequenceRequest] = []
    run = model.engine.run

    def noted(requests: Sequence[SequenceRequest], on_step: Any = None) -> list[SequenceOutput]:
        asked.extend(requests)
        return run(requests, on_step=on_step)

    model.engine.run = noted  # type: ignore[method-assign]
    documents = [Document.of(caption, Hole("image")) for _, caption in tests]
    model.complete(documents, Settings(image=sampling), retrieved=[sources[scene.entities[0]] for scene, _ in tests])
    return asked


def draft_gain(
    name: str, engines: tuple[Engine, Engine], requests: Sequence[SequenceRequest], batch: int, rounds: int
) -> tuple[float, float]:
    """(decoding speed with drafts / without, codes of a pass of one sequence); raises if the outputs differ."""

    def work(engine: Engine, asked: Sequence[SequenceRequest]) -> list[SequenceOutput]:
        portions = [asked[start : start + batch] for start in range(0, len(asked), batch)]
        return [output for portion in portions for output in engine.run(portion)]

    first = [replace(request, constraint=Codes(engines[0].vocabulary, 1)) for request in requests]
    if work(engines[0], requests) != work(engines[1], requests):
        raise SystemExit(f"{name}: drafts change the output")
    times: dict[Engine, list[float]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, own in times.items():
            prompt = seconds(lambda engine=engine: work(engine, first))
            own.append(seconds(lambda engine=engine: work(engine, requests)) - prompt)
    passes = 0
    for request in requests:
        running = engines[0].submit(request)
        while not running.done:
            engines[0].step()
            passes += 1
    drafted, plain = (min(times[engine]) for engine in engines)
    steps = sum(request.constraint.max_steps for request in requests)
    print(
        f"  {name:22}, batch {batch}: with drafts {steps / drafted:7.1f} codes/s, without {steps / plain:7.1f}: "
        f"{plain / drafted:.2f} x; {steps / passes:.2f} codes a pass",
        flush=True,
    )
    return plain / drafted, steps / passes


@contextmanager
def replayed(codes: dict[tuple[int, ...], tuple[int, ...]]) -> Iterator[None]:
    """Whatever code is drawn behind these prompts, it becomes the one given."""
    drawing = engine_module.choose_tokens

    def choose(draws: Sequence[Draw], logits: torch.Tensor, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, log_probabilities = drawing(draws, logits, allowed)
        true = [codes[draw.sequence.streams[0]][draw.sequence.steps + draw.ahead] for draw in draws]
        return torch.tensor(true), log_probabilities

    engine_module.choose_tokens = choose
    try:
        yield
    finally:
        engine_module.choose_tokens = drawing


def measure_drafts(sides: Sides, large: Sides, rounds: int) -> dict[str, float]:
    """All rows about drafts; ``large`` is the model of 125M."""
    v = sides.vocabulary
    engines = Engine(sides.generator, v), Engine(sides.generator, v, drafts=False)
    usual = Settings().image
    plain = drawings(replace(usual, context_aware=1.0))
    print("drafts from the sources, shipped model")
    result: dict[str, float] = {}
    result["drafted_b1"], result["accepted_per_pass"] = draft_gain("as usual", engines, drawings(usual), 1, rounds)
    for batch in (8, 16):
        result[f"drafted_b{batch}"], _ = draft_gain("as usual", engines, drawings(usual), batch, rounds)
    guided = drawings(replace(usual, guidance=1.5))
    result["drafted_guided_b1"], _ = draft_gain("guided", engines, guided, 1, rounds)
    result["drafted_plain_b1"], result["plain_per_pass"] = draft_gain("plain", engines, plain, 1, rounds)
    result["drafted_plain_b8"], _ = draft_gain("plain", engines, plain, 8, rounds)
    greedy = [replace(request, sampling=Sampling(temperature=0)) for request in plain[:4]]
    ours = theirs = 0.0
    for request in greedy:
        work, new = Work(torch.tensor([request.prompt]), None, False), request.constraint.max_steps
        if engines[0].run([request])[0].tokens != sides.theirs("dynamic", work, new)[0]:
            raise SystemExit("transformers draws other codes")
        first = replace(request, constraint=Codes(v, 1))
        spent = [
            [seconds(own) for own in pair]
            for _ in range(rounds)
            for pair in [
                (
                    lambda request=request: engines[0].run([request]),
                    lambda first=first: engines[0].run([first]),
                    lambda work=work, new=new: sides.theirs("dynamic", work, new),
                    lambda work=work: sides.theirs("dynamic", work, 1),
                )
            ]
        ]
        whole, prompt, other, other_prompt = (min(column) for column in zip(*spent, strict=True))
        ours, theirs = ours + whole - prompt, theirs + other - other_prompt
    result["vs_transformers_b1"] = theirs / ours
    print(f"  with drafts, greedy, batch 1: {theirs / ours:.2f} x transformers, dynamic cache", flush=True)
    big = large.vocabulary
    true = {}
    asked = []
    for request, output in zip(plain, engines[1].run(plain), strict=True):
        prompt = tuple(big.image_start + id - v.image_start if id >= v.image_start else id for id in request.prompt)
        codes = true[prompt] = tuple(id - v.image_start for id in output.tokens)
        asked.append(replace(request, prompt=prompt, constraint=ImageSpan(big, len(codes)), without_context=None))
    print("125M, random weights, codes of the shipped model replayed")
    pair = Engine(large.generator, big), Engine(large.generator, big, drafts=False)
    with replayed(true):
        result["m125_drafted_b1"], _ = draft_gain("plain", pair, asked[4:12], 1, min(rounds, 2))
        result["m125_drafted_b8"], _ = draft_gain("plain", pair, asked[4:12], 8, min(rounds, 2))
    return {name: round(value, 2) for name, value in result.items()}


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
    parser.add_argument("--drafts", action="store_true", help="measure drafts alone")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, where others are at work")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cpu_time:
        global clock
        clock = time.process_time
    compile_s = seconds(lambda: compiled(4))
    print("no C compiler: steps are in operators" if compiled(4) is None else f"step compiled in {compile_s:.1f} s")
    sides = shipped()
    result = {"compile_s": round(compile_s, 1)}
    if args.drafts:
        print(json.dumps(result | measure_drafts(sides, m125(), args.rounds)))
        return
    result |= measure("shipped", sides, args.prompt_tokens, args.new_tokens, args.rounds)
    writer = SequenceRequest([sides.vocabulary.doc], Codes(sides.vocabulary, 120, every=True))
    written = Engine(sides.generator, sides.vocabulary).run([replace(writer, seed=seed) for seed in range(16)])
    for weights in ("bfloat16", "int8"):
        ids = [(sides.vocabulary.doc, *output.tokens) for output in written]
        nats, agreed = divergence(sides, weights, ids)
        result[f"{weights}_divergence_nats"] = round(nats, 5)
        print(f"  {weights} weights: divergence {nats:.5f} nats a token, the same best token {agreed:.1%}")
    # Steps of the large model are long: fewer of them are known as well.
    large = m125()
    result |= measure("m125", large, args.prompt_tokens, max(2, args.new_tokens // 2), min(args.rounds, 3))
    result |= measure_drafts(sides, large, args.rounds)
    result["guided"] = result["shipped_b1_guided"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
