"""What a reader tells people: a few items as they were understood, before the work; what was skipped, after it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from racm3.data.item import Item, Skipped
from racm3.document import Image, Text
from racm3.errors import SourceError
from racm3.util.one_line import one_line

if TYPE_CHECKING:
    from racm3.data.reading import Source

SAMPLES = 5
CAPTION_CHARS = 60


@dataclass
class Counts:
    """How many documents were read, and how many were not.

    >>> counts = Counts(read=812, uncaptioned=3, broken=1)
    >>> counts.skip(Skipped("a.heic", "", unread=".heic"))
    >>> print(counts)
    812 read · 3 pictures without caption · 1 file not read (.heic 1) · 1 broken
    """

    read: int = 0
    uncaptioned: int = 0
    broken: int = 0
    unread: Counter[str] = field(default_factory=Counter)

    def see(self, item: Item) -> None:
        """Count an item that was read."""
        self.read += 1
        self.uncaptioned += bool(item.document.images and not item.document.text)

    def skip(self, skipped: Skipped) -> None:
        """Count an item that was skipped."""
        if skipped.unread:
            self.unread[skipped.unread] += skipped.count
        else:
            self.broken += 1

    def __str__(self) -> str:
        told = [f"{self.read:,} read"]
        if self.uncaptioned:
            told.append(f"{_counted(self.uncaptioned, 'picture')} without caption")
        if self.unread:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.unread.most_common())
            told.append(f"{_counted(self.unread.total(), 'file')} not read ({kinds})")
        if self.broken:
            told.append(f"{self.broken:,} broken")
        return one_line(" · ".join(told))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def with_samples(source: Source, items: Iterator[Item], report: SkipReport | None = None) -> Iterator[Item]:
    """The items of ``source``, after its kind and the first of them have been shown on stderr; ``report`` counts them.

    Raises SourceError if there is none: before anything was made of them.
    """
    first = list(islice(items, SAMPLES))
    if not first:
        why = f" ({report.line()})" if report else ""
        raise SourceError(f"nothing could be read from {source.path}{why}; docs/formats.md shows what is read")
    print(f"reading {source.path} as {source.title}; the first documents:", file=sys.stderr)
    for item in first:
        print(one_line(f"  {item.id}  {describe(item)}"), file=sys.stderr)
    return _counting(chain(first, items), report) if report else chain(first, items)


def _counting(items: Iterable[Item], report: SkipReport) -> Iterator[Item]:
    for item in items:
        report.counts.see(item)
        yield item


def describe(item: Item) -> str:
    """The parts of a document in a line: texts cut, pictures by their size."""
    told = []
    for part in item.document.parts:
        if isinstance(part, Text):
            text = " ".join(part.text.split())
            told.append(repr(text if len(text) <= CAPTION_CHARS else text[: CAPTION_CHARS - 3] + "..."))
        elif isinstance(part, Image):
            told.append(f"{part.pixels.shape[1]} x {part.pixels.shape[0]} px")
    return "  ".join(told)


class SkipReport:
    """A file of JSON lines, one for whatever was skipped: origin, reason, and what it is if it is of a kind that is not
    read. None is made where nothing is skipped. ``counts`` is what the last line says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.counts = Counts()
        self._stream: IO[str] | None = None

    def __call__(self, skipped: Skipped) -> None:
        """Write a skipped item to the file."""
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.file.open("w", encoding="utf-8")
        record = {"origin": skipped.origin, "reason": skipped.reason}
        record |= {"unread": skipped.unread} if skipped.unread else {}
        print(json.dumps(record, ensure_ascii=False), file=self._stream, flush=True)
        self.counts.skip(skipped)

    def line(self) -> str:
        """How many were read and how many were not, and which file tells more."""
        return str(self.counts) + (f": {self.file}" if self._stream else "")

    def __enter__(self) -> SkipReport:
        self.file.unlink(missing_ok=True)  # of an earlier reading
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream:
            self._stream.close()
