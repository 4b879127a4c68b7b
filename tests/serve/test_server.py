"""The server as a whole: clients that go away, an end that is asked for, and one that is not."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serve_load import Changes, Server, killed
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.retriever.encoder import Encoder
from racm3.scenes import world
from racm3.serve import run
from racm3.serve.app import create_app
from tests.serve.conftest import listening
from tests.test_pipeline import picture

ASKED = {"prompt": "a fox in the snow", "n": 4}


class Held:
    """A model whose steps wait until they are let go."""

    def __init__(self, models: Path) -> None:
        self.model = RACM3.from_pretrained(models)
        self.go, self.stepping = threading.Event(), threading.Event()
        step = self.model.engine.step

        def held() -> Any:
            self.stepping.set()
            assert self.go.wait(30)
            return step()

        self.model.engine.step = held  # type: ignore[method-assign]


def head(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    about = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
    return f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n{about}\r\n\r\n".encode() + content


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows(models: Path, stream: bool) -> None:
    held = Held(models)
    with listening(create_app(held.model)) as (url, _):
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head(ASKED | {"n": 1, "stream": True} if stream else ASKED))
            assert held.stepping.wait(30)
        time.sleep(0.1)  # the loop hears of it
        held.go.set()
        client = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(100):
            client.request("GET", "/metrics")
            text = client.getresponse().read().decode()
            if "racm3_running 0.0" in text:
                break
            time.sleep(0.02)
        client.close()
        steps = float(next(line for line in text.splitlines() if line.startswith("racm3_steps ")).split()[1])
        assert steps < 16  # of a whole picture


def test_told_to_end_it_answers_what_it_has_accepted(models: Path) -> None:
    held = Held(models)
    answers = []
    with listening(create_app(held.model)) as (url, server):
        client = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]))

        def ask() -> None:
            client.request("POST", "/v1/images/generations", json.dumps(ASKED), {"Content-Type": "application/json"})
            answers.append(json.loads(client.getresponse().read()))

        thread = threading.Thread(target=ask)
        thread.start()
        assert held.stepping.wait(30)
        server.should_exit = True  # what SIGTERM does
        time.sleep(0.3)
        held.go.set()
        thread.join()
        client.close()
    assert len(answers[0]["data"]) == 4


def test_what_was_acknowledged_outlives_a_kill(models: Path, memory_path: Path, tmp_path: Path) -> None:
    """The short form of what benchmarks/serve_load.py does."""
    memory = tmp_path / "m"
    shutil.copytree(memory_path, memory)
    changes = Changes()
    lost = killed(lambda: Server(memory, "--models", str(models)), 1, 1.0, changes, writers=2)
    assert lost == 0
    assert len(changes.there) > 1


def test_the_worlds_memory_is_made_once_and_whole(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from racm3.data import Item
    from racm3.document import Document

    class World:
        def items(self, split: str) -> list[Item]:
            return [Item("a", Document.of("a fox", picture(1)), {}, split)]

    monkeypatch.setattr(world, "World", lambda memory: World())
    encoder = Encoder.from_pretrained(models / "encoder")
    Memory.create_or_resume(tmp_path / "m", encoder.fingerprint, encoder.dimension)  # a start that was broken off
    made = run.world_memory(tmp_path / "m", encoder)
    assert list(made.ids) == ["a"]
    made.remove(["a"])
    assert len(run.world_memory(tmp_path / "m", encoder)) == 0  # what was deleted stays deleted
