from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from racm3.data import Item
from racm3.document import Document
from racm3.errors import ConfigError, InputError
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.retriever import corpus_neighbours as module
from racm3.retriever import strategy
from racm3.retriever.choosing import strategy_for
from racm3.retriever.corpus_neighbours import (
    copied,
    document_neighbours,
    draw_queries,
    memory_neighbours,
    neighbours,
)
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Retriever
from racm3.retriever.strategy import Relevance, RelevanceRedundancy, Strategy
from racm3.scenes.world import World
from racm3.training.encoder_recipe import copies
from tests.retriever.conftest import picture
from tests.retriever.test_strategy import clustered


def slow_neighbours(
    queries: np.ndarray,
    vectors: np.ndarray,
    k: int,
    chosen_by: Strategy,
    exclude_rows: np.ndarray,
    copies: float = 2.0,
) -> np.ndarray:
    """Walk down every full ranking, one query at a time."""
    out = np.full((len(queries), k), -1)
    for i, query in enumerate(queries):
        scores = vectors @ query
        own = exclude_rows[i]
        ranking = [
            row
            for row in np.argsort(-scores, kind="stable")
            if row != own and (own < 0 or vectors[row] @ vectors[own] <= copies)
        ]
        taken = chosen_by.select(scores[ranking], vectors[ranking], k)
        out[i, : len(taken)] = np.array(ranking)[taken]
    return out


@pytest.mark.parametrize("count", [1, 3, 64, 700])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("threshold", [0.3, 0.9, 1.1])
def test_neighbours_equal_the_slow_twin(monkeypatch: pytest.MonkeyPatch, count: int, k: int, threshold: float) -> None:
    """Also past the first candidates: at 0.3, whole clusters are redundant and 64 candidates do not suffice."""
    monkeypatch.setitem(module.QUERIES_AT_ONCE, "cpu", 50)  # several blocks, the last ones ragged
    monkeypatch.setattr(module, "TABLE_AT_ONCE", 300)
    vectors = clustered(count, clusters=6)
    queries = np.concatenate([vectors[:70], clustered(60, 6, seed=1)])
    exclude = np.where(np.arange(len(queries)) < 70, np.arange(len(queries)), -1)
    exclude[exclude >= count] = -1
    chosen_by = RelevanceRedundancy(threshold)
    for above in (2.0, 0.8):  # copies of the main document
        found = neighbours(queries, vectors, k, chosen_by, exclude, copies=above)
        np.testing.assert_array_equal(found, slow_neighbours(queries, vectors, k, chosen_by, exclude, above))


def test_some_queries_need_more_than_the_first_candidates() -> None:
    """The case above is only worth something if it happens."""
    vectors = clustered(700, clusters=6)
    ranking = np.argsort(-vectors @ vectors[0])[: strategy.CANDIDATES]
    different = RelevanceRedundancy(0.3)
    first = different.select((vectors @ vectors[0])[ranking], vectors[ranking], 5)
    assert len(first) < 5
    assert (neighbours(vectors[:1], vectors, 5, different)[0] >= 0).sum() > len(first)


def test_equal_documents_go_by_row() -> None:
    vectors = np.repeat(clustered(5, 5), 4, axis=0)
    found = neighbours(vectors, vectors, 2, RelevanceRedundancy(0.99))
    assert (found % 4 == 0).all()  # of every four equal ones, the first


def test_nobody_to_be_a_neighbour() -> None:
    one = clustered(1, 1)
    assert neighbours(one, one[:0], 2, RelevanceRedundancy(0.9)).tolist() == [[-1, -1]]
    assert neighbours(one, one, 2, RelevanceRedundancy(1.1), np.array([0])).tolist() == [[-1, -1]]
    assert neighbours(one[:0], one, 2, RelevanceRedundancy(0.9)).shape == (0, 2)


@pytest.mark.parametrize(("count", "width"), [(3, 400), (7, 333), (1, 16), (20, 100)])
def test_the_largest_scores_are_among_the_promising_columns(count: int, width: int) -> None:
    scores = torch.rand(50, width, generator=torch.Generator().manual_seed(width))
    columns = module._promising(scores, count)
    assert torch.equal(scores.gather(1, columns).topk(count).values, scores.topk(count).values)
    assert all(len(set(row)) == len(row) for row in columns.tolist())


# Of a memory -------------------------------------------------------------------------------------------------------

DOCUMENTS = [
    Document.of(*parts)
    for i in range(12)
    for parts in ([f"fox number {i}", picture(i)], [f"a boat, {i} of them"], [picture(100 + i)])
]
IDS = [f"d{i}" for i in range(len(DOCUMENTS))]


@pytest.fixture
def memory(encoder: Encoder, tmp_path: Path) -> Memory:
    memory = Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)
    memory.add([Item(i, d, {}, "") for i, d in zip(IDS, DOCUMENTS, strict=True)], encoder.embed(DOCUMENTS))
    return memory


