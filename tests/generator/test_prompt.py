from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from racm3.document import Hole
from racm3.errors import DocumentError
from racm3.generator.decoding import Constraint
from racm3.generator.prompt import HiddenCodes, OpenPart, Prompt, Span, answer_constraint, build_prompt, runs
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
    assert prompt.spans == (Span(1, N),)


def test_image_to_caption() -> None:
    prompt = build([Hole("text"), PICTURE])
    assert prompt.ids == [V.doc, V.text, V.mask(0), V.image, *C, V.end, V.infill(0)]
    assert prompt.unconditional == prompt.ids  # there are no words to leave out
    assert prompt.spans == (Span(0, MOST_TEXT, stop=(V.eos,)),)


def test_a_text_at_the_end_is_written_on() -> None:
    prompt = build([PICTURE, Hole("text")])
    assert prompt.ids == [V.doc, V.image, *C, V.text]
    assert prompt.spans == (Span(1, MOST_TEXT, stop=(V.end, V.text, V.image)),)


def test_a_hidden_region() -> None:
    prompt = build([WORDS, HiddenCodes(PICTURE.codes, (False, True, True, False))])
    assert prompt.ids == [V.doc, V.text, *T, V.image, C[0], V.mask(0), C[3], V.end, V.infill(0)]
    assert prompt.unconditional == [V.doc, V.image, C[0], V.mask(0), C[3], V.end, V.infill(0)]
    assert prompt.spans == (Span(1, 2),)


def test_gaps_are_numbered_through_the_document() -> None:
    prompt = build([Hole("text"), HiddenCodes(PICTURE.codes, (True, False, True, True)), Hole("image")])
    body = [V.text, V.mask(0), V.image, V.mask(1), C[1], V.mask(2), V.image, V.mask(3)]
    assert prompt.ids == [V.doc, *body, V.end, V.infill(0)]
    assert prompt.spans == (Span(0, MOST_TEXT, stop=(V.infill(1),)), Span(1, 1), Span(1, 2), Span(2, N))


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
        how = draw(st.sampled_from(["given", "hole", "region"] if isinstance(part, ImageCodes) else ["given", "hole"]))
        if how == "hole":
            parts.append(Hole("text" if isinstance(part, TextIds) else "image"))
            spans.append((position, position + len(content)))
        elif how == "region":
            hidden = tuple(draw(st.lists(st.booleans(), min_size=N, max_size=N)))
            parts.append(HiddenCodes(tuple(content), hidden))
            spans += [(position + start, position + end) for start, end, flag in runs(hidden) if flag]
        else:
            parts.append(part)
        position += len(content)
    assume(0 < len(spans) <= MAX_MASKS)
    return retrieved, main, parts, spans


def answer_of(prompt: Prompt, ids: list[int], spans: list[tuple[int, int]]) -> list[int]:
    """The true answer to an infill prompt: the hidden tokens with the sentinels between them, and the end."""
    answer: list[int] = []
    for i, (start, end) in enumerate(spans):
        answer += [*([V.infill(i)] if i else []), *ids[start:end]]
    return [*answer, V.eos]


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
    assert len(prompt.spans) == len(spans)
    if isinstance(parts[-1], Hole) and len(spans) == 1:  # at the end of the document: written on causally
        start, end = spans[0]
        assert prompt.ids == ids[:start]
        answer = ids[start:]
        assert pushed(constraint, answer) >= end - start
    else:
        answer = answer_of(prompt, ids, spans)
        assert [*prompt.ids, *answer] == mask(np.array(ids), spans, V).tolist()
        original, found = unmask(np.array([*prompt.ids, *answer]), V)
        assert (original.tolist(), found) == (ids, spans)
        assert pushed(constraint, answer) >= len(answer) - 1  # codes need no <eos>
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


def test_too_many_gaps() -> None:
    striped = HiddenCodes(PICTURE.codes, (True, False, True, False))
    assert len(build([striped] * (MAX_MASKS // 2)).spans) == MAX_MASKS
    for last in (striped, Hole("text")):
        with pytest.raises(DocumentError, match="more than 16 gaps"):
            build([*[striped] * (MAX_MASKS // 2), last])
