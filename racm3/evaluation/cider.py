"""CIDEr-D: how much a caption is worded as people word the same picture (Vedantam et al. 2015, arXiv 1411.5726).

A text is a bag of n-grams, n = 1..4, each weighted by how often it stands there (tf) and by how few of the pictures'
references use it (idf). The score of a candidate c against a reference r is

    10 x mean over n of  exp(-(|c| - |r|)^2 / (2 sigma^2)) x  min(c_n, r_n) . r_n / (|c_n| |r_n|)

averaged over the references: 0 to 10. The min keeps a repeated word from counting twice, the exponential punishes
another length; both are the D. It equals pycocoevalcap's on the same tokens, which is tested.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["cider_d"]

LONGEST = 4
"""n-grams of 1 to 4 tokens. Source: the paper."""
SIGMA = 6.0
"""Tolerance of a difference in length, in tokens. Source: the paper."""

Tokens = Sequence[str]
Gram = tuple[str, ...]


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """The score (N,) of each of N candidates against its picture's references, 0 to 10.

    Document frequencies are those of ``references``: in how many of the N pictures an n-gram is used. With one
    picture every idf is 0, and so is the score. Raises ValueError if there is no picture, or one has no reference.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(
            f"{len(candidates)} candidates came with {len(references)} lists of references; give at least one "
            "candidate, and for each a list that is not empty"
        )
    counted = [[grams(reference) for reference in own] for own in references]
    idf = inverse_frequency(counted)
    return np.array(
        [
            np.mean([similarity(grams(candidate), reference, idf, len(references)) for reference in own])
            for candidate, own in zip(candidates, counted, strict=True)
        ]
    )


def grams(tokens: Tokens) -> Counter[Gram]:
    """How often each n-gram stands in a text."""
    starts = ((n, i) for n in range(1, LONGEST + 1) for i in range(len(tokens) - n + 1))
    return Counter(tuple(tokens[i : i + n]) for n, i in starts)


def inverse_frequency(references: Sequence[Iterable[Counter[Gram]]]) -> dict[Gram, float]:
    """log(pictures / pictures in whose references it stands) of every n-gram."""
    pictures = Counter(gram for own in references for gram in set().union(*own))
    return {gram: math.log(len(references) / count) for gram, count in pictures.items()}


def similarity(candidate: Counter[Gram], reference: Counter[Gram], idf: dict[Gram, float], pictures: int) -> float:
    """The score of a candidate against one reference, 0 to 10. An n-gram of no reference has the idf log(pictures)."""
    unknown = math.log(pictures)
    dot, own, other = np.zeros(LONGEST), np.zeros(LONGEST), np.zeros(LONGEST)  # (n,) each
    for gram, count in candidate.items():
        weight, n = idf.get(gram, unknown), len(gram) - 1
        dot[n] += min(count, reference[gram]) * reference[gram] * weight**2
        own[n] += (count * weight) ** 2
    for gram, count in reference.items():
        other[len(gram) - 1] += (count * idf.get(gram, unknown)) ** 2
    norms = np.sqrt(own * other)
    cosines = np.divide(dot, norms, out=np.zeros(LONGEST), where=norms > 0)
    longer = pairs(candidate) - pairs(reference)
    return float(10 * math.exp(-(longer**2) / (2 * SIGMA**2)) * cosines.mean())


def pairs(counted: Counter[Gram]) -> int:
    """The length of a text as pycocoevalcap takes it: its bigrams, one fewer than its tokens."""
    return sum(count for gram, count in counted.items() if len(gram) == 2)
