"""The sheet of documents that a search has found."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image

from racm3.data import Item
from racm3.util.contact_sheet import Tile, sheet

__all__ = ["draw_sheet"]

TILE_PX, COLUMNS = 160, 5


def draw_sheet(found: Sequence[tuple[Item, float]]) -> PIL.Image.Image:
    """The documents in reading order, each with its first picture, its score, its id and the beginning of its text."""
    tiles = [
        Tile(next(iter(item.document.images), None), f"{score:.3f} {item.id}: {item.document.text or ''}")
        for item, score in found
    ]
    return sheet([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)], TILE_PX)
