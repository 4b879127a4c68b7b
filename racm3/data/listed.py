"""Documents listed in a file, one a line of JSON (or, for pictures, a row of a table):

    {"file_name": "a/b.png", "text": "two foxes", ...}                  a picture and its caption, which may be missing
    {"text": "Foxes live in ...", ...}                                  text only
    {"parts": ["Two foxes.", {"image": "a/b.png"}, "They sleep."], ...}  texts and pictures in any order

`captions` has other names for "file_name" and for "text", which may be a list. Several lines of one picture are one
item with all their captions. Paths are relative to the file's folder and stay inside it. All else in a line is
metadata. The id is the picture's path, else what the line has as "id", else the file's name and the number of the line.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from racm3.data.captions import (
    PICTURE_FIELDS,
    PICTURE_SUFFIXES,
    Captions,
    beside,
    field_of,
    is_json,
    read_record,
    take_captions,
    told_beside,
)
from racm3.data.item import (
    MAX_LINE_BYTES,
    Draft,
    Item,
    Skipped,
    broken,
    check_pixels,
    inside,
    json_object,
    lines,
    name_of,
    pair,
    picture,
    texts,
)
from racm3.data.writing import file_name
from racm3.document import Document, Image, Part, Text
from racm3.errors import SourceError

FOLDERS_LOOKED_IN = 50
"""Folders beside a list in which a picture is looked for that is not beside it (ours)."""
DELIMITERS = (",", "\t", ";", "|")
LOOKED_AT = 10
"""Lines of a .jsonl that are looked at to tell whether it holds documents (ours)."""

Record = dict[str, Any]
Rows = Callable[[], Iterator[tuple[int, Callable[[], Record]]]]
"""The rows of a list, from its beginning whenever it is called: the number of the line, and what reads it."""


@dataclass
class Line:
    """What a row says: ``name`` a picture, or of a document without one ``text`` or ``parts``; the rest is metadata."""

    name: Any
    text: Any
    parts: Any
    metadata: Record


def read_jsonl(file: Path, root: Path) -> Iterator[Draft | Skipped]:
    """The items of a .jsonl file of pictures, texts or documents; paths in it are relative to ``root``."""

    def rows() -> Iterator[tuple[int, Callable[[], Record]]]:
        for number, line in enumerate(lines(file), start=1):
            if line is None or line.strip():
                yield number, partial(_record, line)

    return listed(rows, file, root)


def _record(line: bytes | None) -> Record:
    if line is None:
        raise SourceError(f"the line is longer than {MAX_LINE_BYTES:,} bytes; more is not read")
    return json_object(line)


def holds_documents(file: Path) -> bool:
    """Whether one of the first lines of a .jsonl is a document."""
    for line in islice(lines(file), LOOKED_AT):
        try:
            _line(_record(line), file)
        except SourceError:
            continue
        return True
    return False


def listed(rows: Rows, file: Path, root: Path, name_field: str | None = None) -> Iterator[Draft | Skipped]:
    """The documents of a list; of a picture that several rows name, when the last of them was read.

    ``name_field``: the field with the picture's name, where all rows have it.
    """
    repeated, places = _repeated(rows, file, name_field), _Places(file.parent)
    waiting: dict[str, list[Line]] = {}
    for number, make_record in rows():
        try:
            line = _line(make_record(), file, name_field)
        except SourceError as error:
            yield Draft(f"{name_of(file)}:{number}", partial(broken, str(error)), scope=name_of(file.parent))
            continue
        left = repeated.get(hash(line.name)) if isinstance(line.name, str) else None
        if left is not None:
            waiting.setdefault(line.name, []).append(line)
            repeated[hash(line.name)] = left - 1
            if left > 1:
                continue
            yield from _draft(waiting.pop(line.name), file, root, number, places)
        else:
            yield from _draft([line], file, root, number, places)
    for several in waiting.values():  # of a list that was written to meanwhile
        yield from _draft(several, file, root, 0, places)


def _repeated(rows: Rows, file: Path, name_field: str | None) -> dict[int, int]:
    """The hashes of the pictures that several rows name, and how many do: a few dozen bytes a row, until it returns."""
    seen: set[int] = set()
    repeated: dict[int, int] = {}
    for _, make_record in rows():
        try:
            name = _line(make_record(), file, name_field).name
        except SourceError:
            continue
        if isinstance(name, str):
            if hash(name) in seen:
                repeated[hash(name)] = repeated.get(hash(name), 1) + 1
            seen.add(hash(name))
    return repeated


def _line(record: Record, file: Path, name_field: str | None = None) -> Line:
    """Raises SourceError if a record is no document."""
    keys = sorted(key for key, value in record.items() if value is not None)
    rest = dict(record)
    field = name_field or ("file_name" if record.get("file_name") is not None else None)
    if field is None and record.get("parts") is None:
        field = _names_a_picture(record)
    listed_nothing = "file_name" in record and field is None and file.name.startswith("metadata.")
    name, parts = rest.pop(field, None) if field else None, rest.pop("parts", None)
    text = rest.pop("text", None) if field is None else None
    if field is None:
        rest.pop("file_name", None)
    if (name is None and parts is None and text is None) or (parts is not None and (field or text is not None)):
        raise SourceError(
            f'a line has a "file_name" (and a "text"), a "text" or "parts", but the keys {keys} were given'
        )
    if listed_nothing and parts is None:
        raise SourceError('its "file_name" is null; a line of pictures names one')
    return Line(name, text, parts, rest)


def _names_a_picture(record: Record) -> str | None:
    """The field that names a picture under another name than "file_name": its value has a picture's ending.

    Raises SourceError if it names pictures in a list or an object: the text would be kept without them.
    """
    field = field_of((name for name, value in record.items() if _is_picture(value)), PICTURE_FIELDS)
    if field is None and (nested := field_of(_nested(record), (*PICTURE_FIELDS, "images"))):
        raise SourceError(f'its "{nested}" is no path; name one picture in "file_name", or several in "parts"')
    return field


def _is_picture(value: object) -> bool:
    return isinstance(value, str) and value.lower().endswith(PICTURE_SUFFIXES) and "://" not in value


def _nested(record: Record) -> Iterator[str]:
    """The fields that hold names of pictures in a list or an object."""
    for name, value in record.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if any(map(_is_picture, inner)):
            yield name


class _Places:
    """Where the pictures of a list lie: where it says, or there inside one of the folders beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._folders: list[Path] | None = None

    def find(self, name: object) -> Path:
        path = inside(self.folder, name)
        if os.path.lexists(path):
            return path
        if self._folders is None:
            try:
                found = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
            except OSError:
                found = []
            self._folders = [self.folder / each for each in found if not each.startswith(".")][:FOLDERS_LOOKED_IN]
        inner = path.relative_to(self.folder)
        places = [folder / inner for folder in self._folders if os.path.lexists(folder / inner)]
        if len(places) > 1:
            raise SourceError(f"{name!r} is in {name_of(places[0])} and in {name_of(places[1])}; say in which")
        return places[0] if places else path


