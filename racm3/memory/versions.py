"""Versions: which version of a memory's table is read.

The newest that is whole. A newer one that is proven damaged is passed over, and the log says so; the next writer moves
it aside. What cannot be read just now is an error, and nothing is moved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from racm3.errors import MemoryStoreError
from racm3.memory.damage import UNREADABLE, is_fault, no_panic, told, unreadable
from racm3.memory.rows import About
from racm3.memory.snapshot import Key, Snapshot, key_of, read_one
from racm3.memory.storage import Storage, storage_at

__all__ = ["Versions", "deletion_files", "fragment_files", "manifest_of"]

METADATA_BYTES = 64 * 2**20
"""What Lance may keep of versions read (ours): each change adds 100 kB, and by itself it stops at 1 GB."""

log = logging.getLogger(__name__)


@dataclass
class VersionFound:
    """A version as it was found: its manifest, the snapshot if that can be read, and what is wrong."""

    manifest: str
    snapshot: Snapshot | None = None
    problem: BaseException | None = None
    broken: list[Any] = field(default_factory=list)
    """Fragments that cannot be read."""

    @property
    def number(self) -> int:
        return 2**64 - 1 - int(self.manifest.removesuffix(".manifest"))


class Versions:
    """The table of one memory. ``snapshot`` is the version that is being read. Threads may share it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.snapshot: Snapshot
        self.passed_over: list[VersionFound] = []
        """Versions newer than the snapshot, which are damaged."""
        self._lock = threading.RLock()
        self._readable: set[Key] = set()

    @classmethod
    def open(cls, path: str | Path, *, damaged: bool = False) -> Self:
        """The newest version that is whole; with ``damaged``, the newest one though some of its files cannot be read.

        Raises MemoryStoreError if it is missing, cannot be read just now, or is damaged beyond its newest version.
        """
        storage = storage_at(path)
        try:
            if not storage.versions():
                what = "is no memory" if storage.exists() else "does not exist"
                raise MemoryStoreError(
                    f"the memory {storage} {what}; check the path, or make it with racm3 memory create"
                )
        except OSError as error:
            raise unreadable(storage, error) from error
        store = cls(storage)
        store._open(damaged)
        store.snapshot.check_format()
        return store

    @property
    def about(self) -> About:
        return self.snapshot.about

    @property
    def table(self) -> Any:
        """Lance's handle of the version that is being read."""
        return self.snapshot.table

    def refresh(self) -> Snapshot:
        """Read the newest version that is whole from now on."""
        seen = self.snapshot
        try:
            with no_panic():
                newest = seen.table.latest_version
            if newest <= seen.version or self._known_damaged(newest):
                return self.snapshot
            with self._lock:
                if newest > self.snapshot.version:
                    with no_panic():
                        found = Snapshot(self.storage, self.table.checkout_version(newest))
                    self._probe(found)
                    self._publish(found)
        except UNREADABLE:
            self._open()
        return self.snapshot

    def _known_damaged(self, number: int) -> bool:
        return any(version.number == number for version in self.passed_over)

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot, self.passed_over = snapshot, []

    def _open(self, damaged: bool = False) -> None:
        """Read the newest version that is whole; newer ones are passed over if they are proven to be damaged."""
        with self._lock:
            for pause_s in (0, 0.1, 0.5):  # a writer may delete an old version while it is being opened
                time.sleep(pause_s)
                newest = self._look(self._manifests()[0])
                if newest.snapshot is not None and (newest.problem is None or (damaged and newest.broken)):
                    self._publish(newest.snapshot)
                    return
            passed: list[VersionFound] = []
            for manifest in self._manifests():
                version = self._look(manifest)
                if passed and self._shares_damage(passed[-1], version):
                    break
                if version.problem is None and version.snapshot is not None:
                    self._pass_over(passed, version.snapshot)
                    return
                passed.append(self._proven(version))
            raise MemoryStoreError(
                f"the memory {self.storage} is damaged: {told(passed[-1].problem)}; no earlier version is whole: "
                "restore it from a copy, or run `racm3 memory check --repair`, which keeps what can still be read"
            )

    def _manifests(self) -> list[str]:
        try:
            if manifests := self.storage.versions():
                return manifests
        except OSError as error:
            raise unreadable(self.storage, error) from error
        raise MemoryStoreError(f"the memory {self.storage} does not exist any more; check the path")

    def _look(self, manifest: str) -> VersionFound:
        """Open a version, and read a row of all that was not read so far."""
        version = VersionFound(manifest)
        try:
            with no_panic():
                version.snapshot = Snapshot(self.storage, self._dataset(version.number))
            self._probe(version.snapshot)
        except UNREADABLE as error:
            version.problem = error
            if version.snapshot is not None:
                version.broken = [f for f in version.snapshot.fragments if self._trouble(f) is not None]
        return version

    def _dataset(self, version: int | None = None) -> Any:
        import lance

        return lance.dataset(
            str(self.storage),
            version=version,
            storage_options=self.storage.options,
            metadata_cache_size_bytes=METADATA_BYTES,
        )

    def _probe(self, snapshot: Snapshot) -> None:
        """Compare the manifest with its checksum, and read a row of every fragment not read so far: where a file is
        cut off, this raises."""
        if not self.storage.checked:
            return
        if self.storage.state(manifest_of(snapshot.version)) == "changed":
            raise ValueError(
                f"the manifest of version {snapshot.version} is not as it was written: its checksum differs"
            )
        fragments = {key_of(fragment): fragment for fragment in snapshot.fragments}
        for key in fragments.keys() - self._readable:
            if (error := self._trouble(fragments[key])) is not None:
                raise error
        self._readable = set(fragments)

    def _trouble(self, fragment: Any) -> Exception | None:
        """Why a fragment cannot be read; None if it can."""
        try:
            read_one(fragment)
            for name in deletion_files([fragment.metadata]):
                if self.storage.state(name) == "changed":
                    return ValueError(f"the list of deletions {name} is not as it was written: its checksum differs")
        except UNREADABLE as error:
            return error
        return None

    def _shares_damage(self, newer: VersionFound, older: VersionFound) -> bool:
        """Whether what is broken in a version is in the one before it as well: no power cut has spoilt it, then."""
        if older.snapshot is None:
            return False  # that one is damaged too: go on to the one before it
        broken = {key_of(fragment) for fragment in newer.broken}
        return bool(broken & {key_of(fragment) for fragment in older.snapshot.fragments})

    def _proven(self, version: VersionFound) -> VersionFound:
        """The version, if it is damaged for sure. Raises MemoryStoreError if it may only be unreadable just now."""
        names = [manifest_of(version.number), *(n for f in version.broken for n in fragment_files(f.metadata))]
        self.prove_damage(names, version.problem)
        return version

    def prove_damage(self, names: Sequence[str], problem: BaseException | None) -> None:
        """Raises MemoryStoreError unless one of the files ``names`` can be read and is not what was written.

        A file without a checksum is taken for damaged if the system reads all of it, and Lance does not.
        """
        if is_fault(problem):
            raise unreadable(self.storage, problem)
        try:
            states = {self.storage.state(name) for name in names}
        except OSError as error:
            raise unreadable(self.storage, error) from error
        if states == {"as written"}:
            raise MemoryStoreError(
                f"the memory {self.storage} is as it was written, but cannot be read: {told(problem)}; nothing was "
                "changed: it may need another version of pylance than the one that is installed"
            )

    def _pass_over(self, passed: list[VersionFound], snapshot: Snapshot) -> None:
        """Read an older version, and say so once."""
        known = [version.manifest for version in self.passed_over]
        self._publish(snapshot)
        self.passed_over = passed
        if passed and known != [version.manifest for version in passed]:
            log.warning(
                "the newest version (%d) of the memory %s is damaged and cannot be read: %s. Version %d is read "
                "instead; the next change moves the damaged one aside. What the last change brought may be missing: "
                "add or sync it again.",
                passed[0].number, self.storage, told(passed[0].problem), snapshot.version,
            )  # fmt: skip


# Files -----------------------------------------------------------------------------------------------------------


def manifest_of(version: int) -> str:
    """The name of a version's manifest, as Lance numbers them."""
    return f"_versions/{2**64 - 1 - version:020d}.manifest"


def fragment_files(fragment: Any) -> list[str]:
    """The files of a fragment, as its metadata name them."""
    return [*(f"data/{file.path}" for file in fragment.files), *deletion_files([fragment])]


def deletion_files(fragments: Iterable[Any]) -> list[str]:
    """The lists of deleted rows of fragments, given by their metadata."""
    return [f.deletion_file.path(f.id) for f in fragments if f.deletion_file]
