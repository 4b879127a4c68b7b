"""EngineThread: the one thread that owns the engine. Requests of all kinds share its steps.

    join      what requests read is looked up by the memory thread, for all that wait together, while there is room in
              the batch; then they start
    advance   each running request looks at what the last step drew, and submits what it needs next
    step      one token for all of them
    calls     between two steps: whatever else needs the engine (classification)

A request leaves when it is complete, when its client has gone, and when its time is up. Handlers are coroutines on an
event loop; ``Pending`` and futures carry what comes back to them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, TypeVar

from racm3.completion import Completion, Partial, Request
from racm3.errors import RACM3Error
from racm3.pipeline import RACM3, Progress
from racm3.serve.memory_thread import Busy, MemoryThread
from racm3.settings import Settings

__all__ = ["Busy", "EngineThread", "Gone", "Late", "Pending"]

T = TypeVar("T")
log = logging.getLogger(__name__)

CALLS_S = 0.02
"""How long calls may hold up the next step (ours: about as long as a step of a full batch of the shipped model)."""
PACE = 0.1
"""Weight of the newest request in the mean seconds a request."""
MOST_RETRY_S = 60.0


class Late(Exception):
    """The time of a request is up."""


class Gone(Exception):
    """The client of a request has gone."""


class Pending:
    """A call of the API that waits for its answer: the handler's end and the engine thread's."""

    def __init__(self, asked: Sequence[Request], show: bool, attribution: bool, timeout_s: float) -> None:
        self.asked, self.show, self.attribution = asked, show, attribution
        self.started = time.monotonic()
        self.timeout_s = timeout_s
        self.rows = sum(_rows(one.settings) for one in asked)
        self.cancelled = False
        self.going: dict[int, Iterator[Partial | None]] = {}
        self.done: dict[int, Completion] = {}
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Partial | list[Completion] | Exception] = asyncio.Queue()

    # The handler's end

    def cancel(self) -> None:
        """The client has gone: whoever waits is told, and the request leaves at the next step."""
        self.cancelled = True
        self._events.put_nowait(Gone("the client has gone"))

    async def partials(self) -> AsyncIterator[Partial | list[Completion]]:
        """What there is to show as it comes, at last the completions. Raises what made the request fail."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, list):
                    return
        finally:
            self.cancelled = True

    async def completions(self) -> list[Completion]:
        """The completions, when all are there."""
        async for event in self.partials():
            if isinstance(event, list):
                return event
        raise AssertionError("a stream ends with its completions")

    # The engine thread's end

    @property
    def late(self) -> bool:
        return time.monotonic() > self.started + self.timeout_s

    def start(self, started: Sequence[Progress], model: RACM3) -> None:
        """Begin with what was retrieved."""
        self.going = {number: model.advance(progress, self.show) for number, progress in enumerate(started)}

    def advance(self) -> bool:
        """Look at what was drawn; whether there is nothing left to do."""
        for number, work in list(self.going.items()):
            while (partial := next(work)) is not None:
                if partial.completion is None:
                    self.post(partial)
                    continue
                self.done[number] = partial.completion
                del self.going[number]
                break
        if self.going:
            return False
        if self.attribution:
            for completion in self.done.values():
                _ = completion.attribution  # computed here, in the thread that owns the model
        self.post([self.done[number] for number in range(len(self.asked))])
        return True

    def leave(self, error: Exception | None = None) -> None:
        """Give up what is under way."""
        for work in self.going.values():
            work.close()  # type: ignore[attr-defined]  # a generator
        self.going = {}
        if error is not None:
            self.post(error)

    def post(self, event: Partial | list[Completion] | Exception) -> None:
        """Hand an event to the loop of whoever waits; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancelled = True


class EngineThread:
    """Owns ``model`` from ``start`` to ``stop``. At most ``queue`` requests wait, and as many calls."""

    def __init__(self, model: RACM3, queue: int) -> None:
        self.model, self.queue = model, queue
        self.memory_thread = MemoryThread(queue)
        self.steps = 0
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._waiting: deque[Pending] = deque()
        self._sought: list[Pending] = []  # whose documents the memory thread looks up
        self._found: deque[tuple[Pending, list[Progress] | Exception]] = deque()
        self._running: list[Pending] = []
        self._pace_s = 1.0
        self._last_done = time.monotonic()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="racm3-engine", daemon=True)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._sought) + len(self._found)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was accepted, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self.memory_thread.stop()

    def submit(
        self, asked: Sequence[Request], *, timeout_s: float, show: bool = False, attribution: bool = False
    ) -> Pending:
        """Let a request wait for its turn. Raises Busy if as many wait as may."""
        pending = Pending(asked, show, attribution, timeout_s)
        with self._changed:
            self._check_room(len(self._waiting))
            self._waiting.append(pending)
            self._changed.notify()
        return pending

    async def call(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, done by this thread between two steps. Raises Busy, or what ``work`` raises."""
        future: Future[T] = Future()
        with self._changed:
            self._check_room(len(self._calls))
            self._calls.append((future, work))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def _check_room(self, waiting: int) -> None:
        if self._stopping or waiting >= self.queue:
            raise Busy(waiting, min(max(1.0, waiting * self._pace_s), MOST_RETRY_S))

    # In the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._something_to_do():
            self._do_calls()
            self._leave()
            self._join()
            self._advance()
            if self._running:
                self._step()

    def _something_to_do(self) -> bool:
        """Wait until there is; False when the thread is to end."""
        with self._changed:
            while not (self._calls or self._running or self._found or (self._waiting and not self._sought)):
                if self._stopping and not self._sought:
                    return False
                self._changed.wait()
        return True

    def _do_calls(self) -> None:
        until = time.monotonic() + CALLS_S
        while self._calls:
            future, work = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            if time.monotonic() > until:
                return

    def _leave(self) -> None:
        """Those whose clients have gone, and those whose time is up."""
        for queue in (self._running, self._waiting):
            with self._changed:  # others come meanwhile
                leaving = [one for one in queue if one.cancelled or one.late]
                for pending in leaving:
                    queue.remove(pending)
            for pending in leaving:
                late = Late(f"the request took longer than the {pending.timeout_s:g} s that it may")
                pending.leave(None if pending.cancelled else late)

    def _join(self) -> None:
        """Start what was looked up. Let what waits be looked up next, in order, while there is room for its rows in the
        batch; one request always has room."""
        while self._found:
            pending, started = self._found.popleft()
            if isinstance(started, Exception):
                pending.leave(_told(started))
            else:
                pending.start(started, self.model)
                self._running.append(pending)
        with self._changed:
            if self._sought:
                return
            rows = sum(pending.rows for pending in self._running)
            while self._waiting:
                rows += self._waiting[0].rows
                if rows > self.model.engine.max_rows and (self._running or self._sought):
                    break
                self._sought.append(self._waiting.popleft())
            sought = list(self._sought)
        if sought:
            self.memory_thread.submit(lambda: self._look_up(sought))

    def _look_up(self, every: Sequence[Pending]) -> None:
        """All together, or each by itself where one of them cannot start. In the memory thread."""
        found: list[tuple[Pending, list[Progress] | Exception]]
        try:
            started = iter(self.model.start([one for pending in every for one in pending.asked]))
            found = [(pending, list(islice(started, len(pending.asked)))) for pending in every]
        except Exception as error:
            if len(every) > 1:
                for pending in every:
                    self._look_up([pending])
                return
            found = [(every[0], error)]
        with self._changed:
            self._found.extend(found)
            self._sought = [pending for pending in self._sought if pending not in every]
            self._changed.notify()

    def _advance(self) -> None:
        for pending in list(self._running):
            try:
                done = pending.advance()
            except Exception as error:
                pending.leave(_told(error))
                done = True
            if done:
                self._running.remove(pending)
                now = time.monotonic()
                self._pace_s += PACE * (now - max(self._last_done, pending.started) - self._pace_s)
                self._last_done = now

    def _step(self) -> None:
        try:
            self.model.engine.step()
            self.steps += 1
        except Exception as error:  # the engine has cancelled the whole batch
            for pending in self._running:
                pending.leave(_told(error))
            self._running.clear()


def _rows(settings: Settings) -> int:
    """The most rows of the batch that a request takes."""
    both = settings.image, settings.text
    streams = settings.contexts * (2 if any(one.unconditional for one in both) else 1)
    return settings.samples * (streams + any(one.context_aware != 1 for one in both))


def _told(error: Exception) -> Exception:
    """The error, logged unless it is one of those that tell the client what to do."""
    if not isinstance(error, RACM3Error):
        log.error("a request failed", exc_info=error)
    return error
