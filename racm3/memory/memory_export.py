"""Export: the documents of a memory as files, whole or not at all, from which the same memory can be made again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from racm3.data.exported import write_shards
from racm3.data.item import Item
from racm3.errors import InputError
from racm3.memory.memory import Memory
from racm3.util.s3 import is_remote

__all__ = ["export"]

MARKER = ".racm3-export.json"
"""Says that a folder is an export, of which memory, and which files are its own."""


def export(memory: Memory, out: str | Path, report: Callable[[int], None] = lambda _: None) -> list[Path]:
    """Write all documents to ``out`` as shards (`racm3.data.exported`), from which `racm3 memory create` makes an equal
    memory; the shards.

    They are written beside ``out`` and then take its place, so that ``out`` is there as a whole or as it was. An
    earlier export of this memory is replaced; anything else that lies there is left alone. ``report`` is told how many
    documents are done. Raises InputError if ``out`` holds anything else, MemoryStoreError if a document is damaged.
    """
    if is_remote(out):
        raise InputError(f"an export is written to a folder, but {out} was given; copy it there afterwards")
    folder, source = Path(out).resolve(), str(memory.path if is_remote(memory.path) else Path(memory.path).resolve())
    part, old = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")
    if Path(source) in (folder, *folder.parents):
        raise InputError(f"{out} is the memory's own folder, or inside of it; give another one")
    if _is_ours(old, source) and not folder.exists():
        old.rename(folder)  # an earlier call was broken off between its last two steps
    for place in (folder, part, old):
        _check_free(place, source)
    for leftover in (part, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    part.mkdir(parents=True)
    try:
        _mark(part, source, [], 0)
        memory.refresh()
        count = len(memory)
        shards = write_shards(_counted(memory.items(), report), part)
        _mark(part, source, [shard.name for shard in shards], count)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return [folder / shard.name for shard in shards]


def _counted(items: Iterator[Item], report: Callable[[int], None]) -> Iterator[Item]:
    for done, item in enumerate(items, start=1):
        yield item
        report(done)


def _mark(folder: Path, source: str, shards: list[str], documents: int) -> None:
    told = {"export of": source, "documents": documents, "shards": shards}
    with (folder / MARKER).open("w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _flush(folder)


def _marked(folder: Path) -> dict[str, Any] | None:
    try:
        told = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and "export of" in told else None


def _is_ours(folder: Path, source: str) -> bool:
    told = _marked(folder)
    return told is not None and told["export of"] == source


def _check_free(folder: Path, source: str) -> None:
    """Raises InputError unless nothing lies there, or an export of the same memory and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the path of a folder to export to")
    there = set(os.listdir(folder))
    told = _marked(folder)
    if told is None:
        if there:
            raise InputError(
                f"{folder} is not empty, and was not written by `racm3 memory export`; give a new folder, or empty it"
            )
        return
    if told["export of"] != source:
        raise InputError(f"{folder} holds an export of the memory {told['export of']}; give a new folder")
    unfinished = not told["shards"]
    foreign = {name for name in there - {MARKER, *told["shards"]} if not (unfinished and name.endswith(".tar"))}
    if foreign:
        raise InputError(
            f"{folder} holds {min(foreign)!r} beside an earlier export, with which it would be deleted; move that "
            "away, or give a new folder"
        )


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
