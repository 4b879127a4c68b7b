"""What all readers share: the item that they make, how text and pictures are taken, and the limits on both.

A reader is a generator of drafts: where an item lies, and a function that makes it. Only making it can fail, so a
broken item is treated alike whatever it comes from. Nothing that the data names is looked for outside its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from racm3.document import Document, Image, Part, Text
from racm3.errors import SourceError

MAX_TEXT_CHARS = 10_000
"""Longest text that is read (ours): some 2,500 tokens, more than half of the paper's context of 4,096."""
MAX_FILE_BYTES = 256_000_000
"""Largest picture that is read (ours): what the largest one that is decoded takes uncompressed, with alpha."""
MAX_LINE_BYTES = 1_000_000
"""Longest line or JSON record that is read (ours): far more than a text, bounds what a missing newline costs."""
MAX_NESTING = 50
"""Deepest metadata (ours): whoever writes them again recurses."""
ITEM_ID = "item_id"
"""The field that carries an item's id through formats that restrict their own keys."""


@dataclass(frozen=True)
class Item:
    """A document as a memory keeps it: with an id unique in its source, metadata, and where it came from."""

    id: str
    document: Document
    metadata: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Skipped:
    """A broken item that was left out: where it is, and why."""

    origin: str
    reason: str

    def covers(self, origin: str) -> bool:
        """Whether an item of that origin would come from here: from what is broken itself, or from inside it."""
        return origin == self.origin or origin.startswith((f"{self.origin}#", f"{self.origin}:"))


@dataclass(frozen=True)
class Draft:
    """An item as it lies on disk. ``make`` raises InputError or OSError if it is broken.

    ``origin`` is a file; or a file and what is inside it after a "#", or a line after a ":".
    """

    origin: str
    make: Callable[[], Item]


def broken(reason: str) -> NoReturn:
    """What makes the item of a draft that is known to be broken."""
    raise SourceError(reason)


def name_of(path: Path) -> str:
    """The path as text. Bytes of a file's name that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def inside(folder: Path, name: object) -> Path:
    """The file that data in ``folder`` names. Raises SourceError for a name that is none, or leads out of there."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise SourceError(f"a picture is named by a path relative to {name_of(folder)}, but {name!r} was given")
    if leaves(name):
        raise SourceError(f"the path {name!r} leaves {name_of(folder)}; move the picture there and name it from there")
    return folder / name


def leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def picture(source: Path | bytes) -> Image:
    """The picture in a file or in bytes. Raises ImageError or SourceError if it cannot be read."""
    size_bytes = 0
    if isinstance(source, bytes):
        size_bytes = len(source)
    elif source.exists():  # else Image.open says that it is missing
        if not source.is_file():
            raise SourceError(f"{name_of(source)} is no file")  # reading from a pipe or a device might never end
        size_bytes = source.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise SourceError(f"its picture takes {size_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    return Image.open(source)


def texts(value: Path | bytes | str | None) -> list[Text]:
    """The text in a file, in bytes or given as such: none if it is blank. Raises SourceError if it cannot be read."""
    if isinstance(value, Path):
        if not value.is_file():
            raise SourceError(f"{name_of(value)} is no file")
        with value.open("rb") as file:
            value = file.read(4 * MAX_TEXT_CHARS + 4)  # a character of UTF-8 has at most 4 bytes
    if isinstance(value, bytes):
        if len(value) > 4 * MAX_TEXT_CHARS:
            raise SourceError(f"its text is longer than {MAX_TEXT_CHARS:,} characters; cut it, or split it in passages")
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"its text is not UTF-8 ({error}); write it again in that encoding") from None
    if value is not None and not isinstance(value, str):
        raise SourceError(f"a text is a string, but {type(value).__name__} was given")
    if value is not None and len(value) > MAX_TEXT_CHARS:
        raise SourceError(
            f"its text has {len(value):,} characters; at most {MAX_TEXT_CHARS:,} are read: cut it, or split it in "
            "passages"
        )
    return [Text(value.strip())] if value and value.strip() else []


def pair(text: Path | bytes | str | None, image: Path | bytes | None) -> Document:
    """The text, then the picture: whichever is there. Raises SourceError if none is."""
    parts: list[Part] = [*texts(text), *([] if image is None else [picture(image)])]
    if not parts:
        raise SourceError("it has neither a picture nor a text")
    return Document(tuple(parts))


def json_object(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON text; NaN and Infinity, which are no JSON but common, become None.

    Raises SourceError if it is anything else.
    """
    if len(data) > MAX_LINE_BYTES:
        raise SourceError(f"its JSON is longer than {MAX_LINE_BYTES:,} bytes; more is not read")
    try:
        value = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"its JSON cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise SourceError(f"its JSON is no object but a {type(value).__name__}")
    return value


def lines(file: Path) -> Iterator[bytes | None]:
    """The lines of a file, however long it is; None stands for one that is longer than ``MAX_LINE_BYTES``."""
    with file.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            too_long = len(line) > MAX_LINE_BYTES
            while too_long and not line.endswith(b"\n") and line:
                line = stream.readline(MAX_LINE_BYTES)
            yield None if too_long else line


def checked(item: Item) -> Item:
    """The item, if whatever is in it can be written again. Raises SourceError if not."""
    try:
        _check_nesting(item.metadata.values(), MAX_NESTING)
        document = [part.text for part in item.document.parts if isinstance(part, Text)]
        json.dumps([item.id, document, item.metadata], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"it holds half a character, or bytes that are not UTF-8 ({error.reason})") from None
    return item


def _check_nesting(values: Iterable[Any], levels: int) -> None:
    if levels == 0:
        raise SourceError(f"its metadata are nested deeper than {MAX_NESTING} levels; flatten them")
    for value in values:
        if isinstance(value, dict | list):
            _check_nesting(value.values() if isinstance(value, dict) else value, levels - 1)
