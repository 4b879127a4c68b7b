"""Request and Completion: what a person asks for, and what comes back.

Request     a document with holes, how to complete it, and perhaps the documents to read
Completion  the document with its holes filled, the documents that were read, and what reproduces it
Partial     how far a part is, while it is generated
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from racm3.attribution import PartAttribution
from racm3.document import Document, Part
from racm3.generator.prompt import Answer
from racm3.retriever.retriever import Hit
from racm3.settings import USUAL, Settings

__all__ = ["BY_HAND", "Completion", "Partial", "Request"]

BY_HAND = "given by hand"
"""The origin of documents that were not retrieved but given."""


@dataclass(frozen=True)
class Request:
    """One document to complete.

    ``retrieved``: the documents to read, instead of those that are found for it. ``answer``: which part is the answer,
    by default the last one that is generated.
    """

    document: Document
    settings: Settings = USUAL
    retrieved: Sequence[Document] | None = None
    answer: int | None = None


class Attributing(Protocol):
    """The model that made a completion, for what is computed afterwards."""

    def attribute(self, done: Completion, answer: Answer) -> PartAttribution:
        """The attribution of one generated part."""


@dataclass(frozen=True)
class Completion:
    """The document with its open parts filled, the sources it was given, and the request, which reproduces it."""

    document: Document
    sources: tuple[Hit, ...]
    request: Request
    answers: tuple[Answer, ...]
    model: Attributing = field(repr=False, compare=False)

    @property
    def answer(self) -> Part:
        """The part that was asked for."""
        part = self.request.answer
        return self.document.parts[self.answers[-1].part if part is None else part]

    @property
    def settings(self) -> Settings:
        return self.request.settings

    @property
    def seed(self) -> int:
        return self.settings.seed

    @cached_property
    def attribution(self) -> tuple[PartAttribution, ...]:
        """How much each generated code and word drew on each source, and where in it, of every generated part.

        Computed when first asked for: racm3/attribution.py says how.
        """
        return tuple(self.model.attribute(self, answer) for answer in self.answers)

    @property
    def score(self) -> float:
        """Mean log-probability of the generated tokens, in nats."""
        return sum(a.log_probability for a in self.answers) / sum(a.steps for a in self.answers)


@dataclass(frozen=True)
class Partial:
    """How far a part of a document is. The last one of a stream has the ``completion``."""

    part: int
    make: Callable[[], Part] = field(repr=False)
    completion: Completion | None = None

    @cached_property
    def content(self) -> Part:
        """A text so far, or a picture whose codes still to come are grey; made when first asked for, in any thread."""
        return self.make()
