"""EngineThread: the one thread that owns the engine. Requests of all kinds share its steps.

    join      what requests read is looked up in a thread of its own, for all whose turn it is together, while there is
              room in the batch; then they start
    advance   each running request looks at what the last step drew, and submits what it needs next
    step      one token for all of them
    calls     between two steps: whatever else needs the engine (classification)

The turn is that of fair.py. A request leaves when it is complete, when its client has gone, and when its time is up.
Handlers are coroutines on an event loop; ``Pending`` and futures carry what comes back to them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from racm3.completion import Completion, Partial, Request
from racm3.document import Hole, Text
from racm3.errors import ConfigError, InputError, RACM3Error
from racm3.generator.model import Generator
from racm3.model_folder import ModelFolder
from racm3.pipeline import RACM3, Progress
from racm3.serve.call import Late
from racm3.serve.fair import FairQueue
from racm3.serve.memory_thread import Busy, MemoryThread
from racm3.settings import Settings

__all__ = ["Busy", "EngineThread", "Happening", "Pending", "Place"]

T = TypeVar("T")
log = logging.getLogger(__name__)

CALLS_S = 0.02
"""How long calls may hold up the next step (ours: about as long as a step of a full batch of the shipped model)."""
PACE = 0.05
"""Weight of the newest step in the mean pace."""
USUAL_ROW_STEPS_A_S = 500.0
"""The pace before the first step (ours: the shipped model's on two cores)."""
PLACES_S = 0.3
"""How often those that wait are told their place."""
MOST_RETRY_S = 60.0


Piece = tuple["Pending", int]
"""One of the completions that a call asks for: they wait and run each by itself."""


@dataclass(frozen=True)
class Place:
    """How many completions are ahead of a call that waits."""

    ahead: int


Happening = Place | Partial | list[Completion]


class Pending:
    """A call of the API that waits for its answer: the handler's end and the engine thread's.

    ``until``: by ``time.monotonic``. ``client``: who asks, for whose turn it is.
    """

    def __init__(
        self, asked: Sequence[Request], show: bool, attribution: bool, timeout_s: float, until: float, client: str
    ) -> None:
        self.asked, self.show, self.attribution = asked, show, attribution
        self.timeout_s, self.until, self.client = timeout_s, until, client
        self.cancelled = self.begun = False
        self.going: dict[int, Iterator[Partial | None]] = {}
        self.done: dict[int, Completion] = {}
        self.place: Place | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Happening | Exception] = asyncio.Queue()

    # The handler's end

    async def events(self) -> AsyncIterator[Happening]:
        """What there is to show as it comes, at last the completions. Raises what made the request fail; whoever stops
        reading cancels it."""
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
        async for event in self.events():
            if isinstance(event, list):
                return event
        raise AssertionError("a stream ends with its completions")

    # The engine thread's end

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    @property
    def rows(self) -> int:
        """Those that its running completions take."""
        return sum(_rows(self.asked[number].settings) for number in self.going)

    def start(self, number: int, started: Progress, model: RACM3) -> None:
        """Begin one completion with what was retrieved."""
        self.going[number] = model.advance(started, self.show)

    def advance(self) -> bool:
        """Look at what was drawn; whether there is nothing left to do."""
        for number, work in list(self.going.items()):
            while (partial := next(work)) is not None:
                if partial.completion is None:
                    self.post(partial)
                    continue
                if self.attribution:
                    _ = partial.completion.attribution  # computed here, in the thread that owns the model
                self.done[number] = partial.completion
                del self.going[number]
                break
        if len(self.done) < len(self.asked):
            return False
        self.post([self.done[number] for number in range(len(self.asked))])
        return True

    def leave(self, error: Exception | None = None) -> None:
        """Give up what is under way."""
        self.cancelled = True
        for work in self.going.values():
            work.close()  # type: ignore[attr-defined]  # a generator
        self.going = {}
        if error is not None:
            self.post(error)

    def post(self, event: Happening | Exception) -> None:
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
        self._waiting: FairQueue[Piece] = FairQueue()
        self._sought: list[Piece] = []  # whose documents are looked up
        self._found: deque[tuple[Piece, Progress | Exception]] = deque()
        self._running: list[Pending] = []
        self._row_steps_a_s = USUAL_ROW_STEPS_A_S
        self._places_told = 0.0
        self._new_weights: Generator | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._look_ups = ThreadPoolExecutor(1, "racm3-look-up")
        self._thread = threading.Thread(target=self._run, name="racm3-engine", daemon=True)

    @property
    def waiting(self) -> int:
        with self._changed:
            return self._not_begun() + len({id(pending) for pending, _ in self._sought})

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
        self._look_ups.shutdown()
        self.memory_thread.stop()

    def submit(
        self,
        asked: Sequence[Request],
        *,
        timeout_s: float,
        until: float | None = None,
        client: str = "",
        show: bool = False,
        attribution: bool = False,
    ) -> Pending:
        """Let a request wait for its turn. ``until``: when its time is up, ``timeout_s`` from now if it is not given.
        Raises Busy if as many wait as may, InputError if one completion takes more rows than the batch has."""
        for one in asked:
            self.check_rows(one.settings)
        until = time.monotonic() + timeout_s if until is None else until
        pending = Pending(asked, show, attribution, timeout_s, until, client)
        with self._changed:
            self._check_room(self._not_begun())
            for number, one in enumerate(asked):
                self._waiting.put((pending, number), client, self.cost(one))
            self._changed.notify()
        return pending

    def check_rows(self, settings: Settings) -> None:
        """Raises InputError for settings that make one completion wider than the batch."""
        rows, most = _rows(settings), self.model.engine.max_rows
        if rows > most:
            raise InputError(
                f"samples x contexts make {rows} rows, with those for guidance and context-aware decoding; at most "
                f"{most} are run at once: ask for fewer samples or contexts"
            )

    def cost(self, request: Request) -> int:
        """Rows x steps of a completion, at most."""
        codes, settings = self.model.markup.codes_per_image, request.settings
        parts = request.document.parts
        steps = [
            settings.max_text_tokens if isinstance(parts[i], Text) or parts[i] == Hole("text") else codes
            for i in request.document.holes
        ]
        return _rows(settings) * sum(steps)

    async def call(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, done by this thread between two steps. Raises Busy, or what ``work`` raises."""
        future: Future[T] = Future()
        with self._changed:
            self._check_room(len(self._calls))
            self._calls.append((future, work))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def _not_begun(self) -> int:
        return len({id(pending) for pending, _ in self._waiting if not pending.begun})

    def reload(self, models: str) -> None:
        """Open the generator of the folder ``models`` again; what begins afterwards is answered by its weights. One
        that is damaged, or of another shape, is logged and not taken."""

        def read() -> None:
            try:
                new = ModelFolder.open(models).generator()
                if new.config != self.model.generator.config:
                    raise ConfigError("its generator has another shape; start the server anew")
            except Exception as error:
                log.error("the weights of %s are not taken: %s", models, error)
                return
            with self._changed:
                self._new_weights = new
                self._changed.notify()

        threading.Thread(target=read, name="racm3-reload", daemon=True).start()

    def _reload(self, new: Generator) -> None:
        self.model.generator.load_state_dict(new.state_dict())  # the engine notices that its tensors changed
        self._new_weights = None
        log.warning("the weights were opened again")

    def _check_room(self, waiting: int) -> None:
        if self._stopping or waiting >= self.queue:
            ahead = sum(self.cost(pending.asked[number]) for pending, number in self._waiting)
            raise Busy(waiting, min(max(1.0, ahead / self._row_steps_a_s), MOST_RETRY_S))

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
            while not (self._calls or self._running or self._found or (self._ready and not self._sought)):
                if self._stopping and not self._sought:
                    return False
                self._changed.wait()
        return True

    @property
    def _ready(self) -> bool:
        return bool(self._waiting) or self._new_weights is not None

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
        with self._changed:  # others come meanwhile
            waiting = {id(pending): pending for pending, _ in self._waiting}
            every = [*self._running, *(one for one in waiting.values() if one not in self._running)]
            leaving = [one for one in every if one.cancelled or one.late]
            if leaving:
                self._waiting.drop(lambda piece: piece[0] in leaving)
        for pending in leaving:
            if pending in self._running:
                self._running.remove(pending)
            pending.leave(None if pending.cancelled else Late(pending.timeout_s))

    def _join(self) -> None:
        """Start what was looked up. Let what waits be looked up next, in turn, while there is room for its rows."""
        while self._found:
            (pending, number), started = self._found.popleft()
            if pending.cancelled:
                continue
            if isinstance(started, Exception):
                self._fail(pending, started)
                continue
            pending.start(number, started, self.model)
            if pending not in self._running:
                self._running.append(pending)
        with self._changed:
            if self._sought:
                return
            if self._new_weights is not None:
                if self._running:
                    return  # those that are under way are finished by the old ones
                self._reload(self._new_weights)
            rows = sum(pending.rows for pending in self._running)
            while self._waiting:
                pending, number = self._waiting.first()
                rows += _rows(pending.asked[number].settings)
                if rows > self.model.engine.max_rows and (self._running or self._sought):
                    break
                pending.begun = True
                self._sought.append(self._waiting.get())
            sought = list(self._sought)
            self._tell_places()
        if sought:
            self._look_ups.submit(self._look_up, sought)

    def _tell_places(self) -> None:
        """Tell those that wait, now and then, how many are ahead of them."""
        now = time.monotonic()
        if now < self._places_told + PLACES_S:
            return
        self._places_told = now
        told: set[int] = set()
        for ahead, (pending, _) in enumerate(self._waiting):
            if pending.show and id(pending) not in told and pending.place != Place(ahead):
                pending.place = Place(ahead)
                pending.post(pending.place)
            told.add(id(pending))

    def _look_up(self, every: Sequence[Piece]) -> None:
        """All together, or each by itself where one of them cannot start. In the thread for that."""
        here = [piece for piece in every if not (piece[0].cancelled or piece[0].late)]
        found: list[tuple[Piece, Progress | Exception]] = [
            (piece, Late(piece[0].timeout_s)) for piece in every if piece not in here
        ]
        try:
            found += zip(here, self.model.start([pending.asked[number] for pending, number in here]), strict=True)
        except Exception:
            for piece in here:
                try:
                    found.append((piece, self.model.start([piece[0].asked[piece[1]]])[0]))
                except Exception as error:
                    found.append((piece, error))
        with self._changed:
            self._found.extend(found)
            self._sought = []
            self._changed.notify()

    def _advance(self) -> None:
        for pending in list(self._running):
            try:
                if pending.advance() or not pending.going:  # its other completions wait for their turn
                    self._running.remove(pending)
            except Exception as error:
                self._fail(pending, error)

    def _step(self) -> None:
        began, rows = time.monotonic(), sum(pending.rows for pending in self._running)
        try:
            self.model.engine.step()
            self.steps += 1
            pace = rows / max(time.monotonic() - began, 1e-6)
            self._row_steps_a_s += PACE * (pace - self._row_steps_a_s)
        except Exception as error:  # the engine has cancelled the whole batch
            for pending in list(self._running):
                self._fail(pending, error)

    def _fail(self, pending: Pending, error: Exception) -> None:
        """Give up a call of which a completion failed."""
        with self._changed:
            self._waiting.drop(lambda piece: piece[0] is pending)
        if pending in self._running:
            self._running.remove(pending)
        pending.leave(_told(error))


def _rows(settings: Settings) -> int:
    """The most rows of the batch that a request takes."""
    both = settings.image, settings.text
    streams = settings.contexts * (2 if any(one.unconditional for one in both) else 1)
    return settings.samples * (streams + any(one.context_aware != 1 for one in both))


def _told(error: Exception) -> Exception:
    """The error, logged unless it is one of those that tell the client what to do."""
    if not isinstance(error, (RACM3Error, Late)):
        log.error("a request failed", exc_info=error)
    return error
