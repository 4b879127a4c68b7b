"""Sixty-four requests of mixed kinds arriving over time: one batch that they join and leave, against one at a time.

Requests for the shipped model: pictures (drawn with guidance), captions (greedy), infills of half a picture, behind no
or two retrieved documents, from a seeded draw. They arrive at a rate at which the engine is always busy; the latency
of a request is counted from its arrival. One at a time: the same requests, each run to its end before the next, without
waiting. Answers are compared first.

Ends with one JSON line: requests a second in one batch / one at a time, the 95th percentile of the latency in
seconds, and whether every completion is the same.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from racm3.generator.constraints import Chain, Fixed, ImageSpan, TextSpan
from racm3.generator.engine import Engine, SequenceOutput, SequenceRequest
from racm3.generator.sampling import Sampling
from racm3.model_folder import ModelFolder
from racm3.tokens.vocabulary import Vocabulary


def make_requests(v: Vocabulary, count: int, codes: int) -> list[SequenceRequest]:
    rng = np.random.default_rng(0)

    def words() -> list[int]:
        return [v.text, *rng.integers(v.text_start, v.image_start, rng.integers(5, 15)).tolist()]

    def picture(n: int = codes) -> list[int]:
        return [v.image, *rng.integers(v.image_start, v.size, n).tolist()]

    made = []
    for seed in range(count):
        before = [id for _ in range(rng.choice((0, 2))) for id in (v.doc, *words(), *picture(), v.end)]
        kind = seed % 3
        if kind == 0:
            guided = Sampling(temperature=0.7, top_p=0.9, guidance=1.5)
            unconditional = [*before, v.doc, v.text, v.mask(0), v.image]
            prompt = [*before, v.doc, *words(), v.image]
            made.append(SequenceRequest(prompt, ImageSpan(v, codes), guided, seed, unconditional))
        elif kind == 1:
            prompt = [*before, v.doc, v.text, v.mask(0), *picture(), v.end, v.infill(0)]
            made.append(SequenceRequest(prompt, TextSpan(v, [v.eos], 24), Sampling(temperature=0), seed))
        else:
            half = picture(codes // 2)
            prompt = [*before, v.doc, *words(), *half, v.mask(0), v.mask(1), v.end, v.infill(0)]
            quarter = ImageSpan(v, codes // 4)
            made.append(SequenceRequest(prompt, Chain(quarter, Fixed(v, [v.infill(1)]), quarter), Sampling(), seed))
    return made


def served(
    engine: Engine, requests: list[SequenceRequest], every_s: float
) -> tuple[list[SequenceOutput], float, list[float]]:
    """(outputs, seconds until the last, latency of each in seconds) of requests of which one arrives ``every_s``."""
    started = time.perf_counter()
    sequences, finished = [], {}
    while len(finished) < len(requests):
        now = time.perf_counter() - started
        while len(sequences) < len(requests) and len(sequences) * every_s <= now:
            sequences.append(engine.submit(requests[len(sequences)]))
        events = engine.step()
        now = time.perf_counter() - started
        finished.update({event.request: now for event in events if event.done})
    latencies = [finished[sequence.number] - i * every_s for i, sequence in enumerate(sequences)]
    return [sequence.output for sequence in sequences], max(finished.values()), latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = ModelFolder.open("scenes")
    markup = folder.markup
    engine = Engine(folder.generator(), markup.vocabulary)
    requests = make_requests(markup.vocabulary, args.requests, markup.codes_per_image)
    alone = [engine.run([request])[0] for request in requests]
    rounds = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        for request in requests:
            engine.run([request])
        one_by_one = time.perf_counter() - started
        every_s = one_by_one / len(requests) / 8  # eight times as fast as they could be served one at a time
        completions, took, latencies = served(engine, requests, every_s)
        rounds.append((one_by_one / took, float(np.percentile(latencies, 95)), completions == alone, took, every_s))
    ratio, p95_s, _, took, every_s = sorted(rounds)[len(rounds) // 2]
    print(f"one at a time: {len(requests) / (ratio * took):.1f} requests/s")
    print(f"in one batch:  {len(requests) / took:.1f} requests/s, one arriving every {1e3 * every_s:.1f} ms")
    result = {
        "throughput_ratio": round(ratio, 2),
        "p95_s": round(p95_s, 3),
        "equal": all(equal for _, _, equal, _, _ in rounds),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
