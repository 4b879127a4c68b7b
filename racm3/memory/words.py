"""Words: which documents of a memory hold the words of a query. BM25, by Lance's own full-text index of the texts.

Case, accents and the plural do not matter. A word that no text holds is read as the nearest one that some text does:
one letter missing, added, wrong or swapped, or several words written as one. Scripts without spaces and emoji are
looked for as they stand.

Letters: N documents, T terms.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from racm3.memory.snapshot import Snapshot

__all__ = ["Term", "WordIndex", "fold", "holds", "phrases", "tokens"]

EACH_TERM = 8
"""Best documents of each single term that are looked at whatever the others say: each named thing is among them."""
CORRECTED = 64
"""Documents in which the word that was meant is looked for."""
LATEST = 10_000
"""Texts that are not in the index yet of which misspelt words are looked for, at most."""
EXPANDED = 200
"""Words of the texts that a misspelt one is compared with, of those that Lance finds to be near."""
LEAST_CORRECTED = 4
"""Letters of a word that a misspelling may stand for; shorter ones are like too many others."""
LEAST_JOINED = 6
"""Letters of a word from which on it may be several words written as one."""
SYMBOLS = frozenset({"So", "Sk"})
JOINS = frozenset("-\u2010\u2011'")
SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]")
"""Thai, Lao, Burmese, Khmer, kana, Han and Hangul: scripts in which a word may stand inside of a longer run."""
SAYS_NOTHING = frozenset(
    """a an the of on in at and or with to for from by is are was were be been it its this that these those there
    i you he she we they me my your his her our their him them us
    as into onto near next beside behind before above below under over between
    can could would should will may might do does did have has had what which who how like mind look looks
    please draw drawing paint painting show showing showed see want need give make making create generate
    picture pictures photo photos photograph image images illustration one some any
    once upon time scene all""".split()
)
"""English words that join others, and those that say that a picture is wanted, not what it shows (ours). They are
looked for only where a query has no others."""


def fold(text: str) -> str:
    """Without case and accents: ``Crème Brûlée`` is ``creme brulee``."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    kept = "".join(c for c in plain if unicodedata.category(c) != "Mn" and c not in "\ufe0e\ufe0f")
    return unicodedata.normalize("NFC", kept).casefold()


def tokens(text: str) -> list[str]:
    """The words of a text, folded, in the singular; emoji by themselves, two characters each where no spaces are.

    >>> tokens("Two Red FOXES, and a cafe\u0301!")
    ['two', 'red', 'fox', 'and', 'a', 'cafe']
    """
    return [word for phrase in phrases(text, frozenset()) for word in phrase]


def phrases(text: str, without: Collection[str] = SAYS_NOTHING) -> list[list[str]]:
    """The tokens of a text in groups: what says nothing, and any mark but a hyphen, stands between two of them.

    >>> phrases("Please draw a red fox on the beach, top-left")
    [['red', 'fox'], ['beach'], ['top', 'left']]
    """
    found: list[list[str]] = [[]]
    for run in re.findall(r"[^\W_]+|[^\w\s]", fold(text)):
        word = singular(run)
        if run in without or (not run.isalnum() and unicodedata.category(run) not in SYMBOLS):
            if run not in JOINS:
                found.append([])
        elif SPACELESS.search(run):
            found[-1] += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        else:
            found[-1].append(word)
    return [phrase for phrase in found if phrase]


