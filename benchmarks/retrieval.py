"""Does retrieval find what is named? In the words that people use, two things at once, and nothing where nothing fits.

One memory holds Open Scenes: seen and novel concepts, and foreign ones (drawn flags and logos) that no model has met,
two pictures of each with captions in three wordings. Another one holds Emoji Scenes, which the shipped encoder was
trained on. Every query is another scene of the thing, so that place and background differ, in each of twelve wordings.
Compared: the strategy `coverage`, the vectors alone, and word overlap, which is ten lines below.

The last line is JSON with a key a row: recall in % at 1 and at 2 of coverage, vectors, overlap.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from racm3.data import Item
from racm3.document import Document, Image, Text
from racm3.memory.memory import Memory
from racm3.memory.words import tokens
from racm3.model_folder import ModelFolder
from racm3.open_scenes import foreign, wording
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import draw
from racm3.retriever.choosing import strategy_for
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Retriever
from racm3.scenes.draw import draw as draw_emoji
from racm3.scenes.world import World as EmojiWorld

Found = Callable[[Sequence[str]], list[list[str]]]
PLACES = {f"{row} {column}".strip() for row in ("top", "", "bottom") for column in ("left", "", "right")}


@dataclass(frozen=True)
class Thing:
    """A concept: its split, what it is called, and the facts of scenes of it."""

    split: str
    name: str
    facts: tuple[wording.Facts, ...]
    pictures: tuple[np.ndarray, ...] = ()


def open_things(scenes: int, seed: int, most: int) -> list[Thing]:
    """Concepts of Open Scenes, ``scenes`` scenes of each; ``most`` of each split."""
    rng, words, things = np.random.default_rng(seed), random.Random(seed), []
    worlds = {
        "seen": World.of("seen"),
        "novel": World.of("novel"),
        "foreign": World(foreign.drawn(), World.of("novel").grounds),
    }
    for split, world in worlds.items():
        for name in [world.names[i] for i in rng.permutation(len(world.names))[:most]]:
            some = world.art.by_name[name]
            facts, pictures = [], []
            for _ in range(scenes):
                cutout = some[rng.integers(len(some))]
                scene = replace(world.scene(rng, 1), placed=(world.placed(cutout, rng),))
                facts.append(wording.facts(scene, words, world.art, names={cutout.id: name}))
                pictures.append(draw(scene, world.art))
            things.append(Thing(split, name, tuple(facts), tuple(pictures)))
    return things


def emoji_things(scenes: int) -> list[Thing]:
    """The entities of Emoji Scenes' memory, and of its training pictures for the queries."""
    world, found = EmojiWorld(), {}
    novel = set(world.novel)
    for _, scene, _ in world.scenes("memory"):
        if len(scene.entities) == 1 and scene.style == "plain":
            found.setdefault(scene.entities[0], []).append(scene)
    return [
        Thing(
            "emoji-novel" if name in novel else "emoji-seen",
            name,
            tuple(wording.Facts(((name, s.position if s.position in PLACES else None),), s.background) for s in some),
            tuple(draw_emoji(s) for s in some),
        )
        for name, some in ((name, some[:scenes]) for name, some in found.items())
        if len(some) == scenes
    ]


def remembered(things: Sequence[Thing], encoder: Encoder, folder: Path, seed: int) -> Memory:
    """A memory of all scenes of the things but the last, each with a caption in one of the trained wordings."""
    rng, items = random.Random(seed), []
    for number, thing in enumerate(things):
        for i, (facts, picture) in enumerate(zip(thing.facts[:-1], thing.pictures[:-1], strict=True)):
            caption = wording.describe(facts, rng.choice(("plain", "photo", "alt")), rng)
            items.append(Item(f"{number}-{i}", Document.of(caption, Image(picture)), {}, "benchmark"))
    memory = Memory.create(folder, encoder.fingerprint, encoder.dimension)
    for first in range(0, len(items), 500):
        some = items[first : first + 500]
        memory.add(some, encoder.embed([item.document for item in some]))
    memory.tidy()
    return memory


class Overlap:
    """Word overlap: the sum of the idf of the words that query and caption share, divided by the caption's length."""

    def __init__(self, memory: Memory) -> None:
        self.docs = [(item.id, Counter(tokens(item.document.text or ""))) for item in memory.items()]
        count = Counter(word for _, words in self.docs for word in words)
        self.idf = {word: math.log(1 + len(self.docs) / n) for word, n in count.items()}

    def __call__(self, queries: Sequence[str]) -> list[list[str]]:
        return [self._find(set(tokens(query))) for query in queries]

    def _find(self, words: set[str]) -> list[str]:
        scores = [(sum(self.idf[w] for w in own if w in words) / math.sqrt(len(own) + 1), i) for i, own in self.docs]
        return [item for score, item in sorted(scores, key=lambda s: -s[0])[:10] if score > 0]


def by(strategy: str, memory: Memory, encoder: Encoder) -> Found:
    """What a strategy finds for texts."""
    retriever = Retriever(memory, encoder, strategy_for(encoder, strategy))

    def find(queries: Sequence[str]) -> list[list[str]]:
        found = retriever.retrieve([Document((Text(query),)) for query in queries], 2)
        return [[hit.id for hit in hits] for hits in found]

    return find


