"""Call: what the server knows of a request while it answers it, and the line that it logs of it.

The guard makes one for each request, and whatever runs for the request finds it with ``call()``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

__all__ = ["Call", "Late", "begin", "call", "log_as"]

ACCESS = logging.getLogger("racm3.access")
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
"""What a proxy may have called a request: nothing that could forge a line of a log."""


class Late(Exception):
    """The time of a request is up."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request took longer than the {timeout_s:g} s that it may")


@dataclass
class Call:
    """One request. ``client``: a digest of its token, or its address. ``root_path``: where a proxy puts the server.
    ``until``: by the clock of the event loop, which is ``time.monotonic``."""

    id: str
    client: str = "unknown"
    timeout_s: float = 60.0
    began: float = field(default_factory=time.monotonic)
    root_path: str = ""
    received_bytes: int = 0
    sent_bytes: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    timer: asyncio.Timeout | None = None

    @classmethod
    def of(cls, given_id: str) -> Call:
        """One with the id that a proxy gave, or else a new one."""
        return cls(given_id if GIVEN_ID.fullmatch(given_id) else f"req-{token_hex(12)}")

    @property
    def until(self) -> float:
        return self.began + self.timeout_s

    def shorten(self, timeout_s: float | None) -> None:
        """Let the request take no longer than it asks for, if it does."""
        if timeout_s is not None and timeout_s < self.timeout_s:
            self.timeout_s = timeout_s
            if self.timer is not None:
                self.timer.reschedule(self.until)

    def log(self, method: str, path: str, route: str, status: int, seconds: float) -> None:
        """One line of what came of it; without bodies, tokens, or what a query asks."""
        facts: dict[str, Any] = {"request_id": self.id, "client": self.client, "method": method, "path": path[:200]}
        facts |= {"route": route, "status": status, "seconds": round(seconds, 4), "received_bytes": self.received_bytes}
        facts |= {name: getattr(self, name) for name in ("sent_bytes", "prompt_tokens", "new_tokens")}
        ACCESS.info("request", extra={"facts": facts})


_CALL: ContextVar[Call] = ContextVar("racm3_call")


def call() -> Call:
    """The request that is being answered."""
    return _CALL.get()


def begin(own: Call) -> None:
    """Let ``own`` be what ``call`` gives to all that this task does."""
    _CALL.set(own)


class _Line(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts = {"time": f"{when}.{record.msecs:03.0f}Z", **getattr(record, "facts", {})}
        return json.dumps(facts) if self._json else " ".join(f"{name}={_word(value)}" for name, value in facts.items())


def _word(value: Any) -> str:
    """A value that ends at a blank; quoted if it has one, or an end of line, inside."""
    text = str(value)
    return text if re.fullmatch(r"[!#-~]*", text) else json.dumps(text)


def log_as(kind: str) -> None:
    """Write a line for each request to stderr, as "text" or "json"; "none": no line."""
    ACCESS.handlers.clear()
    ACCESS.propagate = False
    ACCESS.setLevel(logging.INFO if kind != "none" else logging.CRITICAL)
    if kind != "none":
        handler = logging.StreamHandler()
        handler.setFormatter(_Line(kind == "json"))
        ACCESS.addHandler(handler)
