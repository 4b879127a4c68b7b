"""Document: an ordered mix of Text, Image and Hole parts. The one type that crosses rooms.

A request is a document with holes; the answer is the same document with the holes filled.

    >>> Document.of("a fox in the snow", Hole("image")).holes
    (1,)
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from racm3.errors import DocumentError, ImageError

Modality = Literal["text", "image"]

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a bigger one is refused as a decompression bomb."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""All that is tried on a file: Pillow would also run Ghostscript on PostScript."""

ORIENTATION = 0x0112
"""The EXIF tag."""
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""What undoes each orientation (EXIF 2.32, table 6)."""


@dataclass(frozen=True)
class Text:
    """A stretch of text, not blank, and optionally the stretch of it that is hidden and to be infilled.

    ``hidden``: (start, end) in characters; where the two are equal, words are to be put in.

        >>> Text("a red fox in the snow", hidden=(2, 9)).around
        ('a', ' in the snow')

    Raises DocumentError if ``text`` is not a string or is blank, or ``hidden`` leaves it or leaves nothing of it.
    """

    text: str
    hidden: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise DocumentError(f"a Text part holds a string, but {type(self.text).__name__} was given")
        if not self.text.strip():
            raise DocumentError("the text is empty; give at least one visible character")
        if self.hidden is not None:
            start, end = self.hidden
            if not 0 <= start <= end <= len(self.text):
                raise DocumentError(f"hidden is {self.hidden}; it lies within the text's {len(self.text)} characters")
            if not "".join(self.around).strip():
                raise DocumentError("all of the text is hidden; leave some of it, or ask for a whole text")

    @property
    def around(self) -> tuple[str, str]:
        """What is visible before and after the hidden stretch. The blanks before it are hidden too: a word and the
        blank before it are one token."""
        start, end = self.hidden or (len(self.text), len(self.text))
        return (self.text[:start].rstrip() if self.hidden else self.text), self.text[end:]

    @property
    def visible(self) -> str:
        """The text without what is hidden."""
        return "".join(self.around)


@dataclass(frozen=True, eq=False)
class Image:
    """A picture, and optionally the region of it that is hidden and to be infilled.

    ``pixels``: (H, W, 3) uint8, RGB. ``mask``: (H, W) bool, True where hidden, or None.
    Raises ImageError if the arrays have another shape or type.
    """

    pixels: np.ndarray
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        p = self.pixels
        if not isinstance(p, np.ndarray) or p.ndim != 3 or p.shape[2] != 3 or p.dtype != np.uint8 or 0 in p.shape:
            given = f"{p.dtype} {p.shape}" if isinstance(p, np.ndarray) else type(p).__name__
            raise ImageError(f"a picture is an (H, W, 3) uint8 RGB array, but {given} was given; use Image.open")
        m = self.mask
        if m is not None and (m.shape != p.shape[:2] or m.dtype != np.bool_):
            raise ImageError(f"a mask is a bool array of shape {p.shape[:2]}, but {m.dtype} {m.shape} was given")

    @classmethod
    def open(cls, source: str | Path | bytes | PIL.Image.Image) -> Image:
        """Read a picture from a path, from encoded bytes, or from a PIL image.

        What counts is the content, not the file's name. Transparency is laid on white, EXIF rotation is applied, of an
        animation the first frame is taken, 16-bit grey is scaled to 8, CMYK and palettes become RGB as Pillow converts
        them (colour profiles are ignored). Raises ImageError if there is no such file, it is no picture of ``FORMATS``,
        it is truncated, or it has more than ``MAX_PIXELS`` pixels, which is known before it is decoded.
        """
        from PIL import UnidentifiedImageError

        name = "the given bytes" if isinstance(source, bytes) else f"{source!s}"
        try:
            if isinstance(source, PIL.Image.Image):
                return cls(_rgb(source, name))
            file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
            with PIL.Image.open(file, formats=FORMATS) as picture:
                return cls(_rgb(picture, name))
        except FileNotFoundError:
            raise ImageError(f"there is no file {name}; check the path") from None
        except IsADirectoryError:
            raise ImageError(f"{name} is a folder; give the path of one picture") from None
        except UnidentifiedImageError:
            raise ImageError(f"{name} is not a picture that can be read; allowed: {', '.join(FORMATS)}") from None
        except ImageError:
            raise
        except Exception as error:  # what Pillow's parsers raise at damaged bytes is of every kind
            raise ImageError(f"{name} cannot be read as a picture: {error!s:.300}") from error

    @property
    def pil(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels)

    def png(self) -> bytes:
        """The picture as PNG bytes: what a memory stores and a page shows."""
        buffer = io.BytesIO()
        self.pil.save(buffer, format="PNG")
        return buffer.getvalue()

    def hiding(self, *boxes: tuple[int, int, int, int]) -> Image:
        """The picture with rectangles of it hidden, each (left, top, width, height) in px, beside what was hidden.

        Raises ImageError if one is empty or not inside the picture.
        """
        height, width = self.pixels.shape[:2]
        mask = np.zeros((height, width), dtype=bool) if self.mask is None else self.mask.copy()
        for left, top, across, down in boxes:
            if min(left, top) < 0 or min(across, down) < 1 or left + across > width or top + down > height:
                raise ImageError(
                    f"the box {left} {top} {across} {down} is not inside the picture, which is {width} x {height} px; "
                    "give LEFT and TOP from 0, and WIDTH and HEIGHT from 1, that stay inside"
                )
            mask[top : top + down, left : left + across] = True
        return Image(self.pixels, mask)

    def resized(self, size_px: int) -> Image:
        """Scale the short side to ``size_px`` and crop the centre square; the mask follows."""
        height, width = self.pixels.shape[:2]
        if (height, width) == (size_px, size_px):
            return self
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        box = (left, top, left + side, top + side)
        pixels = np.array(self.pil.resize((size_px, size_px), PIL.Image.Resampling.LANCZOS, box=box))
        mask = None
        if self.mask is not None:
            hidden = PIL.Image.fromarray(self.mask).resize((size_px, size_px), PIL.Image.Resampling.NEAREST, box=box)
            mask = np.array(hidden, dtype=bool)
        return Image(pixels, mask)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        same_mask = (self.mask is None) == (other.mask is None) and (
            self.mask is None or np.array_equal(self.mask, other.mask)  # type: ignore[arg-type]
        )
        return np.array_equal(self.pixels, other.pixels) and same_mask

    def __hash__(self) -> int:
        return hash((self.pixels.shape, self.pixels.tobytes()))


def _rgb(picture: PIL.Image.Image, name: str) -> np.ndarray:
    """(H, W, 3) uint8: the first frame, upright, on white."""
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} x {picture.height}"
        raise ImageError(f"{name} has {size} pixels; at most {MAX_PIXELS:,} are read")
    picture.load()
    picture = _upright(picture)
    if picture.mode.startswith("I;16"):  # convert() would clip 16-bit grey to white instead of scaling it
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode != "RGB":
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = PIL.Image.alpha_composite(white, picture).convert("RGB")
    return np.array(picture, dtype=np.uint8)


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Rotated as its EXIF says. Damaged EXIF, common on the web, says nothing and costs no picture."""
    try:
        orientation = picture.getexif().get(ORIENTATION)
    except Exception:  # as above
        return picture
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


