"""A server of the tiny models of tests/test_pipeline.py: what they draw is noise, but every step is the real one."""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import uvicorn
from fastapi.testclient import TestClient

from racm3.document import Image
from racm3.pipeline import RACM3
from racm3.serve.app import create_app
from tests.test_pipeline import memory_path, models, picture  # noqa: F401  (fixtures)

NAME = "tiny"


def data_url(image: Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.png()).decode()}"


def decoded(b64: str) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(b64.rpartition(",")[2]))))


def open_model(models: Path, memory_path: Path, copy: Path) -> RACM3:  # noqa: F811
    """A model of its own, with a memory of its own to change."""
    shutil.copytree(memory_path, copy)
    return RACM3.from_pretrained(models, memory=copy)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """The app behind a real socket: its URL, and the server."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(models: Path, memory_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    model = open_model(models, memory_path, tmp_path_factory.mktemp("served") / "m")
    with listening(create_app(model, NAME)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def twin(models: Path, memory_path: Path) -> RACM3:  # noqa: F811
    """The same model, not served: what the answers are to be equal to."""
    return RACM3.from_pretrained(models, memory=memory_path)


@pytest.fixture
def client(models: Path, memory_path: Path, tmp_path: Path) -> Iterator[TestClient]:  # noqa: F811
    model = open_model(models, memory_path, tmp_path / "m")
    with TestClient(create_app(model, NAME)) as client:
        client.model = model  # type: ignore[attr-defined]
        yield client
