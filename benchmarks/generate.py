"""Greedy decoding of the shipped generator: racm3's engine against transformers' ``generate`` on the same folder.

Same process, threads, weights, prompts and number of new tokens; the tokens are compared before the clock starts.
Ends with one JSON line: tokens/s of racm3 divided by tokens/s of transformers, at batch 1 and 8.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from racm3.generator.decoding import Sampling
from racm3.generator.engine import Engine, Job
from racm3.generator.model import Generator
from racm3.pipeline import SCENES
from racm3.tokens.vocabulary import Vocabulary

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 170, 64, 5


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


def median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(2)
    folder = SCENES / "generator"
    facts = json.loads((folder / "racm3.json").read_text(encoding="utf-8"))
    vocabulary = Vocabulary(facts["text_size"], facts["image_size"])
    engine = Engine(Generator.from_pretrained(folder).eval(), vocabulary)
    peer = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result: dict[str, float | bool] = {"equal": True}
    for batch in (1, 8):
        rng = np.random.default_rng(batch)
        prompts = rng.integers(vocabulary.text_start, vocabulary.size, (batch, PROMPT_TOKENS))
        ids = torch.from_numpy(prompts)
        constraint = Anything(vocabulary.size, NEW_TOKENS)
        jobs = [Job(row.tolist(), constraint, Sampling(temperature=0)) for row in prompts]

        def ours(jobs: list[Job] = jobs) -> list[tuple[int, ...]]:
            return [completion.tokens for completion in engine.run(jobs)]

        def theirs(ids: torch.Tensor = ids) -> list[tuple[int, ...]]:
            with torch.inference_mode():
                out = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=NEW_TOKENS,
                    max_new_tokens=NEW_TOKENS,
                    eos_token_id=None,
                    pad_token_id=vocabulary.pad,
                )
            return [tuple(row) for row in out[:, PROMPT_TOKENS:].tolist()]

        result["equal"] = bool(result["equal"]) and ours() == theirs()
        own, other = median_seconds(ours), median_seconds(theirs)
        result[f"b{batch}_tokens_per_s"] = round(batch * NEW_TOKENS / own, 1)
        result[f"b{batch}_ratio"] = round(other / own, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
