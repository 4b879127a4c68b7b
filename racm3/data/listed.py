"""Documents listed in a file, one a line of JSON (or, for pictures, a row of CSV):

    {"file_name": "a/b.png", "text": "two foxes", ...}                  a picture and its caption, which may be missing
    {"text": "Foxes live in ...", ...}                                  text only
    {"parts": ["Two foxes.", {"image": "a/b.png"}, "They sleep."], ...}  texts and pictures in any order

Paths are relative to the file's folder and stay inside it. All else in a line is metadata. The id is the picture's
path, else what the line has as "id", else the file's name and the number of the line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from racm3.data.item import (
    MAX_LINE_BYTES,
    Draft,
    Item,
    broken,
    inside,
    json_object,
    lines,
    name_of,
    pair,
    picture,
    texts,
)
from racm3.data.writing import file_name
from racm3.document import MAX_PIXELS, Document, Image, Part, Text
from racm3.errors import SourceError

MAX_DOCUMENT_PIXELS = 4 * MAX_PIXELS
"""Of all pictures of one document together (ours): 768 MB decoded."""


def read_jsonl(file: Path, root: Path) -> Iterator[Draft]:
    for number, line in enumerate(lines(file), start=1):
        if line is None or line.strip():
            yield _draft(partial(_record, line), file, root, number)


def _record(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise SourceError(f"the line is longer than {MAX_LINE_BYTES:,} bytes; more is not read")
    return json_object(line)


def _draft(make_record: Callable[[], dict[str, Any]], file: Path, root: Path, number: int) -> Draft:
    """A picture lies where it lies, all else in its line."""
    origin = f"{name_of(file)}:{number}"
    try:
        record = make_record()
        given = {key: record.pop(key, None) for key in ("file_name", "parts", "text")}
        kinds = [key for key, value in given.items() if value is not None]
        if not kinds or ("parts" in kinds and len(kinds) > 1):
            keys = sorted([*record, *kinds])
            raise SourceError(
                f'a line has a "file_name" (and a "text"), a "text" or "parts", but the keys {keys} were given'
            )
        if kinds[0] == "file_name":
            path = inside(file.parent, given["file_name"])
            return Draft(name_of(path), partial(_picture, path, given["text"], record, root))
    except SourceError as error:
        return Draft(origin, partial(broken, str(error)))
    place = f"{name_of(file.relative_to(root).with_suffix(''))}/{number}"
    return Draft(origin, partial(_words, given, record, place, origin, file.parent))


def _picture(path: Path, text: Any, metadata: dict[str, Any], root: Path) -> Item:
    return Item(name_of(path.relative_to(root)), pair(text, path), metadata, name_of(path))


def _words(given: dict[str, Any], metadata: dict[str, Any], place: str, origin: str, folder: Path) -> Item:
    item_id = metadata.get("id")
    if isinstance(item_id, int | str) and item_id != "":
        del metadata["id"]
    else:
        item_id = place
    document = pair(given["text"], None) if given["parts"] is None else _interleaved(given["parts"], folder)
    return Item(str(item_id), document, metadata, origin)


def _interleaved(given: object, folder: Path) -> Document:
    if not isinstance(given, list):
        raise SourceError(f'"parts" is a list, but {type(given).__name__} was given')
    parts: list[Part] = []
    pixels = 0
    for part in given:
        if isinstance(part, str):
            parts += texts(part)
        elif isinstance(part, dict) and part.keys() == {"image"}:
            image = picture(inside(folder, part["image"]))
            parts.append(image)
            pixels += image.pixels[..., 0].size
            if pixels > MAX_DOCUMENT_PIXELS:
                raise SourceError(f"its pictures have more than {MAX_DOCUMENT_PIXELS:,} pixels together; split it")
        else:
            raise SourceError(f'a part is a text or {{"image": "path"}}, but {part!r} was given')
    if not parts:
        raise SourceError('its "parts" hold neither a picture nor a text')
    return Document(tuple(parts))


@contextmanager
def writing_documents(folder: Path) -> Iterator[Callable[[Item], None]]:
    """Gives what writes an item, of any parts, to ``folder``/documents.jsonl and its pictures beside it.

    Nothing is made before the first. It raises SourceError if the metadata have a key of the line's own.
    """
    folder = Path(folder)
    with ExitStack() as open_files:
        lines: list[TextIO] = []

        def write(item: Item) -> None:
            if clash := {"id", "parts", "text", "file_name"} & item.metadata.keys():
                raise SourceError(
                    f"item {item.id!r} has metadata {sorted(clash)}, names that a line keeps; rename them"
                )
            if not lines:
                (folder / "images").mkdir(parents=True, exist_ok=True)
                lines.append(open_files.enter_context((folder / "documents.jsonl").open("w", encoding="utf-8")))
            parts: list[str | dict[str, str]] = []
            for number, part in enumerate(item.document.parts):
                if isinstance(part, Image) and part.mask is None:
                    name = f"images/{file_name(item.id)}-{number}.png"
                    (folder / name).write_bytes(part.png())
                    parts.append({"image": name})
                elif isinstance(part, Text):
                    parts.append(part.text)
                else:
                    raise SourceError(f"item {item.id!r} has holes; only complete documents are written")
            lines[0].write(json.dumps({"id": item.id, "parts": parts, **item.metadata}, ensure_ascii=False) + "\n")

        yield write


def read_csv(file: Path, root: Path) -> Iterator[Draft]:
    """A table with a header; the columns are those of a line of JSON, without "parts"."""
    origin = name_of(file)
    rows = csv.reader(_decoded(file), strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Draft(f"{origin}:{rows.line_num}", partial(broken, f"the row is no CSV: {error}"))
            continue
        if header is None:
            header = row
            if "file_name" not in header or len(set(header)) < len(header):
                raise SourceError(f'{origin} has the columns {header}; one "file_name" is needed, and none twice')
        elif row:
            yield _draft(partial(_cells, header, row), file, root, rows.line_num)


def _cells(header: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(header):
        raise SourceError(f"the row has {len(row)} cells under {len(header)} columns")
    return dict(zip(header, row, strict=True))


def _decoded(file: Path) -> Iterator[str]:
    """Lines as text, whatever ends them. What is not UTF-8, and a line that is too long, breaks the row it is in."""
    too_long = "x" * (csv.field_size_limit() + 1) + "\n"
    for number, line in enumerate(lines(file)):
        text = too_long if line is None else line.decode("utf-8", "surrogateescape")
        yield from re.split(r"(?<=\r)(?!\n)", text.removeprefix("\ufeff") if number == 0 else text)
