"""CLIPScore: how well words fit a picture, 2.5 x the cosine of their vectors, never below 0 (Hessel et al. 2021).

Source of the 2.5: arXiv 2104.08718; it only stretches the scale. Where the same encoder chose the picture among several
samples, the score is too good; and an encoder of another data set has another scale.
"""

from __future__ import annotations

import numpy as np

__all__ = ["clip_score"]

SCALE = 2.5


def clip_score(texts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(N,) scores, 0 to 2.5, of the unit vectors (N, D) of N texts with those of their N pictures."""
    return SCALE * np.einsum("nd,nd->n", texts, images, dtype=np.float64).clip(0)
