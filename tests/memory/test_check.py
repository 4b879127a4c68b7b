from __future__ import annotations

import os
from pathlib import Path

import lance
import numpy as np
import pytest

from racm3.memory import rows
from racm3.memory.check import Checked, check
from racm3.memory.memory import Memory
from tests.memory.test_memory import D, items, unit


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
