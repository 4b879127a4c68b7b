"""Pictures, each with a caption in a .txt file of the same name, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from racm3.data.item import Draft, Item, name_of, pair

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_picture(file: Path, root: Path) -> Iterator[Draft]:
    """The id is the path inside ``root``."""
    yield Draft(name_of(file), partial(_item, file, root))


def _item(file: Path, root: Path) -> Item:
    caption = file.with_suffix(".txt")
    document = pair(caption if os.path.lexists(caption) else None, file)
    return Item(name_of(file.relative_to(root)), document, {}, name_of(file))
