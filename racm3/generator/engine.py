"""Engine: runs many generation jobs as one batch, on a key/value cache.

A *job* is a prompt, a constraint that says what may come, and how to draw; its *completion* depends on the job alone,
not on what else is in the batch (but for the rounding of sums, which differs with the shape of a batch).

    streams   each job reads its prompt; a guided job also reads its unconditional prompt, as a row of its own
    read      equal prompts are read once, then their rows in the cache are copied: n samples cost one prompt
    step      logits -> guide -> keep allowed -> temperature, top k, top p -> choose -> the job's constraint
    drop      the rows of jobs that are done leave the batch

Letters in shapes: R streams (rows), B jobs, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from racm3.errors import ConfigError, InputError, MarkupError, PromptTooLongError
from racm3.generator.decoding import (
    Constraint,
    Sampling,
    choose,
    guide,
    keep_allowed,
    keep_top_k,
    keep_top_p,
    temper,
)
from racm3.generator.model import Generator, KVCache
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["Completion", "Engine", "Job"]

OnStep = Callable[[int, int], None]
"""Called with the steps done and the most steps there will be."""


@dataclass(frozen=True)
class Job:
    """One sequence to be generated. The same job gives the same completion every time.

    ``prompt``: ids, at least one. ``unconditional``: the prompt of the guidance stream, of any length; needed if
    ``sampling.guidance`` is not 1. ``constraint`` is copied, so that jobs may share one.
    Raises InputError if a prompt is empty, ConfigError if guidance has no unconditional prompt, or the seed is
    out of range.
    """

    prompt: Sequence[int]
    constraint: Constraint
    sampling: Sampling = field(default=Sampling())
    seed: int = 0
    unconditional: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not len(self.prompt) or (self.unconditional is not None and not len(self.unconditional)):
            raise InputError("a prompt has at least one token, but an empty one was given; begin with <doc>")
        if self.guided and self.unconditional is None:
            raise ConfigError(
                f"sampling.guidance is {self.sampling.guidance}, but the job has no unconditional prompt; "
                "give one, or set guidance to 1"
            )

        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or above and below 2**63")

    @property
    def guided(self) -> bool:
        return self.sampling.guidance != 1

    @property
    def streams(self) -> list[tuple[int, ...]]:
        """The prompts that this job reads: its own, and the unconditional one if it is guided."""
        own = [tuple(self.prompt)]
        return own + [tuple(self.unconditional)] if self.guided and self.unconditional is not None else own


@dataclass(frozen=True)
class Completion:
    """What a job gave.

    ``spans``: the ids of the answer, in the groups that stop and fixed tokens part; these are left out.
    ``log_probability``: sum over all ``steps`` tokens that were drawn, stop token included, of the model's
    log-probability in nats, given the prompt and that only allowed ids may come; before guidance, temperature, top k
    and top p: comparable between samples of one prompt.
    """

    spans: tuple[tuple[int, ...], ...]
    log_probability: float
    steps: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids of the answer in one piece."""
        return tuple(id for span in self.spans for id in span)


