from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.document import Document, Hole, Image
from racm3.errors import SourceError
from racm3.memory.sources import Item, Skipped, read, write_coco, write_webdataset


def picture(seed: int = 0, height: int = 6, width: int = 5) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def items(count: int) -> list[Item]:
    """As both writers keep them: with metadata, several captions, and ids that are awkward as file names."""
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


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    return path


# The formats -------------------------------------------------------------------------------------------------------


def test_folder_of_pictures_with_captions_or_none(tmp_path: Path) -> None:
    (tmp_path / "deep er").mkdir()
    for number, name in enumerate(["a.png", "deep er/füchse.v2.png", "blank.png"]):
        (tmp_path / name).write_bytes(picture(number).png())
    (tmp_path / "deep er" / "füchse.v2.txt").write_text("\ufefftwo foxes\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "notes.md").write_text("not a picture")

    found = list(read(tmp_path))

    assert [item.id for item in found] == ["a.png", "blank.png", "deep er/füchse.v2.png"]
    assert [item.document for item in found] == [
        Document.of(picture(0)),
        Document.of(picture(2)),  # an empty caption leaves only the picture
        Document.of("two foxes", picture(1)),
    ]
    assert found[2].origin == str(tmp_path / "deep er" / "füchse.v2.png")


def test_metadata_jsonl(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(picture(1).png())
    (tmp_path / "2.png").write_bytes(picture(2).png())
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "train/1.png", "text": "a fox", "license": "CC0"}\n\n{"file_name": "2.png"}\n'
    )

    for source in (tmp_path, tmp_path / "metadata.jsonl"):
        first, second = read(source)
        assert (first.id, first.document) == ("train/1.png", Document.of("a fox", picture(1)))
        assert first.metadata == {"license": "CC0"}
        assert (second.document, second.metadata) == (Document.of(picture(2)), {})


def test_coco_round_trip(tmp_path: Path) -> None:
    file = write_coco(items(5), tmp_path)
    assert file == tmp_path / "captions.json"
    same(items(5), list(read(file)))
    same(items(5), list(read(tmp_path)))


@pytest.mark.parametrize("pictures", ["annotations", "annotations/images", "images", "val2017"])
def test_coco_finds_the_pictures_where_people_keep_them(tmp_path: Path, pictures: str) -> None:
    for folder in ("annotations", pictures):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures / "000042.png").write_bytes(picture().png())
    file = tmp_path / "annotations" / "captions_val2017.json"
    record = {"id": 42, "file_name": "000042.png", "width": 5, "height": 6, "coco_url": "http://x"}
    captions = [{"id": i, "image_id": 42, "caption": text} for i, text in enumerate(["one", "two"])]
    file.write_text(json.dumps({"images": [record], "annotations": captions, "info": {}}))

    (item,) = read(file)
    assert item.id == "42"
    assert item.document == Document.of("one", picture())
    assert item.metadata == {"captions": ["one", "two"], "coco_url": "http://x"}
    assert item.origin == str(tmp_path / pictures / "000042.png")


def test_webdataset_round_trip_as_shard_folder_and_glob(tmp_path: Path) -> None:
    text_only = Item("words", Document.of("only words"), {}, "")
    shards = write_webdataset([*items(5), text_only], tmp_path / "50%", items_per_shard=2)
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    assert len(list(read(shards[0]))) == 2
    same([*items(5), text_only], list(read(tmp_path / "50%")))
    same([*items(5), text_only], list(read(str(tmp_path / "50%" / "*.tar"))))


def test_webdataset_as_img2dataset_writes_it_plain_and_gzipped(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().pil.save(buffer, format="JPEG")
    shard = tar(tmp_path / "00000.tar", {"01.jpg": buffer.getvalue(), "01.json": b'{"caption": "a fox", "url": "u"}'})
    zipped = tmp_path / "00001.tar.gz"
    zipped.write_bytes(gzip.compress(shard.read_bytes()))

    for item in (*read(shard), *read(zipped)):
        assert (item.id, item.document.text, item.metadata) == ("01", "a fox", {"caption": "a fox", "url": "u"})
        assert item.document.images[0].pixels.shape == (6, 5, 3)
    assert next(read(shard)).origin == f"{shard}#01"


@given(ids=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_any_id_survives_both_writers(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return  # lone surrogates are not text
    given_items = [Item(item_id, Document.of("x", picture()), {}, "") for item_id in ids]
    write_webdataset(given_items, folder / "shards")
    assert [item.id for item in read(folder / "shards")] == ids
    write_coco(given_items, folder / "coco")
    assert [item.id for item in read(folder / "coco")] == ids


# What is broken ----------------------------------------------------------------------------------------------------


def _not_a_picture(folder: Path) -> Path:
    (folder / "b.png").write_text("no picture")
    return folder


def _truncated_picture(folder: Path) -> Path:
    (folder / "b.png").write_bytes(picture(0, 40, 40).png()[:-900])
    return folder


def _caption_not_utf8(folder: Path) -> Path:
    (folder / "b.png").write_bytes(picture().png())
    (folder / "b.txt").write_bytes(b"\xff\xfe\xfa")
    return folder


def _missing_picture(folder: Path) -> Path:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "text": "x"}\n')
    return folder


def _line_not_json(folder: Path) -> Path:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": \n')
    return folder


def _no_file_name(folder: Path) -> Path:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"text": "x"}\n')
    return folder


def _text_not_string(folder: Path) -> Path:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "a.png", "text": ["x"]}\n')
    return folder


