"""Weights version: whether tensors still hold what they held, without reading them.

What is computed of a model's weights and kept (packed matrices, a fingerprint) is good for as long as two versions of
them are equal.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["WeightsVersion"]


class WeightsVersion:
    """Tensors at one moment. Two versions differ if torch wrote to a tensor between, or another took its place.

    It keeps the tensors, so that no other can come to lie at their addresses. Writing past torch, through a numpy view
    of a tensor, goes unnoticed.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        kept = list(tensors)
        self._written = [(tensor.data_ptr(), tensor._version) for tensor in kept]
        self._kept = [tensor.detach() for tensor in kept]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightsVersion) and self._written == other._written

    __hash__ = None  # type: ignore[assignment]
