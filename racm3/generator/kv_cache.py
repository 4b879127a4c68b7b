"""Caches: keys and values of the tokens read so far, and attention over them.

    PromptCache  one sequence, read many tokens at a time: a prompt, or the beginning that several prompts share
    BatchCache   many sequences that go on by a few tokens each; they may share a prompt cache, which is then kept once
    PrefixCache  beginnings of earlier prompts, for later ones that begin alike

A runner asks each cache for the positions of its next ``pending`` tokens, has it attend to them layer by layer, and
lets it advance. Stored lengths are rounded up to a multiple of 64 and masked: attention then sums in the same order
whatever else is in the batch (on a CPU), and the mask is built once a step.

Letters in shapes: L layers, R rows, T new tokens, S tokens in the cache, H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from operator import add
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from racm3.generator.model import GeneratorConfig

__all__ = ["BatchCache", "Cache", "PrefixCache", "PromptCache", "rounded", "token_bytes"]

MULTIPLE = 64
"""Tokens to which lengths are rounded up; attention kernels work in vectors of at most 16 numbers and tiles of 64."""

QUERIES = 4
"""Multiple to which queries of a prompt are filled up: one or two left over would be summed in another order."""


def rounded(tokens: int) -> int:
    """The next multiple of ``MULTIPLE``."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def token_bytes(config: GeneratorConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes in a cache."""
    return 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize


class Cache(Protocol):
    """Keys and values of what was read, and the attention over them."""

    @property
    def pending(self) -> int:
        """How many tokens it takes of the next pass."""

    def positions(self) -> Tensor:
        """Prepare for the next pass; the positions (pending,) of its tokens."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k, v (pending, G, E) and return what q (pending, H, E) sees, (pending, H, E)."""

    def advance(self) -> None:
        """Count the tokens of the pass as read."""


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (B, H, T, E) over k, v (B, G, S, E) -> (B, H, T, E)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: -inf where ``hidden``."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)


