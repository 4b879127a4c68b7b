"""Strategies that look at the words of a query as well: hybrid, coverage, MMR; and those that experiments compare with.

Relevance is ``word_weight`` x words + (1 - ``word_weight``) x vectors. *Words*: the share of the query's terms that a
candidate's text holds, each weighed by its BM25 score. *Vectors*: the cosine, on a scale from 0 at the level of chance
to 1 at equality. Where a query has no word that any text holds, the vectors alone decide.

Letters: C candidates, D dimension, T terms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from racm3.memory.candidates import Candidates
from racm3.memory.words import Term
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import PAPERS, STRATEGIES, Relevance, Strategy

__all__ = ["MMR", "Coverage", "Hybrid", "Nothing", "Oracle", "Random", "strategy_for", "word_scores", "worth"]

RARE = 3
"""The power of BM25's score by which a term counts: one rare name outweighs place, colour and background together
(chosen on another draw of scenes than those of the benchmark)."""
BESIDE = 0.05
"""What words that were not asked for cost, at most (ours): of two texts that hold all terms the shorter one is nearer,
and the caption that is the query comes first."""


def worth(terms: Sequence[Term]) -> np.ndarray:
    """(T,) what each term counts: by its rarity, shared among the terms of a phrase, which together are one thing.

    A term that no text holds counts as much as the others do on average, for what is known of it is nothing.
    """
    known = [term.weight for term in terms if term.word]
    weights = [term.weight if term.word else float(np.mean(known or [1.0])) for term in terms]
    made = np.array(weights) ** RARE
    phrase = np.array([term.phrase for term in terms])
    for number in set(phrase.tolist()):
        own = phrase == number
        made[own] *= made[own].max() / made[own].sum()
    return made


def named(candidates: Candidates) -> bool:
    """Whether the query names something that some text holds."""
    return any(term.word for term in candidates.terms)


def word_scores(candidates: Candidates, again: np.ndarray | float = 1.0) -> np.ndarray:
    """(C,) in [0, 1]: the share of the terms that each text holds; of ``again`` (T,), what they count this time."""
    if not named(candidates):
        return np.zeros(len(candidates))
    counts = worth(candidates.terms)
    return candidates.held @ (counts * again) / counts.sum() * (1 - BESIDE * candidates.beside)


@dataclass(frozen=True)
class Hybrid:
    """The most relevant by words and vectors; of documents that are nearly the same, one. Where words are asked for,
    what is below ``floor`` is not retrieved at all. ``chance``: the best cosine of words without meaning."""

    threshold: float
    word_weight: float = 0.95
    floor: float = 0.15
    chance: float = 0.0
    words: bool = True

    @property
    def fingerprint(self) -> str:
        kind = type(self).__name__.lower()
        return f"{kind} {self.threshold} {self.word_weight} {self.floor} {self.chance}"

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        return self.choose(Candidates(scores, vectors), k)

    def relevance(self, candidates: Candidates) -> np.ndarray:
        return self._fused(candidates, 1.0)

    def choose(self, candidates: Candidates, k: int) -> list[int]:
        relevance = self.relevance(candidates)
        open_ = (relevance >= self.floor) | (not candidates.terms)
        if candidates.main is not None:  # no copy of what is to be learnt
            open_ &= candidates.vectors @ candidates.main <= self.threshold
        taken: list[int] = []
        while len(taken) < k and open_.any():
            gain = np.where(open_, self.gain(candidates, relevance, taken), -np.inf)
            taken.append(int(gain.argmax()))
            open_ &= candidates.vectors @ candidates.vectors[taken[-1]] <= self.threshold
            open_[taken] = False
        return taken

    def gain(self, candidates: Candidates, relevance: np.ndarray, taken: list[int]) -> np.ndarray:
        """(C,): what each candidate is worth beside those that are taken."""
        return relevance

    def _fused(self, candidates: Candidates, again: np.ndarray | float) -> np.ndarray:
        weight = self.word_weight if named(candidates) else 0.0
        near = ((candidates.scores - self.chance) / (1 - self.chance)).clip(0, 1)
        fused: np.ndarray = weight * word_scores(candidates, again) + (1 - weight) * near
        return fused


@dataclass(frozen=True)
class Coverage(Hybrid):
    """As `Hybrid`, but what is asked for is covered: a term that is in a document already taken counts ``again`` times
    what it counted before. Where one thing is asked for, the second document shows it as well."""

    again: float = 0.15

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} {self.again}"

    def gain(self, candidates: Candidates, relevance: np.ndarray, taken: list[int]) -> np.ndarray:
        if not taken or not named(candidates):
            return relevance
        return self._fused(candidates, self.again ** candidates.held[taken].sum(axis=0))


@dataclass(frozen=True)
class MMR(Hybrid):
    """Maximal marginal relevance: ``trade`` x relevance - (1 - ``trade``) x the cosine to the nearest one taken."""

    trade: float = 0.7

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} {self.trade}"

    def gain(self, candidates: Candidates, relevance: np.ndarray, taken: list[int]) -> np.ndarray:
        if not taken:
            return relevance
        nearest = (candidates.vectors @ candidates.vectors[taken].T).max(axis=1)
        return self.trade * relevance - (1 - self.trade) * nearest


@dataclass(frozen=True)
class Random:
    """Any of the candidates, the same ones for the same scores: what retrieval is worth if it finds nothing special."""

    fingerprint: str = "random"

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        seed = hashlib.blake2b(np.ascontiguousarray(scores, np.float32).tobytes(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        return [int(c) for c in rng.choice(len(scores), min(k, len(scores)), replace=False)]


@dataclass(frozen=True)
class Oracle:
    """In training: those nearest to the whole main document, answer and all, but for its copies. What retrieval can be
    worth at most. Where there is no main document, the nearest to the query."""

    threshold: float
    words: bool = False

    @property
    def fingerprint(self) -> str:
        return f"oracle {self.threshold}"

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        return Relevance().select(scores, vectors, k)

    def relevance(self, candidates: Candidates) -> np.ndarray:
        return candidates.scores if candidates.main is None else candidates.vectors @ candidates.main

    def choose(self, candidates: Candidates, k: int) -> list[int]:
        relevance = self.relevance(candidates)
        order = np.argsort(-relevance, kind="stable")
        if candidates.main is not None:
            order = order[relevance[order] <= self.threshold]
        return [int(c) for c in order[:k]]


@dataclass(frozen=True)
class Nothing:
    """No documents."""

    fingerprint: str = "none"
    words: bool = False

    def select(self, scores: np.ndarray, vectors: np.ndarray, k: int) -> list[int]:
        return []

    def relevance(self, candidates: Candidates) -> np.ndarray:
        return candidates.scores

    def choose(self, candidates: Candidates, k: int) -> list[int]:
        return []


STRATEGIES.register("hybrid")(Hybrid)
STRATEGIES.register("coverage")(Coverage)
STRATEGIES.register("mmr")(MMR)
STRATEGIES.register("random")(lambda _: Random())
STRATEGIES.register("oracle")(Oracle)
STRATEGIES.register("none")(lambda _: Nothing())


def strategy_for(encoder: Encoder, name: str | None = None) -> Strategy:
    """The strategy of that name for an encoder, by default the paper's. Raises ConfigError if there is none."""
    strategy = STRATEGIES.get(name or PAPERS)(encoder.redundancy_threshold)
    return replace(strategy, chance=encoder.chance_score) if isinstance(strategy, Hybrid) else strategy
