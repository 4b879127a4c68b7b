"""Prompt: retrieved documents and a main document with open parts -> the ids to read, and what the answer may be.

One prompt asks for one part, the first that is open; a document with several is completed part by part. A hole with
nothing but holes behind it is written on causally. Any other, and the hidden stretch or region of a text or a picture,
is a CM3 infill: a mask stands in each gap, the document is closed, and what is missing is written after its sentinel:

    <doc> <text> t t <image> | c c c c ...                                        caption -> image
    <doc> <text> <mask:0> <image> c c c ... </doc> <infill:0> | t t t ... <eos>   image -> caption

To the left of the bar stands the prompt, to the right the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from racm3.document import Hole, Modality
from racm3.errors import DocumentError
from racm3.generator.constraints import Chain, Constraint, Fixed, ImageSpan, TextSpan
from racm3.tokens.markup import AFTER_PART, MARKERS, Markup
from racm3.tokens.parts import (
    GeneratedCodes,
    HiddenCodes,
    HiddenText,
    ImageCodes,
    OpenPart,
    TextIds,
    TokenDocument,
)
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary


@dataclass(frozen=True)
class Span:
    """A stretch of the answer: ``count`` image codes, or at most ``count`` text ids before one of the ids ``stop``.

    ``start`` is the place of its first code in the picture; ``given`` holds (place in the span, code) of codes that are
    not the generator's to choose.
    """

    modality: Modality
    count: int
    stop: tuple[int, ...] = ()
    start: int = 0
    given: tuple[tuple[int, int], ...] = ()

    @property
    def chosen(self) -> list[int]:
        """The places in the span that are the generator's to choose."""
        return [place for place in range(self.count) if place not in dict(self.given)]


@dataclass(frozen=True)
class Prompt:
    """``ids`` to read, ``unconditional`` the same without the main document's words, and the spans to write into the
    part number ``part`` of the document."""

    ids: list[int]
    unconditional: list[int]
    part: int
    spans: tuple[Span, ...]

    @property
    def modality(self) -> Modality:
        """What is asked for."""
        return self.spans[0].modality


@dataclass(frozen=True)
class Answer:
    """What was generated for one part of a document: the ``spans`` of the answer to ``prompts``, one a context.

    ``log_probability``: of all ``steps`` tokens together, in nats.
    """

    prompts: tuple[Prompt, ...]
    spans: tuple[tuple[int, ...], ...]
    log_probability: float
    steps: int

    @property
    def part(self) -> int:
        return self.prompts[0].part

    @property
    def modality(self) -> Modality:
        return self.prompts[0].modality

    def generated(self, vocabulary: Vocabulary) -> TextIds | GeneratedCodes:
        """What was written into the part, in ids or codes of its tokenizer."""
        if self.modality == "text":
            return TextIds(tuple(id_ - vocabulary.text_start for id_ in (self.spans[0] if self.spans else ())))
        asked = self.prompts[0].spans
        places = [span.start + place for span in asked for place in span.chosen]
        codes = {
            span.start + i: ids[i] - vocabulary.image_start
            for span, ids in zip(asked, self.spans, strict=False)
            for i in span.chosen
            if i < len(ids)
        }
        return GeneratedCodes(codes, tuple(places[len(codes) :]))


T = TypeVar("T")


def split(documents: Sequence[T], contexts: int) -> list[Sequence[T]]:
    """The documents of every context; the best go to different ones, and none stays empty beside others.

    >>> split("abc", 2), split("a", 2), split("", 2)
    (['ac', 'b'], ['a'], [''])
    """
    return [documents[i::contexts] for i in range(min(contexts, len(documents)) or 1)]


def build_prompt(
    retrieved: Sequence[TokenDocument], main: Sequence[OpenPart], markup: Markup, max_text_tokens: int
) -> Prompt:
    """The prompt for the first open part of a document.

    The unconditional stream keeps the retrieved documents; where it writes on causally the caption is hidden behind a
    mask (CM3Leon), in an infill it is left out, so that the gaps keep their numbers. There are at most 16 masks: in
    pictures with more gaps the nearest are bridged, and the codes between them are given in the answer.
    Raises DocumentError if nothing is to be generated, or more than 16 parts are open.
    """
    before = [id_ for document in retrieved for id_ in markup.to_ids(document)]
    gaps = [_gaps(part) for part in main]
    opened = [number for number, count in enumerate(gaps) if count]
    if not opened:
        raise DocumentError("the document has nothing to generate; give it a Hole, or a part that is partly hidden")
    if len(opened) > MAX_MASKS:
        raise DocumentError(f"the document has {len(opened)} open parts, and at most {MAX_MASKS} can be; split it")
    most = MAX_MASKS if sum(gaps) <= MAX_MASKS else MAX_MASKS // len(opened)  # of one part
    if all(isinstance(part, Hole) for part in main[opened[0] :]):
        return _causal(before, main, opened[0], markup, max_text_tokens)
    return _infill(before, main, opened[0], most, markup, max_text_tokens)


