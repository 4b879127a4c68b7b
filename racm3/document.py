"""Document: an ordered mix of Text, Image and Hole parts. The one type that crosses rooms.

A request is a document with holes; the answer is the same document with the holes filled.

    >>> Document.of("a fox in the snow", Hole("image")).holes
    (1,)
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from racm3.errors import DocumentError, FormatError, ImageError

Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a bigger one is refused as a decompression bomb."""

MOST_PIXELS = {"WEBP": 56_000_000, "AVIF": 50_000_000, "HEIF": 50_000_000, "JPEG2000": 32_000_000}
"""The same for formats whose decoders take more memory: no picture takes more than 1 GB."""

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PSD", "ICO", "CUR", "ICNS", "DDS", "DIB"),
    *("PPM", "QOI", "SGI", "PCX", "DCX", "SUN", "XBM", "XPM", "MSP", "PIXAR", "GBR", "FTEX", "BLP", "FLI", "TGA"),
)
"""All that is tried on a file, and HEIF with the extra ``heif``: Pillow would also run Ghostscript on PostScript, and
take measurements (FITS, SPIDER, HDF5) for pictures. TGA is last: it has no mark of its own."""
FOREIGN = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (0, b"gimp xcf", "XCF"),
    (0, b"8BPS\0\2", "PSB"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
)
"""Where, and what, pictures of formats that are not read begin with."""
MARKS = (
    *((0, b"\x89PNG\r\n\x1a\n"), (0, b"\xff\xd8\xff"), (8, b"WEBP"), (0, b"GIF8"), (0, b"II*\0"), (0, b"MM\0*")),
    *((4, b"ftypavi"), (4, b"jP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51"), (0, b"8BPS"), (0, b"icns"), (0, b"DDS ")),
    *((0, b"qoif"), (0, b"\x59\xa6\x6a\x95"), (0, b"BLP2"), (0, b"/* XPM */")),
    *((offset, mark) for offset, mark, _ in FOREIGN),
)
"""Where, and what, a file begins with that is a picture whatever its name, read or not."""

