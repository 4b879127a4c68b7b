"""Embed: fill a memory from shards on many machines.

Workers read a piece of the data each (a shard), embed it, and write it beside the memory's table; this process alone
adds what they wrote, a commit a minute. What is added is on disk, and the same call again passes over it unembedded.
(lance-ray's own writer commits once, at the end, and flushes nothing: a kill would lose everything.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from racm3.data import Item, Skipped, Source
from racm3.errors import SourceError
from racm3.memory.memory import Memory
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import Changes, batches, remember_kinds
from racm3.scale.pool import Work, Workers, each

__all__ = ["embed"]

COMMIT_S = 60.0
"""Time between two commits (ours): what a kill loses at most, beside the pieces in work. Each makes a version, and a
version lists all fragments."""


def embed(
    memory: Memory,
    encoder: Path,
    sources: Sequence[Source],
    workers: Workers,
    skip: Callable[[Skipped], None] = lambda _: None,
    report: Callable[[int], None] = lambda _: None,
) -> Changes:
    """Embed the documents of ``sources`` with the encoder in the folder ``encoder`` and add them, as `remember` does.

    Paths mean the same on all machines. Broken items are given to ``skip``, and so is an item whose id is there with
    other content: the first one stays. ``report`` is told how many documents were looked at. Until this returns, no
    other process can write. Raises EncoderMismatchError if another encoder made the memory, InputError as `each` does.
    """
    memory.check_encoder(Encoder.from_pretrained(encoder).fingerprint)
    done, pieces = Changes(), [piece for source in sources for piece in source.pieces()]
    with memory.writing():
        while pieces:
            pieces = _round(memory, encoder, pieces, workers, done, skip, report)
        memory.compact(thorough=False)
        memory.tidy()
    for source in sources:
        for skipped in source.unread():
            skip(skipped)
    remember_kinds(memory, [told for source in sources for told in source.told])
    return done


def _round(
    memory: Memory,
    encoder: Path,
    pieces: Sequence[Source],
    workers: Workers,
    done: Changes,
    skip: Callable[[Skipped], None],
    report: Callable[[int], None],
) -> list[Source]:
    """Do all pieces; returns those that have to be done again, as another one brought an id of theirs meanwhile."""
    again, staged, added, committed = list[Source](), list[str](), set[int](), time.monotonic()
    try:
        for number, made in each(pieces, workers, _embedding, str(memory.path), encoder, workers.device):
            ids = set(map(hash, made["ids"]))
            if not added.isdisjoint(ids):
                again.append(pieces[number])
                continue
            added |= ids
            staged += made["staged"]
            done.added += len(made["ids"])
            done.unchanged += made["unchanged"]
            for skipped in made["skipped"]:
                skip(Skipped(**skipped))
            report(done.added + done.unchanged)
            if staged and time.monotonic() - committed > COMMIT_S:
                memory.append(staged)
                staged, committed = [], time.monotonic()
    finally:
        if staged:
            memory.append(staged)
    return again


def _embedding(path: str, encoder_folder: Path, device: str) -> Work:
    """What a worker does with a piece."""
    memory, encoder = Memory.open(path), Encoder.from_pretrained(encoder_folder, device=device)

    def work(piece: Source) -> dict[str, Any]:
        ids, skipped, unchanged = list[str](), list[Skipped](), 0

        def items() -> Iterator[Item]:
            try:
                yield from piece.read(report=skipped.append)
            except SourceError as error:  # the only file of a piece is one of many
                skipped.append(Skipped(piece.path, str(error)))

        def embedded() -> Iterator[tuple[list[Item], np.ndarray]]:
            nonlocal unchanged
            for batch in batches(items()):
                other = memory.unlike(batch)
                unchanged += len(batch) - len(other)
                clash = memory.known([item.id for item in other])
                reason = "its id is in the memory already, with other content"
                skipped.extend(Skipped(item.origin, reason) for item in other if item.id in clash)
                if new := [item for item in other if item.id not in clash]:
                    ids.extend(item.id for item in new)
                    yield new, encoder.embed([item.document for item in new])

        staged = memory.stage(embedded())
        return {"ids": ids, "staged": staged, "unchanged": unchanged, "skipped": [asdict(skip) for skip in skipped]}

    return work
