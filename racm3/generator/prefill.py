"""Prefill: prompts are read into caches, what several have in common once.

Letters in shapes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from racm3.generator.kv_cache import PrefixCache, PromptCache
from racm3.generator.model_runner import ModelRunner
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["PrefilledGroup", "prefill"]

PREFILL_TOKENS = 4096
"""Prompt tokens read in one pass: more makes it no faster, and takes more memory."""

Ids = tuple[int, ...]


class PrefilledPrompt(NamedTuple):
    """A prompt, its cache, and the hidden states (T, D) of its tokens in pieces."""

    ids: Ids
    cache: PromptCache
    hidden_states: list[Tensor]


class PrefilledGroup(NamedTuple):
    """Prompts that begin alike: how many tokens they have in common, the cache of these, and each prompt."""

    shared_tokens: int
    shared: PromptCache
    prompts: list[PrefilledPrompt]


def prefill(runner: ModelRunner, prompts: Sequence[Ids], prefixes: PrefixCache | None = None) -> list[PrefilledGroup]:
    """Read different prompts, what is common to several once; retrieved documents not at all if they were read before,
    and are in ``prefixes``."""
    groups = _groups(prompts)
    common = [members[0][:length] for length, members in groups]
    documents = _documents(runner, common, prefixes)
    beginnings = [
        (runner.prompt_cache(len(ids), before), ids[len(hidden_states) :])
        for ids, (before, hidden_states) in zip(common, documents, strict=True)
    ]
    first = [
        torch.cat((hidden_states, own)) if len(hidden_states) else own
        for (_, hidden_states), own in zip(documents, _forward(runner, beginnings), strict=True)
    ]
    remainders = [
        (runner.prompt_cache(len(prompt), beginning), prompt[length:])
        for (beginning, _), (length, members) in zip(beginnings, groups, strict=True)
        for prompt in members
        if len(prompt) > length
    ]
    rest = iter(zip((cache for cache, _ in remainders), _forward(runner, remainders), strict=True))
    found = []
    for (beginning, _), hidden_states, (length, members) in zip(beginnings, first, groups, strict=True):
        read: list[PrefilledPrompt] = []
        for prompt in members:
            if len(prompt) > length:
                cache, own = next(rest)
                read.append(PrefilledPrompt(prompt, cache, [hidden_states, own]))
            else:
                read.append(PrefilledPrompt(prompt, beginning, [hidden_states]))
        found.append(PrefilledGroup(length, beginning, read))
    return found


def _groups(prompts: Sequence[Ids]) -> list[tuple[int, list[Ids]]]:
    """Prompts that begin alike, put together: (tokens in common, prompts) of each group.

    A prompt joins the group before it in the alphabet if that costs neither more than half of what is in common.
    """
    groups: list[tuple[int, list[Ids]]] = []
    for prompt in sorted(prompts):
        if groups:
            length, members = groups[-1]
            common = 0
            while common < min(length, len(prompt)) and members[0][common] == prompt[common]:
                common += 1
            if 2 * common >= max(length, len(prompt)):
                groups[-1] = (common, [*members, prompt])
                continue
        groups.append((len(prompt), [prompt]))
    return groups


def _documents(
    runner: ModelRunner, beginnings: Sequence[Ids], prefixes: PrefixCache | None
) -> list[tuple[PromptCache | None, Tensor]]:
    """Of each beginning, the cache of the retrieved documents in it, if any, and their hidden states (T, D)."""
    nothing = None, torch.empty(0, runner.config.width, device=runner.device)
    if prefixes is None:
        return [nothing] * len(beginnings)
    # The main document begins with the last <doc>.
    documents = [ids[: max((i for i, id in enumerate(ids) if id == Vocabulary.doc), default=0)] for ids in beginnings]
    found = {ids: prefixes.get(ids) for ids in documents if ids}
    new = [ids for ids, kept in found.items() if kept is None]
    caches = [runner.prompt_cache(len(ids)) for ids in new]
    read = _forward(runner, list(zip(caches, new, strict=True)))
    for ids, cache, hidden_states in zip(new, caches, read, strict=True):
        found[ids] = cache, hidden_states
        prefixes.put(ids, cache, hidden_states)
    return [found.get(ids) or nothing for ids in documents]


def _forward(runner: ModelRunner, work: Sequence[tuple[PromptCache, Ids]]) -> list[Tensor]:
    """Read ids into caches, at most PREFILL_TOKENS in a pass; the hidden states (T, D) of each one's tokens."""
    hidden_states: list[list[Tensor]] = [[] for _ in work]
    left = [len(ids) for _, ids in work]
    while any(left):
        room = PREFILL_TOKENS
        taken: list[int] = []  # the caches of this pass
        ids: list[int] = []
        for i, (cache, own) in enumerate(work):
            cache.pending = min(left[i], room)
            if cache.pending:
                start = len(own) - left[i]
                ids += own[start : start + cache.pending]
                taken.append(i)
                left[i] -= cache.pending
                room -= cache.pending
        x = runner.forward(torch.tensor(ids, device=runner.device), [work[i][0] for i in taken])
        end = 0
        for i in taken:
            end += work[i][0].pending
            hidden_states[i].append(x[end - work[i][0].pending : end])
    return [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in hidden_states]
