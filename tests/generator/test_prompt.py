from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from racm3.document import Hole
from racm3.errors import DocumentError
from racm3.generator.constraints import Constraint
from racm3.generator.prompt import (
    HiddenCodes,
    HiddenText,
    OpenPart,
    Prompt,
    Span,
    answer_constraint,
    bridged,
    build_prompt,
    runs,
)
from racm3.tokens.markup import ImageCodes, Markup, TextIds, TokenDocument
from racm3.tokens.masking import mask, unmask
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary

V = Vocabulary(text_size=7, image_size=5)
N = 4
MARKUP = Markup(V, codes_per_image=N)
MOST_TEXT = 8

WORDS = TextIds((1, 2))
PICTURE = ImageCodes((0, 1, 2, 3))
T = [V.text_start + 1, V.text_start + 2]
C = [V.image_start + code for code in (0, 1, 2, 3)]

texts = st.lists(st.integers(0, V.text_size - 1), min_size=1, max_size=MOST_TEXT).map(lambda ids: TextIds(tuple(ids)))
images = st.lists(st.integers(0, V.image_size - 1), min_size=N, max_size=N).map(lambda codes: ImageCodes(tuple(codes)))
documents = st.lists(st.one_of(texts, images), min_size=1, max_size=4).map(tuple)


def build(main: list[OpenPart], retrieved: tuple[TokenDocument, ...] = ()) -> Prompt:
    return build_prompt(retrieved, main, MARKUP, MOST_TEXT)


# What the docstring draws


def test_caption_to_image() -> None:
    prompt = build([WORDS, Hole("image")])
    assert prompt.ids == [V.doc, V.text, *T, V.image]
    assert prompt.unconditional == [V.doc, V.text, V.mask(0), V.image]
    assert (prompt.part, prompt.spans) == (1, (Span("image", N),))


def test_image_to_caption() -> None:
    prompt = build([Hole("text"), PICTURE])
    assert prompt.ids == [V.doc, V.text, V.mask(0), V.image, *C, V.end, V.infill(0)]
    assert prompt.unconditional == prompt.ids  # there are no words to leave out
    assert (prompt.part, prompt.spans) == (0, (Span("text", MOST_TEXT, stop=(V.eos,)),))


def test_a_text_at_the_end_is_written_on() -> None:
    prompt = build([PICTURE, Hole("text")])
    assert prompt.ids == [V.doc, V.image, *C, V.text]
    assert (prompt.part, prompt.spans) == (1, (Span("text", MOST_TEXT, stop=(V.text, V.image, V.end)),))


def test_a_hidden_region() -> None:
    prompt = build([WORDS, HiddenCodes(PICTURE.codes, (False, True, True, False))])
    assert prompt.ids == [V.doc, V.text, *T, V.image, C[0], V.mask(0), C[3], V.end, V.infill(0)]
    assert prompt.unconditional == [V.doc, V.image, C[0], V.mask(0), C[3], V.end, V.infill(0)]
    assert (prompt.part, prompt.spans) == (1, (Span("image", 2, start=1),))


def test_words_hidden_in_a_text() -> None:
    prompt = build([HiddenText(WORDS.ids[:1], WORDS.ids[1:]), PICTURE])
    assert prompt.ids == [V.doc, V.text, T[0], V.mask(0), T[1], V.image, *C, V.end, V.infill(0)]
    assert prompt.unconditional == [V.doc, V.text, V.mask(0), V.image, *C, V.end, V.infill(0)]
    assert (prompt.part, prompt.spans) == (0, (Span("text", MOST_TEXT, stop=(V.eos,)),))


def test_gaps_are_numbered_through_the_document_and_the_first_part_is_asked_for() -> None:
    region = HiddenCodes(PICTURE.codes, (True, False, True, True))
    prompt = build([Hole("text"), region, Hole("image")])
    body = [V.text, V.mask(0), V.image, V.mask(1), C[1], V.mask(2), V.image, V.mask(3)]
    assert prompt.ids == [V.doc, *body, V.end, V.infill(0)]
    assert (prompt.part, prompt.spans) == (0, (Span("text", MOST_TEXT, stop=(V.infill(1),)),))
    prompt = build([WORDS, region, Hole("image")])
    assert (prompt.part, prompt.spans) == (1, (Span("image", 1), Span("image", 2, start=2)))


