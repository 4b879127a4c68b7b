"""What all readers share: the item that they make, how text and pictures are taken, and the limits on both.

A reader is a generator of drafts: where an item lies, and a function that makes it. Only making it can fail, so a
broken item is treated alike whatever it comes from. Nothing that the data names is looked for outside its folder.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from racm3.document import MAX_PIXELS, Document, Image, Part, Text
from racm3.errors import SourceError

MAX_TEXT_CHARS = 10_000
"""Longest text that is read (ours): some 2,500 tokens, more than half of the paper's context of 4,096."""
MAX_FILE_BYTES = 256_000_000
"""Largest picture that is read (ours): what the largest one that is decoded takes uncompressed, with alpha."""
MAX_DOCUMENT_PIXELS = 4 * MAX_PIXELS
"""Of all pictures of one document together (ours): 768 MB decoded."""
MAX_LINE_BYTES = 1_000_000
"""Longest line or JSON record that is read (ours): far more than a text, bounds what a missing newline costs."""
MAX_NESTING = 50
"""Deepest metadata (ours): whoever writes them again recurses."""
ITEM_ID = "item_id"
"""The field that carries an item's id through formats that restrict their own keys."""


@dataclass(frozen=True)
class Item:
    """A document as a memory keeps it: with an id unique in its source, metadata, and where it came from.

    ``problems``: why some of its captions were left out, which no memory keeps.
    """

    id: str
    document: Document
    metadata: dict[str, Any]
    origin: str
    problems: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Skipped:
    """What was left out: where it is, and why. Broken, or, if ``unread`` says what it is, of a kind that is not read.

    ``item_id``: of the item that it would have made, or that lacks it, where that is known. ``scope`` is the file or
    the folder that holds all that it may stand for, if it is no such item. ``count``: how many of them, as members of
    a shard.
    """

    origin: str
    reason: str
    item_id: str | None = None
    scope: str | None = None
    unread: str = ""
    count: int = 1


@dataclass(frozen=True)
class Draft:
    """An item as it lies on disk. ``make`` raises InputError or OSError if it is broken.

    ``origin`` is a file; or a file and what is inside it after a "#", or a line after a ":". ``item_id`` and ``scope``
    are those of `Skipped`, if it is broken. ``files``: those that it is made of, where they are not the source's own.
    """

    origin: str
    make: Callable[[], Item]
    item_id: str | None = None
    scope: str | None = None
    files: tuple[str, ...] = ()


class Protected:
    """The items of a memory that skipped ones may stand for: what could not be read is no proof that it is gone.

    ``root`` is the source's folder: an item from elsewhere may be the same one under another path, and stays.
    """

    def __init__(self, root: Path) -> None:
        self._root = name_of(root)
        self._ids: set[str] = set()
        self._origins: set[str] = set()
        self._scopes: dict[str, dict[str | None, str]] = {}

    def add(self, skipped: Skipped) -> None:
        """Note a skipped item."""
        if skipped.item_id is not None:
            self._ids.add(skipped.item_id)
        if skipped.scope is not None:
            why = f"{skipped.origin}: {skipped.reason}"
            self._scopes.setdefault(skipped.scope, {}).setdefault(skipped.item_id, why)
        if skipped.item_id is not None or skipped.scope is not None:
            self._origins.add(skipped.origin)

    def settle(self, known: Callable[[Collection[str]], Collection[str]]) -> None:
        """Say which of some ids the memory holds: those stand for themselves alone, and for nothing else in scope."""
        here = known(self._ids)
        left = {scope: {i: why for i, why in ids.items() if i not in here} for scope, ids in self._scopes.items()}
        self._scopes = {scope: ids for scope, ids in left.items() if ids}

    @property
    def unknown(self) -> list[str]:
        """What was skipped without a sign of which items it stands for; one for each scope."""
        return [next(iter(ids.values())) for ids in self._scopes.values()]

    def __call__(self, item_id: str, origin: str) -> bool:
        """Whether that item may have been skipped."""
        if item_id in self._ids or any(within(origin, scope) for scope in self._scopes):
            return True
        if self._scopes and not within(origin, self._root):
            return True
        ends = [len(origin), *(i for i, character in enumerate(origin) if character in "#:")]
        return any(origin[:end] in self._origins for end in ends)


