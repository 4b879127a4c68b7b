"""docs/formats.md is executed: each listing is made on disk and read, and the ids that the text promises come out."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from racm3 import document
from racm3.data import coco_captions as coco
from racm3.data import item, read
from tests.data.conftest import PNG, tar

PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
LISTINGS = dict(re.findall(r"^```\n(\w+)/\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
EXPECTED = {
    "pictures": {"fox.png": "a fox in the snow", "owls/two.jpg": None},
    "listed": {"a/fox.png": "a fox in the snow"},
    "table": {"a/fox.png": "a fox, in the snow"},
    "texts": {"fox-1": "Foxes live in dens.", "facts/2": "Owls hunt at night."},
    "interleaved": {"foxes": "Two foxes. They sleep by day."},
    "coco": {"42": "a fox"},
    "shards": {"00000/000000000": "a caption", "00000/000000001": "a caption"},
    "parquet": {"data/train-0/0": "a caption"},
}


def make(listing: str, folder: Path) -> None:
    """The files of a listing: a name and what is in it, which may go on below."""
    files: dict[str, list[str]] = {}
    for line in listing.splitlines():
        name, content = re.fullmatch(r"  (\S*)\s*(.*)", line).groups()  # type: ignore[union-attr]
        files.setdefault(name or list(files)[-1], []).append(content)
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            path.write_bytes(PNG)
        elif path.suffix == ".tar":
            data = {"jpg": PNG, "txt": b"a caption", "json": b"{}"}
            tar(path, {member: data[member.partition(".")[2]] for member in " ".join(contents).split()})
        elif path.suffix == ".parquet":
            columns = re.findall(r"(\w+): ", contents[0])
            values = [{"bytes": PNG, "path": "a.png"}, "a caption", 3]
            pq.write_table(pa.table({name: [value] for name, value in zip(columns, values, strict=True)}), path)
        else:
            path.write_text("\n".join(contents) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_is_read(name: str, tmp_path: Path) -> None:
    make(LISTINGS[name], tmp_path)
    assert {found.id: found.document.text for found in read(tmp_path, strict=True)} == EXPECTED[name]


def test_every_listing_is_here() -> None:
    assert LISTINGS.keys() == EXPECTED.keys()
    assert PAGE.count("```\n") == 2 * len(LISTINGS)


def test_the_limits_are_those_of_the_readers() -> None:
    for limit in (
        f"{document.MAX_PIXELS // 10**6} million pixels",
        f"{item.MAX_FILE_BYTES // 10**6} MB",
        f"{item.MAX_TEXT_CHARS:,} characters",
        f"{item.MAX_LINE_BYTES // 10**6} MB",
        f"{item.MAX_NESTING} levels",
        f"{coco.MAX_BYTES // 10**6} MB",
    ):
        assert f" {limit}" in PAGE
