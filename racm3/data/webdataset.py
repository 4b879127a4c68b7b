"""WebDataset shards, as img2dataset writes them: a tar, plain or gzipped, of pictures, .txt and .json.

Members of one key (the name up to its first dot) that stand together are a sample. The tar is read as a stream, once,
and nothing is ever extracted; tarfile takes a damaged header for the end of the tar, so headers are watched here.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from racm3.data.captions import PICTURE_SUFFIXES, TEXT_SUFFIXES, Captions, take_captions
from racm3.data.exported import RECORD, exported_id, exported_item
from racm3.data.item import (
    ITEM_ID,
    MAX_FILE_BYTES,
    Draft,
    Item,
    Skipped,
    broken,
    json_object,
    leaves,
    name_of,
)
from racm3.data.writing import file_name, text_and_picture, unique
from racm3.document import is_marked
from racm3.errors import SourceError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXTS = tuple(suffix[1:] for suffix in TEXT_SUFFIXES)
PICTURES = frozenset(suffix[1:] for suffix in PICTURE_SUFFIXES)
MARK_BYTES = 32
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
    """What stands in a shard under one key: the members that are read, by extension, and what is wrong with it.

    An extension is all behind the first dot: of left.png, what counts is png.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    def of(self, kinds: Collection[str]) -> list[str]:
        """The extensions of those members that are of ``kinds``: the plain ones (jpg), else all others (left.jpg)."""
        found = [extension for extension in self.members if self.kinds.get(extension) in kinds]
        return [extension for extension in found if "." not in extension] or found

    @property
    def left(self) -> list[str]:
        """The extensions of the members that are no part of the item."""
        if RECORD in self.members:
            return []
        used = {*self.of(TEXTS), *self.of(PICTURES), *(["json"] if "json" in self.members else [])}
        return [] if self.problem else [extension for extension in self.names if extension not in used]


def read_webdataset(file: Path, root: Path) -> Iterator[Draft | Skipped]:
    """Samples; of a damaged shard those that are whole, then one broken item. The id is shard/key, or "item_id"."""
    shard = name_of(file)
    prefix = id_prefix(file, root)
    count = 0
    left: Counter[str] = Counter()
    try:
        for sample in samples(file):
            item_id, scope = _id(sample, f"{prefix}/{sample.key}"), None
            if item_id is None:
                scope = shard
            make = partial(sample_item, sample, f"{prefix}/{sample.key}", shard)
            yield Draft(f"{shard}#{sample.key}", make, item_id, scope)
            left.update(sample.left)
            count += 1
    except DAMAGE as error:
        reason = f"the shard is damaged after {count} samples, which are kept: {type(error).__name__}: {error}"
        yield Draft(shard, partial(broken, reason), scope=shard)
    for extension, number in left.items():
        reason = f"{number} members .{extension} of its samples are not read"
        yield Skipped(f"{shard}#*.{extension}", reason, unread=f".{extension}", count=number)


def _id(sample: Sample, place: str) -> str | None:
    """What the sample's .json says, or else its place; None if that .json cannot be read."""
    if RECORD in sample.members:
        return exported_id(sample.members)
    try:
        return str(json_object(sample.members.get("json", b"{}")).get(ITEM_ID) or place)
    except SourceError:
        return None


def id_prefix(file: Path, root: Path) -> str:
    """A shard's place inside ``root``, without its extension."""
    place = name_of(file.relative_to(root))
    return place[: -max(len(suffix) for suffix in SUFFIXES if place.lower().endswith(suffix))]


def sample_item(sample: Sample, item_id: str, shard: str) -> Item:
    """The item of a sample. Raises SourceError if the sample is broken."""
    if sample.problem:
        raise SourceError(sample.problem)
    if RECORD in sample.members:
        return exported_item(sample.members)
    record = json_object(sample.members.get("json", b"{}"))
    captions = Captions.of(sample.members[extension] for extension in sorted(sample.of(TEXTS), key=_txt_first))
    if not sample.of(TEXTS):
        if isinstance(caption := record.get("caption"), str):  # as img2dataset writes it, and where it stays
            captions = Captions.of([caption])
        elif ITEM_ID not in record:  # a shard that write_webdataset made has all texts in .txt
            captions = take_captions(record)
    given = record.pop(ITEM_ID, None)
    pictures = [sample.members[image] for image in sample.of(PICTURES)]
    try:
        return captions.item(str(given) if given else item_id, pictures, record, f"{shard}#{sample.key}")
    except SourceError as error:
        raise SourceError(f"{error} (its members: {', '.join(sample.names)})") from None


def _txt_first(extension: str) -> bool:
    return not extension.endswith("txt")


def samples(file: Path) -> Iterator[Sample]:
    """The samples of one shard. Raises one of ``DAMAGE`` where the shard is damaged; what came before is whole."""
    sample: Sample | None = None
    with file.open("rb") as raw:
        zipped = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        stream = _Zipped(raw) if zipped else raw
        for name, kind, data in _members(stream):
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
                sample.kinds[extension] = kind
            elif data is not None:
                sample.problem = f"its .{extension} takes {data:,} bytes; at most {MAX_FILE_BYTES:,} are read"
        if sample:
            yield sample
        stream.read(TRAILING_BYTES)


def _members(stream: Any) -> Iterator[tuple[str, str, bytes | int | None]]:
    """Name, kind, and the data of what is read, the size of what is too large to be, or None for what is of no use.

    The kind is the last part of the extension; of a picture without such a name, told by its content, png.
    """
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
            kind = _split(name)[1].rpartition(".")[2]
            known = kind in PICTURES or kind in (*TEXTS, "json")
            opened = tar.extractfile(member) if member.size <= MAX_FILE_BYTES else None
            data: bytes | int | None = member.size if known else None
            if opened:
                data = opened.read(MARK_BYTES)
                if not known and is_marked(data):
                    kind, known = "png", True
                data = data + opened.read() if known else None
            yield name.removeprefix("./"), kind, data


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
            if text or "caption" in item.metadata:  # an empty text says that the metadata hold no caption
                sample["txt"] = text or ""
            tar.write(sample)
    return shards
