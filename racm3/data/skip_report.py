"""What a reader tells people: a few items as they were understood, before the work; what was skipped, after it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import IO

from racm3.data.item import Item, Skipped
from racm3.data.reading import Source
from racm3.document import Image, Text

SAMPLES = 5
CAPTION_CHARS = 60


def with_samples(source: Source, items: Iterator[Item]) -> Iterator[Item]:
    """The items of ``source``, after its kind and the first of them have been shown on stderr."""
    first = list(islice(items, SAMPLES))
    print(f"reading {source.path} as {source.kind.title}; the first documents:", file=sys.stderr)
    for item in first:
        print(f"  {item.id}  {describe(item)}", file=sys.stderr)
    if not first:
        print("  there is none", file=sys.stderr)
    return chain(first, items)


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
    """A file of JSON lines, one for every skipped item: origin and reason. None is made where nothing is skipped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.count = 0
        self._stream: IO[str] | None = None

    def __call__(self, skipped: Skipped) -> None:
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.file.open("w", encoding="utf-8")
        print(json.dumps(asdict(skipped), ensure_ascii=False), file=self._stream, flush=True)
        self.count += 1

    def __enter__(self) -> SkipReport:
        self.file.unlink(missing_ok=True)  # of an earlier reading
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream:
            self._stream.close()
