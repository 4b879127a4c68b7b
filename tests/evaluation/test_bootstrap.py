from __future__ import annotations

import numpy as np
import pytest

from racm3.evaluation.bootstrap import interval, means


def test_of_a_mean_it_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = interval(lambda rows: values[rows].mean(), 400)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * 0.1, values.mean() + 1.96 * 0.1), abs=0.03)


def test_what_repeated_items_add_is_taken_off() -> None:
    """The largest of a draw is below the largest of all: without the correction it would lie above the interval."""
    values = np.arange(100.0)
    drawn = [values[np.random.default_rng(seed).integers(100, size=100)].max() for seed in range(50)]
    assert np.mean(drawn) < 99
    low, high = interval(lambda rows: values[rows].max(), 100)
    assert low < 99 < high


def test_means_of_certain_scores_have_no_width() -> None:
    found = means({"right": np.ones(8), "half": np.array([0.0, 1.0] * 4)})
    assert (found["right"], found["half"], found["n"]) == (1.0, 0.5, 8)
    assert found["interval"]["right"] == [1.0, 1.0]
    low, high = found["interval"]["half"]
    assert 0 < low < 0.5 < high < 1


def test_a_share_stays_between_0_and_1() -> None:
    for right in (1, 11):
        low, high = means({"right": np.arange(12) < right})["interval"]["right"]
        assert 0 <= low < right / 12 < high <= 1


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        interval(lambda rows: 0.0, 0)
