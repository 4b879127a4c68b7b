"""Parts as ids: what a text or a picture is to the generator, whole, with a gap, or as far as it is generated.

Text ids and image codes are those of their tokenizers, from 0; ``markup.py`` moves them to their vocabulary ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from racm3.document import Hole

__all__ = [
    "GeneratedCodes",
    "HiddenCodes",
    "HiddenText",
    "ImageCodes",
    "OpenPart",
    "TextIds",
    "TokenDocument",
    "TokenPart",
]


@dataclass(frozen=True)
class TextIds:
    """A text part: ids of the text tokenizer."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageCodes:
    """An image part: codes of the image tokenizer, row by row."""

    codes: tuple[int, ...]


TokenPart = TextIds | ImageCodes
TokenDocument = tuple[TokenPart, ...]


@dataclass(frozen=True)
class HiddenText:
    """A text part with a gap between ``before`` and ``after``, either of which may be empty."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class HiddenCodes:
    """An image part some of whose codes are to be generated: ``hidden`` (N,) bool beside the ``codes`` (N,).

    ``pixels`` (H, W, 3) uint8: the picture at the image tokenizer's size, which shows outside what is hidden.
    """

    codes: tuple[int, ...]
    hidden: tuple[bool, ...]
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)


OpenPart = TextIds | HiddenText | ImageCodes | HiddenCodes | Hole


@dataclass(frozen=True)
class GeneratedCodes:
    """What the generator chose of a picture so far: ``codes`` by their place, and the places still ``missing``, both in
    its order."""

    codes: Mapping[int, int]
    missing: tuple[int, ...]
