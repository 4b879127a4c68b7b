"""Check: is everything that a memory holds still what was put in?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from racm3.errors import DamagedDocumentError
from racm3.memory.damage import UNREADABLE, no_panic, told, unreadable
from racm3.memory.rows import DOCUMENT, item_of
from racm3.memory.snapshot import Snapshot
from racm3.memory.store import Store
from racm3.memory.versions import deletion_files, fragment_files, manifest_of

__all__ = ["Checked", "Damage", "check"]


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was: a document, a version, or a file, and how many documents are lost by it."""

    what: str
    documents: int
    reason: str


@dataclass
class Checked:
    """What `check` found."""

    sound: int = 0
    """Documents that are what was put in."""
    damaged: list[Damage] = field(default_factory=list)
    uncovered: int = 0
    """Of the sound ones, those whose vectors, metadata and origins have no checksums, as the memory is of before there
    were any; its next change gives them some."""


def check(path: str | Path, *, repair: bool = False) -> Checked:
    """Compare everything that is stored with its checksums, and every document with its hash.

    ``repair`` removes what is damaged, so that it can be added again, and makes a damaged index again. Raises
    MemoryStoreError if there is no memory, or it cannot be read just now.
    """
    store = Store.open(path, damaged=True)
    snapshot, found = store.snapshot, Checked()
    states = _states(store)
    for version in store.passed_over:
        found.damaged.append(Damage(f"version {version.number}", 0, told(version.problem)))
    spoilt: dict[int, list[int]] = {}
    for fragment in snapshot.fragments:
        rows = _check_fragment(store, fragment, states, found)
        if rows is not None:
            spoilt[fragment.fragment_id] = rows
    found.uncovered = 0 if snapshot.has_checksums else found.sound
    passed_over = {manifest_of(version.number) for version in store.passed_over}
    others = [name for name, state in states.items() if state == "changed" and name not in passed_over]
    found.damaged += [Damage(f"file {name} of {_whose(name)}", 0, NOT_AS_WRITTEN) for name in others]
    doubtful = [name for name, state in states.items() if state == "doubtful"]
    found.damaged += [Damage(f"checksum of {name}", 0, "it is damaged itself") for name in doubtful]
    if repair and found.damaged:
        _repair(store, spoilt, doubtful, index=any(name.startswith("_indices") for name in others))
    return found


def _states(store: Store) -> dict[str, str]:
    """The state of every file that has a checksum."""
    try:
        return {name: store.storage.state(name) for name in store.storage.covered()}
    except OSError as error:
        raise unreadable(store.storage, error) from error


def _whose(name: str) -> str:
    return "the index" if name.startswith("_indices") else "an earlier version"


NOT_AS_WRITTEN = "it is not as it was written: its checksum differs"


def _check_fragment(store: Store, fragment: Any, states: dict[str, str], found: Checked) -> list[int] | None:
    """Adds what is in a fragment to ``found``. None if it is as it was written, else the addresses of damaged rows.

    Takes its damaged files from ``states``.
    """
    files = fragment_files(fragment.metadata)
    changed = [name for name in files if states.get(name) == "changed"]
    for name in changed:
        del states[name]
    try:
        with no_panic():
            problems = list(_problems(store.snapshot, fragment))
    except UNREADABLE as error:
        store.prove_damage(files, error)
        documents = fragment.metadata.num_rows
        found.damaged.append(Damage(f"data file {' and '.join(files)}", documents, told(error)))
        return list(range(fragment.physical_rows))
    found.sound += fragment.count_rows() - len(problems)
    found.damaged += [Damage(f"document {name!r}", 1, reason) for _, name, reason in problems]
    if changed and not problems:
        lists = set(deletion_files([fragment.metadata]))
        for name in changed:
            meaning = "documents may be missing or be back" if name in lists else "every document in it is sound"
            found.damaged.append(Damage(f"data file {name}", 0, f"{NOT_AS_WRITTEN}; {meaning}"))
    return [address for address, _, _ in problems] if problems or changed else None


def _problems(snapshot: Snapshot, fragment: Any) -> Iterator[tuple[int, str, str]]:
    """Address, id and reason of each document that is damaged."""
    about = snapshot.about
    vectors = [about.column, *([about.checksum] if about.checksum in snapshot.columns else [])]
    columns = [*(name for name in DOCUMENT if name in snapshot.columns), *vectors]
    for batch in snapshot.batches(columns, fragment):
        for number in range(len(batch)):
            row, name = batch.slice(number, 1), f"row {number}"
            try:
                name = row["id"][0].as_py()
                (document,) = row.drop_columns(vectors).to_pylist()
                item_of(document)
                vector = row[about.column].flatten().to_numpy().reshape(1, about.dimension)
                if about.checksum in vectors:
                    snapshot.check_vectors([name], vector, row[about.checksum].to_pylist())
            except (DamagedDocumentError, ValueError) as error:
                yield int(row["_rowaddr"][0].as_py()), name, getattr(error, "reason", str(error))


def _repair(store: Store, spoilt: dict[int, list[int]], doubtful: Sequence[str], *, index: bool) -> None:
    with store.writing(refreshed=False):
        for fragment in store.snapshot.fragments:
            gone = spoilt.get(fragment.fragment_id)
            if gone is None:
                continue
            if len(gone) < fragment.count_rows():
                store.rewrite(fragment, partial(_without, pa.array(gone, pa.uint64())))
            else:
                none = np.zeros((0, store.about.dimension), np.float32)
                store.change([], none, fragments=[fragment.fragment_id])
        if index:
            store.drop_index()
        store.storage.flush(*doubtful)
        store.expire_versions()


def _without(gone: pa.Array, rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.filter(pc.invert(pc.is_in(rows["_rowaddr"], gone)))
