"""Search: the documents whose vectors are nearest to a query's, among all of a memory.

`Exact` holds all vectors in memory. `Indexed` asks an index on disk, which finds nearly all of the nearest, and is for
memories too large to hold. Both give exact scores, and the same ranking where they find the same.

Letters: B batch, D dimension, K hits, N documents.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from racm3.memory.snapshot import Key, Snapshot, key_of
from racm3.memory.words import WordIndex

__all__ = ["Exact", "Indexed", "Ranking", "View", "recall"]

SCORES_AT_ONCE = 32_000_000
"""Scores held at once in a search, 128 MB of float32: bounds memory, and is far more than a fast matmul needs."""
PROBES = 20
"""Parts of the index that are looked through, of as many as the root of the documents."""
REFINED = 100
"""Candidates whose whole vectors are read and compared again (measured at a million documents: they hold .984 of the
nearest ten, 50 hold .960; with codes of half the size, 100 hold .914 and 400 are needed for .974)."""
DEPTH = 10
"""Beyond one document in so many, an index is slower than reading every vector."""
SELF_CHECK = 200
"""Queries of the self-check: its standard error is below a point."""


@dataclass(frozen=True)
class Ranking:
    """The documents nearest to one query, best first. Equal scores go by address."""

    addresses: np.ndarray  # (K,) int64
    ids: list[str]
    scores: np.ndarray  # (K,) float32, cosines
    vectors: np.ndarray  # (K, D) float32, unit norm

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, positions: Sequence[int] | np.ndarray) -> Ranking:
        """The ranking of those ``positions`` only."""
        chosen = np.asarray(positions, np.int64)
        ids = [self.ids[position] for position in chosen]
        return Ranking(self.addresses[chosen], ids, self.scores[chosen], self.vectors[chosen])

    def joined(self, other: Ranking) -> Ranking:
        """This ranking, and the ``other`` one behind it."""
        return Ranking(
            np.concatenate([self.addresses, other.addresses]),
            [*self.ids, *other.ids],
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.vectors, other.vectors]),
        )


@dataclass(frozen=True)
class Block:
    """The rows of one fragment."""

    addresses: np.ndarray  # (N,) int64
    ids: list[str]
    vectors: np.ndarray  # (N, D) float32


class Exact:
    """All vectors of a snapshot in memory, a block a fragment. Blocks ``known`` of another one are not read again."""

    def __init__(self, snapshot: Snapshot, known: Mapping[Key, Block]) -> None:
        fragments = {key_of(fragment): fragment for fragment in snapshot.fragments}
        self.blocks = {key: known.get(key) or Block(*snapshot.vectors(part)) for key, part in fragments.items()}
        self._dimension = snapshot.about.dimension
        self._address_of: dict[str, int] | None = None

    def find(self, ids: Collection[str]) -> dict[str, int]:
        """Addresses of those ``ids`` that are here."""
        known = self._address_of
        if known is None:
            blocks = self.blocks.values()
            known = {i: a for b in blocks for i, a in zip(b.ids, b.addresses.tolist(), strict=True)}
            self._address_of = known
        return {item_id: known[item_id] for item_id in ids if item_id in known}

    def nearest(self, queries: np.ndarray, k: int) -> list[Ranking]:
        """The ``k`` nearest to each of ``queries`` (B, D)."""
        return [self._ranking(*best) for best in _nearest(self.blocks.values(), queries, k)]

    def at(self, addresses: np.ndarray, query: np.ndarray) -> Ranking:
        """The documents at ``addresses`` with their scores for a query (D,), in that order."""
        return _scored(self._ranking(addresses, np.zeros(0, np.float32)), query)

    def _ranking(self, addresses: np.ndarray, scores: np.ndarray) -> Ranking:
        ids, vectors = [""] * len(addresses), np.empty((len(addresses), self._dimension), np.float32)
        for key, block in self.blocks.items():
            (here,) = np.nonzero(addresses >> 32 == key[0])
            rows = np.searchsorted(block.addresses, addresses[here])
            vectors[here] = block.vectors[rows]
            for position, row in zip(here, rows, strict=True):
                ids[position] = block.ids[row]
        return Ranking(addresses, ids, scores, vectors)


class Indexed:
    """Lance's index on disk (product codes, 1/16 of the vectors); rows that it does not hold yet are scanned."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def find(self, ids: Collection[str]) -> dict[str, int]:
        """Addresses of those ``ids`` that are here."""
        return {item_id: row["_rowaddr"] for item_id, row in self._snapshot.find(ids).items()}

    def nearest(self, queries: np.ndarray, k: int) -> list[Ranking]:
        """The ``k`` nearest to each of ``queries`` (B, D), but for those that the index misses."""
        if k * DEPTH > self._snapshot.rows:
            return [self._ranking(*best) for best in _nearest(_blocks(self._snapshot), queries, k)]
        return [self._ask(query, k) for query in queries]

    def at(self, addresses: np.ndarray, query: np.ndarray) -> Ranking:
        """The documents at ``addresses`` with their scores for a query (D,), in that order."""
        return _scored(self._ranking(addresses, np.zeros(0, np.float32)), query)

    def _ranking(self, addresses: np.ndarray, scores: np.ndarray) -> Ranking:
        about = self._snapshot.about
        rows = self._snapshot.take(addresses, ["id", about.column, about.checksum])
        vectors = np.array([row[about.column] for row in rows], np.float32).reshape(len(rows), -1)
        ids = [row["id"] for row in rows]
        if about.checksum in self._snapshot.columns:
            self._snapshot.check_vectors(ids, vectors, [row[about.checksum] for row in rows])
        return Ranking(addresses, ids, scores, vectors)

    def _ask(self, query: np.ndarray, k: int) -> Ranking:
        column, checksum = self._snapshot.about.column, self._snapshot.about.checksum
        refine = max(4, -(-REFINED // k))
        nearest = {"column": column, "q": query, "k": k, "nprobes": PROBES, "refine_factor": refine}
        covered = [checksum] if checksum in self._snapshot.columns else []
        # Scores are made of the vectors; Lance warns, search after search, where its own distance is not asked for.
        columns = ["id", column, *covered, "_distance"]
        found = self._snapshot.table.to_table(columns=columns, nearest=nearest, with_row_address=True)
        ids, vectors = found["id"].to_pylist(), _matrix(found[column])
        if covered:
            self._snapshot.check_vectors(ids, vectors, found[checksum].to_pylist())
        addresses, scores = found["_rowaddr"].to_numpy().astype(np.int64), vectors @ query
        return Ranking(addresses, ids, scores, vectors).at(np.lexsort((addresses, -scores)))


def _scored(ranking: Ranking, query: np.ndarray) -> Ranking:
    return Ranking(ranking.addresses, ranking.ids, ranking.vectors @ query, ranking.vectors)


class View:
    """One version, and what searches it, made when it is first asked for: threads may share it."""

    def __init__(self, snapshot: Snapshot, by_index: bool, known: Mapping[Key, Block]) -> None:
        self.snapshot = snapshot
        self._by_index, self._known = by_index, known
        self._lock = threading.Lock()
        self._engine: Exact | Indexed | None = None
        self._ids: list[str] | None = None
        self.words = WordIndex(snapshot)

    @property
    def engine(self) -> Exact | Indexed:
        """What searches; an exact one reads all vectors that are not known from the version before."""
        with self._lock:
            if self._engine is None:
                self._engine = Indexed(self.snapshot) if self._by_index else Exact(self.snapshot, self._known)
                self._known = {}
            return self._engine

    @property
    def known(self) -> Mapping[Key, Block]:
        """The vectors that have been read."""
        with self._lock:
            return self._engine.blocks if isinstance(self._engine, Exact) else self._known

    @property
    def ids(self) -> list[str]:
        if self._ids is None:
            self._ids = self.snapshot.table.to_table(columns=["id"])["id"].to_pylist()
        return self._ids


def recall(snapshot: Snapshot, k: int = 10, count: int = SELF_CHECK, seed: int = 0) -> float:
    """The share of the ``k`` nearest that the index finds, over ``count`` documents drawn as queries."""
    column, total = snapshot.about.column, snapshot.rows
    rows = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    queries = _matrix(snapshot.table.take(rows.tolist(), columns=[column])[column])
    indexed = Indexed(snapshot)
    found = [set(indexed._ask(query, k).addresses.tolist()) for query in queries]
    true = [set(addresses.tolist()) for addresses, _ in _nearest(_blocks(snapshot), queries, k)]
    return sum(len(f & t) for f, t in zip(found, true, strict=True)) / max(1, sum(map(len, true)))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(N, D) float32 from a column of vectors."""
    vectors = column.combine_chunks()
    return vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size)


def _blocks(snapshot: Snapshot) -> Iterator[Block]:
    """The rows, a fragment at a time, from disk."""
    for fragment in snapshot.fragments:
        yield Block(*snapshot.vectors(fragment))


def _nearest(blocks: Iterable[Block], queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Addresses and scores of the ``k`` nearest to each of ``queries`` (B, D) in all ``blocks``, best first."""
    best = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    for block in blocks:
        step = max(1, SCORES_AT_ONCE // max(1, len(block.ids)))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            scores = (block.vectors @ some[0])[None] if len(some) == 1 else some @ block.vectors.T  # (step, N)
            for i, row_scores in enumerate(scores, start):
                best[i] = _merge(*best[i], block.addresses, row_scores, k)
    return best


def _merge(
    addresses: np.ndarray, scores: np.ndarray, more_addresses: np.ndarray, more_scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best of a ranking and a block: higher scores first, equal ones by address."""
    if k <= 0 or not len(more_scores):
        return addresses, scores
    least = scores[-1] if len(scores) == k else -np.inf
    if len(more_scores) > k:
        least = max(least, np.partition(more_scores, len(more_scores) - k)[len(more_scores) - k])
    rows = np.flatnonzero(more_scores >= least)
    addresses = np.concatenate([addresses, more_addresses[rows]])
    scores = np.concatenate([scores, more_scores[rows]])
    order = np.lexsort((addresses, -scores))[:k]
    return addresses[order], scores[order]
