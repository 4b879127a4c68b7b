"""Neighbours: those of every document of a memory, on many machines, in the same files as on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from racm3.memory.memory import Memory
from racm3.retriever.corpus_neighbours import PART, MemoryNeighbours
from racm3.retriever.encoder import Encoder
from racm3.scale.pool import Work, Workers, each

__all__ = ["neighbours"]


def neighbours(
    memory: Memory,
    encoder: Path,
    out: Path,
    workers: Workers,
    report: Callable[[int], None] = lambda _: None,
    **asked: Any,
) -> None:
    """`MemoryNeighbours` with the encoder in the folder ``encoder``, the missing parts shared out among ``workers``.

    Paths mean the same on all machines. Workers read all vectors, 4 x N x D bytes, from a file in ``out``, again and
    again: it should fit into each machine's memory. ``report`` is told how many documents are done. Raises what
    `MemoryNeighbours` and `each` do.
    """
    whole = MemoryNeighbours(memory, Encoder.from_pretrained(encoder), out, **asked)
    missing = whole.missing()
    if missing:
        _ = whole.table  # written once, for all workers
    before = -(-len(memory) // PART) - len(missing)
    given = (str(memory.path), encoder, out, {**asked, "device": workers.device})
    for count, _ in enumerate(each(missing, workers, _finding, *given), 1):
        report(min((before + count) * PART, len(memory)))
    whole.finish()


def _finding(path: str, encoder: Path, out: Path, asked: dict[str, Any]) -> Work:
    """What a worker does with the number of a part."""
    model = Encoder.from_pretrained(encoder, device=asked["device"])
    return MemoryNeighbours(Memory.open(path), model, out, **asked).write
