"""Documents listed in a file, one a line of JSON (or, for pictures, a row of CSV):

    {"file_name": "a/b.png", "text": "two foxes", ...}                  a picture and its caption, which may be missing
    {"text": "Foxes live in ...", ...}                                  text only
    {"parts": ["Two foxes.", {"image": "a/b.png"}, "They sleep."], ...}  texts and pictures in any order

Paths are relative to the file's folder and stay inside it. All else in a line is metadata. The id is the picture's
path, else what the line has as "id", else the file's name and the number of the line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from racm3.document import MAX_PIXELS, Document, Part
from racm3.errors import SourceError
from racm3.memory.sources.item import (
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

MAX_DOCUMENT_PIXELS = 4 * MAX_PIXELS
"""Of all pictures of one document together (ours): 768 MB decoded."""


def read_jsonl(file: Path, root: Path) -> Iterator[Draft]:
    for number, line in enumerate(lines(file), start=1):
        if line is None or line.strip():
            yield Draft(f"{name_of(file)}:{number}", partial(_line, line, file, root, number))


def _line(line: bytes | None, file: Path, root: Path, number: int) -> Item:
    if line is None:
        raise SourceError(f"the line is longer than {MAX_LINE_BYTES:,} bytes; more is not read")
    return _item(json_object(line), file, root, number)


def _item(record: dict[str, Any], file: Path, root: Path, number: int) -> Item:
    kinds = [key for key in ("file_name", "parts", "text") if record.get(key) is not None]
    if not kinds or ("parts" in kinds and len(kinds) > 1):
        raise SourceError(
            f'a line has a "file_name" (and a "text"), a "text" or "parts", but the keys {sorted(record)} were given'
        )
    given = {key: record.pop(key, None) for key in ("file_name", "parts", "text")}
    origin = f"{name_of(file)}:{number}"
    if kinds[0] == "file_name":
        path = inside(file.parent, given["file_name"])
        return Item(name_of(path.relative_to(root)), pair(given["text"], path), record, name_of(path))
    item_id = record.get("id")
    if isinstance(item_id, int | str) and item_id != "":
        del record["id"]
    else:
        item_id = f"{name_of(file.relative_to(root).with_suffix(''))}/{number}"
    document = pair(given["text"], None) if kinds[0] == "text" else _interleaved(given["parts"], file.parent)
    return Item(str(item_id), document, record, origin)


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
            yield Draft(f"{origin}:{rows.line_num}", partial(_row, header, row, file, root, rows.line_num))


def _row(header: list[str], row: list[str], file: Path, root: Path, number: int) -> Item:
    if len(row) != len(header):
        raise SourceError(f"the row has {len(row)} cells under {len(header)} columns")
    return _item(dict(zip(header, row, strict=True)), file, root, number)


def _decoded(file: Path) -> Iterator[str]:
    """Lines as text. What is not UTF-8, and a line that is too long, breaks the row that it is in."""
    too_long = "x" * (csv.field_size_limit() + 1) + "\n"
    for number, line in enumerate(lines(file)):
        text = too_long if line is None else line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text
