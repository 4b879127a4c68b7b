"""Data as people have it on their disks: what lies in plain sight is read, and what is not read is named."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from racm3.data import Item, Skipped, read, recognise, writing_documents
from racm3.data.skip_report import Counts, SkipReport, with_samples
from racm3.document import Document
from racm3.errors import SourceError
from tests.data.conftest import PNG, picture, read_all, tar

NAMES = [f"{i}.png" for i in range(3)]
FIVE = ["a toy {}", "toy number {}", "the {}th toy", "a small thing, {}", "shelf with toy {}"]


def captions(i: int) -> list[str]:
    return [caption.format(i) for caption in FIVE]


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def pictures(below: str = "", ending: str = "png") -> dict[str, bytes | str]:
    return {f"{below}{i}.{ending}": picture(i).png() for i in range(3)}


def table(rows: list[tuple[str, ...]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def jsonl(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def pairs(*names: str, delimiter: str = ",") -> str:
    return table([names, *((name, captions(i)[0]) for i, name in enumerate(NAMES))], delimiter)


def told(folder: Path) -> tuple[list[Item], Counts, list[Skipped]]:
    counts, skipped = Counts(), list[Skipped]()
    for item in read(folder, report=lambda one: (counts.skip(one), skipped.append(one))):
        counts.see(item)
        skipped.append(item)  # type: ignore[arg-type]
    return [one for one in skipped if isinstance(one, Item)], counts, [o for o in skipped if isinstance(o, Skipped)]


def all_captioned(source: Path, prefix: str = "") -> list[Item]:
    """Three pictures, each with its first caption; nothing is broken, and nothing else is there."""
    found, counts, _ = told(source)
    assert str(counts) == "3 read"
    assert [(item.id, item.document) for item in sorted(found, key=lambda item: item.id)] == [
        (f"{prefix}{i}.png", Document.of(captions(i)[0], picture(i))) for i in range(3)
    ]
    return found


# Fields and files of captions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["caption", "prompt", "description", "title", "TEXT", "Caption"])
@pytest.mark.parametrize("name", ["file_name", "image", "filepath", "file_path", "filename", "image_path"])
def test_other_names_of_the_columns(tmp_path: Path, name: str, text: str) -> None:
    records = [{name: file, text: captions(i)[0], "n": i} for i, file in enumerate(NAMES)]
    put(tmp_path / "lines", {**pictures(), "metadata.jsonl": jsonl(*records)})
    assert [item.metadata for item in all_captioned(tmp_path / "lines")] == [{"n": i} for i in range(3)]
    for ending, delimiter in (("csv", ","), ("tsv", "\t"), ("csv", ";"), ("csv", "|")):
        folder = put(tmp_path / ending / str(ord(delimiter)), pictures())
        put(folder, {f"metadata.{ending}": pairs(name, text, delimiter=delimiter)})
        all_captioned(folder)
    folder = put(tmp_path / "parquet", pictures())
    pq.write_table(pa.table({name: NAMES, text: [captions(i)[0] for i in range(3)]}), folder / "train.parquet")
    all_captioned(folder)
    images = pa.table({"image": [picture(i).png() for i in range(3)], text: [captions(i)[0] for i in range(3)]})
    (tmp_path / "bytes").mkdir()
    pq.write_table(images, tmp_path / "bytes" / "a.parquet")
    assert [item.document.text for item in read(tmp_path / "bytes")] == [captions(i)[0] for i in range(3)]


def test_a_text_comes_first_and_what_else_could_be_one_is_metadata(tmp_path: Path) -> None:
    line = {"file_name": "0.png", "text": "a fox", "title": "Fox", "caption": None}
    put(tmp_path, {"0.png": PNG, "metadata.jsonl": jsonl(line)})
    (item,) = read(tmp_path)
    assert (item.document.text, item.metadata) == ("a fox", {"title": "Fox", "caption": None})


def test_a_line_of_text_is_not_taken_for_a_picture(tmp_path: Path) -> None:
    lines = [{"text": "x", "path": "src/main.py"}, {"text": "y", "image": "http://x/a.png"}, {"text": "z", "file": 3}]
    found = list(read(put(tmp_path, {"a.jsonl": jsonl(*lines)})))
    assert [item.metadata for item in found] == [{k: v for k, v in line.items() if k != "text"} for line in lines]


SIDECARS: list[Callable[[int], tuple[str, str]]] = [
    lambda i: (f"{i}.caption", captions(i)[0]),
    lambda i: (f"{i}.TXT", captions(i)[0]),
    lambda i: (f"{i}.png.txt", captions(i)[0]),
    lambda i: (f"{i}.json", json.dumps({"caption": captions(i)[0]})),
    lambda i: (f"{i}.png.json", json.dumps({"prompt": captions(i)[0]})),
    lambda i: (f"{i}.CAPTION", captions(i)[0]),
]


@pytest.mark.parametrize("sidecar", SIDECARS, ids=range(len(SIDECARS)))
def test_files_beside_a_picture(tmp_path: Path, sidecar: Callable[[int], tuple[str, str]]) -> None:
    put(tmp_path, {**pictures(), **dict(map(sidecar, range(3)))})
    all_captioned(tmp_path)
    put(tmp_path, {"metadata.jsonl": jsonl(*({"file_name": name} for name in NAMES))})
    all_captioned(tmp_path)  # a list without captions does not hide them


def test_a_text_and_metadata_beside_a_picture(tmp_path: Path) -> None:
    put(
        tmp_path, {"0.png": PNG, "0.txt": "a fox", "0.json": '{"caption": "FOX", "key": "7"}', "0.caption": "a red fox"}
    )
    (item,) = read(tmp_path, strict=True)
    assert item.document.text == "a fox"
    assert item.metadata == {"caption": "FOX", "key": "7", "captions": ["a fox", "a red fox"]}


def test_a_json_that_is_no_record(tmp_path: Path) -> None:
    """Beside a text it is named; where the caption may be in it, nobody knows the picture's."""
    put(tmp_path, {"0.png": PNG, "0.txt": "a fox", "0.json": "[1, 2]"})
    found, counts, (skipped,) = told(tmp_path)
    assert (found[0].document.text, str(counts)) == ("a fox", "1 read · 1 file not read (.json 1)")
    assert "its picture has a text" in skipped.reason
    (tmp_path / "0.txt").unlink()
    _, counts, (skipped,) = told(tmp_path)
    assert (str(counts), skipped.item_id) == ("0 read · 1 broken", "0.png")


