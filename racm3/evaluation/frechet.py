"""Frechet distance: how far apart two sets of pictures are, as a network sees them (arXiv 1706.08500).

The features of each set are taken for a normal distribution, and the distance between the two is

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))

With the features of Inception it is FID. All sums are in 64 bits; a set is read once, in parts of any size, and parts
may be put together in any order (Chan et al. 1979). Distances of few pictures are too large, all in like measure:
compare only those of equally many.

N pictures, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Moments", "frechet_distance"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of N feature vectors: how many, their mean (D,), and their scatter (D, D), the sum of the outer
    products of what each is off the mean."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of an (N, D) array. Raises ValueError if N is 0."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features are an (N, D) array with N >= 1, but {features.shape} was given")
        exact = features.astype(np.float64)
        off = exact - (mean := exact.mean(axis=0))
        return cls(len(exact), mean, off.T @ off)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together."""
        count, apart = self.count + other.count, other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), unbiased. Raises ValueError for a single vector."""
        if self.count < 2:
            raise ValueError("one vector has no covariance; give two or more")
        return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """The distance, 0 or more; exact also where a covariance is singular, as with fewer pictures than features.

    The trace of (S S')^(1/2) is the sum of the square roots of the eigenvalues of R S' R, with R the symmetric root of
    S: that matrix is symmetric, so there are no complex numbers to throw away.
    """
    first, second = one.covariance, other.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    distance = np.square(one.mean - other.mean).sum() + np.trace(first) + np.trace(second) - 2 * shared
    return max(0.0, float(distance))