def within(origin: str, place: str) -> bool:
    """Whether an item of that origin comes from a file or a folder."""
    if place == ".":
        return not os.path.isabs(origin) and not origin.startswith("..")
    return origin == place or origin.startswith(tuple(f"{place.rstrip('/')}{mark}" for mark in "/#:"))


def broken(reason: str) -> NoReturn:
    """What makes the item of a draft that is known to be broken."""
    raise SourceError(reason)


def name_of(path: Path) -> str:
    """The path as text. Bytes of a file's name that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def inside(folder: Path, name: object) -> Path:
    """The file that data in ``folder`` names, by a path relative to it, or an absolute one or one with a ~ that leads
    into it; backslashes may stand for slashes. Raises SourceError for a name that is none, or leads out of there."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise SourceError(f"a picture is named by a path relative to {name_of(folder)}, but {name!r} was given")
    if name.lower().startswith(("http://", "https://", "s3://", "gs://")):
        raise SourceError(f"{name!r} is a URL; download the pictures first, for instance with img2dataset")
    path = name
    if "\\" in path and not os.path.lexists(folder / path):
        path = path.replace("\\", "/")
    if path.startswith("~"):
        path = os.path.expanduser(path)
    if os.path.isabs(path):
        path = _relative(path, folder)
    if leaves(path):
        raise SourceError(f"the path {name!r} leaves {name_of(folder)}; move the picture there and name it from there")
    return folder / path


def _relative(path: str, folder: Path) -> str:
    """An absolute path as one relative to ``folder``, if it leads there."""
    tops = {os.path.abspath(folder), os.path.realpath(folder)}
    inner = (os.path.relpath(path, top) for top in tops if os.path.normpath(path).startswith(top.rstrip("/") + "/"))
    return next(inner, path)


def leaves(name: str) -> bool:
    """Whether a path leads out of the folder that it is relative to."""
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


def encoding_of(head: bytes) -> str:
    """How a text that begins so is encoded: by its mark, or by the zeros between Latin letters in UTF-16."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    pairs = head[: len(head) // 2 * 2]
    even, odd = pairs[::2].count(0), pairs[1::2].count(0)
    if max(even, odd) > len(pairs) // 4 and min(even, odd) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return "utf-8-sig"


def decoded(data: bytes) -> str:
    """A text of UTF-8, or of UTF-16 or UTF-32 that shows it. Raises SourceError if it is anything else."""
    try:
        return data.decode(encoding_of(data[:1000]))
    except UnicodeDecodeError as error:
        raise SourceError(f"its text is not UTF-8 ({error}); write it again in that encoding") from None


HALF_A_CHARACTER = "it holds half a character, or bytes that are not UTF-8"


def is_unicode(text: str) -> bool:
    """Whether a text can be written again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def content(file: Path, most_bytes: int) -> bytes:
    """What is in a file, up to one byte more than ``most_bytes``. Raises SourceError if it is none."""
    if not file.is_file():
        raise SourceError(f"{name_of(file)} is no file")
    with file.open("rb") as stream:
        return stream.read(most_bytes + 1)