def test_holes_at_the_end_are_written_on_one_after_the_other() -> None:
    prompt = build([WORDS, Hole("image"), Hole("text")])
    assert prompt.ids == build([WORDS, Hole("image")]).ids
    prompt = build([WORDS, PICTURE, Hole("text")])
    assert prompt.ids == [V.doc, V.text, *T, V.image, *C, V.text]


def test_a_hole_alone() -> None:
    assert build([Hole("image")]).ids == [V.doc, V.image]
    assert build([Hole("text")]).ids == [V.doc, V.text]


# What training makes


@st.composite
def opened(draw: st.DrawFn) -> tuple[tuple[TokenDocument, ...], TokenDocument, list[OpenPart], list[tuple[int, int]]]:
    """Retrieved documents, a main one, the same with holes, and where these are in the ids of all of them."""
    retrieved = tuple(draw(st.lists(documents, max_size=2)))
    main = draw(documents)
    position = sum(len(MARKUP.to_ids(document)) for document in retrieved) + 1
    parts: list[OpenPart] = []
    spans: list[tuple[int, int]] = []
    for part in main:
        position += 1  # behind the marker
        content = part.ids if isinstance(part, TextIds) else part.codes
        how = draw(st.sampled_from(["given", "hole", "partly"]))
        if how == "hole":
            parts.append(Hole("text" if isinstance(part, TextIds) else "image"))
            spans.append((position, position + len(content)))
        elif how == "partly" and isinstance(part, TextIds):
            start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
            assume(start < end)
            parts.append(HiddenText(content[:start], content[end:]))
            spans.append((position + start, position + end))
        elif how == "partly":
            hidden = tuple(draw(st.lists(st.booleans(), min_size=N, max_size=N)))
            parts.append(HiddenCodes(tuple(content), hidden))
            spans += [(position + start, position + end) for start, end, flag in runs(hidden) if flag]
        else:
            parts.append(part)
        position += len(content)
    assume(0 < len(spans) <= MAX_MASKS)
    return retrieved, main, parts, spans


def pushed(constraint: Constraint, ids: list[int]) -> int:
    """How many of the ids a constraint takes until it is done."""
    for count, id in enumerate(ids):
        if constraint.done:
            return count
        constraint.push(id)
    return len(ids)


@given(opened())
def test_prompt_and_answer_are_what_masking_makes_in_training(
    case: tuple[tuple[TokenDocument, ...], TokenDocument, list[OpenPart], list[tuple[int, int]]],
) -> None:
    retrieved, main, parts, spans = case
    ids = [id for document in (*retrieved, main) for id in MARKUP.to_ids(document)]
    prompt = build(parts, retrieved)
    constraint = answer_constraint(prompt.spans, V)
    start, end = spans[0]
    if all(isinstance(part, Hole) for part in parts[prompt.part :]):  # written on causally
        assert prompt.ids == ids[:start]
        answer = ids[start:]
        assert pushed(constraint, answer) >= end - start
    else:
        masked = mask(np.array(ids), spans, V).tolist()
        assert prompt.ids == masked[: len(prompt.ids)]
        assert prompt.ids[-1] == V.infill(0)
        answer = masked[len(prompt.ids) :]
        last = len(prompt.spans) - 1
        assert pushed(constraint, answer) >= spans[last][1] - start - (spans[last][0] - end if last else 0)
        original, found = unmask(np.array([*prompt.ids, *answer]), V)
        assert (original.tolist(), found) == (ids, spans)
    assert constraint.done


