"""What a client may cost the others: heads and bodies that do not end, many connections, large pictures, long texts."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import uvicorn
from fastapi.testclient import TestClient

from racm3.pipeline import RACM3
from racm3.serve import picture_input
from racm3.serve.app import create_app
from racm3.serve.call import log_as
from racm3.serve.connection import connection_of
from racm3.serve.guard import LOOPBACK_HOSTS, Tokens
from racm3.serve.limits import LIMITS, Limits
from tests.serve.conftest import data_url, open_model
from tests.serve.test_app import FOX, refused
from tests.test_pipeline import picture

SHORT = replace(LIMITS, head_s=0.5, body_s=0.5, connections=8, keep_alive_s=30.0)


class Serving:
    """An app behind the connections that ``racm3 serve`` uses."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", http=connection_of(limits)))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
            assert self.thread.is_alive()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def health(self) -> int:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            client.request("GET", "/health")
            return client.getresponse().status
        finally:
            client.close()


@pytest.fixture
def serving(models: Path) -> Iterator[Serving]:
    own = Serving(create_app(RACM3.from_pretrained(models), limits=SHORT), SHORT)
    try:
        yield own
    finally:
        own.server.should_exit = True
        own.thread.join()


def ended(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_half_a_head_is_waited_for_for_a_while_however_often_a_byte_of_it_comes(serving: Serving) -> None:
    with serving.connect() as silent, serving.connect() as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        began, sent = time.monotonic(), 0
        try:
            while time.monotonic() < began + 10:
                slow.sendall(b"a")
                sent += 1
                time.sleep(0.05)
        except OSError:  # it is closed
            pass
        assert 0 < sent < 100
        assert ended(silent) == b""


def test_a_body_that_does_not_end_is_refused(serving: Serving) -> None:
    with serving.connect() as connection:
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in ended(connection).splitlines()[0]


def test_connections_beyond_the_limit_take_the_place_of_idle_ones(serving: Serving) -> None:
    idle = [serving.connect() for _ in range(20)]
    try:
        assert [serving.health() for _ in range(3)] == [200] * 3
        assert len(serving.server.server_state.connections) <= SHORT.connections
    finally:
        for one in idle:
            one.close()


def test_a_connection_serves_one_request_after_another_and_outlives_the_wait_for_a_head(serving: Serving) -> None:
    client = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
    for pause_s in (0.0, 2 * SHORT.head_s, 0.0):
        time.sleep(pause_s)
        client.request("GET", "/health")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
    client.close()


def test_bodies_on_their_way_count_and_one_client_cannot_hold_all(models: Path) -> None:
    limits = replace(LIMITS, held_bytes=400_000, body_bytes=100_000, body_s=3.0)
    tokens = Tokens({"a" * 20: "write", "b" * 20: "write"})
    own = Serving(create_app(RACM3.from_pretrained(models), limits=limits, tokens=tokens), limits)
    try:
        head = "POST /v1/memory/search HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\nAuthorization: Bearer "
        half = [own.connect() for _ in range(2)]
        for connection in half:
            connection.sendall(f"{head}{'a' * 20}\r\n\r\n".encode() + b" " * 60_000)
        refusals = [connection.recv(100) for connection in half if _answers(connection)]
        assert len(refusals) == 1
        assert b"429" in refusals[0]
        client = http.client.HTTPConnection("127.0.0.1", own.port, timeout=10)
        client.request("GET", "/v1/models", headers={"Authorization": f"Bearer {'b' * 20}"})
        assert client.getresponse().status == 200
        for one in (*half, client):
            one.close()
    finally:
        own.server.should_exit = True
        own.thread.join()


def _answers(connection: socket.socket) -> bool:
    connection.settimeout(1)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


def encoded(width: int, height: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(buffer, kind)
    return buffer.getvalue()


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def chat(*urls: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": content}]}


def test_counts_and_sizes_are_looked_at_before_a_picture_is_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_input, "opened", lambda *_, **__: pytest.fail("it was decoded"))
    large = url_of(encoded(4000, 3900))
    error = refused(
        client.post("/v1/chat/completions", json=chat(*[large] * 64)), 400, "exceed the generator's context"
    )
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    many = {"images": [large] * 5, "examples": {"a": [large], "b": [large]}}
    refused(client.post("/v1/classify", json=many), 400, "pixels together; at most 64,000,000")


def test_a_text_longer_than_the_context_is_refused_before_it_is_tokenized(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: RACM3 = client.model  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "start", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr(model.text, "encode", lambda text: pytest.fail("it was tokenized"))
    long = {"messages": [{"role": "user", "content": "a " * 4999}] * 64}
    error = refused(client.post("/v1/chat/completions", json=long), 400, "exceed the generator's context")
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_large_picture_is_scaled_while_it_is_read(kind: str) -> None:
    rng = np.random.default_rng(0)
    small = PIL.Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((2000, 1500), PIL.Image.Resampling.BICUBIC).save(buffer, kind, quality=95)
    side = picture_input.SIDE_PX
    found = picture_input.opened(buffer.getvalue(), "image")
    assert found.pixels.shape == (side, side, 3)
    whole = picture_input.opened(buffer.getvalue(), "image", whole=True)
    assert whole.pixels.shape == (1500, 2000, 3)
    assert np.abs(whole.resized(side).pixels.astype(int) - found.pixels).mean() < 1.5


def test_what_takes_long_is_given_up_when_its_time_is_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    model: RACM3 = client.model  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "start", lambda *_: go.wait(20))
    began = time.monotonic()
    refused(
        client.post("/v1/images/generations", json=FOX | {"racm3": {"timeout_s": 0.3}}), 408, "longer than the 0.3 s"
    )
    assert time.monotonic() < began + 10
    listed = client.get("/v1/memory/documents")  # nobody waits for what goes on
    assert listed.json()["total"] == 4
    go.set()


def test_settings_that_make_one_completion_wider_than_the_batch_are_refused(client: TestClient) -> None:
    asked = FOX | {"racm3": {"samples": 16, "contexts": 8, "guidance": 2.0}}
    refused(client.post("/v1/images/generations", json=asked), 400, "at most 64 are run at once")


def test_probes_have_no_rate(models: Path) -> None:
    with TestClient(create_app(RACM3.from_pretrained(models), limits=replace(LIMITS, requests_a_minute=1))) as client:
        assert [client.get(path).status_code for path in ("/health", "/ready") * 5] == [200] * 10
        assert [client.get("/v1/models").status_code for _ in range(2)] == [200, 429]


def test_heads_of_other_pages(models: Path) -> None:
    app = create_app(RACM3.from_pretrained(models), hosts=LOOPBACK_HOSTS)
    with TestClient(app, base_url="http://localhost:8000") as client:
        twice = [("Host", "localhost:8000"), ("Host", "evil.example")]
        refused(client.get("/v1/models", headers=twice), 400, "several Host headers")  # type: ignore[arg-type]
        refused(client.get("/v1/models", headers={"Origin": "https://localhost:8000"}), 403, "may not use")
        for site in ("cross-site", "same-site"):
            refused(client.get("/v1/memory/images/a", headers={"Sec-Fetch-Site": site}), 403, "another origin")
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/", headers=link).status_code == 200
        answer = client.get("/v1/models", headers={"Sec-Fetch-Site": "same-origin"})
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_origins_that_may_ask(models: Path) -> None:
    friend = {"Origin": "https://friend.example"}
    app = create_app(RACM3.from_pretrained(models), hosts=LOOPBACK_HOSTS, origins=["https://friend.example"])
    with TestClient(app, base_url="http://localhost:8000") as client:
        answer = client.get("/v1/models", headers=friend | {"Sec-Fetch-Site": "cross-site"})
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        asked = friend | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert client.options("/v1/images/generations", headers=asked).status_code == 200
        refused(client.get("/v1/models", headers={"Origin": "https://evil.example"}), 403, "evil.example")


def test_an_id_on_every_answer_and_in_one_line_of_the_log(
    models: Path, memory_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "secret-token-of-somebody"
    app = create_app(open_model(models, memory_path, tmp_path / "m"), tokens=Tokens({token: "write"}))
    log_as("json")
    try:
        with TestClient(app) as client:
            bearer = {"Authorization": f"Bearer {token}"}
            drawn = client.post("/v1/images/generations", json=FOX, headers=bearer | {"X-Request-ID": "proxy-0001"})
            no = client.get("/v1/memory/documents?contains=private")
            log_as("text")
            client.get("/v1/memory/images/item-0", headers=bearer | {"X-Request-ID": "a\x0bb c"})
        lines = capsys.readouterr().err.splitlines()
        first, second = (json.loads(line) for line in lines if line.startswith("{"))
    finally:
        log_as("none")
        logging.getLogger("racm3.access").handlers.clear()
    assert (drawn.headers["x-request-id"], first["request_id"]) == ("proxy-0001", "proxy-0001")
    assert no.headers["x-request-id"] == second["request_id"]
    assert (first["route"], first["status"], first["new_tokens"]) == ("/v1/images/generations", 200, 16)
    assert first["sent_bytes"] == len(drawn.content)
    assert (second["status"], second["path"]) == (401, "/v1/memory/documents")
    (text,) = [line for line in lines if line.startswith("time=")]
    assert re.search(r"request_id=req-\w{24} .*route=/v1/memory/images/\{item_id:path\} status=200", text)
    assert not any(secret in line for line in lines for secret in (token, "private", FOX["prompt"]))


def test_tokens_are_counted_by_route(client: TestClient) -> None:
    client.post("/v1/images/generations", json=FOX)
    client.post("/v1/chat/completions", json=chat(data_url(picture(7))) | {"max_tokens": 4})
    text = client.get("/metrics").text
    assert 'racm3_tokens_total{kind="new",route="/v1/images/generations"} 16.0' in text
    assert 'racm3_tokens_total{kind="prompt",route="/v1/chat/completions"}' in text
