"""What makes retrieved documents good: relevance, no redundancy, and a query that does not give everything away.

From paper.md: walk down the ranking and skip a candidate that is too similar to the query or to one already taken; in
training, drop 20 % of the query.

Letters: B batch, C candidates, D dimension, K retrieved documents, N items, Q queries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from racm3.document import Document, Image, Part, Text

__all__ = ["QUERY_DROPOUT", "drop_query", "neighbours", "select"]

QUERY_DROPOUT = 0.2
"""Share of a query that is dropped in training. Source: the talk's "query dropout"."""
PATCH_PX = 8
"""Side of the squares that stand for the tokens of a picture (ours: the stride of the built-in image tokenizer)."""
GREY = 128
CANDIDATES = 64
"""Best items of a ranking that are looked at first (ours: K is 2, so redundant items rarely fill the first 64, and a
top-64 costs little beside the matmul)."""
GROWTH = 8
"""How many times more are looked at, again and again, where those did not suffice."""
BLOCK = 512
"""Queries scored at once: 512 x 1M scores are 2 GB, 512 x 40k are 80 MB."""


def select(scores: np.ndarray, vectors: np.ndarray, k: int, threshold: float) -> list[int]:
    """Positions of up to ``k`` candidates that are relevant and different, best first.

    ``scores`` (C,) are the candidates' similarities to the query, best first; ``vectors`` (C, D) are theirs, of unit
    norm. A candidate more similar than ``threshold`` to the query or to one already taken is skipped.
    """
    taken: list[int] = []
    for candidate in range(len(scores)):
        if len(taken) == k:
            break
        redundant = scores[candidate] > threshold or (vectors[taken] @ vectors[candidate] > threshold).any()
        if not redundant:
            taken.append(candidate)
    return taken


def drop_query(document: Document, rate: float, rng: np.random.Generator) -> Document:
    """The document with each word, and each 8 px square of a picture, dropped with probability ``rate``.

    Dropped squares become grey. Every part keeps at least one word or square, so a query is never empty.
    """
    return Document(tuple(_drop(part, rate, rng) for part in document.parts))


def _drop(part: Part, rate: float, rng: np.random.Generator) -> Part:
    if isinstance(part, Text):
        words = part.visible.split()
        kept = _kept(len(words), rate, rng)
        return Text(" ".join(word for word, keep in zip(words, kept, strict=True) if keep))
    if isinstance(part, Image):
        height, width = part.pixels.shape[:2]
        rows, columns = -(-height // PATCH_PX), -(-width // PATCH_PX)
        squares = _kept(rows * columns, rate, rng).reshape(rows, columns)
        kept = squares.repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)[:height, :width]
        return Image(np.where(kept[..., None], part.pixels, np.uint8(GREY)), part.mask)
    return part


def _kept(count: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) bool: what stays; at least one does."""
    kept = rng.random(count) >= rate
    kept[rng.integers(count)] |= not kept.any()
    return kept


@torch.inference_mode()
def neighbours(
    queries: np.ndarray,
    vectors: np.ndarray,
    k: int,
    threshold: float,
    exclude_rows: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """`select` for every one of ``queries`` (Q, D) over all ``vectors`` (N, D): (Q, k) int64 rows, -1 where none.

    ``exclude_rows`` (Q,) names a row that a query may not have (its own document), or -1. Streamed as blocks of matrix
    products; the result is that of walking down each full ranking.
    """
    table = torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).to(device)  # (N, D)
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)  # (Q, D)
    own = np.full(len(asked), -1) if exclude_rows is None else np.asarray(exclude_rows)
    excluded = torch.from_numpy(own.astype(np.int64)).to(device)
    found = torch.full((len(asked), k), -1, dtype=torch.int64, device=device)
    pending = torch.arange(len(asked), device=device)
    candidates = min(CANDIDATES, len(table))
    while k > 0 and candidates > 0 and len(pending):
        for rows in pending.split(max(1, BLOCK * CANDIDATES // max(candidates, CANDIDATES))):
            found[rows] = _walk(asked[rows], table, k, threshold, excluded[rows], candidates)
        if candidates == len(table):
            break
        pending = pending[found[pending, -1] < 0]  # their first candidates did not suffice: look further down
        candidates = min(candidates * GROWTH, len(table))
    return found.cpu().numpy()


def _walk(queries: Tensor, table: Tensor, k: int, threshold: float, excluded: Tensor, candidates: int) -> Tensor:
    """(B, k) rows of ``table`` (N, D) for ``queries`` (B, D), -1 where the best ``candidates`` do not suffice."""
    scores = queries @ table.T  # (B, N)
    own = (excluded >= 0).nonzero().squeeze(1)
    scores[own, excluded[own]] = -torch.inf
    _, rows = scores.topk(candidates)  # (B, C)
    rows, _ = rows.sort(dim=1)
    best, order = scores.gather(1, rows).sort(dim=1, descending=True, stable=True)  # equal scores go by row
    rows = rows.gather(1, order)
    vectors = table[rows]  # (B, C, D)
    free = (best <= threshold) & (best > -torch.inf)  # (B, C): neither redundant nor excluded
    taken = torch.full((len(queries), k), -1, dtype=torch.int64, device=table.device)
    every = torch.arange(len(queries), device=table.device)
    for step in range(min(k, candidates)):
        first = free.int().argmax(dim=1)  # (B,): the best candidate that is free, if there is one
        taken[:, step] = torch.where(free[every, first], rows[every, first], -1)
        similar = torch.einsum("bcd,bd->bc", vectors, vectors[every, first])
        free &= similar <= threshold
        free[every, first] = False
    return taken
