"""Engine: runs generation jobs as one batch that jobs join and leave at every step.

A *job* is one or more contexts, a constraint that says what may come, and how to draw; its *completion* depends on the
job alone, not on what else is in the batch. On a CPU that is exact, bit by bit (``reader.py`` says how), but for one
thing: without a C compiler, jobs that share a context kept once sum their attention in another order.

    submit    a job waits until there is room in the batch and in memory
    begin     what prompts have in common is read once: by samples of one prompt, by the streams of guidance behind the
              same retrieved documents, by jobs that arrive together. If enough rows share it, it is kept once as well.
              Retrieved documents stay read for later jobs, as long as there is room in the prefix cache
    draw      logits of the part of the vocabulary that is wanted -> filters -> one token a job -> the job's constraint
    go on     the rows of jobs that are done leave; the others read their tokens, all in one pass

The first job compiles ``step.c``, where there is a C compiler, and lays out the weights: a second or two. One thread
calls ``step`` (or ``run``, ``stream``); ``submit`` and ``cancel`` may be called from any.

Letters in shapes: R rows (streams in the batch), B jobs, C contexts, V vocabulary or the wanted part of it, D width.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from racm3.errors import CacheLimitError, ConfigError, InputError, MarkupError, PromptTooLongError
from racm3.generator.decoder import Reader, Weights
from racm3.generator.decoding import Constraint, Sampling, choose, keep_allowed, shape
from racm3.generator.kv_cache import Passage, PrefixCache, Rows, rounded, token_bytes
from racm3.generator.model import Generator
from racm3.tokens.vocabulary import Vocabulary
from racm3.util.weights_version import WeightsVersion

__all__ = ["Completion", "Context", "Engine", "Event", "Job", "Request"]

READ_TOKENS = 4096
"""Prompt tokens read in one pass: more makes it no faster, and takes more memory."""

SHARED_TOKENS = 512
"""Tokens saved from which a common beginning is kept once; below, a copy a row is as fast and simpler to batch."""

PREFIX_BYTES = 256 * 2**20
"""Keys and values of retrieved documents that stay for later jobs (ours: of the shipped model, 150 pairs of documents),
but no more than one in ``PREFIX_SHARE`` of the bytes that all keys and values may take."""
PREFIX_SHARE = 8

OnStep = Callable[[int, int], None]
"""Called with the tokens drawn and the most that will be."""


@dataclass(frozen=True)
class Context:
    """A prompt, ids, and the prompt of its guidance stream: the same without the main document's words."""

    prompt: Sequence[int]
    unconditional: Sequence[int] | None = None


@dataclass(frozen=True)
class Job:
    """One sequence to be generated. The same job gives the same completion every time.

    ``prompt``: ids, at least one. ``unconditional``: the prompt of the guidance stream, of any length; needed for
    guidance and contrastive decoding. ``others``: further contexts, an ensemble: at every step the probabilities that
    all contexts give are averaged, and those of the unconditional prompts likewise. ``alone``: the prompt of the main
    document by itself, which grounding moves away from; None where there are no other documents, and grounding changes
    nothing. ``constraint`` is copied, so that jobs may share one.
    Raises InputError if a prompt is empty, ConfigError if one needs an unconditional prompt and has none, or the seed
    is out of range.
    """

    prompt: Sequence[int]
    constraint: Constraint
    sampling: Sampling = field(default=Sampling())
    seed: int = 0
    unconditional: Sequence[int] | None = None
    others: Sequence[Context] = ()
    alone: Sequence[int] | None = None

    def __post_init__(self) -> None:
        given = [own for context in self.contexts for own in (context.prompt, context.unconditional)]
        if any(own is not None and not len(own) for own in (*given, self.alone)):
            raise InputError("a prompt has at least one token, but an empty one was given; begin with <doc>")
        for context in self.contexts:
            if self.guided and context.unconditional is None:
                name = "guidance" if self.sampling.contrast_k is None else "contrast_k"
                raise ConfigError(
                    f"sampling.{name} is {getattr(self.sampling, name)}, but the job has no unconditional prompt; "
                    "give one to every context, or leave it out"
                )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or above and below 2**63")

    @property
    def guided(self) -> bool:
        return self.sampling.unconditional

    @property
    def grounded(self) -> bool:
        return self.sampling.grounding != 1 and self.alone is not None

    @property
    def contexts(self) -> list[Context]:
        return [Context(self.prompt, self.unconditional), *self.others]

    @property
    def streams(self) -> list[tuple[int, ...]]:
        """The prompts that this job reads: those of all contexts, then the unconditional ones if it is guided, then
        the main document alone if it is grounded."""
        prompts = [context.prompt for context in self.contexts]
        if self.guided:
            prompts += [context.unconditional or () for context in self.contexts]
        if self.grounded:
            prompts.append(self.alone or ())
        return [tuple(prompt) for prompt in prompts]


