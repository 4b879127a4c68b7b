"""What makes retrieved documents good: relevance, no redundancy, and a query that does not give everything away.

From paper.md: walk down the ranking and skip a candidate that is too similar to the query or to one already taken; in
training, drop 20 % of the query.

Letters: C candidates, D dimension, K retrieved documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from racm3.document import Document, Image, Part, Text
from racm3.memory.candidates import Candidates
from racm3.util.registry import Registry

__all__ = [
    "QUERY_DROPOUT",
    "STRATEGIES",
    "Choosing",
    "Relevance",
    "RelevanceRedundancy",
    "Strategy",
    "cache_key",
    "drop_query",
]

QUERY_DROPOUT = 0.2
"""Share of a query that is dropped in training. Source: the paper's "query dropout"."""
PATCH_PX = 8
"""Side of the squares that stand for the tokens of a picture (ours: the stride of the built-in image tokenizer)."""
GREY = 128
CANDIDATES = 64
"""Best items of a ranking that are looked at first (ours: K is 2, so redundant items rarely fill the first 64, and a
top-64 costs little beside the matmul)."""
PAPERS = "relevance-redundancy"
GROWTH = 8
"""How many times more are looked at, again and again, where those did not suffice."""


class Strategy(Protocol):
    """Which documents of a ranking are retrieved. Inference, training and the search over a whole corpus use the same.

    Frozen dataclasses do well: they can be sent to other processes. One that needs more than scores and vectors is a
    `Choosing` one.
    """

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the choice: neighbours that are kept are known by it."""
        ...

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        """Positions of up to ``k`` candidates, best first.

        ``scores`` (C,) are the candidates' similarities to the query, best first; ``vectors`` (C, D) are theirs, of
        unit norm. If fewer than ``k`` are chosen, the same is asked again with more candidates, until there are none.
        """
        ...


@runtime_checkable
class Choosing(Strategy, Protocol):
    """A strategy that looks at words, or at the main document of training. `racm3.retriever.choosing` has ours."""

    @property
    def words(self) -> bool:
        """Whether it asks for the documents that hold the words of a query."""
        ...

    def relevance(self, candidates: Candidates) -> np.ndarray:
        """(C,): how well each candidate fits, of which a hit's score is made."""
        ...

    def choose(self, candidates: Candidates, k: int) -> list[int]:
        """As `select`. What is not chosen was not good enough: no more candidates are asked for."""
        ...


STRATEGIES: Registry[Callable[[float], Strategy]] = Registry("retrieval strategy")
"""By name: what makes the strategy for an encoder's redundancy threshold. One of another package is asked for as
MODULE:NAME."""


@STRATEGIES.register(PAPERS)
@dataclass(frozen=True)
class RelevanceRedundancy:
    """The paper's: relevant and different ones. A candidate more similar than ``threshold`` to the query, or to one
    already taken, is skipped."""

    threshold: float

    @property
    def fingerprint(self) -> str:
        return f"relevance-redundancy {self.threshold}"

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        taken: list[int] = []
        for candidate in range(len(scores)):
            if len(taken) == k:
                break
            similar = scores[candidate] > self.threshold or (vectors[taken] @ vectors[candidate] > self.threshold).any()
            if not similar:
                taken.append(candidate)
        return taken


@dataclass(frozen=True)
class Relevance:
    """The most relevant ones, redundant or not."""

    fingerprint: str = "relevance"

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        return list(range(min(k, len(scores))))


STRATEGIES.register("relevance")(lambda _: Relevance())


def cache_key(strategy: Strategy) -> dict[str, Any]:
    """What tells a strategy in the names and settings of what is kept: of the paper's as before there were others."""
    if isinstance(strategy, RelevanceRedundancy):
        return {"redundancy_threshold": strategy.threshold}
    return {"strategy": strategy.fingerprint}


def drop_query(document: Document, rate: float, rng: np.random.Generator) -> Document:
    """The document with each word, and each 8 px square of a picture, dropped with probability ``rate``.

    Dropped squares become grey. Every part keeps at least one word or square, so a query is never empty.
    """
    return Document(tuple(_drop(part, rate, rng) for part in document.parts))


def _drop(part: Part, rate: float, rng: np.random.Generator) -> Part:
    if isinstance(part, Text):
        words = part.visible.split()
        kept = _kept(len(words), rate, rng)
        return Text(" ".join(word for word, keep in zip(words, kept, strict=True) if keep))
    if isinstance(part, Image):
        height, width = part.pixels.shape[:2]
        rows, columns = -(-height // PATCH_PX), -(-width // PATCH_PX)
        squares = _kept(rows * columns, rate, rng).reshape(rows, columns)
        kept = squares.repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)[:height, :width]
        return Image(np.where(kept[..., None], part.pixels, np.uint8(GREY)), part.mask)
    return part


def _kept(count: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) bool: what stays; at least one does."""
    kept = rng.random(count) >= rate
    kept[rng.integers(count)] |= not kept.any()
    return kept
