"""Connection: uvicorn's own, with what it leaves out: a head has to come in time, and connections are bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from racm3.serve.limits import Limits

__all__ = ["connection_of"]


def connection_of(limits: Limits) -> type[H11Protocol]:
    """The class of the connections of one server."""
    idle: dict[Connection, None] = {}  # those without a request, the longest first

    class Connection(H11Protocol):
        """Between a client and uvicorn."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Make room for it, or close it at once."""
            if len(self.connections) >= limits.connections:
                if not idle:
                    self.transport = transport
                    transport.abort()
                    return
                longest = next(iter(idle))
                del idle[longest]
                longest.transport.abort()
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget it."""
            self._heard()
            if self.flow is not None:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """A head that has begun is to be whole in time, however often a byte of it comes."""
            if self._timer is None and self.conn.their_state is h11.IDLE:
                self._wait()
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._heard()

        def on_response_complete(self) -> None:
            """From now on it is kept alive."""
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                idle[self] = None

        def _wait(self) -> None:
            idle[self] = None
            self._timer = self.loop.call_later(limits.head_s, self.transport.abort)

        def _heard(self) -> None:
            idle.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
