from __future__ import annotations

import json
from pathlib import Path

import pytest

from racm3.data import Item, read, write_coco
from racm3.data import coco_captions as coco
from racm3.document import Document
from racm3.errors import SourceError
from tests.data.conftest import PNG, items, one_skipped, picture, same


def test_round_trip(tmp_path: Path) -> None:
    file = write_coco(items(5), tmp_path)
    assert file == tmp_path / "captions.json"
    same(items(5), list(read(file)))
    same(items(5), list(read(tmp_path)))


@pytest.mark.parametrize("pictures", ["annotations", "annotations/images", "images", "val2017"])
def test_the_pictures_are_found_where_people_keep_them(tmp_path: Path, pictures: str) -> None:
    for folder in ("annotations", pictures):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures / "000042.png").write_bytes(PNG)
    file = tmp_path / "annotations" / "captions_val2017.json"
    record = {"id": 42, "file_name": "000042.png", "width": 5, "height": 6, "coco_url": "http://x"}
    captions = [{"id": i, "image_id": 42, "caption": text} for i, text in enumerate(["one", "two"])]
    file.write_text(json.dumps({"images": [record], "annotations": captions, "info": {}}))

    for source in [file] if pictures.startswith("annotations") else [file, file.parent]:
        (item,) = read(source)
        assert item.id == "42"
        assert item.document == Document.of("one", picture())
        assert item.metadata == {"captions": ["one", "two"], "coco_url": "http://x"}
        assert item.origin == str(tmp_path / pictures / "000042.png")


def broken(images: list[object], captions: list[object], folder: Path) -> Path:
    (folder / "a.png").write_bytes(PNG)
    file = folder / "captions.json"
    annotations = [{"image_id": 2, "caption": caption} for caption in captions]
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}, *images], "annotations": annotations}))
    return file


@pytest.mark.parametrize(
    ("image", "captions", "reason"),
    [
        ({"id": 2, "file_name": "b.png"}, [], "there is no file"),
        ({"id": 2}, [], "named by a path"),
        ({"id": 2, "file_name": "../a.png"}, [], "leaves"),
        ({"id": 2, "file_name": "a.png"}, [3], "a text is a string"),
        ({"id": 1, "file_name": "a.png"}, [], "was there before"),
    ],
)
def test_a_broken_image(tmp_path: Path, image: object, captions: list[object], reason: str) -> None:
    assert len(one_skipped(broken([image], captions, tmp_path), "", reason)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"images": []}',
        '{"images": [{}], "annotations": []}',
        '{"images": 3, "annotations": []}',
    ]
    + ['{"images": [{"id": []}], "annotations": []}', '{"images": [3], "annotations": []}']
    + ['{"images": [], "annotations": [{"image_id": 1}]}'],
)
def test_json_that_is_not_coco(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match="is not COCO captions JSON"):
        list(read(tmp_path / "x.json"))


def test_json_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "MAX_BYTES", 100)
    with pytest.raises(SourceError, match="larger than 100 bytes; write it as a metadata.jsonl"):
        list(read(write_coco(items(1), tmp_path)))


def test_metadata_that_coco_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="names that COCO keeps"):
        write_coco([Item("1", Document.of(picture()), {"width": 3}, "")], tmp_path)
