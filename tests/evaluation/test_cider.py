from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.evaluation.cider import cider_d, grams, similarity

words = st.sampled_from("a b c d e f".split())
references = st.lists(st.lists(words, min_size=1, max_size=9), min_size=1, max_size=4)
pictures = st.lists(st.tuples(st.lists(words, max_size=9), references), min_size=1, max_size=6)


@given(pictures)
@settings(max_examples=50)
def test_it_is_pycocoevalcaps(given: list[tuple[list[str], list[list[str]]]]) -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer").CiderScorer(n=4, sigma=6.0)
    for candidate, references in given:
        scorer += (" ".join(candidate), [" ".join(reference) for reference in references])
    _, theirs = scorer.compute_score()
    ours = cider_d([candidate for candidate, _ in given], [references for _, references in given])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_by_hand() -> None:
    """Two pictures, so every word of one picture only has idf log 2 and the shared "a" has 0.

    Picture 0: "a red fox" against "a red dog". Of the candidate's words, a weighs 0, red and fox log 2, so the 1-gram
    cosine is 1/2. Of the pairs "a red" and "red fox", one of two is shared: 1/2. The triple differs: 0; no 4-gram: 0.
    Picture 1: the reference itself, of three words: cosine 1 for n = 1, 2, 3, and there is no 4-gram.
    """
    scores = cider_d(["a red fox".split(), "a blue cat".split()], [["a red dog".split()], ["a blue cat".split()]])
    np.testing.assert_allclose(scores, [10 * (0.5 + 0.5) / 4, 10 * 3 / 4])


def test_another_length_costs_what_the_formula_says() -> None:
    """The candidate is two words longer, which weigh nothing: all that tells it from the reference is its length."""
    idf = {("fox",): 1.0, ("and",): 0.0, ("so",): 0.0}
    score = similarity(grams(["fox", "and", "so"]), grams(["fox"]), idf, pictures=2)
    assert score == pytest.approx(10 * math.exp(-(2**2) / (2 * 6**2)) / 4)  # a word has no pair, triple or quadruple


def test_a_word_said_thrice_counts_once() -> None:
    references = [["red fox".split()], [["other"]]]
    once, thrice = (cider_d([said.split(), ["other"]], references)[0] for said in ("fox", "fox fox fox"))
    assert thrice < once


@pytest.mark.parametrize(("candidates", "references"), [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_what_cannot_be_scored(candidates: list[list[str]], references: list[list[list[str]]]) -> None:
    with pytest.raises(ValueError, match="give at least one"):
        cider_d(candidates, references)
