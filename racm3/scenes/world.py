"""The built-in world: which scenes there are, in which split, and how they are written to disk.

    pretrain     all entities              image tokenizer and encoder are trained here, and count as pretrained
    train        seen entities             the generator's only diet, as main and as retrieved documents
    memory       seen and novel entities   what the trained system may look up
    test-seen    seen entities             held-out combinations of entity, background and position
    test-novel   novel entities            the same, of entities that the generator never met

A combination of entity, background and position stands in one split only (the ``memory`` part of seen entities repeats
``train`` scenes). The style ``sepia`` is never in ``train``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from racm3.data import Item, write_coco, write_webdataset
from racm3.document import Document, Image
from racm3.errors import ConfigError, unknown
from racm3.scenes.caption import FORMS, describe, name_subject
from racm3.scenes.draw import BACKGROUNDS, POSITIONS, STYLES, Scene, draw
from racm3.scenes.glyphs import load_glyphs

SPLITS = ("pretrain", "train", "memory", "test-seen", "test-novel")
NOVEL_SHARE = 0.16
HELD_OUT_STYLE = "sepia"


@dataclass(frozen=True)
class World:
    """A seeded draw of the world. Sizes are scenes per entity; ``tests`` is the number of queries of a test split."""

    seed: int = 0
    pretrain: int = 16
    train: int = 24
    memory: int = 6
    tests: int = 600

    def __post_init__(self) -> None:
        combinations = len(BACKGROUNDS) * len(POSITIONS)
        if not 0 < self.memory <= self.train <= 0.5 * combinations or not 0 < self.pretrain <= 0.3 * combinations:
            raise ConfigError(
                f"an entity has {combinations} combinations of background and position: give 0 < memory <= train <= "
                f"{combinations // 2} and 0 < pretrain <= {int(0.3 * combinations)}, not {self}"
            )

    @property
    def novel(self) -> tuple[str, ...]:
        """The entities that the generator never sees in training."""
        names = list(load_glyphs().names)
        random.Random(f"novel {self.seed}").shuffle(names)
        return tuple(sorted(names[: round(NOVEL_SHARE * len(names))]))

    @property
    def seen(self) -> tuple[str, ...]:
        novel = set(self.novel)
        return tuple(name for name in load_glyphs().names if name not in novel)

    def scenes(self, split: str) -> Iterator[tuple[str, Scene, str]]:
        """(id, scene, caption) of every document of a split. Raises ConfigError for an unknown split."""
        if split not in SPLITS:
            raise ConfigError(unknown("split", split, SPLITS))
        if split.startswith("test"):
            yield from self._tests(split)
            return
        seen, novel = self.seen, set(self.novel)
        for name in load_glyphs().names if split in ("pretrain", "memory") else seen:
            # A seen entity's memory documents are the first of its training documents.
            source = "train" if split == "memory" and name not in novel else split
            companions = load_glyphs().names if split == "pretrain" else (tuple(self.novel) if name in novel else seen)
            rng = random.Random(f"{source} {self.seed} {name}")
            combinations = self.combinations(name)
            start = self.train if source == "pretrain" else 0
            count = getattr(self, split)
            for i in range(count):
                background, position = combinations[start + i]
                scene = self._vary(rng, name, background, position, companions, sepia=split == "pretrain")
                caption = describe(scene, rng.randrange(FORMS))
                yield f"{source}-{load_glyphs().index[name]:04d}-{i:02d}", scene, caption

    def _tests(self, split: str) -> Iterator[tuple[str, Scene, str]]:
        rng = random.Random(f"{split} {self.seed}")
        names = list(self.seen if split == "test-seen" else self.novel)
        rng.shuffle(names)
        for i in range(self.tests):
            name = names[i % len(names)]
            background, position = self.combinations(name)[self.train + self.pretrain + i // len(names)]
            scene = Scene((name,), background, position)
            yield f"{split}-{i:04d}", scene, describe(scene, rng.randrange(FORMS))

    def combinations(self, name: str) -> list[tuple[str, str]]:
        """All (background, position) of an entity in the order in which the splits take them."""
        combinations = list(product(BACKGROUNDS, POSITIONS))
        random.Random(f"combinations {self.seed} {name}").shuffle(combinations)
        return combinations

    @staticmethod
    def _vary(
        rng: random.Random, name: str, background: str, position: str, companions: tuple[str, ...], sepia: bool
    ) -> Scene:
        """Mostly one plain entity; now and then small, several, two entities, or in a style."""
        dice = rng.random()
        if dice < 0.05:
            return Scene((name,), background, position, size="small")
        if dice < 0.10:
            return Scene((name,), background, count=rng.choice((2, 3)))
        if dice < 0.15:
            other = rng.choice([c for c in rng.sample(companions, 2) if c != name])
            return Scene((name, other), background)
        if dice < 0.22:
            styles = [s for s in STYLES if s != "plain" and (sepia or s != HELD_OUT_STYLE)]
            return Scene((name,), background, position, style=rng.choice(styles))
        return Scene((name,), background, position)

    def items(self, split: str) -> Iterator[Item]:
        """The documents of a split, drawn; the facts stand in ``metadata["scene"]``."""
        for id_, scene, caption in self.scenes(split):
            document = Document.of(caption, Image(draw(scene)))
            # Two captions, as pictures of COCO have five: all facts, and only what stands there.
            facts = {"scene": scene.to_dict(), "split": split, "captions": [caption, name_subject(scene)]}
            yield Item(id_, document, facts, "racm3.scenes")

    def write(self, folder: Path) -> None:
        """Write ``pretrain`` and ``train`` as WebDataset shards, the rest in COCO format, and ``world.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            if split in ("pretrain", "train"):
                write_webdataset(self.items(split), folder / split)
            else:
                write_coco(self.items(split), folder / split)
        facts = asdict(self) | {"novel": list(self.novel)}
        (folder / "world.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
