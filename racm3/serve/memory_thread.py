"""MemoryThread: the one thread in which the API changes and reads the memory, in the order in which it came.

Nothing that takes long is done here: documents are decoded and embedded by whoever asks, before. A change that was
acknowledged is seen by all that is looked up afterwards, here or in the thread that looks up what requests read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Busy", "MemoryThread"]

T = TypeVar("T")


class Busy(Exception):
    """The queue is full; ``retry_after_s`` is when there may be room."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests are waiting, as many as may; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class MemoryThread:
    """At most ``queue`` calls wait."""

    def __init__(self, queue: int) -> None:
        self._queue = queue
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "racm3-memory")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do ``work`` when its turn comes."""
        return self._thread.submit(work)

    async def call(self, work: Callable[[], T]) -> T:
        """What ``work`` gives. Raises Busy, or what ``work`` raises."""
        if self._waiting >= self._queue:
            raise Busy(self._waiting, 1.0)
        self._waiting += 1
        try:  # whose client has gone is left out; but what was begun is completed
            return await asyncio.wrap_future(self.submit(work))
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        """Finish what was accepted, and end."""
        self._thread.shutdown()
