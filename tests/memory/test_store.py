"""What a memory promises about its files: nothing acknowledged is lost, nothing half done is seen."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory_crash import crash, faults, flips, power_cuts
from racm3.data import Item
from racm3.document import Document, Image
from racm3.errors import InputError, MemoryStoreError
from racm3.memory import storage, store
from racm3.memory.check import Checked, check
from racm3.memory.memory import Memory
from tests.memory.test_memory import D, items, unit

FORMAT1 = Path(__file__).parent / "data" / "format1"


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    memory = Memory.create(tmp_path / "memory", "encoder-a", D)
    for start in range(0, 30, 10):
        memory.add(items(10, start), unit(30)[start : start + 10])
    return memory


def newest(path: Path, pattern: str) -> Path:
    return max(path.glob(pattern), key=lambda file: file.stat().st_mtime_ns)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


# Killed and cut off ------------------------------------------------------------------------------------------------


def test_nothing_is_lost_or_torn_or_read_wrong_by_kills(tmp_path: Path) -> None:
    """The short form of benchmarks/memory_crash.py."""
    assert crash(tmp_path, kills=3) == {"kills": 3, "lost": 0, "torn": 0, "wrong_reads": 0}


def test_after_a_power_cut_the_last_good_version_opens(tmp_path: Path) -> None:
    assert power_cuts(tmp_path, cuts=10) == {"power_cuts": 10, "recovered": 10}


def test_faults_take_nothing_and_make_readers_move_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:  # which other users can reach
        assert faults(Path(folder), count=2) == {"faults": 2, "rolled_back_by_reader": 0, "enospc": 2, "enospc_lost": 0}


def test_no_bit_that_is_flipped_is_passed_over(tmp_path: Path) -> None:
    assert flips(tmp_path, count=20) == {"flips": 20, "flips_found": 20, "silent_wrong": 0}


@pytest.mark.parametrize("pattern", ["_versions/*.manifest", "data/*.lance"])
def test_a_damaged_newest_version_is_passed_over_by_readers_and_moved_aside_by_writers(
    memory: Memory, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    file = min((memory.path / "_versions").glob("*")) if "manifest" in pattern else newest(memory.path, pattern)
    cut(file)
    before = {found: found.read_bytes() for found in memory.path.rglob("*") if found.is_file()}
    opened = Memory.open(memory.path)
    for _ in range(3):
        assert opened.search(unit(30)[:1], 1)[0].ids == ["0"]
    assert list(opened.ids) == [str(i) for i in range(20)]
    (told,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "cannot be read" in told.message
    assert "Version 4 is read instead" in told.message
    assert {found: found.read_bytes() for found in memory.path.rglob("*") if found.is_file()} == before
    opened.add(items(10, 20), unit(30)[20:])  # life goes on, and a reader of before sees it
    assert "moved to" in caplog.records[1].message
    assert len(list((memory.path / "damaged").iterdir())) == 1
    assert len(memory.search(unit(1), 30)[0]) == len(Memory.open(memory.path)) == 30
    assert len(caplog.records) == 2


def test_a_manifest_may_be_cut_off_anywhere(memory: Memory, tmp_path: Path) -> None:
    size = min((memory.path / "_versions").glob("*.manifest")).stat().st_size
    for length in (0, 1, 3, 8, 15, 16, 17, size // 2, size - 17, size - 16, size - 4, size - 1):
        path = shutil.copytree(memory.path, tmp_path / str(length))
        os.truncate(min((path / "_versions").glob("*.manifest")), length)
        assert len(Memory.open(path)) == 20


def test_a_reader_steps_back_too(memory: Memory, tmp_path: Path) -> None:
    reader = Memory.open(memory.path)
    memory.remove(["3"])
    cut(newest(memory.path, "_deletions/*"))
    assert "3" in reader.search(unit(30)[3:4], 1)[0].ids


def test_damage_that_stepping_back_does_not_mend_is_refused(memory: Memory) -> None:
    """A file that earlier versions need too was not spoilt by a power cut: nobody's documents are given up for it."""
    oldest = min((memory.path / "data").glob("*"), key=lambda file: file.stat().st_mtime_ns)
    cut(oldest)
    with pytest.raises(MemoryStoreError, match=r"is damaged.*memory check --repair"):
        Memory.open(memory.path)
    assert not list((memory.path / "damaged").glob("*"))


