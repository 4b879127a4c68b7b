"""Guard: what stands between the network and the routes. Who may, how much, how often, and the one shape of an error.

The guard is the outermost layer, and knows nothing of what the API does: it looks at the head of a request, reads the
body within its limits, and measures what comes of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from racm3.errors import ConfigError, values

__all__ = ["LIMITS", "ApiError", "Guard", "Limits", "Tokens", "error_body", "is_loopback"]

Grant = Literal["read", "write"]

CALLERS = 10_000
"""Whose rates are remembered at once (ours): the one who came longest ago is forgotten first."""
OPEN = frozenset({"/", "/health", "/ready", "/openapi.json"})
"""What may be asked without a token: it tells nothing about anyone."""
MIN_TOKEN_CHARS = 16
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Limits:
    """What a request, and all of them together, may take. What a field of the API may be stands in shapes.py.

    ``held_bytes``: bodies of all requests on their way. ``requests_a_minute``: of one caller, a token or else an
    address; 0 for any number. ``queue``: requests that wait for the model; beyond, they are refused.
    """

    body_bytes: int = 20_000_000
    body_s: float = 30.0
    held_bytes: int = 500_000_000
    pixels: int = 16_000_000
    pictures: int = 64
    requests_a_minute: int = 1200
    queue: int = 256
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or self.queue < 1 or self.timeout_s <= 0:
            raise ConfigError(f"limits are 0 or above, queue and timeout_s above 0; given {values(self, *vars(self))}")


LIMITS = Limits()


class ApiError(HTTPException):
    """An answer that is an error. ``param`` is the field that is wrong, ``code`` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The one shape of an error, OpenAI's. What the client sent may be quoted in it, and need not be sound text."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    sound = message.encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": sound, "type": kind, "param": param, "code": code}}


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a host.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Tokens:
    """Who may do what. A file of lines SCOPE TOKEN; ``read`` is everything but changing the memory, ``write`` all.

    Raises ConfigError for a file that is missing, empty or malformed.
    """

    def __init__(self, scopes: Mapping[str, Grant]) -> None:
        self._scopes = {_digest(token.encode()): scope for token, scope in scopes.items()}

    @classmethod
    def load(cls, file: Path) -> Tokens:
        """Read a token file. Raises ConfigError at a line that is none."""
        scopes: dict[str, Grant] = {}
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the token file {file} cannot be read: {error}") from None
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or words[0] not in ("read", "write") or not words[1].isascii():
                raise ConfigError(f"{file}:{number}: a line is 'read TOKEN' or 'write TOKEN', in ASCII")
            if len(words[1]) < MIN_TOKEN_CHARS:
                raise ConfigError(
                    f"{file}:{number}: the token has {len(words[1])} characters, and {MIN_TOKEN_CHARS} are the least; "
                    'make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
                )
            scopes[words[1]] = "read" if words[0] == "read" else "write"
        if not scopes:
            raise ConfigError(f"the token file {file} holds no token; write lines 'read TOKEN' or 'write TOKEN'")
        return cls(scopes)

    def scope(self, authorization: str) -> Grant | None:
        """What the bearer of a header may. Every token is compared, in a time that tells nothing of them."""
        kind, _, token = authorization.partition(" ")
        given, found = _digest(token.strip().encode("latin-1")), None
        for digest, scope in self._scopes.items():
            if hmac.compare_digest(digest, given):
                found = scope
        return found if kind.lower() == "bearer" else None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class Rates:
    """A bucket a caller, which fills at so many requests a minute and holds as many."""

    def __init__(self, a_minute: int) -> None:
        self._a_minute = a_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def wait_s(self, caller: str) -> float:
        """0 if the caller may go on, or else when."""
        if not self._a_minute:
            return 0.0
        now = time.monotonic()
        left, then = self._buckets.pop(caller, (float(self._a_minute), now))
        left = min(float(self._a_minute), left + (now - then) * self._a_minute / 60)
        self._buckets[caller] = (left - 1, now) if left >= 1 else (left, now)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) * 60 / self._a_minute


@dataclass
class Metrics:
    """What the guard sees of requests. A registry of its own: two apps in a process do not share counts."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        labels = ["method", "route", "status"]
        self.requests = Counter("racm3_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram("racm3_request_seconds", "Until the last byte.", ["route"], registry=self.registry)


class Guard:
    """ASGI middleware. ``hosts``: the names in the Host header that are answered; empty for any.

    A browser lets any page that it shows send requests here, so one that comes from another origin is refused; and a
    server on loopback that wants no token answers only to its own names, for a foreign name may lead here as well.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, tokens: Tokens | None, hosts: Collection[str], metrics: Metrics
    ) -> None:
        self.app, self.limits, self.tokens, self.hosts, self.metrics = app, limits, tokens, hosts, metrics
        self._rates = Rates(limits.requests_a_minute)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: its head is checked, its body read within the limits, its time taken."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, held = time.perf_counter(), 0, 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_head(scope, headers)
            body = await self._body(receive, headers)
            held = len(body)
            self._held += held
            await self.app(scope, _again(body, receive), sending)
        except ApiError as error:
            await _send_error(sending, error)
        finally:
            self._held -= held
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(scope["method"] if route != "none" else "any", route, str(status or 500)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _check_head(self, scope: Scope, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self.hosts and _without_port(host) not in self.hosts:
            raise ApiError(403, f"this server answers to {', '.join(self.hosts)}, not to {host!r}", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and _authority(origin) != host.lower():
            raise ApiError(403, f"a page of {origin!r} may not use this server", "wrong_origin")
        granted: Grant | None = "write"
        caller = (scope.get("client") or ("unknown",))[0]
        if self.tokens is not None:
            granted = self.tokens.scope(headers.get("authorization", ""))
            if granted is not None:
                caller = _digest(headers["authorization"].encode("latin-1")).hex()
        if wait_s := self._rates.wait_s(caller):
            raise too_many("too many requests a minute", wait_s, "rate_limit_exceeded")
        if granted is None and scope["path"] not in OPEN:
            raise ApiError(
                401,
                "this server wants a token that it knows; send the header Authorization: Bearer TOKEN",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope["racm3.scope"] = granted

    async def _body(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        declared = headers.get("content-length", "0")
        if not declared.isdigit():
            raise ApiError(400, f"content-length is {declared!r}; it is a number")
        self._check_size(int(declared))
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the request broke off")
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    self._check_size(size)
                    if not message.get("more_body"):
                        return b"".join(pieces)
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {self.limits.body_s:g} s to come") from None

    def _check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise ApiError(413, f"a request has at most {self.limits.body_bytes:,} bytes; scale pictures down")
        if self._held + size > self.limits.held_bytes:
            raise too_many("the requests on their way hold as many bytes as may be", 1.0, "queue_full")


def too_many(message: str, wait_s: float, code: str) -> ApiError:
    return ApiError(429, message, code, headers={"Retry-After": str(max(1, round(wait_s)))})


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() else host).lower()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _again(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read, then whatever comes: that the client has gone."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _send_error(send: Send, error: ApiError) -> None:
    body = json.dumps(error_body(error.status_code, error.detail, error.code, error.param)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    if error.status_code in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
