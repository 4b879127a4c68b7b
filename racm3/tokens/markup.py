"""Markup: one document as token ids and back, and the grammar that makes an ill-formed document impossible.

    sequence = document { document } <eos>
    document = <doc> part { part } </doc>
    part     = <text> t { t } { <pad> }  |  <image> c c ... c

where t are text ids and c are image codes, exactly ``codes_per_image`` of them. A generator may have been trained with
texts that are filled up to one length: then pictures stand equally far apart, and what stands at the same place of
another one is always as many tokens back. ``prompt.py`` takes from here where a
text may stop, and ``export.py`` writes the same grammar into the card of an exported model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

import numpy as np

from racm3.document import Modality
from racm3.errors import ConfigError, MarkupError
from racm3.tokens.parts import ImageCodes, TextIds, TokenDocument, TokenPart
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["AFTER_PART", "FOLLOWS", "MARKERS", "Grammar", "ImageCodes", "Markup", "TextIds", "TokenDocument"]


MARKERS: Mapping[Modality, int] = {"text": Vocabulary.text, "image": Vocabulary.image}
"""What stands before a part."""

AFTER_PART = (Vocabulary.text, Vocabulary.image, Vocabulary.end)
"""What may follow a part: the next one, or the end of the document."""

FOLLOWS: Mapping[int, tuple[int, ...]] = {
    Vocabulary.doc: (Vocabulary.text, Vocabulary.image),
    Vocabulary.end: (Vocabulary.doc, Vocabulary.eos),
}
"""What may follow between parts; padding behind <eos>."""


class State(Enum):
    """What stands before the next token."""

    START = auto()  # nothing
    OPENED = auto()  # <doc>
    TEXT_OPENED = auto()  # <text>
    IN_TEXT = auto()  # a text id
    FILLED = auto()  # <pad> behind a text
    IN_IMAGE = auto()  # <image>, or a code that is not the last
    AFTER_IMAGE = auto()  # the last code of an image
    CLOSED = auto()  # </doc>
    FINISHED = auto()  # <eos>


@dataclass(frozen=True)
class Markup:
    """How documents are written as ids of one vocabulary, with exactly ``codes_per_image`` (N) codes an image.

    Texts of fewer than ``text_ids`` ids are filled up with ``<pad>``; a longer one stays as it is.
    Raises ConfigError if ``codes_per_image`` is below 1 or ``text_ids`` below 0.
    """

    vocabulary: Vocabulary
    codes_per_image: int
    text_ids: int = 0

    def __post_init__(self) -> None:
        if self.codes_per_image < 1 or self.text_ids < 0:
            raise ConfigError(
                "an image has at least one code, and texts are filled up to 0 ids or more, but "
                f"codes_per_image={self.codes_per_image} and text_ids={self.text_ids} were given"
            )

    def filled(self, text: list[int]) -> list[int]:
        """The ids of a text, or of the mask in its place, filled up."""
        return text + [self.vocabulary.pad] * (self.text_ids - len(text))

    def filling(self, ids: np.ndarray) -> np.ndarray:
        """Where the ids of a sequence (T,) without ``<pad>`` go when its texts are filled up: their places in order, -1
        for each ``<pad>``. Texts in which a mask stands are filled up as ``filled`` does."""
        v = self.vocabulary
        order: list[np.ndarray] = []
        read = 0
        for start in np.flatnonzero(ids == v.text).tolist():
            inside = v.is_text(ids[start + 1 :]) | v.is_mask(ids[start + 1 :])
            end = start + 1 + (int(inside.argmin()) if not inside.all() else len(inside))
            order += [np.arange(read, end), np.full(max(0, self.text_ids - (end - start - 1)), -1)]
            read = end
        return np.concatenate([*order, np.arange(read, len(ids))])

    def to_ids(self, parts: TokenDocument) -> list[int]:
        """The ids of one document, from ``<doc>`` to ``</doc>``.

        Raises MarkupError if there is no part, a text is empty, an image has another number of codes than N, or an
        id or a code is out of its range.
        """
        v = self.vocabulary
        if not parts:
            raise MarkupError("a document has at least one part, but none was given")
        ids = [v.doc]
        for number, part in enumerate(parts):
            if isinstance(part, TextIds):
                if not part.ids:
                    raise MarkupError(f"part {number} is an empty text; a text has at least one id, or leave it out")
                _check_range(f"part {number}: text id", part.ids, v.text_size)
                ids.append(v.text)
                ids.extend(self.filled([v.text_start + int(t) for t in part.ids]))
            else:
                if len(part.codes) != self.codes_per_image:
                    raise MarkupError(
                        f"part {number} is an image of {len(part.codes)} codes; it has exactly {self.codes_per_image}"
                    )
                _check_range(f"part {number}: image code", part.codes, v.image_size)
                ids.append(v.image)
                ids.extend(v.image_start + int(c) for c in part.codes)
        ids.append(v.end)
        return ids

    def from_ids(self, ids: Sequence[int] | np.ndarray) -> TokenDocument:
        """The parts of one document: exact inverse of ``to_ids``.

        Raises MarkupError with the position, what was found there and what may stand there.
        """
        v, grammar = self.vocabulary, Grammar(self)
        parts: list[TokenPart] = []
        start = 0  # of the content of the part being read
        ids = [int(id) for id in ids]
        for position, id in enumerate(ids):
            if grammar.state is State.CLOSED:
                raise MarkupError(f"position {position}: found {v.name(id)}; one document ends at its </doc>")
            grammar.push(id)
            if id in (v.text, v.image, v.end):
                content = ids[start:position]
                if start and ids[start - 1] == v.text:
                    parts.append(TextIds(tuple(t - v.text_start for t in content if t != v.pad)))
                elif start and ids[start - 1] == v.image:
                    parts.append(ImageCodes(tuple(c - v.image_start for c in content)))
                start = position + 1
        if grammar.state is not State.CLOSED:
            raise MarkupError(f"position {len(ids)}: the ids end, but {self.describe(grammar.allowed())} is missing")
        return tuple(parts)

    @cached_property
    def allowed_in(self) -> Mapping[State, np.ndarray]:
        """What may follow in each state: (V,) bool arrays, shared, not writable."""
        v = self.vocabulary
        filling = (v.pad,) if self.text_ids else ()
        return {
            State.START: v.id_set(v.doc),
            State.OPENED: v.id_set(*FOLLOWS[v.doc]),
            State.TEXT_OPENED: v.id_set(modality="text"),
            State.IN_TEXT: v.id_set(*AFTER_PART, *filling, modality="text"),
            State.FILLED: v.id_set(*AFTER_PART, v.pad),
            State.IN_IMAGE: v.id_set(modality="image"),
            State.AFTER_IMAGE: v.id_set(*AFTER_PART),
            State.CLOSED: v.id_set(*FOLLOWS[v.end]),
            State.FINISHED: v.id_set(v.pad),
        }

    def describe(self, allowed: np.ndarray) -> str:
        """A set of ids in words, for messages."""
        v = self.vocabulary
        words = [v.name(int(id)) for id in np.flatnonzero(allowed[: v.text_start])]
        words += ["a text id"] * bool(allowed[v.text_start]) + ["an image code"] * bool(allowed[v.image_start])
        return " or ".join(words)


class Grammar:
    """What may follow what, token by token: a state machine over documents, each closed, and ``<eos>``, then padding.

    >>> grammar = Grammar(Markup(Vocabulary(text_size=3, image_size=3), codes_per_image=2))
    >>> for id in (Vocabulary.doc, Vocabulary.image):
    ...     grammar.push(id)
    >>> grammar.allowed().nonzero()[0].tolist()
    [41, 42, 43]
    """

    def __init__(self, markup: Markup, ids: Sequence[int] | np.ndarray = ()) -> None:
        self.markup = markup
        self.state = State.START
        self.position = 0
        self.codes_left = 0
        for id in ids:
            self.push(int(id))

    def allowed(self) -> np.ndarray:
        """What may be pushed next: (V,) bool, shared, not writable."""
        return self.markup.allowed_in[self.state]

    def push(self, id: int) -> None:
        """Go on by one token. Raises MarkupError if it may not stand here; the state then stays as it was."""
        v = self.markup.vocabulary
        _check_allowed(self.markup, self.allowed(), id, self.position)
        if id == v.doc:
            self.state = State.OPENED
        elif id == v.text:
            self.state = State.TEXT_OPENED
        elif id == v.image:
            self.state, self.codes_left = State.IN_IMAGE, self.markup.codes_per_image
        elif id == v.end:
            self.state = State.CLOSED
        elif id == v.eos:
            self.state = State.FINISHED
        elif v.is_text(id):
            self.state = State.IN_TEXT
        elif id == v.pad and self.state is State.IN_TEXT:
            self.state = State.FILLED
        elif v.is_image(id):
            self.codes_left -= 1
            self.state = State.IN_IMAGE if self.codes_left else State.AFTER_IMAGE
        self.position += 1


def _check_allowed(markup: Markup, allowed: np.ndarray, id: int, position: int) -> None:
    if not 0 <= id < len(allowed) or not allowed[id]:
        found, expected = markup.vocabulary.name(id), markup.describe(allowed)
        raise MarkupError(f"position {position}: found {found}; there may stand {expected}")


def _check_range(what: str, ids: Sequence[int], size: int) -> None:
    if min(ids) < 0 or max(ids) >= size:
        wrong = next(id for id in ids if not 0 <= id < size)
        raise MarkupError(f"{what} {wrong} was given; allowed are 0 to {size - 1}")