def written(folder: Path) -> list[dict[str, object]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_a_memory_s_neighbours_are_those_of_its_documents(
    memory: Memory, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 16)
    monkeypatch.setattr(module, "EMBEDDED_AT_ONCE", 6)
    done: list[int] = []
    memory_neighbours(memory, encoder, tmp_path / "out", k=3, dropouts=(0.0, 0.5), report=done.append)
    rows = written(tmp_path / "out")
    assert [(row["id"], row["query"], row["dropout"]) for row in rows] == [
        (i, query, dropout) for i in IDS for dropout in (0.0, 0.5) for query in ("text", "image")
    ]
    assert done == [6, 12, 16, 22, 28, 32, 36]
    queries = draw_queries(DOCUMENTS, encoder, (0.0,), np.random.default_rng(0)).reshape(-1, encoder.dimension)
    own = np.repeat(np.arange(len(IDS)), 2)
    vectors = encoder.embed(DOCUMENTS)
    expected = slow_neighbours(queries, vectors, 3, strategy_for(encoder), own, encoder.copy_threshold)
    assert [row["neighbours"] for row in rows if row["dropout"] == 0] == [
        [IDS[row] for row in found if row >= 0] for found in expected
    ]
    dropped, whole = ([row["neighbours"] for row in rows if row["dropout"] == d] for d in (0.5, 0.0))
    assert dropped != whole


def test_a_broken_run_goes_on_and_other_settings_are_refused(
    memory: Memory, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 10)

    def breaks(done: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    memory_neighbours(memory, encoder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        memory_neighbours(memory, encoder, tmp_path / "broken", report=breaks)
    assert 0 < len(written(tmp_path / "broken")) < len(written(tmp_path / "whole"))
    again: list[int] = []
    memory_neighbours(memory, encoder, tmp_path / "broken", report=again.append)
    assert again == [30, 36]
    assert written(tmp_path / "broken") == written(tmp_path / "whole")
    with pytest.raises(InputError, match="with other k; give a new folder"):
        memory_neighbours(memory, encoder, tmp_path / "whole", k=1)
    with pytest.raises(InputError, match="with other strategy; give a new folder"):
        memory_neighbours(memory, encoder, tmp_path / "whole", strategy=Relevance())


THEIRS = """
from dataclasses import dataclass


@dataclass(frozen=True)
class EverySecond:
    threshold: float
    fingerprint: str = "every second"

    def select(self, scores, vectors, k):
        return list(range(1, len(scores), 2))[:k]
"""


def test_a_strategy_of_another_package(
    memory: Memory, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inference and the search over the corpus choose alike, and as it says."""
    (tmp_path / "their_strategy.py").write_text(THEIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    theirs = strategy_for(encoder, "their_strategy:EverySecond")
    monkeypatch.setattr(encoder, "copy_threshold", 2.0)  # a retriever knows of no main document
    vectors = encoder.embed(DOCUMENTS)
    for k in (3, 30):  # of which the first candidates are too few
        monkeypatch.setattr(module, "CANDIDATES", 8)
        found = neighbours(vectors, vectors, k, theirs, np.arange(len(vectors)))
        np.testing.assert_array_equal(found, slow_neighbours(vectors, vectors, k, theirs, np.arange(len(vectors))))
    memory_neighbours(memory, encoder, tmp_path / "out", k=2, dropouts=(0.0,), strategy=theirs)
    rows = written(tmp_path / "out")
    asked = [part for d in DOCUMENTS for part in (d.only("text") or d.only("image"), d.only("image") or d.only("text"))]
    hits = Retriever(memory, encoder, theirs).retrieve(
        [part for part in asked if part], 2, exclude=[{str(row["id"])} for row in rows]
    )
    assert [row["neighbours"] for row in rows] == [[hit.id for hit in own] for own in hits]
    with pytest.raises(ConfigError, match="retrieval strategy 'their_strategy:Other' cannot be imported"):
        strategy_for(encoder, "their_strategy:Other")


def test_plain_relevance_keeps_what_is_redundant(encoder: Encoder) -> None:
    vectors = clustered(100, clusters=3)
    ranking = np.argsort(-vectors @ vectors[0])
    plain = strategy_for(encoder, "relevance")
    assert neighbours(vectors[:1], vectors, 4, plain).tolist() == [ranking[:4].tolist()]
    assert neighbours(vectors[:1], vectors, 4, strategy_for(encoder)).tolist() != [ranking[:4].tolist()]


def test_no_copy_of_the_main_document_is_retrieved_for_it() -> None:
    """Exact, as JPEG, resized, brightened: of a part of the document they are less like it than the threshold."""
    encoder = ModelFolder().encoder()
    items = list(World().items("memory"))[:120]
    main = [item.document for item in items]
    made = [Document.of(d.text or "", copy) for d in main[:30] for copy in (d.images[0], *copies(d.images[0].pixels))]
    vectors = encoder.embed([*main, *made])
    queries = draw_queries(main, encoder, (0.0,), np.random.default_rng(0))
    of = np.concatenate([np.full(len(main), -1), np.repeat(np.arange(30), 4)])  # whose copy a row is

    def copied_in(found: np.ndarray) -> int:
        return sum(of[row] == number for number, rows in enumerate(found.reshape(len(main), -1)) for row in rows)

    chosen_by = strategy_for(encoder)
    unaware = document_neighbours(queries, vectors, 0, 2, chosen_by)
    aware = document_neighbours(queries, vectors, 0, 2, chosen_by, copies=encoder.copy_threshold)
    assert copied_in(unaware) > 30
    assert copied_in(aware) == 0
    assert (aware >= 0).all()  # other pictures of the same things are no copies
    twins = copied(encoder.embed(main), encoder.copy_threshold)  # the same scene of two things that look the same
    assert twins <= 0.05 * len(main)
    assert 30 * 5 <= copied(vectors, encoder.copy_threshold) <= 30 * 5 + twins