def singular(word: str) -> str:
    """The singular of an English noun, roughly, and the same for its plural."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    for ending, instead in (("ies", "y"), ("lves", "lf"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + instead
    return word[:-1]


def holds(text: str, word: str) -> bool:
    """Whether a text holds a token, in any case, number and accents."""
    return word in tokens(text) or (not word.isascii() and word in fold(text))


@dataclass(frozen=True)
class Term:
    """A word of a query as it was given, the word of the texts that it stands for (None if there is none), what that
    weighs (BM25), and the number of the phrase in which it stands."""

    given: str
    word: str | None
    weight: float
    phrase: int = 0


class WordIndex:
    """The words of one snapshot, which threads may share. Without an index every text is read for each query."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._seen: dict[str, tuple[list[Term], np.ndarray]] = {}

    @cached_property
    def _rarest(self) -> float:
        return math.log(1 + (self._snapshot.rows + 0.5) / 1.5)

    @cached_property
    def _latest(self) -> list[dict[str, Any]]:
        """The texts of the last documents, as many as the index does not hold yet."""
        rows, indexed = self._snapshot.rows, self._snapshot.words_indexed or 0
        start = max(min(indexed, rows), rows - LATEST)
        return [row for row in self._snapshot.scan(["text"], start=start) if row["text"]] if start < rows else []

    def terms(self, query: str) -> list[Term]:
        """The terms of a query, each once. Those that say nothing are left out where there are others."""
        asked = phrases(query) or phrases(query, frozenset())
        found: dict[str, Term] = {}
        for number, phrase in enumerate(asked):
            for term in (term for word in phrase for term in self._look(word)[0]):
                found.setdefault(term.word or term.given, replace(term, phrase=number))
        return [term for term in found.values() if term.word not in SAYS_NOTHING] or list(found.values())

    def best(self, terms: Sequence[Term], k: int) -> np.ndarray:
        """Addresses of about ``k`` documents that hold the most telling of ``terms``, and of the best for each one."""
        words = [term.word for term in terms if term.word]
        if self._snapshot.words_indexed is None:
            words += [f"{word}s" for word in words] + [f"{word}es" for word in words]  # there is no stemming
        if not words:
            return np.zeros(0, np.int64)
        each = [self._look(term.given)[1] for term in terms]
        return np.unique(np.concatenate([_addresses(self._match(" ".join(words), k)), *each]))

    def _look(self, word: str) -> tuple[list[Term], np.ndarray]:
        """The terms that a word stands for, mostly one, and the addresses of the best documents that hold it."""
        if word not in self._seen:
            self._seen[word] = self._found(word)
        return self._seen[word]

    def _found(self, word: str) -> tuple[list[Term], np.ndarray]:
        for words in self._meant(word):
            rows = self._holding(words)
            if rows:
                weight = max(row["_score"] for row in rows)
                terms = [Term(word, w, weight if len(words) == 1 else self._look(w)[0][0].weight) for w in words]
                return terms, _addresses(rows)
        return [Term(word, None, self._rarest)], np.zeros(0, np.int64)

    def _meant(self, word: str) -> Iterator[tuple[str, ...]]:
        """What a word may stand for, the likeliest first: itself, a correction, several words."""
        yield (word,)
        if word.isascii() and word.isalpha():
            if len(word) >= LEAST_CORRECTED - 1:
                # Lance compares the word with stems: one letter off of "bubbles" is two off of "bubbl".
                rows = self._match(" ".join(_swapped(word)), CORRECTED) + self._match(word, CORRECTED, fuzziness=2)
                rows += self._latest  # which Lance compares with no misspelt word
                near = {w for row in rows for w in tokens(row["text"]) if _one_off(word, w)}
                near = {w for w in near if len(w) >= LEAST_CORRECTED}
                yield from ((w,) for w in sorted(near, key=lambda w: (sorted(w) != sorted(word), w[0] != word[0], w)))
            if len(word) >= LEAST_JOINED:
                cut = [piece for i in range(3, len(word) - 2) for piece in (word[:i], word[i:])]
                for row in self._match(" ".join(cut), CORRECTED):
                    if parts := _joined(word, tokens(row["text"])):
                        yield tuple(part for part in parts if part not in SAYS_NOTHING) or parts

    def _holding(self, words: tuple[str, ...]) -> list[dict[str, Any]]:
        rows = self._match(" ".join(words), EACH_TERM) or self._match(" ".join(f"{word}s" for word in words), EACH_TERM)
        rows = [row for row in rows if all(holds(row["text"], word) for word in words)]
        if not rows and not words[0].isascii():  # no token of the index: an emoji, or a part of a longer run
            rows = self._containing(words[0])
        return rows

    def _match(self, words: str, k: int, fuzziness: int = 0) -> list[dict[str, Any]]:
        from lance.query import MatchQuery

        query = MatchQuery(words, "text", fuzziness=fuzziness, max_expansions=EXPANDED)
        rows = self._snapshot.table.to_table(
            columns=["text", "_score"], full_text_query=query, limit=k, with_row_address=True
        )
        return list(rows.to_pylist())

    def _containing(self, part: str) -> list[dict[str, Any]]:
        rows = self._snapshot.table.to_table(
            columns=["text"], filter=f"contains(text, '{part}')", limit=EACH_TERM, with_row_address=True
        )
        return [row | {"_score": self._rarest} for row in rows.to_pylist()]


def _addresses(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([row["_rowaddr"] for row in rows], np.int64)


def _swapped(word: str) -> list[str]:
    return [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)]


def _one_off(a: str, b: str) -> bool:
    """Whether one letter is missing, added, wrong or swapped with its neighbour."""
    if abs(len(a) - len(b)) > 1 or a == b:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    x, y = a[start:], b[start:]
    return x[1:] == y[1:] or x[1:] == y or x == y[1:] or (x[1::-1] == y[:2] and x[2:] == y[2:])


def _joined(word: str, text: Sequence[str]) -> tuple[str, ...]:
    """The words that follow one another in a text and make ``word`` when written as one, if there are any."""
    for first in range(len(text)):
        for last in range(first + 2, len(text) + 1):
            made = "".join(text[first:last])
            if made == word:
                return tuple(text[first:last])
            if not word.startswith(made):
                break
    return ()
