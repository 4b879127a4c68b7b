"""Retriever: query documents in, a few relevant and different documents of the memory out.

hits = Retriever(memory, encoder).retrieve([Document.of("a fox in the snow")], k=2)[0]
hits[0].document, hits[0].score, hits[0].origin
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from racm3.document import Document, Modality
from racm3.errors import InputError
from racm3.memory.memory import Memory, Ranking
from racm3.memory.metadata_filter import Where
from racm3.retriever.choosing import Hybrid, strategy_for, word_scores
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import CANDIDATES, GROWTH, Choosing, Strategy

__all__ = ["Hit", "Retriever", "searcher"]


@dataclass(frozen=True)
class Hit:
    """A retrieved document: what it is, how well it fits the query, and where it came from.

    ``score`` is the cosine, or what the strategy made of ``cosine`` and ``words``, the share of the query's words that
    its text holds (None if the query has none, or the strategy does not look at them).
    """

    id: str
    score: float
    document: Document
    metadata: dict[str, Any]
    origin: str
    cosine: float | None = None
    words: float | None = None


class Retriever:
    """A memory, the encoder that made it, and a strategy, by default the paper's with the encoder's threshold.

    Raises EncoderMismatchError if memory and encoder do not belong together.
    """

    def __init__(self, memory: Memory, encoder: Encoder, strategy: Strategy | None = None) -> None:
        memory.check_encoder(encoder.fingerprint)
        self.memory = memory
        self.encoder = encoder
        self.strategy = strategy or strategy_for(encoder)

    def retrieve(
        self,
        queries: Sequence[Document],
        k: int = 2,
        exclude: Sequence[Collection[str]] | None = None,
        *,
        where: Where | None = None,
        modality: Modality | None = None,
    ) -> list[list[Hit]]:
        """Up to ``k`` hits for each query (text, picture or both; holes are ignored), best first.

        The strategy chooses them from the ranking. ``exclude`` holds one collection of ids a query that it may not get,
        such as its own; ``where`` says of a document whether it may be found. With a ``modality`` only that part of
        documents is fetched, of those that have one. Raises DocumentError for a query of holes only, InputError if
        ``exclude`` does not fit ``queries``.
        """
        if exclude is not None and len(exclude) != len(queries):
            raise InputError(f"exclude holds one collection of ids a query: {len(exclude)} for {len(queries)} queries")
        if modality is not None:
            where = _having(modality, where)
        if isinstance(self.strategy, Choosing):
            return [self._hits(*found, modality) for found in self._chosen(self.strategy, queries, k, exclude, where)]
        vectors = self.encoder.embed(queries)  # (B, D)
        chosen: dict[int, Ranking] = {}
        pending, candidates = list(range(len(queries))), CANDIDATES
        while pending:
            excluded = None if exclude is None else [exclude[i] for i in pending]
            rankings = self.memory.search(vectors[pending], candidates, excluded, where)
            for i, ranking in zip(pending, rankings, strict=True):
                chosen[i] = ranking.at(self.strategy.select(ranking.scores, ranking.vectors, k))
            # A ranking shorter than asked for is all there is; else look further down for what is missing.
            full = {i for i, ranking in zip(pending, rankings, strict=True) if len(ranking) == candidates}
            pending = [i for i in pending if len(chosen[i]) < k and i in full]
            candidates *= GROWTH
        return [self._hits(chosen[i], None, None, modality) for i in range(len(queries))]

    def _chosen(
        self,
        strategy: Choosing,
        queries: Sequence[Document],
        k: int,
        exclude: Sequence[Collection[str]] | None,
        where: Where | None,
    ) -> list[tuple[Ranking, np.ndarray, np.ndarray | None]]:
        """For each query the ranking, the cosines and the words of what the strategy chooses."""
        told = [query.only("text") if strategy.words else None for query in queries]
        texts = [(one and one.text) or "" for one in told]
        asked = self.memory.candidates(self.encoder.embed(queries), texts, max(CANDIDATES, k), exclude, where)
        found = []
        for ranking, candidates in asked:
            positions = strategy.choose(candidates, k)
            taken, scores = ranking.at(positions), strategy.relevance(candidates)[positions]
            words = word_scores(candidates)[positions] if candidates.terms else None
            found.append((replace(taken, scores=scores), taken.scores, words))
        return found

    def _hits(
        self, ranking: Ranking, cosines: np.ndarray | None, words: np.ndarray | None, modality: Modality | None
    ) -> list[Hit]:
        hits = []
        for i, (item, score) in enumerate(zip(self.memory.get(ranking.ids), ranking.scores, strict=True)):
            document = item.document if modality is None else item.document.only(modality)
            assert document is not None  # `where` asked for it
            cosine = float(score if cosines is None else cosines[i])
            held = None if words is None else float(words[i])
            hits.append(Hit(item.id, float(score), document, item.metadata, item.origin, cosine, held))
        return hits


def searcher(memory: Memory, encoder: Encoder, strategy: str | None = None) -> Retriever:
    """A retriever for people who look for documents: by words and vectors, documents that are alike as well, unless
    the name of a strategy says how they are chosen. Raises EncoderMismatchError, ConfigError."""
    chosen = strategy_for(encoder, strategy or "hybrid")
    if strategy is None and isinstance(chosen, Hybrid):
        chosen = replace(chosen, threshold=2.0)  # no cosine is larger
    return Retriever(memory, encoder, chosen)


def _having(modality: Modality, where: Where | None) -> Where:
    return lambda facts: modality in facts.modalities and (where is None or where(facts))
