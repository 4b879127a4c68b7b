"""Constraints: which ids may come next, and when a sequence is done. The engine asks before every token.

Letters in shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from racm3.errors import ConfigError, MarkupError
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["Chain", "Constraint", "Fixed", "ImageSpan", "TextSpan"]


class Constraint(Protocol):
    """Says which ids may come next, and when nothing more is needed. The engine works on a copy of it."""

    @property
    def max_steps(self) -> int:
        """The most tokens that will be pushed."""

    @property
    def done(self) -> bool:
        """True once nothing may be pushed any more."""

    def allowed(self) -> np.ndarray:
        """What may be pushed next: (V,) bool."""

    def push(self, id: int) -> bool:
        """Go on by one token; returns whether it belongs to the answer (a stop token does not).

        Raises MarkupError if it is not allowed here.
        """


def _check(constraint: Constraint, vocabulary: Vocabulary, id: int) -> None:
    if constraint.done:
        raise MarkupError(f"found {vocabulary.name(id)} behind a complete {type(constraint).__name__}")
    if not 0 <= id < vocabulary.size or not constraint.allowed()[id]:
        raise MarkupError(f"found {vocabulary.name(id)}, which may not stand in this {type(constraint).__name__}")


class TextSpan:
    """At least one text id, at most ``max_tokens``, then one of ``stop_ids``, which is not part of the answer.

    Raises ConfigError if there is no stop id or ``max_tokens`` is below 1.
    """

    def __init__(self, vocabulary: Vocabulary, stop_ids: Collection[int], max_tokens: int) -> None:
        if not stop_ids or max_tokens < 1:
            raise ConfigError(
                f"a text span has at least one stop id and one token, but stop_ids={stop_ids} and "
                f"max_tokens={max_tokens} were given"
            )
        self.vocabulary, self.max_tokens = vocabulary, max_tokens
        self.max_steps = max_tokens + 1
        self.done = False
        self._count = 0
        self._content = vocabulary.id_set(modality="text")
        self._stop = vocabulary.id_set(*stop_ids)

    def allowed(self) -> np.ndarray:
        if self._count == 0:
            return self._content
        return self._stop if self._count == self.max_tokens else self._content | self._stop

    def push(self, id: int) -> bool:
        _check(self, self.vocabulary, id)
        self._count += 1
        self.done = bool(self._stop[id])
        return not self.done


class ImageSpan:
    """Exactly ``count`` image codes; those at the places in ``given`` are the codes (from 0) that it says.

    Raises ConfigError if ``count`` is below 1 or a place is outside the span.
    """

    def __init__(self, vocabulary: Vocabulary, count: int, given: Mapping[int, int] | None = None) -> None:
        if count < 1:
            raise ConfigError(f"an image span has at least one code, but count={count} was given")
        self.given = dict(given or {})
        if not all(0 <= place < count for place in self.given):
            raise ConfigError(f"a span of {count} codes has places 0 to {count - 1}, but {given} was given")
        self.vocabulary = vocabulary
        self.max_steps = count
        self._pushed = 0
        self._content = vocabulary.id_set(modality="image")

    @property
    def done(self) -> bool:
        return self._pushed == self.max_steps

    def allowed(self) -> np.ndarray:
        code = self.given.get(self._pushed)
        return self._content if code is None else self.vocabulary.id_set(self.vocabulary.image_start + code)

    def push(self, id: int) -> bool:
        _check(self, self.vocabulary, id)
        self._pushed += 1
        return True


class Fixed:
    """The given ids and no others, such as ``<infill:1>`` between two spans; they are not part of the answer.

    Raises ConfigError if there is none.
    """

    def __init__(self, vocabulary: Vocabulary, ids: Sequence[int]) -> None:
        if not ids:
            raise ConfigError("fixed ids: at least one is needed, but none was given")
        self.vocabulary, self.ids = vocabulary, tuple(ids)
        self.max_steps = len(self.ids)
        self._next = 0

    @property
    def done(self) -> bool:
        return self._next == len(self.ids)

    def allowed(self) -> np.ndarray:
        return self.vocabulary.id_set(self.ids[self._next])

    def push(self, id: int) -> bool:
        _check(self, self.vocabulary, id)
        self._next += 1
        return False


class Chain:
    """One constraint after the other, as the gaps of one document are filled one after the other.

    Raises ConfigError if there is none.
    """

    def __init__(self, *links: Constraint) -> None:
        if not links:
            raise ConfigError("a chain of constraints has at least one, but none was given")
        self.links = links
        self.max_steps = sum(link.max_steps for link in links)
        self._current = 0

    @property
    def done(self) -> bool:
        return self.links[-1].done

    def allowed(self) -> np.ndarray:
        return self.links[self._current].allowed()

    def push(self, id: int) -> bool:
        belongs = self.links[self._current].push(id)
        if self.links[self._current].done and not self.done:
            self._current += 1
        return belongs
