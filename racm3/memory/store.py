"""Store: the Lance table of a memory on disk, and the rules that keep it whole.

- Files are flushed before the commit that names them, the manifest after it, and only then is a change acknowledged.
- One process writes at a time (`place`). Any number read, and see the newest version when they ask for it.
- A newest version that cannot be read is moved aside, the one before it opens, and the log says so.

The table: id (the primary key), text, parts (JSON, in order: a string is text, a number points into images), images
(PNG), metadata (JSON), origin, hash (of the content), and the vector, whose column changes with the encoder.

An address says where a row lies: number of its fragment << 32 | row in the fragment. Compaction gives new ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from racm3.data import Item
from racm3.document import Document, Hole, Image, Part, Text
from racm3.errors import DocumentError, MemoryStoreError
from racm3.memory.storage import Place, place_of

__all__ = ["About", "Store"]

FORMAT = 1
KEY = b"racm3"
FRAGMENT_BYTES = 256 * 2**20
"""What compaction puts in one fragment (ours: bounds its memory, and 10 TB are 40,000 fragments)."""
SCAN_BYTES = 16 * 2**20
"""Documents read at once (ours)."""
SMALL_FRAGMENTS = 100
"""So many unfilled fragments are put together without being asked: one add makes one, and each costs every reader."""
VERSIONS = 256
"""After so many versions the old ones are deleted (ours: each lists all fragments, so keeping all is quadratic)."""
INDEX = "nearest"
INDEX_FROM = 256
"""Documents that Lance needs to learn the codes of an index."""
NUMBERS_A_CODE, LEAST_CODES = 4, 16
"""Numbers of a vector that become one byte in the index, and the least of them (ours, see `search.REFINED`)."""
METADATA_BYTES = 64 * 2**20
"""What Lance may keep of versions read (ours): each change adds 100 kB, and by itself it stops at 1 GB."""
IDS_AT_ONCE = 10_000
"""Ids looked for in one scan (ours)."""
DOCUMENT = ["id", "parts", "images", "metadata", "origin"]
UNREADABLE = (OSError, ValueError)
"""What Lance and Arrow raise for files that are missing or damaged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a table says about itself: which encoder made its vectors, and which column holds them."""

    format: int
    encoder: str
    dimension: int
    column: str = "vector"


class Store:
    """The table of one memory. ``table`` is the version that is being read."""

    def __init__(self, place: Place, table: Any) -> None:
        self.place = place
        self.table = table
        self._readable: set[Key] = set()

    @classmethod
    def create(cls, path: str | Path, encoder: str, dimension: int) -> Store:
        """An empty table. Raises MemoryStoreError if there is something at ``path``."""
        import lance

        place = place_of(path)
        if place.exists():
            raise MemoryStoreError(
                f"there is already something at {place}; open it with Memory.open, or give a new path"
            )
        empty = _schema(About(FORMAT, encoder, dimension)).empty_table()
        lance.write_dataset(empty, str(place), mode="create", storage_options=place.options)
        store = cls(place, None)
        store.table = store._dataset()
        store._flush_version()
        place.flush("..")  # which holds the entry of the folder itself
        return store

    @classmethod
    def open(cls, path: str | Path, *, damaged: bool = False) -> Store:
        """The newest version that can be read; with ``damaged``, the newest one though some of its files cannot.

        Raises MemoryStoreError if it is missing, or damaged beyond its newest version.
        """
        place = place_of(path)
        if not place.versions():
            what = "is no memory" if place.exists() else "does not exist"
            raise MemoryStoreError(f"the memory {place} {what}; check the path, or make it with racm3 memory create")
        store = cls(place, None)
        store._open(damaged)
        found = json.loads((store.table.schema.metadata or {}).get(KEY, b"{}")).get("format")
        if found != FORMAT:
            raise MemoryStoreError(
                f"{place} is a Lance table of racm3 format {found}, but this version reads format {FORMAT}; "
                "make the memory again from its source"
            )
        return store

    @property
    def about(self) -> About:
        return About(**json.loads(self.table.schema.metadata[KEY]))

    # Versions ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the newest version from now on."""
        version = self.table.version
        try:
            with no_panic():
                self.table.checkout_latest()
            if self.table.version != version:
                self._probe()
        except UNREADABLE:
            self._open()

    def _open(self, damaged: bool = False) -> None:
        """Read the newest version that is whole, and move newer ones aside."""
        for pause_s in (0, 0.1, 0.5):  # a writer may delete an old version while it is being opened
            time.sleep(pause_s)
            problem = self._try()
            if problem is None:
                return
            if damaged and self.table is not None:
                return
        with self.writing(refreshed=False):
            newest = _version(self.place.versions()[0])
            while problem := self._try():
                self._step_back(problem)
            while self.table.version <= newest:  # no version number is ever given twice
                self.set_config("racm3.recovered", str(newest))

    def _try(self) -> str | None:
        """Open the newest version; what is wrong with it, if something is."""
        self.table = None
        try:
            with no_panic():
                self.table = self._dataset()
            self._probe()
        except UNREADABLE as error:
            return str(error)
        return None

    def _dataset(self, version: int | None = None) -> Any:
        import lance

        return lance.dataset(
            str(self.place),
            version=version,
            storage_options=self.place.options,
            metadata_cache_size_bytes=METADATA_BYTES,
        )

    def _probe(self) -> None:
        """Read a row of every fragment not read so far: where a file is cut off, this raises."""
        if not self.place.checked:
            return
        fragments = {key_of(fragment): fragment for fragment in self.table.get_fragments()}
        for key in fragments.keys() - self._readable:
            _read_one(fragments[key])
        self._readable = set(fragments)

    def _step_back(self, problem: str) -> None:
        """Move the newest manifest aside, if what is wrong is not wrong with the version before it as well."""
        newest, *older = self.place.versions()
        helps = bool(older)
        if self.table is not None and older:
            broken = {key_of(fragment) for fragment in self.table.get_fragments() if _unreadable(fragment)}
            try:
                with no_panic():
                    before = self._dataset(_version(older[0]))
                helps = not broken & {key_of(fragment) for fragment in before.get_fragments()}
            except UNREADABLE:
                pass  # that one is damaged too: go on to the one before it
        if not helps:
            raise MemoryStoreError(
                f"the memory {self.place} is damaged: {problem}; no earlier version is whole: restore it from a copy, "
                "or run `racm3 memory check --repair`, which keeps every document that can still be read"
            )
        aside = self.place.move_aside(newest)
        log.warning(
            "the newest version (%d) of the memory %s cannot be read: %s. It was moved to %s; version %d is opened. "
            "What the last change brought may be missing: add or sync it again.",
            _version(newest), self.place, problem, aside, _version(older[0]),
        )  # fmt: skip

    @contextmanager
    def writing(self, *, refreshed: bool = True) -> Iterator[None]:
        """Be the only process that writes, on the newest version. Raises MemoryStoreError if another one goes on."""
        with self.place.writing():
            if refreshed:
                self.refresh()
                self._drop_leftovers()
            yield

    # Reading -------------------------------------------------------------------------------------------------------

    def find(self, ids: Collection[str], columns: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """The rows of those ``ids`` that are here: their ``columns``, and their address as "_rowaddr"."""
        found, remaining = {}, iter(ids)
        while some := list(islice(remaining, IDS_AT_ONCE)):
            rows = self.table.to_table(columns=["id", *columns], filter=_is_in("id", some), with_row_address=True)
            found.update({row["id"]: row for row in rows.to_pylist()})
        return found

    def take(self, addresses: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The ``columns`` of the rows at ``addresses``, in that order."""
        if not len(addresses):
            return []
        return self.table._take_rows([int(address) for address in addresses], columns=list(columns)).to_pylist()

    def scan(self, columns: Sequence[str], fragment: Any = None, start: int = 0) -> Iterator[dict[str, Any]]:
        """The ``columns`` and "_rowaddr" of every row from row ``start``, in order; bounded in memory.

        Of one fragment, if it is given. What comes before ``start`` is not read.
        """
        scanned = fragment or self.table
        size = max(1, min(8192, SCAN_BYTES // max(1, self.row_bytes)))
        scanner = scanned.scanner(
            columns=list(columns),
            with_row_address=True,
            offset=start or None,
            batch_size=size,
            batch_readahead=1,
            io_buffer_size=8 * SCAN_BYTES,
        )
        for batch in scanner.to_batches():
            yield from batch.to_pylist()

    def vectors(self, fragment: Any) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Addresses (N,), ids and vectors (N, D) float32 of a fragment."""
        column, rows = self.about.column, fragment.count_rows()
        addresses, vectors = np.empty(rows, np.int64), np.empty((rows, self.about.dimension), np.float32)
        ids: list[str] = []
        for batch in fragment.scanner(columns=["id", column], with_row_address=True).to_batches():
            here = slice(len(ids), len(ids) + len(batch))
            addresses[here] = batch["_rowaddr"].to_numpy()
            vectors[here] = batch[column].flatten().to_numpy().reshape(len(batch), -1)
            ids += batch["id"].to_pylist()
        return addresses, ids, vectors

    @property
    def row_bytes(self) -> int:
        """What a row takes on disk, on average."""
        fragments = [fragment.metadata for fragment in self.table.get_fragments()]
        size = sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.files)
        return size // max(1, sum(fragment.physical_rows for fragment in fragments))

    # Writing -------------------------------------------------------------------------------------------------------

    def change(
        self, items: Sequence[Item], vectors: np.ndarray, gone: Iterable[int] = (), fragments: Sequence[int] = ()
    ) -> None:
        """Add rows, remove those at the addresses ``gone`` and in whole ``fragments``: in one step, durably.

        To be called while `writing`.
        """
        import lance

        added, updated, removed = [], [], list(fragments)
        if items:
            rows = _rows(items, vectors, _schema(self.about))
            added = lance.fragment.write_fragments(rows, self.table, schema=rows.schema)
        offsets = defaultdict(list)
        for address in gone:
            offsets[int(address) >> 32].append(int(address) & 0xFFFFFFFF)
        for number, here in offsets.items():
            left = self.table.get_fragment(number).delete_rows(here)
            if left is None:
                removed.append(number)
            else:
                updated.append(left)
        self.commit(
            lance.LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=updated, new_fragments=added)
            if offsets or fragments
            else lance.LanceOperation.Append(added),
            [*added, *updated],
        )
        if len(self._unfilled()) >= SMALL_FRAGMENTS:
            self.compact(thorough=False)
        elif self.table.version % VERSIONS == 0:
            self._forget()

    def write(self, batches: Iterable[tuple[Sequence[Item], np.ndarray]]) -> list[Any]:
        """Write items and their vectors as fragments that belong to no version yet, durably. Any process may.

        `_forget` deletes them for as long as no version names them.
        """
        import lance

        schema = _schema(self.about)
        failed: list[BaseException] = []

        def rows() -> Iterator[pa.RecordBatch]:
            try:
                for items, vectors in batches:
                    yield from _rows(items, vectors, schema).to_batches()
            except BaseException as error:
                failed.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, rows())
        try:
            made = lance.fragment.write_fragments(reader, self.table, schema=schema, max_bytes_per_file=FRAGMENT_BYTES)
        except OSError:
            if failed:
                raise failed[0] from None  # and not what Arrow and Lance make of it
            raise
        self._flush(made)
        return list(made)

    def append(self, fragments: Sequence[Any]) -> None:
        """Add fragments that `write` has made, in one step, durably. To be called while `writing`."""
        import lance

        self.commit(lance.LanceOperation.Append(fragments), [])

    def commit(self, operation: Any, written: Sequence[Any]) -> None:
        """Flush the files of ``written`` fragments, commit, and flush the manifest."""
        import lance

        self._flush(written)
        self.place.still_writing()
        read = self.table.version
        self.table = lance.LanceDataset.commit(self.table, operation, read_version=read)
        self._flush_version()
        if self.table.version != read + 1:
            raise MemoryStoreError(
                f"another process has changed {self.place} in spite of the lock, between versions {read} and "
                f"{self.table.version}; ids may be there twice: stop the other one, and run `racm3 memory sync`"
            )

    def _flush(self, written: Sequence[Any]) -> None:
        self.place.flush(
            *(f"data/{file.path}" for fragment in written for file in fragment.files),
            *(f.deletion_file.path(f.id) for f in written if f.deletion_file),
        )

    def _flush_version(self) -> None:
        """Flush the manifest just committed. Lance itself does not (measured); flush, then acknowledge."""
        self.place.flush(f"_versions/{2**64 - 1 - self.table.version:020d}.manifest")

    def _target_rows(self) -> int:
        return max(1, min(2**20, FRAGMENT_BYTES // max(1, self.row_bytes)))

    def _unfilled(self) -> list[Any]:
        """Fragments that are less than half full: those above are not worth being written again."""
        half = self._target_rows() / 2
        return [fragment for fragment in self.table.get_fragments() if fragment.physical_rows < half]

    def compact(self, *, thorough: bool = True) -> None:
        """Put unfilled fragments together and delete old versions; a ``thorough`` one drops all deleted rows as well.

        Holds ``FRAGMENT_BYTES`` in memory, about.
        """
        from lance.optimize import Compaction, CompactionOptions

        with self.writing():
            again = {fragment.fragment_id for fragment in self._unfilled()}
            again |= {f.fragment_id for f in self.table.get_fragments() if thorough and f.num_deletions}
            options = CompactionOptions(
                target_rows_per_fragment=self._target_rows(),
                excluded_fragment_ids=[f.fragment_id for f in self.table.get_fragments() if f.fragment_id not in again],
                materialize_deletions_threshold=0.0,
                num_threads=1,
                batch_size=max(1, min(8192, SCAN_BYTES // max(1, self.row_bytes))),
                io_buffer_size=8 * SCAN_BYTES,
            )
            for task in Compaction.plan(self.table, options).tasks:
                done = task.execute(self.table)
                self._flush(done.new_fragments)
                self.place.still_writing()
                Compaction.commit(self.table, [done])
                self.table.checkout_latest()
                self.place.flush_indices()
                self._flush_version()
            self._forget()

    def _forget(self) -> None:
        """Delete all versions but two that hold the same: a damaged manifest has another one before it."""
        self.set_config("racm3.kept", str(self.table.version))
        self.place.still_writing()  # or what another one is about to commit would be deleted
        self.table.cleanup_old_versions(timedelta(0), retain_versions=2, delete_unverified=True)

    def set_config(self, key: str, value: str) -> None:
        """Keep a fact beside the documents."""
        self.table.update_config({key: value})
        self._flush_version()

    def indexed(self) -> int | None:
        """How many rows the index of the vectors holds, or held before some were removed; None if there is none."""
        return next((index.num_rows_indexed for index in self.table.describe_indices() if index.name == INDEX), None)

    def index(self) -> None:
        """Index the vectors and the ids, or bring both indices up to date; a memory twice as large gets new ones."""
        with self.writing():
            indexed, rows, about = self.indexed(), self.table.count_rows(), self.about
            if indexed is not None and 2 * indexed > rows:
                self.table.optimize.optimize_indices()
            else:
                codes = max(about.dimension // NUMBERS_A_CODE, LEAST_CODES)
                self.table.create_index(
                    about.column,
                    "IVF_PQ",
                    name=INDEX,
                    metric="dot",
                    replace=True,
                    num_partitions=max(1, min(math.isqrt(rows), rows // INDEX_FROM)),
                    num_sub_vectors=max(n for n in range(1, codes + 1) if about.dimension % n == 0),
                )
                self.table.create_scalar_index("id", "BTREE", name="ids", replace=True)
            self.place.flush_indices()
            self._flush_version()

    def set_vectors(self, about: About, vectors: Callable[[Sequence[str]], np.ndarray]) -> None:
        """Replace all vectors by those of another encoder, in one step: until it is done, the old ones are there.

        ``vectors`` gives (N, D) float32 for N ids. To be called while `writing`.
        """
        import lance

        about = replace(about, format=FORMAT, column=f"vector_{self.table.version}")
        kind = pa.list_(pa.float32(), about.dimension)

        def column(batch: pa.RecordBatch) -> pa.RecordBatch:
            flat = pa.array(vectors(batch["id"].to_pylist()).ravel())
            return pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, type=kind)], [about.column])

        rows = max(1, SCAN_BYTES // (4 * about.dimension))
        grown = [f.merge_columns(column, columns=["id"], batch_size=rows) for f in self.table.get_fragments()]
        if grown:
            self.commit(
                lance.LanceOperation.Merge([fragment for fragment, _ in grown], grown[0][1]), [g for g, _ in grown]
            )
        else:
            self.table.add_columns(pa.field(about.column, kind))
        self.table.update_schema_metadata(
            {KEY.decode(): json.dumps(asdict(about))}
        )  # from here on they are the new ones
        self._flush_version()
        self._drop_leftovers()

    def _drop_leftovers(self) -> None:
        """Drop vectors that belong to no encoder any more, or never did: a change of encoder was broken off."""
        known = {field.name for field in _schema(self.about)}
        if left := [name for name in self.table.schema.names if name not in known]:
            self.table.drop_columns(left)
            self._flush_version()


# Fragments and manifests -----------------------------------------------------------------------------------------


Key = tuple[Any, ...]


def key_of(fragment: Any) -> Key:
    """What tells whether a fragment is still the same: files never change, the list of them does."""
    return (fragment.fragment_id, *(file.path for file in fragment.metadata.files), fragment.deletion_file())


def _read_one(fragment: Any) -> None:
    """Read one row: raises where a data file or the list of deletions is cut off."""
    with no_panic():
        fragment.scanner(limit=1).to_table()


@contextmanager
def no_panic() -> Iterator[None]:
    """Turn what Lance's Rust side raises about some damaged files, which is no Exception, into an OSError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"damaged: {error}") from error


def _unreadable(fragment: Any) -> bool:
    try:
        _read_one(fragment)
    except UNREADABLE:
        return True
    return False


def _version(manifest: str) -> int:
    return 2**64 - 1 - int(manifest.removesuffix(".manifest"))


# Rows ------------------------------------------------------------------------------------------------------------


def _schema(about: About) -> pa.Schema:
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
        ],
        metadata={KEY: json.dumps(asdict(about)).encode()},
    )


def _is_in(column: str, values: Collection[str]) -> str:
    quoted = ("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({', '.join(quoted)})"


def _rows(items: Sequence[Item], vectors: np.ndarray, schema: pa.Schema) -> pa.Table:
    orders = [_order(item) for item in items]
    columns = [
        [item.id for item in items],
        [item.document.text for item in items],
        orders,
        [[_png(image) for image in item.document.images] for item in items],
        [metadata_json(item) for item in items],
        [item.origin for item in items],
        [_hash(item.document, order) for item, order in zip(items, orders, strict=True)],
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    ]
    return pa.table(columns, schema=schema)


def _png(image: Image) -> bytes:
    """As PNG, compressed by runs: half the time of the usual way, and no more bytes for photographs."""
    buffer = io.BytesIO()
    image.pil.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


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
    """The item of a row with the columns `DOCUMENT`."""
    images = row["images"]
    parts: list[Part] = [
        Text(part) if isinstance(part, str) else Image.open(images[part]) for part in json.loads(row["parts"])
    ]
    return Item(row["id"], Document(tuple(parts)), json.loads(row["metadata"]), row["origin"])


def _order(item: Item) -> str:
    """The parts in order, as JSON: a string is text, a number the index of an image."""
    order: list[str | int] = []
    for part in item.document.parts:
        if isinstance(part, Hole) or (isinstance(part, Image) and part.mask is not None):
            raise DocumentError(f"document {item.id!r} has holes; a memory keeps complete documents: fill them first")
        order.append(part.text if isinstance(part, Text) else sum(isinstance(o, int) for o in order))
    return json.dumps(order, ensure_ascii=False)


def _hash(document: Document, order: str) -> str:
    digest = hashlib.blake2b(order.encode(), digest_size=16)
    for image in document.images:
        digest.update(str(image.pixels.shape).encode() + np.ascontiguousarray(image.pixels).data)
    return digest.hexdigest()
