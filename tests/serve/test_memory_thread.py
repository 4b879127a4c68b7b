from __future__ import annotations

import asyncio
import threading

import pytest

from racm3.serve.memory_thread import Busy, MemoryThread


def test_work_is_done_in_its_order_by_one_thread_and_completed_though_nobody_waits() -> None:
    async def run() -> None:
        memory_thread, begun, go = MemoryThread(queue=3), threading.Event(), threading.Event()
        seen: list[tuple[str, str]] = []

        def work(name: str) -> str:
            begun.set()
            assert go.wait(60)
            seen.append((name, threading.current_thread().name))
            return name

        calls = [asyncio.create_task(memory_thread.call(lambda name=name: work(name))) for name in "abc"]
        await asyncio.to_thread(begun.wait, 60)
        with pytest.raises(Busy, match="3 requests are waiting"):
            await memory_thread.call(lambda: None)
        calls[0].cancel()  # its client has gone; what was begun goes on
        unasked = memory_thread.submit(lambda: work("d"))
        go.set()
        assert await asyncio.gather(*calls[1:]) == ["b", "c"]
        await asyncio.to_thread(memory_thread.stop)
        assert unasked.result() == "d"
        assert [name for name, _ in seen] == ["a", "b", "c", "d"]
        assert len({thread for _, thread in seen}) == 1

    asyncio.run(run())


def test_what_fails_says_so_to_its_caller_alone() -> None:
    async def run() -> None:
        memory_thread = MemoryThread(queue=3)
        with pytest.raises(ZeroDivisionError):
            await memory_thread.call(lambda: 1 // 0)
        assert await memory_thread.call(lambda: 1) == 1
        await asyncio.to_thread(memory_thread.stop)

    asyncio.run(run())
