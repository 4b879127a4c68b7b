"""Keeper: the one thread that reads and changes the memory for the API, so that no disk holds up the worker's steps.

It has the memory open by itself, as another process would: what it has acknowledged, the worker's next search sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from racm3.memory.memory import Memory
from racm3.serve.worker import Busy

__all__ = ["Keeper"]

T = TypeVar("T")


class Keeper:
    """At most ``queue`` calls wait."""

    def __init__(self, memory: Memory, queue: int) -> None:
        self._memory, self._queue = memory.another(), queue
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "racm3-keeper")

    async def call(self, work: Callable[[Memory], T]) -> T:
        """What ``work`` makes of the memory as it is now. Raises Busy, or what ``work`` raises."""
        if self._waiting >= self._queue:
            raise Busy(self._waiting, 1.0)
        self._waiting += 1
        done = asyncio.wrap_future(self._thread.submit(self._do, work))
        try:
            return await asyncio.shield(done)  # a change that was begun is completed though its client has gone
        finally:
            self._waiting -= 1

    def _do(self, work: Callable[[Memory], T]) -> T:
        self._memory.refresh()
        return work(self._memory)

    def stop(self) -> None:
        """Finish what was accepted, and end."""
        self._thread.shutdown()
