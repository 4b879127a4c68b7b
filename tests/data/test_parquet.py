from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from racm3.data import read
from racm3.document import Document
from racm3.errors import SourceError
from tests.data.conftest import PNG, one_skipped, picture, read_all

DAY = datetime.date(2024, 2, 29)


def parquet(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "train-0.parquet", **options)
    return folder / "train-0.parquet"


def test_bytes_and_text(tmp_path: Path) -> None:
    columns = {
        "key": ["01", "02"],
        "jpg": [PNG, picture(1).png()],
        "caption": ["a fox", None],
        "score": [0.5, float("nan")],
        "day": [DAY, None],
        "tags": [["a"], []],
        "latents": [b"\xff", b"\xfe"],
    }
    file = parquet(tmp_path, columns)
    for source in (file, tmp_path):
        first, second = read(source)
        assert (first.id, first.document) == ("01", Document.of("a fox", picture()))
        assert first.metadata == {"score": 0.5, "day": "2024-02-29", "tags": ["a"]}
        assert (second.document, second.metadata) == (
            Document.of(picture(1)),
            {"score": None, "day": None, "tags": []},
        )
        assert first.origin == f"{file}#0"


def test_as_hugging_face_writes_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.png").write_bytes(picture(1).png())
    images = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    parquet(tmp_path / "data", {"image": images, "sentences": [["one", "two"], ["three"]], "label": [0, 1]})
    first, second = read(tmp_path)
    assert (first.id, first.document) == ("data/train-0/0", Document.of("one", picture()))
    assert first.metadata == {"label": 0, "captions": ["one", "two"]}
    assert (second.id, second.document) == ("data/train-0/1", Document.of("three", picture(1)))


def test_the_only_column_of_bytes_holds_the_pictures(tmp_path: Path) -> None:
    (item,) = read(parquet(tmp_path, {"anything": pa.array([PNG], pa.large_binary())}))
    assert item.document == Document.of(picture())


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"URL": ["http://x"], "TEXT": ["a fox"]}, r"has the columns URL \(string\), TEXT \(string\); .* img2dataset"),
        ({"one": [b"x"], "two": [b"x"]}, r"has the columns one \(binary\), two \(binary\)"),
        ({}, "has the columns"),
    ],
)
def test_other_columns(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        list(read(parquet(tmp_path, columns)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": b"no picture"}, "is not a picture"),
        ({"image": None, "text": " "}, "neither a picture nor a text"),
        ({"image": b"", "text": None}, "neither a picture nor a text"),
        ({"text": "x" * 10_001}, "at most 10,000"),
        ({"id": "0"}, "was there before"),
    ],
)
def test_a_broken_row(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    rows = [{"id": "0", "image": PNG, "text": "x"}, {"id": "1", "image": PNG, "text": "x"} | row]
    file = parquet(tmp_path, {name: [each[name] for each in rows] for name in rows[0]})
    assert len(one_skipped(file, "train-0.parquet#1", reason)) == 1


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    assert len(one_skipped(parquet(tmp_path, {"image": [PNG, PNG], "text": text}), "#1", "cannot be read")) == 1


def test_a_path_that_leaves_the_folder(tmp_path: Path) -> None:
    file = parquet(tmp_path, {"image": [{"bytes": None, "path": "../a.png"}]})
    assert one_skipped(file, "#0", "leaves") == []


def test_a_damaged_file_keeps_what_comes_before(tmp_path: Path) -> None:
    images = [picture(i, 40, 40).png() for i in range(64)]
    file = parquet(
        tmp_path,
        {"image": images},
        row_group_size=16,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    data = bytearray(file.read_bytes())
    data[data.index(images[40]) + 100] ^= 1
    file.write_bytes(data)
    found, skipped = read_all(file)
    assert [item.document.images[0] for item in found] == [picture(i, 40, 40) for i in range(len(found))]
    assert 16 <= len(found) <= 40
    assert f"damaged after {len(found)} rows" in skipped[0].reason


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_what_is_no_parquet(tmp_path: Path, kept: int) -> None:
    file = parquet(tmp_path, {"image": [PNG]})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        list(read(file))
