from __future__ import annotations

import os
import shutil
from pathlib import Path

import lance
import numpy as np
import pytest

from racm3.errors import DamagedDocumentError
from racm3.memory import rows
from racm3.memory.check import Checked, check
from racm3.memory.memory import Memory
from tests.memory.test_memory import D, items, unit
from tests.memory.test_store import FORMAT1


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    memory = Memory.create(tmp_path / "memory", "encoder-a", D)
    for start in range(0, 30, 10):
        memory.add(items(10, start), unit(30)[start : start + 10])
    return memory


def test_a_whole_memory_is_sound(memory: Memory) -> None:
    memory.remove(["3"])
    assert check(memory.path) == Checked(29)


def test_a_document_that_was_tampered_with_is_named_and_removed(memory: Memory) -> None:
    table = lance.dataset(str(memory.path))
    table.update({"parts": "'[\"another caption\", 0]'"}, where="id = '7'")
    found = check(memory.path)
    (damage,) = found.damaged
    assert (found.sound, damage.what, damage.documents) == (29, "document '7'", 1)
    assert "their checksum differs" in damage.reason
    assert len(Memory.open(memory.path)) == 30  # looking changes nothing
    check(memory.path, repair=True)
    assert check(memory.path) == Checked(29)
    assert "7" not in Memory.open(memory.path).ids


def test_a_file_that_cannot_be_read_takes_only_its_own_documents(memory: Memory) -> None:
    oldest = min((memory.path / "data").glob("*"), key=lambda file: file.stat().st_mtime_ns)
    os.truncate(oldest, oldest.stat().st_size // 2)
    found = check(memory.path)
    (damage,) = found.damaged
    assert (found.sound, damage.documents) == (20, 10)
    assert oldest.name in damage.what
    check(memory.path, repair=True)
    assert list(Memory.open(memory.path).ids) == [str(i) for i in range(10, 30)]


def test_the_hash_tells_contents_apart_and_not_encodings() -> None:
    one, other = items(2)
    assert rows.content_hash(one) != rows.content_hash(other)
    again = rows.item_of(
        {
            "id": one.id,
            "parts": '["caption 0", 0]',
            "images": [one.document.images[0].png()],
            "metadata": "{}",
            "origin": "",
            "hash": rows.content_hash(one),
        }
    )
    assert rows.content_hash(again) == rows.content_hash(one)
    assert np.array_equal(again.document.images[0].pixels, one.document.images[0].pixels)


@pytest.mark.parametrize("where", ["data", "_deletions", "_versions", "checksums/data", "checksums/_versions"])
def test_repair_leaves_nothing_damaged_and_takes_no_sound_document(memory: Memory, where: str) -> None:
    memory.remove(["3", "13"])
    files = sorted(file for file in (memory.path / where).rglob("*") if file.is_file() and file.suffix != ".json")
    for number, file in enumerate(files[: 1 if where == "_versions" else 3]):
        content = bytearray(file.read_bytes())
        content[len(content) * (number + 1) // 5] ^= 16
        file.write_bytes(content)
    found = check(memory.path, repair=True)
    assert found.damaged
    lost = sum(damage.documents for damage in found.damaged)
    assert check(memory.path) == Checked(found.sound)
    assert found.sound + lost in (28, 29, 30)  # where a list of deletions, or the newest version, was lost
    kept = Memory.open(memory.path)
    assert len(kept) == found.sound
    assert [item for item in kept.items() if item not in items(30)] == []


def test_a_row_with_a_flipped_bit_is_never_returned(memory: Memory) -> None:
    """What is on disk is changed behind the memory's back: the vector, and what is written beside it."""
    for column, value in (("metadata", "'{\"n\": 8}'"), ("origin", "'elsewhere'"), ("id", "'70'")):
        table = lance.dataset(str(memory.path))
        table.update({column: value}, where="id = '7'")
        opened = Memory.open(memory.path)
        with pytest.raises(DamagedDocumentError, match="racm3 memory check --repair"):
            opened.get(opened.search(unit(30)[7:8], 1)[0].ids)
        with pytest.raises(DamagedDocumentError):
            list(opened.items())
        found = check(memory.path, repair=True)
        assert (found.sound, len(found.damaged)) == (29, 1)
        memory.put(items(1, 7), unit(30)[7:8])
        assert check(memory.path) == Checked(30)


def test_a_memory_of_before_has_no_checksums_until_it_is_changed(tmp_path: Path) -> None:
    path = shutil.copytree(FORMAT1, tmp_path / "old")
    assert check(path) == Checked(3, [], uncovered=3)
    memory = Memory.open(path)
    vectors = memory.vectors
    memory.compact()
    assert check(path) == Checked(3)
    np.testing.assert_array_equal(Memory.open(path).vectors, vectors)
    memory.re_embed("encoder-b", 6, lambda some: np.eye(6, dtype=np.float32)[: len(some)], batch=10)
    assert check(path) == Checked(3)


def test_a_checksum_that_was_never_finished_is_no_damage(memory: Memory) -> None:
    """As a full disk or a power cut leaves it; the rows are covered all the same."""
    for number, file in enumerate(sorted((memory.path / "checksums").rglob("*.sum"))):
        os.truncate(file, number % 20)
    assert check(memory.path) == Checked(30)
    memory.remove(["3"])
    assert check(memory.path) == Checked(29)
