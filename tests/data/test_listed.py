from __future__ import annotations

import json
from pathlib import Path

import pytest

from racm3.data import Item, read, writing_documents
from racm3.data import item as limits
from racm3.document import Document, Hole, Text
from racm3.errors import SourceError
from tests.data.conftest import PNG, one_skipped, picture, read_all


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(picture(1).png())
    (tmp_path / "2.png").write_bytes(picture(2).png())
    (tmp_path.parent / "outside.png").write_bytes(PNG)
    return tmp_path


def test_pictures(folder: Path) -> None:
    file = folder / "metadata.jsonl"
    file.write_text('{"file_name": "train/1.png", "text": "a fox", "id": 7}\n\n{"file_name": "2.png"}\n')

    for source in (folder, file):
        first, second = read(source)
        assert (first.id, first.document) == ("train/1.png", Document.of("a fox", picture(1)))
        assert first.metadata == {"id": 7}
        assert first.origin == str(folder / "train" / "1.png")
        assert (second.document, second.metadata) == (Document.of(picture(2)), {})


def test_texts(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(
        '\ufeff{"text": " Foxes bark.\\n"}\n{"text": "Owls hoot.", "id": 7, "by": "x"}'
    )
    first, second = read(tmp_path)
    assert (first.id, first.document, first.metadata) == ("facts/1", Document.of("Foxes bark."), {})
    assert (second.id, second.document, second.metadata) == ("7", Document.of("Owls hoot."), {"by": "x"})
    assert second.origin == str(tmp_path / "facts.jsonl") + ":2"


def test_interleaved_documents(folder: Path) -> None:
    parts = ["Two foxes.", {"image": "train/1.png"}, " ", {"image": "2.png"}, "They sleep."]
    (folder / "documents.jsonl").write_text(json.dumps({"parts": parts, "id": "foxes", "source": "a book"}))
    (item,) = read(folder)
    assert (item.id, item.metadata) == ("foxes", {"source": "a book"})
    assert item.document == Document.of("Two foxes.", picture(1), picture(2), "They sleep.")


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [
        Item("käse/1", Document.of("one", picture(1), "two", picture(2)), {"n": [1, None]}, ""),
        Item("2", Document.of(picture(3), "below"), {}, ""),
    ]
    with writing_documents(tmp_path / "out") as write:
        for item in items:
            write(item)
        with pytest.raises(SourceError, match=r"has metadata \['text'\]"):
            write(Item("3", Document.of("a", "b"), {"text": 1}, ""))
        with pytest.raises(SourceError, match="has holes"):
            write(Item("4", Document.of("a", Hole("image")), {}, ""))
    found = list(read(tmp_path / "out"))
    assert [(i.id, i.document, i.metadata) for i in found] == [(i.id, i.document, i.metadata) for i in items]
    with writing_documents(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "nothing").exists()


def test_lists_in_folders_of_a_folder(folder: Path) -> None:
    (folder / "test").mkdir()
    (folder / "test" / "1.png").write_bytes(picture(3).png())
    for name in ("train", "test"):
        (folder / name / "metadata.jsonl").write_text('{"file_name": "1.png"}')
    (folder / "2.png").unlink()  # or it is nearer to the top
    assert {item.id: item.document.images[0] for item in read(folder)} == {
        "train/1.png": picture(1),
        "test/1.png": picture(3),
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": ', "JSON cannot be read"),
        ("[" * 100_000, "JSON cannot be read"),
        ('{"n": ' + "9" * 5000 + "}", "JSON cannot be read"),
        ("[1]", "no object but a list"),
        ('{"caption": "x"}', "but the keys ['caption'] were given"),
        ('{"text": null, "file_name": null}', "but the keys [] were given"),
        ('{"text": "x", "parts": []}', "but the keys ['parts', 'text'] were given"),
        ('{"text": "  "}', "neither a picture nor a text"),
        ('{"text": ["x"]}', "a text is a string, but list was given"),
        ('{"text": "half \\ud83e"}', "half a character"),
        ('{"text": "x", "more": {"\\ud83e": 1}}', "half a character"),
        ('{"text": "x", "more": ' + "[" * 60 + "]" * 60 + "}", "nested deeper than 50"),
        ('{"file_name": 7}', "named by a path"),
        ('{"file_name": ""}', "named by a path"),
        ('{"file_name": "a\\u0000.png"}', "named by a path"),
        ('{"file_name": "train"}', "is no file"),
        ('{"file_name": "nowhere.png"}', "there is no file"),
        ('{"file_name": "../outside.png"}', "leaves"),
        ('{"file_name": "train/../../outside.png"}', "leaves"),
        ('{"file_name": "/outside.png"}', "leaves"),
        ('{"file_name": "' + "x" * 300 + '.png"}', ""),
        ('{"parts": "x"}', '"parts" is a list'),
        ('{"parts": []}', "neither a picture nor a text"),
        ('{"parts": [{"text": "x"}]}', "a part is a text or"),
        ('{"parts": [{"image": "../outside.png"}]}', "leaves"),
        ('{"parts": ["fine", {"image": "nowhere.png"}]}', "there is no file"),
    ],
)
def test_broken_lines(folder: Path, line: str, reason: str) -> None:
    (folder / "documents.jsonl").write_text('{"text": "fine"}\n' + line + '\n{"text": "fine, too"}\n')
    found = one_skipped(folder, "", reason)
    assert [item.document for item in found] == [Document.of("fine"), Document.of("fine, too")]


