"""The engine thread by itself: what shares steps gets what it would get alone, and what leaves, leaves at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from racm3.errors import InputError, PromptTooLongError
from racm3.pipeline import RACM3, Partial, Request
from racm3.serve.call import Late
from racm3.serve.engine_thread import Busy, EngineThread, Pending
from tests.test_pipeline import CONTEXT, EVERY_KIND, SETTINGS, same

FOX = Request(EVERY_KIND["caption to image"], SETTINGS)


@pytest.fixture
def model(models: Path, memory_path: Path) -> RACM3:
    return RACM3.from_pretrained(models, memory=memory_path)


@asynccontextmanager
async def working(model: RACM3, queue: int = 100) -> AsyncIterator[EngineThread]:
    engine_thread = EngineThread(model, queue)
    engine_thread.start()
    try:
        yield engine_thread
    finally:
        await asyncio.to_thread(engine_thread.stop)


def test_requests_of_every_kind_share_steps_and_get_what_they_would_get_alone(model: RACM3, twin: RACM3) -> None:
    settings = [
        SETTINGS,
        replace(SETTINGS, k=1, seed=3),
        replace(SETTINGS, k=1, contexts=2),
        replace(SETTINGS, samples=3),
    ]
    asked = [Request(document, own) for own in settings for document in EVERY_KIND.values()]

    async def run() -> tuple[list[list[object]], int]:
        async with working(model) as engine_thread:
            every = [engine_thread.submit([one], timeout_s=60) for one in asked]
            return await asyncio.gather(*(pending.completions() for pending in every)), engine_thread.steps

    answers, steps = asyncio.run(run())
    expected = [twin.complete([one.document], one.settings)[0] for one in asked]
    assert all(same(own[0], other) for own, other in zip(answers, expected, strict=True))  # type: ignore[arg-type]
    assert steps < sum(answer.steps for one in expected for answer in one.answers) / 4


def test_what_is_shown_is_what_a_stream_shows(model: RACM3, twin: RACM3) -> None:
    async def run() -> list[object]:
        async with working(model) as engine_thread:
            return [event async for event in engine_thread.submit([FOX], timeout_s=60, show=True).events()]

    *partials, _ = asyncio.run(run())
    *expected, _ = twin.stream(FOX.document, SETTINGS)
    assert [one.content for one in partials if isinstance(one, Partial)] == [one.content for one in expected]


def test_who_has_gone_and_whose_time_is_up_leave_room(model: RACM3) -> None:
    async def run() -> None:
        async with working(model, queue=1) as engine_thread:
            gone = engine_thread.submit([FOX] * 20, timeout_s=60)  # more rows than are free: the next one waits
            while not engine_thread.running:
                await asyncio.sleep(0.001)
            late = engine_thread.submit([FOX], timeout_s=1e-9)
            with pytest.raises(Late):
                await late.completions()
            gone.cancelled = True
            assert len(await engine_thread.submit([FOX], timeout_s=60).completions()) == 1
            assert await engine_thread.call(model.engine.step) == []  # nothing is left in the batch
            assert (engine_thread.running, engine_thread.waiting) == (0, 0)

    asyncio.run(run())


def test_one_whose_time_is_up_while_it_is_looked_up_is_told(model: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:
    start = model.start

    def slow(requests: list[Request]) -> object:
        time.sleep(0.5)
        return start(requests)

    async def run() -> None:
        async with working(model) as engine_thread:
            monkeypatch.setattr(model, "start", slow)
            first = engine_thread.submit([FOX], timeout_s=60)
            late = [engine_thread.submit([FOX], timeout_s=0.2) for _ in range(2)]
            for one in late:
                with pytest.raises(Late):
                    await one.completions()
            assert len(await first.completions()) == 1

    asyncio.run(run())


def test_requests_may_come_while_those_that_wait_are_looked_through(
    model: RACM3, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        loop, more = asyncio.get_running_loop(), iter(range(3))
        engine_thread = EngineThread(model, 100)
        every: list[Pending] = []

        def looked_at(pending: Pending) -> bool:
            """What ``late`` says, a little later: meanwhile another request is submitted."""
            if next(more, None) is not None:
                loop.call_soon_threadsafe(lambda: every.append(engine_thread.submit([FOX], timeout_s=60)))
                time.sleep(0.1)
            return False

        monkeypatch.setattr(Pending, "late", property(looked_at))
        every += [
            engine_thread.submit([FOX] * 20, timeout_s=60) for _ in range(2)
        ]  # more rows than are free: the second waits
        engine_thread.start()
        for pending in every[:2]:
            assert len(await pending.completions()) == 20
        assert len(every) == 5
        for pending in every[2:]:
            assert len(await pending.completions()) == 1
        await asyncio.to_thread(engine_thread.stop)

    asyncio.run(run())


def test_one_that_cannot_be_begun_spoils_no_other(model: RACM3) -> None:
    long = replace(
        FOX, document=EVERY_KIND["caption to image"].of("a fox " * CONTEXT, EVERY_KIND["caption to image"].parts[1])
    )
    whole = replace(FOX, document=EVERY_KIND["caption to image"].of("a fox"))

    async def run() -> None:
        async with working(model) as engine_thread:
            every = [engine_thread.submit([one], timeout_s=60) for one in (FOX, whole, long, FOX)]
            first, second, third, fourth = await asyncio.gather(
                *(pending.completions() for pending in every), return_exceptions=True
            )
            assert isinstance(second, InputError)
            assert isinstance(third, PromptTooLongError)
            assert isinstance(first, list)
            assert isinstance(fourth, list)

    asyncio.run(run())


def test_a_step_that_fails_fails_its_batch_and_no_more(model: RACM3) -> None:
    step = model.engine.step

    def fail() -> list[object]:
        raise OSError("no memory")

    async def run() -> None:
        async with working(model) as engine_thread:
            model.engine.step = fail  # type: ignore[method-assign, assignment]
            with pytest.raises(OSError, match="no memory"):
                await engine_thread.submit([FOX], timeout_s=60).completions()
            model.engine.step = step  # type: ignore[method-assign]
            assert len(await engine_thread.submit([FOX], timeout_s=60).completions()) == 1

    asyncio.run(run())


def test_stopping_finishes_what_was_accepted_and_takes_no_more(model: RACM3) -> None:
    async def run() -> None:
        engine_thread = EngineThread(model, 10)
        engine_thread.start()
        every = [engine_thread.submit([FOX], timeout_s=60) for _ in range(5)]
        await asyncio.to_thread(engine_thread.stop)
        assert all([len(await pending.completions()) == 1 for pending in every])
        assert not engine_thread.alive
        with pytest.raises(Busy):
            engine_thread.submit([FOX], timeout_s=60)

    asyncio.run(run())


def test_a_full_queue_is_said_with_when_to_come_again(model: RACM3) -> None:
    async def run() -> None:
        engine_thread = EngineThread(model, 2)  # not started: nobody takes them
        for _ in range(2):
            engine_thread.submit([FOX], timeout_s=60)
        with pytest.raises(Busy, match="2 requests are waiting") as raised:
            engine_thread.submit([FOX], timeout_s=60)
        assert raised.value.retry_after_s >= 1
        engine_thread.start()
        await asyncio.to_thread(engine_thread.stop)

    asyncio.run(run())
