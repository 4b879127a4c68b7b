from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item
from racm3.document import Document, Text
from racm3.memory.memory import Memory
from racm3.memory.words import WordIndex, fold, phrases, singular, tokens

TEXTS = [
    "a fox in the snow",
    "a polar bear on ice",
    "Crème brûlée on a plate",
    "two foxes and a church",
    "红色的狐狸在雪地里",
    "キツネと雪",
    "여우가 눈 위에",
    "ثعلب أحمر في الثلج",
    "🦊 at night",
    "a pizza with olives",
    "the Statue of Liberty",
    "a photo camera",
]
FOUND = {
    "fox": {0, 3},
    "FOXES!": {0, 3},
    "creme brulee": {2},
    "churches": {3},
    "polarbear": {1},
    "Polar Baer": {1},
    "piza": {9},
    "pizzza": {9},
    "pziza": {9},
    "狐狸": {4},
    "キツネ": {5},
    "여우": {6},
    "ثعلب": {7},
    "🦊": {8},
    "please draw a picture of liberty": {10},
    "photo": {11},
    "quarterly revenue": set(),
}


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(folder: Path, texts: list[str]) -> Memory:
    memory = Memory.create(folder, "encoder", 8)
    items = [Item(str(i), Document((Text(text),)), {"i": i}, "test") for i, text in enumerate(texts)]
    memory.add(items, unit(len(items)))
    return memory


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    return filled(tmp_path_factory.mktemp("words") / "memory", TEXTS)


def holding(memory: Memory, query: str, **given: object) -> set[int]:
    """The documents that hold a word of the query."""
    ((ranking, candidates),) = memory.candidates(unit(1, 9), [query], 3, **given)  # type: ignore[arg-type]
    return {int(i) for i, held in zip(ranking.ids, candidates.held, strict=True) if held.sum() > 0}


@pytest.mark.parametrize("query", FOUND)
def test_words_are_found_however_they_are_written(memory: Memory, query: str) -> None:
    assert holding(memory, query) == FOUND[query]


def test_what_is_asked_for_is_found_behind_many_nearer_documents(tmp_path: Path) -> None:
    memory = filled(tmp_path / "memory", [f"a boat number {i}" for i in range(300)] + ["a fox and a boat"])
    assert holding(memory, "a fox") == {300}
    assert holding(memory, "fox", where=lambda facts: facts.metadata["i"] != 300) == set()
    assert holding(memory, "fox", exclude_ids=[["300"]]) == set()


def test_changes_are_seen_at_once_and_by_all_who_read(tmp_path: Path) -> None:
    memory = filled(tmp_path / "memory", TEXTS)
    reader = Memory.open(memory.path)
    assert holding(reader, "walrus") == set()
    memory.add([Item("90", Document.of("a walrus"), {}, "test")], unit(1))
    memory.remove(["3"])
    assert holding(reader, "walrus") == holding(reader, "warlus") == {90}
    assert holding(reader, "fox") == {0}
    memory.compact()
    assert memory._store.snapshot.words_indexed == len(memory)
    assert (holding(reader, "walrus"), holding(reader, "fox")) == ({90}, {0})


def test_an_old_memory_has_no_index_and_gets_one_with_its_ids_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("write", "compact"):
        with monkeypatch.context() as before:
            before.setattr("racm3.memory.store.Store.index_words", lambda *_, **__: None)
            memory = filled(tmp_path / way, TEXTS)
        assert memory._store.snapshot.words_indexed is None
        ids = list(memory.ids)
        assert holding(Memory.open(memory.path), "foxes") == {0, 3}
        if way == "write":
            memory.add([Item("90", Document.of("a walrus"), {}, "test")], unit(1))
            ids.append("90")
        else:
            memory.compact()
        assert memory._store.snapshot.words_indexed is not None
        assert list(Memory.open(memory.path).ids) == ids
        assert holding(Memory.open(memory.path), "foxes") == {0, 3}


def test_a_term_says_what_it_stands_for_and_what_it_weighs(memory: Memory) -> None:
    index = WordIndex(memory._store.snapshot)
    terms = index.terms("please draw a polarbear and a piza on the glacier")
    assert [(term.given, term.word, term.phrase) for term in terms] == [
        ("polarbear", "polar", 0),
        ("polarbear", "bear", 0),
        ("piza", "pizza", 1),
        ("glacier", None, 2),
    ]
    assert all(term.weight > 0 for term in terms)
    assert [term.word for term in index.terms("photo of a camera")] == ["camera"]
    assert index.terms("") == []


def test_folding_and_the_singular() -> None:
    assert fold("CRÈME Straße") == "creme strasse"
    assert [singular(word) for word in "foxes berries wolves churches glass bus cats is".split()] == (
        "fox berry wolf church glass bus cat is".split()
    )
    assert tokens("up-right 🦊🐻 狐狸猫") == ["up", "right", "🦊", "🐻", "狐狸", "狸猫"]
    assert phrases("#red #fox: a cat's tail") == [["red"], ["fox"], ["cat", "s", "tail"]]
