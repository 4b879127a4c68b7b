from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item
from racm3.document import Document, Hole, Image
from racm3.errors import DocumentError, EncoderMismatchError, InputError, MemoryStoreError
from racm3.memory import search, storage, store
from racm3.memory.memory import Memory
from racm3.memory.metadata_filter import where

D = 8


def picture(seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8))


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def items(count: int, start: int = 0) -> list[Item]:
    return [
        Item(str(i), Document.of(f"caption {i}", picture(i)), {"n": i}, f"here/{i}")
        for i in range(start, start + count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def memory(path: Path) -> Memory:
    memory = Memory.create(path, "encoder-a", D)
    memory.add(items(30), unit(30))
    return memory


# Documents ---------------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were(path: Path) -> None:
    given_items = [
        Item("text", Document.of("只有文字"), {}, ""),
        Item("image", Document.of(picture(1)), {"a": [1, {"b": None}], "ü": "狐"}, "shard.tar#1"),
        Item("mixed", Document.of(picture(2), "0", picture(3), "two\nlines", "more", picture(2)), {}, "x"),
    ]
    Memory.create(path, "e", D).add(given_items, unit(3))
    memory = Memory.open(path)
    assert memory.get(["mixed", "text", "image", "text"]) == [given_items[i] for i in (2, 0, 1, 0)]
    assert memory.get([]) == []


def test_vectors_and_ids_are_in_row_order_over_several_adds(path: Path) -> None:
    memory = Memory.create(path, "e", D)
    assert (len(memory), memory.vectors.shape) == (0, (0, D))
    vectors = unit(30)
    for start in range(0, 30, 10):
        memory.add(items(10, start), vectors[start : start + 10])
    for seen in (memory, Memory.open(path)):
        assert len(seen) == 30
        assert list(seen.ids) == [str(i) for i in range(30)]
        np.testing.assert_array_equal(seen.vectors, vectors)
        assert [item.metadata["n"] for item in seen.get(["29", "0", "15"])] == [29, 0, 15]


def test_an_unknown_id_is_named(memory: Memory) -> None:
    with pytest.raises(MemoryStoreError, match="no document 'fox'"):
        memory.get(["1", "fox"])


# Search ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 7, 30, 99])
@pytest.mark.parametrize("at_once", [1, 100, search.SCORES_AT_ONCE])
def test_search_equals_brute_force(memory: Memory, monkeypatch: pytest.MonkeyPatch, k: int, at_once: int) -> None:
    monkeypatch.setattr(search, "SCORES_AT_ONCE", at_once)
    queries = unit(9, seed=1)
    excluded = [{str(i), "0", "not here"} for i in range(9)]
    found = memory.search(queries, k, exclude_ids=excluded)
    for query, exclude, ranking in zip(queries, excluded, found, strict=True):
        scores = {row: float(query @ vector) for row, vector in enumerate(unit(30)) if str(row) not in exclude}
        expected = sorted(scores, key=lambda row: (-scores[row], row))[:k]
        assert ranking.ids == [str(row) for row in expected]
        np.testing.assert_allclose(ranking.scores, [scores[row] for row in expected], atol=1e-6)
        np.testing.assert_array_equal(ranking.vectors, unit(30)[expected])


def test_search_of_an_empty_memory_finds_nothing(path: Path) -> None:
    assert [ranking.ids for ranking in Memory.create(path, "e", D).search(unit(2), 3)] == [[], []]


def test_conditions_hold_however_few_fulfil_them(path: Path) -> None:
    """29 of 1,000: most rankings have to be walked far down."""
    memory = Memory.create(path, "e", D)
    kinds = [{"kind": "rare" if i % 35 == 7 else "common"} for i in range(1000)]
    memory.add([Item(str(i), Document.of("x"), kind, "") for i, kind in enumerate(kinds)], unit(1000))
    queries = unit(5, seed=1)
    for query, ranking in zip(queries, memory.search(queries, 4, [{"7"}] * 5, where(["kind=rare"])), strict=True):
        rows = [row for row in np.argsort(-unit(1000) @ query) if row % 35 == 7 and row != 7][:4]
        assert ranking.ids == [str(row) for row in rows]
    assert memory.search(queries[:1], 4, where=where(["kind=unknown"]))[0].ids == []


@pytest.mark.parametrize(
    ("queries", "exclude", "message"),
    [
        (np.zeros((2, D + 1), np.float32), None, r"vectors are \(count, 8\)"),
        (np.zeros(D, np.float32), None, r"vectors are \(count, 8\)"),
        (unit(2), [{"1"}], "one collection of ids"),
        (unit(2), ["12", "3"], "one collection of ids"),
    ],
)
def test_search_refuses_what_does_not_fit(memory: Memory, queries: np.ndarray, exclude: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        memory.search(queries, 2, exclude_ids=exclude)  # type: ignore[arg-type]


# Errors ------------------------------------------------------------------------------------------------------------


def test_duplicate_ids_are_refused_and_nothing_is_added(memory: Memory) -> None:
    with pytest.raises(MemoryStoreError, match="'3' is already in the memory"):
        memory.add([*items(1, 50), *items(1, 3)], unit(2))
    with pytest.raises(MemoryStoreError, match="'50' is given twice"):
        memory.add(items(1, 50) * 2, unit(2))
    assert len(memory) == len(Memory.open(memory.path)) == 30


def test_add_refuses_what_does_not_fit(memory: Memory) -> None:
    with pytest.raises(InputError, match="1 items came with 2 vectors"):
        memory.add(items(1, 50), unit(2))
    with pytest.raises(InputError, match="unit norm"):
        memory.add(items(1, 50), unit(1) * 2)
    with pytest.raises(InputError, match="unit norm"):
        memory.add(items(1, 50), unit(1) * np.nan)
    for hole in (Hole("text"), Image(picture().pixels, np.ones((6, 5), bool))):
        with pytest.raises(DocumentError, match="has holes"):
            memory.add([Item("50", Document.of("x", hole), {}, "")], unit(1))
    with pytest.raises(DocumentError, match="metadata of '50'"):
        memory.add([Item("50", Document.of("x"), {"when": object()}, "")], unit(1))
    assert len(memory) == len(Memory.open(memory.path)) == 30


def test_a_memory_refuses_another_encoder(memory: Memory) -> None:
    assert Memory.open(memory.path, "encoder-a").encoder_fingerprint == "encoder-a"
    with pytest.raises(EncoderMismatchError, match="encoder-a, but encoder encoder-b is given; open it with"):
        Memory.open(memory.path, "encoder-b")


def test_open_and_create_say_what_is_wrong(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(MemoryStoreError, match="does not exist"):
        Memory.open(tmp_path / "nowhere")
    with pytest.raises(MemoryStoreError, match="is no memory"):
        Memory.open(tmp_path)
    with pytest.raises(MemoryStoreError, match="already something"):
        Memory.create(memory.path, "e", D)
    for manifest in (memory.path / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"torn")
    with pytest.raises(MemoryStoreError, match="is damaged"):
        Memory.open(memory.path)


def test_a_table_of_another_program_is_no_memory(tmp_path: Path) -> None:
    lance, pa = pytest.importorskip("lance"), pytest.importorskip("pyarrow")
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other"))
    with pytest.raises(MemoryStoreError, match="format None, but this version reads format 1"):
        Memory.open(tmp_path / "other")


# Several processes -------------------------------------------------------------------------------------------------

WRITER = """
import sys, numpy as np
from racm3.document import Document
from racm3.memory.memory import Memory
from racm3.data import Item
path, name = sys.argv[1:]
memory = Memory.open(path)
for i in range(5):
    vector = np.zeros((1, memory.dimension), np.float32); vector[0, i] = 1
    memory.add([Item(f"{name}{i}", Document.of(name), {}, "")], vector)
    print(i, flush=True)
"""


def test_others_see_what_was_added_at_their_next_search_and_writers_take_turns(memory: Memory) -> None:
    reader = Memory.open(memory.path)
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2])}
    command = [sys.executable, "-c", WRITER, str(memory.path)]
    writers = [subprocess.Popen([*command, name], env=environment, stdout=subprocess.DEVNULL) for name in "ab"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    axis = np.eye(1, D, dtype=np.float32)
    assert set(reader.search(axis, 2)[0].ids) == {"a0", "b0"}
    assert len(reader) == len(set(reader.ids)) == 40
    with pytest.raises(MemoryStoreError, match="'a0' is already"):
        memory.add([Item("a0", Document.of("x"), {}, "")], axis)


def test_a_second_writer_waits_then_says_so(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LOCK_WAIT_S", 0.05)
    with memory.writing(), pytest.raises(MemoryStoreError, match="another process is writing"):
        Memory.open(memory.path).add(items(1, 50), unit(1))
    Memory.open(memory.path).add(items(1, 50), unit(1))


def test_an_add_is_flushed_before_it_returns(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file for file in memory.path.rglob("*") if file.is_file()}
    flushed: list[Path] = []
    monkeypatch.setattr(storage, "_fsync", lambda *paths: flushed.extend(paths))
    memory.add(items(1, 50), unit(1))
    new = {file for file in memory.path.rglob("*") if file.is_file()} - before
    written = {file for file in new if file.suffix in (".lance", ".manifest")}
    assert len(written) == 2
    assert written <= set(flushed)
    assert {memory.path / "data", memory.path / "_versions"} <= set(flushed)
    assert [path.suffix for path in flushed if path in written] == [".lance", ".manifest"]


# Being made --------------------------------------------------------------------------------------------------------


def test_a_memory_whose_making_was_broken_off_is_gone_on_with(path: Path) -> None:
    begun = Memory.create_or_resume(path, "encoder-a", D)
    begun.add(items(3), unit(3))
    again = Memory.create_or_resume(path, "encoder-a", D)
    assert again.unfinished
    assert len(again) == 3
    with pytest.raises(EncoderMismatchError):
        Memory.create_or_resume(path, "encoder-b", D)
    again.discard()  # it is not empty: it stays
    again.finish()
    again.finish()
    assert not Memory.open(path).unfinished
    with pytest.raises(MemoryStoreError, match="is there already, with 3 documents; add to it with `racm3 memory add`"):
        Memory.create_or_resume(path, "encoder-a", D)


def test_what_was_killed_at_once_does_not_block_the_next_try(path: Path) -> None:
    (path / "_versions").mkdir(parents=True)
    (path / "data").mkdir()
    assert Memory.create_or_resume(path, "encoder-a", D).unfinished
    (path.parent / "other").mkdir()
    (path.parent / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(MemoryStoreError, match="already something"):
        Memory.create_or_resume(path.parent / "other", "encoder-a", D)
    Memory.create(path.parent / "plain", "encoder-a", D)  # as it was before it could be marked
    assert len(Memory.create_or_resume(path.parent / "plain", "encoder-a", D)) == 0


def test_an_unfinished_memory_without_a_document_can_be_discarded(path: Path) -> None:
    Memory.create_or_resume(path, "encoder-a", D).discard()
    assert not path.exists()
    finished = Memory.create_or_resume(path, "encoder-a", D)
    finished.finish()
    finished.discard()
    assert len(Memory.open(path)) == 0


def test_what_another_writer_has_added_meanwhile_is_passed_over(memory: Memory) -> None:
    other = Memory.open(memory.path)
    assert memory.unlike(items(5, 30)) == items(5, 30)
    other.add(items(3, 30), unit(3))
    assert memory.add_missing(items(5, 30), unit(5)) == 2
    assert memory.add_missing([], unit(0)) == 0
    with pytest.raises(MemoryStoreError, match="'31' is already in the memory"):
        memory.add_missing([Item("31", Document.of("other"), {}, "")], unit(1))
    assert len(Memory.open(memory.path)) == 35
