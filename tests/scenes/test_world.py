from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from racm3.data import Item, read, write_coco, write_webdataset
from racm3.errors import ConfigError
from racm3.scenes.caption import name_subject
from racm3.scenes.caption import read as read_caption
from racm3.scenes.draw import Scene, draw
from racm3.scenes.glyphs import load_glyphs
from racm3.scenes.world import HELD_OUT_STYLE, NOVEL_SHARE, SPLITS, World

WORLD = World()
TRAINING = ("pretrain", "train", "memory")
TESTS = ("test-seen", "test-novel")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Scene]]:
    return {split: [scene for _, scene, _ in WORLD.scenes(split)] for split in SPLITS}


def entities(scenes: list[Scene]) -> set[str]:
    return {name for scene in scenes for name in scene.entities}


def combinations(scenes: list[Scene]) -> set[tuple[str, str, str]]:
    return {(s.entities[0], s.background, s.position) for s in scenes if s.glyph_count == 1}


def test_every_entity_is_seen_or_novel() -> None:
    seen, novel = set(WORLD.seen), set(WORLD.novel)
    assert seen | novel == set(load_glyphs().names)
    assert not seen & novel
    assert len(novel) / len(load_glyphs().names) == pytest.approx(NOVEL_SHARE, abs=0.001)
    assert NOVEL_SHARE >= 0.15


def test_the_generator_never_meets_a_novel_entity(splits: dict[str, list[Scene]]) -> None:
    """Neither alone nor as a companion; and documents are retrieved from the training split alone."""
    assert entities(splits["train"]) == set(WORLD.seen)


def test_a_novel_entity_stands_in_no_seen_entitys_memory(splits: dict[str, list[Scene]]) -> None:
    novel = set(WORLD.novel)
    for scene in splits["memory"]:
        assert len({name in novel for name in scene.entities}) == 1


def test_memory_and_pretrain_hold_every_entity(splits: dict[str, list[Scene]]) -> None:
    assert entities(splits["memory"]) == entities(splits["pretrain"]) == set(load_glyphs().names)


def test_memory_holds_as_much_of_every_entity(splits: dict[str, list[Scene]]) -> None:
    mains = [scene.entities[0] for scene in splits["memory"]]
    assert {mains.count(name) for name in load_glyphs().names[:50]} == {WORLD.memory}
    assert len(mains) == WORLD.memory * len(load_glyphs().names)


@pytest.mark.parametrize("test", TESTS)
def test_test_scenes_stand_in_no_other_split(test: str, splits: dict[str, list[Scene]]) -> None:
    assert len(set(splits[test])) == len(splits[test]) == WORLD.tests
    for other in TRAINING:
        assert not combinations(splits[test]) & combinations(splits[other])
        assert not set(splits[test]) & set(splits[other])


def test_test_splits_ask_for_their_kind(splits: dict[str, list[Scene]]) -> None:
    assert entities(splits["test-seen"]) <= set(WORLD.seen)
    assert entities(splits["test-novel"]) == set(WORLD.novel)  # 600 queries, 293 entities


def test_pretrain_and_train_share_no_combination(splits: dict[str, list[Scene]]) -> None:
    assert not combinations(splits["pretrain"]) & combinations(splits["train"])


def test_the_held_out_style_is_held_out(splits: dict[str, list[Scene]]) -> None:
    assert HELD_OUT_STYLE not in {scene.style for split in ("train", "memory") for scene in splits[split]}
    assert HELD_OUT_STYLE in {scene.style for scene in splits["pretrain"]}


@pytest.mark.parametrize("split", SPLITS)
def test_captions_and_ids(split: str) -> None:
    documents = list(WORLD.scenes(split))
    assert len({id_ for id_, _, _ in documents}) == len(documents)
    for _, scene, caption in documents[::97]:
        assert read_caption(caption) == scene


def test_memory_of_seen_entities_repeats_train(splits: dict[str, list[Scene]]) -> None:
    train = {id_: (scene, caption) for id_, scene, caption in WORLD.scenes("train")}
    repeated = [(id_, train[id_], (s, c)) for id_, s, c in WORLD.scenes("memory") if id_ in train]
    assert len(repeated) == WORLD.memory * len(WORLD.seen)
    assert all(one == other for _, one, other in repeated)


def test_the_same_seed_is_the_same_world() -> None:
    def some(world: World) -> list[Any]:
        return [list(islice(world.scenes(split), 100)) for split in SPLITS]

    assert some(World(seed=3)) == some(World(seed=3))
    assert some(World(seed=3)) != some(World(seed=4))
    assert World(seed=3).novel != World(seed=4).novel


@pytest.mark.parametrize("split", ["train", "test-novel"])
@pytest.mark.parametrize("write", [write_coco, write_webdataset])
def test_what_is_written_is_read_back(write: Callable[[Any, Path], object], split: str, tmp_path: Path) -> None:
    """Through the readers of any user's data: documents, ids and facts, equal to the pixel."""
    items = list(islice(WORLD.items(split), 40))
    write(items, tmp_path)
    found = {item.id: item for item in read(tmp_path, strict=True)}
    assert len(found) == len(items)
    for item in items:
        assert found[item.id].document == item.document
        assert found[item.id].metadata == item.metadata


def test_an_item_says_what_it_shows() -> None:
    item: Item = next(WORLD.items("memory"))
    scene = Scene.from_dict(item.metadata["scene"])
    np.testing.assert_array_equal(item.document.images[0].pixels, draw(scene))
    assert item.metadata["captions"] == [item.document.text, name_subject(scene)]
    assert item.metadata["split"] == "memory"


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown split 'test-nvel'; did you mean 'test-novel'"):
        next(WORLD.scenes("test-nvel"))


@pytest.mark.parametrize("sizes", [{"memory": 30}, {"train": 100}, {"pretrain": 0}, {"memory": 0}, {"pretrain": 60}])
def test_sizes_that_do_not_fit_are_an_error(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="144 combinations of background and position"):
        World(**sizes)