def _draft(several: Sequence[Line], file: Path, root: Path, number: int, places: _Places) -> Iterator[Draft | Skipped]:
    """A picture lies where it lies, all else in its line."""
    first, origin = several[0], f"{name_of(file)}:{number}"
    if first.name is None:
        item_id, metadata = first.metadata.get("id"), first.metadata
        if isinstance(item_id, int | str) and item_id != "":
            metadata = {key: value for key, value in metadata.items() if key != "id"}
        else:
            item_id = f"{name_of(file.relative_to(root).with_suffix(''))}/{number}"
        make = partial(_words, first, metadata, str(item_id), origin, file.parent)
        yield Draft(origin, make, str(item_id), files=_pictures_of(first.parts, file.parent))
        return
    try:
        path = places.find(first.name)
    except SourceError as error:
        yield Draft(origin, partial(broken, str(error)), scope=name_of(file.parent))
        return
    item_id = name_of(path.relative_to(root))
    try:
        captions, metadata = _together(several)
        found = [] if captions else beside(path)
        records = [read_record(record) for record in found if is_json(record)]
    except SourceError as error:
        yield Draft(name_of(path), partial(broken, str(error)), item_id, files=(name_of(path),))
        return
    # A name that is mistyped may mean any picture of the list, among them those that are there and not named.
    scope = None if os.path.lexists(path) else name_of(file.parent)
    make = partial(_picture, path, item_id, captions, metadata, found, records)
    yield Draft(name_of(path), make, item_id, scope, (name_of(path), *map(name_of, found)))