def texts(value: Path | bytes | str | None) -> list[Text]:
    """The text in a file, in bytes or given as such: none if it is blank. Raises SourceError if it cannot be read."""
    most_bytes = 4 * MAX_TEXT_CHARS + 4  # a character has at most 4 bytes, and so has the mark of an encoding
    if isinstance(value, Path):
        value = content(value, most_bytes)
    if isinstance(value, bytes):
        if len(value) > most_bytes:
            raise SourceError(f"its text is longer than {MAX_TEXT_CHARS:,} characters; cut it, or split it in passages")
        value = decoded(value)
    if value is not None and not isinstance(value, str):
        raise SourceError(f"a text is a string, but {type(value).__name__} was given")
    if value is not None and len(value) > MAX_TEXT_CHARS:
        raise SourceError(
            f"its text has {len(value):,} characters; at most {MAX_TEXT_CHARS:,} are read: cut it, or split it in "
            "passages"
        )
    if value and not is_unicode(value):
        raise SourceError(HALF_A_CHARACTER)
    return [Text(value.strip())] if value and value.strip() else []


def pair(text: Path | bytes | str | Text | None, *images: Path | bytes | None) -> Document:
    """The text, then the pictures: whichever is there. Raises SourceError if nothing is."""
    parts: list[Part] = [text] if isinstance(text, Text) else [*texts(text)]
    pixels = 0
    for image in images:
        if image is not None:
            parts.append(picture(image))
            pixels += parts[-1].pixels[..., 0].size  # type: ignore[union-attr]
            check_pixels(pixels)
    if not parts:
        raise SourceError("it has neither a picture nor a text")
    return Document(tuple(parts))


def check_pixels(pixels: int) -> None:
    """Raises SourceError for more pixels than one document may have."""
    if pixels > MAX_DOCUMENT_PIXELS:
        raise SourceError(f"its pictures have more than {MAX_DOCUMENT_PIXELS:,} pixels together; split it")


def json_object(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON text; NaN and Infinity, which are no JSON but common, become None.

    Raises SourceError if it is anything else.
    """
    if len(data) > MAX_LINE_BYTES:
        raise SourceError(f"its JSON is longer than {MAX_LINE_BYTES:,} bytes; more is not read")
    try:
        value = json.loads(decoded(data) if isinstance(data, bytes) else data, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, json.JSONDecodeError) else "its numbers are too long, or it is nested too deep"
        raise SourceError(f"its JSON cannot be read: {why}") from None
    if not isinstance(value, dict):
        raise SourceError(f"its JSON is no object but a {type(value).__name__}")
    return value


def lines(file: Path) -> Iterator[bytes | None]:
    """The lines of a file in UTF-8, however long it is; None stands for one that is longer than ``MAX_LINE_BYTES``."""
    with file.open("rb") as stream:
        encoding = encoding_of(stream.read(1000))
        stream.seek(0)
        if encoding != "utf-8-sig":
            with io.TextIOWrapper(stream, encoding, "surrogatepass", newline="\n") as text:
                yield from _recoded(text)
            return
        while line := stream.readline(MAX_LINE_BYTES + 1):
            too_long = len(line) > MAX_LINE_BYTES
            while too_long and not line.endswith(b"\n") and line:
                line = stream.readline(MAX_LINE_BYTES)
            yield None if too_long else line


def _recoded(stream: io.TextIOWrapper) -> Iterator[bytes | None]:
    try:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            too_long = len(line) > MAX_LINE_BYTES
            while too_long and not line.endswith("\n") and line:
                line = stream.readline(MAX_LINE_BYTES)
            yield None if too_long else line.removeprefix("\ufeff").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        yield b"\xff"  # which breaks the line: the file ends within a character


def checked(item: Item) -> Item:
    """The item, if whatever is in it can be written again. Raises SourceError if not."""
    try:
        _check_nesting(item.metadata.values(), MAX_NESTING)
        document = [part.text for part in item.document.parts if isinstance(part, Text)]
        json.dumps([item.id, document, item.metadata], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SourceError(HALF_A_CHARACTER) from None
    return item


def _check_nesting(values: Iterable[Any], levels: int) -> None:
    if levels == 0:
        raise SourceError(f"its metadata are nested deeper than {MAX_NESTING} levels; flatten them")
    for value in values:
        if isinstance(value, dict | list):
            _check_nesting(value.values() if isinstance(value, dict) else value, levels - 1)
