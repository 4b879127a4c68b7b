"""Ten thousand hostile requests: bodies, forms, pictures, URLs, paths and heads that no honest client sends, and
clients that go away in the middle. The server refuses each, goes on answering, and leaks nothing. Then two hundred
costly ones: many and large pictures, long texts, many samples, slow bodies, half heads, floods, from one client, while
another one, the bystander, draws, lists and searches as it did when it was alone.

Ends with one JSON line: requests sent, answers of 5xx, requests that hung, whether the server answers honest requests
as before, and what it has more of at the end than after the first tenth: memory (a share), open files, threads;
the bystander's 95th percentile under the costly ones over that when it was alone, how many of its requests failed or
took ten times as long as its slowest alone, and the most memory that the server had meanwhile over that before.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import os
import random
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HANG_S = 120.0
Maker = Callable[[random.Random], bytes]

POSTS = ["/v1/images/generations", "/v1/chat/completions", "/v1/classify", "/v1/memory/documents", "/v1/memory/search"]
FORMS = ["/v1/images/edits", "/v1/memory/documents"]


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json", *more: bytes) -> bytes:
    head = [f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Connection: close", *more]
    if body:
        head += [f"Content-Type: {kind}".encode(), f"Content-Length: {len(body)}".encode()]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


# What is sent ------------------------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> object:
    """Some JSON, seldom what is wanted."""
    plain: list[object] = [
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        1e308,
        -0.0,
        "",
        " ",
        "a",
        "\0",
        "\ud800",
        "a" * 20_000,
        "../x",
    ]
    if depth > 3 or rng.random() < 0.7:
        return rng.choice(plain)
    inside = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return inside if rng.random() < 0.5 else {str(rng.choice(plain)): one for one in inside}


def json_body(rng: random.Random) -> bytes:
    """A request with a field or two that are wrong, or no JSON at all."""
    path = rng.choice(POSTS)
    fields = {"prompt": "a fox", "messages": [{"role": "user", "content": "a"}], "text": "a", "racm3": {}, "images": []}
    asked = {name: fields[name] for name in rng.sample(list(fields), rng.randrange(1, 4))}
    names = [*fields, "n", "size", "seed", "k", "id", "metadata", "examples", "where", "limit", "stream", "__proto__"]
    for _ in range(rng.randrange(1, 4)):
        asked[rng.choice(names)] = value(rng)  # type: ignore[assignment]
    body = json.dumps(asked).encode()
    broken = [
        body,
        body[: len(body) // 2],
        body + body,
        b"[" * 50_000,
        b'{"n":' + b"9" * 5000 + b"}",
        b"\xff\xfe" + body,
    ]
    broken += [b'{"prompt":NaN}', b'{"prompt":"a","prompt":"b"}', b"", b"\0" * 100, rng.randbytes(200)]
    return request(
        "POST", path, rng.choice([body, *broken]), rng.choice(["application/json"] * 4 + ["text/html", "a/b;c=\xff"])
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@functools.cache
def few_rows() -> bytes:
    return chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))


@functools.cache
def long_text() -> bytes:
    return chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b" * 20_000_000, 9))


def bomb(rng: random.Random) -> bytes:
    """A picture that is none, too large, cut off, or spoilt."""
    side = rng.choice([1, 64, 5000, 50_000, 2**31 - 1])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    text = long_text() if rng.random() < 0.05 else b""
    png = b"\x89PNG\r\n\x1a\n" + header + text + few_rows() + chunk(b"IEND", b"")
    spoilt = bytearray(png)
    for _ in range(20):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    others = [b"GIF89a" + rng.randbytes(50), b"II*\0" + rng.randbytes(200), b"%!PS\n", b"<svg/>", b"BM" + b"\xff" * 60]
    return rng.choice([png, png[: len(png) // 2], bytes(spoilt), *others])


def picture(rng: random.Random) -> bytes:
    url = f"data:image/png;base64,{base64.b64encode(bomb(rng)).decode()}"
    inside = [
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "https://localhost",
        "data:,",
    ]
    url = rng.choice([url, url, url, *inside])
    part = {"type": "image_url", "image_url": {"url": url}}
    return rng.choice(
        [
            request("POST", "/v1/memory/search", json.dumps({"image": url}).encode()),
            request("POST", "/v1/memory/documents", json.dumps({"image": url, "text": "a"}).encode()),
            request(
                "POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
            ),
        ]
    )


def form(rng: random.Random) -> bytes:
    """A form that is broken, or full of what was not asked for."""
    names = [
        "image",
        "image[]",
        "mask",
        "prompt",
        "racm3",
        "racm3[k]",
        "racm3[",
        "metadata",
        "id",
        "x" * 2000,
        "",
        '"',
        "\r\n",
    ]
    parts = []
    for _ in range(rng.choice([0, 1, 3, 100])):
        file = rng.choice(["", '; filename="a.png"', '; filename="../../a"', "; filename*=utf-8''%00"])
        parts.append(f'--x\r\nContent-Disposition: form-data; name="{rng.choice(names)}"{file}\r\n\r\n'.encode())
        parts.append(rng.choice([bomb(rng), b"1", b"{", b"a" * 100_000, rng.randbytes(100)]) + b"\r\n")
    end = rng.choice([b"--x--\r\n", b"", b"--y--"])
    kind = rng.choice(
        ["multipart/form-data; boundary=x"] * 3 + ["multipart/form-data", "multipart/form-data; boundary=" + "y" * 500]
    )
    return request("POST", rng.choice(FORMS), b"".join(parts) + end, kind)


def path(rng: random.Random) -> bytes:
    names = [
        "../../../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%5c..%5cx",
        "%00",
        "%ff%fe",
        "%",
        "%2",
        "a" * 5000,
    ]
    names += [
        "a/../../b",
        "//x",
        "?offset=-1",
        "?limit=1e9",
        "?offset=" + "9" * 50,
        "?n=%00",
        ";x",
        "#x",
        "item\r\nX: y",
    ]
    place = rng.choice(["/v1/memory/documents/", "/v1/memory/images/", "/v1/models/", "/v1/memory/documents", "/", "*"])
    method = rng.choice(["GET", "DELETE", "HEAD", "PUT", "TRACE", "CONNECT", "OPTIONS", "get", "X" * 100])
    return request(method, place + rng.choice(names))


def head(rng: random.Random) -> bytes:
    """A head that HTTP does not allow, or that wants to smuggle."""
    body = b'{"prompt": "a"}'
    honest = f"POST {POSTS[0]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    return rng.choice(
        [
            honest + b"Content-Length: -1\r\n\r\n" + body,
            honest + b"Content-Length: 15\r\nContent-Length: 3\r\n\r\n" + body,
            honest + b"Content-Length: 99999999999999\r\n\r\n" + body,
            honest + b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\nzz\r\n" + body,
            honest + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + body,
            honest + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
            honest + b"".join(b"X%d: y\r\n" % i for i in range(2000)) + b"\r\n",
            honest
            + b"Authorization: Bearer \xff\xfe\r\nOrigin: http://evil.example\r\nContent-Length: 15\r\n\r\n"
            + body,
            honest + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
            honest + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01" + rng.randbytes(100),
            rng.randbytes(300),
        ]
    )


KINDS: list[Maker] = [json_body, picture, form, path, head]


# Sending -----------------------------------------------------------------------------------------------------------


def send(port: int, data: bytes, leave: bool) -> str:
    """The status of the answer, "closed" without one, or "hung". ``leave``: go away without waiting for it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
            connection.sendall(data)
            if leave:
                return "left"
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(64)
            while connection.recv(1 << 16):
                pass
    except TimeoutError:
        return "hung"
    except OSError:
        return "closed"
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed"


