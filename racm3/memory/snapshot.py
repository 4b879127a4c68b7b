"""Snapshot: one version of a memory's table. It never changes, so that threads may share it.

An address says where a row lies: number of its fragment << 32 | row in the fragment. Compaction gives new ones.

Letters: N rows, D dimension.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from racm3.errors import DamagedDocumentError, MemoryStoreError
from racm3.memory.damage import no_panic
from racm3.memory.rows import CHECKSUM, FORMAT, KEY, About, vector_checksums
from racm3.memory.storage import Storage

__all__ = ["Key", "Snapshot", "key_of"]

SCAN_BYTES = 16 * 2**20
"""Documents read at once (ours)."""
IDS_AT_ONCE = 10_000
"""Ids looked for in one scan (ours)."""
INDEX, WORDS_INDEX = "nearest", "words"
Key = tuple[Any, ...]


class Snapshot:
    """The rows of one version. Lance's handle ``table`` must not be changed: take a copy.copy of it."""

    def __init__(self, storage: Storage, table: Any) -> None:
        self.storage = storage
        self.table = table
        self.version: int = table.version

    @cached_property
    def about(self) -> About:
        return About(**json.loads(self.table.schema.metadata[KEY]))

    def check_format(self) -> None:
        """Raises MemoryStoreError if this version of racm3 does not read the table."""
        found = json.loads((self.table.schema.metadata or {}).get(KEY, b"{}")).get("format")
        if found != FORMAT:
            raise MemoryStoreError(
                f"{self.storage} is a Lance table of racm3 format {found}, but this version reads format {FORMAT}; "
                "make the memory again from its source"
            )

    @cached_property
    def rows(self) -> int:
        return int(self.table.count_rows())

    @cached_property
    def fragments(self) -> list[Any]:
        return list(self.table.get_fragments())

    @cached_property
    def columns(self) -> frozenset[str]:
        return frozenset(self.table.schema.names)

    @property
    def has_checksums(self) -> bool:
        """Whether every row has its checksums; memories of before have none."""
        return {CHECKSUM, self.about.checksum} <= self.columns

    @cached_property
    def indexed(self) -> int | None:
        """How many rows the index of the vectors holds, or held before some were removed; None if there is none."""
        return next((index.num_rows_indexed for index in self.table.describe_indices() if index.name == INDEX), None)

    @cached_property
    def words_indexed(self) -> int | None:
        """How many texts the index of the words holds; None if there is none."""
        found = (index.num_rows_indexed for index in self.table.describe_indices() if index.name == WORDS_INDEX)
        return next(found, None)

    @cached_property
    def row_bytes(self) -> int:
        """What a row takes on disk, on average."""
        fragments = [fragment.metadata for fragment in self.fragments]
        size = sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.files)
        return size // max(1, sum(fragment.physical_rows for fragment in fragments))

    def find(self, ids: Collection[str], columns: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """The rows of those ``ids`` that are here: their ``columns``, without those that this version lacks, and their
        address as "_rowaddr"."""
        found, remaining = {}, iter(ids)
        read = ["id", *(column for column in columns if column in self.columns)]
        while some := list(islice(remaining, IDS_AT_ONCE)):
            rows = self.table.to_table(columns=read, filter=_is_in("id", some), with_row_address=True)
            found.update({row["id"]: row for row in rows.to_pylist()})
        return found

    def take(self, addresses: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The ``columns``, without those that this version lacks, of the rows at ``addresses``, in that order."""
        if not len(addresses):
            return []
        here = [column for column in columns if column in self.columns]
        rows: list[dict[str, Any]] = self.table._take_rows([int(a) for a in addresses], columns=here).to_pylist()
        return rows

    def scan(self, columns: Sequence[str], fragment: Any = None, start: int = 0) -> Iterator[dict[str, Any]]:
        """The ``columns``, without those that this version lacks, and "_rowaddr" of every row from row ``start``.

        In order, and bounded in memory. Of one fragment, if it is given. What comes before ``start`` is not read.
        """
        for batch in self.batches([column for column in columns if column in self.columns], fragment, start):
            yield from batch.to_pylist()

    def batches(self, columns: Sequence[str], fragment: Any = None, start: int = 0) -> Iterator[pa.RecordBatch]:
        """As `scan`, in Arrow's batches."""
        scanner = (fragment or self.table).scanner(
            columns=list(columns),
            with_row_address=True,
            offset=start or None,
            batch_size=max(1, min(8192, SCAN_BYTES // max(1, self.row_bytes))),
            batch_readahead=1,
            io_buffer_size=8 * SCAN_BYTES,
        )
        return iter(scanner.to_batches())

    def vectors(self, fragment: Any) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Addresses (N,), ids and vectors (N, D) float32 of a fragment. Raises DamagedDocumentError."""
        about, rows = self.about, fragment.count_rows()
        addresses, vectors = np.empty(rows, np.int64), np.empty((rows, about.dimension), np.float32)
        ids: list[str] = []
        columns = ["id", about.column, *([about.checksum] if about.checksum in self.columns else [])]
        for batch in fragment.scanner(columns=columns, with_row_address=True).to_batches():
            here = slice(len(ids), len(ids) + len(batch))
            addresses[here] = batch["_rowaddr"].to_numpy()
            vectors[here] = batch[about.column].flatten().to_numpy().reshape(len(batch), -1)
            ids += batch["id"].to_pylist()
            if about.checksum in self.columns:
                self.check_vectors(ids[here], vectors[here], batch[about.checksum].to_pylist())
        return addresses, ids, vectors

    def check_vectors(self, ids: Sequence[str], vectors: np.ndarray, expected: Sequence[int | None]) -> None:
        """Raises DamagedDocumentError if ids and vectors (N, D) do not have the checksums ``expected``."""
        for row, found in enumerate(vector_checksums(ids, vectors)):
            if found != expected[row]:
                raise DamagedDocumentError(
                    ids[row], "its id or its vector is not what was put in (their checksum differs)"
                )


def key_of(fragment: Any) -> Key:
    """What tells whether a fragment is still the same: files never change, the list of them does."""
    return (fragment.fragment_id, *(file.path for file in fragment.metadata.files), fragment.deletion_file())


def read_one(fragment: Any) -> None:
    """Read one row: raises where a data file or the list of deletions is cut off."""
    with no_panic():
        fragment.scanner(limit=1).to_table()


def _is_in(column: str, values: Collection[str]) -> str:
    quoted = ("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({', '.join(quoted)})"
