from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from racm3.data import Protected, Skipped, read, recognise, write_coco, write_webdataset
from racm3.data.reading import READER
from racm3.document import Text
from racm3.errors import SourceError
from tests.data.conftest import PNG, items, one_skipped, tar


def test_many_broken_items_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(50):
        (tmp_path / f"{i}.png").write_text("no picture")
    assert list(read(tmp_path)) == []
    assert len(caplog.records) < 10
    assert "0 read · 50 broken" in caplog.text


def test_what_is_skipped_is_logged_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        assert len(one_skipped(tmp_path, "b.png", "is not a picture")) == 1
    assert f"skipped {tmp_path / 'b.png'}" in caplog.text
    assert "1 read · 1 picture without caption · 1 broken" not in caplog.text  # whoever takes a report says it
    list(read(tmp_path))
    assert "1 read · 1 picture without caption · 1 broken" in caplog.text


def test_a_file_that_is_broken_as_a_whole(tmp_path: Path) -> None:
    """Alone it is an error, among others it is skipped."""
    tar(tmp_path / "fine.tar", {"a.txt": b"x"})
    (tmp_path / "0.parquet").write_text("no Parquet")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        list(read(tmp_path / "0.parquet"))
    (tmp_path / "fine.tar").unlink()
    (tmp_path / "1.parquet").write_text("no Parquet")
    assert len(list(read(tmp_path))) == 0


@pytest.mark.parametrize("name", ["nowhere", "data.xlsx", "empty", "*.parquet", "*.xlsx", "*"])
def test_what_is_not_recognised_is_refused_before_reading(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.xlsx").write_text("a,b")
    with pytest.raises(SourceError, match="WebDataset") as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_folder_is_read_for_all_that_lies_in_it(tmp_path: Path) -> None:
    """Whatever else is put beside, or deeper, what was read before still is."""
    put = [("deep/deeper/notes.jsonl", b'{"text": "x"}', "a list of documents", "deep/deeper/notes/1")]
    put += [("deep/deeper/a.png", PNG, "pictures", "deep/deeper/a.png"), ("0.tar", None, "WebDataset", "0/1")]
    put += [("b/0.parquet", None, "Parquet", "b/0/0"), ("c/captions_val.json", None, "COCO", "7")]
    put += [("d/metadata.csv", b"file_name,text\n1.png,x\n", "a list of pictures", "d/1.png")]
    put += [("e/metadata.jsonl", b'{"file_name": "1.png"}', "a list of documents", "e/1.png")]
    expected: list[str] = []
    for name, data, title, item_id in put:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if title in ("COCO", "a list of pictures", "a list of documents") and file.parent.name in "cde":
            (file.parent / "1.png").write_bytes(PNG)
        if title == "WebDataset":
            tar(file, {"1.txt": b"x"})
        elif title == "Parquet":
            pq.write_table(pa.table({"image": [PNG]}), file)
        elif title == "COCO":
            file.write_text(json.dumps({"images": [{"id": 7, "file_name": "1.png"}], "annotations": []}))
        else:
            file.write_bytes(data)
        expected.append(item_id)
        assert any(title in kind.title for kind in recognise(tmp_path).kinds)
        assert sorted(item.id for item in read(tmp_path, strict=True)) == sorted(expected)


def test_a_file_is_what_its_name_says(tmp_path: Path) -> None:
    coco, shards = write_coco(items(2), tmp_path / "coco"), write_webdataset(items(2), tmp_path / "shards")
    assert len(list(read(coco.rename(tmp_path / "X.JSON")))) == 0  # the pictures are not beside it any more
    assert len(list(read(shards[0].rename(tmp_path / "x.TAR")))) == 2


def test_what_is_read_changes_only_with_the_readers_number(tmp_path: Path) -> None:
    """Where this fails, what was prepared before is not what would be prepared now: raise READER, and write it here."""
    grey = PIL.Image.fromarray(np.arange(0, 60_000, 1000, dtype=np.uint16).reshape(6, 10))
    clear = PIL.Image.new("RGBA", (4, 3), (200, 0, 0, 128))
    for name, image in {"grey": grey, "clear": clear, "b/two": clear.convert("P"), "c/row": grey, "d/0": clear}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "grey.txt").write_text(" ramp \n")
    (tmp_path / "grey.caption").write_text("grey")
    (tmp_path / "clear.json").write_text('{"caption": ["half", "clear"], "source": {"n": 1}}')
    (tmp_path / "c" / "metadata.csv").write_text("file_name;text;n\nrow.png;one;1\nrow.png;two;2\n")
    (tmp_path / "d" / "metadata.jsonl").write_text('{"file_name": "0.png", "title": "zero", "n": 1}\n')
    (tmp_path / "words.jsonl").write_text('{"text": "a"}\n{"id": 7, "parts": ["b", {"image": "grey.png"}]}\n')
    told = [
        [item.id, item.metadata, *(p.text if isinstance(p, Text) else p.pixels.tolist() for p in item.document.parts)]
        for item in read(tmp_path)
    ]
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()
    assert (READER, digest) == (2, "2cb9d88609bd6985")


def test_what_is_skipped_protects_what_it_may_stand_for() -> None:
    known = Protected(Path("data"))
    known.add(Skipped("data/a.tar#1", "", item_id="a/1"))
    assert known("a/1", "elsewhere")  # the same item, read from another place
    assert all(known("x", f"data/a.tar#1{end}") for end in ("", "#2", ":2"))
    assert not any(known("x", origin) for origin in ("data/a.tar#2", "data/a.tar", "data/a.tar#11"))
    nobody = Protected(Path("data"))
    nobody.add(Skipped("data/b/metadata.jsonl:3", "no JSON", scope="data/b"))
    assert all(nobody("x", origin) for origin in ("data/b/1.png", "data/b/metadata.jsonl:4", "/old/place/1.png"))
    assert not any(nobody("x", origin) for origin in ("data/bb/1.png", "data/1.png"))
    assert nobody.unknown == ["data/b/metadata.jsonl:3: no JSON"]
    listed = Protected(Path("data"))
    listed.add(Skipped("data/1.png", "the list does not name it", unread=".png"))
    assert not listed("1.png", "data/1.png")
    here = Protected(Path())
    here.add(Skipped("metadata.jsonl:3", "", scope="."))
    assert here("x", "1.png")
