"""Candidates: the documents among which a retrieval strategy chooses, with all that is known of how they fit a query.

They are the nearest by their vectors and, for a query in words, those that hold the words.

Letters: B batch, C candidates, D dimension, T terms of the query.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from racm3.document import Modality
from racm3.memory.metadata_filter import Facts, Where
from racm3.memory.rows import FACTS, check_facts
from racm3.memory.search import Ranking, View
from racm3.memory.snapshot import Snapshot
from racm3.memory.words import SAYS_NOTHING, Term, WordIndex, holds, phrases

__all__ = ["Candidates", "fact_of", "nearest", "with_words"]

GROWTH = 8
"""How many times more of a ranking is looked at, again and again, where conditions leave too little."""

PHRASED = 0.5
"""What of a word counts for the phrase in which it stands: a *dog* is more a dog than a *hot dog* (ours, chosen on
scenes that no result looks at)."""


@dataclass(frozen=True)
class Candidates:
    """What a strategy chooses from: the nearest by cosine, best first, and behind them those found by words alone."""

    scores: np.ndarray  # (C,) float32: cosines of query and document
    vectors: np.ndarray  # (C, D) float32, unit norm
    terms: Sequence[Term] = ()
    """Of the query; none for a picture alone, and where a strategy does not ask for words."""
    held: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(C, T): 0 if a candidate's text does not hold the term, 1 if in the same phrase, between if in another."""
    beside: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """(C,): the share of a candidate's own words that the query does not have, 0 to 1."""
    main: np.ndarray | None = None
    """(D,): in training, the vector of the whole document that is to be completed."""

    def __len__(self) -> int:
        return len(self.scores)


def nearest(
    view: View, queries: np.ndarray, k: int, excluded: Sequence[frozenset[str]], where: Where | None
) -> list[Ranking]:
    """For each of ``queries`` (B, D) the ``k`` nearest that are not ``excluded`` and fulfil ``where``."""
    engine, rows = view.engine, view.snapshot.rows
    found: dict[int, Ranking] = {}
    pending, wanted = list(range(len(queries))), k + max(map(len, excluded), default=0)
    while pending:
        for i, ranking in zip(pending, engine.nearest(queries[pending], min(wanted, rows)), strict=True):
            found[i] = _allowed(view.snapshot, ranking, excluded[i], where, k)
        pending = [i for i in pending if len(found[i]) < k] if wanted < rows else []
        wanted *= GROWTH
    return [found[i] for i in range(len(queries))]


def with_words(
    view: View, query: np.ndarray, near: Ranking, text: str, excluded: frozenset[str], where: Where | None
) -> tuple[Ranking, Candidates]:
    """The ``near`` documents and as many that hold words of ``text``, which a query (D,) was embedded from."""
    words: WordIndex = view.words
    terms, wanted = words.terms(text), len(near)
    found = near
    while terms and wanted:
        addresses = words.best(terms, wanted)
        more = np.setdiff1d(addresses, near.addresses)
        found = near.joined(_allowed(view.snapshot, view.engine.at(more, query), excluded, where))
        if len(found) - len(near) or len(addresses) < wanted or (where is None and not excluded):
            break
        wanted *= GROWTH  # conditions have left nothing: look further down
    texts = [row["text"] or "" for row in view.snapshot.take(found.addresses, ["text"])]
    asked = [{t.word for t in terms if t.phrase == term.phrase} for term in terms]
    every = {term.word for term in terms}
    held, beside = np.zeros((len(texts), len(terms)), np.float32), np.zeros(len(texts), np.float32)
    for row, own in enumerate(phrases(text) for text in texts):
        there = {word for phrase in own for word in phrase}
        for column, (term, phrase) in enumerate(zip(terms, asked, strict=True)):
            if term.word in there:
                held[row, column] = max(_alike(phrase, set(other)) for other in own if term.word in other)
            elif term.word and (term.word in SAYS_NOTHING or not term.word.isascii()):
                held[row, column] = holds(texts[row], term.word)
        beside[row] = len(there - every) / max(1, len(there))
    return found, Candidates(found.scores, found.vectors, terms, held, beside)


def _alike(one: Set[str | None], other: Set[str | None]) -> float:
    """How much a word in one phrase is the same in the other: 1 if they hold the same words, else less."""
    return 1 - PHRASED * (1 - len(one & other) / len(one | other))


def _allowed(
    snapshot: Snapshot, ranking: Ranking, excluded: Collection[str], where: Where | None, most: int | None = None
) -> Ranking:
    kept = [position for position, item_id in enumerate(ranking.ids) if item_id not in excluded]
    if where is not None:
        rows = snapshot.take(ranking.addresses[kept], FACTS)
        kept = [position for position, row in zip(kept, rows, strict=True) if where(fact_of(row))]
    return ranking.at(kept[:most])


def fact_of(row: dict[str, object]) -> Facts:
    """What is known of a document, from a row of the columns `FACTS`. Raises DamagedDocumentError."""
    check_facts(row)
    parts = json.loads(str(row["parts"]))
    modalities: frozenset[Modality] = frozenset("text" if isinstance(part, str) else "image" for part in parts)
    text = None if row["text"] is None else str(row["text"])
    return Facts(str(row["id"]), json.loads(str(row["metadata"])), modalities, str(row["origin"]), text)