def recall(found: Sequence[Sequence[str]], things: Sequence[int], k: int) -> float:
    """In %, how often a picture of the thing is among the first ``k``."""
    right = [any(item.split("-")[0] == str(n) for item in ids[:k]) for ids, n in zip(found, things, strict=True)]
    return round(100 * float(np.mean(right)), 1)


def wordings(things: Sequence[Thing], ways: dict[str, Found], count: int, seed: int) -> dict[str, dict[str, list]]:
    """For each split and wording, recall at 1 and at 2 of each way."""
    rows = {}
    for split in dict.fromkeys(thing.split for thing in things):
        numbers = [n for n, thing in enumerate(things) if thing.split == split]
        for kind in wording.WORDINGS:
            rng = random.Random(f"{seed} {split} {kind}")
            asked = rng.sample(numbers, min(count, len(numbers)))
            queries = [wording.describe(things[n].facts[-1], kind, rng) for n in asked]
            found = {way: find(queries) for way, find in ways.items()}
            rows[f"{split} {kind}"] = {w: [recall(ids, asked, k) for k in (1, 2)] for w, ids in found.items()}
    return rows


def two_at_once(things: Sequence[Thing], find: Found, count: int, seed: int) -> float:
    """In %, how often two documents show one each of the two things that a request names."""
    rng, right = random.Random(seed), []
    for split in dict.fromkeys(thing.split for thing in things):
        numbers = [n for n, thing in enumerate(things) if thing.split == split]
        pairs = [rng.sample(numbers, 2) for _ in range(count)]
        kinds = [rng.choice(wording.WORDINGS) for _ in pairs]
        queries = []
        for pair, kind in zip(pairs, kinds, strict=True):
            facts = [things[n].facts[-1] for n in pair]
            told = wording.Facts(tuple(one.things[0] for one in facts), facts[0].ground)
            queries.append(wording.describe(told, kind, rng))
        for pair, ids in zip(pairs, find(queries), strict=True):
            right.append({item.split("-")[0] for item in ids} == {str(n) for n in pair})
    return round(100 * float(np.mean(right)), 1)


NOISE = (
    """
quarterly revenue of the insurance branch|asdf qwer zxcv|how do I reset my password|lorem ipsum dolor sit amet
kubernetes cluster upgrade failed|xyzzy plugh frobnicate|sql join performance tuning|what time does the meeting begin
legal terms of the mortgage|gdp growth in percent|import numpy as np|parliament voted on the budget|aaaaaaaa bbbbbbbb
photosynthesis equation|the mitochondria is the powerhouse|unsubscribe from this newsletter|error 404 not found
your invoice is overdue|the committee adjourned early|inflation expectations rose|terms and conditions apply
refactor the authentication module|third quarter guidance|the defendant pleaded guilty|vaccination schedule update
jurisdiction clause|stochastic gradient descent|fjdksla vbnmcx|breaking news tonight|subject to availability""".strip()
    .replace("\n", "|")
    .split("|")
)
"""Requests that no picture of things answers."""


def main() -> None:
    """Measure both memories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=60, help="of each split and wording")
    parser.add_argument("--concepts", type=int, default=700, help="of each split of Open Scenes, at most")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    encoder, told = ModelFolder().encoder(), {}
    with tempfile.TemporaryDirectory() as folder:
        for world in ("open", "emoji"):
            things = open_things(3, asked.seed, asked.concepts) if world == "open" else emoji_things(3)
            memory = remembered(things, encoder, Path(folder) / world, asked.seed)
            ways = {
                "coverage": by("coverage", memory, encoder),
                "vectors": by("relevance", memory, encoder),
                "overlap": Overlap(memory),
            }
            rows = wordings(things, ways, asked.queries, asked.seed)
            for row, found in rows.items():
                print(f"{row:24} " + "  ".join(f"{way} {one} {two}" for way, (one, two) in found.items()), flush=True)
            told |= rows
            told[f"{world} two at once"] = two_at_once(things, ways["coverage"], asked.queries, asked.seed)
            told[f"{world} noise answered with none"] = round(
                100 * np.mean([not f for f in ways["coverage"](NOISE)]), 1
            )
            started = time.perf_counter()
            ways["coverage"](["a red fox on the left"] * 20)
            told[f"{world} ms a query"] = round((time.perf_counter() - started) / 20 * 1e3, 1)
            print(*(f"{key}: {told[key]}" for key in list(told)[-3:]), sep="\n", flush=True)
    rows = {key: row for key, row in told.items() if isinstance(row, dict)}
    for k in (0, 1):
        told[f"coverage @{k + 1}"] = round(float(np.mean([row["coverage"][k] for row in rows.values()])), 1)
        worse = [key for key, row in rows.items() if row["coverage"][k] < max(row["vectors"][k], row["overlap"][k])]
        told[f"rows worse than another way @{k + 1}"] = worse
    print(json.dumps(told))


if __name__ == "__main__":
    main()