@dataclass(frozen=True)
class Completion:
    """What a job gave.

    ``spans``: the ids of the answer, in the groups that stop and fixed tokens part; these are left out.
    ``log_probability``: sum over all ``steps`` tokens that were drawn, stop token included, of the model's
    log-probability in nats, given the prompt and that only allowed ids may come; before grounding, guidance,
    temperature, top k and top p: comparable between samples of one prompt. Of an ensemble, that of the averaged
    probability.
    """

    spans: tuple[tuple[int, ...], ...]
    log_probability: float
    steps: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids of the answer in one piece."""
        return tuple(id for span in self.spans for id in span)


class Event(NamedTuple):
    """A job drew a token. ``id`` is None if it is no part of the answer, as a stop token; ``span`` counts from 0."""

    job: int
    span: int
    id: int | None
    done: bool


class Request:
    """A job on its way, as ``Engine.submit`` returns it."""

    def __init__(self, job: Job, number: int) -> None:
        self.job, self.number = job, number
        self.cancelled = False
        self.log_probability = 0.0
        self.steps = 0
        self.constraint = copy.deepcopy(job.constraint)
        self.streams = job.streams
        self.sizes = [(len(stream), job.constraint.max_steps) for stream in self.streams]  # tokens, new ones
        self.rows: list[int] = [0] * len(self.streams)  # of its streams, in the batch
        self.spans: list[list[int]] = [[]]
        self.last = 0  # the id drawn last
        random = torch.Generator().manual_seed(job.seed)
        self.uniform = torch.rand(job.constraint.max_steps, generator=random, dtype=torch.float64).tolist()

    def cancel(self) -> None:
        """Leave the batch at its next step. What was drawn so far stays in ``completion``."""
        self.cancelled = True

    @property
    def done(self) -> bool:
        return self.cancelled or self.constraint.done

    @property
    def completion(self) -> Completion:
        """The answer so far."""
        spans = tuple(tuple(span) for span in self.spans if span)
        return Completion(spans, self.log_probability, self.steps)

    def push(self, id: int, log_probability: float) -> Event:
        belongs = self.constraint.push(id)
        if belongs:
            self.spans[-1].append(id)
        elif self.spans[-1]:
            self.spans.append([])
        self.last = id
        self.log_probability += log_probability
        self.steps += 1
        span = len(self.spans) - 1 if belongs else max(len(self.spans) - 2, 0)
        return Event(self.number, span, id if belongs else None, self.constraint.done)


@dataclass
class _Group:
    """Rows of the batch that share a passage, or those of one ``room`` that share none.

    Attention goes over the longest row of a group, so short and long ones are kept apart.
    """

    rows: Rows
    room: int  # tokens; 0 if they share a passage
    owners: list[tuple[Request, int]]  # whose stream each row is, and which of its streams
    states: list[Tensor]  # (R, D) in pieces: of the token each row read last


class _Family(NamedTuple):
    """Prompts that begin alike, read: tokens in common, the passage of these, and each prompt, its own passage and the
    states (T, D) of its tokens in pieces.
    """

    length: int
    beginning: Passage
    members: list[tuple[tuple[int, ...], Passage, list[Tensor]]]


class Engine:
    """Completes and scores sequences with one generator, at most ``max_rows`` streams at a time.

    ``weights``: how decoding holds them, by default as the generator does; it has a copy of its own, made at the first
    job and again when the generator's have changed. ``cache_bytes``: the most memory that keys and values of jobs may
    take, by default three quarters of what is free when the engine is made; ``prefix_bytes``: what those of retrieved
    documents may take besides, for later jobs.
    Raises ConfigError if the generator has another vocabulary, or ``max_rows`` is too small.
    """

    def __init__(
        self,
        generator: Generator,
        vocabulary: Vocabulary,
        max_rows: int = 64,
        weights: Weights | None = None,
        cache_bytes: int | None = None,
        prefix_bytes: int | None = None,
    ) -> None:
        if generator.config.vocabulary_size != vocabulary.size:
            raise ConfigError(
                f"the generator knows {generator.config.vocabulary_size} ids, the vocabulary has {vocabulary.size}; "
                "they must be saved together"
            )
        if max_rows < 2:
            raise ConfigError(f"max_rows is {max_rows}; it must be 2 or above, for a guided job needs two rows")
        self.generator, self.vocabulary, self.max_rows = generator, vocabulary, max_rows
        as_held: Weights = "bfloat16" if generator.lm_head.weight.dtype == torch.bfloat16 else "float32"
        self.weights: Weights = weights or as_held
        self.cache_bytes = cache_bytes if cache_bytes is not None else _free_bytes(self.device) * 3 // 4
        self._prefixes = PrefixCache(
            min(PREFIX_BYTES, self.cache_bytes // PREFIX_SHARE) if prefix_bytes is None else prefix_bytes
        )
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._groups: list[_Group] = []
        self._numbers = itertools.count()
        self._reader: Reader | None = None
        self._weights_version = WeightsVersion(())

    @property
    def device(self) -> torch.device:
        return self.generator.lm_head.weight.device

    def run(self, jobs: Sequence[Job], on_step: OnStep | None = None) -> list[Completion]:
        """The completion of every job, in order.

        ``on_step`` hears of the progress after every step. Raises as ``submit`` does, and MarkupError if a constraint
        allows nothing.
        """
        requests = self._submit_all(jobs)
        most = sum(job.constraint.max_steps for job in jobs)
        for _ in self._steps(requests):
            if on_step is not None:
                left = sum(one.job.constraint.max_steps - one.steps for one in requests if not one.done)
                on_step(most - left, most)
        return [request.completion for request in requests]

    def stream(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Every token as it is drawn; ``Event.job`` is the index in ``jobs``. Closing the iterator cancels the jobs.

        Raises as ``run`` does.
        """
        requests = self._submit_all(jobs)
        index = {request.number: i for i, request in enumerate(requests)}
        for events in self._steps(requests):
            for event in events:
                if event.job in index:
                    yield event._replace(job=index[event.job])

    def submit(self, job: Job) -> Request:
        """Let a job wait for its turn; ``step`` takes it on.

        Raises PromptTooLongError if a prompt and the longest answer to it exceed the context, InputError if a prompt
        has ids outside the vocabulary, ConfigError if the job has more streams than ``max_rows``, CacheLimitError if it
        does not fit in memory.
        """
        request = self._request(job, "the job")
        self._waiting.append(request)
        return request

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One token for every job in the batch, after those that wait have joined and those that are done have left.

        ``Event.job`` is the number of the request. Nothing is left to do when no event comes. A step that fails cancels
        the whole batch.
        """
        try:
            self._go_on()
            self._admit()
            owners = [owner for group in self._groups for owner in group.owners]
            for row, (request, stream) in enumerate(owners):
                request.rows[stream] = row
            if not owners:
                return []
            states = [piece for group in self._groups for piece in group.states]
            return self._draw(self._running, states[0] if len(states) == 1 else torch.cat(states))
        except BaseException:  # halfway through a step, rows and tokens disagree
            for request in self._running:
                request.cancel()
            raise

    def estimated_bytes(self, jobs: Sequence[Job]) -> int:
        """The most memory that keys and values of these jobs can take if they run together and share nothing."""
        return self._bytes([(len(prompt), job.constraint.max_steps) for job in jobs for prompt in job.streams])

    def _bytes(self, streams: Sequence[tuple[int, int]]) -> int:
        """``estimated_bytes`` of streams of (tokens, new tokens)."""
        # Rows are counted three times: room is doubled when it does not suffice, and the old one copied into it.
        tokens = sum(rounded(tokens) + 3 * _room(tokens + steps) for tokens, steps in streams)
        return tokens * token_bytes(self.generator.config, self._cache_dtype)

    @property
    def _cache_dtype(self) -> torch.dtype:
        return torch.float32 if self.weights == "float32" else torch.bfloat16

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The log-probability in nats of every token of each continuation behind its prompt: one (T,) array a pair.

        What pairs have in common is read once, such as the prompt behind which several labels are compared.
        Raises InputError if a prompt or a continuation is empty or has ids outside the vocabulary, or there are not
        equally many, PromptTooLongError if the two together exceed the context.
        """
        if len(prompts) != len(continuations):
            raise InputError(f"{len(prompts)} prompts and {len(continuations)} continuations were given; pair them")
        pairs = [(tuple(prompt), tuple(more)) for prompt, more in zip(prompts, continuations, strict=True)]
        for number, (prompt, more) in enumerate(pairs):
            if not prompt or not more:
                raise InputError(
                    f"pair {number}: the prompt or the continuation is empty; give a token or more of each"
                )
            self._check(prompt + more, 0, f"pair {number}")
        reader = self._current_reader()
        owners: dict[tuple[int, ...], list[int]] = {}  # the last token is not read, so pairs may share all that is
        for number, (prompt, more) in enumerate(pairs):
            owners.setdefault(prompt + more[:-1], []).append(number)
        scores = [np.empty(0)] * len(pairs)
        for sequences in self._portions(sorted(owners)):
            for family in self._families_read(reader, sequences):
                for sequence, _, pieces in family.members:
                    states = torch.cat(pieces)  # (T, D)
                    for number in owners[sequence]:
                        prompt, more = pairs[number]
                        logits = reader.logits(states[len(prompt) - 1 :], True, True)  # (T, V)
                        chosen = torch.tensor(more, device=self.device)[:, None]
                        scores[number] = logits.log_softmax(-1).gather(-1, chosen)[:, 0].cpu().numpy()
        return scores

    # The steps of a step ---------------------------------------------------------------------------------------------

    def _submit_all(self, jobs: Sequence[Job]) -> list[Request]:
        requests = [self._request(job, f"job {number}") for number, job in enumerate(jobs)]
        self._waiting.extend(requests)
        return requests

    def _steps(self, requests: Sequence[Request]) -> Iterator[list[Event]]:
        """Step until these requests are done; they are cancelled if that ends early."""
        try:
            while any(not request.done for request in requests):
                yield self.step()
        finally:
            for request in requests:
                if not request.done:
                    request.cancel()
            self._drop_done()

    def _request(self, job: Job, what: str) -> Request:
        request = Request(job, next(self._numbers))
        for stream in request.streams:
            self._check(stream, job.constraint.max_steps, what)
        if len(request.streams) > self.max_rows:
            raise ConfigError(
                f"{what} has {len(request.streams)} streams; max_rows is {self.max_rows}, so give it fewer contexts"
            )
        needed = self._bytes(request.sizes)
        if needed > self.cache_bytes:
            raise CacheLimitError(
                f"{what} needs up to {needed / 1e9:.3g} GB for keys and values; {self.cache_bytes / 1e9:.3g} GB may be "
                "taken. Use fewer contexts, retrieve fewer documents, or set weights='bfloat16'"
            )
        return request

    def _check(self, prompt: tuple[int, ...], steps: int, what: str) -> None:
        context = self.generator.config.context_tokens
        if len(prompt) + steps > context:
            raise PromptTooLongError(
                f"{what}: {len(prompt)} tokens and up to {steps} new ones exceed the generator's context of {context}. "
                "Shorten the text, ask for fewer tokens or retrieve fewer documents"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocabulary.size:
            wrong = next(id for id in prompt if not 0 <= id < self.vocabulary.size)
            raise InputError(f"{what}: {self.vocabulary.name(wrong)}; allowed are 0 to {self.vocabulary.size - 1}")

    def _portions(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Sequences in groups whose keys and values fit in memory, at most ``max_rows`` in one."""
        most = self.cache_bytes // token_bytes(self.generator.config, self._cache_dtype)
        portion: list[tuple[int, ...]] = []
        tokens = 0
        for sequence in sequences:
            needed = 2 * rounded(len(sequence))  # its own passage, and the one of what it shares
            if portion and (len(portion) == self.max_rows or tokens + needed > most):
                yield portion
                portion, tokens = [], 0
            portion.append(sequence)
            tokens += needed
        if portion:
            yield portion

    def _admit(self) -> None:
        """Take on jobs that wait, in order, while rows and memory last."""
        sizes = [size for request in self._running for size in request.sizes]
        new: list[Request] = []
        while self._waiting:
            request = self._waiting[0]
            if not request.done:
                sizes += request.sizes
                if len(sizes) > self.max_rows or self._bytes(sizes) > self.cache_bytes:
                    break
                new.append(request)
            self._waiting.popleft()
        if new:
            reader = self._current_reader()
            self._running += new
            self._begin(new, reader)

    def _current_reader(self) -> Reader:
        """The reader, made anew if the generator's weights have changed; not while jobs are on their way."""
        version = WeightsVersion(self.generator.parameters())
        if self._reader is None or (not self._running and version != self._weights_version):
            self._reader = Reader(self.generator, self.vocabulary.image_start, self.weights)
            self._weights_version = version
            self._prefixes = PrefixCache(self._prefixes.limit_bytes)
        return self._reader

    def _begin(self, requests: Sequence[Request], reader: Reader) -> None:
        """Read the prompts of new requests, what is common to several once, and give their streams rows."""
        owners: dict[tuple[int, ...], list[tuple[Request, int]]] = {}
        for request in requests:
            for number, stream in enumerate(request.streams):
                owners.setdefault(stream, []).append((request, number))
        for length, beginning, streams in self._families_read(reader, list(owners), self._prefixes):
            members = sum(len(owners[prompt]) for prompt, _, _ in streams)
            shared = self._new_group(reader, 0, beginning) if (members - 1) * length >= SHARED_TOKENS else None
            for prompt, whole, pieces in streams:
                tokens = len(prompt) + max(request.job.constraint.max_steps for request, _ in owners[prompt])
                group = shared or self._common_group(reader, _room(tokens))
                group.rows.reserve(len(owners[prompt]), tokens - length if shared else _room(tokens))
                for owner in owners[prompt]:
                    group.rows.add(whole)
                    group.owners.append(owner)
                    group.states.append(pieces[-1][-1:])

    def _families_read(
        self, reader: Reader, prompts: Sequence[tuple[int, ...]], prefixes: PrefixCache | None = None
    ) -> list[_Family]:
        """Read different prompts, what is common to several once; retrieved documents not at all if they were read
        before, and are in ``prefixes``."""

        def passage(tokens: int, after: Passage | None = None) -> Passage:
            return Passage(reader.config, tokens, reader.cache_dtype, reader.device, after)

        families = _families(prompts)
        common = [members[0][:length] for length, members in families]
        documents = self._documents_read(reader, common, prefixes)
        beginnings = [
            (passage(len(ids), before), ids[len(states) :])
            for ids, (before, states) in zip(common, documents, strict=True)
        ]
        first = [
            torch.cat((states, own)) if len(states) else own
            for (_, states), own in zip(documents, self._read(reader, beginnings), strict=True)
        ]
        remainders = [
            (passage(len(prompt), beginning), prompt[length:])
            for (beginning, _), (length, members) in zip(beginnings, families, strict=True)
            for prompt in members
            if len(prompt) > length
        ]
        rest = iter(zip((whole for whole, _ in remainders), self._read(reader, remainders), strict=True))
        read = []
        for (beginning, _), states, (length, members) in zip(beginnings, first, families, strict=True):
            streams: list[tuple[tuple[int, ...], Passage, list[Tensor]]] = []
            for prompt in members:
                if len(prompt) > length:
                    whole, own = next(rest)
                    streams.append((prompt, whole, [states, own]))
                else:
                    streams.append((prompt, beginning, [states]))
            read.append(_Family(length, beginning, streams))
        return read

    def _documents_read(
        self, reader: Reader, beginnings: Sequence[tuple[int, ...]], prefixes: PrefixCache | None
    ) -> list[tuple[Passage | None, Tensor]]:
        """Of each beginning, the passage of the retrieved documents in it, if any, and their states (T, D)."""
        nothing = None, torch.empty(0, reader.config.width, device=reader.device)
        if prefixes is None:
            return [nothing] * len(beginnings)
        # The main document begins with the last <doc>.
        documents = [
            ids[: max((i for i, id in enumerate(ids) if id == self.vocabulary.doc), default=0)] for ids in beginnings
        ]
        found = {ids: prefixes.get(ids) for ids in documents if ids}
        new = [ids for ids, kept in found.items() if kept is None]
        passages = [Passage(reader.config, len(ids), reader.cache_dtype, reader.device) for ids in new]
        read = self._read(reader, list(zip(passages, new, strict=True)))
        for ids, passage, states in zip(new, passages, read, strict=True):
            found[ids] = passage, states
            prefixes.put(ids, passage, states)
        return [found.get(ids) or nothing for ids in documents]

    def _common_group(self, reader: Reader, room: int) -> _Group:
        """The group of rows of this room that share nothing."""
        for group in self._groups:
            if group.room == room:
                return group
        return self._new_group(reader, room, None)

    def _new_group(self, reader: Reader, room: int, shared: Passage | None) -> _Group:
        group = _Group(Rows(reader.config, reader.cache_dtype, reader.device, shared), room, [], [])
        self._groups.append(group)
        return group

    def _read(self, reader: Reader, work: Sequence[tuple[Passage, tuple[int, ...]]]) -> list[Tensor]:
        """Read ids into passages, at most READ_TOKENS in a pass; the states (T, D) of each one's tokens."""
        states: list[list[Tensor]] = [[] for _ in work]
        left = [len(ids) for _, ids in work]
        while any(left):
            room = READ_TOKENS
            taken: list[int] = []  # the passages of this pass
            ids: list[int] = []
            for i, (passage, own) in enumerate(work):
                passage.pending = min(left[i], room)
                if passage.pending:
                    start = len(own) - left[i]
                    ids += own[start : start + passage.pending]
                    taken.append(i)
                    left[i] -= passage.pending
                    room -= passage.pending
            x = reader.read(torch.tensor(ids, device=reader.device), [work[i][0] for i in taken])
            end = 0
            for i in taken:
                end += work[i][0].pending
                states[i].append(x[end - work[i][0].pending : end])
        return [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in states]

    def _go_on(self) -> None:
        """Drop the rows of jobs that are done; the others read the token drawn last."""
        self._drop_done()
        if not self._groups:
            return
        assert self._reader is not None
        ids = [request.last for group in self._groups for request, _ in group.owners]
        states = self._reader.read(torch.tensor(ids, device=self.device), [group.rows for group in self._groups])
        for group, piece in zip(self._groups, states.split([len(g.owners) for g in self._groups]), strict=True):
            group.states = [piece]

    @torch.inference_mode()
    def _drop_done(self) -> None:
        """Let the rows of requests that are done go."""
        for group in self._groups:
            done = [row for row, (request, _) in enumerate(group.owners) if request.done]
            if done:
                group.owners = [group.owners[row] for row in group.rows.drop(done)]
        self._groups = [group for group in self._groups if group.owners]
        self._running = [request for request in self._running if not request.done]

    def _draw(self, requests: Sequence[Request], states: Tensor) -> list[Event]:
        """Draw one token for every request and push it. Those that want the same part of the vocabulary go together."""
        boundary = self.vocabulary.image_start
        wanting: dict[tuple[bool, bool], list[tuple[Request, np.ndarray]]] = {}
        for request in requests:
            allowed = request.constraint.allowed()  # (V,)
            wanted = bool(allowed[:boundary].any()), bool(allowed[boundary:].any())
            if not any(wanted):
                raise MarkupError("a constraint allows no id at all; a constraint that is complete says so by done")
            wanting.setdefault(wanted, []).append((request, allowed))
        events: list[Event] = []
        assert self._reader is not None
        for (text, image), members in wanting.items():
            first, last = (0 if text else boundary), (self.vocabulary.size if image else boundary)
            may = torch.from_numpy(np.stack([allowed[first:last] for _, allowed in members])).to(self.device)  # (B, V)
            rows = [row for request, _ in members for row in request.rows]
            logits = self._reader.logits(states if rows == list(range(len(states))) else states[rows], text, image)
            chosen, log_probabilities = _choose([request for request, _ in members], logits, may)
            for (request, _), id, value in zip(members, chosen.tolist(), log_probabilities.tolist(), strict=True):
                events.append(request.push(id + first, value))
        return events


def _choose(requests: Sequence[Request], logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """From the logits (R, V) of all streams of the requests: the drawn ids (B,) and their log-probabilities (B,)."""
    samplings = [request.job.sampling for request in requests]
    own: list[range] = []
    other: list[range] = []  # rows of the unconditional streams, or of the job's own where it has none
    lone: list[range] = []  # the row of the main document alone, or those of the job's own
    start = 0
    for request in requests:
        contexts, end = len(request.job.others) + 1, start + len(request.rows)
        own.append(range(start, start + contexts))
        other.append(range(start + contexts, start + 2 * contexts) if request.job.guided else own[-1])
        lone.append(range(end - 1, end) if request.job.grounded else own[-1])
        start = end
    conditional = _averaged(logits, own, allowed)  # (B, V)
    unconditional = _averaged(logits, other, allowed) if other != own else None
    alone = _averaged(logits, lone, allowed) if lone != own else None
    possible = keep_allowed(conditional, allowed)
    greedy = [sampling.temperature == 0 for sampling in samplings]
    if all(greedy) and unconditional is None and alone is None:
        chosen = possible.argmax(-1)  # no filter excludes the most probable token
    else:
        scores = shape(conditional, unconditional, alone, allowed, samplings)
        uniform = torch.tensor([one.uniform[one.steps] for one in requests], device=logits.device, dtype=torch.float64)
        chosen = choose(scores, uniform, torch.tensor(greedy, device=logits.device))
    return chosen, possible.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]


def _averaged(logits: Tensor, rows: Sequence[Sequence[int]], allowed: Tensor) -> Tensor:
    """Logits (R, V) of each job's rows to (B, V): the logarithm of their mean probability, where there are several."""
    firsts = [own[0] for own in rows]
    result = logits if firsts == list(range(len(logits))) else logits[firsts]
    for job, own in enumerate(rows):
        if len(own) > 1:
            result = result.clone() if result is logits else result
            probable = keep_allowed(logits[list(own)], allowed[job]).log_softmax(-1)  # (C, V)
            result[job] = probable.logsumexp(0) - math.log(len(own))
    return result


def _families(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Prompts that begin alike, put together: (tokens in common, prompts) of each family.

    A prompt joins the family before it in the alphabet if that costs neither more than half of what is in common.
    """
    families: list[tuple[int, list[tuple[int, ...]]]] = []
    for prompt in sorted(prompts):
        if families:
            length, members = families[-1]
            common = 0
            while common < min(length, len(prompt)) and members[0][common] == prompt[common]:
                common += 1
            if 2 * common >= max(length, len(prompt)):
                families[-1] = (common, [*members, prompt])
                continue
        families.append((len(prompt), [prompt]))
    return families


def _room(tokens: int) -> int:
    """Tokens of room of a row that needs this many: few different numbers, at most a third too many.

    >>> [_room(tokens) for tokens in (1, 64, 65, 200, 300, 664)]
    [64, 64, 128, 256, 384, 768]
    """
    step = max(rounded(1), 1 << max(0, (tokens - 1).bit_length() - 2))
    return -(-tokens // step) * step


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # counts what the system's own caches would give back
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
