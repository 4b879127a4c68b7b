"""Mask files: which region of a picture is hidden, by the same rule at the command line and at the API."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from racm3.document import FORMATS, Image
from racm3.errors import ImageError

__all__ = ["masked", "transparent"]

WHITE = 127
"""What is lighter is white, so that JPEG, grey, palettes and 1 bit say the same."""


def masked(picture: str | Path | bytes, mask: str | Path | bytes | None = None) -> Image:
    """The picture with a region hidden: where the mask, or without one the picture itself, is transparent; if nothing
    of the mask is, where it is white.

    A mask of another size, but of the same shape, is scaled. Raises ImageError for a mask of another shape, if nothing
    is hidden, and as ``Image.open`` does.
    """
    shown = Image.open(picture)
    if mask is None:
        hidden, name = transparent(picture), "the picture"
    else:
        light = Image.open(mask).pixels.mean(axis=2) > WHITE
        clear = transparent(mask)
        hidden, name = clear if clear.any() else light, "the mask" if isinstance(mask, bytes) else f"the mask {mask}"
    (height, width), (down, across) = shown.pixels.shape[:2], hidden.shape
    if down * width != height * across:
        raise ImageError(f"{name} is {across} x {down} px, the picture {width} x {height}; make them the same size")
    if not hidden.any():
        raise ImageError(
            f"{name} hides nothing; give a mask that is transparent, or white, where it is to be filled in"
        )
    if (down, across) != (height, width):
        scaled = PIL.Image.fromarray(hidden).resize((width, height), PIL.Image.Resampling.NEAREST)
        hidden = np.array(scaled, dtype=bool)
    return Image(shown.pixels, hidden)


def transparent(source: str | Path | bytes) -> np.ndarray:
    """(H, W) bool: where a picture, known to be one, is fully transparent."""
    with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
        try:
            upright = PIL.ImageOps.exif_transpose(picture)
        except Exception:  # damaged EXIF, which says nothing: as in Image.open
            upright = picture
        return np.asarray(upright.convert("RGBA"))[..., 3] == 0
