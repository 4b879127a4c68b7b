"""Parquet with pictures in it: a column of them, encoded (bytes, or Hugging Face's {bytes, path}), and one of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from racm3.data.item import ITEM_ID, Draft, Item, broken, inside, name_of, pair
from racm3.errors import SourceError

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
TEXTS = ("text", "caption", "txt", "captions", "sentences")
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


def read_parquet(file: Path, root: Path) -> Iterator[Draft]:
    """Rows; of a damaged file those before the damage, then one broken item. The id is a column's, or file/row.

    A list of texts gives the first as the text, all as metadata["captions"]. Other columns are metadata if they hold
    numbers, strings or dates, or lists and structs of them. Raises SourceError if the columns are not there.
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
        prefix = name_of(file.relative_to(root).with_suffix(""))
        number = 0
        try:
            for batch in opened.iter_batches(batch_size=ROWS, columns=columns):
                for row in range(len(batch)):
                    yield Draft(f"{name}#{number}", partial(_item, batch, row, image, text, file, prefix, number))
                    number += 1
        except (pa.ArrowException, OSError, MemoryError) as error:
            reason = f"the file is damaged after {number} rows, which are kept: {_short(error)}"
            yield Draft(name, partial(broken, reason))


def _columns(schema: pa.Schema, name: str) -> tuple[str, str | None]:
    """The columns of pictures and of texts. Raises SourceError if it is not plain which they are."""
    pictures = [column.name for column in schema if _holds_pictures(column.type)]
    image = next((column for wanted in IMAGES for column in pictures if column.lower() == wanted), None)
    if image is None and len(pictures) == 1:
        image = pictures[0]
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


def _item(batch: pa.RecordBatch, row: int, image: str, text: str | None, file: Path, prefix: str, number: int) -> Item:
    try:
        record = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except (pa.ArrowException, ValueError, OverflowError) as error:  # text that is not UTF-8, a date in the year 30000
        raise SourceError(f"a value of its row cannot be read: {_short(error)}") from None
    found = record.pop(image)
    if isinstance(found, dict):
        path = found.get("path")
        found = found["bytes"] or (inside(file.parent, path) if path else None)
    words = record.pop(text) if text else None
    if isinstance(words, list):
        record["captions"] = [word for word in words if word]
        words = next(iter(record["captions"]), None)
    given = next((record.pop(name) for name in IDS if record.get(name) not in (None, "")), None)
    metadata = json.loads(json.dumps(record, default=str), parse_constant=lambda _: None)
    item_id = f"{prefix}/{number}" if given is None else str(given)
    return Item(item_id, pair(words, found or None), metadata, f"{name_of(file)}#{number}")


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
