"""Parquet with pictures in it: a column of them, encoded (bytes, or Hugging Face's {bytes, path}), and one of texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from racm3.data.captions import PICTURE_FIELDS, TEXT_FIELDS, Captions, field_of
from racm3.data.item import ITEM_ID, Draft, Item, Skipped, broken, inside, name_of
from racm3.data.listed import listed
from racm3.errors import SourceError

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
TEXTS = ("text", "caption", "txt", "captions", "sentences", *TEXT_FIELDS)
IDS = (ITEM_ID, "id", "key", "__key__")
ROWS = 16
"""Held at a time (ours): a picture may take megabytes."""
BUFFER_BYTES = 1 << 20
PLAIN = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_temporal,
    pa.types.is_null,
)


def read_parquet(file: Path, root: Path) -> Iterator[Draft | Skipped]:
    """Rows; of a damaged file those before the damage, then one broken item. The id is a column's, or file/row.

    A list of texts gives the first as the text, all as metadata["captions"]. Other columns are metadata if they hold
    numbers, strings or dates, or lists and structs of them; the rest is said not to be read. Without a column of
    pictures, one of their names makes it a list. Raises SourceError if none of the columns is there.
    """
    name = name_of(file)
    try:
        opened = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
        schema = opened.schema_arrow
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise SourceError(f"{name} cannot be read as Parquet: {_short(error)}") from None
    with opened:
        image, text = _columns(schema, name)
        plain = [column.name for column in schema if _is_plain(column.type)]
        columns = [*dict.fromkeys([image, *([text] if text else []), *plain])]
        for column in schema:
            if column.name not in columns:
                reason = f"the column {column.name} ({str(column.type)[:100]}) is not read"
                yield Skipped(f"{name}#{column.name}", reason, unread=f"column {column.name}")
        if not _holds_pictures(schema.field(image).type):
            yield from listed(partial(_named, opened, columns), file, root, image)
            return
        prefix = name_of(file.relative_to(root).with_suffix(""))
        number = 0
        try:
            for batch in opened.iter_batches(batch_size=ROWS, columns=columns):
                for row in range(len(batch)):
                    item_id = _id(batch, row, image, f"{prefix}/{number}")
                    make = partial(_item, batch, row, image, text, file, item_id, number)
                    files = _file(batch, row, image, file.parent)
                    yield Draft(f"{name}#{number}", make, item_id, None if item_id else name, files)
                    number += 1
        except (pa.ArrowException, OSError, MemoryError) as error:
            reason = f"the file is damaged after {number} rows, which are kept: {_short(error)}"
            yield Draft(name, partial(broken, reason), scope=name)


def _named(opened: pq.ParquetFile, columns: Sequence[str]) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """The rows of a list of pictures."""
    number = 0
    try:
        for batch in opened.iter_batches(columns=columns):
            for row in range(len(batch)):
                yield number, partial(_record, batch, row)
                number += 1
    except (pa.ArrowException, OSError, MemoryError) as error:
        yield number, partial(broken, f"the file is damaged after {number} rows, which are kept: {_short(error)}")


def _columns(schema: pa.Schema, name: str) -> tuple[str, str | None]:
    """The columns of pictures and of texts. Raises SourceError if it is not plain which they are."""
    pictures = [column.name for column in schema if _holds_pictures(column.type)]
    image = next((column for wanted in IMAGES for column in pictures if column.lower() == wanted), None)
    if image is None and len(pictures) == 1:
        image = pictures[0]
    if not pictures:
        strings = [c.name for c in schema if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
        image = field_of(strings, PICTURE_FIELDS)
    if image is None or len(set(schema.names)) < len(schema.names):
        found = ", ".join(f"{column.name} ({column.type})" for column in schema)
        raise SourceError(
            f"{name} has the columns {found[:1000]}; one of encoded pictures is needed, named {', '.join(IMAGES)}, of "
            "bytes or of Hugging Face's {bytes, path}. Where there are only URLs, img2dataset downloads them"
        )
    return image, next((c for wanted in TEXTS for c in schema.names if c.lower() == wanted and c != image), None)


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        held = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in held and (_holds_pictures(held["bytes"]) or pa.types.is_null(held["bytes"]))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    return any(is_kind(kind) for is_kind in PLAIN)


def _record(batch: pa.RecordBatch, row: int) -> dict[str, Any]:
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except (pa.ArrowException, ValueError, OverflowError) as error:  # text that is not UTF-8, a date in the year 30000
        raise SourceError(f"a value of its row cannot be read: {_short(error)}") from None


def _id(batch: pa.RecordBatch, row: int, image: str, place: str) -> str | None:
    """What a column of ids says, or else the place; None if that cannot be read."""
    try:
        values = (batch.column(name)[row].as_py() for name in IDS if name in batch.schema.names and name != image)
        return next((str(value) for value in values if value not in (None, "")), place)
    except (pa.ArrowException, ValueError, OverflowError):
        return None


def _file(batch: pa.RecordBatch, row: int, image: str, folder: Path) -> tuple[str, ...]:
    """The picture's file, where the row has its path and not its bytes."""
    column = batch.column(image)
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    if "path" not in names or column.field("bytes")[row].as_py():
        return ()
    try:
        return (name_of(inside(folder, column.field("path")[row].as_py())),)
    except (SourceError, pa.ArrowException, ValueError):
        return ()  # which making the item says


def _item(
    batch: pa.RecordBatch, row: int, image: str, text: str | None, file: Path, item_id: str | None, number: int
) -> Item:
    record = _record(batch, row)
    found = record.pop(image)
    if isinstance(found, dict):
        path = found.get("path")
        found = found["bytes"] or (inside(file.parent, path) if path else None)
    words = record.pop(text) if text else None
    captions = Captions.of(words if isinstance(words, list) else [words])
    if isinstance(words, list):
        record["captions"] = [caption.text for caption in captions.texts]
    given = next((name for name in IDS if record.get(name) not in (None, "")), None)
    if given is not None:
        del record[given]
    metadata = json.loads(json.dumps(record, default=str), parse_constant=lambda _: None)
    return captions.item(item_id or "", [found or None], metadata, f"{name_of(file)}#{number}")


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