# Several captions a picture ------------------------------------------------------------------------------------------


def five_each(source: Path, prefix: str = "") -> None:
    found, counts, _ = told(source)
    assert (len(found), counts.broken) == (3, 0)
    for i, item in enumerate(sorted(found, key=lambda item: item.id)):
        assert item.id == f"{prefix}{i}.png"
        assert item.document == Document.of(captions(i)[0], picture(i))
        assert item.metadata["captions"] == captions(i)


def test_several_rows_a_picture(tmp_path: Path) -> None:
    rows = [(name, caption) for i, name in enumerate(NAMES) for caption in captions(i)]
    for order, name in ((rows, "together"), ([rows[i % 3 * 5 + i // 3] for i in range(15)], "apart")):
        folder = put(tmp_path / name, pictures())
        put(folder, {"metadata.csv": table([("file_name", "text"), *order])})
        five_each(folder)
        put(folder, {"metadata.jsonl": jsonl(*({"file_name": n, "text": text} for n, text in order))})
        (folder / "metadata.csv").unlink()
        five_each(folder)


HALF = "half a \ud83d"
FIRST = {"file_name": "0.png"}


@pytest.mark.parametrize(
    "files",
    [
        {"0.txt": b"no \xff", "0.caption": "good", "0.png.txt": "fine"},
        {"0.txt": b"no \xff", "0.json": json.dumps({"caption": ["good", "fine"]})},
        {"metadata.jsonl": jsonl({**FIRST, "text": ["good", HALF, "fine"]})},
        {"metadata.jsonl": jsonl({**FIRST, "text": ["good", 3, "fine"]})},
        {"metadata.jsonl": jsonl({**FIRST, "text": "good"}, {**FIRST, "text": HALF}, {**FIRST, "text": "fine"})},
        {"metadata.csv": b"file_name,text\n0.png,good\n0.png,no \xff\n0.png,fine\n"},
        {"metadata.csv": table([("file_name", "text"), *(("0.png", t) for t in ("x" * 10_001, "good", "fine"))])},
        {
            "captions.json": json.dumps(
                {
                    "images": [{"id": "0.png", "file_name": "0.png"}],
                    "annotations": [{"image_id": "0.png", "caption": text} for text in ("good", HALF, "fine")],
                }
            )
        },
    ],
    ids=lambda files: "+".join(files),
)
def test_one_unreadable_caption_of_several_costs_no_other(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    (item,), (skipped,) = read_all(put(tmp_path, {"0.png": PNG, **files}))
    assert sorted(item.metadata["captions"]) == ["fine", "good"]
    assert (skipped.item_id, "left out" in skipped.reason) == ("0.png", True)


def test_an_unreadable_caption_of_several_in_a_shard_and_in_parquet(tmp_path: Path) -> None:
    members = {"0.txt": b"no \xff", "0.a.txt": b"fine", "0.caption": b"good", "0.png": PNG}
    (item,), (skipped,) = read_all(tar(tmp_path / "a.tar", members))
    assert (item.document.text, skipped.item_id) == ("good", "a/0")
    rows = pa.table({"image": [PNG], "text": [["good", "x" * 10_001]]})
    pq.write_table(rows, tmp_path / "b.parquet")
    (item,), (skipped,) = read_all(tmp_path / "b.parquet")
    assert (item.document.text, item.metadata["captions"]) == ("good", ["good"])


def test_a_list_of_captions(tmp_path: Path) -> None:
    for text in ("text", "captions", "sentences"):
        records = [{"image": name, text: captions(i)} for i, name in enumerate(NAMES)]
        five_each(put(tmp_path / text, {**pictures(), "metadata.jsonl": jsonl(*records)}))


def test_fields_in_which_the_rows_of_a_picture_differ_are_lists(tmp_path: Path) -> None:
    rows = [("0.png", "a", "0", "CC0"), ("0.png", "b", "1", "CC0"), ("0.png", "a", "2", "CC0")]
    put(tmp_path, {"0.png": PNG, "metadata.csv": table([("file_name", "text", "n", "license"), *rows])})
    (item,) = read(tmp_path)
    assert item.metadata == {"n": ["0", "1", "2"], "license": "CC0", "captions": ["a", "b"]}


def test_flickr(tmp_path: Path) -> None:
    rows = [(name, caption) for i, name in enumerate(NAMES) for caption in captions(i)]
    put(tmp_path, {**pictures("Images/"), "captions.txt": table([("image", "caption"), *rows])})
    five_each(tmp_path, "Images/")
    five_each(tmp_path / "captions.txt", "Images/")
    put(tmp_path, {"Images/7.png": PNG})  # which the list does not name
    assert "Images/7.png" in {item.id for item in read(tmp_path)}


def test_a_picture_in_two_folders_is_not_guessed(tmp_path: Path) -> None:
    put(tmp_path, {"a/0.png": PNG, "b/0.png": PNG, "metadata.jsonl": jsonl({"file_name": "0.png", "text": "x"})})
    _, (skipped,) = read_all(tmp_path)
    assert "say in which" in skipped.reason


def test_a_list_in_one_json(tmp_path: Path) -> None:
    records = [{"image": name, "caption": captions(i)} for i, name in enumerate(NAMES)]
    five_each(put(tmp_path, {**pictures(), "captions.json": json.dumps(records)}))


# Encodings, delimiters, paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    put(tmp_path / "csv", {**pictures(), "metadata.csv": pairs("file_name", "text").encode(encoding)})
    all_captioned(tmp_path / "csv")
    lines = jsonl(*({"file_name": name, "text": captions(i)[0]} for i, name in enumerate(NAMES)))
    put(tmp_path / "jsonl", {**pictures(), "metadata.jsonl": lines.encode(encoding)})
    all_captioned(tmp_path / "jsonl")
    put(tmp_path / "txt", {**pictures(), **{f"{i}.txt": captions(i)[0].encode(encoding) for i in range(3)}})
    all_captioned(tmp_path / "txt")


def test_a_utf16_table_that_is_cut_off(tmp_path: Path) -> None:
    data = codecs.BOM_UTF16_LE + pairs("file_name", "text").encode("utf-16-le")
    put(tmp_path, {**pictures(), "metadata.csv": data[:-5]})
    found, skipped = read_all(tmp_path)
    assert (len(found), len(skipped)) == (2, 1)


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "labels.csv"])
def test_a_table_of_any_name_beside_its_pictures(tmp_path: Path, name: str) -> None:
    put(tmp_path, {**pictures(), name: pairs("filepath", "title", delimiter="\t"), "more.png": PNG})
    found = {item.id: item.document.text for item in read(tmp_path, strict=True)}
    assert found == {"more.png": None} | {file: captions(i)[0] for i, file in enumerate(NAMES)}
    assert {item.document.text for item in read(tmp_path / name)} == {captions(i)[0] for i in range(3)}


@pytest.mark.parametrize("data", ["step,loss\n1,0.5\n", "path,size\nnowhere.png,7\n", '{"step": 1}\n', "\n"])
def test_what_is_no_list_does_not_become_one(tmp_path: Path, data: str) -> None:
    for name in ("log.csv", "log.jsonl"):
        put(tmp_path, {"0.png": PNG, "0.txt": "a fox", name: data})
    found, counts, skipped = told(tmp_path)
    assert [item.document.text for item in found] == ["a fox"]
    assert str(counts) in ("1 read · 2 files not read (.csv 1, .jsonl 1)",)
    assert all("names no picture" in one.reason for one in skipped)


def test_paths_that_lead_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [str(tmp_path / "data" / "sub" / "0.png"), "~/data/sub/1.png", "sub\\2.png"]
    records = [{"file_name": name, "text": captions(i)[0]} for i, name in enumerate(names)]
    put(tmp_path / "data", {**pictures("sub/"), "metadata.jsonl": jsonl(*records)})
    all_captioned(tmp_path / "data", "sub/")
    monkeypatch.chdir(tmp_path)
    all_captioned(Path("data"), "sub/")
    (tmp_path / "link").symlink_to("data")
    all_captioned(tmp_path / "link", "sub/")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/0.png", "leaves"),
        ("~/0.png", "leaves"),
        ("..\\0.png", "leaves"),
        ("https://x/0.png", "is a URL; download the pictures first"),
        ("C:\\photos\\0.png", "there is no file"),
    ],
)
def test_paths_that_do_not(tmp_path: Path, name: str, reason: str) -> None:
    put(tmp_path, {"0.png": PNG, "metadata.jsonl": jsonl({"file_name": name, "text": "x"}, {"text": "y"})})
    _, (skipped,) = read_all(tmp_path)
    assert reason in skipped.reason


# Shards --------------------------------------------------------------------------------------------------------------


def test_the_text_of_a_shards_json(tmp_path: Path) -> None:
    record = {"text": "a fox", "n": 1}
    tar(tmp_path / "0.tar", {"1.png": PNG, "1.json": json.dumps(record).encode()})
    (item,) = read(tmp_path)
    assert (item.document.text, item.metadata) == ("a fox", {"n": 1})


@pytest.mark.parametrize("names", [("left.png", "right.png"), ("png", "jpg"), ("0.jfif", "1.image")])
def test_several_pictures_in_a_sample(tmp_path: Path, names: tuple[str, str]) -> None:
    members = {f"{i}.{name}": picture(i + 9 * j).png() for i in range(2) for j, name in enumerate(names)}
    members |= {f"{i}.txt": b"a fox" for i in range(2)}
    tar(tmp_path / "0.tar", dict(sorted(members.items())))
    expected = [
        Document.of("a fox", *(picture(i + 9 * j) for j in sorted((0, 1), key=names.__getitem__))) for i in (0, 1)
    ]
    assert [item.document for item in read(tmp_path, strict=True)] == expected


@pytest.mark.parametrize("value", [{"path": "0.png"}, ["0.png", "1.png"]], ids=["object", "list"])
def test_pictures_named_in_another_way_are_not_left_out_of_a_text(tmp_path: Path, value: object) -> None:
    name = "images" if isinstance(value, list) else "image"
    put(tmp_path, {**pictures(), "data.jsonl": jsonl({"text": "a fox"}, {name: value, "text": "two"})})
    items, counts, skipped = told(tmp_path)
    assert [item.document.text for item in items] == ["a fox", None, None, None]
    assert counts.broken == 1
    assert f'"{name}" is no path; name one picture in "file_name", or several in "parts"' in skipped[0].reason


def test_names_are_printed_on_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, {"a\n\u202eb.png": PNG, "c\x1b[2J.png": b"no picture", "d.\x1bx": b""})
    with SkipReport(tmp_path / "report") as report:
        assert len(list(with_samples(recognise(tmp_path), read(tmp_path, report=report), report))) == 1
    printed = capsys.readouterr().err + report.line()
    list(read(tmp_path))
    assert r"a\n\u202eb.png" in printed
    assert not {"\u202e", "\x1b"} & {*printed, *"".join(caplog.messages)}


