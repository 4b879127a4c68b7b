"""The server under load: many clients, requests of every kind at once, writes to the memory meanwhile, and kills.

    alone     every request of a seeded pool by one client, one after the other: the answers expected, and how fast
    loaded    so many clients, each sending one request of the pool after the other; another client adds documents to
              the memory and deletes some of them. Every answer is compared with the one expected
    killed    the server is killed (SIGKILL) while clients add and delete, and started again on the same memory: every
              change that was acknowledged is there

Ends with one JSON line: answers that differ, answers of 5xx, requests a second loaded / alone, percentiles of the
latency in seconds, the longest over the median, growth of the server's memory over the last two thirds of the load,
changes that were lost; and the server's CPU time a request, alone / loaded, which other work on the machine disturbs
less.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

Call = tuple[str, str, Any]
"""Method, path, body."""
CAPTIONS = [
    f"{what} {where}"
    for what in ("a fox", "an owl", "two castles", "a sailboat", "a flag of Thailand", "a lobster")
    for where in ("in the snow", "on a beach", "in the night sky", "on a red background")
]
REQUESTS_A_CHANGE = 5
START_S = 300
SAMPLE_S = 1.0


class Server:
    """``racm3 serve`` in a process of its own."""

    def __init__(self, memory: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "racm3.cli", "serve", "--port", "0", "--memory", str(memory), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = ""
        for line in self.process.stdout:
            if found := re.search(r"open http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError(f"the server did not start: {line}")
        self.client = Client(self.port)
        self.client.wait()

    @property
    def rss_bytes(self) -> int:
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

    @property
    def cpu_s(self) -> float:
        """Seconds of all cores that the server has taken: what a busy machine leaves of a measurement."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            ticks = file.read().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(START_S)


class Client:
    """Sends each request on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        if isinstance(body, tuple):
            content, headers = body[1], {"Content-Type": body[0]}
        else:
            content, headers = (None, {}) if body is None else (json.dumps(body), {"Content-Type": "application/json"})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def wait(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                assert self("GET", "/ready")[0] == 200
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


# The pool of requests ----------------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def form(**fields: str | bytes) -> tuple[str, bytes]:
    """A multipart body, and its content type; bytes are files."""
    pieces = []
    for name, value in fields.items():
        file = f'; filename="{name}.png"' if isinstance(value, bytes) else ""
        head = f'--part\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        pieces.append(head + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return "multipart/form-data; boundary=part", b"".join(pieces) + b"--part--\r\n"


def make_pool(client: Client, count: int) -> list[Call]:
    """Requests of seven kinds, in turns."""
    shown = [
        client("GET", document["image"])[1]
        for document in json.loads(client("GET", f"/v1/memory/documents?limit={min(count, 100)}")[1])["data"]
        if document["image"]
    ]
    pool: list[Call] = []
    for seed in range(count):
        caption, picture, kind = CAPTIONS[seed % len(CAPTIONS)], shown[seed % len(shown)], seed % 7
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        options = {"seed": seed}
        if kind in (0, 1):
            asked = {"prompt": caption, "racm3": options | {"retrieve": kind == 0}}
            pool.append(("POST", "/v1/images/generations", asked))
        elif kind == 2:
            pool.append(("POST", "/v1/images/generations", {"prompt": caption, "racm3": options, "stream": True}))
        elif kind == 3:
            hidden = np.zeros(np.asarray(PIL.Image.open(io.BytesIO(picture))).shape[:2], dtype=np.uint8)
            hidden[: len(hidden) // 2] = 255
            body = form(image=picture, mask=png(hidden), prompt=caption, racm3=json.dumps(options))
            pool.append(("POST", "/v1/images/edits", body))
        elif kind in (4, 5):
            content = [{"type": "image_url", "image_url": {"url": url}}]
            chat = {"messages": [{"role": "user", "content": content}], "racm3": options, "stream": kind == 5}
            pool.append(("POST", "/v1/chat/completions", chat))
        else:
            pool.append(("POST", "/v1/memory/search", {"text": caption, "limit": 3}))
    return pool


def essence(body: bytes) -> bytes:
    """What an answer says, without when it said it. Scores are rounded: sums of a batch are in another order."""
    body = re.sub(rb'"(created|created_at)": ?\d+|"id": ?"chatcmpl-\w+"', b"", body)
    return re.sub(rb'"score": ?(-?[\d.e-]+)', lambda found: b'"score": %.3f' % float(found[1]), body)


def first_difference(expected: bytes, found: bytes) -> str:
    """Where two answers part, in words."""
    pairs = enumerate(zip(expected, found, strict=False))
    place = next((i for i, (one, other) in pairs if one != other), min(len(expected), len(found)))
    around = slice(max(0, place - 60), place + 60)
    return f"at byte {place} {found[around]!r}, alone {expected[around]!r}"


# Load --------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What came of the loaded requests."""

    wrong: int = 0
    differing: dict[int, bytes] = field(default_factory=dict)
    """The last wrong answer to each request of the pool."""
    errors_5xx: int = 0
    seconds: list[float] = field(default_factory=list)
    took_s: float = 0.0
    rss_bytes: list[tuple[float, int]] = field(default_factory=list)
    """The server's memory, and when, in seconds from the start."""

    @property
    def memory_growth(self) -> float:
        """Over the last two thirds of the time: 20 minutes of 30."""
        early = next(held for when, held in self.rss_bytes if when >= self.took_s / 3)
        return self.rss_bytes[-1][1] / early - 1


