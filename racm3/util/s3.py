"""Remote: files in the buckets of an S3 object store, as s3://bucket/name.

Where the store is and who asks, the usual environment variables say: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID...
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import IO, Any

from racm3.errors import RACM3Error, SourceError

__all__ = ["Remote", "is_remote", "matching"]

READ_AHEAD_BYTES = 2**23
"""Asked for at once (ours): some 0.1 s at 100 MB/s, so that waiting for each answer is a small part."""
SCHEME = re.compile("^s3:/+")
COUNT = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_remote(path: str | Path) -> bool:
    """Whether it begins with s3://; a pathlib.Path has lost one of the two slashes."""
    return SCHEME.match(str(path)) is not None


class Remote(PosixPath):
    """The path s3://bucket/name, with as much of a path's ways as is needed: names, ``exists`` and ``open``.

    An object store that cannot be reached, whenever, is a RACM3Error; a file that is not there a FileNotFoundError.
    """

    def __str__(self) -> str:
        return SCHEME.sub("s3://", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def exists(self, **_: Any) -> bool:
        """Whether there is an object of this name. Raises InputError if the store is not reached."""
        from pyarrow.fs import FileType

        with _reached(self):
            files, name = self._located()
            return bool(files.get_file_info(name).type == FileType.File)

    def open(self, mode: str = "rb", **_: Any) -> IO[bytes]:  # type: ignore[override]
        """``rb``: to be read as a stream, or from anywhere. ``wb``: the file is there once the stream is closed."""
        with _reached(self):
            files, name = self._located()
            if mode == "wb":
                return io.BufferedWriter(_Raw(self, files.open_output_stream(name)))
            return io.BufferedReader(_Raw(self, files.open_input_file(name)), READ_AHEAD_BYTES)

    def files(self) -> dict[Remote, tuple[int, int]]:
        """All files below, by name: size in bytes and time of the last change in ns."""
        from pyarrow.fs import FileSelector, FileType

        with _reached(self):
            files, name = self._located()
            found = files.get_file_info(FileSelector(name, recursive=True, allow_not_found=True))
        by_name = sorted((one for one in found if one.type == FileType.File), key=lambda one: one.path)
        return {Remote(f"s3://{one.path}"): (one.size, one.mtime_ns) for one in by_name}

    def _located(self) -> tuple[Any, str]:
        """The bucket's file system, and bucket/name, the path in it."""
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(f"s3://{self.parts[1]}")[0], "/".join(self.parts[1:])


def matching(pattern: str | Path) -> tuple[Remote, dict[Remote, tuple[int, int]]]:
    """The folder above the first wildcard of ``pattern``; of the files in it those that match, as of ``files``.

    Wildcards are * and ?, and {000..127}, which counts. Raises SourceError if one of those counted is missing.
    """
    given = Remote(pattern)
    plain = next((i for i, part in enumerate(given.parts) if set(part) & set("*?[{")), len(given.parts) - 1)
    root = Remote(*given.parts[:plain])
    if plain < 2:
        raise SourceError(f"{given} names no bucket; write s3://bucket/shards/{{000..127}}.tar")
    every = root.files()
    found: dict[Remote, tuple[int, int]] = {}
    for one in _counted(str(given)):
        exact = Remote(one)
        alike = (file for file in every if len(file.parts) == len(given.parts) and file.match(one))
        here = [exact] if exact in every else list(alike)
        if not here:
            raise SourceError(f"there is no {one}; name what lies in {root}, with * ? or {{000..127}}")
        found |= {file: every[file] for file in here}
    return root, found


def _counted(pattern: str) -> Iterator[str]:
    """The patterns that {000..127} stands for, all of them as wide as its first number."""
    match = COUNT.search(pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _counted(pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :])


class _Raw(io.RawIOBase):
    """A stream of pyarrow's, whose failures are not mistaken for those of the data."""

    def __init__(self, file: Remote, stream: Any) -> None:
        self._file, self._stream = file, stream

    def readable(self) -> bool:
        return bool(self._stream.readable())

    def writable(self) -> bool:
        return bool(self._stream.writable())

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        with _reached(self._file):
            return int(self._stream.readinto(buffer))

    def write(self, data: Any) -> int:
        with _reached(self._file):
            return int(self._stream.write(data))

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(place, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            with _reached(self._file):
                self._stream.close()
        super().close()


@contextmanager
def _reached(file: Remote) -> Iterator[None]:
    """Raises RACM3Error instead of what the object store answers, but for a file that is missing."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RACM3Error(
            f"{file} cannot be reached: {error}; check the bucket's name, AWS_ENDPOINT_URL, AWS_REGION and the "
            "credentials in the environment"
        ) from None
