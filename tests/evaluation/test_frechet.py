from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.evaluation.frechet import Moments, frechet_distance


def reference(one: np.ndarray, other: np.ndarray) -> float:
    """The formula as it stands: the eigenvalues of S S', in 64 bits, complex as they come."""
    first, second = (np.cov(x.astype(np.float64), rowvar=False) for x in (one, other))
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).sum().real
    apart = one.astype(np.float64).mean(0) - other.astype(np.float64).mean(0)
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * roots)


def test_by_hand() -> None:
    """Means (0, 0) and (3, 4): 25 apart. Variances (2, 8) and (18, 2), nothing shared: the roots of their products are
    6 and 4, so the rest is 2 + 8 + 18 + 2 - 2 (6 + 4) = 10."""
    one = np.array([[1, 2], [-1, -2], [1, -2], [-1, 2]]) * np.sqrt(1.5)  # variances 4 / 3 x (1.5, 6)
    other = np.array([[3, 1], [-3, -1], [3, -1], [-3, 1]]) * np.sqrt(1.5) + [3, 4]
    assert frechet_distance(Moments.of(one), Moments.of(other)) == pytest.approx(25 + 10)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(20, 60), st.floats(-1e4, 1e4))
@settings(max_examples=30, deadline=None)
def test_it_is_the_formula(seed: int, d: int, n: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset for _ in range(2))
    found = frechet_distance(Moments.of(one.astype(np.float32)), Moments.of(other.astype(np.float32)))
    assert found == pytest.approx(reference(one.astype(np.float32), other.astype(np.float32)), rel=1e-6, abs=1e-6)


def test_fewer_pictures_than_features() -> None:
    features = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    same = Moments.of(features)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(same, Moments.of(features + 2)) == pytest.approx(4 * 40, rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_parts_make_the_whole(seed: int, sizes: list[int]) -> None:
    """Far from the origin, where sums of squares would lose all digits."""
    features = np.random.default_rng(seed).normal(1e5, 1, (sum(sizes) + 1, 3))
    parts = [Moments.of(part) for part in np.split(features, np.cumsum(sizes))]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.count == len(features)
    np.testing.assert_allclose(total.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-8)


def test_what_cannot_be_summed() -> None:
    with pytest.raises(ValueError, match="N >= 1"):
        Moments.of(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="two or more"):
        _ = Moments.of(np.zeros((1, 3))).covariance