class PromptCache:
    """One sequence, with room for ``tokens`` in all; ``pending`` of them come next."""

    def __init__(
        self,
        config: GeneratorConfig,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        after: PromptCache | None = None,
    ) -> None:
        """Begins with a copy of what ``after`` holds, if given."""
        shape = (config.layers, config.kv_heads, rounded(tokens), config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (L, G, S, E)
        self.values = torch.zeros_like(self.keys)
        self.length = self.pending = 0
        if after is not None:
            self.length = after.length
            self.keys[:, :, : self.length] = after.keys[:, :, : self.length]
            self.values[:, :, : self.length] = after.values[:, :, : self.length]

    def positions(self) -> Tensor:
        device = self.keys.device
        end = self.length + self.pending
        positions = torch.arange(self.length, end, device=device)
        queries = torch.arange(self.length, self.length + -(-self.pending // QUERIES) * QUERIES, device=device)
        self._mask = _mask(torch.arange(rounded(end), device=device) > queries[:, None], self.keys.dtype)  # (T', S)
        return positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        end = self.length + self.pending
        keys[:, self.length : end] = k.transpose(0, 1)
        values[:, self.length : end] = v.transpose(0, 1)
        queries, until = self._mask.shape
        q = F.pad(q, (0, 0, 0, 0, 0, queries - self.pending)).transpose(0, 1)  # (H, T', E)
        y = _attention(q[None], keys[None, :, :until], values[None, :, :until], self._mask)
        return y[0, :, : self.pending].transpose(0, 1)

    def advance(self) -> None:
        self.length += self.pending

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class PrefixCache:
    """Prompt caches by the ids that they hold, each with the hidden states (T, D) of its tokens: those used last, in
    ``limit_bytes``.

    Nothing is written to a cache that is in here.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._kept: OrderedDict[tuple[int, ...], tuple[PromptCache, Tensor]] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> tuple[PromptCache, Tensor] | None:
        """The cache and the last hidden states of these ids, if they are kept."""
        if ids in self._kept:
            self._kept.move_to_end(ids)
        return self._kept.get(ids)

    def put(self, ids: tuple[int, ...], cache: PromptCache, hidden_states: Tensor) -> None:
        """Keep a prompt's cache; the ones not used for longest make room."""
        self._kept[ids] = cache, hidden_states
        self.nbytes += cache.nbytes + hidden_states.nbytes
        while self.nbytes > self.limit_bytes:
            _, (cache, hidden_states) = self._kept.popitem(last=False)
            self.nbytes -= cache.nbytes + hidden_states.nbytes


class BatchCache:
    """Sequences that go on by a few tokens each, behind one prompt cache that they ``share`` or none.

    Rows join by ``add`` and leave by ``drop``; memory is taken in advance and doubled when it does not suffice.
    ``counts``: the tokens that each row reads in the next pass, usually one; ``take_back`` forgets the last of them.

    In the shapes below, N tokens of a pass: those of the first row, then those of the second, and so on.
    """

    def __init__(
        self, config: GeneratorConfig, dtype: torch.dtype, device: torch.device, shared: PromptCache | None = None
    ) -> None:
        self.shared = shared
        self.keys = torch.zeros(config.layers, 0, config.kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.values = self.keys  # (L, rows with room, G, S with room, E)
        self.lengths: list[int] = []  # tokens of each row, behind the shared prompt
        self.counts: list[int] = []
        self._scale = 1 / math.sqrt(config.head_dim)
        # Of every layer, keys and values with all tokens in one dimension, and those in use, (R, G, S, E). Made again
        # only when a length passes a multiple or rows come and go: slicing costs as much as a small product.
        self._views: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._viewed = (0, 0, 0)
        self._places: Tensor | None = None
        self._rows: Tensor | None = None

    @property
    def pending(self) -> int:
        return sum(self.counts)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for this many more rows, of up to ``tokens`` behind the shared prompt."""
        layers, have_rows, groups, have_tokens, head_dim = self.keys.shape
        used = len(self.lengths)
        room = have_rows if used + rows <= have_rows else max(used + rows, 2 * have_rows)
        length = max(have_tokens, rounded(tokens))
        if (room, length) != (have_rows, have_tokens):
            grown = [part.new_zeros(layers, room, groups, length, head_dim) for part in (self.keys, self.values)]
            grown[0][:, :used, :, :have_tokens] = self.keys[:, :used]
            grown[1][:, :used, :, :have_tokens] = self.values[:, :used]
            self.keys, self.values = grown
            self._viewed = (0, 0, 0)
            self._places = None

    def add(self, prompt: PromptCache) -> None:
        """A row that goes on behind ``prompt``, which begins with the shared one; room is reserved."""
        row, start = len(self.lengths), self.shared.length if self.shared else 0
        length = prompt.length - start
        self.keys[:, row, :, :length] = prompt.keys[:, :, start : prompt.length]
        self.values[:, row, :, :length] = prompt.values[:, :, start : prompt.length]
        self.lengths.append(length)
        self.counts = [1] * len(self.lengths)
        self._places = None

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Let rows go; returns the former numbers of those that stay, in their new order. The last move into gaps."""
        order = list(range(len(self.lengths)))
        for row in sorted(rows, reverse=True):
            last = len(order) - 1
            if row != last:
                order[row] = order[last]
                length = self.lengths[order[row]]
                self.keys[:, row, :, :length] = self.keys[:, last, :, :length]
                self.values[:, row, :, :length] = self.values[:, last, :, :length]
            order.pop()
        self.lengths = [self.lengths[row] for row in order]
        self.counts = [1] * len(self.lengths)
        self._places = None
        return order

    @property
    def longest(self) -> int:
        """Tokens of the longest row after the next pass, the shared ones included."""
        return self._until() + (self.shared.length if self.shared else 0)

    def _until(self) -> int:
        """Tokens of the longest row after the next pass. Raises RuntimeError if it has no room for them."""
        until = max(map(add, self.lengths, self.counts))
        if until > self.keys.shape[3]:
            raise RuntimeError(f"a row of {until} tokens has room for {self.keys.shape[3]}: none was reserved")
        return until

    def _spread(self) -> tuple[Tensor, Tensor]:
        """The row of each token, and how many of its row come before it in this pass: (N,) each."""
        counts = torch.tensor(self.counts)
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        return rows, torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]

    def places(self) -> Tensor:
        """Prepare for the next pass: where each token's row has its keys and values, and how many tokens come before
        it there, as ``Row`` in ``step.c`` says, (N, 10)."""
        if self._places is None:
            own = _place(self.keys, self.values, 0)
            shared = _place(self.shared.keys, self.shared.values, self.shared.length) if self.shared else [0] * 5
            first = torch.tensor(own + shared)
            self._places = first.repeat(len(self.lengths), 1)
            row_bytes = self.keys.stride(1) * self.keys.itemsize
            self._places[:, :2] += torch.arange(len(self.lengths))[:, None] * row_bytes
            self._places[:, _LENGTH] = torch.tensor(self.lengths)
        if self.pending == len(self.lengths):
            return self._places
        rows, before = self._spread()
        places = self._places[rows]
        places[:, _LENGTH] += before
        return places

    def positions(self) -> Tensor:
        _, _, groups, room, _ = self.keys.shape
        device = self.keys.device
        rows, before = (part.to(device) for part in self._spread())
        lengths = torch.tensor(self.lengths, device=device)[rows] + before  # (N,)
        self._rows = rows if len(rows) > len(self.lengths) else None
        tokens = torch.arange(rounded(self._until()), device=device)
        self._mask = _mask(tokens > lengths[:, None], self.keys.dtype)[:, None, None]  # (N, 1, 1, S)
        heads = rows[:, None] * groups + torch.arange(groups, device=device)
        self._target = (heads * room + lengths[:, None]).flatten()  # (N G,), in rows x heads x tokens
        shape = (len(self.lengths), len(tokens), room)
        if shape != self._viewed:
            self._viewed = shape
            self._views = [
                (k.flatten(0, 2), v.flatten(0, 2), k[: shape[0], :, : shape[1]], v[: shape[0], :, : shape[1]])
                for k, v in zip(self.keys, self.values, strict=True)
            ]
        return lengths + self.shared.length if self.shared else lengths

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        store_keys, store_values, keys, values = self._views[layer]
        store_keys.index_copy_(0, self._target, k.flatten(0, 1))
        store_values.index_copy_(0, self._target, v.flatten(0, 1))
        if self._rows is not None:
            keys, values = keys[self._rows], values[self._rows]  # (N, G, S, E)
        if self.shared is None:
            return _attention(q[:, :, None], keys, values, self._mask)[:, :, 0]
        # One softmax over both parts. All queries of a key/value head are one product with the shared prompt.
        groups, length = keys.shape[1], self.shared.length
        q = q.unflatten(1, (groups, -1)) * self._scale  # (R, G, H/G, E)
        per_head = q.shape[2]
        before = self.shared.keys[layer, :, :length], self.shared.values[layer, :, :length]  # (G, S', E)
        scores = torch.cat(
            (
                _turned(torch.bmm(_joined(q), before[0].transpose(1, 2)), per_head),
                torch.matmul(q, keys.transpose(2, 3)) + self._mask,
            ),
            dim=-1,
        )  # (R, G, H/G, S' + S)
        weights = scores.softmax(-1)
        y = torch.matmul(weights[..., length:], values)  # (R, G, H/G, E)
        y += _turned(torch.bmm(_joined(weights[..., :length]), before[1]), per_head)
        return y.flatten(1, 2)

    def advance(self) -> None:
        self._move(self.counts)

    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last so many tokens of each row."""
        if any(counts):
            self._move([-count for count in counts])

    def _move(self, counts: Sequence[int]) -> None:
        self.lengths = list(map(add, self.lengths, counts))
        if self._places is not None:
            self._places.select(1, _LENGTH).add_(torch.tensor(counts))


_LENGTH = 4
"""Column of ``BatchCache.places``."""


def _place(keys: Tensor, values: Tensor, length: int) -> list[int]:
    return [keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.shape[-2], length]


def _joined(x: Tensor) -> Tensor:
    """(R, G, H/G, X) -> (G, R H/G, X)."""
    return x.transpose(0, 1).flatten(1, 2)


def _turned(x: Tensor, per_head: int) -> Tensor:
    """The inverse."""
    return x.unflatten(1, (-1, per_head)).transpose(0, 1)
