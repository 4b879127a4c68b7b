"""The shipped models: small enough, whole, and doing what the README says of them, on a few requests."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from racm3.document import Document, Hole
from racm3.memory.memory import Memory
from racm3.model_folder import SCENES, SHIPPED
from racm3.pipeline import RACM3, Settings
from racm3.retriever.ingest import ingest
from racm3.scenes.world import World

MIB = 2**20


def test_all_weights_together_are_small() -> None:
    sizes = [path.stat().st_size for path in SCENES.rglob("*") if path.is_file()]
    assert sum(sizes) <= 48e6
    assert max(sizes) < 16 * MIB


def test_every_shipped_model_is_there() -> None:
    for name in SHIPPED:
        assert (SCENES / name / "model.safetensors").is_file(), name


def test_generator_and_vanilla_have_the_same_shape_and_opposite_diets() -> None:
    shapes, runs = [], []
    for name in ("generator", "vanilla"):
        shapes.append(json.loads((SCENES / name / "config.json").read_text(encoding="utf-8")))
        runs.append(json.loads((SCENES / name / "racm3.json").read_text(encoding="utf-8"))["run"])
    assert shapes[0] == shapes[1]
    assert len(runs[0]["retrieved_shares"]) == 3
    assert runs[1]["retrieved_shares"] == [1.0]


@pytest.fixture(scope="module")
def small_memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """The documents of 20 novel entities, and of as many others."""
    encoder = RACM3.from_pretrained().encoder
    world = World()
    wanted = set(world.novel[:20]) | set(world.seen[:20])
    items = (item for item in world.items("memory") if item.metadata["scene"]["entities"][0] in wanted)
    memory = Memory.create(tmp_path_factory.mktemp("shipped") / "memory", encoder.fingerprint, encoder.dimension)
    ingest(memory, encoder, items)
    return memory


def test_a_caption_of_a_novel_entity_fetches_it_and_becomes_a_picture(small_memory: Memory) -> None:
    model = RACM3.from_pretrained(memory=small_memory)
    names = World().novel[:8]
    done = model.complete([Document.of(f"a {name} in the snow", Hole("image")) for name in names], Settings(seed=1))
    found = sum(
        any(name in source.metadata["scene"]["entities"] for source in completion.sources)
        for name, completion in zip(names, done, strict=True)
    )
    assert found >= 6
    for completion in done:
        assert completion.document.images[0].pixels.shape == (64, 64, 3)
        assert len(completion.sources) == 2


def test_a_picture_becomes_a_caption(small_memory: Memory) -> None:
    model = RACM3.from_pretrained(memory=small_memory)
    for item in islice(World().items("test-seen"), 2):
        done = model.caption(item.document.images[0])
        assert done.document.text
        assert done.sources


def test_the_same_seed_gives_the_same_picture() -> None:
    torch.set_num_threads(1)
    model = RACM3.from_pretrained()
    one, other = (model.generate_image("a fox in the snow", Settings(k=0, seed=3)) for _ in range(2))
    assert one.document == other.document
    assert Path(SCENES / "generator" / "tokenizer.json").is_file()
