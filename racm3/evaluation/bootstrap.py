"""Bootstrap: how far a score would be off with other items of the same kind (Efron 1979).

The items are drawn again and again with replacement, and the score of every draw is taken; the interval holds 95 % of
those. A draw repeats items, and some scores, such as a Frechet distance, are larger for that alone: the mean excess of
the draws over the score itself is taken off.

N items, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

__all__ = ["Scores", "interval", "means"]

LEVEL = 0.95
RESAMPLES = 1000
"""Ours: the ends of an interval then wander by about 5 % of its width from seed to seed."""

Scores = dict[str, Any]
"""Scores by name, their ``n``, and ``interval``: the two ends by the name of the score."""


def interval(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Both ends of the 95 % interval of ``statistic``, a function of the rows (N,) that it is to be computed of.

    Raises ValueError if n is below 1.
    """
    if n < 1:
        raise ValueError(f"an interval is of one item or more, but n is {n}")
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])  # (R,)
    excess = drawn.mean() - statistic(np.arange(n))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - excess
    return float(low), float(high)


def means(values: Mapping[str, np.ndarray], digits: int = 4) -> Scores:
    """The mean of each array (N,) of scores of the same N items, with its interval, which stays within the scores."""
    (n,) = {len(own) for own in values.values()}
    ends = {
        name: np.clip(interval(partial(_mean, own), n), own.min(), own.max()).tolist() for name, own in values.items()
    }
    return {name: round(float(own.mean()), digits) for name, own in values.items()} | {
        "n": n,
        "interval": {name: [round(end, digits) for end in own] for name, own in ends.items()},
    }


def _mean(values: np.ndarray, rows: np.ndarray) -> float:
    return float(values[rows].mean())