def test_what_is_broken_is_where_the_item_would_be(folder: Path) -> None:
    lines = ['{"file_name": "nowhere.png"}', '{"text": 3}', "no JSON", '{"file_name": "/etc"}']
    (folder / "documents.jsonl").write_text("\n".join(lines))
    _, skipped = read_all(folder)
    places = ["nowhere.png", *(f"documents.jsonl:{number}" for number in (2, 3, 4))]
    assert [one.origin for one in skipped] == [str(folder / place) for place in places]


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LINE_BYTES", 50)
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + "x" * 175 + '\n{"text": "fine, too"}\n')
    assert len(one_skipped(tmp_path, "a.jsonl:2", "longer than")) == 2


def test_ids_are_unique(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "a"}\n')
    (folder / "more.jsonl").write_text('{"file_name": "2.png", "text": "b"}\n')
    (item,) = one_skipped(folder, "2.png", "its id '2.png' was there before")
    assert item.document.text == "a"


def test_a_broken_item_does_not_take_an_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 3, "id": "x"}\n{"text": "fine", "id": "x"}\n')
    (item,) = one_skipped(tmp_path, "a.jsonl:1", "a text is a string")
    assert item.id == "x"


def test_numbers_that_are_none_become_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "nsfw": NaN, "score": -Infinity}')
    (item,) = read(tmp_path)
    assert item.metadata == {"nsfw": None, "score": None}


def test_a_document_of_too_many_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_DOCUMENT_PIXELS", 100)
    (folder / "documents.jsonl").write_text(json.dumps({"parts": [{"image": "2.png"}] * 4}))
    assert one_skipped(folder, "documents.jsonl:1", "more than 100 pixels") == []


def test_a_table(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        '\ufefffile_name,text,by\n"train/1.png","a fox, ""red""\nand old",x\n2.png,,\n'
    )
    first, second = read(folder)
    assert (first.id, first.metadata) == ("train/1.png", {"by": "x"})
    assert first.document == Document((Text('a fox, "red"\nand old'), picture(1)))
    assert (second.document, second.metadata) == (Document.of(picture(2)), {"by": ""})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_ends_of_lines(folder: Path, end: str) -> None:
    (folder / "metadata.csv").write_bytes(f'file_name,text{end}2.png,"a{end}b"{end}train/1.png,c'.encode())
    assert [item.document.text for item in read(folder)] == [f"a{end}b", "c"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"2.png", "1 cells under 2 columns"),
        (b"2.png,a,b", "3 cells under 2 columns"),
        (b'2.png,"a"b', "no CSV"),
        (b"2.png,caf\xe9", "not UTF-8"),
        (b"2.png," + b"x" * 200_000, "no CSV: field larger"),
        (b"2.png," + b"x" * 2_000_000, "no CSV: field larger"),
        (b"../outside.png,a", "leaves"),
    ],
    ids=range(7),
)
def test_broken_rows(folder: Path, row: bytes, reason: str) -> None:
    (folder / "metadata.csv").write_bytes(b"file_name,text\ntrain/1.png,fine\n" + row + b"\n")
    assert len(one_skipped(folder, "", reason)) == 1


def test_a_quote_that_never_closes_is_reported(folder: Path) -> None:
    (folder / "metadata.csv").write_text('file_name,text\ntrain/1.png,fine\n2.png,"oh\n2.png,no\n')
    found, skipped = read_all(folder)
    assert len(found) == len(skipped) == 1


@pytest.mark.parametrize("header", ["name,text", "file_name,text,text"])
def test_a_table_of_other_columns(folder: Path, header: str) -> None:
    (folder / "metadata.csv").write_text(header + "\n")
    with pytest.raises(SourceError, match=r'has the columns .* one "file_name" is needed'):
        list(read(folder))