def test_what_is_left_of_a_sample_is_named(tmp_path: Path) -> None:
    members = {f"{i}.{e}": d for i in range(3) for e, d in (("png", PNG), ("mask.png", PNG), ("mp4", b"film"))}
    tar(tmp_path / "0.tar", members)
    found, counts, skipped = told(tmp_path)
    assert all(item.document == Document.of(picture()) for item in found)
    assert str(counts) == "3 read · 3 pictures without caption · 6 files not read (.mask.png 3, .mp4 3)"
    assert [one.origin for one in skipped] == [f"{tmp_path}/0.tar#*.mask.png", f"{tmp_path}/0.tar#*.mp4"]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [PNG], "mask": [PNG], "text": ["a fox"]}), tmp_path / "0.parquet")
    _, counts, (skipped,) = told(tmp_path)
    assert str(counts) == "1 read · 1 file not read (column mask 1)"
    assert skipped.origin == f"{tmp_path}/0.parquet#mask"


def test_captions_of_pictures_that_coco_does_not_list_are_told(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "0.png"}]
    annotations = [{"image_id": i, "caption": "x"} for i in (1, 2, 2)]
    put(tmp_path, {"0.png": PNG, "captions.json": json.dumps({"images": images, "annotations": annotations})})
    found, (skipped,) = read_all(tmp_path)
    assert len(found) == 1
    assert "1 images, such as 2, have captions but are not listed" in skipped.reason


