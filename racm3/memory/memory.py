"""Memory: documents and their vectors in one Lance table, searched exactly.

What `add` has acknowledged is on disk: data files are flushed before the commit, the manifest after it, and only then
does the call return. One process writes at a time (a lock file that dies with its owner); any number read, and see what
others added at their next search. Vectors are held in memory, documents stay on disk until asked for.

The table: id (the primary key), text, parts (JSON, in order: a string is text, a number points into images), images
(PNG), metadata (JSON), origin, hash (of the content), vector.

Letters: B batch, D dimension, K hits, N items.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from racm3.document import Document, Hole, Image, Part, Text
from racm3.errors import DocumentError, EncoderMismatchError, InputError, MemoryStoreError
from racm3.memory.sources import Item

__all__ = ["Memory"]

FORMAT = 1
KEY = b"racm3"
LOCK_WAIT_S = 10.0
"""How long a writer waits for another one (ours: longer than any add of a few thousand items)."""
SCORES_AT_ONCE = 32_000_000
"""Scores held at once in a search, 128 MB of float32: bounds memory, and is far more than a fast matmul needs."""
UNIT_TOLERANCE = 1e-3


class Memory:
    """A memory on disk. Make one with `create`, open one with `open`."""

    def __init__(self, path: Path, table: Any) -> None:
        self.path = path
        self._table = table
        about = json.loads(table.schema.metadata[KEY])
        self.encoder_fingerprint: str = about["encoder"]
        self.dimension: int = about["dimension"]
        self._version = -1
        self._ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._blocks: list[np.ndarray] = []
        self.refresh()

    @classmethod
    def create(cls, path: str | Path, encoder_fingerprint: str, dimension: int) -> Memory:
        """An empty memory for one encoder's vectors (D,). Raises MemoryStoreError if ``path`` exists."""
        import lance

        path = Path(path)
        if path.exists():
            raise MemoryStoreError(
                f"there is already something at {path}; open it with Memory.open, or give a new path"
            )
        about = {"format": FORMAT, "encoder": encoder_fingerprint, "dimension": dimension}
        table = lance.write_dataset(_schema(dimension, about).empty_table(), str(path), mode="create")
        _flush_version(path, table.version)
        _fsync(path, path.parent)
        return cls(path, table)

    @classmethod
    def open(cls, path: str | Path, encoder_fingerprint: str | None = None) -> Memory:
        """Open a memory, checking that it was made by the encoder given.

        Raises MemoryStoreError if it is missing or damaged, EncoderMismatchError if another encoder made it.
        """
        import lance

        path = Path(path)
        if not (path / "_versions").is_dir():
            what = "is no memory" if path.exists() else "does not exist"
            raise MemoryStoreError(f"the memory {path} {what}; check the path, or make it with Memory.create")
        try:
            table = lance.dataset(str(path))
            about = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
        except (ValueError, OSError) as error:
            raise MemoryStoreError(f"the memory {path} is damaged: {error}; restore it from a copy") from error
        if about.get("format") != FORMAT:
            raise MemoryStoreError(
                f"{path} is a Lance table of racm3 format {about.get('format')}, but this version reads format "
                f"{FORMAT}; make the memory again from its source"
            )
        memory = cls(path, table)
        if encoder_fingerprint is not None:
            memory.check_encoder(encoder_fingerprint)
        return memory

    def check_encoder(self, fingerprint: str) -> None:
        """Raises EncoderMismatchError if another encoder made this memory: its vectors mean something else."""
        if fingerprint != self.encoder_fingerprint:
            raise EncoderMismatchError(
                f"the memory {self.path} was made by encoder {self.encoder_fingerprint}, but encoder {fingerprint} is "
                "given; open it with its own encoder, or make a new memory from the documents with this one"
            )

    # Reading -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        """Ids in row order, as of the last `refresh`, `search` or `add`."""
        return self._ids

    @property
    def vectors(self) -> np.ndarray:
        """(N, D) float32, unit norm, in row order, as of the last `refresh`, `search` or `add`."""
        if len(self._blocks) != 1:
            self._blocks = [np.concatenate([np.zeros((0, self.dimension), np.float32), *self._blocks])]
        return self._blocks[0]

    def refresh(self) -> None:
        """See what other processes have added."""
        self._table.checkout_latest()
        if self._table.version == self._version:
            return
        columns = self._table.to_table(columns=["id", "vector"])
        self._ids = columns["id"].to_pylist()
        self._row_of = {item_id: row for row, item_id in enumerate(self._ids)}
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in columns["vector"].chunks]
        self._blocks = [value.reshape(-1, self.dimension) for value in values]
        self._version = self._table.version

    def search(
        self, queries: np.ndarray, k: int, exclude_ids: Sequence[Collection[str]] | None = None
    ) -> list[list[tuple[int, float]]]:
        """For each of ``queries`` (B, D) float32 of unit norm, the ``k`` best (row, cosine), best first.

        Exact; equal scores go by row. ``exclude_ids`` holds one collection of ids a query; unknown ids are ignored.
        Raises InputError if the shapes do not fit.
        """
        self.refresh()
        queries = self._checked(queries)
        if exclude_ids is not None and (
            len(exclude_ids) != len(queries) or any(isinstance(e, str) for e in exclude_ids)
        ):
            raise InputError(f"exclude_ids holds one collection of ids for each of {len(queries)} queries")
        vectors, k = self.vectors, min(k, len(self))
        hits: list[list[tuple[int, float]]] = []
        step = max(1, SCORES_AT_ONCE // max(1, len(vectors)))
        for start in range(0, len(queries), step):
            scores = queries[start : start + step] @ vectors.T  # (step, N)
            for i, row_scores in enumerate(scores):
                excluded = exclude_ids[start + i] if exclude_ids is not None else ()
                row_scores[[self._row_of[e] for e in excluded if e in self._row_of]] = -np.inf
                hits.append([(row, float(row_scores[row])) for row in _top(row_scores, k)])
        return hits

    def get(self, ids: Sequence[str]) -> list[Item]:
        """The items of ``ids``, in that order. Raises MemoryStoreError for an id that is not here."""
        missing = [item_id for item_id in ids if item_id not in self._row_of]
        if missing:
            raise MemoryStoreError(
                f"the memory {self.path} holds no document {missing[0]!r}; Memory.ids lists them all"
            )
        if not ids:
            return []
        rows = self._table.take(
            [self._row_of[item_id] for item_id in ids], columns=["id", "parts", "images", "metadata", "origin"]
        )
        return [
            Item(row["id"], _document(row["parts"], row["images"]), json.loads(row["metadata"]), row["origin"])
            for row in rows.to_pylist()
        ]

    # Writing -------------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[Item], vectors: np.ndarray) -> None:
        """Add items with their vectors (N, D) float32 of unit norm; when this returns, they are on disk.

        All or none. Raises MemoryStoreError if an id is here already or given twice, or if another process keeps
        writing; DocumentError if a document has holes; InputError if vectors and items do not fit together.
        """
        import lance

        items = list(items)
        vectors = self._checked(vectors)
        if len(items) != len(vectors):
            raise InputError(f"{len(items)} items came with {len(vectors)} vectors; give one vector an item")
        norms = np.linalg.norm(vectors, axis=1)
        if not (np.abs(norms - 1) < UNIT_TOLERANCE).all():
            raise InputError("the vectors are not of unit norm; Encoder.embed makes them so")
        if not items:
            return
        with self._writing():
            self.refresh()
            seen: set[str] = set()
            for item in items:
                if item.id in self._row_of or item.id in seen:
                    where = "given twice" if item.id in seen else "already in the memory"
                    raise MemoryStoreError(f"the id {item.id!r} is {where}; ids are unique: rename it or leave it out")
                seen.add(item.id)
            rows = _rows(items, vectors, self._table.schema)
            fragments = lance.fragment.write_fragments(rows, self._table, schema=rows.schema)
            data = self.path / "data"
            _fsync(*(data / file.path for fragment in fragments for file in fragment.files), data, self.path)
            append = lance.LanceOperation.Append(fragments)
            self._table = lance.LanceDataset.commit(self._table, append, read_version=self._table.version)
            _flush_version(self.path, self._table.version)
            self._row_of.update((item.id, len(self._ids) + i) for i, item in enumerate(items))
            self._ids.extend(item.id for item in items)
            self._blocks.append(vectors)
            self._version = self._table.version

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the writer's lock. The kernel frees it when its process ends, however it ends."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / "writer.lock", timeout=LOCK_WAIT_S)
        try:
            lock.acquire()
        except Timeout:
            raise MemoryStoreError(
                f"another process is writing to {self.path} (waited {LOCK_WAIT_S:g} s); try again when it is done"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise InputError(f"vectors are (count, {self.dimension}) here, but {vectors.shape} was given")
        return vectors


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the ``k`` largest of ``scores`` (N,), best first, ties by row; rows at -inf are left out."""
    if k <= 0:
        return np.zeros(0, np.int64)
    rows = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return rows[scores[rows] > -np.inf]


# Rows of the table -----------------------------------------------------------------------------------------------


def _schema(dimension: int, about: dict[str, Any]) -> pa.Schema:
    key = {"lance-schema:unenforced-primary-key": "true"}
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=key),
            pa.field("text", pa.string()),
            pa.field("parts", pa.string(), nullable=False),
            pa.field("images", pa.list_(pa.binary()), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("hash", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        ],
        metadata={KEY: json.dumps(about).encode()},
    )


def _rows(items: list[Item], vectors: np.ndarray, schema: pa.Schema) -> pa.Table:
    orders = [_order(item) for item in items]
    columns = {
        "id": [item.id for item in items],
        "text": [item.document.text for item in items],
        "parts": orders,
        "images": [[image.png() for image in item.document.images] for item in items],
        "metadata": [_json(item) for item in items],
        "origin": [item.origin for item in items],
        "hash": [_content_hash(item.document, order) for item, order in zip(items, orders, strict=True)],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    return pa.table(columns, schema=schema)


def _json(item: Item) -> str:
    try:
        return json.dumps(item.metadata, ensure_ascii=False)
    except TypeError as error:
        raise DocumentError(f"the metadata of {item.id!r} cannot be kept as JSON: {error}; convert it first") from None


def _order(item: Item) -> str:
    """The parts in order, as JSON: a string is text, a number the index of an image."""
    order: list[str | int] = []
    for part in item.document.parts:
        if isinstance(part, Hole) or (isinstance(part, Image) and part.mask is not None):
            raise DocumentError(f"document {item.id!r} has holes; a memory keeps complete documents: fill them first")
        order.append(part.text if isinstance(part, Text) else sum(isinstance(o, int) for o in order))
    return json.dumps(order, ensure_ascii=False)


def _document(order: str, images: list[bytes]) -> Document:
    parts: list[Part] = [Text(p) if isinstance(p, str) else Image.open(images[p]) for p in json.loads(order)]
    return Document(tuple(parts))


def _content_hash(document: Document, order: str) -> str:
    """32 hex digits of the texts and the pixels; the same however a picture was encoded."""
    digest = hashlib.blake2b(order.encode(), digest_size=16)
    for image in document.images:
        digest.update(str(image.pixels.shape).encode() + np.ascontiguousarray(image.pixels).data)
    return digest.hexdigest()


# Durability ------------------------------------------------------------------------------------------------------


def _fsync(*paths: Path) -> None:
    """Make files, and the entries of folders, survive a power cut."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _flush_version(path: Path, version: int) -> None:
    """Flush the manifest of ``version``, just committed. Lance itself does not (measured); flush, then acknowledge."""
    versions = path / "_versions"
    manifest = versions / f"{2**64 - 1 - version:020d}.manifest"  # Lance counts down, so that the newest sorts first
    _fsync(manifest, versions)
