"""Store: the Lance table of a memory on disk, and the rules that keep it whole.

- Files are flushed before the commit that names them, the manifest after it, and only then is a change acknowledged.
- One process writes at a time (`storage`). Any number read, and see the newest version when they ask for it.

What the table holds is `rows`, how it is read `snapshot`, which version of it `versions`.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from racm3.data import Item
from racm3.errors import MemoryStoreError
from racm3.memory.damage import faults_told, told
from racm3.memory.rows import (
    FORMAT,
    KEY,
    WORDS,
    About,
    checksum_fields,
    checksums,
    schema_of,
    table_of,
    vector_array,
    vector_checksums,
)
from racm3.memory.snapshot import INDEX, SCAN_BYTES, WORDS_INDEX, Snapshot
from racm3.memory.storage import storage_at
from racm3.memory.versions import Versions, fragment_files, manifest_of

__all__ = ["Store"]

FRAGMENT_BYTES = 256 * 2**20
"""What compaction puts in one fragment (ours: bounds its memory, and 10 TB are 40,000 fragments)."""
SMALL_FRAGMENTS = 100
"""So many unfilled fragments are put together without being asked: one add makes one, and each costs every reader."""
VERSIONS = 256
"""After so many versions the old ones are deleted (ours: each lists all fragments, so keeping all is quadratic)."""
INDEX_FROM = 256
"""Documents that Lance needs to learn the codes of an index."""
NUMBERS_A_CODE, LEAST_CODES = 4, 16
"""Numbers of a vector that become one byte in the index, and the least of them (ours, see `search.REFINED`)."""
COVERED_UP_TO = 1_000_000
"""Documents of a memory without checksums that get them at its first change (ours: seconds); more, when compacted."""

log = logging.getLogger(__name__)


class Store(Versions):
    """The table of one memory, to be changed as well."""

    @classmethod
    def create(
        cls, path: str | Path, encoder: str, dimension: int, config: dict[str, str | None] | None = None
    ) -> Store:
        """An empty table. Raises MemoryStoreError if there is something at ``path``."""
        import lance

        storage = storage_at(path)
        with faults_told(storage):
            if storage.exists():
                raise MemoryStoreError(
                    f"there is already something at {storage}; add to it with racm3 memory add, or give a new path"
                )
            empty = schema_of(About(FORMAT, encoder, dimension)).empty_table()
            lance.write_dataset(empty, str(storage), mode="create", storage_options=storage.options)
            store = cls(storage)
            store.snapshot = Snapshot(storage, store._dataset())
            store._flush_version()
            storage.flush_folder()
            if config:
                store.set_config(config)
        return store

    @contextmanager
    def writing(self, *, refreshed: bool = True) -> Iterator[None]:
        """Be the only process that writes, on the newest version. Raises MemoryStoreError if another one goes on."""
        with self.storage.writing():
            with faults_told(self.storage):
                if refreshed:
                    self.refresh()
                    if self.passed_over:
                        self._open()  # is it damaged still?
                self._roll_back()
                if refreshed:
                    self._drop_leftovers()
                    if not self.snapshot.has_checksums and self.snapshot.rows <= COVERED_UP_TO:
                        self.cover()
            yield

    def _roll_back(self) -> None:
        """Move versions that are damaged aside, and go on from the one that is read."""
        with self._lock:
            if not self.passed_over:
                return
            damaged, newest = self.passed_over, self.passed_over[0].number
            there = self.storage.versions()
            for version in damaged:
                if version.manifest in there:
                    log.warning(
                        "version %d of the memory %s is damaged: %s. It was moved to %s; version %d goes on.",
                        version.number, self.storage, told(version.problem),
                        self.storage.move_aside(version.manifest), self.snapshot.version,
                    )  # fmt: skip
            self._publish(Snapshot(self.storage, self._dataset(self.snapshot.version)))
            while self.snapshot.version <= newest:  # no version number is ever given twice
                self.set_config({"racm3.recovered": str(newest)})

    # Writing: all of it to be called while `writing` ---------------------------------------------------------------

    def change(
        self, items: Sequence[Item], vectors: np.ndarray, gone: Iterable[int] = (), fragments: Sequence[int] = ()
    ) -> None:
        """Add rows, remove those at the addresses ``gone`` and in whole ``fragments``: in one step, durably."""
        import lance

        added, updated, removed = [], [], list(fragments)
        with faults_told(self.storage):
            if items:
                rows = table_of(items, vectors, self.table.schema, self.about)
                added = lance.fragment.write_fragments(rows, self._own(), schema=rows.schema)
            offsets = defaultdict(list)
            for address in gone:
                offsets[int(address) >> 32].append(int(address) & 0xFFFFFFFF)
            for number, here in offsets.items():
                left = self._own().get_fragment(number).delete_rows(here)
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
        elif self.snapshot.version % VERSIONS == 0:
            self.expire_versions()

    def write(self, batches: Iterable[tuple[Sequence[Item], np.ndarray]]) -> list[Any]:
        """Write items and their vectors as fragments that belong to no version yet, durably. Any process may.

        `expire_versions` deletes them for as long as no version names them.
        """
        schema, about = self.table.schema, self.about
        rows = (batch for items, vectors in batches for batch in table_of(items, vectors, schema, about).to_batches())
        return self._write(rows)

    def _write(self, rows: Iterable[pa.RecordBatch]) -> list[Any]:
        import lance

        failed: list[BaseException] = []

        def noted() -> Iterator[pa.RecordBatch]:
            try:
                yield from rows
            except BaseException as error:
                failed.append(error)
                raise

        schema = self.table.schema
        reader = pa.RecordBatchReader.from_batches(schema, noted())
        try:
            made = lance.fragment.write_fragments(reader, self._own(), schema=schema, max_bytes_per_file=FRAGMENT_BYTES)
        except OSError as error:
            if failed:
                raise failed[0] from None  # and not what Arrow and Lance make of it
            with faults_told(self.storage):
                raise error
        self._flush(made)
        return list(made)

    def append(self, fragments: Sequence[Any]) -> None:
        """Add fragments that `write` has made, in one step, durably."""
        import lance

        self.commit(lance.LanceOperation.Append(fragments), [])

    def commit(self, operation: Any, written: Sequence[Any]) -> None:
        """Flush the files of ``written`` fragments, commit, and flush the manifest."""
        import lance

        with faults_told(self.storage):
            self._flush(written)
            self.storage.still_writing()
            read = self.snapshot.version
            self._changed(lance.LanceDataset.commit(self._own(), operation, read_version=read))
        if self.snapshot.version != read + 1:
            raise MemoryStoreError(
                f"another process has changed {self.storage} in spite of the lock, between versions {read} and "
                f"{self.snapshot.version}; ids may be there twice: stop the other one, and run `racm3 memory sync`"
            )

    def _own(self) -> Any:
        """A handle of the newest version that no other thread reads: Lance changes handles in place."""
        return copy.copy(self.table)

    def _changed(self, table: Any) -> None:
        """Flush the version just committed, and read it from now on."""
        snapshot = Snapshot(self.storage, table)
        self._flush_version(snapshot.version)
        with self._lock:
            self._publish(snapshot)

    def _flush(self, written: Sequence[Any]) -> None:
        self.storage.flush(*(name for fragment in written for name in fragment_files(fragment)))

    def _flush_version(self, version: int | None = None) -> None:
        """Flush the manifest just committed. Lance itself does not (measured); flush, then acknowledge."""
        self.storage.flush(manifest_of(self.snapshot.version if version is None else version))

    def _target_rows(self) -> int:
        return max(1, min(2**20, FRAGMENT_BYTES // max(1, self.snapshot.row_bytes)))

    def _unfilled(self) -> list[Any]:
        """Fragments that are less than half full: those above are not worth being written again."""
        half = self._target_rows() / 2
        return [fragment for fragment in self.snapshot.fragments if fragment.physical_rows < half]

    def compact(self, *, thorough: bool = True) -> None:
        """Put unfilled fragments together and delete old versions; a ``thorough`` one drops all deleted rows as well.

        Holds ``FRAGMENT_BYTES`` in memory, about.
        """
        from lance.optimize import Compaction, CompactionOptions

        with self.writing(), faults_told(self.storage):
            if thorough and not self.snapshot.has_checksums:
                self.cover()
            fragments = self.snapshot.fragments
            again = {fragment.fragment_id for fragment in self._unfilled()}
            again |= {f.fragment_id for f in fragments if thorough and f.num_deletions}
            options = CompactionOptions(
                target_rows_per_fragment=self._target_rows(),
                excluded_fragment_ids=[f.fragment_id for f in fragments if f.fragment_id not in again],
                materialize_deletions_threshold=0.0,
                num_threads=1,
                batch_size=max(1, min(8192, SCAN_BYTES // max(1, self.snapshot.row_bytes))),
                io_buffer_size=8 * SCAN_BYTES,
            )
            table = self._own()
            for task in Compaction.plan(table, options).tasks:
                done = task.execute(table)
                self._flush(done.new_fragments)
                self.storage.still_writing()
                Compaction.commit(table, [done])
                table.checkout_latest()
                self.storage.flush_indices()
                self._changed(copy.copy(table))
            self.expire_versions()

    def expire_versions(self) -> None:
        """Delete all versions but two that hold the same: a damaged manifest has another one before it."""
        self.set_config({"racm3.kept": str(self.snapshot.version)})
        self.storage.still_writing()  # or what another one is about to commit would be deleted
        self._own().cleanup_old_versions(timedelta(0), retain_versions=2, delete_unverified=True)
        self.storage.expire_checksums()

    def set_config(self, values: dict[str, str | None]) -> None:
        """Keep facts beside the documents; None takes one away."""
        table = self._own()
        table.update_config(values)
        self._changed(table)

    def index(self) -> None:
        """Index the vectors and the ids, or bring both indices up to date; a memory twice as large gets new ones."""
        with self.writing(), faults_told(self.storage):
            snapshot, table = self.snapshot, self._own()
            indexed, rows, about = snapshot.indexed, snapshot.rows, snapshot.about
            if indexed is not None and 2 * indexed > rows:
                table.optimize.optimize_indices(index_names=[INDEX, "ids"])
            else:
                codes = max(about.dimension // NUMBERS_A_CODE, LEAST_CODES)
                table.create_index(
                    about.column,
                    "IVF_PQ",
                    name=INDEX,
                    metric="dot",
                    replace=True,
                    num_partitions=max(1, min(math.isqrt(rows), rows // INDEX_FROM)),
                    num_sub_vectors=max(n for n in range(1, codes + 1) if about.dimension % n == 0),
                )
                table.create_scalar_index("id", "BTREE", name="ids", replace=True)
            table.checkout_latest()
            self.storage.flush_indices()
            self._changed(table)

    def index_words(self, unindexed: float, least: int) -> None:
        """Index the texts if they are not yet; bring the index up to date if more than that share of them, and more
        than ``least``, are not in it."""
        with self.writing(), faults_told(self.storage):
            snapshot, table = self.snapshot, self._own()
            indexed = snapshot.words_indexed
            if indexed is None:
                # ICU finds the words of Chinese, Japanese and Thai; stop words stay, for a name may be one.
                table.create_scalar_index(
                    "text", "INVERTED", name=WORDS_INDEX, base_tokenizer="icu", stem=True, remove_stop_words=False
                )
            elif snapshot.rows - indexed > max(least, unindexed * snapshot.rows):
                table.optimize.optimize_indices(index_names=[WORDS_INDEX])
            else:
                return
            table.checkout_latest()
            self.storage.flush_indices()
            self._changed(table)

    def drop_index(self) -> None:
        """Remove both indices; `index` makes new ones."""
        table = self._own()
        for name in [index.name for index in table.describe_indices()]:
            table.drop_index(name)
        table.checkout_latest()
        self._changed(table)

    def set_vectors(self, about: About, vectors: Callable[[Sequence[str]], np.ndarray]) -> None:
        """Replace all vectors by those of another encoder, in one step: until it is done, the old ones are there.

        ``vectors`` gives (N, D) float32 for N ids.
        """
        about = replace(about, format=FORMAT, column=f"vector_{self.snapshot.version}")
        fields = [pa.field(about.column, pa.list_(pa.float32(), about.dimension))]
        if self.snapshot.has_checksums:
            fields.append(pa.field(about.checksum, pa.uint32()))

        def columns(batch: pa.RecordBatch) -> pa.RecordBatch:
            ids = batch["id"].to_pylist()
            made = np.ascontiguousarray(vectors(ids), np.float32)
            values = [vector_array(made), pa.array(vector_checksums(ids, made), pa.uint32())]
            return pa.record_batch(values[: len(fields)], schema=pa.schema(fields))

        self._merge(columns, ["id"], fields, about)
        with faults_told(self.storage):
            table = self._own()
            table.update_schema_metadata(
                {KEY.decode(): json.dumps(asdict(about))}
            )  # from here on they are the new ones
            self._changed(table)
            self._drop_leftovers()

    def cover(self) -> None:
        """Give every row its checksums, in one step. Pictures, which their hash covers, are not read."""
        if left := self.snapshot.columns & {field.name for field in checksum_fields(self.about)}:
            self._drop(sorted(left))
        about = self.about
        log.info("giving checksums to %d documents of the memory %s, once", self.snapshot.rows, self.storage)

        def columns(batch: pa.RecordBatch) -> pa.RecordBatch:
            ids, vectors = batch["id"].to_pylist(), batch[about.column].flatten().to_numpy()
            words = (batch[name].to_pylist() for name in WORDS)
            made = [checksums(*words), vector_checksums(ids, vectors.reshape(len(ids), -1))]
            return pa.record_batch([pa.array(m, pa.uint32()) for m in made], schema=pa.schema(checksum_fields(about)))

        self._merge(columns, [*WORDS, about.column], checksum_fields(about), about)

    def _merge(
        self,
        columns: Callable[[pa.RecordBatch], pa.RecordBatch],
        read: list[str],
        fields: Sequence[pa.Field],
        about: About,
    ) -> None:
        """Add columns made of others, a batch of rows at a time, in one step."""
        import lance

        rows = max(1, SCAN_BYTES // (4 * about.dimension))
        with faults_told(self.storage):
            table = self._own()
            grown = [f.merge_columns(columns, columns=read, batch_size=rows) for f in table.get_fragments()]
            if not grown:
                table.add_columns(list(fields))
                self._changed(table)
                return
        written = [fragment for fragment, _ in grown]
        self.commit(lance.LanceOperation.Merge(written, grown[0][1]), written)

    def rewrite(self, fragment: Any, sound: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
        """Write a fragment again with those rows alone that ``sound`` leaves, in one step."""
        import lance

        names = self.table.schema.names
        rows = (sound(batch).select(names) for batch in self.snapshot.batches(names, fragment))
        made = self._write(batch.cast(self.table.schema) for batch in rows if len(batch))
        self.commit(
            lance.LanceOperation.Update(
                removed_fragment_ids=[fragment.fragment_id], updated_fragments=[], new_fragments=made
            ),
            [],
        )

    def _drop_leftovers(self) -> None:
        """Drop vectors that belong to no encoder any more, or never did: a change of encoder was broken off."""
        known = set(schema_of(self.about).names)
        if left := [name for name in self.table.schema.names if name not in known]:
            self._drop(left)

    def _drop(self, columns: list[str]) -> None:
        table = self._own()
        table.drop_columns(columns)
        self._changed(table)
