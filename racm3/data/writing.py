"""What the writers of data share."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Iterator

from racm3.data.item import Item
from racm3.document import Image, Text
from racm3.errors import SourceError


def is_pair(item: Item) -> bool:
    """Whether an item is one text and then one picture, or one of the two, without holes."""
    pictures = item.document.images
    text = [Text(item.document.text)] if item.document.text else []
    return item.document.parts == (*text, *pictures[:1]) and not any(p.mask is not None for p in pictures)


def text_and_picture(item: Item) -> tuple[str | None, Image | None]:
    """The text and the picture of an item that has no more than these, in this order."""
    if not is_pair(item):
        given = ", ".join(type(part).__name__ for part in item.document.parts)
        raise SourceError(f"item {item.id!r} is {given}; this format keeps one text, then one picture, without holes")
    pictures = item.document.images
    return item.document.text, pictures[0] if pictures else None


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """The items as they come. Raises SourceError at an id that was there before."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise SourceError(f"two items have the id {item.id!r}; ids are unique in a source")
        seen.add(item.id)
        yield item


def file_name(item_id: str) -> str:
    """An id as one path component without dots (WebDataset ends a key at its first dot); distinct for distinct ids."""
    return urllib.parse.quote(item_id, safe="").replace(".", "%2E")
