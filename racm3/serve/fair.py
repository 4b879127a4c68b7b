"""Fair: whose turn it is. Each client has a line of its own, and the turn goes to the one that was given least.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): work gets a start tag, the time of the queue or the end of what
its client asked for before, whichever is later, and its end lies ``cost`` behind it. The lowest start tag is next, and
the queue's time is the tag of what came last. So a client that asks for much waits for itself, and not others for it.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

__all__ = ["FairQueue", "Gate"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """What waits, in the order of its turns. Not for several threads."""

    def __init__(self) -> None:
        self._line: list[tuple[float, int, T]] = []
        self._ends: dict[str, float] = {}
        self._now = 0.0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, _, item in self._line])

    def put(self, item: T, client: str, cost: float) -> None:
        """Let ``item`` wait; ``cost`` in any unit, the same for all."""
        start = max(self._now, self._ends.get(client, 0.0))
        self._ends[client] = start + cost
        insort(self._line, (start, next(self._numbers), item))

    def first(self) -> T:
        """What is next."""
        return self._line[0][2]

    def get(self) -> T:
        """Take what is next."""
        self._now, _, item = self._line.pop(0)
        if not self._line:  # whoever is behind now owes nothing
            self._ends = {client: end for client, end in self._ends.items() if end > self._now}
        return item

    def drop(self, leaves: Callable[[T], bool]) -> None:
        """Let go of all that ``leaves``."""
        self._line = [one for one in self._line if not leaves(one[2])]


class Gate:
    """At most ``places`` inside at once, the others in a fair queue; for the coroutines of one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def place(self, client: str, cost: float) -> AsyncIterator[None]:
        """Wait for a place, and have it meanwhile."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.put(turn, client, cost)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._waiting.drop(lambda one: one is turn)
                else:  # it was given the place in the same moment
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.get()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