# Pictures by content, and everything else ----------------------------------------------------------------------------


def encoded(format: str) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (200, 60, 60)).save(out, format)
    return out.getvalue()


def test_a_folder_of_all_sorts(tmp_path: Path) -> None:
    """Every file is read or named."""
    put(
        tmp_path,
        {
            "a.png": PNG,
            "b.tga": encoded("TGA"),
            "c.avif": encoded("AVIF"),
            "d.psd": b"8BPS junk",
            "e": PNG,
            "f.jfif": encoded("JPEG"),
            "g.jpe": encoded("JPEG"),
            "h.jp2": encoded("JPEG2000"),
            "i.dat": encoded("WEBP"),
            "j.jxl": b"\xff\x0a" + bytes(50),
            "k.md": "# Notes",
            "l.txt": "of no picture",
            "m.docx": b"PK",
            "memory/_versions/1.manifest": b"",
            "memory/data/1.lance": b"",
            "x.skipped.jsonl": jsonl({"text": "x"}),
        },
    )
    found, counts, skipped = told(tmp_path)
    assert [item.id for item in found] == ["a.png", "b.tga", "c.avif", "e", "f.jfif", "g.jpe", "h.jp2", "i.dat"]
    named = {os.path.relpath(one.origin, tmp_path) for one in skipped}
    assert named == {"d.psd", "j.jxl", "k.md", "l.txt", "m.docx", "memory/_versions", "x.skipped.jsonl"}
    assert counts.broken == 1
    assert str(counts).startswith("8 read · 8 pictures without caption · 6 files not read (.jxl 1, ")