def _coco_picture_missing(folder: Path) -> Path:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    (folder / "x.json").write_text(json.dumps({"images": images, "annotations": []}))
    return folder / "x.json"


def _sample_json_broken(folder: Path) -> Path:
    return tar(folder / "x.tar", {"1.txt": b"fine", "2.txt": b"x", "2.json": b"[1]"})


def _sample_empty(folder: Path) -> Path:
    return tar(folder / "x.tar", {"1.txt": b"fine", "2.txt": b"  "})


def _shard_truncated(folder: Path) -> Path:
    shard = tar(folder / "x.tar", {f"{i}.txt": b"fine" for i in range(2)} | {"3.png": b"x" * 4000})
    shard.write_bytes(shard.read_bytes()[:3000])
    return shard


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (_not_a_picture, "b.png", "is not a picture"),
        (_truncated_picture, "b.png", "cannot be read as a picture"),
        (_caption_not_utf8, "b.png", "not UTF-8"),
        (_missing_picture, "b.png", "there is no file"),
        (_line_not_json, "metadata.jsonl:2", "JSON cannot be read"),
        (_no_file_name, "metadata.jsonl:2", '"file_name" is a path'),
        (_text_not_string, "metadata.jsonl:2", '"text" is a string'),
        (_coco_picture_missing, "b.png", "there is no file"),
        (_sample_json_broken, "x.tar#2", "no object but a list"),
        (_sample_empty, "x.tar#2", "neither a picture nor a caption"),
        (_shard_truncated, "x.tar", "the shard is damaged"),
    ],
)
def test_a_broken_item_is_skipped_counted_and_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], Path],
    name: str,
    reason: str,
) -> None:
    (tmp_path / "a.png").write_bytes(picture().png())
    source = make(tmp_path)
    skipped: list[Skipped] = []

    with caplog.at_level(logging.WARNING):
        found = list(read(source, skipped=skipped))

    assert found
    (only,) = skipped
    assert only.origin.endswith(name)
    assert reason in only.reason
    assert "1 broken ones skipped" in caplog.text
    assert only.reason in caplog.text
    with pytest.raises(SourceError, match="is broken"):
        list(read(source, strict=True))


def test_many_broken_items_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(50):
        (tmp_path / f"{i}.png").write_text("no picture")
    assert list(read(tmp_path)) == []
    assert len(caplog.records) < 10
    assert "50 broken ones skipped" in caplog.text


@pytest.mark.parametrize("name", ["nowhere", "data.csv", "empty", "*.parquet", "*.csv"])
def test_what_is_not_recognised_is_refused_before_reading(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(SourceError, match="WebDataset") as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}'])
def test_json_that_is_not_coco(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match="is not COCO captions JSON"):
        list(read(tmp_path / "x.json"))


def test_writers_refuse_what_they_cannot_keep(tmp_path: Path) -> None:
    twice = [Item("same", Document.of("x", picture()), {}, "")] * 2
    for write in (write_coco, write_webdataset):
        with pytest.raises(SourceError, match="two items have the id 'same'"):
            write(twice, tmp_path)
        with pytest.raises(SourceError, match="one text, then one picture"):
            write([Item("2", Document.of(picture(), picture()), {}, "")], tmp_path)
        with pytest.raises(SourceError, match="without holes"):
            write([Item("h", Document.of(Hole("text"), picture()), {}, "")], tmp_path)
    with pytest.raises(SourceError, match="names that COCO keeps"):
        write_coco([Item("1", Document.of(picture()), {"width": 3}, "")], tmp_path)
