"""Vocabulary: which id means what. The only place that knows id ranges; nobody else writes an id.

    0 .. 5     <pad> <eos> <doc> </doc> <text> <image>
    6 .. 21    <mask:0> .. <mask:15>        stand where a span was taken out
    22 .. 37   <infill:0> .. <infill:15>    stand before the span, at the end of the sequence
    38 ..      text_size ids of the text tokenizer, then image_size codes of the image tokenizer

Where this order changes, every trained generator becomes useless: a test freezes it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import ClassVar, TypeVar

import numpy as np

from racm3.document import Modality
from racm3.errors import ConfigError, MarkupError

__all__ = ["MAX_MASKS", "Vocabulary"]

MAX_MASKS = 16
"""Most spans taken out of one sequence. Source: CM3 clamps its mask count at 16."""

SPECIAL_NAMES = ("<pad>", "<eos>", "<doc>", "</doc>", "<text>", "<image>")

Ids = TypeVar("Ids", int, np.ndarray)


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the special tokens, of ``text_size`` text tokens and of ``image_size`` image codes.

    >>> v = Vocabulary(text_size=1000, image_size=1000)
    >>> v.size, v.text_start, v.image_start, v.name(v.infill(2)), v.name(40), v.is_text(40)
    (2038, 38, 1038, '<infill:2>', 'text id 2', True)

    Raises ConfigError if a size is not a positive integer.
    """

    text_size: int
    image_size: int

    pad: ClassVar[int] = 0
    eos: ClassVar[int] = 1
    doc: ClassVar[int] = 2
    end: ClassVar[int] = 3
    text: ClassVar[int] = 4
    image: ClassVar[int] = 5
    mask_start: ClassVar[int] = len(SPECIAL_NAMES)
    infill_start: ClassVar[int] = mask_start + MAX_MASKS
    text_start: ClassVar[int] = infill_start + MAX_MASKS

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} of a vocabulary is a positive integer, but {value!r} was given")

    def __deepcopy__(self, memo: object) -> Vocabulary:
        return self  # it cannot change, and constraints, which hold it, are copied in every step

    @property
    def image_start(self) -> int:
        return self.text_start + self.text_size

    @property
    def size(self) -> int:
        """V, the number of all ids."""
        return self.image_start + self.image_size

    def mask(self, i: int) -> int:
        """The id of ``<mask:i>``. Raises MarkupError unless 0 <= i < MAX_MASKS."""
        return self.mask_start + self._numbered("mask", i)

    def infill(self, i: int) -> int:
        """The id of ``<infill:i>``. Raises MarkupError unless 0 <= i < MAX_MASKS."""
        return self.infill_start + self._numbered("infill", i)

    def is_mask(self, ids: Ids) -> Ids:
        """True where an id is a ``<mask:i>``; a bool for an int, a bool array for an array. The same for the next."""
        return (ids >= self.mask_start) & (ids < self.infill_start)

    def is_infill(self, ids: Ids) -> Ids:
        """Which ids are sentinels of infilled spans."""
        return (ids >= self.infill_start) & (ids < self.text_start)

    def is_text(self, ids: Ids) -> Ids:
        """Which ids are of text."""
        return (ids >= self.text_start) & (ids < self.image_start)

    def is_image(self, ids: Ids) -> Ids:
        """Which ids are image codes."""
        return (ids >= self.image_start) & (ids < self.size)

    def id_set(self, *ids: int, modality: Modality | None = None) -> np.ndarray:
        """A set of ids as a (V,) bool array, not writable: the given ones, and all text ids or all image codes."""
        members = np.zeros(self.size, dtype=bool)
        if modality == "text":
            members[self.text_start : self.image_start] = True
        elif modality == "image":
            members[self.image_start :] = True
        members[list(ids)] = True
        members.setflags(write=False)
        return members

    def modalities(self, ids: np.ndarray) -> tuple[Modality, ...]:
        """The modalities that a set of ids, (V,) bool, reaches into; special tokens count as text."""
        found: list[Modality] = ["text"] if ids[: self.image_start].any() else []
        return (*found, "image") if ids[self.image_start :].any() else tuple(found)

    def reach(self, modalities: Collection[Modality]) -> slice:
        """The ids of one or both modalities, the special tokens among those of text."""
        first = 0 if "text" in modalities else self.image_start
        return slice(first, self.size if "image" in modalities else self.image_start)

    def name(self, id: int) -> str:
        """What an id means, for messages."""
        if 0 <= id < self.mask_start:
            return SPECIAL_NAMES[id]
        if self.is_mask(id):
            return f"<mask:{id - self.mask_start}>"
        if self.is_infill(id):
            return f"<infill:{id - self.infill_start}>"
        if self.is_text(id):
            return f"text id {id - self.text_start}"
        if self.is_image(id):
            return f"image code {id - self.image_start}"
        return f"id {id}, which is outside the vocabulary of {self.size}"

    def to_dict(self) -> dict[str, int]:
        """The sizes that make it."""
        return asdict(self)

    @staticmethod
    def _numbered(kind: str, i: int) -> int:
        if not 0 <= i < MAX_MASKS:
            raise MarkupError(f"<{kind}:{i}> does not exist: a sequence has at most {MAX_MASKS} masks, numbered from 0")
        return i