def _together(several: Sequence[Line]) -> tuple[Captions, Record]:
    """The captions of all rows of a picture. A field in which the rows differ is a list, a value for each row."""
    rest = [dict(line.metadata) for line in several]
    captions = sum((take_captions(record) for record in rest), Captions())
    if len(rest) == 1:
        return captions, rest[0]
    values = {key: [record.get(key) for record in rest] for record in rest for key in record}
    same = {key: all(value == given[0] for value in given) for key, given in values.items()}
    return captions, {key: given[0] if same[key] else given for key, given in values.items()}


def _picture(
    path: Path,
    item_id: str,
    captions: Captions,
    metadata: Record,
    found: Sequence[Path],
    records: Sequence[Record],
) -> Item:
    if found:
        told, more = told_beside(found, records)
        captions, metadata = captions + told, {**more, **metadata}
    return captions.item(item_id, [path], metadata, name_of(path))


def _words(line: Line, metadata: Record, item_id: str, origin: str, folder: Path) -> Item:
    document = pair(line.text) if line.parts is None else _interleaved(line.parts, folder)
    return Item(item_id, document, metadata, origin)


def _pictures_of(parts: object, folder: Path) -> tuple[str, ...]:
    """The files of an interleaved document, as far as they are named well."""
    found = []
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and part.keys() == {"image"}:
            try:
                found.append(name_of(inside(folder, part["image"])))
            except SourceError:
                continue  # which making the item says
    return tuple(found)


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
            check_pixels(pixels)
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


def read_csv(file: Path, root: Path) -> Iterator[Draft | Skipped]:
    """A table with a header, its cells between commas, tabs, semicolons or bars; the columns are the fields of a line.

    Raises SourceError if none of them names a picture.
    """
    origin = name_of(file)
    header, delimiter = _header(file)
    name_field = field_of(header, PICTURE_FIELDS)
    if name_field is None or len(set(header)) < len(header):
        raise SourceError(
            f'{origin} has the columns {header}; one "file_name" is needed, and none twice, between commas, tabs, '
            f"semicolons or bars. Also read as such: {', '.join(PICTURE_FIELDS[1:])}"
        )

    def rows() -> Iterator[tuple[int, Callable[[], Record]]]:
        reader = csv.reader(_decoded(file), delimiter=delimiter, strict=True, skipinitialspace=delimiter == "|")
        seen_header = False
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                seen_header = True
                yield reader.line_num, partial(broken, f"the row is no CSV: {error}")
                continue
            if row and seen_header:
                yield reader.line_num, partial(_cells, header, row)
            seen_header = seen_header or bool(row)

    yield from listed(rows, file, root, name_field)


def names_pictures(file: Path) -> bool:
    """Whether a table has a column that names a picture which is there, in one of its first rows, and others."""
    header, delimiter = _header(file)
    field = field_of(header, PICTURE_FIELDS)
    if field is None or len(header) == 1:
        return False
    places, column = _Places(file.parent), header.index(field)
    try:
        for row in islice(csv.reader(_decoded(file), delimiter=delimiter, skipinitialspace=True), 1, LOOKED_AT):
            if column < len(row) and os.path.lexists(places.find(row[column])):
                return True
    except (csv.Error, SourceError):
        pass
    return False


def _header(file: Path) -> tuple[list[str], str]:
    """The names of the columns, and what stands between the cells: what makes one of them a picture's."""
    first = next((line for line in _decoded(file) if line.strip()), "")
    headers = []
    for delimiter in DELIMITERS:
        try:
            row = next(csv.reader([first], delimiter=delimiter, skipinitialspace=delimiter == "|"), [])
        except csv.Error:
            continue
        headers.append(([name.strip() for name in row], delimiter))
    named = (each for each in headers if field_of(each[0], PICTURE_FIELDS) is not None)
    return next(named, headers[0] if headers else ([], ","))


def _cells(header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        raise SourceError(f"the row has {len(row)} cells under {len(header)} columns")
    return dict(zip(header, row, strict=True))


def _decoded(file: Path) -> Iterator[str]:
    """Lines as text, whatever ends them. What is not UTF-8, and a line that is too long, breaks the row it is in."""
    too_long = "x" * (csv.field_size_limit() + 1) + "\n"
    for number, line in enumerate(lines(file)):
        text = too_long if line is None else line.decode("utf-8", "surrogateescape")
        yield from re.split(r"(?<=\r)(?!\n)", text.removeprefix("\ufeff") if number == 0 else text)