def attack(port: int, seeds: Sequence[int], threads: int = 4) -> Counter[str]:
    """One hostile request a seed; how many got which status."""

    def one(seed: int) -> str:
        rng = random.Random(seed)
        data = rng.choice(KINDS)(rng)
        leave = rng.random() < 0.1
        return send(port, data[: rng.randrange(1, len(data) + 1)] if leave else data, leave)

    with ThreadPoolExecutor(threads) as pool:
        return Counter(pool.map(one, seeds))


# Costly requests ---------------------------------------------------------------------------------------------------

ATTACKER, BYSTANDER = "attacker-" * 3, "bystander-" * 3
SLOW_S = 8.0
"""How long a slow body or half a head is drawn out."""


@functools.cache
def blank_url(width: int, height: int) -> str:
    rows = zlib.compress((b"\0" + b"\xff" * 3 * width) * height, 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def costly(seed: int) -> tuple[str, object]:
    """Path and body of a request that is allowed, or nearly, and as dear as one can be."""
    rng = random.Random(seed)
    large, fitting = blank_url(3900, 4000), blank_url(2000, 2000)
    shown = {"type": "image_url", "image_url": {"url": large}}
    wide = {"samples": 16, "context_aware": 1.5, "seed": seed}
    return [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [shown] * 64}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [shown]}], "max_tokens": 48}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 1999}] * 64}),
        ("/v1/classify", {"images": [fitting] * 8, "examples": {"a": [fitting] * 2, "b": [fitting] * 2}}),
        ("/v1/memory/search", {"image": large, "limit": 100}),
        ("/v1/images/generations", {"prompt": f"a fox {seed}", "n": 10, "racm3": wide}),
        ("/v1/images/generations", {"prompt": f"an owl {seed}", "racm3": wide | {"attribution": True}}),
        ("/v1/embeddings", {"input": ["word " * 1999] * 128}),
    ][rng.randrange(8)]


def headers(token: str, length: int) -> bytes:
    return f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n".encode()


def ask(port: int, token: str, method: str, path: str, body: object = None) -> str:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
            connection.sendall(head + headers(token, len(content)) + b"\r\n" + content)
            answer = connection.recv(64)
            while connection.recv(1 << 16):
                pass
    except TimeoutError:
        return "hung"
    except OSError:
        return "closed"
    return answer[9:12].decode("latin-1")


