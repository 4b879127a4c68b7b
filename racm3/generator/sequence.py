"""Sequence: what the engine is asked for, what it gives, and how far it is with it.

Letters in shapes: V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch

from racm3.errors import ConfigError, InputError
from racm3.generator.constraints import Constraint
from racm3.generator.drafting import Drafter
from racm3.generator.sampling import Sampling

__all__ = ["Context", "Event", "RunningSequence", "SequenceOutput", "SequenceRequest"]


@dataclass(frozen=True)
class Context:
    """A prompt, ids, and the prompt of its guidance stream: the same without the main document's words."""

    prompt: Sequence[int]
    unconditional: Sequence[int] | None = None


@dataclass(frozen=True)
class SequenceRequest:
    """One sequence to be generated. The same request gives the same output every time.

    ``prompt``: ids, at least one. ``unconditional``: the prompt of the guidance stream, of any length; needed for
    classifier-free guidance and contrastive decoding. ``others``: further contexts, an ensemble: at every step the
    probabilities that all contexts give are averaged, and those of the unconditional prompts likewise.
    ``without_context``: the prompt of the main document by itself, which context-aware decoding moves away from; None
    where there are no other documents, and context-aware decoding changes nothing. ``constraint`` is copied, so that
    requests may share one. ``row``: how many ids make a row of the picture that is asked for, if one is: it helps to
    guess what comes, and changes no output.
    Raises InputError if a prompt is empty, ConfigError if one needs an unconditional prompt and has none, or the seed
    is out of range.
    """

    prompt: Sequence[int]
    constraint: Constraint
    sampling: Sampling = field(default=Sampling())
    seed: int = 0
    unconditional: Sequence[int] | None = None
    others: Sequence[Context] = ()
    without_context: Sequence[int] | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        given = [own for context in self.contexts for own in (context.prompt, context.unconditional)]
        if any(own is not None and not len(own) for own in (*given, self.without_context)):
            raise InputError("a prompt has at least one token, but an empty one was given; begin with <doc>")
        for context in self.contexts:
            if self.guided and context.unconditional is None:
                name = "guidance" if self.sampling.contrast_k is None else "contrast_k"
                raise ConfigError(
                    f"sampling.{name} is {getattr(self.sampling, name)}, but the request has no unconditional prompt; "
                    "give one to every context, or leave it out"
                )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or above and below 2**63")

    @property
    def guided(self) -> bool:
        """Whether the unconditional prompts are read as well."""
        return self.sampling.unconditional

    @property
    def context_aware(self) -> bool:
        """Whether the main document is read by itself as well."""
        return self.sampling.context_aware != 1 and self.without_context is not None

    @property
    def contexts(self) -> list[Context]:
        return [Context(self.prompt, self.unconditional), *self.others]

    @property
    def streams(self) -> list[tuple[int, ...]]:
        """The prompts to be read: those of all contexts, then the unconditional ones if there is guidance, then the
        main document by itself if decoding is context-aware."""
        prompts = [context.prompt for context in self.contexts]
        if self.guided:
            prompts += [context.unconditional or () for context in self.contexts]
        if self.context_aware:
            prompts.append(self.without_context or ())
        return [tuple(prompt) for prompt in prompts]


@dataclass(frozen=True)
class SequenceOutput:
    """What was generated for a request.

    ``spans``: the ids of the answer, in the groups that stop and fixed tokens part; these are left out.
    ``log_probability``: sum over all ``steps`` tokens that were drawn, stop token included, of the model's
    log-probability in nats, given the prompt and that only allowed ids may come; before context-aware decoding,
    guidance, temperature, top k and top p: comparable between samples of one prompt. Of an ensemble, that of the
    averaged probability.
    """

    spans: tuple[tuple[int, ...], ...]
    log_probability: float
    steps: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids of the answer in one piece."""
        return tuple(id for span in self.spans for id in span)


class Event(NamedTuple):
    """A token was drawn for a request. ``id`` is None if it is no part of the answer, as a stop token; ``span`` counts
    from 0."""

    request: int
    span: int
    id: int | None
    done: bool


class RunningSequence:
    """A request on its way, as ``Engine.submit`` returns it: ``cancel``, ``done`` and ``output`` are for the caller."""

    def __init__(self, request: SequenceRequest, number: int) -> None:
        self.request, self.number = request, number
        self.cancelled = False
        self.log_probability = 0.0
        self.steps = 0
        self.constraint = copy.deepcopy(request.constraint)
        self.streams = request.streams
        self.sizes = [(len(stream), request.constraint.max_steps) for stream in self.streams]  # tokens, new ones
        self.rows: list[int] = [0] * len(self.streams)  # of its streams, in the batch
        self.spans: list[list[int]] = [[]]
        self.last = 0  # the id drawn last
        self.draft: list[int] = []  # ids that probably come behind it, read in the same pass
        self.right = 0  # how many of them were drawn
        self.drafter: Drafter | None = None
        self._allowed: list[np.ndarray] = []
        self._expected = 0.0
        random = torch.Generator().manual_seed(request.seed)
        self.uniform = torch.rand(request.constraint.max_steps, generator=random, dtype=torch.float64).tolist()

    def cancel(self) -> None:
        """Leave the batch at its next step. What was drawn so far stays in ``output``."""
        self.cancelled = True

    @property
    def done(self) -> bool:
        return self.cancelled or self.constraint.done

    @property
    def output(self) -> SequenceOutput:
        """The answer so far."""
        spans = tuple(tuple(span) for span in self.spans if span)
        return SequenceOutput(spans, self.log_probability, self.steps)

    def guess(self, beside: int) -> None:
        """Make a draft, in a batch of so many rows."""
        if self.drafter is not None:
            self.draft, self._allowed, self._expected = self.drafter.draft(self.constraint, beside)

    def allowed(self) -> list[np.ndarray]:
        """What may come at the place of each id of the draft, and behind it, (V,) bool each."""
        return self._allowed if self.draft else [self.constraint.allowed()]

    def accept(self, drawn: Sequence[tuple[int, float]]) -> Iterator[Event]:
        """Go on by the (token, log-probability) drawn at each place, up to the first that the draft had not guessed."""
        for guessed, (id, log_probability) in zip_longest(self.draft, drawn):
            yield self.push(id, log_probability)
            if id != guessed or self.done:
                break
            self.right += 1
        if self.drafter is not None and self.draft:
            self.drafter.judge(self._expected, self.right)

    def push(self, id: int, log_probability: float) -> Event:
        """Go on by the token that was drawn."""
        belongs = self.constraint.push(id)
        if belongs:
            self.spans[-1].append(id)
        elif self.spans[-1]:
            self.spans.append([])
        self.last = id
        if self.drafter is not None:
            self.drafter.push(id)
        self.log_probability += log_probability
        self.steps += 1
        span = len(self.spans) - 1 if belongs else max(len(self.spans) - 2, 0)
        return Event(self.number, span, id if belongs else None, self.constraint.done)
