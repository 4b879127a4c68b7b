"""What cannot be read or written just now is an error, and nothing of what is stored is moved or given up for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from racm3.data import Item
from racm3.document import Document
from racm3.errors import MemoryStoreError
from racm3.memory import versions
from racm3.memory.check import check
from racm3.memory.damage import is_fault
from racm3.memory.memory import Memory
from tests.memory.test_memory import D, items, unit

NOBODY = 65534
ROOT = str(Path(versions.__file__).parents[2])
TRY = """
import json, os, resource, sys
import lance, filelock
from racm3.errors import MemoryStoreError
from racm3.memory.check import check
from racm3.memory.memory import Memory
from tests.memory.test_memory import items, unit
path, user, open_files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
verbs = {
    "open": lambda: len(Memory.open(path)),
    "search": lambda: len(Memory.open(path).search(unit(1), 30)[0]),
    "check": lambda: check(path, repair=True).sound,
    "add": lambda: Memory.open(path).add(items(1, 90), unit(1)),
}
if user != os.getuid():
    os.setuid(user)
if open_files:
    verbs["search"]()  # Lance has its own files open from here on
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
said = {}
for name, verb in verbs.items():
    try:
        said[name] = str(verb())
    except MemoryStoreError as error:
        said[name] = f"told: {error}"
print(json.dumps(said))
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a memory of 30 documents in 3 files, where every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        memory = Memory.create(Path(folder) / "m", "encoder-a", D)
        for start in range(0, 30, 10):
            memory.add(items(10, start), unit(30)[start : start + 10])
        yield Path(folder) / "m"


def attempt(path: Path, user: int, open_files: int = 0) -> dict[str, str]:
    """What each verb says to that user, with so many open files at most."""
    command = [sys.executable, "-c", TRY, str(path), str(user), str(open_files)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}, timeout=60)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


def everything(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.suffix != ".lock"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("what", ["data/*.lance", "_versions/*.manifest", "data", "_versions"])
def test_what_this_user_may_not_read_is_not_taken_for_damage(path: Path, what: str) -> None:
    for name in (path, *path.rglob("*")):
        os.chmod(name, 0o777)  # or moving would not even be tried
    file = min(path.glob(what)) if "manifest" in what else max(path.glob(what), key=lambda f: f.stat().st_mtime_ns)
    before = everything(path)
    os.chmod(file, 0)
    for verb, said in attempt(path, NOBODY).items():
        assert said.startswith("told:"), (verb, said)
        assert "ermission denied" in said
        assert "repair" not in said
    os.chmod(file, 0o777)
    assert everything(path) == before
    assert len(Memory.open(path)) == 30


FAULTS = [
    OSError("LanceError(IO): Generic LocalFileSystem error: Unable to open file: Permission denied (os error 13)"),
    OSError("LanceError(IO): Unable to open file /m/data/x.lance: Too many open files (os error 24)"),
    OSError("External error: No space left on device (os error 28)"),
    OSError("LanceError(IO): Generic S3 error: Error performing GET http://s3/x: error sending request"),
    OSError(5, "Input/output error"),
    ValueError("Cannot allocate memory"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault)[-30:])
def test_a_fault_moves_nothing_even_if_it_is_gone_a_moment_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    assert is_fault(fault)
    before = everything(path)

    def failing(fragment: object) -> None:
        raise fault

    monkeypatch.setattr(versions, "read_one", failing)
    memory = None
    for _ in range(2):
        with pytest.raises(MemoryStoreError, match="cannot be read: .*nothing was changed"):
            memory = Memory.open(path)
    assert memory is None
    assert everything(path) == before
    monkeypatch.undo()
    assert len(Memory.open(path)) == 30


def test_what_lance_cannot_read_though_it_is_as_it_was_written_is_not_moved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of a newer pylance, say."""
    before = everything(path)

    def failing(fragment: object) -> None:
        raise OSError("LanceError: unsupported feature flag 64")

    monkeypatch.setattr(versions, "read_one", failing)
    with pytest.raises(MemoryStoreError, match="is as it was written, but cannot be read.*another version of pylance"):
        Memory.open(path)
    assert everything(path) == before


@pytest.mark.parametrize("limit", [16, 24])
def test_too_many_open_files_lose_nothing(path: Path, limit: int) -> None:
    before = set(everything(path))
    said = attempt(path, os.getuid(), limit)
    assert before <= set(everything(path))
    assert not (path / "damaged").exists()
    assert len(Memory.open(path)) == 30 + (said["add"] == "None")
    assert check(path).damaged == []


FULL = """
import resource, sys
import numpy as np
from racm3.data import Item
from racm3.document import Document, Image
from racm3.errors import MemoryStoreError
from racm3.memory.memory import Memory
from tests.memory.test_memory import items, unit
memory = Memory.open(sys.argv[1])
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
large = [Item("large", Document.of(Image(noise)), {}, "")]
for verb in (lambda: memory.add(large, unit(1)), lambda: memory.put(large, unit(1)), lambda: memory.compact(),
             lambda: memory.remove(["3"])):
    try:
        verb()
        print("done")
    except MemoryStoreError as error:
        print("told:", error)
"""


@pytest.mark.parametrize("limit", [0, 100, 2_000, 20_000])
def test_a_full_disk_loses_nothing_and_is_told(path: Path, limit: int) -> None:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("told:"), done.stdout
    memory = Memory.open(path)
    assert set(map(str, range(30))) - {"3"} <= set(memory.ids)
    if "3" in memory.ids:
        assert memory.get(list(map(str, range(30)))) == items(30)
    memory.put([Item("large", Document.of("x"), {}, "")], unit(1))
    found = check(path)
    assert not found.damaged
    assert found.sound == len(memory)
