"""Recall of the retriever: how often what is wanted is among the first k that it finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["found_within"]


def found_within(relevant: Sequence[Sequence[bool]], k: int) -> np.ndarray:
    """(N,) 1.0 where one of the first ``k`` of a query's ranked documents is relevant, else 0.0."""
    return np.array([float(any(ranked[:k])) for ranked in relevant])
