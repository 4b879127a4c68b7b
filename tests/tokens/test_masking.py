from __future__ import annotations

import re
from collections import Counter
from math import exp, factorial
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.errors import InputError, MarkupError
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.masking import (
    Span,
    draw_count,
    draw_spans,
    mask,
    part_spans,
    prediction_weights,
    region_spans,
    unmask,
)
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary

V = Vocabulary(text_size=7, image_size=5)
N = 4
MARKUP = Markup(V, codes_per_image=N)

texts = st.lists(st.integers(0, V.text_size - 1), min_size=1, max_size=8).map(lambda ids: TextIds(tuple(ids)))
images = st.lists(st.integers(0, V.image_size - 1), min_size=N, max_size=N).map(lambda codes: ImageCodes(tuple(codes)))
documents = st.lists(st.one_of(texts, images), min_size=1, max_size=4).map(tuple)
sequences = st.lists(documents.map(MARKUP.to_ids), min_size=1, max_size=3).map(lambda many: np.concatenate(many))
seeds = st.integers(0, 2**32 - 1)


def document_segments(ids: np.ndarray, vocabulary: Vocabulary) -> list[Span]:
    """The inside of every document: what stands between ``<doc>`` and ``</doc>``."""
    starts, ends = np.flatnonzero(ids == vocabulary.doc) + 1, np.flatnonzero(ids == vocabulary.end)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def obvious_mask(ids: list[int], spans: list[Span]) -> list[int]:
    """The slow twin of `mask`, token by token."""
    body, tail = [], []
    for position, id in enumerate(ids):
        for i, (start, end) in enumerate(spans):
            if position == start:
                body.append(V.mask(i))
                tail.append(V.infill(i))
            if start <= position < end:
                tail.append(id)
        if not any(start <= position < end for start, end in spans):
            body.append(id)
    return [*body, *tail, V.eos]


@given(sequences, seeds, st.integers(0, MAX_MASKS), st.sampled_from([np.int64, np.int32, np.int16, np.uint16]))
def test_unmask_is_the_exact_inverse(ids: np.ndarray, seed: int, count: int, dtype: type[np.integer]) -> None:
    ids = ids.astype(dtype)
    spans = draw_spans(np.random.default_rng(seed), document_segments(ids, V), count)
    masked = mask(ids, spans, V)
    assert masked.tolist() == obvious_mask(ids.tolist(), spans)
    assert masked.dtype == dtype
    assert len(masked) == len(ids) + 2 * len(spans) + 1
    back, spans_back = unmask(masked, V)
    assert (back.tolist(), spans_back, back.dtype) == (ids.tolist(), spans, dtype)


@given(st.lists(st.sampled_from([*range(5), *range(6, 9), *range(22, 25), *range(38, 41)]), max_size=9), st.booleans())
def test_what_unmask_accepts_mask_gives_back(ids: list[int], ended: bool) -> None:
    ids = [*ids, V.eos] if ended else ids
    try:
        original, spans = unmask(np.array(ids, dtype=np.int64), V)
    except MarkupError:
        return
    assert mask(original, spans, V).tolist() == ids


def test_the_example_of_the_docstring() -> None:
    a, red, fox, c = V.text_start, V.text_start + 1, V.text_start + 2, V.image_start
    ids = np.array([V.doc, V.text, a, red, fox, V.image, c, c, c, c, V.end])
    expected = [V.doc, V.text, a, V.mask(0), V.image, c, V.mask(1), c, V.end]
    expected += [V.infill(0), red, fox, V.infill(1), c, c, V.eos]
    assert mask(ids, [(3, 5), (7, 9)], V).tolist() == expected


@given(sequences, seeds, st.integers(0, MAX_MASKS))
def test_spans_are_sorted_apart_and_inside_one_document(ids: np.ndarray, seed: int, count: int) -> None:
    segments = document_segments(ids, V)
    spans = draw_spans(np.random.default_rng(seed), segments, count)
    assert min(count, 1) <= len(spans) <= count
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert end <= start
    for start, end in spans:
        assert start < end
        assert any(low <= start and end <= high for low, high in segments)
        assert not {V.doc, V.end} & set(ids[start:end].tolist())


def test_span_ends_are_two_uniform_points_of_one_segment() -> None:
    """All pairs of points of each segment are equally likely; a segment is as likely as it is long."""
    rng = np.random.default_rng(0)
    segments = [(10, 13), (20, 20), (30, 31)]  # 3, 0 and 1 tokens
    n = 30_000
    seen = Counter(draw_spans(rng, segments, 1)[0] for _ in range(n))
    share = {(30, 31): 1 / 4}
    for low in range(3):
        for high in range(low, 3):
            share[10 + low, 11 + high] = 3 / 4 * (1 if low == high else 2) / 9
    assert seen.keys() == share.keys()
    for span, expected in share.items():
        assert seen[span] / n == pytest.approx(expected, abs=0.012)  # 4 standard errors: 0.010


def test_no_segments_give_no_spans() -> None:
    rng = np.random.default_rng(0)
    assert draw_spans(rng, [], 3) == []
    assert draw_spans(rng, [(4, 4)], 3) == []


@pytest.mark.parametrize("minimum", [0, 1])
def test_the_count_is_a_clamped_poisson(minimum: Literal[0, 1]) -> None:
    rng = np.random.default_rng(1)
    n = 40_000
    counts = Counter(draw_count(rng, minimum) for _ in range(n))
    poisson = [exp(-1) / factorial(k) for k in range(MAX_MASKS + 1)]
    expected = poisson if minimum == 0 else [0, poisson[0] + poisson[1], *poisson[2:]]
    for k, share in enumerate(expected):
        assert counts[k] / n == pytest.approx(share, abs=0.01)  # 4 standard errors: 0.010
    assert set(counts) <= set(range(minimum, MAX_MASKS + 1))


