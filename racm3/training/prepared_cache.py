"""Cache: files and folders that are made once, for all processes of a run and all runs of the same data.

They lie in a folder, from which they are read in place. Where no folder is shared by all machines, they are kept at
s3:// as well: what one machine made, every other one fetches, once, to its own disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from racm3.errors import SourceError
from racm3.util.s3 import Remote, is_remote

__all__ = ["Cache", "reused"]

COPIED_AT_ONCE_BYTES = 2**23


class Cache:
    """What is made, by name, at ``place``: a folder, or s3://bucket/name.

    Of the latter the copies on this machine lie in a folder of its own below TMPDIR, the system's for what may be lost.
    Beside each thing there lies a list of its files, with their sizes and checksums; it is written last.
    """

    def __init__(self, place: str | Path) -> None:
        self._kept = Remote(place) if is_remote(place) else None
        digest = hashlib.blake2b(str(self._kept).encode(), digest_size=8).hexdigest()
        self.folder = Path(place) if self._kept is None else Path(tempfile.gettempdir()) / f"racm3-{digest}"

    def made(self, name: str, what: str, make: Callable[[Path], object]) -> str:
        """Let ``make`` write that file or folder, whole or not at all, unless it is there; returns ``name``."""
        path = self.folder / name
        if not reused(path, what):
            if self._kept is not None and self._list(name).exists():
                print(f"{what}: fetching {name} from {self._kept}", file=sys.stderr)
                self.there(name)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                make(path)
        if self._kept is not None and not self._list(name).exists():
            self._keep(name)
        return name

    def there(self, name: str) -> Path:
        """Where, on this machine, that lies which some machine made. Raises SourceError if this one cannot reach it."""
        path = self.folder / name
        if self._kept is not None and not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{name}.lock"):  # one process of each machine fetches
                if not path.exists():
                    self._fetch(name)
        if not path.exists():
            raise SourceError(
                f"the first process made {path}, which is not on this machine; prepare in a folder that all machines "
                "share, or at s3://bucket/name (--prepared)"
            )
        return path

    def _list(self, name: str) -> Remote:
        return self._at(f"{name}.files.json")

    def _at(self, name: str) -> Remote:
        assert self._kept is not None
        return Remote(self._kept / name)

    def _keep(self, name: str) -> None:
        path = self.folder / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        facts = {name: _copied(file, self._at(name)) for name, file in zip(names, files, strict=True)}
        with self._list(name).open("wb") as listed:
            listed.write(json.dumps(facts).encode())

    def _fetch(self, name: str) -> None:
        with self._list(name).open() as listed:
            facts = json.load(listed)
        part = self.folder / f"{name}.fetched"
        shutil.rmtree(part, ignore_errors=True)
        for file, expected in facts.items():
            target = part / file
            target.parent.mkdir(parents=True, exist_ok=True)
            found = _copied(self._at(file), target)
            if found != expected:
                raise SourceError(
                    f"{self._at(file)} is damaged: size and checksum are {found}, and were {expected}; delete "
                    f"{self._list(name)}, so that {name} is made again"
                )
        (part / name).rename(self.folder / name)
        part.rmdir()


def reused(path: Path, what: str) -> bool:
    """Whether ``path`` is there already; says so if it is."""
    if path.exists():
        print(f"{what}: reused {path}", file=sys.stderr)
    return path.exists()


def _copied(source: Path, target: Path) -> list[int | str]:
    """Copy a file; its size in bytes and its checksum."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    with source.open("rb") as read, target.open("wb") as written:
        while piece := read.read(COPIED_AT_ONCE_BYTES):
            written.write(piece)
            digest.update(piece)
            size += len(piece)
    return [size, digest.hexdigest()]
