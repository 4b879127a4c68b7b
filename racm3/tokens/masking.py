"""CM3 masking: some spans of a sequence move to its end, so that one left-to-right model both continues and infills.

    <doc> <text> a red fox <image> c c c c </doc>
    <doc> <text> a <mask:0> <image> c <mask:1> c </doc> <infill:0> red fox <infill:1> c c <eos>

A span is ``(start, end)``: the tokens ``ids[start:end]`` of the unmasked sequence. All positions count tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from racm3.document import Modality
from racm3.errors import InputError, MarkupError
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary

__all__ = [
    "Span",
    "draw_count",
    "draw_spans",
    "mask",
    "part_spans",
    "prediction_weights",
    "region_spans",
    "unmask",
]

Span = tuple[int, int]

TRIES = 4
"""How often a span that overlaps an earlier one is drawn again before it is dropped. Ours: with one or two spans, as
nearly always, a span is then seldom lost, and a sequence never takes long."""


def draw_count(rng: np.random.Generator, minimum: Literal[0, 1]) -> int:
    """Number of masks: Poisson(1) clamped to ``minimum`` .. 16.

    Source: the CM3 paper clamps from 1; the authors' later code from 0, which leaves 36.8 % of sequences causal.
    """
    return min(max(int(rng.poisson(1.0)), minimum), MAX_MASKS)


def draw_spans(rng: np.random.Generator, segments: Sequence[Span], count: int) -> list[Span]:
    """At most ``count`` spans, sorted, not overlapping, each of at least one token and inside one segment.

    A span reaches from one uniform token to another of the same segment, both included; the first is uniform over
    all segments. One that overlaps an earlier span is drawn again ``TRIES`` times, then dropped.
    """
    total = sum(end - start for start, end in segments)
    if count == 0 or total == 0:
        return []
    spans: list[Span] = []
    for draws in rng.random((count, 1 + TRIES, 2)).tolist():
        for first, second in draws:
            one, other = _two_points(segments, int(first * total), second)
            low, high = min(one, other), max(one, other) + 1
            if all(high <= start or low >= end for start, end in spans):
                spans.append((low, high))
                break
    return sorted(spans)


def _two_points(segments: Sequence[Span], first: int, second: float) -> tuple[int, int]:
    """The ``first``-th position of all segments, and the one at fraction ``second`` of the same segment."""
    for start, end in segments:
        if first < end - start:
            return start + first, start + int(second * (end - start))
        first -= end - start
    raise AssertionError("first is below the length of all segments")


def part_spans(ids: np.ndarray, vocabulary: Vocabulary, modality: Modality) -> list[Span]:
    """The inside of every part of one modality: its text ids, or its codes, without the marker before them.

    With one of these spans masked, a sequence is the task image -> caption (or, of modality image, text -> image).
    """
    inside = np.zeros(len(ids) + 2, dtype=np.int8)
    inside[1:-1] = vocabulary.is_text(ids) if modality == "text" else vocabulary.is_image(ids)
    edges = np.flatnonzero(np.diff(inside)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def region_spans(image_start: int, grid: tuple[int, int], top: int, left: int, height: int, width: int) -> list[Span]:
    """A rectangle of the code grid as one span a row; ``image_start`` is the position of the image's first code.

    ``grid`` is (rows, columns); all measures are in codes. Raises InputError if the rectangle is empty, leaves the
    grid, or has more than 16 rows.
    """
    rows, columns = grid
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise InputError(
            f"a region of {height} x {width} codes at row {top}, column {left} was given; "
            f"it must lie inside the grid of {rows} x {columns} codes and not be empty"
        )
    if height > MAX_MASKS:
        raise InputError(f"a region of {height} rows of codes was given; at most {MAX_MASKS} can be masked at once")
    starts = range(image_start + top * columns + left, image_start + (top + height) * columns, columns)
    return [(start, start + width) for start in starts]


def mask(ids: np.ndarray, spans: Sequence[Span], vocabulary: Vocabulary) -> np.ndarray:
    """Move the spans to the end: (T,) -> (T + 2 * len(spans) + 1,), of the same integer type. ``<eos>`` is added.

    Raises MarkupError if the spans are not sorted, overlap, are empty, leave the sequence, contain ``<doc>`` or
    ``</doc>``, or are more than 16; or if ``ids`` hold ``<pad>``, ``<eos>``, ``<mask:i>`` or ``<infill:i>``.
    """
    ids = np.asarray(ids)
    _check_maskable(ids, spans, vocabulary)
    gaps: list[np.ndarray] = []
    moved: list[np.ndarray] = []
    read = 0
    for i, (start, end) in enumerate(spans):
        gaps += [ids[read:start], np.array([vocabulary.mask(i)], dtype=ids.dtype)]
        moved += [np.array([vocabulary.infill(i)], dtype=ids.dtype), ids[start:end]]
        read = end
    return np.concatenate([*gaps, ids[read:], *moved, np.array([vocabulary.eos], dtype=ids.dtype)])


def unmask(ids: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, list[Span]]:
    """The sequence before masking, without ``<eos>``, and its spans: exact inverse of ``mask``.

    Raises MarkupError with the position, what was found there and what may stand there.
    """
    v, ids = vocabulary, np.asarray(ids)
    last = len(ids) - 1
    if last < 0 or ids[last] != v.eos:
        found = v.name(int(ids[last])) if last >= 0 else "nothing"
        raise MarkupError(f"position {max(last, 0)}: found {found}; a masked sequence ends with <eos>")
    _refuse(ids, (ids[:last] <= v.eos) | (ids[:last] >= v.size), 0, "one <eos> stands at the end, and no <pad>", v)
    gaps, sentinels = np.flatnonzero(v.is_mask(ids)).tolist(), np.flatnonzero(v.is_infill(ids)).tolist()
    for expected, positions in ((v.mask, gaps), (v.infill, sentinels)):
        for i, position in enumerate(positions):
            _refuse(ids, ids[position : position + 1] != expected(i), position, f"the next is {v.name(expected(i))}", v)
    if len(gaps) != len(sentinels):
        raise MarkupError(f"{len(gaps)} masks but {len(sentinels)} infill spans were given; each mask has one span")
    tail = sentinels[0] if sentinels else last
    _refuse(ids, v.is_mask(ids[tail:]), tail, "masks stand before <infill:0>", v)
    _refuse(ids, _is_boundary(ids[tail:], v), tail, "an infill span stays inside one document", v)
    pieces, spans = [], []
    read = length = 0  # how far the masked and the unmasked sequence are read
    for gap, sentinel, stop in zip(gaps, sentinels, [*sentinels, last][1:], strict=True):
        _refuse(ids, np.array([stop == sentinel + 1]), stop, "an infill span has at least one token", v)
        start = length + gap - read
        length = start + stop - sentinel - 1
        pieces += [ids[read:gap], ids[sentinel + 1 : stop]]
        spans.append((start, length))
        read = gap + 1
    return np.concatenate([*pieces, ids[read:tail]]), spans


def prediction_weights(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """(T,) float32, the weight of each token as a target: 0 for ``<mask:i>``, else 1.

    Where a span was cut out is chance, so there is nothing to learn in predicting it. Source: the CM3 paper.
    """
    return np.where(vocabulary.is_mask(np.asarray(ids)), np.float32(0), np.float32(1))


def _check_maskable(ids: np.ndarray, spans: Sequence[Span], v: Vocabulary) -> None:
    reserved = (ids <= v.eos) | ((ids >= v.mask_start) & (ids < v.text_start)) | (ids >= v.size)
    _refuse(ids, reserved, 0, "only documents can be masked", v)
    if len(spans) > MAX_MASKS:
        raise MarkupError(f"{len(spans)} spans were given; at most {MAX_MASKS} can be masked")
    previous = 0
    for start, end in spans:
        if not previous <= start < end <= len(ids):
            raise MarkupError(
                f"span ({start}, {end}) was given; spans are sorted, apart, not empty, and end by {len(ids)}"
            )
        _refuse(ids, _is_boundary(ids[start:end], v), start, "a span stays inside one document", v)
        previous = end


def _is_boundary(ids: np.ndarray, v: Vocabulary) -> np.ndarray:
    return (ids == v.doc) | (ids == v.end)


def _refuse(ids: np.ndarray, wrong: np.ndarray, offset: int, rule: str, v: Vocabulary) -> None:
    """Raise MarkupError naming the first position, counted from ``offset``, where ``wrong`` is True."""
    if wrong.any():
        position = offset + int(wrong.argmax())
        raise MarkupError(f"position {position}: found {v.name(int(ids[position]))}; {rule}")
