"""Small data in every layout."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item, Skipped, read
from racm3.document import Document, Image
from racm3.errors import SourceError


def picture(seed: int = 0, height: int = 6, width: int = 5) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PNG = picture().png()


def items(count: int) -> list[Item]:
    """As all writers keep them: with metadata, several captions, and ids that are awkward as file names."""
    return [
        Item(
            f"käse/{i}.v1%2E",
            Document.of(f"caption {i}", picture(i)),
            {"captions": [f"caption {i}", "another"], "entity": {"name": "狐", "box": [0, i]}},
            "made here",
        )
        for i in range(count)
    ]


def same(given: list[Item], found: list[Item]) -> None:
    """Equal but for the origin, whatever the order."""
    assert len(given) == len(found)
    by_id = {item.id: item for item in found}
    for item in given:
        assert by_id[item.id].document == item.document
        assert by_id[item.id].metadata == item.metadata


def tar(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    """A shard of these members, in this order."""
    with tarfile.open(path, "w") as out:
        for name, data in files.items() if isinstance(files, dict) else files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    return path


def read_all(path: Path) -> tuple[list[Item], list[Skipped]]:
    """The items and what was broken; where something was, strict reading raises."""
    left_out: list[Skipped] = []
    found = list(read(path, report=left_out.append))
    skipped = [one for one in left_out if not one.unread]
    if skipped:
        with pytest.raises(SourceError, match="is broken|cannot be read|has the columns"):
            list(read(path, strict=True))
    return found, skipped


def one_skipped(path: Path, origin: str, reason: str) -> list[Item]:
    """The items of a source of which one is broken, where and why it is said."""
    found, skipped = read_all(path)
    (only,) = skipped
    assert only.origin.endswith(origin)
    assert reason in only.reason
    return found