def loaded(
    server: Server,
    pool: list[Call],
    expected: list[bytes],
    clients: int,
    requests: int,
    least_s: float,
    due: threading.Semaphore,
) -> Load:
    """``clients`` at once send ``requests`` together, or more until ``least_s`` have gone by. After each
    ``REQUESTS_A_CHANGE``, a change of the memory is ``due``."""
    load, lock, order = Load(), threading.Lock(), random.Random(0)
    started, sent = time.perf_counter(), 0

    def go_on() -> int | None:
        nonlocal sent
        with lock:
            if sent >= requests and time.perf_counter() - started >= least_s:
                return None
            sent += 1
            if sent % REQUESTS_A_CHANGE == 0:
                due.release()
            now = time.perf_counter() - started
            if not load.rss_bytes or now - load.rss_bytes[-1][0] > SAMPLE_S:
                load.rss_bytes.append((now, server.rss_bytes))
            return order.randrange(len(pool))

    def run() -> None:
        client = Client(server.port)
        while (number := go_on()) is not None:
            begun = time.perf_counter()
            status, body = client(*pool[number])
            took = time.perf_counter() - begun
            with lock:
                load.seconds.append(took)
                load.errors_5xx += status >= 500
                if status != 200 or essence(body) != expected[number]:
                    load.wrong += 1
                    load.differing[number] = essence(body)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.took_s = time.perf_counter() - started
    load.rss_bytes.append((load.took_s, server.rss_bytes))
    return load


@dataclass
class Changes:
    """Changes of a memory that were acknowledged: ids that are there, ids that are gone. ``open``: one that was sent,
    and never answered."""

    there: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)

    def lost(self, client: Client) -> int:
        asked = [(name, 200) for name in self.there - self.open] + [(name, 404) for name in self.gone - self.open]
        return sum(client("GET", f"/v1/memory/documents/{name}")[0] != status for name, status in asked)


