"""Neighbours: for every document of a corpus, the diverse documents that training retrieves for it.

Asked for a whole corpus at once, they are streamed blocks of matrix products, never a loop over single searches.

Letters: B batch, C candidates, D dimension, K neighbours, N documents, Q queries, R query draws of a document (for each
dropout rate, the text part's and then the picture part's).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from racm3.document import Document, Modality
from racm3.errors import InputError
from racm3.memory.candidates import Candidates
from racm3.memory.memory import Memory
from racm3.retriever.choosing import strategy_for
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import (
    CANDIDATES,
    GROWTH,
    QUERY_DROPOUT,
    Choosing,
    RelevanceRedundancy,
    Strategy,
    cache_key,
    drop_query,
)

__all__ = ["MemoryNeighbours", "copied", "document_neighbours", "draw_queries", "memory_neighbours", "neighbours"]

QUERIES_AT_ONCE = {"cpu": 512, "cuda": 8192}
"""For so many a block of documents is brought to the device: a GPU computes with it for longer than it waits for it."""
TABLE_AT_ONCE = 65_536
"""Documents scored at once: on a CPU 512 x 65,536 scores are 134 MB, in one piece of memory for all blocks: memory that
is new each time makes the product take twice as long."""
WALKED_AT_ONCE = 32
"""Queries whose candidates' vectors are gathered at once: 32 x 64 x 512 numbers are 4 MB, which a cache holds."""
GROUP = 16
"""Scores of which only the largest is ranked at first: a tenth of the time of ranking all."""
PART = 4096
"""Documents a file: what a broken run does again, at most."""
EMBEDDED_AT_ONCE = 512
SCHEMA = pa.schema(
    {"id": pa.string(), "query": pa.string(), "dropout": pa.float64(), "neighbours": pa.list_(pa.string())}
)
PAIRS: tuple[tuple[Modality, Modality], ...] = (("text", "image"), ("image", "text"))


