"""What is exported makes the same memory again; an export is whole, and deletes nothing but an earlier one."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from racm3.data import Item, read
from racm3.document import Document, Image, Text
from racm3.errors import DamagedDocumentError, InputError, RACM3Error
from racm3.memory import memory_export as module
from racm3.memory.memory import Memory
from racm3.memory.memory_export import MARKER, export
from tests.memory.test_memory import D, items, unit

OURS = ["id", "parts", "text", "file_name", "item_id", "caption", "captions", "json", "metadata", "origin", "images"]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = WORDS.filter(lambda text: bool(text.strip())) | st.sampled_from(
    ["  blanks around  ", "a\r\nb\tc", "x" * 12_000]
)
PICTURES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
    lambda drawn: Image(np.random.default_rng(drawn[2]).integers(0, 256, (*drawn[:2], 3), dtype=np.uint8))
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(st.sampled_from(OURS) | WORDS, VALUES, max_size=4)
DOCUMENTS = st.lists(TEXTS.map(Text) | PICTURES, min_size=1, max_size=5).map(lambda parts: Document(tuple(parts)))
IDS = WORDS | st.sampled_from(["a.b.c", "a/b", "../up", ".", "", "x" * 500, "狐" * 100, "000000000", "it's", "%2E"])
ITEMS = st.lists(st.builds(Item, IDS, DOCUMENTS, METADATA, WORDS), max_size=6, unique_by=lambda item: item.id)


def same(found: list[Item], expected: list[Item]) -> bool:
    return sorted(found, key=lambda item: item.id) == sorted(expected, key=lambda item: item.id)


@given(given_items=ITEMS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_exported_makes_the_same_memory_again(given_items: list[Item]) -> None:
    with TemporaryDirectory() as folder:
        memory = Memory.create(Path(folder) / "m", "e", D)
        memory.add(given_items, unit(len(given_items)))
        shards = export(memory, Path(folder) / "out")
        found = list(read(Path(folder) / "out", strict=True)) if shards else []
        assert same(found, given_items)
        again = Memory.create(Path(folder) / "again", "e", D)
        again.add(found, unit(len(found)))
        assert again.fingerprint == memory.fingerprint
        assert same(list(again.items()), given_items)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    memory = Memory.create(tmp_path / "m", "encoder-a", D)
    memory.add(items(30), unit(30))
    return memory


def test_a_second_export_holds_nothing_of_the_first(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_shards", lambda given, folder: WRITE(given, folder, items_per_shard=10))
    out, done = tmp_path / "out", list[int]()
    assert [shard.name for shard in export(memory, out, done.append)] == ["000000.tar", "000001.tar", "000002.tar"]
    assert done == list(range(1, 31))
    memory.remove([str(number) for number in range(5, 30)])
    export(memory, out)
    assert sorted(file.name for file in out.iterdir()) == [MARKER, "000000.tar"]
    assert same(list(read(out)), items(5))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "out"]


WRITE = module.write_shards


def test_other_tools_find_captions_pictures_and_metadata(memory: Memory, tmp_path: Path) -> None:
    (shard,) = export(memory, tmp_path / "out")
    with tarfile.open(shard) as tar:
        assert tar.getnames()[:4] == ["0.png", "0.txt", "0.json", "0.racm3.json"]
        text, metadata = tar.extractfile("7.txt"), tar.extractfile("7.json")
        assert text is not None
        assert metadata is not None
        assert text.read() == b"caption 7"
        assert json.load(metadata) == {"n": 7}
        picture = tar.extractfile("7.png")
        assert picture is not None
        assert Image.open(picture.read()) == items(1, 7)[0].document.images[0]


def test_nothing_else_is_replaced(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "000000.tar").write_text("mine")
    (tmp_path / "file").write_text("mine")
    other = Memory.create(tmp_path / "other", "encoder-a", D)
    other.add(items(2), unit(2))
    export(other, tmp_path / "others")
    export(memory, tmp_path / "beside")
    (tmp_path / "beside" / "notes.txt").write_text("mine")
    (tmp_path / "taken.part").mkdir()
    (tmp_path / "taken.part" / "thesis").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for place, message in {
        "used": "is not empty, and was not written by",
        "file": "is a file",
        "others": "holds an export of the memory .*other; give a new folder",
        "beside": "holds 'notes.txt' beside an earlier export",
        "taken": "taken.part is not empty",
        "m": "is the memory's own folder",
        "m/out": "is the memory's own folder, or inside",
    }.items():
        with pytest.raises(InputError, match=message):
            export(memory, tmp_path / place)
    with pytest.raises(InputError, match="is written to a folder"):
        export(memory, "s3://bucket/out")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("broken_off", ["writing", "swapping", "killed"])
def test_an_export_that_fails_leaves_the_one_before(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_off: str
) -> None:
    out = tmp_path / "out"
    export(memory, out)
    memory.remove(["3"])

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    if broken_off == "writing":
        with pytest.raises(KeyboardInterrupt):
            export(memory, out, lambda done: fails() if done == 20 else None)
        assert not (tmp_path / "out.part").exists()
    elif broken_off == "swapping":  # a kill between the last two steps
        out.rename(tmp_path / "out.old")
    else:
        monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            export(memory, out, lambda done: fails() if done == 20 else None)
        monkeypatch.undo()
        assert (tmp_path / "out.part").exists()
    if broken_off != "swapping":
        assert same(list(read(out)), items(30))
    export(memory, out)
    assert same(list(read(out)), [item for item in items(30) if item.id != "3"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "out"]


def test_a_damaged_document_is_not_exported_in_silence(memory: Memory, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    lance.dataset(str(memory.path)).update({"metadata": "'{\"n\": 8}'"}, where="id = '7'")
    with pytest.raises(DamagedDocumentError, match="document '7' is damaged"):
        export(memory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sample_whose_record_is_damaged_is_skipped_with_the_reason(memory: Memory, tmp_path: Path) -> None:
    (shard,) = export(memory, tmp_path / "out")
    shard.write_bytes(shard.read_bytes().replace(b'"parts": ["caption 7"', b'"pants": ["caption 7"'))
    skipped: list[str] = []
    assert len(list(read(tmp_path / "out", report=lambda one: skipped.append(one.reason)))) == 29
    assert "is not one that racm3 wrote" in skipped[0]
    with pytest.raises(RACM3Error):
        list(read(tmp_path / "out", strict=True))


def test_a_link_to_a_folder_stays_one(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name, there in (("link", tmp_path / "disk"), ("dangling", tmp_path / "not yet")):
        (tmp_path / name).symlink_to(there)
        for _ in range(2):
            export(memory, tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (there / "000000.tar").exists()
