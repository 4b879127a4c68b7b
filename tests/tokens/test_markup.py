from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.errors import ConfigError, MarkupError
from racm3.tokens.markup import Grammar, ImageCodes, Markup, TextIds, TokenDocument
from racm3.tokens.vocabulary import Vocabulary

V = Vocabulary(text_size=5, image_size=4)
N = 3
MARKUP = Markup(V, codes_per_image=N)
T0, C0 = V.text_start, V.image_start

texts = st.lists(st.integers(0, V.text_size - 1), min_size=1, max_size=6).map(lambda ids: TextIds(tuple(ids)))
images = st.lists(st.integers(0, V.image_size - 1), min_size=N, max_size=N).map(lambda codes: ImageCodes(tuple(codes)))
documents = st.lists(st.one_of(texts, images), min_size=1, max_size=5).map(tuple)


def letters(ids: list[int]) -> str:
    """A sequence as a string for a regular expression: one letter a kind of token."""
    kinds = "PEDdTI" + "m" * 16 + "f" * 16 + "t" * V.text_size + "c" * V.image_size
    return "".join(kinds[id] for id in ids)


def well_formed(sequence: str) -> bool:
    return re.fullmatch(rf"(D(Tt+|Ic{{{N}}})+d)+EP*", sequence) is not None


COMPLETIONS = [
    "".join(pieces)
    for pieces in itertools.product(
        ("", "t", "DTt", *("c" * k for k in range(1, N + 1))), ("", "Tt"), ("", "d"), ("", "E")
    )
]


def can_be_completed(sequence: str) -> bool:
    return any(well_formed(sequence + completion) for completion in COMPLETIONS)


def walk(choices: st.DataObject, steps: int) -> list[int]:
    """A random path through the grammar; the kind is drawn first, so that short parts are as likely as long."""
    grammar, ids = Grammar(MARKUP), []
    for _ in range(steps):
        allowed = np.flatnonzero(grammar.allowed()).tolist()
        kinds = sorted(set(letters(allowed)))
        kind = choices.draw(st.sampled_from(kinds))
        id = choices.draw(st.sampled_from([id for id in allowed if letters([id]) == kind]))
        grammar.push(id)
        ids.append(id)
    return ids


@given(documents)
def test_from_ids_is_the_exact_inverse(parts: TokenDocument) -> None:
    ids = MARKUP.to_ids(parts)
    assert well_formed(letters([*ids, V.eos]))
    assert MARKUP.from_ids(ids) == parts
    assert MARKUP.from_ids(np.array(ids)) == parts


@given(st.lists(st.integers(-1, V.size), max_size=12))
def test_what_from_ids_accepts_to_ids_gives_back(ids: list[int]) -> None:
    try:
        parts = MARKUP.from_ids(ids)
    except MarkupError:
        return
    assert MARKUP.to_ids(parts) == ids


@given(documents, st.data())
def test_damage_is_either_refused_or_another_well_formed_document(parts: TokenDocument, data: st.DataObject) -> None:
    ids = MARKUP.to_ids(parts)
    position = data.draw(st.integers(0, len(ids) - 1))
    ids[position] = data.draw(st.integers(0, V.size - 1))
    good = well_formed(letters([*ids, V.eos])) and ids.count(V.doc) == 1
    if good:
        assert MARKUP.to_ids(MARKUP.from_ids(ids)) == ids
    else:
        with pytest.raises(MarkupError) as caught:
            MARKUP.from_ids(ids)
        named = re.match(r"position (\d+): ", str(caught.value))
        assert named is not None
        assert position <= int(named[1]) <= len(ids)


@given(st.data(), st.integers(0, 25))
def test_the_grammar_allows_just_what_can_be_completed(data: st.DataObject, steps: int) -> None:
    ids = walk(data, steps)
    fast = Grammar(MARKUP, ids).allowed()
    assert fast.tolist() == [can_be_completed(letters([*ids, id])) for id in range(V.size)]


@given(st.data(), st.integers(0, 25))
def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing(data: st.DataObject, steps: int) -> None:
    grammar = Grammar(MARKUP, walk(data, steps))
    before = grammar.allowed().tolist()
    wrong = data.draw(st.sampled_from([-1, V.size, *(id for id in range(V.size) if not before[id])]))
    with pytest.raises(MarkupError, match=f"^position {steps}: found "):
        grammar.push(wrong)
    assert grammar.allowed().tolist() == before
    assert grammar.position == steps


