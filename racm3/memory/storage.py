"""Storage: where a memory lies, a folder or a bucket, and what has to be done there besides what Lance does.

Both promise the same: what was acknowledged stays, and one process writes at a time.

- A folder: files are flushed (Lance itself flushes none, measured), each with its checksum in checksums/, and a lock
  file dies with its owner.
- A bucket: an object that was put is whole and stays, so there is nothing to flush. The lock is a lease (`Lease`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from racm3.errors import InputError, MemoryStoreError
from racm3.util.s3 import Remote, is_remote

__all__ = ["Bucket", "FileState", "Folder", "Storage", "storage_at"]

LOCK_WAIT_S = 10.0
"""How long a writer waits for another one in a folder (ours: longer than any add of a few thousand items)."""
LEASE_S = 20.0
"""A lease that was not renewed for so long belongs to nobody (ours: bounds the wait after a writer was killed)."""
POLL_S = 0.5
HINT = "latest_version_hint.json"
"""Where Lance notes the newest version."""
OURS = frozenset({"_versions", "_transactions", "_deletions", "_indices", "data", "checksums", "writer.lock"})
"""What lies in a memory's folder before it has a version."""
FileState = Literal["as written", "unknown", "doubtful", "changed", "missing"]
"""Unknown is a file without a checksum, doubtful one whose checksum is damaged itself."""

log = logging.getLogger(__name__)