def test_no_two_versions_have_one_number(memory: Memory) -> None:
    """A reader of a version that was moved aside would take its successor for the same."""
    manifest = min((memory.path / "_versions").glob("*.manifest"))
    reader = Memory.open(memory.path)
    cut(manifest)
    Memory.open(memory.path).add(items(1, 40), unit(1, seed=9))
    assert reader.search(unit(1, seed=9), 1)[0].ids == ["40"]


# Changes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["add", "append", "put", "remove", "compact"])
def test_files_are_flushed_before_the_manifest_and_it_before_the_return(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = {file for file in memory.path.rglob("*") if file.is_file()}
    flushed: list[Path] = []
    monkeypatch.setattr(storage, "_fsync", lambda *paths: flushed.extend(paths))
    if change == "add":
        memory.add(items(1, 50), unit(1))
    elif change == "append":
        with memory.writing():
            memory.append(memory.stage([(items(1, 50), unit(1)), (items(2, 60), unit(2))]))
    elif change == "put":
        memory.put(items(1, 3), unit(1))
    elif change == "remove":
        memory.remove(["3", "13"])
    else:
        memory.compact()
    new = {file for file in memory.path.rglob("*") if file.is_file()} - before
    written = {file for file in new if file.parent.name in ("data", "_deletions", "_versions")}
    written -= {file for file in written if file.suffix == ".json"}
    assert written - {file for file in written if file.suffix == ".manifest"} <= set(flushed)
    assert min((memory.path / "_versions").glob("*.manifest")) in flushed
    kinds = [path.parent.name for path in flushed if path in written]
    assert kinds == sorted(kinds, key="_versions".__eq__)  # manifests last
    assert memory.path / "_versions" in flushed


def test_put_replaces_in_one_step(memory: Memory) -> None:
    versions = len(list((memory.path / "_versions").glob("*.manifest")))
    changed = [Item("7", Document.of("new"), {}, ""), Item("new", Document.of("also"), {}, "")]
    memory.put(changed, unit(2, seed=5))
    assert len(list((memory.path / "_versions").glob("*.manifest"))) == versions + 1
    for seen in (memory, Memory.open(memory.path)):
        assert len(seen) == 31
        assert seen.get(["7", "new"]) == changed
        assert seen.search(unit(2, seed=5)[:1], 1)[0].ids == ["7"]


def test_what_is_removed_is_found_no_more(memory: Memory) -> None:
    reader = Memory.open(memory.path)
    memory.remove({"3", "29", *map(str, range(10, 20))})  # a whole fragment among them
    left = [str(i) for i in range(30) if not 10 <= i < 20 and i not in (3, 29)]
    for seen in (reader, Memory.open(memory.path)):
        assert sorted(seen.search(unit(1), 30)[0].ids) == sorted(left)
        assert list(seen.ids) == left
        np.testing.assert_array_equal(seen.vectors, unit(30)[[int(i) for i in left]])
        assert seen.get(["2", "28"]) == [items(1, 2)[0], items(1, 28)[0]]
    with pytest.raises(MemoryStoreError, match="no document '3'; nothing was removed"):
        memory.remove(["3", "4"])
    assert "4" in Memory.open(memory.path).ids


@pytest.mark.parametrize("start", [0, 1, 12, 20, 29, 99])
def test_items_begin_at_a_row_whatever_was_removed(memory: Memory, start: int) -> None:
    memory.remove({"3", "29", *map(str, range(10, 20))})
    assert list(memory.items(start)) == list(memory.items())[start:]


def test_ids_that_look_like_sql_are_ids(memory: Memory) -> None:
    for name in ("it's", "' OR id IS NOT NULL --", "狐"):
        memory.add([Item(name, Document.of("x"), {}, "")], unit(1, seed=3))
        memory.remove([name])
        assert len(memory) == 30


def test_what_is_staged_is_found_only_when_it_is_appended(memory: Memory) -> None:
    staged = [memory.stage([(items(5, start), unit(5, seed=start))]) for start in (50, 60)]
    assert memory.stage([]) == []
    for seen in (memory, Memory.open(memory.path)):
        assert len(seen) == len(seen.search(unit(1), 99)[0]) == 30
    with memory.writing():
        memory.append([*staged[0], *staged[1]])
    assert len(Memory.open(memory.path)) == 40
    assert memory.get(["64", "50"]) == [items(1, 64)[0], items(1, 50)[0]]
    with pytest.raises(InputError, match="5 items came with 4 vectors"):
        memory.stage([(items(5, 70), unit(4))])


# Compaction --------------------------------------------------------------------------------------------------------


def test_compaction_keeps_every_document_and_frees_the_rest(memory: Memory) -> None:
    memory.remove(map(str, range(5)))
    reader = Memory.open(memory.path)
    memory.compact()
    (fragment,) = memory._store.table.get_fragments()
    assert (fragment.physical_rows, len(list((memory.path / "data").iterdir()))) == (25, 1)
    for seen in (memory, reader, Memory.open(memory.path)):
        assert seen.get(["5", "29"]) == [items(1, 5)[0], items(1, 29)[0]]  # the reader's files are gone meanwhile
        assert sorted(seen.search(unit(1), 30)[0].ids) == sorted(map(str, range(5, 30)))
    cut(min((memory.path / "_versions").glob("*.manifest")))
    assert len(Memory.open(memory.path)) == 25  # also just after a compaction there is a version before the newest


def test_fragments_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction holds a fragment in memory; whatever the rows weigh, it must not be more than that."""
    monkeypatch.setattr(store, "FRAGMENT_BYTES", 200_000)
    memory = Memory.create(tmp_path / "m", "e", D)
    for start in range(0, 60, 10):
        noise = np.random.default_rng(start).integers(0, 256, (10, 60, 60, 3), dtype=np.uint8)  # 11 kB each
        memory.add([Item(f"{start + i}", Document.of(Image(p)), {}, "") for i, p in enumerate(noise)], unit(10))
    memory.compact()
    files = [file.stat().st_size for file in (memory.path / "data").iterdir()]
    assert len(files) > 1
    assert 100_000 < max(files) < 240_000


def test_many_small_changes_leave_few_fragments_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SMALL_FRAGMENTS", 5)
    monkeypatch.setattr(store, "VERSIONS", 4)
    memory = Memory.create(tmp_path / "m", "e", D)
    for i in range(12):
        memory.add(items(1, i), unit(12)[i : i + 1])
        memory.put(items(1, i), unit(12)[i : i + 1])
        assert memory.info().fragments <= 5
    assert len(list((memory.path / "_versions").glob("*.manifest"))) < 12
    assert sorted(memory.ids) == sorted(map(str, range(12)))


# Older memories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [FORMAT1, FORMAT1.with_name("format1_checksums")], ids=lambda path: path.name)
def test_a_memory_written_by_an_older_version_opens(tmp_path: Path, written: Path) -> None:
    """Both were written by racm3 0.1.0 with pylance 14, the second with checksums; they must open for ever."""
    path = shutil.copytree(written, tmp_path / "old")
    memory = Memory.open(path, "encoder-a")
    pictures = [Image(np.full((2, 3, 3), [i, 2 * i, 255 - i], np.uint8)) for i in range(5)]
    expected = [
        Item("a", Document.of("a fox", pictures[1]), {"license": "CC0", "width": 640}, "here/a"),
        Item("b", Document.of(pictures[2]), {}, "here/b"),
        Item("狐", Document.of("one", pictures[3], "two", pictures[4]), {"n": {"ü": [1, None]}}, "here/c"),
    ]
    assert memory.get(["a", "b", "狐"]) == expected
    assert memory.search(np.eye(4, dtype=np.float32)[2:3], 1)[0].ids == ["狐"]
    memory.put([Item("b", Document.of("new"), {}, "")], np.eye(4, dtype=np.float32)[3:])
    memory.remove(["a"])
    memory.compact()
    assert sorted(Memory.open(path).ids) == ["b", "狐"]
    assert check(path) == Checked(2)
