from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item
from racm3.document import Document, Hole, Part
from racm3.errors import DocumentError, EncoderMismatchError, InputError
from racm3.memory.memory import Memory
from racm3.retriever import retriever as module
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Retriever
from racm3.retriever.strategy import RelevanceRedundancy
from tests.retriever.conftest import picture

DOCUMENTS = [
    Document.of(*parts)
    for i in range(40)
    for parts in ([f"fox number {i}", picture(i)], [f"a boat, {i} of them"], [picture(100 + i)])
]
QUERIES = [
    Document.of("fox number 3"),
    Document.of(picture(7)),
    Document.of("fox number 5", picture(5)),
    Document.of(Hole("image"), "a boat at night"),
]


@pytest.fixture
def memory(encoder: Encoder, tmp_path: Path) -> Memory:
    memory = Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)
    items = [Item(f"d{i}", document, {"i": i}, f"file{i}") for i, document in enumerate(DOCUMENTS)]
    memory.add(items, encoder.embed(DOCUMENTS))
    return memory


def brute_force(encoder: Encoder, query: Document, k: int, threshold: float, exclude: set[str]) -> list[str]:
    """Embed everything, rank everything, walk down."""
    rows = [i for i in range(len(DOCUMENTS)) if f"d{i}" not in exclude]
    vectors = encoder.embed([DOCUMENTS[i] for i in rows])
    scores = vectors @ encoder.embed([query])[0]
    ranking = np.argsort(-scores, kind="stable")
    return [f"d{rows[ranking[p]]}" for p in RelevanceRedundancy(threshold).select(scores[ranking], vectors[ranking], k)]


@pytest.mark.parametrize("threshold", [0.7, 0.95, 1.1])
@pytest.mark.parametrize("candidates", [2, 64])
def test_text_picture_and_mixed_queries_equal_brute_force(
    memory: Memory, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, threshold: float, candidates: int
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", candidates)  # 2: most queries have to look further down
    exclude = [{"d9"}, {"d21"}, set[str](), {"nothing"}]
    found = Retriever(memory, encoder, RelevanceRedundancy(threshold)).retrieve(QUERIES, k=3, exclude=exclude)
    for query, hits, excluded in zip(QUERIES, found, exclude, strict=True):
        assert [hit.id for hit in hits] == brute_force(encoder, query, 3, threshold, excluded)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_hit_says_what_it_is_and_where_from(memory: Memory, encoder: Encoder) -> None:
    (hits,) = Retriever(memory, encoder, RelevanceRedundancy(1.1)).retrieve([DOCUMENTS[30]])
    assert len(hits) == 2
    assert (hits[0].id, hits[0].document, hits[0].metadata, hits[0].origin) == (
        "d30",
        DOCUMENTS[30],
        {"i": 30},
        "file30",
    )
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_the_query_itself_is_redundant(memory: Memory, encoder: Encoder) -> None:
    retriever = Retriever(memory, encoder)
    assert retriever.strategy == RelevanceRedundancy(encoder.redundancy_threshold) == RelevanceRedundancy(0.95)
    assert "d30" not in [hit.id for hit in retriever.retrieve([DOCUMENTS[30]], k=5)[0]]


def test_a_small_memory_gives_fewer(encoder: Encoder, tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", encoder.fingerprint, encoder.dimension)
    retriever = Retriever(memory, encoder, RelevanceRedundancy(1.1))
    assert retriever.retrieve(QUERIES) == [[]] * 4
    memory.add([Item("only", Document.of("a fox"), {}, "")], encoder.embed([Document.of("a fox")]))
    parts: list[Part] = [*DOCUMENTS[0].parts]
    assert [hit.id for hit in retriever.retrieve([Document.of(*parts)])[0]] == ["only"]
    assert retriever.retrieve([]) == []


def test_errors(memory: Memory, encoder: Encoder, tmp_path: Path) -> None:
    other = Memory.create(tmp_path / "other", "another encoder", encoder.dimension)
    with pytest.raises(EncoderMismatchError, match="another encoder"):
        Retriever(other, encoder)
    with pytest.raises(DocumentError, match="holes only"):
        Retriever(memory, encoder).retrieve([Document.of(Hole("text"))])
    with pytest.raises(InputError, match="one collection of ids"):
        Retriever(memory, encoder).retrieve(QUERIES, exclude=[{"d1"}])