@contextmanager
def changing(port: int, changes: Changes, name: str, due: threading.Semaphore | None = None) -> Iterator[None]:
    """Meanwhile, documents that no request retrieves are added, and every third one is deleted again: one after the
    other, or each when it is ``due``. They have words alone: pictures of noise were retrieved for some flags."""
    done = threading.Event()

    def run() -> None:
        client, number = Client(port), 0
        while not done.is_set():
            if due is not None and not due.acquire(timeout=0.1):
                continue
            number += 1
            own = f"{name}-{number}"
            new = {"id": own, "text": f"xyzzy {own}"}
            changes.open.add(own)
            try:
                if client("POST", "/v1/memory/documents", new)[0] == 201:
                    changes.there.add(own)
                if number % 3 == 0 and client("DELETE", f"/v1/memory/documents/{own}")[0] == 200:
                    changes.there.discard(own)
                    changes.gone.add(own)
            except (OSError, http.client.HTTPException):
                return
            changes.open.discard(own)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def killed(start: Callable[[], Server], rounds: int, after_s: float, changes: Changes, writers: int = 4) -> int:
    """Kill the server under changes, again and again; how many of those that it acknowledged are lost."""
    for number in range(rounds):
        server = start()
        own = [Changes() for _ in range(writers)]
        with ExitStack() as stack:
            for i, one in enumerate(own):
                stack.enter_context(changing(server.port, one, f"k{number}-{i}"))
            time.sleep(after_s)
            server.end(signal.SIGKILL)
        for one in own:
            changes.there |= one.there
            changes.gone |= one.gone
            changes.open |= one.open
    server = start()
    lost = changes.lost(server.client)
    server.end()
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pool", type=int, default=56, help="different requests")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on so long at least")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--memory", type=Path, help="a memory to copy; by default the built-in world's, made anew")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as folder:
        memory = Path(folder) / "memory"
        make_memory(memory, args.memory)

        def start() -> Server:
            return Server(memory, "--set", "requests_a_minute=0", "timeout_s=3600", f"queue={args.clients + 1}")

        with start() as server:
            pool = make_pool(server.client, args.pool)
            for call in pool[:7]:
                server.client(*call)  # the first request of a kind takes longer
            started, cpu_s = time.perf_counter(), server.cpu_s
            expected = [essence(server.client(*call)[1]) for call in pool]
            alone = len(pool) / (time.perf_counter() - started)
            alone_cpu_s = (server.cpu_s - cpu_s) / len(pool)
            print(f"one client:  {alone:.1f} requests/s, {1e3 * alone_cpu_s:.0f} ms of CPU each", flush=True)
            changes, due, cpu_s = Changes(), threading.Semaphore(0), server.cpu_s
            with changing(server.port, changes, "w", due):
                load = loaded(server, pool, expected, args.clients, args.requests, 60 * args.minutes, due)
            rate, cpu_s = len(load.seconds) / load.took_s, (server.cpu_s - cpu_s) / len(load.seconds)
            print(f"{args.clients} clients: {rate:.1f} requests/s, {1e3 * cpu_s:.0f} ms of CPU each", flush=True)
            for number, answer in load.differing.items():
                print(f"request {number} ({pool[number][1]}): {first_difference(expected[number], answer)}")
            lost = changes.lost(server.client)
            print(f"told to end, it ended with status {server.end()}")
        lost += killed(start, args.kills, 3.0, changes)
        changed = len(changes.there) + len(changes.gone)
        print(f"killed {args.kills} times; {changed} documents changed in all, {lost} changes lost")
    p50, p95, p99 = (float(np.percentile(load.seconds, share)) for share in (50, 95, 99))
    result = {
        "wrong": load.wrong,
        "errors_5xx": load.errors_5xx,
        "throughput_ratio": round(rate / alone, 2),
        "p50_s": round(p50, 2),
        "p95_s": round(p95, 2),
        "p99_s": round(p99, 2),
        "max_over_median": round(max(load.seconds) / p50, 2),
        "memory_growth": round(load.memory_growth, 4),
        "lost": lost,
        "cpu_ratio": round(alone_cpu_s / cpu_s, 2),
        "requests": len(load.seconds),
        "minutes": round(load.took_s / 60, 1),
    }
    print(json.dumps(result))


def make_memory(path: Path, like: Path | None) -> None:
    if like is not None:
        shutil.copytree(like, path)
        return
    from racm3.model_folder import ModelFolder
    from racm3.serve.run import world_memory

    world_memory(path, ModelFolder.open("scenes").encoder())


if __name__ == "__main__":
    main()
