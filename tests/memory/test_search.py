"""The index against exact search: the same documents but for a few, the same scores, the same rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item
from racm3.document import Document
from racm3.errors import InputError, MemoryStoreError
from racm3.memory import memory as module
from racm3.memory import search
from racm3.memory.memory import Memory
from racm3.memory.metadata_filter import where
from racm3.memory.search import Exact, Indexed
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Retriever
from tests.retriever.conftest import encoder  # noqa: F401
from tests.retriever.test_strategy import clustered

N, D = 600, 16
VECTORS = clustered(N, clusters=40, dimension=D)
QUERIES = clustered(30, clusters=40, dimension=D, seed=1)


def items(rows: range) -> list[Item]:
    return [Item(f"d{row}", Document.of(f"document {row}"), {"even": row % 2 == 0}, "") for row in rows]


def made(path: Path) -> Memory:
    memory = Memory.create(path, "e", D)
    for start in range(0, N, 200):
        memory.add(items(range(start, start + 200)), VECTORS[start : start + 200])
    return memory


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory with an index, for reading."""
    path = tmp_path_factory.mktemp("indexed") / "memory"
    assert made(path).index() > 0.9
    return path


def test_the_index_finds_nearly_what_exact_search_finds(indexed: Path) -> None:
    exact, by_index = Memory.open(indexed, search="exact"), Memory.open(indexed, search="index")
    assert isinstance(exact._view.engine, Exact)
    assert isinstance(by_index._view.engine, Indexed)
    shared = 0
    for query, true, found in zip(QUERIES, exact.search(QUERIES, 10), by_index.search(QUERIES, 10), strict=True):
        shared += len(set(true.ids) & set(found.ids))
        assert list(found.scores) == sorted(found.scores, reverse=True)
        np.testing.assert_allclose(found.scores, found.vectors @ query, atol=1e-6)  # of the whole vector, not of 8 bits
        np.testing.assert_array_equal(found.vectors, VECTORS[[int(i[1:]) for i in found.ids]])
    assert shared >= 0.95 * 10 * len(QUERIES)
    rows = range(7, N, 200)
    assert exact.get([f"d{row}" for row in rows]) == by_index.get([f"d{row}" for row in rows]) == items(rows)


def test_searches_are_silent(indexed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Memory.open(indexed, search="index").search(QUERIES, 10)
    assert capfd.readouterr() == ("", "")


def test_a_long_ranking_is_exact(indexed: Path) -> None:
    exact, by_index = Memory.open(indexed, search="exact"), Memory.open(indexed, search="index")
    for true, found in zip(exact.search(QUERIES, 300), by_index.search(QUERIES, 300), strict=True):
        assert found.ids == true.ids
        np.testing.assert_array_equal(found.vectors, true.vectors)


def test_exclusion_and_conditions_hold_on_the_index(indexed: Path) -> None:
    for kind in ("exact", "index"):
        memory = Memory.open(indexed, search=kind)  # type: ignore[arg-type]
        best = [set(ranking.ids[:3]) for ranking in memory.search(QUERIES, 3)]
        for excluded, ranking in zip(best, memory.search(QUERIES, 5, best, where(["even=true"])), strict=True):
            assert len(ranking) == 5
            assert not excluded & set(ranking.ids)
            assert all(int(i[1:]) % 2 == 0 for i in ranking.ids)


def test_the_index_follows_every_change(tmp_path: Path) -> None:
    memory = made(tmp_path / "m")
    memory.index()
    reader = Memory.open(memory.path, search="index")
    new = clustered(1, 1, D, seed=9)
    memory.add([Item("new", Document.of("x"), {}, "")], new)
    assert reader.search(new, 1)[0].ids == ["new"]
    nearest = reader.search(VECTORS[:1], 1)[0].ids
    memory.remove(nearest)
    assert not set(nearest) & set(reader.search(VECTORS[:1], 5)[0].ids)
    true = [set(ranking.ids) for ranking in Memory.open(memory.path, search="exact").search(QUERIES, 10)]
    memory.compact()  # every address changes
    found = [set(ranking.ids) for ranking in reader.search(QUERIES, 10)]
    assert sum(len(f & t) for f, t in zip(found, true, strict=True)) >= 0.95 * 10 * len(QUERIES)
    assert memory.index() > 0.9
    assert Memory.open(memory.path).info().indexed == N


def test_the_index_is_chosen_and_made_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", N - 1)
    memory = made(tmp_path / "m")
    assert isinstance(memory._view.engine, Exact)  # there is none yet
    memory.tidy()
    info = memory.info()
    assert (info.indexed, info.documents) == (N, N)
    assert info.recall_at_10 is not None
    assert info.recall_at_10 > 0.9
    for opened in (memory, Memory.open(memory.path)):
        assert isinstance(opened._view.engine, Indexed)
    memory.remove(["d1", "d2"])
    assert isinstance(memory._view.engine, Exact)


def test_an_index_that_is_not_there_is_not_asked(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", "e", D)
    with pytest.raises(MemoryStoreError, match="has no index; make one with `racm3 memory index`"):
        Memory.open(memory.path, search="index")
    with pytest.raises(MemoryStoreError, match="holds 0 documents, and an index is made of 256"):
        memory.index()
    with pytest.raises(InputError, match="unknown search 'hnsw'"):
        Memory.open(memory.path, search="hnsw")  # type: ignore[arg-type]


def test_the_self_check_tells_a_bad_index(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Memory.open(indexed)._store.snapshot
    assert search.recall(snapshot) > 0.9
    monkeypatch.setattr(Indexed, "_ask", lambda self, query, k: self.nearest(-query[None], N)[0].at(range(k)))
    assert search.recall(snapshot) < 0.1


@pytest.mark.parametrize("modality", ["text", "image", None])
def test_the_strategy_is_the_same_on_either(
    encoder: Encoder,  # noqa: F811
    tmp_path: Path,
    modality: str | None,
) -> None:
    from tests.retriever.test_retriever import DOCUMENTS, QUERIES

    memory = Memory.create(tmp_path / "m", encoder.fingerprint, encoder.dimension)
    documents = [*DOCUMENTS, *(Document.of(f"a castle, {i} of them", *DOCUMENTS[3 * i].images) for i in range(40))]
    documents += [Document.of(f"number {i}") for i in range(100)]
    stored = [Item(f"d{i}", document, {"i": i}, "") for i, document in enumerate(documents)]
    memory.add(stored, encoder.embed(documents))
    memory.index()
    found = [
        [
            (hit.id, round(hit.score, 5), hit.document)
            for hits in Retriever(Memory.open(memory.path, search=kind), encoder).retrieve(  # type: ignore[arg-type]
                QUERIES,
                k=3,
                exclude=[{"d9"}] * 4,
                where=where(["i!=21"]),
                modality=modality,  # type: ignore[arg-type]
            )
            for hit in hits
        ]
        for kind in ("exact", "index")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 12
    for item_id, _, document in found[0]:
        assert item_id not in ("d9", "d21")
        if modality:
            assert document == documents[int(item_id[1:])].only(modality)  # type: ignore[arg-type]
