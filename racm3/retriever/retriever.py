"""Retriever: query documents in, a few relevant and different documents of the memory out.

hits = Retriever(memory, encoder).retrieve([Document.of("a fox in the snow")], k=2)[0]
hits[0].document, hits[0].score, hits[0].origin
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from racm3.document import Document
from racm3.errors import InputError
from racm3.memory.memory import Memory
from racm3.memory.sources import Item
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import CANDIDATES, GROWTH, select

__all__ = ["Hit", "Retriever", "remember"]

DOCUMENTS_AT_ONCE = 512
"""Embedded and added together (ours): few commits, and a GB at most of large pictures."""


@dataclass(frozen=True)
class Hit:
    """A retrieved document: what it is, how similar to the query (cosine), and where it came from."""

    id: str
    score: float
    document: Document
    metadata: dict[str, Any]
    origin: str


def remember(memory: Memory, encoder: Encoder, items: Iterable[Item]) -> None:
    """Embed the items and add them to the memory, ``DOCUMENTS_AT_ONCE`` at a time.

    Raises EncoderMismatchError if another encoder made the memory.
    """
    memory.check_encoder(encoder.fingerprint)
    remaining = iter(items)
    while batch := list(islice(remaining, DOCUMENTS_AT_ONCE)):
        memory.add(batch, encoder.embed([item.document for item in batch]))


class Retriever:
    """A memory and the encoder that made it.

    ``redundancy_threshold`` is the encoder's own unless given. Raises EncoderMismatchError if the two do not belong
    together.
    """

    def __init__(self, memory: Memory, encoder: Encoder, redundancy_threshold: float | None = None) -> None:
        memory.check_encoder(encoder.fingerprint)
        self.memory = memory
        self.encoder = encoder
        self.redundancy_threshold = (
            encoder.redundancy_threshold if redundancy_threshold is None else redundancy_threshold
        )

    def retrieve(
        self, queries: Sequence[Document], k: int = 2, exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Hit]]:
        """Up to ``k`` hits for each query (text, picture or both; holes are ignored), best first.

        A document too similar to the query, or to a better hit, is left out (`strategy.select`). ``exclude`` holds one
        collection of ids a query that it may not get. Raises DocumentError for a query of holes only, InputError if
        ``exclude`` does not fit ``queries``.
        """
        if exclude is not None and len(exclude) != len(queries):
            raise InputError(f"exclude holds one collection of ids a query: {len(exclude)} for {len(queries)} queries")
        vectors = self.encoder.embed(queries)  # (B, D)
        ids_and_scores: list[list[tuple[str, float]]] = [[] for _ in queries]
        pending, candidates = list(range(len(queries))), CANDIDATES
        while pending:
            found = self.memory.search(
                vectors[pending], candidates, exclude_ids=None if exclude is None else [exclude[i] for i in pending]
            )
            ids, table = self.memory.ids, self.memory.vectors
            for i, ranking in zip(pending, found, strict=True):
                rows = [row for row, _ in ranking]
                scores = np.array([score for _, score in ranking], np.float32)
                taken = select(scores, table[rows], k, self.redundancy_threshold)
                ids_and_scores[i] = [(ids[rows[position]], float(scores[position])) for position in taken]
            if candidates >= len(self.memory):
                break
            pending = [i for i in pending if len(ids_and_scores[i]) < k]  # look further down the ranking
            candidates *= GROWTH
        return [self._hits(chosen) for chosen in ids_and_scores]

    def _hits(self, chosen: list[tuple[str, float]]) -> list[Hit]:
        items = self.memory.get([item_id for item_id, _ in chosen])
        return [
            Hit(item.id, score, item.document, item.metadata, item.origin)
            for item, (_, score) in zip(items, chosen, strict=True)
        ]
