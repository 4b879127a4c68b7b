"""A memory in a bucket promises what one in a folder does; the bucket is on a server of this process."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item
from racm3.document import Document
from racm3.errors import InputError, MemoryStoreError
from racm3.memory import storage
from racm3.memory.check import Checked, check
from racm3.memory.memory import Memory
from racm3.memory.storage import Bucket, Folder, storage_at
from tests.memory.test_memory import D, items, unit

KILLED = """
import sys
from racm3.memory.memory import Memory
from tests.memory.test_memory import items, unit
memory = Memory.open(sys.argv[1])
for i in range(100, 1000):
    memory.add(items(1, i), unit(1, seed=i))
    print(i, flush=True)
"""


@pytest.fixture(scope="module")
def filled(bucket: str) -> str:
    """A memory of 30 documents; no test changes it for others."""
    memory = Memory.create(f"{bucket}/filled", "encoder-a", D)
    memory.add(items(30), unit(30))
    return f"{bucket}/filled"


def objects(at: str) -> Bucket:
    found = storage_at(at)
    assert isinstance(found, Bucket)
    return found


def test_a_place_is_a_folder_or_a_bucket(tmp_path: Path) -> None:
    assert isinstance(storage_at(tmp_path), Folder)
    assert isinstance(storage_at("s3"), Folder)
    pytest.importorskip("obstore")
    for at in ("s3://bucket/a/b", "s3://bucket/a/b/", Path("s3://bucket/a/b")):
        assert str(storage_at(at)) == "s3://bucket/a/b"
    with pytest.raises(InputError, match="in a folder or at s3://bucket/name, but ftp://x was given"):
        storage_at("ftp://x")


def test_the_life_of_a_memory_in_a_bucket(bucket: str) -> None:
    at = f"{bucket}/life"
    memory = Memory.create(at, "encoder-a", D)
    with pytest.raises(MemoryStoreError, match=f"already something at {at}"):
        Memory.create(at, "encoder-a", D)
    memory.add(items(20), unit(20))
    reader = Memory.open(at, "encoder-a")
    memory.put([Item("7", Document.of("new"), {}, "")], unit(1, seed=5))
    memory.remove(["3", "19"])
    assert reader.search(unit(1, seed=5), 1)[0].ids == ["7"]
    assert len(reader) == 18
    memory.compact()
    assert reader.get(["7", "18"]) == [Item("7", Document.of("new"), {}, ""), items(1, 18)[0]]
    assert check(at) == Checked(18)
    info = reader.info()
    assert (info.fragments, info.documents) == (1, 18)
    assert info.bytes_on_disk > 18 * 100
    memory.re_embed("encoder-b", D, lambda some: unit(len(some), seed=8), batch=10)
    np.testing.assert_array_equal(Memory.open(at, "encoder-b").vectors[:10], unit(10, seed=8))
    assert "writer.lock" not in objects(at)._names("")


def test_what_cannot_be_reached_is_said(bucket: str) -> None:
    with pytest.raises(MemoryStoreError, match=f"the memory {bucket}/nothing does not exist"):
        Memory.open(f"{bucket}/nothing")
    with pytest.raises(MemoryStoreError, match="s3://nowhere/memory cannot be reached: .* check the bucket's name"):
        Memory.open("s3://nowhere/memory")


def test_a_damaged_newest_version_in_a_bucket_is_passed_over_and_moved_aside(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    at = f"{bucket}/damaged"
    memory = Memory.create(at, "encoder-a", D)
    for start in (0, 10):
        memory.add(items(10, start), unit(20)[start : start + 10])
    newest = f"_versions/{objects(at).versions()[0]}"
    store = objects(at)._objects
    store.put(newest, bytes(store.get(newest).bytes())[:50])
    opened = Memory.open(at)
    assert list(opened.ids) == [str(i) for i in range(10)]
    (told,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert "Version 3 is read instead" in told
    opened.add(items(10, 10), unit(20)[10:])
    assert f"was moved to {at}/damaged/" in caplog.records[1].message
    assert len(memory.search(unit(1), 30)[0]) == 20


# One writer --------------------------------------------------------------------------------------------------------


def test_a_second_writer_of_a_bucket_waits_then_says_so(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LEASE_S", 4.0)
    with Memory.open(filled).writing(), pytest.raises(MemoryStoreError, match="another process is writing to s3"):
        Memory.open(filled).remove(["3"])
    assert len(Memory.open(filled)) == 30


def test_a_second_writer_of_a_bucket_goes_on_when_the_first_is_done(bucket: str) -> None:
    at = f"{bucket}/two"
    Memory.create(at, "encoder-a", D)

    def write(first: int) -> None:
        for i in range(first, first + 3):
            Memory.open(at).add(items(1, i), unit(1, seed=i))

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(Memory.open(at).ids) == ["0", "1", "10", "11", "12", "2"]


def test_what_a_killed_writer_acknowledged_stays_and_the_next_one_goes_on(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at = f"{bucket}/killed"
    Memory.create(at, "encoder-a", D)
    with subprocess.Popen([sys.executable, "-c", KILLED, at], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline().strip() for _ in range(2)]
        writer.kill()
        acknowledged += writer.stdout.read().split()
    objects(at)._objects.put("writer.lock", b"of the dead")  # wherever the kill hit, as if it hit while writing
    monkeypatch.setattr(storage, "LEASE_S", 4.0)
    memory = Memory.open(at)
    assert set(acknowledged) <= set(memory.ids)
    memory.add(items(1), unit(1))
    assert "ended without a word" in caplog.text
    assert "0" in Memory.open(at).ids


def test_a_writer_that_lost_its_lease_changes_nothing(filled: str) -> None:
    memory = Memory.open(filled)
    with memory.writing():
        lease = objects(filled)
        lease._objects.put("writer.lock", b"of another one")
        memory._store.storage._lease._renewed -= storage.LEASE_S  # as if it had slept
        with pytest.raises(MemoryStoreError, match="another process may be writing to it by now; nothing was changed"):
            memory._store.change(items(1, 50), unit(1))
    assert "writer.lock" in lease._names("")  # nor is the other one's lease given back
    lease._objects.delete("writer.lock")
    assert len(Memory.open(filled)) == 30


def test_a_change_in_spite_of_the_lock_is_noticed(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", "encoder-a", D)
    with memory.writing():
        (tmp_path / "m" / "writer.lock").unlink()
        Memory.open(tmp_path / "m").add(items(1, 1), unit(1))
        with pytest.raises(MemoryStoreError, match="in spite of the lock"):
            memory._store.change(items(1, 2), unit(1))
