"""Sheet: one picture of several documents, to look at what a search has found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import PIL.Image
from PIL import ImageDraw, ImageFont

from racm3.memory.sources import Item

__all__ = ["draw_sheet"]

TILE_PX, GAP_PX, LINES, FONT_PX, COLUMNS, LETTERS = 160, 12, 4, 12, 5, 26
PAPER, INK = "white", "black"


def draw_sheet(found: Sequence[tuple[Item, float]]) -> PIL.Image.Image:
    """The documents in reading order, each with its first picture, its score, its id and the beginning of its text."""
    rows = max(1, -(-len(found) // COLUMNS))
    tile = (TILE_PX + GAP_PX, TILE_PX + GAP_PX + (LINES + 1) * FONT_PX)
    sheet = PIL.Image.new("RGB", (GAP_PX + COLUMNS * tile[0], GAP_PX + rows * tile[1]), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for number, (item, score) in enumerate(found):
        left, top = (GAP_PX + tile[axis] * (number % COLUMNS, number // COLUMNS)[axis] for axis in (0, 1))
        for image in item.document.images[:1]:
            picture = image.pil
            picture.thumbnail((TILE_PX, TILE_PX))
            sheet.paste(picture, (left, top))
        words = textwrap.wrap(f"{score:.3f} {item.id}: {item.document.text or ''}", LETTERS, max_lines=LINES)
        pen.multiline_text((left, top + TILE_PX), "\n".join(words), INK, font, spacing=1)
    return sheet
