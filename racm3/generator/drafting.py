"""Drafting: which ids probably come next, from what was read, so that one pass of the engine can check several.

Behind retrieved documents most of a picture is copied: from a source at some offset, or from the picture itself, the
code to the left or above. A guess is the id behind the place whose surroundings agree most with those of the place to
come: the ids before it and, in a picture, those above it and above to the right. At the end of a row it goes on in the
next one at the same offset by itself, for ids lie row after row. Names and phrases of a text are found in the same way.

A guess changes no output. The engine draws every token from the model's own distribution with the random number of its
place, whatever was guessed, and uses the next result of the same pass only if the token drawn is the one guessed
(``Engine.step``). That accepts a guess as often as speculative sampling does (Leviathan et al. 2023, arXiv 2211.17192):
with the probability that the distribution gives it.

Letters in shapes: N places, K ids around a place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from racm3.generator.constraints import Constraint

__all__ = ["Drafter"]

MOST = 16
"""Guesses of one draft at most (ours: with 8, drawings of the built-in world take a tenth more passes)."""
BEFORE, ABOVE = (0.4, 0.16, 0.064, 0.0256), (0.3, 0.3)
"""What an equal id counts: 1 to 4 places before; above, and above to the right. Chosen on 60 drawings and 40 captions
of the built-in world."""
READING = 8
"""What a pass costs beside its tokens, in tokens: reading the weights and calls. Measured on a CPU, one thread: 7 at
125M parameters; 5 at 3M, to which calls and filters add."""
WORTH = 1.2
"""A guess shall gain so many times what it costs, for the estimates are rough."""
FULL = 16
"""Rows of a batch from which nothing is guessed: a CPU computes for them as long as it reads the weights, or longer."""
DOUBT = 4
"""Guesses after which a sequence's own success counts as much as what is usual."""


class Drafter:
    """The guesses for one sequence: ``push`` tells what was drawn, ``draft`` guesses what comes.

    ``before``: the ids that were read, ``most`` more will follow. ``row``: how many of them make a row of a picture.
    """

    def __init__(self, before: Sequence[int], most: int, row: int | None = None) -> None:
        back, weights = list(range(1, len(BEFORE) + 1)), list(BEFORE)
        if row is not None:
            back, weights = [*back, row, row - 1], [*weights, *ABOVE]
        self._back = np.array(back)  # (K,)
        self._weights = np.array(weights, dtype=np.float32) / sum(weights)
        self._count = len(before)
        self._ids = np.empty(len(before) + most, dtype=np.int32)  # (N,)
        self._around = np.full((len(self._ids) + max(back), len(back)), -1, dtype=np.int32)  # (N, K)
        self._ids[: self._count] = before
        for k, distance in enumerate(back):
            self._around[distance : distance + self._count, k] = before
        self._expected = self._right = 0.0

    def push(self, id: int) -> None:
        """Go on by the token that was drawn."""
        self._ids[self._count] = id
        self._around[self._count + self._back, np.arange(len(self._back))] = id
        self._count += 1

    def judge(self, expected: float, right: int) -> None:
        """So many guesses of a draft were expected to be right, and so many were."""
        self._expected, self._right = self._expected + expected, self._right + right

    def draft(self, constraint: Constraint, beside: int) -> tuple[list[int], list[np.ndarray], float]:
        """Ids that probably come, what the constraint allows at the place of each and behind them, (V,) bool each, and
        how many are expected to be right.

        As many as make tokens cheapest in a batch of ``beside`` rows: a longer pass takes longer, and reading the
        weights is shared by all. An id that alone may come is no guess.
        """
        allowed, drawn = [constraint.allowed()], self._count
        guessed: list[int] = []
        sure, expected, cost = 1.0, 0.0, READING / beside + 1
        trust = (self._right + DOUBT) / (self._expected + DOUBT)
        most = min(MOST, len(self._ids) - drawn - 1) if beside < FULL else 0
        while len(guessed) < most:
            if np.count_nonzero(allowed[-1]) == 1:
                id = int(allowed[-1].argmax())
            else:
                id, agreement = self._guess()
                sure *= min(agreement * trust, 1.0)
            if sure * cost < WORTH * (1 + expected) or not allowed[-1][id]:
                break
            constraint = constraint if guessed else copy.deepcopy(constraint)
            constraint.push(id)
            if constraint.done or not (more := constraint.allowed()).any():
                break
            expected, cost = expected + sure, cost + 1
            guessed.append(id)
            allowed.append(more)
            self.push(id)
        self._count = drawn
        return guessed, allowed, expected

    def _guess(self) -> tuple[int, float]:
        """The likeliest next id, and how much agrees around it, 0 to 1: about as often it is right."""
        here = self._count
        agreement = (self._around[1:here] == self._around[here]) @ self._weights  # (N - 1,)
        place = len(agreement) - 1 - int(agreement[::-1].argmax())  # the nearest of the best
        return int(self._ids[1 + place]), float(agreement[place])
