"""Batch: the rows of all running sequences, which in every step read the token drawn last and what was guessed behind.

Letters in shapes: R rows (streams in the batch), N tokens of a pass, B tokens to be drawn, C contexts, D width,
V vocabulary or the wanted part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from racm3.generator.kv_cache import BatchCache, PromptCache, rounded
from racm3.generator.model_runner import ModelRunner
from racm3.generator.prefill import PrefilledGroup
from racm3.generator.sampling import choose, filter_logits, keep_allowed
from racm3.generator.sequence import RunningSequence

__all__ = ["Batch", "Draw", "choose_tokens", "room_of"]

SHARED_TOKENS = 512
"""Tokens saved from which a common beginning is kept once; below, a copy a row is as fast and simpler to batch."""


@dataclass
class _Group:
    """Rows of the batch that share the cache of a beginning, or those of one ``room`` that share none.

    Attention goes over the longest row of a group, so short and long ones are kept apart.
    """

    cache: BatchCache
    room: int  # tokens; 0 if they share a beginning
    owners: list[tuple[RunningSequence, int]]  # whose stream each row is, and which of its streams
    hidden_states: list[Tensor]  # (N, D) in pieces: of the tokens each row read last


class Batch:
    """Sequences join with ``add`` and leave with ``drop_done``; ``decode`` reads the tokens drawn last, and
    the drafts, of which ``settle`` forgets what was wrong."""

    def __init__(self) -> None:
        self.sequences: list[RunningSequence] = []
        self._groups: list[_Group] = []

    def add(
        self,
        runner: ModelRunner,
        prefilled: Sequence[PrefilledGroup],
        owners: Mapping[tuple[int, ...], list[tuple[RunningSequence, int]]],
    ) -> None:
        """Give every stream a row behind its prompt. ``owners``: the (sequence, stream) of each prompt."""
        for length, beginning, prompts in prefilled:
            members = sum(len(owners[prompt.ids]) for prompt in prompts)
            shared = self._new_group(runner, 0, beginning) if (members - 1) * length >= SHARED_TOKENS else None
            for ids, cache, pieces in prompts:
                tokens = len(ids) + max(sequence.request.constraint.max_steps for sequence, _ in owners[ids])
                group = shared or self._common_group(runner, room_of(tokens))
                group.cache.reserve(len(owners[ids]), tokens - length if shared else room_of(tokens))
                for owner in owners[ids]:
                    group.cache.add(cache)
                    group.owners.append(owner)
                    group.hidden_states.append(pieces[-1][-1:])

    def decode(self, runner: ModelRunner) -> None:
        """Every row reads the token drawn last, and the draft behind it."""
        if not self._groups:
            return
        for group in self._groups:
            group.cache.counts = [1 + len(sequence.draft) for sequence, _ in group.owners]
        ids = [id for group in self._groups for sequence, _ in group.owners for id in (sequence.last, *sequence.draft)]
        caches = [group.cache for group in self._groups]
        sizes = [cache.pending for cache in caches]
        read = runner.forward(torch.tensor(ids, device=runner.device), caches)
        for group, piece in zip(self._groups, read.split(sizes), strict=True):
            group.hidden_states = [piece]

    def settle(self) -> None:
        """Forget what was read of drafts and not drawn."""
        for group in self._groups:
            group.cache.take_back([len(sequence.draft) - sequence.right for sequence, _ in group.owners])
        for sequence in self.sequences:
            sequence.draft, sequence.right = [], 0

    @torch.inference_mode()
    def drop_done(self) -> None:
        """Let the rows of sequences that are done go."""
        for group in self._groups:
            done = [row for row, (sequence, _) in enumerate(group.owners) if sequence.done]
            if done:
                group.owners = [group.owners[row] for row in group.cache.drop(done)]
        self._groups = [group for group in self._groups if group.owners]
        self.sequences = [sequence for sequence in self.sequences if not sequence.done]

    def hidden_states(self) -> Tensor:
        """(N, D) of the tokens each row read last; every sequence is told where those of its rows begin."""
        start = 0
        for group in self._groups:
            for sequence, stream in group.owners:
                sequence.rows[stream] = start
                start += 1 + len(sequence.draft)
        pieces = [piece for group in self._groups for piece in group.hidden_states]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _common_group(self, runner: ModelRunner, room: int) -> _Group:
        """The group of rows of this room that share nothing."""
        for group in self._groups:
            if group.room == room:
                return group
        return self._new_group(runner, room, None)

    def _new_group(self, runner: ModelRunner, room: int, shared: PromptCache | None) -> _Group:
        group = _Group(BatchCache(runner.config, runner.cache_dtype, runner.device, shared), room, [], [])
        self._groups.append(group)
        return group


def room_of(tokens: int) -> int:
    """Tokens of room of a row that needs this many: few different numbers, at most a third too many.

    >>> [room_of(tokens) for tokens in (1, 64, 65, 200, 300, 664)]
    [64, 64, 128, 256, 384, 768]
    """
    step = max(rounded(1), 1 << max(0, (tokens - 1).bit_length() - 2))
    return -(-tokens // step) * step


class Draw(NamedTuple):
    """A token to be drawn: of which sequence, how many places behind its last one, and what is allowed there, (V,)."""

    sequence: RunningSequence
    ahead: int
    allowed: np.ndarray


def choose_tokens(draws: Sequence[Draw], logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """From the logits of all streams of each draw, one draw after the other, and what is allowed (B, V): the drawn ids
    (B,) and their log-probabilities (B,)."""
    sequences = [draw.sequence for draw in draws]
    samplings = [sequence.request.sampling for sequence in sequences]
    own: list[range] = []
    other: list[range] = []  # rows of the unconditional streams, or of the sequence's own where it has none
    lone: list[range] = []  # the row of the main document by itself, or those of the sequence's own
    start = 0
    for sequence in sequences:
        contexts, end = len(sequence.request.others) + 1, start + len(sequence.rows)
        own.append(range(start, start + contexts))
        other.append(range(start + contexts, start + 2 * contexts) if sequence.request.guided else own[-1])
        lone.append(range(end - 1, end) if sequence.request.context_aware else own[-1])
        start = end
    conditional = _averaged(logits, own, allowed)  # (B, V)
    unconditional = _averaged(logits, other, allowed) if other != own else None
    without_context = _averaged(logits, lone, allowed) if lone != own else None
    possible = keep_allowed(conditional, allowed)
    greedy = [sampling.temperature == 0 for sampling in samplings]
    plain = unconditional is None and without_context is None and not any(sampling.filters for sampling in samplings)
    if all(greedy) and plain:
        chosen = possible.argmax(-1)  # none of our filters excludes the most probable token
    else:
        scores = filter_logits(conditional, unconditional, without_context, allowed, samplings)
        numbers = [draw.sequence.uniform[draw.sequence.steps + draw.ahead] for draw in draws]
        uniform = torch.tensor(numbers, device=logits.device, dtype=torch.float64)
        chosen = choose(scores, uniform, torch.tensor(greedy, device=logits.device))
    return chosen, possible.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]


def _averaged(logits: Tensor, rows: Sequence[Sequence[int]], allowed: Tensor) -> Tensor:
    """Logits (R, V) of each sequence's rows to (B, V): the logarithm of their mean probability."""
    firsts = [own[0] for own in rows]
    result = logits if firsts == list(range(len(logits))) else logits[firsts]
    for sequence, own in enumerate(rows):
        if len(own) > 1:
            result = result.clone() if result is logits else result
            probable = keep_allowed(logits[list(own)], allowed[sequence]).log_softmax(-1)  # (C, V)
            result[sequence] = probable.logsumexp(0) - math.log(len(own))
    return result