ORIENTATION = 0x0112
"""The EXIF tag."""
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
"""What undoes each orientation (EXIF 2.32, table 6) of (H, W, 3)."""
BAND_PIXELS = 1 << 20
"""Converted at once (ours): what is between a decoded picture and its RGB is never held for all of it."""


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

        What counts is the content, not the file's name. EXIF rotation is applied, of an animation the first frame is
        taken, transparency is laid on white, CMYK and palettes become RGB as Pillow converts them (colour profiles are
        ignored). Grey of more than 8 bits is scaled: 16 bits by 1/256, 12 by 1/16; integers of 32 bits that lie within
        0 to 255 are taken as they are, within 0 to 65,535 as 16 bits; floats within 0 to 1 are times 255, else as the
        integers. A JPEG or JPEG 2000 of too many pixels is scaled down while it is decoded.

        Raises ImageError if there is no such file, it is truncated, its values do not say what is black and what is
        white, or it has more than ``MAX_PIXELS`` pixels (``MOST_PIXELS`` of some formats), which is known before it is
        decoded; FormatError if it is a picture of a format that is not among ``FORMATS``.
        """
        from PIL import UnidentifiedImageError

        name = "the given bytes" if isinstance(source, bytes) else f"{source!s}"
        try:
            if isinstance(source, PIL.Image.Image):
                return cls(_rgb(source, name))
            file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
            with PIL.Image.open(file, formats=formats()) as picture:
                return cls(_rgb(picture, name))
        except FileNotFoundError:
            raise ImageError(f"there is no file {name}; check the path") from None
        except IsADirectoryError:
            raise ImageError(f"{name} is a folder; give the path of one picture") from None
        except UnidentifiedImageError:
            raise _unidentified(source, name) from None
        except PIL.Image.DecompressionBombError as error:
            told = str(error).partition(", could be")[0]
            raise ImageError(f"{name} has too many pixels to be opened ({told}); scale it down") from None
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


@cache
def formats() -> tuple[str, ...]:
    """All of ``FORMATS`` that the installed Pillow knows, and HEIF if pillow-heif is installed."""
    PIL.Image.init()
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)  # `_rgb` has a limit of its own
    return tuple(name for name in (*FORMATS, "HEIF") if name in PIL.Image.OPEN)


def is_marked(head: bytes) -> bool:
    """Whether a file that begins so (32 bytes are enough) is a picture, whatever its name says."""
    return any(head.startswith(mark, offset) for offset, mark in MARKS)


def _unidentified(source: object, name: str) -> ImageError:
    """Why a picture that Pillow does not identify is not read."""
    if isinstance(source, bytes):
        head = source[:32]
    else:
        with Path(str(source)).open("rb") as file:
            head = file.read(32)
    found = next((title for offset, mark, title in FOREIGN if head.startswith(mark, offset)), None)
    if found is None:
        return ImageError(f"{name} is not a picture that can be read; allowed: {', '.join(formats())}")
    cure = "install racm3[heif], which reads it" if found == "HEIC" and "HEIF" not in formats() else "convert it to PNG"
    return FormatError(f"{name} is not a picture that can be read: its format is {found}; {cure}")


def _rgb(picture: PIL.Image.Image, name: str) -> np.ndarray:
    """(H, W, 3) uint8: the first frame, upright, on white."""
    most = min(MAX_PIXELS, MOST_PIXELS.get(picture.format or "", MAX_PIXELS))
    width, height = _scaled_down(picture, most)
    if width * height > most:
        raise ImageError(f"{name} has {width} x {height} pixels; at most {most:,} are read")
    stored = _Stored.of(picture)
    picture.load()
    convert = _conversion(picture, stored, name)
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        band = picture if rows >= height else picture.crop((0, top, width, min(height, top + rows)))
        pixels[top : top + rows] = convert(band)
    upright = UPRIGHT.get(_orientation(picture))
    return pixels if upright is None else np.ascontiguousarray(upright(pixels))


def _scaled_down(picture: PIL.Image.Image, most: int) -> tuple[int, int]:
    """The width and height that a picture will be decoded at: a JPEG of too many pixels at 1/2, 1/4 or 1/8."""
    from PIL import Jpeg2KImagePlugin, JpegImagePlugin

    def at(scale: int) -> tuple[int, int]:
        return -(-picture.width // scale), -(-picture.height // scale)

    if not isinstance(picture, (JpegImagePlugin.JpegImageFile, Jpeg2KImagePlugin.Jpeg2KImageFile)):
        return picture.size
    scale = next((scale for scale in (1, 2, 4) if math.prod(at(scale)) <= most), 8)
    size = at(scale)
    if scale > 1 and isinstance(picture, JpegImagePlugin.JpegImageFile):
        picture.draft(None, (max(1, picture.width // scale), max(1, picture.height // scale)))
    elif scale > 1 and isinstance(picture, Jpeg2KImagePlugin.Jpeg2KImageFile):
        picture.reduce = scale.bit_length() - 1
    return size


@dataclass(frozen=True)
class _Stored:
    """How a file keeps its numbers, as far as the decoded picture does not tell it."""

    raw_mode: str = ""
    white_is_zero: bool = False
    signed: bool = False
    sixteen_bits: bool = False

    @classmethod
    def of(cls, picture: PIL.Image.Image) -> _Stored:
        """Of a picture that is not decoded yet."""
        tile = next(iter(getattr(picture, "tile", None) or ()), None)
        args = tile[3] if tile else None
        raw_mode = args[0] if isinstance(args, tuple) and args else args
        tags = getattr(picture, "tag_v2", None) if picture.format == "TIFF" else None
        photometric, samples = (tags.get(262), tags.get(339, ())) if tags else (None, ())
        return cls(
            raw_mode if isinstance(raw_mode, str) else "",
            photometric == 0,
            2 in (samples if isinstance(samples, tuple) else (samples,)),
            picture.format == "PPM",  # which Pillow scales to 16 bits, whatever its largest value
        )


def _conversion(picture: PIL.Image.Image, stored: _Stored, name: str) -> Callable[[PIL.Image.Image], np.ndarray]:
    """What makes (H, W, 3), or (H, W, 1), uint8 of a band of a decoded picture. Raises ImageError if nothing does."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16") or (stored.signed and picture.mode == "L"):
        return _grey(picture, stored, name)
    clear = picture.info.get("transparency")
    if clear is not None and picture.format == "PNG":  # the colour is kept with the bits of the file
        scale = {"L;2": 85, "L;4": 17}.get(stored.raw_mode, 1)
        if picture.mode == "L" and isinstance(clear, int):
            picture.info["transparency"] = clear * scale
        elif stored.raw_mode == "RGB;16B":
            picture.info["transparency"] = tuple(value >> 8 for value in clear)
    if picture.mode == "RGB" and clear is None:
        return np.asarray

    def on_white(band: PIL.Image.Image) -> np.ndarray:
        band = band.convert("RGBA")
        white = PIL.Image.new("RGBA", band.size, (255, 255, 255, 255))
        return np.asarray(PIL.Image.alpha_composite(white, band).convert("RGB"))

    return on_white


def _grey(picture: PIL.Image.Image, stored: _Stored, name: str) -> Callable[[PIL.Image.Image], np.ndarray]:
    """The conversion of grey of more than 8 bits, or signed; its scale is that of the whole picture."""
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        low, high = map(float, picture.getextrema())  # type: ignore[arg-type]
    signed_byte = picture.mode == "L" and high > 127
    if signed_byte or not 0 <= low <= high <= 65535:
        given = "below zero" if signed_byte else f"from {low:g} to {high:g}"
        raise ImageError(
            f"{name} has values {given}, which do not say what is black and what is white; scale them to 0 to 255"
        )
    if stored.raw_mode == "I;12":
        factor = 1 / 16
    elif picture.mode == "F" and high <= 1:
        factor = 255.0
    else:
        factor = 1 / 256 if high > 255 or (stored.sixteen_bits and picture.mode == "I") else 1.0

    def scaled(band: PIL.Image.Image) -> np.ndarray:
        values = np.asarray(band)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ImageError(f"{name} has values that are no numbers; replace them")
        grey = (values * factor).round().astype(np.uint8) if factor > 1 else (values * factor).astype(np.uint8)
        if stored.white_is_zero:
            grey = 255 - grey
        if isinstance(clear, int):
            grey = np.where(values == clear, np.uint8(255), grey)
        return grey[..., None]

    return scaled


def _orientation(picture: PIL.Image.Image) -> int:
    """As its EXIF says. Damaged EXIF, common on the web, says nothing and costs no picture."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # as above
        return 1


@dataclass(frozen=True)
class Hole:
    """A part that is missing and to be generated."""

    modality: Modality

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
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
