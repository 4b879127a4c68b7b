"""Rows: what a memory's table keeps of a document, and the checksums that cover all of it.

The table: id (the primary key), text, parts (JSON, in order: a string is text, a number points into images), images
(PNG), metadata (JSON), origin, hash (of the content), the vector, whose column changes with the encoder, and two
CRC-32s: ``checksum`` of all but images and vector, and one of id and vector. The hash covers the pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from racm3.data import Item
from racm3.document import Document, Hole, Image, Part, Text, is_open
from racm3.errors import DamagedDocumentError, DocumentError, RACM3Error

__all__ = ["About", "content_hash", "item_of", "metadata_json", "schema_of", "table_of"]

FORMAT = 1
KEY = b"racm3"
CHECKSUM = "checksum"
WORDS = ["id", "text", "parts", "metadata", "origin", "hash"]
"""What ``checksum`` covers."""
FACTS = [*WORDS, CHECKSUM]
"""What is known about a document without decoding it."""
DOCUMENT = [*FACTS, "images"]
"""What an item is made of."""


@dataclass(frozen=True)
class About:
    """What a table says about itself: which encoder made its vectors, and which column holds them."""

    format: int
    encoder: str
    dimension: int
    column: str = "vector"

    @property
    def checksum(self) -> str:
        """The column with the checksums of the vectors."""
        return f"{self.column}_{CHECKSUM}"


def schema_of(about: About) -> pa.Schema:
    """The table's columns."""
    key = {"lance-schema:unenforced-primary-key": "true"}
    first = about.column == About.column
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=key),
            pa.field("text", pa.string()),
            pa.field("parts", pa.string(), nullable=False),
            pa.field("images", pa.list_(pa.binary()), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("hash", pa.string(), nullable=False),
            pa.field(about.column, pa.list_(pa.float32(), about.dimension), nullable=not first),
            *checksum_fields(about),
        ],
        metadata={KEY: json.dumps(asdict(about)).encode()},
    )


def checksum_fields(about: About) -> list[pa.Field]:
    """The two columns that memories of before have not, until they are changed for the first time."""
    return [pa.field(CHECKSUM, pa.uint32()), pa.field(about.checksum, pa.uint32())]


def table_of(items: Sequence[Item], vectors: np.ndarray, schema: pa.Schema, about: About) -> pa.Table:
    """The rows of ``items`` with their vectors (N, D). Raises DocumentError if one cannot be kept."""
    orders = [_order(item) for item in items]
    columns: dict[str, Any] = {
        "id": [item.id for item in items],
        "text": [item.document.text for item in items],
        "parts": orders,
        "images": [[_png(image) for image in item.document.images] for item in items],
        "metadata": [metadata_json(item) for item in items],
        "origin": [item.origin for item in items],
        "hash": [_hash(item.document, order) for item, order in zip(items, orders, strict=True)],
        about.column: vector_array(vectors),
    }
    columns[CHECKSUM] = checksums(*(columns[name] for name in WORDS))
    columns[about.checksum] = vector_checksums(columns["id"], vectors)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def vector_array(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A column of vectors (N, D) float32."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def checksums(*columns: Iterable[str | None]) -> list[int]:
    """The checksum of each row of the columns `WORDS`."""
    return [_checksum(row) for row in zip(*columns, strict=True)]


def _checksum(words: Iterable[str | None]) -> int:
    return zlib.crc32(json.dumps([*words]).encode())


def vector_checksums(ids: Sequence[str], vectors: np.ndarray) -> list[int]:
    """The checksum of each id and its vector, of (N, D)."""
    rows = np.ascontiguousarray(vectors, np.float32)
    return [zlib.crc32(row.data, zlib.crc32(item_id.encode())) for item_id, row in zip(ids, rows, strict=True)]


def metadata_json(item: Item) -> str:
    """Raises DocumentError if the metadata cannot be kept."""
    try:
        return json.dumps(item.metadata, ensure_ascii=False)
    except TypeError as error:
        raise DocumentError(f"the metadata of {item.id!r} cannot be kept as JSON: {error}; convert it first") from None


def content_hash(item: Item) -> str:
    """32 hex digits of the texts and the pixels; the same however a picture was encoded.

    Raises DocumentError if the document has holes.
    """
    return _hash(item.document, _order(item))


def item_of(row: dict[str, Any]) -> Item:
    """The item of a row with the columns `DOCUMENT`. Raises DamagedDocumentError if it is not what was put in."""
    check_facts(row)
    try:
        images = row["images"]
        parts: list[Part] = [
            Text(part) if isinstance(part, str) else Image.open(images[part]) for part in json.loads(row["parts"])
        ]
        item = Item(row["id"], Document(tuple(parts)), json.loads(row["metadata"]), row["origin"])
        found = content_hash(item)
    except (RACM3Error, ValueError, LookupError, TypeError) as error:
        raise DamagedDocumentError(row["id"], str(error)) from None
    if found != row["hash"]:
        raise DamagedDocumentError(row["id"], f"its content has the hash {found}, but {row['hash']} was put in")
    return item


def check_facts(row: dict[str, Any]) -> None:
    """Raises DamagedDocumentError if the words of a row with the columns `FACTS` are not those that were put in."""
    if CHECKSUM in row and _checksum(row[name] for name in WORDS) != row[CHECKSUM]:
        raise DamagedDocumentError(
            row["id"], "its texts, metadata or origin are not what was put in (their checksum differs)"
        )


def _png(image: Image) -> bytes:
    """As PNG, compressed by runs: half the time of the usual way, and no more bytes for photographs."""
    buffer = io.BytesIO()
    image.pil.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _order(item: Item) -> str:
    """The parts in order, as JSON: a string is text, a number the index of an image."""
    order: list[str | int] = []
    for part in item.document.parts:
        if isinstance(part, Hole) or is_open(part):
            raise DocumentError(f"document {item.id!r} has holes; a memory keeps complete documents: fill them first")
        order.append(part.text if isinstance(part, Text) else sum(isinstance(o, int) for o in order))
    return json.dumps(order, ensure_ascii=False)


def _hash(document: Document, order: str) -> str:
    digest = hashlib.blake2b(order.encode(), digest_size=16)
    for image in document.images:
        digest.update(str(image.pixels.shape).encode() + np.ascontiguousarray(image.pixels).data)
    return digest.hexdigest()