def test_pictures_that_a_complete_list_does_not_name_are_named(tmp_path: Path) -> None:
    files = {"a/0.png": PNG, "a/b/1.png": PNG, "c/2.png": PNG, "a/metadata.jsonl": jsonl({"file_name": "0.png"})}
    found, counts, (skipped,) = told(put(tmp_path, files))
    assert {item.id for item in found} == {"a/0.png", "c/2.png"}
    assert (skipped.origin, counts.unread) == (f"{tmp_path}/a/b/1.png", {".png": 1})
    assert skipped.item_id is None  # taken off the list, it is gone


@pytest.mark.parametrize("files", [{"README.md": "no pictures"}, {"a.csv": "x,y\n1,2\n"}, {"b.jsonl": "[]\n"}, {}])
def test_nothing_is_an_error(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    with pytest.raises(SourceError, match="no data that is recognised"):
        read(put(tmp_path, files))


def test_a_memory_is_no_data(tmp_path: Path) -> None:
    put(tmp_path, {"_versions/1.manifest": b"", "data/1.lance": b""})
    with pytest.raises(SourceError, match="is a memory, and no data; .* `racm3 memory export`"):
        read(tmp_path)


def test_pieces_hold_what_the_whole_holds(tmp_path: Path) -> None:
    put(tmp_path, {**pictures(), "sub/8.png": PNG, "sub/9.png": PNG, "sub/9.txt": "nine", "notes.md": ""})
    put(tmp_path, {"metadata.csv": pairs("file_name", "text"), "facts.jsonl": jsonl({"text": "x"})})
    tar(tmp_path / "0.tar", {"1.txt": b"x"})
    put(tmp_path, {"sub/train.csv": table([("image", "caption"), ("8.png", "eight")])})
    source = recognise(tmp_path)
    apart = [item for piece in source.pieces() for item in piece.read(strict=True)]
    found, _, skipped = told(tmp_path)
    assert sorted(item.id for item in apart) == sorted(item.id for item in found)
    assert [one.origin for one in source.unread()] == [one.origin for one in skipped]


def test_what_we_write_is_not_taken_for_something_else(tmp_path: Path) -> None:
    """Metadata keep their names, whatever they are called, beside a document without a caption."""
    item = Item("a", Document.of("x", picture(), "y"), {"caption": "c", "title": "t", "image": "i.png"}, "")
    with writing_documents(tmp_path / "out") as write:
        write(item)
    (found,) = read(tmp_path / "out", strict=True)
    assert (found.document, found.metadata) == (item.document, item.metadata)
