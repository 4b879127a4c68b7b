"""How long a generator trains from nothing until retrieval works, with and without what is claimed to speed it up.

Retrieval works when the generator draws half as many novel entities right as the image tokenizer's ceiling allows: the
true pictures of the same requests, through the tokenizer and back. One drawing a request, judged as in
`racm3 evaluate scenes`. The built-in world, the shipped image tokenizer, encoder and judge; only the generator is new.

    recipe          the `scenes` preset
    alpha-0         no loss on the retrieved documents
    adamw           AdamW for all weights, without Muon
    no-renaming     codes and rare words keep their names

What is precomputed or packed is counted beside, for the recipe's steps: the time that they would take longer if each
embedded and searched its own queries; and that of their forward and backward passes, with sequences as they are packed,
end to end, and with every sequence padded to the longest of its step, by the same code and at the same loss.

Minutes are of training alone, compilation included, without set-up and looks; a variant that has not reached the goal
when its steps are over has none. Every variant keeps its result, and the same command goes on. The passes' minutes are
of the processor's time, shared among the threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from racm3.data import read
from racm3.document import Document, Hole, Image
from racm3.evaluation.scenes_protocol import Protocol, accuracy, pixels, through_tokenizer, world_memory
from racm3.generator.model import Generator, GeneratorConfig
from racm3.model_folder import ModelFolder
from racm3.pipeline import RACM3
from racm3.presets import preset
from racm3.retriever.retriever import Retriever
from racm3.scenes.draw import draw
from racm3.scenes.judges import Judge
from racm3.scenes.world import World
from racm3.training.generator_recipe import Batches, GeneratorRun, PackedBatch, packed_loss
from racm3.training.loop import native_bfloat16
from racm3.training.models import prepared_model
from racm3.training.prepared_cache import Cache

WARMUP_STEPS = 3
"""In which code is compiled, for rows of one length and then of any."""


class Reached(Exception):
    """Half of the ceiling."""


def variants(recipe: GeneratorRun) -> dict[str, GeneratorRun]:
    return {
        "recipe": recipe,
        "alpha-0": replace(recipe, alpha=0.0),
        "adamw": replace(recipe, optimiser=replace(recipe.optimiser, muon_lr=0.0)),
        "no-renaming": replace(recipe, rename_share=0.0),
    }


def padded(batch: PackedBatch) -> PackedBatch:
    """The same sequences, each as long as the longest; what is added has no weight."""
    lengths = np.diff(batch.offsets)
    held = np.arange(lengths.max()) < lengths[:, None]  # (S, T)

    def rows(values: np.ndarray) -> np.ndarray:
        table = np.zeros(held.shape, values.dtype)
        table[held] = values
        return table.ravel()

    arrays = {name: rows(getattr(batch, name)) for name in ("ids", "targets", "weights", "main")}
    return replace(batch, **arrays, offsets=np.arange(len(held) + 1) * held.shape[1])


def pass_seconds(batches: Batches, run: GeneratorRun, steps: int) -> dict[str, float]:
    """Median time of a step's forward and backward pass, packed and padded. Raises if their losses differ."""
    vocabulary = batches.markup.vocabulary
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(vocabulary_size=vocabulary.size, **asdict(run.model)))
    generator.train_fast(compile=run.compile, recompute_layers=run.recompute_layers)
    times: dict[str, list[float]] = {"packed": [], "padded": []}
    for step in range(WARMUP_STEPS + steps):
        packed, losses = batches.batch(step), []
        for name, batch in (("packed", packed), ("padded", padded(packed))):
            started = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16()):
                loss, _ = packed_loss(generator, batch, vocabulary, run.z_loss)
            loss.backward()
            times[name].append((time.process_time() - started) / torch.get_num_threads())
            losses.append(loss.item())
            generator.zero_grad()
        if abs(losses[0] - losses[1]) > 1e-3 * losses[0]:
            raise RuntimeError(f"step {step}: the losses differ, packed and padded: {losses}")
    return {name: median(values[WARMUP_STEPS:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/time_to_effect"))
    parser.add_argument("--world", type=Path, help="made by racm3 scenes make; made in --out if not given")
    parser.add_argument("--variants", nargs="+", default=list(variants(GeneratorRun())))
    parser.add_argument("--steps", type=int, default=preset("scenes").generator.loop.steps)
    parser.add_argument("--look-every", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--timed-steps", type=int, default=12, help="to time packed and padded sequences")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    world = given.world or given.out / "world"
    if not world.exists():
        World().write(world)
    models = ModelFolder.open("scenes")
    image, encoder, judge = models.image_tokenizer(), models.encoder(), Judge.from_pretrained(models.path / "judge")
    recipe = preset("scenes").generator
    recipe = replace(
        recipe,
        compile=given.compile,
        loop=replace(recipe.loop, steps=given.steps, look_every=given.look_every, threads=given.threads),
    )
    made = prepared_model(world / "train", recipe, image, encoder, Cache(given.out / "prepared"))
    memory = world_memory(given.out / "memory", World(), encoder)
    tests = [(scene, caption) for _, scene, caption in islice(World().scenes("test-novel"), given.pictures)]
    scenes = [scene for scene, _ in tests]
    truth = through_tokenizer([Image(draw(scene)) for scene in scenes], image)
    ceiling = accuracy(judge.verdict(pixels(truth)), scenes)["entity"]
    goal = ceiling / 2
    print(f"ceiling {ceiling:.2f}: the goal is {goal:.2f} of {len(tests)} novel entities right, one drawing each")

    def trained(name: str, run: GeneratorRun) -> dict[str, Any]:
        result: dict[str, Any] = {"minutes": None, "steps": None, "accuracy": []}
        folder = given.out / name
        trained_s, since = 0.0, time.monotonic()

        def examine(step: int, generator: Generator) -> Mapping[str, float]:
            nonlocal trained_s, since
            trained_s += time.monotonic() - since
            model = RACM3(generator, made.text, image, made.markup, encoder, memory)
            settings = replace(Protocol().drawing, samples=1)
            done = model.complete([Document.of(caption, Hole("image")) for _, caption in tests], settings)
            right = accuracy(judge.verdict(pixels([one.document.images[0] for one in done])), scenes)["entity"]
            result["accuracy"].append([step, right, round(trained_s / 60, 2)])
            print(f"{name}: step {step}  {trained_s / 60:.1f} min  {right:.2f} of novel entities right", flush=True)
            if right >= goal:
                result.update(minutes=round(trained_s / 60, 2), steps=step)
                raise Reached
            since = time.monotonic()
            return {"novel_entity": right}

        try:
            made.train(run, folder, samples=False, examine=examine)
        except Reached:
            pass
        return result

    results = {}
    for name, run in variants(recipe).items():
        file = given.out / f"{name}.json"
        if name in given.variants and not file.exists():
            file.write_text(json.dumps(trained(name, run)) + "\n", encoding="utf-8")
        if file.exists():
            results[name] = json.loads(file.read_text(encoding="utf-8"))

    # What a search of its own would cost every step, in queries asked one step at a time.
    tokens = sum(map(len, made.documents.ids)) / len(made.documents.ids)
    per_step = round(recipe.tokens_per_step / 2 / tokens)
    asked = [item.document.only("text") or item.document for item in islice(read(world / "train"), 4 * per_step)]
    retriever = Retriever(memory, encoder)
    started = time.monotonic()
    for first in range(0, len(asked), per_step):
        retriever.retrieve(asked[first : first + per_step], 2)
    search_s = (time.monotonic() - started) / 4
    for name, result in results.items():
        print(f"{name:>14}  {result['minutes'] or 'not reached'} min  step {result['steps']}")
    steps = results.get("recipe", {}).get("steps") or 0
    passes_s = pass_seconds(Batches(made.documents, made.markup, image.grid, recipe), recipe, given.timed_steps)
    print(f"a step's passes: {passes_s['packed']:.2f} s packed, {passes_s['padded']:.2f} s padded")
    line = {
        "minutes": {name: result["minutes"] for name, result in results.items()},
        "half_ceiling": goal,
        "steps": {name: result["steps"] for name, result in results.items()},
        "search_in_the_loop_minutes": round(steps * search_s / 60, 2),
        "passes_minutes": {name: round(steps * seconds / 60, 2) for name, seconds in passes_s.items()},
        "padded_ratio": round(passes_s["padded"] / passes_s["packed"], 2),
        "threads": given.threads,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
