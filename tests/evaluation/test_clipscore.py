from __future__ import annotations

import numpy as np

from racm3.evaluation.clipscore import clip_score


def test_by_hand() -> None:
    """The same direction, 60 degrees apart, and opposite."""
    texts = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    images = np.array([[1, 0], [0.5, 3**0.5 / 2], [-1, 0]], np.float32)
    np.testing.assert_allclose(clip_score(texts, images), [2.5, 1.25, 0])
