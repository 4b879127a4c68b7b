from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path

import pytest

from racm3.errors import SourceError
from racm3.training.prepared_cache import Cache
from racm3.util.s3 import Remote

numbers = count()


def make(path: Path) -> None:
    """A folder of two files."""
    (path / "inner").mkdir(parents=True)
    (path / "array").write_bytes(b"array" * 1000)
    (path / "inner" / "empty").touch()


def same(path: Path) -> bool:
    return (path / "array").read_bytes() == b"array" * 1000 and (path / "inner" / "empty").read_bytes() == b""


@pytest.fixture
def place(bucket: str) -> str:
    return f"{bucket}/cache/{next(numbers)}"


def machine(folder: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The cache as a machine sees it whose own disk is ``folder``."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return Cache(place)


def never(path: Path) -> None:
    raise AssertionError(f"{path} was made again")


def test_a_folder_keeps_what_was_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.made("thing", "thing", make) == "thing"
    assert cache.made("thing", "thing", never) == "thing"
    assert same(cache.there("thing"))
    assert cache.there("thing") == tmp_path / "cache" / "thing"
    with pytest.raises(SourceError, match="which is not on this machine; prepare in a folder that all machines share"):
        cache.there("other")


def test_machines_fetch_what_one_made(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine(tmp_path / "one", place, monkeypatch)
    one.made("thing", "thing", make)
    one.made("file", "file", lambda path: path.write_bytes(b"words"))
    two = machine(tmp_path / "two", place, monkeypatch)
    assert same(two.there("thing"))
    assert two.made("file", "file", never) == "file"
    assert two.there("file").read_bytes() == b"words"
    assert {path.name for path in two.folder.iterdir()} >= {"thing", "file"}
    assert two.folder.is_relative_to(tmp_path / "two")
    assert not list(two.folder.glob("*.fetched"))
    for file in (Remote(place) / "thing").files():
        with file.open("wb"):
            pass
    assert same(two.there("thing"))  # fetched once


@pytest.mark.parametrize("damage", [b"array" * 999, b"other" * 1000])
def test_what_was_damaged_is_not_used(
    damage: bytes, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path / "one", place, monkeypatch).made("thing", "thing", make)
    with (Remote(place) / "thing" / "array").open("wb") as stream:
        stream.write(damage)
    two = machine(tmp_path / "two", place, monkeypatch)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"thing/array is damaged: .* delete s3://.*/thing.files.json"):
            two.there("thing")


def test_a_kill_before_the_list_was_written(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine(tmp_path / "one", place, monkeypatch)
    one.folder.mkdir(parents=True)
    make(one.folder / "thing")  # made, but never kept
    one.made("thing", "thing", never)
    assert same(machine(tmp_path / "two", place, monkeypatch).there("thing"))