@dataclass(frozen=True)
class Hole:
    """A part that is missing and to be generated."""

    modality: Modality

    def __post_init__(self) -> None:
        if self.modality not in ("text", "image"):
            raise DocumentError(f"a hole is 'text' or 'image', but {self.modality!r} was given")


Part = Text | Image | Hole


def is_open(part: Part) -> bool:
    """Whether there is something to be generated in a part."""
    if isinstance(part, Text):
        return part.hidden is not None
    return isinstance(part, Hole) or part.mask is not None


def modality_of(part: Part) -> Modality:
    """What a part is, or will be."""
    if isinstance(part, Hole):
        return part.modality
    return "text" if isinstance(part, Text) else "image"


@dataclass(frozen=True)
class Document:
    """An ordered, non-empty mix of parts.

    Raises DocumentError if there is no part, or a part is of another type.
    """

    parts: tuple[Part, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise DocumentError("a document has at least one part; give a text, an image or a hole")
        for part in self.parts:
            if not isinstance(part, (Text, Image, Hole)):
                raise DocumentError(f"a part is a Text, an Image or a Hole, but {type(part).__name__} was given")

    @classmethod
    def of(cls, *parts: Part | str) -> Document:
        """A document from its parts; plain strings become Text."""
        return cls(tuple(Text(part) if isinstance(part, str) else part for part in parts))

    @property
    def text(self) -> str | None:
        """The text parts joined by a space, without what is hidden, or None if there is none."""
        texts = [part.visible for part in self.parts if isinstance(part, Text)]
        return " ".join(texts) if texts else None

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def holes(self) -> tuple[int, ...]:
        """Indices of the parts to be generated: holes, texts with a hidden stretch, images with a hidden region."""
        return tuple(i for i, part in enumerate(self.parts) if is_open(part))

    def only(self, modality: Modality) -> Document | None:
        """The document with the parts of one modality only, holes left out; None if nothing remains."""
        kind = Text if modality == "text" else Image
        parts: Iterable[Part] = [part for part in self.parts if isinstance(part, kind)]
        kept = tuple(parts)
        return Document(kept) if kept else None

    def filled(self, answers: dict[int, Part]) -> Document:
        """The document with the parts at the given indices replaced."""
        return Document(tuple(answers.get(i, part) for i, part in enumerate(self.parts)))
