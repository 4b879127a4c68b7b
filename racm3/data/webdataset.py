"""WebDataset shards, as img2dataset writes them: a tar, plain or gzipped, of .jpg/.png/.webp + .txt + .json.

Members of one key (the name up to its first dot) that stand together are a sample. The tar is read as a stream, once,
and nothing is ever extracted; tarfile takes a damaged header for the end of the tar, so headers are watched here.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from racm3.data.item import (
    ITEM_ID,
    MAX_FILE_BYTES,
    Draft,
    Item,
    broken,
    json_object,
    leaves,
    name_of,
    pair,
)
from racm3.data.picture_folder import SUFFIXES as PICTURES
from racm3.data.writing import file_name, text_and_picture, unique
from racm3.errors import SourceError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
READ = frozenset({"txt", "json", *(suffix[1:] for suffix in PICTURES)})
GZIP = b"\x1f\x8b"
MAX_HEADER_BYTES = 65_536
"""Of a long name or extended header (ours): paths have at most 4,096; tarfile reads headers whole."""
MAX_MEMBER_BYTES = 2**34
"""A member that says it is larger is damage (ours): tarfile would try for seconds or for years to skip over it."""
BUFFER_BYTES = 1 << 16
TRAILING_BYTES = 1 << 20
"""Read after the end mark (ours): padding, and a gzip's checksum, end well before."""
DAMAGE = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error)


@dataclass
class Sample:
    """What stands in a shard under one key: the members that are read, by extension, and what is wrong with it."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    problem: str | None = None


def read_webdataset(file: Path, root: Path) -> Iterator[Draft]:
    """Samples; of a damaged shard those that are whole, then one broken item. The id is shard/key, or "item_id"."""
    shard = name_of(file)
    prefix = id_prefix(file, root)
    count = 0
    try:
        for sample in samples(file):
            yield Draft(f"{shard}#{sample.key}", partial(sample_item, sample, f"{prefix}/{sample.key}", shard))
            count += 1
    except DAMAGE as error:
        reason = f"the shard is damaged after {count} samples, which are kept: {type(error).__name__}: {error}"
        yield Draft(shard, partial(broken, reason))


def id_prefix(file: Path, root: Path) -> str:
    """A shard's place inside ``root``, without its extension."""
    place = name_of(file.relative_to(root))
    return place[: -max(len(suffix) for suffix in SUFFIXES if place.lower().endswith(suffix))]


def sample_item(sample: Sample, item_id: str, shard: str) -> Item:
    if sample.problem:
        raise SourceError(sample.problem)
    images = [ext for ext in sample.members if "." + ext in PICTURES]
    if len(images) > 1:
        raise SourceError(f"it has several pictures ({', '.join(images)}); a sample has one")
    record = json_object(sample.members.get("json", b"{}"))
    caption = record.get("caption")  # as img2dataset writes it, where there is no .txt
    text = sample.members.get("txt", caption if isinstance(caption, str) else None)
    try:
        document = pair(text, sample.members[images[0]] if images else None)
    except SourceError as error:
        raise SourceError(f"{error} (its members: {', '.join(sample.names)})") from None
    given = record.pop(ITEM_ID, None)
    return Item(str(given) if given else item_id, document, record, f"{shard}#{sample.key}")


def samples(file: Path) -> Iterator[Sample]:
    """The samples of one shard. Raises one of ``DAMAGE`` where the shard is damaged; what came before is whole."""
    sample: Sample | None = None
    with file.open("rb") as raw:
        zipped = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        stream = _Zipped(raw) if zipped else raw
        for name, data in _members(stream):
            key, extension = _split(name)
            if sample is None or key != sample.key or extension in sample.names:
                if sample:
                    yield sample
                sample = Sample(key)
            sample.names.append(extension)
            if leaves(name):
                sample.problem = f"the path of its member {name!r} leaves the shard"
            elif isinstance(data, bytes):
                sample.members[extension] = data
            elif data is not None:
                sample.problem = f"its .{extension} takes {data:,} bytes; at most {MAX_FILE_BYTES:,} are read"
        if sample:
            yield sample
        stream.read(TRAILING_BYTES)


def _members(stream: Any) -> Iterator[tuple[str, bytes | int | None]]:
    """Name, and the data of what is read, the size of what is too large to be, or None for what is of no use."""
    with tarfile.open(
        fileobj=stream, mode="r|", bufsize=BUFFER_BYTES, tarinfo=_Header, errors="surrogateescape"
    ) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps the headers of the whole shard
            if not 0 <= member.size <= MAX_MEMBER_BYTES:
                raise tarfile.ReadError(f"the header of {member.name!r} gives {member.size} bytes")
            if not member.isfile():
                continue
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            data: bytes | int | None = None
            if _split(name)[1] in READ:
                opened = tar.extractfile(member) if member.size <= MAX_FILE_BYTES else None
                data = opened.read() if opened else member.size
            yield name.removeprefix("./"), data


def _split(name: str) -> tuple[str, str]:
    """A member's key, and its extension in lower case: what follows the first dot of its last component."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


class _Zipped:
    """The inside of a gzip. Damage is raised only after all that comes before it was read."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._stream = gzip.GzipFile(fileobj=raw)
        self._damage: Exception | None = None

    def read(self, size: int) -> bytes:
        if self._damage:
            raise self._damage
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._stream.read1(size - len(data))
            except DAMAGE as error:
                if not data:
                    raise
                self._damage = error
                break
            if not piece:
                break
            data += piece
        return bytes(data)


class _Header(tarfile.TarInfo):
    """A header that says when it is damaged, and that never makes tarfile read more than ``MAX_HEADER_BYTES``."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where a member or the end mark should be") from None
        if not header.isfile() and not header.isdir() and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def write_webdataset(items: Iterable[Item], folder: str | Path, items_per_shard: int = 10_000) -> list[Path]:
    """Write items as ``folder``/000000.tar, 000001.tar...: .png, .txt and .json (the metadata); returns the shards.

    Raises SourceError if an item is more than one text and then one picture, or shares its id with another.
    """
    from webdataset import ShardWriter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    pattern = str(folder).replace("%", "%%") + "/%06d.tar"
    with ShardWriter(pattern, maxcount=items_per_shard, verbose=0, post=lambda name: shards.append(Path(name))) as tar:
        for item in unique(items):
            text, picture = text_and_picture(item)
            metadata = json.dumps({**item.metadata, ITEM_ID: item.id}, ensure_ascii=False)
            sample: dict[str, Any] = {"__key__": file_name(item.id), "json": metadata.encode()}
            if picture:
                sample["png"] = picture.png()
            if text:
                sample["txt"] = text
            tar.write(sample)
    return shards