@given(opened())
def test_guidance_keeps_the_retrieved_documents_and_drops_the_words(
    case: tuple[tuple[TokenDocument, ...], TokenDocument, list[OpenPart], list[tuple[int, int]]],
) -> None:
    retrieved, _, parts, _ = case
    before = [id for document in retrieved for id in MARKUP.to_ids(document)]
    prompt = build(parts, retrieved)
    assert prompt.ids[: len(before)] == before
    assert prompt.unconditional[: len(before)] == before
    main, wordless = prompt.ids[len(before) :], np.array(prompt.unconditional[len(before) :])
    assert not V.is_text(wordless).any()
    assert wordless[V.is_image(wordless)].tolist() == [id for id in main if V.is_image(id)]
    masks = wordless[V.is_mask(wordless)].tolist()
    assert all(second == first + 1 for first, second in pairwise(masks))
    if main[-1] == V.infill(0):  # the same gaps, so that an answer means the same to both streams
        assert masks == [id for id in main if V.is_mask(id)]
    assert wordless[-1] == main[-1]


# Errors


def test_nothing_to_generate() -> None:
    for main in ([WORDS], [HiddenCodes(PICTURE.codes, (False,) * N)]):
        with pytest.raises(DocumentError, match="nothing to generate"):
            build(main)


def test_too_many_open_parts() -> None:
    assert build([Hole("text"), WORDS] * MAX_MASKS).part == 0
    with pytest.raises(DocumentError, match="17 open parts, and at most 16"):
        build([Hole("text"), WORDS] * (MAX_MASKS + 1))


# More gaps than masks


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
def test_bridging_hides_as_little_more_as_it_can(hidden: list[bool], most: int) -> None:
    stretches = bridged(runs(hidden), most)
    flags = [flag for start, end, flag in stretches for _ in range(start, end)]
    assert len(flags) == len(hidden)
    assert all(flag for flag, was in zip(flags, hidden, strict=True) if was)
    gaps = runs(hidden)
    count = sum(flag for _, _, flag in gaps)
    assert sum(flag for _, _, flag in stretches) == min(count, most)
    between = sorted(end - start for start, end, flag in gaps[1:-1] if not flag)
    assert sum(flags) - sum(hidden) == sum(between[: max(0, count - most)])


def test_codes_of_a_bridge_are_given_in_the_answer() -> None:
    striped = HiddenCodes(PICTURE.codes, (True, False, True, False))
    prompt = build([striped] * MAX_MASKS)
    assert [id for id in prompt.ids if V.is_mask(id)] == [V.mask(i) for i in range(MAX_MASKS)]
    assert prompt.spans == (Span("image", 3, given=((1, PICTURE.codes[1]),)),)
    constraint = answer_constraint(prompt.spans, V)
    constraint.push(C[2])
    assert constraint.allowed().nonzero()[0].tolist() == [C[1]]


# Whatever the generator thinks


@given(opened(), st.integers(0, 2**31))
def test_random_logits_make_a_well_formed_document(
    case: tuple[tuple[TokenDocument, ...], TokenDocument, list[OpenPart], list[tuple[int, int]]], seed: int
) -> None:
    retrieved, _, parts, _ = case
    rng = np.random.default_rng(seed)
    while not all(isinstance(part, (TextIds, ImageCodes)) for part in parts):
        prompt = build(parts, retrieved)
        constraint = answer_constraint(prompt.spans, V)
        written: list[int] = []
        while not constraint.done:
            id = int(np.where(constraint.allowed(), rng.normal(size=V.size), -np.inf).argmax())
            if constraint.push(id):
                written.append(id)
        part = parts[prompt.part]
        if V.is_text(written[0]):
            before, after = (part.before, part.after) if isinstance(part, HiddenText) else ((), ())
            parts[prompt.part] = TextIds((*before, *(id - V.text_start for id in written), *after))
        else:
            codes = np.array(part.codes if isinstance(part, HiddenCodes) else [0] * N)
            hidden = np.array(part.hidden if isinstance(part, HiddenCodes) else [True] * N)
            codes[hidden] = [id - V.image_start for id in written]
            parts[prompt.part] = ImageCodes(tuple(codes.tolist()))
        parts = [ImageCodes(p.codes) if isinstance(p, HiddenCodes) and not any(p.hidden) else p for p in parts]
    complete = tuple(parts)
    assert MARKUP.from_ids(MARKUP.to_ids(complete)) == complete
