"""A trained generator under another vocabulary: rows of known tokens move to their new ids, new ones start at a mean.

Letters in shapes: V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from racm3.errors import CheckpointError
from racm3.generator.model import Generator
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["grown", "origins"]

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


def origins(
    vocabulary: Vocabulary,
    text: TextTokenizer,
    old_vocabulary: Vocabulary | None,
    old_text: TextTokenizer,
    same_codes: bool,
) -> list[Sequence[int]]:
    """For every id of ``vocabulary`` the old ids that mean the same: what ``grown`` asks for.

    ``old_vocabulary`` None is a language model's: the ids of ``old_text`` and nothing else. A text token that the old
    tokenizer does not have comes from those that spell it. ``same_codes``: whether old and new image codes mean the
    same. Raises CheckpointError if they are said to, but are not equally many.
    """
    start = old_vocabulary.text_start if old_vocabulary else 0
    found: list[Sequence[int]] = [[i] if old_vocabulary else [] for i in range(vocabulary.text_start)]
    found += [[start + id_ for id_ in ids] for ids in text.spelled_by(old_text)]
    if not (same_codes and old_vocabulary):
        return found + [[]] * vocabulary.image_size
    if old_vocabulary.image_size != vocabulary.image_size:
        sizes = f"{old_vocabulary.image_size} image codes became {vocabulary.image_size}"
        raise CheckpointError(f"{sizes}: these cannot be the same codes; give the image tokenizer it was trained with")
    return found + [[old_vocabulary.image_start + code] for code in range(vocabulary.image_size)]
