"""Prompt: retrieved documents and a main document with holes -> the ids to read, and what the answer may be.

A hole at the end is written on causally. Any other hole, and a hidden region of a picture, is a CM3 infill: a mask
stands in the gap, the document is closed, and the missing span is written after its sentinel:

    <doc> <text> t t <image> | c c c c ...                                        caption -> image
    <doc> <text> <mask:0> <image> c c c ... </doc> <infill:0> | t t t ... <eos>   image -> caption

To the left of the bar stands the prompt, to the right the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from racm3.document import Hole
from racm3.errors import DocumentError
from racm3.generator.decoding import Chain, Constraint, Fixed, ImageSpan, TextSpan
from racm3.tokens.markup import ImageCodes, Markup, TextIds, TokenDocument
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary


@dataclass(frozen=True)
class HiddenCodes:
    """An image part some of whose codes are to be generated: ``hidden`` (N,) bool beside the ``codes`` (N,)."""

    codes: tuple[int, ...]
    hidden: tuple[bool, ...]


OpenPart = TextIds | ImageCodes | HiddenCodes | Hole


@dataclass(frozen=True)
class Span:
    """A stretch of the answer: ``count`` image codes, or text of free length up to ``count`` ids if ``stop`` is given.

    ``part`` is the index of the document's part that it belongs to.
    """

    part: int
    count: int
    stop: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """``ids`` to read, ``unconditional`` the same without the main document's words, and the spans to write."""

    ids: list[int]
    unconditional: list[int]
    spans: tuple[Span, ...]


def build_prompt(
    retrieved: Sequence[TokenDocument], main: Sequence[OpenPart], markup: Markup, max_text_tokens: int
) -> Prompt:
    """The prompt of one request.

    The unconditional stream keeps the retrieved documents; where it writes on causally the caption is hidden behind a
    mask (CM3Leon), in an infill it is left out, so that the gaps keep their numbers.
    Raises DocumentError if nothing is to be generated, or more than 16 spans are.
    """
    before = [id_ for document in retrieved for id_ in markup.to_ids(document)]
    if len(main) and isinstance(main[-1], Hole) and not any(isinstance(p, (Hole, HiddenCodes)) for p in main[:-1]):
        return _causal(before, main, markup, max_text_tokens)
    return _infill(before, main, markup, max_text_tokens)


def _causal(before: list[int], main: Sequence[OpenPart], markup: Markup, max_text_tokens: int) -> Prompt:
    v, last = markup.vocabulary, len(main) - 1
    hole = main[last]
    assert isinstance(hole, Hole)
    given = [part for part in main[:last] if isinstance(part, (TextIds, ImageCodes))]
    opened = markup.to_ids(tuple(given))[:-1] if given else [v.doc]
    wordless = [v.doc]
    masks = 0
    for part in given:
        if isinstance(part, TextIds):
            wordless += [v.text, v.mask(masks)]
            masks += 1
        else:
            wordless += markup.to_ids((part,))[1:-1]
    if hole.modality == "image":
        span = Span(last, markup.codes_per_image)
        marker = v.image
    else:
        span = Span(last, max_text_tokens, stop=(v.end, v.text, v.image))
        marker = v.text
    return Prompt([*before, *opened, marker], [*before, *wordless, marker], (span,))


def _infill(before: list[int], main: Sequence[OpenPart], markup: Markup, max_text_tokens: int) -> Prompt:
    v = markup.vocabulary
    ids, wordless, gaps = [v.doc], [v.doc], 0
    found: list[tuple[int, int, bool]] = []  # (part, count, is text) of every gap
    for number, part in enumerate(main):
        read = len(ids)
        if isinstance(part, (TextIds, ImageCodes)):
            ids += markup.to_ids((part,))[1:-1]
        elif isinstance(part, Hole):
            is_text = part.modality == "text"
            ids += [v.text if is_text else v.image, v.mask(_checked(gaps))]
            found.append((number, max_text_tokens if is_text else markup.codes_per_image, is_text))
            gaps += 1
        else:
            ids.append(v.image)
            for start, end, hidden in runs(part.hidden):
                if hidden:
                    ids.append(v.mask(_checked(gaps)))
                    found.append((number, end - start, False))
                    gaps += 1
                else:
                    ids += [v.image_start + code for code in part.codes[start:end]]
        if not isinstance(part, TextIds):
            wordless += ids[read:]
    if not found:
        raise DocumentError("the document has nothing to generate; give it a Hole, or an image with a mask")
    ids.append(v.end)
    spans = []
    for gap, (number, count, is_text) in enumerate(found):
        after = v.infill(gap + 1) if gap + 1 < len(found) else v.eos
        spans.append(Span(number, count, (after,) if is_text else ()))
    return Prompt([*before, *ids, v.infill(0)], [*before, *wordless, v.end, v.infill(0)], tuple(spans))


def runs(flags: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """Stretches of equal flags: (start, end, flag)."""
    edges = [0, *(np.flatnonzero(np.diff(np.asarray(flags, dtype=np.int8))) + 1).tolist(), len(flags)]
    return [(start, end, bool(flags[start])) for start, end in zip(edges[:-1], edges[1:], strict=True)]


def _checked(gap: int) -> int:
    if gap >= MAX_MASKS:
        raise DocumentError(
            f"the document has more than {MAX_MASKS} gaps, counting each row of a hidden region; hide fewer rows"
        )
    return gap


def answer_constraint(spans: Sequence[Span], vocabulary: Vocabulary) -> Chain:
    """What the answer to a prompt may be: its spans, with the sentinels between them."""
    links: list[Constraint] = []
    for i, span in enumerate(spans):
        if span.stop:
            links.append(TextSpan(vocabulary, span.stop, span.count))
            continue
        links.append(ImageSpan(vocabulary, span.count))
        if i + 1 < len(spans):
            links.append(Fixed(vocabulary, (vocabulary.infill(i + 1),)))
    return Chain(*links)