class Folder:
    """A folder on disk."""

    options: dict[str, str] | None = None
    """What Lance is told to get there."""
    checked = True
    """Whether a power cut can leave a file here that is cut off."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self.path = path
        self._lock = FileLock(path / "writer.lock", timeout=LOCK_WAIT_S)

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether there is something; what a `create` that was broken off at once has left is nothing."""
        try:
            return not OURS.issuperset(os.listdir(self.path)) or bool(self.versions())
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True

    def versions(self) -> list[str]:
        """The names of the manifests, newest first: Lance counts down, so that the newest sorts first.

        Raises OSError if they cannot be listed.
        """
        try:
            return sorted(name for name in os.listdir(self.path / "_versions") if name.endswith(".manifest"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def move_aside(self, manifest: str) -> str:
        """Make ``manifest`` a version no more; where it lies now."""
        versions, aside = self.path / "_versions", self.path / "damaged" / manifest
        aside.parent.mkdir(exist_ok=True)
        (versions / manifest).replace(aside)
        self._checksum_file(f"_versions/{manifest}").unlink(missing_ok=True)  # another version may get its number
        (versions / HINT).unlink(missing_ok=True)  # it names the version moved aside
        _fsync(aside.parent, versions, self.path)
        return str(aside)

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.path)

    def flush(self, *names: str) -> None:
        """Note the checksums of files, and make them and their entries in their folders survive a power cut."""
        files = [self.path / name for name in names]
        files += [self._write_checksum(name) for name in names]
        folders = {folder for file in files for folder in file.parents if self.path in folder.parents}
        _fsync(*files, *sorted(folders), self.path)

    def flush_folder(self) -> None:
        """Make the entry of the folder itself survive a power cut."""
        _fsync(self.path.parent)

    def flush_indices(self) -> None:
        new = [name for name in self.files("_indices") if not self._checksum_file(name).exists()]
        if new:
            self.flush(*new)

    # Checksums of files --------------------------------------------------------------------------------------------

    def files(self, folder: str) -> list[str]:
        """The names of all files below a folder of the memory."""
        found = (self.path / folder).rglob("*")
        return sorted(str(file.relative_to(self.path)) for file in found if file.is_file())

    def state(self, name: str) -> FileState:
        """Whether a file is as it was written. Raises OSError if it cannot be read, which says nothing about it."""
        try:
            with (self.path / name).open("rb") as file:
                found = _digest(file)
        except FileNotFoundError:
            return "missing"
        try:
            noted = self._checksum_file(name).read_bytes()
        except FileNotFoundError:
            return "unknown"
        if len(noted) < len(_sealed(found)):
            return "unknown"  # the disk was full, or the power was cut, while it was noted
        if noted != _sealed(noted[: len(found)].decode("utf-8", "replace")):
            return "doubtful"
        return "as written" if noted == _sealed(found) else "changed"

    def covered(self) -> list[str]:
        """The files that have a checksum."""
        return [name.removeprefix("checksums/").removesuffix(".sum") for name in self.files("checksums")]

    def expire_checksums(self) -> None:
        """Delete those of files that are no more."""
        for name in self.covered():
            if not (self.path / name).exists():
                self._checksum_file(name).unlink(missing_ok=True)

    def _checksum_file(self, name: str) -> Path:
        return self.path / "checksums" / f"{name}.sum"

    def _write_checksum(self, name: str) -> Path:
        noted = self._checksum_file(name)
        noted.parent.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("rb") as file:
            digest = _digest(file)
        noted.write_bytes(_sealed(digest))
        return noted

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def scratch(self) -> Path:
        """A folder for what a long change has done so far."""
        return self.path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock. The kernel frees it when its process ends, however it ends."""
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            raise MemoryStoreError(
                f"another process is writing to {self} (waited {LOCK_WAIT_S:g} s); try again when it is done"
            ) from None
        except OSError as error:
            raise MemoryStoreError(f"the memory {self} cannot be written to: {error}") from None
        try:
            yield
        finally:
            self._lock.release()

    def still_writing(self) -> None:
        """Nobody takes this lock away."""


class Bucket:
    """A bucket of an S3 object store, reached as the usual environment variables say (AWS_ENDPOINT_URL and others)."""

    checked = False

    def __init__(self, uri: str) -> None:
        try:
            from obstore.store import from_url
        except ImportError:
            raise MemoryStoreError(f"{uri} needs the extra s3: pip install 'racm3[s3]'") from None
        self.path = uri
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        self.options = {"allow_http": "true"} if plain else None
        self._objects = from_url(uri, client_options={"allow_http": plain})
        self._lease = Lease(self._objects, uri)

    def __str__(self) -> str:
        return self.path

    def exists(self) -> bool:
        return bool(self._names(""))

    def versions(self) -> list[str]:
        """As of a folder."""
        names = (name.rpartition("/")[2] for name in self._names("_versions"))
        return sorted(name for name in names if name.endswith(".manifest"))

    def move_aside(self, manifest: str) -> str:
        """As of a folder."""
        with _reached(self):
            self._objects.rename(f"_versions/{manifest}", f"damaged/{manifest}")
            if f"_versions/{HINT}" in self._names("_versions"):
                self._objects.delete(f"_versions/{HINT}")
        return f"{self}/damaged/{manifest}"

    def remove(self) -> None:
        """As of a folder."""
        with _reached(self):
            self._objects.delete(list(self._names("")))

    def flush(self, *names: str) -> None:
        """An object that was put is on disk, and the store looks after its checksum."""

    flush_folder = flush_indices = expire_checksums = flush

    def covered(self) -> list[str]:
        """None: the store looks after its own."""
        return []

    def state(self, name: str) -> FileState:
        """As of a folder, but for checksums."""
        from obstore.exceptions import NotFoundError

        with _reached(self):
            try:
                self._objects.get(name).bytes()
            except (NotFoundError, FileNotFoundError):
                return "missing"
        return "unknown"

    def size_bytes(self) -> int:
        return sum(self._names("").values())

    def scratch(self) -> Path:
        """A folder of this machine's, for what a long change has done so far."""
        folder = Path(tempfile.gettempdir()) / f"racm3-{hashlib.blake2b(self.path.encode(), digest_size=8).hexdigest()}"
        folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lease."""
        self._lease.acquire()
        try:
            yield
        finally:
            self._lease.release()

    def still_writing(self) -> None:
        """Raises MemoryStoreError if the lease may have gone to another writer meanwhile."""
        self._lease.check()

    def _names(self, folder: str) -> dict[str, int]:
        """Names and sizes of the objects below ``folder``."""
        with _reached(self):
            return {found["path"]: found["size"] for some in self._objects.list(folder or None) for found in some}


Storage = Folder | Bucket


class Lease:
    """The right to write to a bucket: an object that only its owner replaces, and does so all the time.

    Made by a put that fails where there is one. Whoever has seen it unchanged for ``LEASE_S`` by his own clock replaces
    it: its owner is dead. An owner that could not replace it for half as long stops writing, so that two never do.
    """

    NAME = "writer.lock"

    def __init__(self, objects: Any, uri: str) -> None:
        self._objects, self._uri = objects, uri
        self._mutex, self._depth = threading.RLock(), 0
        self._tag: str | None = None
        self._renewed = 0.0
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None

    def acquire(self) -> None:
        """Get it, or hold it once more. Raises MemoryStoreError if another process has it for ``LEASE_S``."""
        self._mutex.acquire()
        try:
            if self._depth == 0:
                with _reached(self._uri):
                    self._take()
                self._ended.clear()
                self._renewing = threading.Thread(target=self._renew, daemon=True)
                self._renewing.start()
            self._depth += 1
        except BaseException:
            self._mutex.release()
            raise

    def release(self) -> None:
        self._depth -= 1
        try:
            if self._depth == 0:
                assert self._renewing is not None
                self._ended.set()
                self._renewing.join()
                if self._safe():
                    with _reached(self._uri):
                        self._objects.delete(self.NAME)
        finally:
            self._mutex.release()

    def check(self) -> None:
        """Raises MemoryStoreError if somebody else may have it."""
        if not self._safe():
            raise MemoryStoreError(
                f"{self._uri} could not be reached for {LEASE_S / 2:g} s, and another process may be writing to it by "
                "now; nothing was changed: try again"
            )

    def _safe(self) -> bool:
        return time.monotonic() - self._renewed < LEASE_S / 2

    def _take(self) -> None:
        started, first = time.monotonic(), None
        while not self._put("create"):
            there = self._there()
            first = first or there
            if time.monotonic() - started > LEASE_S:
                if there == first and there is not None and self._put({"e_tag": there}):
                    log.warning("a writer of %s ended without a word; this one goes on", self._uri)
                    return
                raise MemoryStoreError(
                    f"another process is writing to {self._uri} (waited {LEASE_S:g} s); try again when it is done"
                )
            time.sleep(POLL_S)

    def _put(self, mode: Any) -> bool:
        """Make or replace the object; False if it is there already, or another one than ``mode`` says."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        asked = time.monotonic()
        owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4()}"  # new each time: the tag is made of it
        try:
            self._tag = self._objects.put(self.NAME, owner.encode(), mode=mode)["e_tag"]
        except (AlreadyExistsError, PreconditionError):
            return False
        self._renewed = asked
        return True

    def _there(self) -> str | None:
        from obstore.exceptions import NotFoundError

        try:
            tag: str | None = self._objects.head(self.NAME)["e_tag"]
        except (NotFoundError, FileNotFoundError):
            return None
        return tag

    def _renew(self) -> None:
        from obstore.exceptions import BaseError

        while not self._ended.wait(LEASE_S / 8):
            try:
                if not self._put({"e_tag": self._tag}):
                    self._renewed = 0.0  # another one has it
                    return
            except BaseError as error:
                log.warning("the lease on %s was not renewed, and will be tried again: %s", self._uri, error)


def storage_at(at: str | Path) -> Storage:
    """The folder, or for s3://bucket/name the bucket. Raises InputError for anything else with a scheme."""
    if is_remote(at):
        return Bucket(str(Remote(at)))
    if re.match("[a-z][a-z0-9]+:/", str(at)):
        raise InputError(f"a memory lies in a folder or at s3://bucket/name, but {at} was given")
    return Folder(Path(at))


@contextmanager
def _reached(storage: object) -> Iterator[None]:
    """Raises MemoryStoreError instead of what the object store answers."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        told = " ".join(str(error).partition("\n\nDebug source:")[0].split())
        raise MemoryStoreError(
            f"{storage} cannot be reached: {told}; check the bucket's name, AWS_ENDPOINT_URL, AWS_REGION and the "
            "credentials in the environment"
        ) from None


def _sealed(digest: str) -> bytes:
    """A checksum as it lies on disk, with what tells whether it is damaged itself."""
    return f"{digest} {zlib.crc32(digest.encode()):08x}".encode()


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # type: ignore[arg-type]


def _fsync(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