def test_the_count_is_clamped_above() -> None:
    class Many:
        def poisson(self, _: float) -> int:
            return 40

    assert draw_count(Many(), 0) == MAX_MASKS  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_spans() -> None:
    draws = [draw_spans(np.random.default_rng(5), [(1, 100), (102, 180)], 4) for _ in range(2)]
    assert draws[0] == draws[1]


@given(sequences)
def test_part_spans_are_the_insides_of_the_parts(ids: np.ndarray) -> None:
    for modality, marker, kind in (("text", V.text, V.is_text), ("image", V.image, V.is_image)):
        spans = part_spans(ids, V, modality)  # type: ignore[arg-type]
        assert [start - 1 for start, _ in spans] == np.flatnonzero(ids == marker).tolist()
        assert all(kind(ids[start:end]).all() and not kind(int(ids[end])) for start, end in spans)


def test_a_masked_text_part_is_the_captioning_task() -> None:
    ids = np.array(MARKUP.to_ids((TextIds((1, 2)), ImageCodes((0, 1, 2, 3)))))
    codes = [V.image_start + code for code in range(4)]
    text = [V.text_start + 1, V.text_start + 2]
    expected = [V.doc, V.text, V.mask(0), V.image, *codes, V.end, V.infill(0), *text, V.eos]
    assert mask(ids, part_spans(ids, V, "text"), V).tolist() == expected


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_region_spans_cover_exactly_the_rectangle(rows: int, columns: int, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    height, width = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, columns - left))
    spans = region_spans(100, (rows, columns), top, left, height, width)
    hidden = np.zeros((rows, columns), dtype=bool)
    hidden[top : top + height, left : left + width] = True
    covered = [position for start, end in spans for position in range(start, end)]
    assert covered == (100 + np.flatnonzero(hidden)).tolist()
    assert len(spans) == height


@pytest.mark.parametrize("region", [(0, 0, 0, 1), (0, 0, 1, 0), (-1, 0, 1, 1), (0, 2, 1, 3), (3, 0, 2, 1)])
def test_a_region_outside_the_grid_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="inside the grid of 4 x 4 codes"):
        region_spans(0, (4, 4), *region)


def test_a_region_of_too_many_rows_is_refused() -> None:
    with pytest.raises(InputError, match="at most 16"):
        region_spans(0, (32, 32), 0, 0, 17, 2)


@given(sequences, seeds)
def test_only_mask_tokens_weigh_nothing(ids: np.ndarray, seed: int) -> None:
    masked = mask(ids, draw_spans(np.random.default_rng(seed), document_segments(ids, V), 3), V)
    weights = prediction_weights(masked, V)
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.0 if V.name(id).startswith("<mask:") else 1.0 for id in masked.tolist()]


DOCUMENT = [V.doc, V.text, 40, 41, 42, V.end]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(3, 4), (2, 3)], "span (2, 3) was given; spans are sorted"),
        ([(2, 4), (3, 5)], "span (3, 5) was given"),
        ([(2, 2)], "span (2, 2) was given"),
        ([(4, 7)], "span (4, 7) was given"),
        ([(0, 2)], "position 0: found <doc>; a span stays inside one document"),
        ([(4, 6)], "position 5: found </doc>; a span stays inside one document"),
        ([(2, 3)] * 17, "17 spans were given; at most 16"),
    ],
)
def test_bad_spans_are_refused(spans: list[Span], message: str) -> None:
    with pytest.raises(MarkupError, match=re.escape(message)):
        mask(np.array(DOCUMENT), spans, V)


@pytest.mark.parametrize("id", [V.pad, V.eos, V.mask(0), V.infill(15), V.size, -1])
def test_only_documents_are_masked(id: int) -> None:
    with pytest.raises(MarkupError, match=re.escape(f"position 6: found {V.name(id)}; only documents can be masked")):
        mask(np.array([*DOCUMENT, id]), [], V)


M, F = V.mask, V.infill


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "position 0: found nothing; a masked sequence ends with <eos>"),
        ([*DOCUMENT], "position 5: found </doc>; a masked sequence ends with <eos>"),
        ([V.doc, V.eos, V.eos], "position 1: found <eos>; one <eos> stands at the end"),
        ([V.doc, V.pad, V.eos], "position 1: found <pad>; one <eos> stands at the end, and no <pad>"),
        ([V.doc, M(1), V.end, F(0), 40, V.eos], "position 1: found <mask:1>; the next is <mask:0>"),
        ([V.doc, M(0), M(1), V.end, F(0), 40, F(0), 40, V.eos], "position 6: found <infill:0>; the next is <infill:1>"),
        ([V.doc, M(0), V.end, V.eos], "1 masks but 0 infill spans"),
        ([V.doc, V.end, F(0), 40, V.eos], "0 masks but 1 infill spans"),
        ([V.doc, V.end, F(0), M(0), V.eos], "position 3: found <mask:0>; masks stand before <infill:0>"),
        ([V.doc, M(0), V.end, F(0), V.eos], "position 4: found <eos>; an infill span has at least one token"),
        ([V.doc, M(0), F(0), 40, V.end, V.eos], "position 4: found </doc>; an infill span stays inside one document"),
    ],
)
def test_malformed_masked_sequences_are_named(ids: list[int], message: str) -> None:
    with pytest.raises(MarkupError, match=re.escape(message)):
        unmask(np.array(ids, dtype=np.int64), V)
