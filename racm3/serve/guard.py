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
import math
import time
from collections import Counter as TotalOf
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from racm3.errors import ConfigError
from racm3.serve.call import Call, Late, begin
from racm3.serve.limits import Limits

__all__ = ["ApiError", "Guard", "Metrics", "Tokens", "error_body", "is_loopback", "too_many"]

Grant = Literal["read", "write"]

CALLERS = 10_000
"""Whose rates are remembered at once (ours): the one who came longest ago is forgotten first."""
PROBES = frozenset({"/health", "/ready"})
"""What may be asked as often as anyone likes."""
OPEN = PROBES | {"/", "/openapi.json"}
"""What may be asked without a token: it tells nothing about anyone."""
SIGNED = "/v1/images/files/"
"""Where the address itself says who may."""
HELD_SHARE = 4
"""One client may hold a fourth of the bytes of all bodies (ours)."""
MIN_TOKEN_CHARS = 16
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


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
        self.tokens = Counter("racm3_tokens", "Tokens read and drawn.", ["route", "kind"], registry=self.registry)

    def count(self, own: Call, method: str, route: str, status: int, seconds: float) -> None:
        """A request that is over."""
        self.requests.labels(method if route != "none" else "any", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        for kind, tokens in (("prompt", own.prompt_tokens), ("new", own.new_tokens)):
            if tokens:
                self.tokens.labels(route, kind).inc(tokens)


class Guard:
    """ASGI middleware. ``hosts``: the names in the Host header that are answered; empty for any. ``origins``: whose
    pages may ask, beside the server's own.

    A browser lets any page that it shows send requests here, so one that comes from another origin is refused; and a
    server on loopback that wants no token answers only to its own names, for a foreign name may lead here as well.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        tokens: Tokens | None,
        hosts: Collection[str],
        origins: Collection[str],
        metrics: Metrics,
    ) -> None:
        self.app, self.limits, self.tokens, self.hosts, self.metrics = app, limits, tokens, hosts, metrics
        self.origins = origins
        self._rates = Rates(limits.requests_a_minute)
        self._held: TotalOf[str] = TotalOf()
        policy = b"cross-origin" if origins else b"same-origin"
        self._headers = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", policy)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: its head is checked, its body read within the limits, its time taken. It is given up, whatever
        it waits for, when its time is up or its client has gone."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        own = Call.of(headers.get("x-request-id", ""))
        begin(own)
        started, status, complete, gone = time.perf_counter(), 0, False, asyncio.Event()

        async def sending(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                if own.timer is not None and not own.timer.expired():
                    own.timer.reschedule(None)  # a stream looks at its time by itself
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers, (b"x-request-id", own.id.encode())]
            else:
                own.sent_bytes += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            await send(message)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            if not complete and own.timer is not None and not own.timer.expired():
                own.timer.reschedule(asyncio.get_running_loop().time())

        try:
            self._check_head(scope, headers, own)
            body = await self._body(receive, headers, own)
            own.began, own.timeout_s = time.monotonic(), self.limits.timeout_s
            async with asyncio.timeout_at(own.until) as own.timer:
                watching = asyncio.create_task(watch())
                try:
                    await self.app(scope, _again(body, gone), sending)
                finally:
                    watching.cancel()
        except ApiError as error:
            await _send_error(sending, error)
        except TimeoutError:
            if gone.is_set():
                status = 499
            elif not status:
                await _send_error(sending, ApiError(408, str(Late(own.timeout_s)), "deadline_exceeded"))
        finally:
            self._held[own.client] -= own.received_bytes
            self._held += TotalOf()  # forgets clients that hold nothing
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - started
            self.metrics.count(own, scope["method"], route, status or 500, seconds)
            own.log(scope["method"], scope["path"], route, status or 500, seconds)

    def _check_head(self, scope: Scope, headers: Mapping[str, str], own: Call) -> None:
        own.root_path = scope.get("root_path", "")
        path = scope["path"].removeprefix(own.root_path)
        self._check_origin(scope, headers, path)
        granted: Grant | None = "write"
        own.client = (scope.get("client") or ("unknown",))[0]
        if self.tokens is not None:
            granted = self.tokens.scope(headers.get("authorization", ""))
            if granted is not None:
                own.client = f"token-{_digest(headers['authorization'].encode('latin-1')).hex()[:16]}"
        if path not in PROBES and (wait_s := self._rates.wait_s(own.client)):
            raise too_many("too many requests a minute", wait_s, "rate_limit_exceeded")
        if granted is None and path not in OPEN and not path.startswith(SIGNED):
            raise ApiError(
                401,
                "this server wants a token that it knows; send the header Authorization: Bearer TOKEN",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope["racm3.scope"] = granted

    def _check_origin(self, scope: Scope, headers: Mapping[str, str], path: str) -> None:
        """Raises ApiError for what a page of another origin sent, or what came under a foreign name."""
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise ApiError(400, "the request has several Host headers; send one", "wrong_host")
        host = headers.get("host", "")
        if self.hosts and _without_port(host) not in self.hosts:
            raise ApiError(403, f"this server answers to {', '.join(self.hosts)}, not to {host!r}", "wrong_host")
        origin = headers.get("origin")
        if origin in self.origins:
            return
        if origin is not None and origin.lower() != f"{scope['scheme']}://{host}".lower():
            raise ApiError(403, f"a page of {origin!r} may not use this server", "wrong_origin")
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if site in ("cross-site", "same-site") and not self.origins and not (path == "/" and mode == "navigate"):
            raise ApiError(403, "a page of another origin may not use this server", "wrong_origin")

    async def _body(self, receive: Receive, headers: Mapping[str, str], own: Call) -> bytes:
        declared = headers.get("content-length", "0")
        if not declared.isdigit():
            raise ApiError(400, f"content-length is {declared!r}; it is a number")
        self._check_size(int(declared))
        pieces = []
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the request broke off")
                    pieces.append(message.get("body", b""))
                    own.received_bytes += len(pieces[-1])
                    self._held[own.client] += len(pieces[-1])
                    self._check_size(own.received_bytes)
                    if not message.get("more_body"):
                        return b"".join(pieces)
                    self._check_held(own)
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {self.limits.body_s:g} s to come") from None

    def _check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise ApiError(413, f"a request has at most {self.limits.body_bytes:,} bytes; scale pictures down")

    def _check_held(self, own: Call) -> None:
        """One client never holds all: what it has more than its share is refused, and the others go on."""
        most = self.limits.held_bytes
        if self._held.total() > most or self._held[own.client] > max(self.limits.body_bytes, most // HELD_SHARE):
            raise too_many("the requests on their way hold as many bytes as may be", 1.0, "queue_full")


def too_many(message: str, wait_s: float, code: str) -> ApiError:
    """The answer to one request too many. ``wait_s``: when it may come again."""
    return ApiError(429, message, code, headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() else host).lower()


def _again(body: bytes, gone: asyncio.Event) -> Receive:
    """Give the body that was read, then that the client has gone."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            await gone.wait()
            return {"type": "http.disconnect"}
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