def drawn_out(port: int, data: bytes) -> str:
    """Send a byte now and then."""
    until = time.monotonic() + SLOW_S
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
            for byte in data:
                connection.sendall(bytes([byte]))
                if time.monotonic() > until:
                    break
                time.sleep(0.1)
    except OSError:
        return "closed"
    return "left"


def attacked(port: int, count: int, threads: int = 16) -> Counter[str]:
    """So many costly requests of one client; how many got which status."""

    def one(seed: int) -> str:
        kind = seed % 8
        if kind == 0:
            return drawn_out(port, b"POST /v1/memory/search HTTP/1.1\r\n" + headers(ATTACKER, 999) + b"\r\n{")
        if kind == 1:
            return drawn_out(port, b"GET /" + b"a" * 999)
        if kind == 2:
            return [ask(port, ATTACKER, "GET", "/v1/memory/documents?limit=100&sort=text") for _ in range(20)][-1]
        return ask(port, ATTACKER, "POST", *costly(seed))

    with ThreadPoolExecutor(threads) as pool:
        return Counter(pool.map(one, range(count)))


def bystander(port: int, go_on: Callable[[int], bool]) -> tuple[list[float], int]:
    """Seconds that honest requests took, one after the other, and how many failed."""
    honest: list[tuple[str, str, object]] = [
        ("POST", "/v1/images/generations", {"prompt": "a fox in the snow"}),
        ("GET", "/v1/memory/documents?limit=20", None),
        ("POST", "/v1/memory/search", {"text": "an owl at night"}),
    ]
    seconds: list[float] = []
    failed = 0
    while go_on(len(seconds)):
        began = time.monotonic()
        failed += ask(port, BYSTANDER, *honest[len(seconds) % 3]) != "200"
        seconds.append(time.monotonic() - began)
    return seconds, failed


def percentile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def costs(memory: Path, count: int, quiet: int) -> dict[str, object]:
    """What costly requests of one client cost another."""
    from serve_load import Server

    tokens = memory.parent / "tokens"
    tokens.write_text(f"write {ATTACKER}\nwrite {BYSTANDER}\n", encoding="ascii")
    for shape in ((3900, 4000), (2000, 2000)):
        blank_url(*shape)
    with Server(memory, "--token-file", str(tokens)) as server:
        bystander(server.port, lambda done: done < 6)  # the first of a kind takes longer
        alone, _ = bystander(server.port, lambda done: done < quiet)
        before, most = server.rss_bytes, 0
        found: list[Counter[str]] = []
        attack_ = threading.Thread(target=lambda: found.append(attacked(server.port, count)))
        attack_.start()

        def go_on(_: int) -> bool:
            nonlocal most
            most = max(most, server.rss_bytes)
            return attack_.is_alive()

        seconds, failed = bystander(server.port, go_on)
        attack_.join()
    starved = failed + sum(one > 10 * max(alone) for one in seconds)
    for status, number in sorted(found[0].items()):
        print(f"costly {status}  {number}")
    print(
        f"bystander alone: {len(alone)} requests, p50 {percentile(alone, 0.5):.2f} s, "
        f"p95 {percentile(alone, 0.95):.2f} s; "
        f"attacked: {len(seconds)}, p50 {percentile(seconds, 0.5):.2f} s, p95 {percentile(seconds, 0.95):.2f} s, "
        f"longest {max(seconds):.2f} s"
    )
    return {
        "costly": sum(found[0].values()),
        "costly_5xx": sum(number for status, number in found[0].items() if status.startswith("5")),
        "bystander_ratio": round(percentile(seconds, 0.95) / percentile(alone, 0.95), 2),
        "starved": starved,
        "costly_memory": round(most / before, 2),
    }


def main() -> None:
    from serve_load import Server, make_memory

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--costly", type=int, default=200)
    parser.add_argument("--quiet", type=int, default=60, help="requests of the bystander before the costly ones")
    parser.add_argument("--memory", type=Path, help="a memory to copy; by default the built-in world's, made anew")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = Path(folder) / "memory"
        make_memory(memory, args.memory)
        with Server(memory, "--set", "requests_a_minute=0") as server:

            def has() -> tuple[int, int, int]:
                process = f"/proc/{server.process.pid}"
                return server.rss_bytes, len(os.listdir(f"{process}/fd")), len(os.listdir(f"{process}/task"))

            honest = ("POST", "/v1/images/generations", {"prompt": "a fox in the snow", "racm3": {"retrieve": False}})
            before = json.loads(server.client(*honest)[1])["data"]
            found = attack(server.port, range(args.requests // 10))
            early = has()
            found += attack(server.port, range(args.requests // 10, args.requests))
            late = has()
            same = json.loads(server.client(*honest)[1])["data"] == before
        cost = costs(memory, args.costly, args.quiet)
    for status, count in sorted(found.items()):
        print(f"{status}  {count}")
    result = {
        "requests": sum(found.values()),
        "errors_5xx": sum(count for status, count in found.items() if status.startswith("5")),
        "hung": found["hung"],
        "answers_as_before": same,
        "memory_growth": round(late[0] / early[0] - 1, 4),
        "more_files": late[1] - early[1],
        "more_threads": late[2] - early[2],
        **cost,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
