"""Codes as digits: what the generator knows of an image code is a sum over the digits of it, and a little of its own.

A code of finite scalar quantisation is a handful of digits, and a code never met in training shares each of them with
codes that were. While it is trained, the generator's table is therefore

    row of a code = sum of a row for each of its digits + a row of its own

and ``plain`` writes it out as the ordinary table, so that what is saved is the ordinary model.

V vocabulary, D width, G digits of all places together.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racm3.generator.model import INIT_STD, Generator, GeneratorConfig
from racm3.tokens.image_tokenizer import FSQ
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["DigitGenerator", "from_plain", "plain"]


class DigitTable(nn.Module):
    """The table of a vocabulary whose last ids are FSQ codes; it replaces ``nn.Embedding`` and ``nn.Linear``."""

    chosen: Tensor

    def __init__(self, vocabulary: Vocabulary, levels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.levels = levels
        fsq = FSQ(levels)
        digits = fsq.digits_of(torch.arange(vocabulary.image_size))  # (codes, places)
        starts = torch.tensor([sum(levels[:place]) for place in range(len(levels))])
        chosen = F.one_hot(digits + starts, sum(levels)).sum(1).float()  # (codes, G)
        self.register_buffer("chosen", chosen, persistent=False)
        self.own = nn.Parameter(torch.empty(vocabulary.size, width).normal_(std=INIT_STD))
        with torch.no_grad():
            self.own[vocabulary.image_start :] *= 0.25
        # Neighbouring digits mean neighbouring colours: they begin near one another.
        rows = []
        for level in levels:
            direction = torch.randn(width)
            value = torch.linspace(-1, 1, level)[:, None]
            rows.append(INIT_STD / math.sqrt(len(levels)) * (value * direction * 1.2 + 0.6 * torch.randn(level, width)))
        self.digits = nn.Parameter(torch.cat(rows))  # (G, D)
        self.text_size = vocabulary.image_start

    @property
    def weight(self) -> Tensor:
        """(V, D)"""
        codes = self.own[self.text_size :] + self.chosen @ self.digits
        return torch.cat((self.own[: self.text_size], codes))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class _Head(nn.Module):
    """The same table as the output projection."""

    def __init__(self, table: DigitTable) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple, so that its weights are not counted twice

    @property
    def weight(self) -> Tensor:
        return self._table[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


class DigitGenerator(Generator):
    """A generator with tied embeddings whose table is a ``DigitTable``: for training alone."""

    def __init__(self, config: GeneratorConfig, vocabulary: Vocabulary, levels: tuple[int, ...]) -> None:
        super().__init__(replace(config, tie_embeddings=True))
        table = DigitTable(vocabulary, levels, config.width)
        self.model.embed_tokens = table  # type: ignore[assignment]
        self.lm_head = _Head(table)  # type: ignore[assignment]

    @property
    def table(self) -> DigitTable:
        return cast(DigitTable, self.model.embed_tokens)


@torch.no_grad()
def plain(generator: DigitGenerator) -> Generator:
    """The same function as an ordinary generator."""
    result = Generator(generator.config)
    weights = {name: value for name, value in generator.state_dict().items() if "embed_tokens" not in name}
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = generator.table.weight
    result.load_state_dict(weights)
    return result.eval()


@torch.no_grad()
def from_plain(trained: Generator, vocabulary: Vocabulary, levels: tuple[int, ...]) -> DigitGenerator:
    """The inverse of ``plain``, to go on from: the digits' rows are those that explain most of the table."""
    result = DigitGenerator(trained.config, vocabulary, levels)
    table = result.table
    rows = trained.model.embed_tokens.weight
    codes = rows[vocabulary.image_start :]
    table.digits.copy_(torch.linalg.lstsq(table.chosen, codes, driver="gelsd").solution)
    table.own.copy_(rows)
    table.own[vocabulary.image_start :] = codes - table.chosen @ table.digits
    weights = {name: value for name, value in trained.state_dict().items() if "embed_tokens" not in name}
    weights.pop("lm_head.weight", None)
    result.load_state_dict(weights, strict=False)
    return result
