"""Upkeep: what lies in a memory twice, and what lies in it at all.

Letters: N documents, D dimension.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np

from racm3.memory.memory import Memory

__all__ = ["Stats", "copies_in", "stats"]

AT_ONCE = 1024
"""Documents compared with all others at once (ours: 1,024 x 1 million scores are 4 GB, the most that is held)."""


def copies_in(memory: Memory, threshold: float) -> list[list[str]]:
    """Groups of ids of documents of which each is more similar than ``threshold`` to another of its group, as they lie
    in the memory; documents that stand alone are in none."""
    memory.refresh()
    ids = list(memory.ids)
    vectors = np.concatenate([np.zeros((0, memory.dimension), np.float32), *memory.vector_blocks()])  # (N, D)
    leader = np.arange(len(ids))
    for first in range(0, len(ids), AT_ONCE):
        for row, others in enumerate(vectors[first : first + AT_ONCE] @ vectors.T > threshold, start=first):
            same = leader[np.flatnonzero(others)]
            leader[np.isin(leader, same)] = min(same.min(initial=row), leader[row])
    groups = [np.flatnonzero(leader == number) for number, count in Counter(leader.tolist()).items() if count > 1]
    return [[ids[row] for row in group] for group in groups]


@dataclass(frozen=True)
class Stats:
    """What lies in a memory."""

    documents: int
    kinds: dict[str, int]
    """Documents of text, image, or both."""
    origins: dict[str, int]
    """By the beginning of their origin."""
    scripts: dict[str, int]
    """Texts by the script of most of their letters."""
    shortest_px: int
    longest_px: int
    """Sides of pictures; 0 if there are none."""


def stats(memory: Memory) -> Stats:
    """Read every document, once."""
    kinds, origins, scripts, sides = Counter[str](), Counter[str](), Counter[str](), [0]
    count = 0
    for item in memory.items():
        count += 1
        words, pictures = item.document.text, item.document.images
        kinds["text and image" if words and pictures else "image" if pictures else "text"] += 1
        origins[item.origin.partition("#")[0].partition("/")[0] or "unknown"] += 1
        if words and (letters := [unicodedata.name(c, "?").split()[0].lower() for c in words if c.isalpha()]):
            scripts[Counter(letters).most_common(1)[0][0]] += 1
        sides += [side for picture in pictures for side in picture.pixels.shape[:2]]
    px = sides[1:] or [0]
    return Stats(count, dict(kinds), dict(origins.most_common(8)), dict(scripts.most_common(8)), min(px), max(px))
