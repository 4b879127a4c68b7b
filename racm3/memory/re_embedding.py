"""Re-embedding: the vectors of another encoder for a memory's documents, made bit by bit and put in at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from racm3.data import Item
from racm3.memory.rows import DOCUMENT, About, item_of
from racm3.memory.store import Store

__all__ = ["change_encoder"]

UNIT_TOLERANCE = 1e-3


def change_encoder(
    store: Store,
    about: About,
    embed: Callable[[list[Item]], np.ndarray],
    batch: int,
    report: Callable[[int], None],
) -> None:
    """Replace all vectors by those of the encoder in ``about``. To be called while `Store.writing`.

    What is embedded is kept in a file beside the table, so that the same call goes on where another was broken off.
    """
    snapshot = store.snapshot
    ids = [row["id"] for row in snapshot.scan(["id"])]
    scratch = store.storage.scratch()
    part = scratch / f"re-embed-{about.encoder}-{snapshot.version}.f32"
    for old in scratch.glob("re-embed-*.f32"):
        if old != part:
            old.unlink()
    done = _sound_rows(part, about.dimension)
    with part.open("ab") as file:
        file.truncate(done * 4 * about.dimension)
        items = map(item_of, snapshot.scan(DOCUMENT, start=done))
        while some := list(islice(items, batch)):
            file.write(np.ascontiguousarray(embed(some), np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
            done += len(some)
            report(done)
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    made = (
        np.memmap(part, np.float32, "r", shape=(len(ids), about.dimension)) if ids else np.zeros((0, about.dimension))
    )
    store.set_vectors(about, lambda asked: np.array(made[[row_of.get(i, 0) for i in asked]]))
    part.unlink()


def _sound_rows(file: Path, dimension: int) -> int:
    """How many rows (D,) of unit norm a file of vectors begins with; a power cut may have spoilt the last ones."""
    if not file.exists():
        return 0
    rows = np.fromfile(file, np.float32)
    rows = rows[: len(rows) // dimension * dimension].reshape(-1, dimension)
    spoilt = ~(np.abs(np.linalg.norm(rows, axis=1) - 1) < UNIT_TOLERANCE)
    return int(spoilt.argmax()) if spoilt.any() else len(rows)
