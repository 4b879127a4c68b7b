"""Sheet: pictures beside and below one another, with their words, as one picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import PIL.Image
from PIL import ImageDraw, ImageFont

from racm3.document import Image

__all__ = ["sheet"]

GAP_PX, LINES, FONT_PX = 12, 4, 12
LETTER_PX = 6
"""About the width of a letter of the font."""
PAPER, INK = "white", "black"


def sheet(rows: Sequence[Sequence[tuple[Image | None, str]]], tile_px: int) -> PIL.Image.Image:
    """Rows of tiles, each a picture, made smaller to fit ``tile_px``, above the beginning of its words."""
    columns = max(map(len, rows), default=1)
    words_px = (LINES + 1) * FONT_PX if any(words for row in rows for _, words in row) else 0
    width, height = tile_px + GAP_PX, tile_px + words_px + GAP_PX
    made = PIL.Image.new("RGB", (GAP_PX + columns * width, GAP_PX + len(rows) * height), PAPER)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(FONT_PX)
    for i, row in enumerate(rows):
        for j, (image, words) in enumerate(row):
            left, top = GAP_PX + j * width, GAP_PX + i * height
            if image is not None:
                picture = image.pil
                picture.thumbnail((tile_px, tile_px))
                made.paste(picture, (left, top))
            lines = textwrap.wrap(words, max(8, tile_px // LETTER_PX), max_lines=LINES)
            pen.multiline_text((left, top + tile_px), "\n".join(lines), INK, font, spacing=1)
    return made
