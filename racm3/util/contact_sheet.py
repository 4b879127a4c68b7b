"""Contact sheet: pictures beside and below one another, with their words, as one picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import PIL.Image
from PIL import ImageDraw, ImageFont

from racm3.document import Image

__all__ = ["Tile", "sheet"]

GAP_PX, LINES, FONT_PX = 12, 4, 12
LETTER_PX, LINE_PX = 6, 14
"""About the width of a letter of the font, and the height of a line."""
PAPER, INK, QUIET, MARK = "#ffffff", "#1f2328", "#636a73", "#9a3412"


@dataclass(frozen=True)
class Tile:
    """A picture with words below it and a heading above; without a picture the words take its place."""

    image: Image | None
    words: str = ""
    head: str = ""


def sheet(
    rows: Sequence[Sequence[Tile]],
    tile_px: int,
    titles: Sequence[str] = (),
    marked: Collection[int] = (),
    enlarge: bool = False,
) -> PIL.Image.Image:
    """Rows of tiles, each picture fit into ``tile_px``, above the beginning of its words.

    ``titles``: one above each row, in another colour for the ``marked`` rows. ``enlarge``: small pictures too.
    """
    tiles = [tile for row in rows for tile in row]
    title_px, head_px = (LINE_PX + 2) * bool(titles), LINE_PX * any(tile.head for tile in tiles)
    words_px = (LINES + 1) * FONT_PX if any(tile.words for tile in tiles) else 0
    width, height = tile_px + GAP_PX, title_px + head_px + tile_px + words_px + GAP_PX
    columns = max(map(len, rows), default=1)
    made = PIL.Image.new("RGB", (GAP_PX + columns * width, GAP_PX + len(rows) * height), PAPER)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(FONT_PX)
    for i, row in enumerate(rows):
        top = GAP_PX + i * height
        if titles:
            pen.text((GAP_PX, top), titles[i], MARK if i in marked else INK, font=font)
        for j, tile in enumerate(row):
            left, above, lines = GAP_PX + j * width, top + title_px + head_px, LINES
            pen.text((left, above - head_px), tile.head, QUIET, font=font)
            if tile.image is None:
                lines += tile_px // LINE_PX
            else:
                made.paste(_fit(tile.image.pil, tile_px, enlarge), (left, above))
                above += tile_px
            words = textwrap.wrap(tile.words, max(8, tile_px // LETTER_PX), max_lines=lines)
            pen.multiline_text((left, above), "\n".join(words), INK, font=font, spacing=1)
    return made


def _fit(picture: PIL.Image.Image, tile_px: int, enlarge: bool) -> PIL.Image.Image:
    scale = tile_px / max(picture.size)
    if scale < 1 or enlarge:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        return picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
    return picture