@torch.inference_mode()
def neighbours(
    queries: np.ndarray,
    vectors: np.ndarray | Tensor,
    k: int,
    strategy: Strategy,
    exclude_rows: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    copies: float | None = None,
) -> np.ndarray:
    """`Strategy.select` for each of ``queries`` (Q, D) over all ``vectors`` (N, D): (Q, k) int64 rows, -1 where none.

    ``exclude_rows`` (Q,) names a row that a query may not have (its own document), or -1. It may not have rows that are
    more similar than ``copies`` to that one either: whole against whole, for a part of a document is never as similar
    to a copy of the whole. The result is that of walking down each full ranking. ``vectors`` stay where they are, in
    memory or in a mapped file; what is scored goes to ``device`` a block at a time.
    """
    table = torch.as_tensor(vectors, dtype=torch.float32)  # (N, D)
    asked = torch.as_tensor(queries, dtype=torch.float32, device=device)  # (Q, D)
    own = np.full(len(asked), -1) if exclude_rows is None else np.asarray(exclude_rows)
    excluded = torch.as_tensor(own, dtype=torch.int64, device=device)
    found = torch.full((len(asked), k), -1, dtype=torch.int64, device=device)
    pending = torch.arange(len(asked), device=device)
    candidates = min(CANDIDATES, len(table))
    at_once = QUERIES_AT_ONCE[asked.device.type]
    scratch = asked.new_empty(min(at_once, len(asked)), min(TABLE_AT_ONCE, len(table)))
    while k > 0 and candidates > 0 and len(pending):
        for rows in pending.split(max(1, at_once * CANDIDATES // max(candidates, CANDIDATES))):
            scores, best = _best(asked[rows], table, excluded[rows], candidates, scratch)
            walked = [some.split(WALKED_AT_ONCE) for some in (rows, scores, best)]
            for here, here_scores, here_best in zip(*walked, strict=True):
                main = table[excluded[here].clamp(min=0).to(table.device)].to(asked.device)  # (b, D)
                found[here] = _walk(here_scores, here_best, table, k, strategy, main, excluded[here] >= 0, copies)
        if candidates == len(table):
            break
        pending = pending[found[pending, -1] < 0]  # their first candidates did not suffice: look further down
        candidates = min(candidates * GROWTH, len(table))
    return found.cpu().numpy()


def _best(queries: Tensor, table: Tensor, excluded: Tensor, candidates: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and rows of ``table`` (N, D), (B, C) each, that are nearest to ``queries`` (B, D), best first.

    Equal scores go by row; the ``excluded`` (B,) row is at -inf. Scores are written to ``scratch``.
    """
    best = queries.new_empty((len(queries), 0))
    rows = excluded.new_empty((len(queries), 0))
    for start in range(0, len(table), TABLE_AT_ONCE):
        block = table[start : start + TABLE_AT_ONCE].to(queries.device)
        scores = torch.mm(queries, block.T, out=scratch[: len(queries), : len(block)])  # (B, n)
        own = ((excluded >= start) & (excluded < start + scores.shape[1])).nonzero().squeeze(1)
        scores[own, excluded[own] - start] = -torch.inf
        columns = _promising(scores, candidates)
        rows = torch.cat([rows, columns + start], dim=1)
        best = torch.cat([best, scores.gather(1, columns)], dim=1)
        if rows.shape[1] > candidates:
            best, kept = best.topk(candidates)
            rows = rows.gather(1, kept)
    rows, order = rows.sort(dim=1)
    best, by_score = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, rows.gather(1, by_score)


def _promising(scores: Tensor, count: int) -> Tensor:
    """Columns of ``scores`` (B, n) among which are the ``count`` largest of each row, (B, at least count)."""
    width = scores.shape[1] // GROUP
    every = torch.arange(scores.shape[1], device=scores.device)
    if width < 2 * count:
        return every.expand(len(scores), -1)
    # The largest lie in the groups with the largest maxima. A group is every width-th column: that reads in order.
    groups = scores[:, : width * GROUP].view(-1, GROUP, width).amax(dim=1).topk(count).indices  # (B, count)
    inside = groups[:, :, None] + every[:GROUP] * width  # (B, count, GROUP)
    return torch.cat([inside.flatten(1), every[width * GROUP :].expand(len(scores), -1)], dim=1)


def _walk(
    scores: Tensor,
    rows: Tensor,
    table: Tensor,
    k: int,
    strategy: Strategy,
    main: Tensor,
    has_main: Tensor,
    copies: float | None,
) -> Tensor:
    """(B, k) of the ranked ``rows`` (B, C) with their ``scores``: those that are selected; -1 for what lacks.

    ``main`` (B, D) are the documents that the queries are parts of, where they have one; ``copies`` of it are skipped.
    """
    vectors = table[rows.to(table.device)].to(rows.device)  # (B, C, D)
    if copies is not None:
        copied = (torch.einsum("bcd,bd->bc", vectors, main) > copies) & has_main[:, None]
        scores = scores.masked_fill(copied, -torch.inf)
    if isinstance(strategy, RelevanceRedundancy):  # all queries at once
        return _different(scores, rows, vectors, k, strategy.threshold)
    taken = torch.full((len(rows), k), -1, dtype=torch.int64, device=rows.device)
    for i in range(len(rows)):
        (left,) = torch.nonzero(scores[i] > -torch.inf, as_tuple=True)
        own = Candidates(
            scores[i, left].cpu().numpy(),
            vectors[i, left].cpu().numpy(),
            main=main[i].cpu().numpy() if bool(has_main[i]) else None,
        )
        if isinstance(strategy, Choosing):
            chosen = strategy.choose(own, k)
        else:
            chosen = strategy.select(own.scores, own.vectors, k)
        taken[i, : len(chosen)] = rows[i, left[chosen]]
    return taken


def _different(scores: Tensor, rows: Tensor, vectors: Tensor, k: int, threshold: float) -> Tensor:
    """`RelevanceRedundancy.select` for each of B queries: (B, k) of ``rows`` (B, C), whose vectors are (B, C, D)."""
    free = (scores <= threshold) & (scores > -torch.inf)  # (B, C): neither redundant nor excluded
    taken = torch.full((len(rows), k), -1, dtype=torch.int64, device=rows.device)
    every = torch.arange(len(rows), device=rows.device)
    for step in range(min(k, rows.shape[1])):
        first = free.int().argmax(dim=1)  # (B,): the best candidate that is free, if there is one
        taken[:, step] = torch.where(free[every, first], rows[every, first], -1)
        if step + 1 < k:
            similar = torch.einsum("bcd,bd->bc", vectors, vectors[every, first])
            free &= similar <= threshold
            free[every, first] = False
    return taken


def draw_queries(
    documents: Sequence[Document], encoder: Encoder, dropouts: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """(B, R, D): for each of ``dropouts``, the query of the text part and of the picture part, so much of it dropped.

    Where a document lacks one part, the other stands for it.
    """
    columns = []
    for dropout in dropouts:
        for first, second in PAIRS:
            parts = [part for d in documents if (part := d.only(first) or d.only(second))]
            columns.append(encoder.embed([drop_query(part, dropout, rng) if dropout else part for part in parts]))
    return np.stack(columns, axis=1)


def document_neighbours(
    queries: np.ndarray,
    vectors: np.ndarray | Tensor,
    first: int,
    k: int,
    strategy: Strategy,
    device: str | torch.device = "cpu",
    copies: float | None = None,
) -> np.ndarray:
    """(B, R, k) rows: `neighbours` for the ``queries`` (B, R, D) of the documents in the rows from ``first`` on."""
    flat = np.ascontiguousarray(queries).reshape(-1, queries.shape[-1])
    own = np.repeat(np.arange(first, first + len(queries)), queries.shape[1])
    return neighbours(flat, vectors, k, strategy, own, device, copies).reshape(*queries.shape[:2], k)


@torch.inference_mode()
def copied(vectors: np.ndarray | Tensor, threshold: float, device: str | torch.device = "cpu") -> int:
    """How many of the documents, ``vectors`` (N, D), have another one that is more similar than ``threshold``."""
    table = torch.as_tensor(vectors, dtype=torch.float32)
    found = 0
    for first in range(0, len(table), QUERIES_AT_ONCE["cpu"]):
        rows = table[first : first + QUERIES_AT_ONCE["cpu"]].to(device)
        same = torch.zeros(len(rows), dtype=torch.int64, device=device)  # itself, and others
        for start in range(0, len(table), TABLE_AT_ONCE):
            same += (rows @ table[start : start + TABLE_AT_ONCE].to(device).T > threshold).sum(dim=1)
        found += int((same > 1).sum())
    return found


class MemoryNeighbours:
    """The neighbours of every document of a memory, as Parquet files of ``PART`` documents each in the folder ``out``.

    Columns: id; query, "text" or "image"; dropout; neighbours, up to ``k`` ids, best first. Parts may be written in any
    order, by any number of processes. Raises EncoderMismatchError if another encoder made the memory, InputError if
    ``out`` holds neighbours of other documents or settings.
    """

    def __init__(
        self,
        memory: Memory,
        encoder: Encoder,
        out: Path,
        *,
        k: int = 2,
        dropouts: Sequence[float] = (0.0, QUERY_DROPOUT),
        seed: int = 0,
        device: str | torch.device = "cpu",
        strategy: Strategy | None = None,
    ) -> None:
        memory.check_encoder(encoder.fingerprint)
        memory.refresh()
        self._memory, self._encoder, self._out, self._device = memory, encoder, out, device
        self._k, self._dropouts, self._seed = k, tuple(dropouts), seed
        self._strategy = strategy or strategy_for(encoder)
        self._ids = list(memory.ids)
        settings = {
            "documents": hashlib.blake2b(json.dumps(self._ids).encode(), digest_size=8).hexdigest(),
            "encoder": encoder.fingerprint,
            **cache_key(self._strategy),
            "copies": encoder.copy_threshold,
            "k": k,
            "dropouts": list(dropouts),
            "seed": seed,
        }
        _keep(settings, out / "_settings.json")  # Parquet readers pass over names with _

    def missing(self) -> list[int]:
        """The parts that are not written yet."""
        return [part for part in range(-(-len(self._ids) // PART)) if not self._file(part).exists()]

    def write(self, part: int, report: Callable[[int], None] = lambda _: None) -> None:
        """Find and write the neighbours of one part; ``report`` is told in which row of the memory it is."""
        first = part * PART
        items = islice(self._memory.items(first), PART)
        rng = np.random.default_rng((self._seed, part))  # the same draws, wherever a run was broken off
        drawn: list[np.ndarray] = []
        done = first
        while some := [item.document for item in islice(items, EMBEDDED_AT_ONCE)]:
            drawn.append(draw_queries(some, self._encoder, self._dropouts, rng))
            done += len(some)
            report(done)
        queries = np.concatenate(drawn)  # (B, R, D)
        copies = self._encoder.copy_threshold
        found = document_neighbours(queries, self.table, first, self._k, self._strategy, self._device, copies)
        kinds = [(kind, dropout) for dropout in self._dropouts for kind, _ in PAIRS]  # R of them
        columns = {
            "id": np.repeat(self._ids[first:done], len(kinds)).tolist(),
            "query": [kind for kind, _ in kinds] * len(queries),
            "dropout": [dropout for _, dropout in kinds] * len(queries),
            "neighbours": [[self._ids[row] for row in some if row >= 0] for drawn in found for some in drawn],
        }
        unfinished = self._out / f"_{part:06d}"
        with unfinished.open("wb") as file:
            pq.write_table(pa.table(columns, schema=SCHEMA), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._file(part))

    def _file(self, part: int) -> Path:
        return self._out / f"{part:06d}.parquet"

    @cached_property
    def table(self) -> np.ndarray:
        """(N, D) vectors, in a file of ``out`` that all processes of a machine share, however large it is."""
        file = self._out / "_vectors.npy"
        if not file.exists():
            unfinished = self._out / f"_vectors-{uuid.uuid4().hex}"
            made = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(self._ids), self._memory.dimension))
            row = 0
            for some in self._memory.vector_blocks():
                made[row : row + len(some)] = some
                row += len(some)
            del made
            unfinished.replace(file)
        return np.load(file, mmap_mode="c")

    def finish(self) -> None:
        """Delete what only the work needed."""
        (self._out / "_vectors.npy").unlink(missing_ok=True)


def memory_neighbours(
    memory: Memory, encoder: Encoder, out: Path, *, report: Callable[[int], None] = lambda _: None, **asked: Any
) -> None:
    """Write all `MemoryNeighbours`. The same call goes on where another was broken off.

    ``report`` is told how many documents are done.
    """
    whole = MemoryNeighbours(memory, encoder, out, **asked)
    for part in whole.missing():
        whole.write(part, report)
    whole.finish()


def _keep(settings: dict[str, Any], file: Path) -> None:
    """Write the settings, or see that they are those that are there. Raises InputError if they are not."""
    if file.exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        if changed := [key for key in settings if there.get(key) != settings[key]]:
            raise InputError(
                f"{file.parent} holds neighbours found with other {', '.join(changed)}; give a new folder, or delete it"
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings) + "\n", encoding="utf-8")
