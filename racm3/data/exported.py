"""Shards that keep items exactly: WebDataset for everybody, and for racm3 the ids, parts and origins as they were.

A sample is .txt (all texts), .json (the metadata) and its pictures, .png or .0.png, .1.png..., as other tools read
them; its .racm3.json has the id, the origin and the parts in order: a string is a text, {"image": extension} a picture.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from racm3.data.item import MAX_FILE_BYTES, Item, checked, picture
from racm3.data.writing import file_name, unique
from racm3.document import Document, Image, Part, Text, is_open
from racm3.errors import SourceError

__all__ = ["RECORD", "exported_id", "exported_item", "write_shards"]

RECORD = "racm3.json"
"""The extension that tells of such a sample."""
MAX_NAME_CHARS = 200
"""Of an id that names its sample (ours); a longer one has a number instead."""


def write_shards(items: Iterable[Item], folder: Path, items_per_shard: int = 10_000) -> list[Path]:
    """Write items of any parts as ``folder``/000000.tar, 000001.tar..., durably.

    Raises SourceError if an item has holes, is too large to be read again, or shares its id with another.
    """
    shards: list[Path] = []
    remaining, number = unique(items), 0
    while first := list(islice(remaining, 1)):
        shard = folder / f"{len(shards):06d}.tar"
        with shard.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for item in chain(first, islice(remaining, items_per_shard - 1)):
                    for name, data in _members(item, number):
                        header = tarfile.TarInfo(name)
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))
                    number += 1
                    tar.members = []  # type: ignore[attr-defined]  # or it keeps the headers of the whole shard
            file.flush()
            os.fsync(file.fileno())
        shards.append(shard)
    return shards


def _members(item: Item, number: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a sample."""
    checked(item)
    name = file_name(item.id)
    key = name if 0 < len(name) <= MAX_NAME_CHARS else f"{number:09d}"
    parts: list[str | dict[str, str]] = []
    count = len(item.document.images)
    for part in item.document.parts:
        if is_open(part):
            raise SourceError(f"item {item.id!r} has holes; only complete documents are written")
        if isinstance(part, Text):
            parts.append(part.text)
        elif isinstance(part, Image):
            extension = "png" if count == 1 else f"{sum(isinstance(p, dict) for p in parts)}.png"
            parts.append({"image": extension})
            yield f"{key}.{extension}", _readable(item, part.png())
    if item.document.text:
        yield f"{key}.txt", _readable(item, item.document.text.encode())
    yield f"{key}.json", _readable(item, _json(item.metadata))
    yield f"{key}.{RECORD}", _readable(item, _json({"id": item.id, "origin": item.origin, "parts": parts}))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _readable(item: Item, data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise SourceError(
            f"item {item.id!r} takes {len(data):,} bytes in one file; at most {MAX_FILE_BYTES:,} are read"
        )
    return data


def exported_id(members: Mapping[str, bytes]) -> str | None:
    """The id of a sample with a `RECORD`; None if that cannot be read."""
    try:
        return str(_object(members[RECORD])["id"])
    except (SourceError, KeyError):
        return None


def exported_item(members: Mapping[str, bytes]) -> Item:
    """The item of a sample with a `RECORD`, exactly as it was. Raises SourceError or ImageError if it is damaged."""
    record, metadata = _object(members[RECORD]), _object(members.get("json", b"{}"))
    try:
        parts: list[Part] = [
            Text(part) if isinstance(part, str) else picture(members[part["image"]]) for part in record["parts"]
        ]
        item_id, origin = record["id"], record["origin"]
    except (KeyError, TypeError) as error:
        raise SourceError(
            f"its .{RECORD} is not one that racm3 wrote, or a picture of it is missing: {error}"
        ) from None
    if not isinstance(item_id, str) or not isinstance(origin, str):
        raise SourceError(f"its .{RECORD} has no id or origin that is a string")
    return Item(item_id, Document(tuple(parts)), metadata, origin)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"its JSON cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise SourceError(f"its JSON is no object but a {type(value).__name__}")
    return value