class _Running:
    """A job on its way."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.constraint = copy.deepcopy(job.constraint)
        self.rows: list[int] = []  # of its streams, in the batch
        self.spans: list[list[int]] = [[]]
        self.log_probability = 0.0
        self.steps = 0
        random = torch.Generator().manual_seed(job.seed)
        self.uniform = torch.rand(job.constraint.max_steps, generator=random, dtype=torch.float64).tolist()

    def push(self, id: int, log_probability: float) -> None:
        if self.constraint.push(id):
            self.spans[-1].append(id)
        elif self.spans[-1]:
            self.spans.append([])
        self.log_probability += log_probability
        self.steps += 1

    @property
    def completion(self) -> Completion:
        spans = tuple(tuple(span) for span in self.spans if span)
        return Completion(spans, self.log_probability, self.steps)


def _numbered(running: list[_Running]) -> list[_Running]:
    """Give the streams of the jobs rows of the batch, from 0 and in order."""
    first = 0
    for one in running:
        one.rows = list(range(first, first + len(one.job.streams)))
        first += len(one.rows)
    return running


class Engine:
    """Completes and scores sequences with one generator, at most ``max_rows`` streams at a time.

    Raises ConfigError if the generator has another vocabulary.
    """

    def __init__(self, generator: Generator, vocabulary: Vocabulary, max_rows: int = 64) -> None:
        if generator.config.vocabulary_size != vocabulary.size:
            raise ConfigError(
                f"the generator knows {generator.config.vocabulary_size} ids, the vocabulary has {vocabulary.size}; "
                "they must be saved together"
            )
        if max_rows < 2:
            raise ConfigError(f"max_rows is {max_rows}; it must be 2 or above, for a guided job needs two rows")
        self.generator, self.vocabulary, self.max_rows = generator, vocabulary, max_rows

    @property
    def device(self) -> torch.device:
        return self.generator.lm_head.weight.device

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], on_step: OnStep | None = None) -> list[Completion]:
        """The completion of every job, in order.

        ``on_step`` hears of the progress after every token. Raises PromptTooLongError if a prompt and the longest
        answer to it exceed the context, InputError if a prompt has ids outside the vocabulary, MarkupError if a
        constraint allows nothing.
        """
        for number, job in enumerate(jobs):
            for stream in job.streams:
                self._check(stream, job.constraint.max_steps, f"job {number}")
        batches = list(self._batches(jobs))
        most = [max(job.constraint.max_steps for job in batch) for batch in batches]
        completions: list[Completion] = []
        for i, batch in enumerate(batches):

            def report(step: int, before: int = sum(most[:i])) -> None:
                if on_step is not None:
                    on_step(before + step, sum(most))

            completions += self._complete(batch, most[i], report)
        return completions

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The log-probability in nats of every token of each continuation behind its prompt: one (T,) array a pair.

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
        scores: list[np.ndarray] = []
        for start in range(0, len(pairs), self.max_rows):
            batch = pairs[start : start + self.max_rows]
            hidden = self.generator(self._padded([prompt + more for prompt, more in batch]))  # (B, T, D)
            for row, (prompt, more) in zip(hidden, batch, strict=True):
                logits = self.generator.logits(row[len(prompt) - 1 : len(prompt) + len(more) - 1]).float()  # (T, V)
                chosen = torch.tensor(more, device=self.device)[:, None]
                scores.append(logits.log_softmax(-1).gather(-1, chosen)[:, 0].cpu().numpy())
        return scores

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

    def _batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in order, in batches of at most ``max_rows`` streams."""
        batch: list[Job] = []
        rows = 0
        for job in jobs:
            if rows + len(job.streams) > self.max_rows:
                yield batch
                batch, rows = [], 0
            batch.append(job)
            rows += len(job.streams)
        if batch:
            yield batch

    def _padded(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """(R, T), padded on the right."""
        longest = max(len(sequence) for sequence in sequences)
        rows = [[*sequence, *[self.vocabulary.pad] * (longest - len(sequence))] for sequence in sequences]
        return torch.tensor(rows, device=self.device)

    def _read(self, streams: Sequence[tuple[int, ...]], steps: int) -> tuple[Tensor, KVCache]:
        """Read all prompts: the hidden states of their last tokens (R, D), and a cache with room for ``steps`` more."""
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(streams))}
        lengths = [len(prompt) for prompt in unique]
        weight = self.generator.lm_head.weight
        cache = KVCache(self.generator.config, len(unique), max(lengths) + steps, like=weight)
        hidden = self.generator(self._padded(list(unique)), cache)  # (unique, T, D)
        cache.advance(lengths)
        last = hidden[range(len(unique)), [length - 1 for length in lengths]]  # (unique, D)
        rows = [unique[prompt] for prompt in streams]
        if len(unique) < len(streams):
            cache.select(rows)
        return last[rows], cache

    def _complete(self, jobs: Sequence[Job], most: int, report: Callable[[int], None]) -> list[Completion]:
        """Run one batch to its end, in at most ``most`` steps."""
        running = [_Running(job) for job in jobs]
        hidden, cache = self._read([stream for job in jobs for stream in job.streams], most)  # (R, D)
        active = _numbered(running)
        step = 0
        while True:
            ids = self._step(active, self.generator.logits(hidden).float())
            going = [(one, id) for one, id in zip(active, ids, strict=True) if not one.constraint.done]
            step += 1
            report(step if going else most)
            if not going:
                return [one.completion for one in running]
            if len(going) < len(active):
                cache.select([row for one, _ in going for row in one.rows])
                active = _numbered([one for one, _ in going])
            following = [[id] for one, id in going for _ in one.rows]  # all streams of a job go on with the same token
            hidden = self.generator(torch.tensor(following, device=self.device), cache)[:, 0]
            cache.advance([1] * len(following))

    def _step(self, active: Sequence[_Running], logits: Tensor) -> list[int]:
        """Draw one token for every job from the logits (R, V) of its streams, and push it."""
        samplings = [one.job.sampling for one in active]

        def each(values: Sequence[float]) -> Tensor:  # (B,)
            return torch.tensor(values, device=logits.device)

        allowed = np.stack([one.constraint.allowed() for one in active])  # (B, V)
        if not allowed.any(axis=1).all():
            raise MarkupError("a constraint allows no id at all; a constraint that is complete says so by done")
        may = torch.from_numpy(allowed).to(logits.device)
        own = logits[[one.rows[0] for one in active]]  # (B, V), of the conditional streams
        scores = own
        if any(one.job.guided for one in active):
            # The last stream of a job is its unconditional one, or its only one; then guidance is 1.
            unconditional = logits[[one.rows[-1] for one in active]]
            scores = guide(own, unconditional, each([s.guidance for s in samplings]))
        temperature = each([s.temperature for s in samplings])
        scores = temper(keep_allowed(scores, may), temperature)
        if any(s.top_k is not None for s in samplings):
            scores = keep_top_k(scores, each([s.top_k or logits.shape[-1] for s in samplings]))
        if any(s.top_p < 1 for s in samplings):
            scores = keep_top_p(scores, each([s.top_p for s in samplings]))
        uniform = torch.tensor([one.uniform[one.steps] for one in active], device=logits.device, dtype=torch.float64)
        chosen = choose(scores, uniform, greedy=temperature == 0)  # (B,)
        log_probabilities = keep_allowed(own, may).log_softmax(-1).gather(-1, chosen[:, None])[:, 0].tolist()
        ids: list[int] = chosen.tolist()
        for one, id, log_probability in zip(active, ids, log_probabilities, strict=True):
            one.push(id, log_probability)
        return ids
