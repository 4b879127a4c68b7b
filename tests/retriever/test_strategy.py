from __future__ import annotations

import numpy as np
import pytest

from racm3.document import Document, Hole, Image, Text
from racm3.retriever.strategy import GREY, PATCH_PX, RelevanceRedundancy, drop_query
from tests.retriever.conftest import picture


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, clusters: int, dimension: int = 16, spread: float = 0.15, seed: int = 0) -> np.ndarray:
    """(count, dimension) unit vectors around few centres, so that many are redundant."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dimension))
    return unit(centres[rng.integers(clusters, size=count)] + spread * rng.standard_normal((count, dimension)))


# Redundancy --------------------------------------------------------------------------------------------------------


def angles(*degrees: float) -> np.ndarray:
    """(count, 2) unit vectors; the query is the one at 0 degrees. cos 25 = .906, cos 26 = .899."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("degrees", "k", "taken"),
    [
        ((30, 60, 90), 2, [0, 1]),  # relevance alone
        ((10, 30, 60), 2, [1, 2]),  # the first is too similar to the query
        ((30, 40, 60), 2, [0, 2]),  # the second is too similar to the first taken
        ((30, 55, -60, 80), 3, [0, 2, 3]),  # and every later one is compared with all taken: 55 and 80 with 30
        ((30, 56, -60, 80), 3, [0, 1, 2]),
        ((5, 10), 2, []),
        ((30, 60), 5, [0, 1]),
        ((), 2, []),
    ],
)
def test_redundant_candidates_are_skipped(degrees: tuple[float, ...], k: int, taken: list[int]) -> None:
    vectors = angles(*degrees).reshape(-1, 2)
    assert RelevanceRedundancy(0.9).select(vectors @ angles(0)[0], vectors, k) == taken


def test_a_threshold_of_one_is_plain_relevance() -> None:
    vectors = clustered(50, 3)
    scores = vectors[0] @ vectors[1:].T
    order = np.argsort(-scores)
    assert RelevanceRedundancy(1.0).select(scores[order] - 1e-3, vectors[1:][order] * 0.99, 5) == [0, 1, 2, 3, 4]


# Query dropout -----------------------------------------------------------------------------------------------------


def test_a_fifth_of_the_words_is_dropped_and_their_order_kept() -> None:
    words = [f"w{i}" for i in range(5000)]
    dropped = drop_query(Document.of(" ".join(words)), 0.2, np.random.default_rng(0)).text
    assert dropped is not None
    kept = dropped.split()
    assert kept == [word for word in words if word in set(kept)]
    assert 0.77 < len(kept) / len(words) < 0.83


def test_a_fifth_of_the_squares_is_dropped_whole() -> None:
    before = picture(0, 250, 170)  # the last row and column of squares are cut
    after = drop_query(Document.of(before), 0.2, np.random.default_rng(0)).images[0]
    grey = (after.pixels == GREY).all(-1)
    squares = []
    for top in range(0, 250, PATCH_PX):
        for left in range(0, 170, PATCH_PX):
            square = np.s_[top : top + PATCH_PX, left : left + PATCH_PX]
            squares.append(bool(grey[square].all()))
            assert squares[-1] or np.array_equal(after.pixels[square], before.pixels[square])
    assert 0.15 < np.mean(squares) < 0.25


@pytest.mark.parametrize("seed", range(20))
def test_a_query_is_never_empty(seed: int) -> None:
    document = Document.of("a fox", picture(0, 9, 9), Hole("text"), "snow")
    dropped = drop_query(document, 1.0, np.random.default_rng(seed))
    first, image, hole, last = dropped.parts
    assert isinstance(image, Image)
    assert first in (Text("a"), Text("fox"))
    assert not (image.pixels == GREY).all()
    assert (hole, last) == (Hole("text"), Text("snow"))


def test_dropout_is_reproducible_and_none_at_rate_zero() -> None:
    document = Document.of("a fox in the snow at night", picture(0))
    one, same = (drop_query(document, 0.5, np.random.default_rng(3)) for _ in range(2))
    assert one == same != document
    assert drop_query(document, 0.0, np.random.default_rng(3)) == document
