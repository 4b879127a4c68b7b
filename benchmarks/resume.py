"""A small generator is trained, killed with kill -9 at random moments and started again until it is done.

Its loss curve and its final state are compared with those of a run that nobody broke, bit by bit. Many of the kills
strike while a checkpoint is being written. Ends with one JSON line: how many there were, and whether all was equal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.checkpoint import read_manifest
from racm3.training.generator_recipe import GeneratorRun, ShapeConfig, train_generator
from racm3.training.loop import LoopConfig
from racm3.training.optimiser import OptimiserConfig
from racm3.training.prepare import TrainingSet

GRID, CODES, DOCUMENTS = (4, 4), 50, 200
OF_THE_CLOCK = {"tokens_per_s", "mfu", "data_wait_share", "elapsed_s"}


def train(folder: Path, steps: int) -> None:
    """The run, from its beginning or from where it stands; what it prints goes to a file."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    rng = np.random.default_rng(0)
    text = TextTokenizer.train(["a fox in the snow"], 256)
    markup = Markup(Vocabulary(text.size, CODES), GRID[0] * GRID[1])
    documents = [
        (TextIds(tuple(rng.integers(256, size=rng.integers(3, 9)).tolist())), ImageCodes(tuple(codes.tolist())))
        for codes in rng.integers(CODES, size=(DOCUMENTS, GRID[0] * GRID[1]))
    ]
    ids = [np.array(markup.to_ids(document), np.int32) for document in documents]
    data = TrainingSet(ids, rng.integers(DOCUMENTS, size=(DOCUMENTS, 2, 2)))
    run = GeneratorRun(
        model=ShapeConfig(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=64, context_tokens=128),
        optimiser=OptimiserConfig(lr=3e-3, muon_lr=4e-3, warmup_steps=10),
        loop=LoopConfig(steps=steps, accumulate=2, ema=0.99, log_every_s=0, checkpoint_every_s=0.3),
        tokens_per_step=500,
        compile=False,
    )
    train_generator(data, text, markup, GRID, run, folder)


def outcome(folder: Path) -> tuple[list[dict[str, float]], dict[str, str], bytes]:
    """Rows, checksums of the last state (weights, average and optimisers) and the model as it was written."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in OF_THE_CLOCK} for line in lines]
    newest = max((folder / "checkpoints").glob("step-*"))
    files = {name: digest for name, digest in read_manifest(newest)["files"].items() if name.endswith(".distcp")}
    return rows, files, (folder / "model.safetensors").read_bytes()


def strike(process: BaseProcess, folder: Path, rng: random.Random, steps: int) -> bool:
    """Kill ``process`` with kill -9 at a random moment, on average after ``steps`` steps or, one in four, before any.

    Half of those that come later strike when a checkpoint is being written. Returns whether one was.
    """
    log, unfinished, born = folder / "metrics.jsonl", folder / "checkpoints", time.time()

    def wait(until: Callable[[], bool]) -> None:
        while process.is_alive() and not until():
            time.sleep(0.001)

    if rng.random() < 0.25:
        process.join(rng.uniform(0, 1))
    else:
        wait(lambda: log.exists() and log.stat().st_mtime > born)
        read, target = log.read_bytes().count(b"\n"), rng.randrange(2 * steps)
        wait(lambda: log.read_bytes().count(b"\n") >= read + target)
        if rng.random() < 0.5:
            wait(lambda: any(unfinished.glob("*.part")))
    writing = any(unfinished.glob("*.part"))
    process.kill()
    return writing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_generator.__module__])
    kills, in_writing, equal = 0, 0, []
    with tempfile.TemporaryDirectory() as temporary:
        whole, number = Path(temporary) / "whole", 0
        started = time.monotonic()
        process = context.Process(target=train, args=(whole, given.steps))
        process.start()
        process.join()
        print(f"unbroken run: {given.steps} steps in {time.monotonic() - started:.0f} s")
        while kills < given.kills or not equal:
            broken = Path(temporary) / f"broken-{number}"
            process = context.Process(target=train, args=(broken, given.steps))
            process.start()
            if kills < given.kills:
                writing = strike(process, broken, rng, given.steps // given.kills)
            process.join()
            if process.exitcode == 0:  # the run is done
                equal.append(outcome(broken) == outcome(whole))
                print(f"run {number}: {'bit-equal' if equal[-1] else 'DIFFERENT'}")
                number += 1
                continue
            assert process.exitcode == -9, (broken / "stderr").read_text(encoding="utf-8")
            kills, in_writing = kills + 1, in_writing + writing
            whole_ones = [path.name for path in broken.glob("checkpoints/step-*") if path.suffix != ".part"]
            stands = max(whole_ones, default="its start")
            print(f"kill {kills}{' in a checkpoint' * writing}; run {number} stands at {stands}", flush=True)
    print(json.dumps({"kills": kills, "bit_equal": all(equal), "kills_in_checkpoints": in_writing, "runs": len(equal)}))


if __name__ == "__main__":
    main()
