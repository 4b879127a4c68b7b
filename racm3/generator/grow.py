"""A trained generator under another vocabulary: rows of known tokens move to their new ids, new ones start at a mean.

Letters in shapes: V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from racm3.generator.model import Generator

__all__ = ["grown"]

JITTER = 0.01
"""Noise on a new row, in standard deviations of the old table (ours): equal rows would learn alike for a while."""


def grown(old: Generator, origins: Sequence[Sequence[int]], context_tokens: int) -> Generator:
    """``old`` under a vocabulary of ``len(origins)`` ids, everything but the token tables and the context as it was.

    The row of new id ``i`` is the mean of the old rows ``origins[i]``, exactly the old one where there is one; where
    there is none, it is the mean of the whole table and a little noise, drawn from torch's generator.
    """
    new = Generator(replace(old.config, vocabulary_size=len(origins), context_tokens=context_tokens))
    weights = old.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = _grown_table(weights[name], origins)
    if old.config.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    new.load_state_dict(weights)
    return new.to(old.lm_head.weight.dtype)


def _grown_table(table: Tensor, origins: Sequence[Sequence[int]]) -> Tensor:
    """(V, D) rows for ``origins`` from the rows of ``table``."""
    counts = torch.tensor([len(ids) for ids in origins])
    flat = torch.tensor([id_ for ids in origins for id_ in ids], dtype=torch.long)
    rows = table.new_zeros(len(origins), table.shape[1])
    rows.index_add_(0, torch.arange(len(origins)).repeat_interleave(counts), table[flat])
    rows /= counts.clamp(min=1)[:, None]
    fresh = counts == 0
    rows[fresh] = table.mean(0) + JITTER * table.std(0) * torch.randn(int(fresh.sum()), table.shape[1])
    return rows