@given(st.data())
def test_every_generated_image_has_exactly_its_codes(data: st.DataObject) -> None:
    sequence = letters(walk(data, 40))
    complete = sequence[: sequence.rfind("d") + 1]
    assert all(len(codes) == N for codes in re.findall("I(c*)", complete))
    assert all(len(ids) > 0 for ids in re.findall("T(t*)", complete))


def test_the_grammar_ends_with_eos_and_padding() -> None:
    ids = MARKUP.to_ids((TextIds((1,)),))
    grammar = Grammar(MARKUP, [*ids, *ids, V.eos])
    grammar.push(V.pad)
    assert np.flatnonzero(grammar.allowed()).tolist() == [V.pad]


def test_shared_sets_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Grammar(MARKUP).allowed()[0] = True


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "position 0: the ids end, but <doc> is missing"),
        ([V.text], "position 0: found <text>; there may stand <doc>"),
        ([V.doc, V.end], "position 1: found </doc>; there may stand <text> or <image>"),
        ([V.doc, V.text, V.end], "position 2: found </doc>; there may stand a text id"),
        (
            [V.doc, V.text, T0, C0 + 1],
            "position 3: found image code 1; there may stand </doc> or <text> or <image> or a text id",
        ),
        ([V.doc, V.image, C0, C0, V.end], "position 4: found </doc>; there may stand an image code"),
        (
            [V.doc, V.image, C0, C0, C0, C0],
            "position 5: found image code 0; there may stand </doc> or <text> or <image>",
        ),
        ([V.doc, V.text, T0], "position 3: the ids end, but </doc> or <text> or <image> or a text id is missing"),
        ([V.doc, V.text, T0, V.end, V.eos], "position 4: found <eos>; one document ends at its </doc>"),
        ([V.doc, V.mask(3)], "position 1: found <mask:3>; there may stand <text> or <image>"),
        ([V.doc, 999], "position 1: found id 999, which is outside the vocabulary"),
    ],
)
def test_malformed_ids_are_named(ids: list[int], message: str) -> None:
    with pytest.raises(MarkupError, match=re.escape(message)):
        MARKUP.from_ids(ids)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "at least one part"),
        ((TextIds(()),), "part 0 is an empty text"),
        ((TextIds((1,)), ImageCodes((0, 0))), "part 1 is an image of 2 codes; it has exactly 3"),
        ((TextIds((1, 5)),), "part 0: text id 5 was given; allowed are 0 to 4"),
        ((ImageCodes((0, -1, 0)),), "part 0: image code -1 was given; allowed are 0 to 3"),
    ],
)
def test_impossible_documents_are_named(parts: TokenDocument, message: str) -> None:
    with pytest.raises(MarkupError, match=message):
        MARKUP.to_ids(parts)


def test_an_image_has_at_least_one_code() -> None:
    with pytest.raises(ConfigError, match="codes_per_image=0"):
        Markup(V, 0)


def test_texts_are_filled_up_so_that_pictures_stand_equally_far_apart() -> None:
    markup = Markup(V, 4, text_ids=5)
    pictures = []
    for text in ((0,), (1, 2, 0), (2,) * 5):
        document = (TextIds(text), ImageCodes((0, 1, 2, 1)))
        ids = markup.to_ids(document)
        assert markup.from_ids(ids) == document
        pictures.append(ids.index(V.image))
    assert set(pictures) == {7}
    longer = (TextIds((1,) * 6), ImageCodes((0, 1, 2, 1)))
    assert markup.from_ids(markup.to_ids(longer)) == longer
    with pytest.raises(MarkupError, match="found <pad>"):
        Markup(V, 4).from_ids(ids[:4] + [V.pad] + ids[4:])


def test_filling_is_what_to_ids_does_and_counts_a_mask_as_text() -> None:
    plain, markup = Markup(V, 4), Markup(V, 4, text_ids=5)
    documents = [(TextIds((1, 2)), ImageCodes((0, 1, 2, 1))), (ImageCodes((0, 0, 0, 0)),), (TextIds((1,)),)]
    ids = np.array([id_ for document in documents for id_ in plain.to_ids(document)])
    order = markup.filling(ids)
    assert np.where(order < 0, V.pad, ids[order]).tolist() == [i for one in documents for i in markup.to_ids(one)]
    masked = np.array([V.doc, V.text, V.mask(0), V.image, V.end])
    assert (markup.filling(masked) < 0).sum() == 4
