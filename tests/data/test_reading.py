from __future__ import annotations

import logging
from pathlib import Path

import pytest

from racm3.data import Skipped, read, recognise, write_coco, write_webdataset
from racm3.errors import SourceError
from tests.data.conftest import PNG, items, one_skipped, tar


def test_many_broken_items_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(50):
        (tmp_path / f"{i}.png").write_text("no picture")
    assert list(read(tmp_path)) == []
    assert len(caplog.records) < 10
    assert "50 broken ones skipped" in caplog.text


def test_what_is_skipped_is_logged_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        assert len(one_skipped(tmp_path, "b.png", "is not a picture")) == 1
    assert f"skipped {tmp_path / 'b.png'}" in caplog.text
    assert "1 items read, 1 broken ones skipped" in caplog.text


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


def test_a_folder_is_what_is_nearest_to_its_top(tmp_path: Path) -> None:
    """Each layout in turn is put where it comes before all that was there."""
    expected = [("deep/deeper/notes.jsonl", '{"text": "x"}', "a list of documents")]
    expected += [("deep/deeper/a.png", PNG, "pictures"), ("deep/0.parquet", b"", "Parquet")]
    expected += [("deep/0.tar", b"", "WebDataset"), ("captions_val.json", "{}", "COCO")]
    expected += [("metadata.csv", "file_name", "a list of pictures"), ("metadata.jsonl", "", "a list of documents")]
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for name, data, title in expected:
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        source = recognise(tmp_path)
        assert source.kind.title.startswith(title)
        assert source.files is None or source.files == (tmp_path / name,)


def test_a_file_is_what_its_name_says(tmp_path: Path) -> None:
    coco, shards = write_coco(items(2), tmp_path / "coco"), write_webdataset(items(2), tmp_path / "shards")
    assert len(list(read(coco.rename(tmp_path / "X.JSON")))) == 0  # the pictures are not beside it any more
    assert len(list(read(shards[0].rename(tmp_path / "x.TAR")))) == 2


def test_what_is_inside_of_what_is_broken() -> None:
    assert all(Skipped("a.tar", "").covers(origin) for origin in ("a.tar", "a.tar#1", "a.tar:1"))
    assert not any(Skipped("a.tar", "").covers(origin) for origin in ("a.tar.gz#1", "a.ta", "b/a.tar"))