def _gaps(part: OpenPart) -> int:
    """How many masks a part needs."""
    if isinstance(part, HiddenCodes):
        return sum(hidden for _, _, hidden in runs(part.hidden))
    return int(isinstance(part, (HiddenText, Hole)))


def _causal(before: list[int], main: Sequence[OpenPart], number: int, markup: Markup, max_text_tokens: int) -> Prompt:
    v = markup.vocabulary
    ids, wordless, masks = [v.doc], [v.doc], 0
    for part in main[:number]:
        written, kept, _ = _written(part, 0, 1, markup, max_text_tokens)
        if isinstance(part, TextIds):
            kept = [v.text, *markup.filled([v.mask(masks)])] if masks < MAX_MASKS else []
            masks += 1
        ids += written
        wordless += kept
    (marker, *_), _, (span,) = _written(main[number], 0, 1, markup, max_text_tokens)
    if span.modality == "text":
        span = replace(span, stop=AFTER_PART)
    return Prompt([*before, *ids, marker], [*before, *wordless, marker], number, (span,))


def _infill(
    before: list[int], main: Sequence[OpenPart], number: int, most: int, markup: Markup, max_text_tokens: int
) -> Prompt:
    v = markup.vocabulary
    ids, wordless = [v.doc], [v.doc]
    spans: list[Span] = []
    own: list[Span] = []
    for part in main:
        written, kept, more = _written(part, len(spans), most, markup, max_text_tokens)
        ids += written
        wordless += kept
        spans += more
        own = own or spans[:]  # of the first open part
    if own[0].modality == "text" and len(spans) > 1:
        own = [replace(own[0], stop=(v.infill(1),))]
    end = [v.end, v.infill(0)]
    return Prompt([*before, *ids, *end], [*before, *wordless, *end], number, tuple(own))


def _written(
    part: OpenPart, gap: int, most: int, markup: Markup, max_text_tokens: int
) -> tuple[list[int], list[int], list[Span]]:
    """A part as ids, its gaps numbered from ``gap``; the same without words; and what stands in its gaps."""
    v = markup.vocabulary
    text = Span("text", max_text_tokens, stop=(v.eos,))
    if isinstance(part, TextIds):
        return markup.to_ids((part,))[1:-1], [], []
    if isinstance(part, HiddenText):
        left, right = ([v.text_start + id_ for id_ in side] for side in (part.before, part.after))
        words, wordless = markup.filled([*left, v.mask(gap), *right]), markup.filled([v.mask(gap)])
        return [v.text, *words], [v.text, *wordless], [text]
    spans = []
    if isinstance(part, Hole):
        gaps = [v.mask(gap)]
        ids = [MARKERS[part.modality], *(markup.filled(gaps) if part.modality == "text" else gaps)]
        spans = [text if part.modality == "text" else Span("image", markup.codes_per_image)]
    elif isinstance(part, ImageCodes):
        ids = markup.to_ids((part,))[1:-1]
    else:
        ids = [v.image]
        for start, end, hidden in bridged(runs(part.hidden), most):
            if hidden:
                ids.append(v.mask(gap + len(spans)))
                given = [(i - start, part.codes[i]) for i in range(start, end) if not part.hidden[i]]
                spans.append(Span("image", end - start, start=start, given=tuple(given)))
            else:
                ids += [v.image_start + code for code in part.codes[start:end]]
    return ids, ids, spans


Run = tuple[int, int, bool]
"""A stretch of equal flags: (start, end, flag)."""


def runs(flags: Sequence[bool]) -> list[Run]:
    """The stretches of equal flags, in order."""
    edges = [0, *(np.flatnonzero(np.diff(np.asarray(flags, dtype=np.int8))) + 1).tolist(), len(flags)]
    return [(start, end, bool(flags[start])) for start, end in zip(edges[:-1], edges[1:], strict=True)]


def bridged(stretches: Sequence[Run], most: int) -> list[Run]:
    """The same with at most ``most`` that are True: the shortest between two of them become part of these."""
    stretches = list(stretches)
    while sum(flag for _, _, flag in stretches) > most:
        between = [i for i in range(1, len(stretches) - 1) if not stretches[i][2]]
        i = min(between, key=lambda i: stretches[i][1] - stretches[i][0])
        stretches[i - 1 : i + 2] = [(stretches[i - 1][0], stretches[i + 1][1], True)]
    return stretches


def answer_constraint(spans: Sequence[Span], vocabulary: Vocabulary) -> Chain:
    """What the answer to a prompt may be: its spans, with the sentinels between them."""
    links: list[Constraint] = []
    for i, span in enumerate(spans):
        if i:
            links.append(Fixed(vocabulary, (vocabulary.infill(i),)))
        if span.modality == "text":
            links.append(TextSpan(vocabulary, span.stop, span.count))
        else:
            links.append(ImageSpan(vocabulary, span.count, dict(span.given)))
    return Chain(*links)
