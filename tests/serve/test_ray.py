"""examples/ray_serve.py on a cluster of this machine: two replicas that are one server."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from racm3.pipeline import RACM3
from tests.serve.conftest import decoded

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'racm3[scale]'", exc_type=ImportError)


def test_two_replicas_are_one_server(models: Path, memory_path: Path, twin: RACM3, tmp_path: Path) -> None:
    import ray
    from ray import serve

    from examples.ray_serve import application

    memory = tmp_path / "m"
    shutil.copytree(memory_path, memory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"port": port})
        serve.run(application(str(models), str(memory), 2))

        def ask(method: str, path: str, body: Any = None) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)  # a new one: any replica may answer
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            return answer

        ask("POST", "/v1/memory/documents", {"id": "new", "text": "an owl in a forest, indeed"})
        found = [ask("POST", "/v1/memory/search", {"text": "an owl in a forest, indeed"}) for _ in range(8)]
        assert [own["data"][0]["id"] for own in found] == ["new"] * 8
        ask("DELETE", "/v1/memory/documents/new")
        assert {ask("GET", "/v1/memory/documents")["total"] for _ in range(8)} == {4}
        drawn = [ask("POST", "/v1/images/generations", {"prompt": "a fox in the snow"}) for _ in range(4)]
        expected = twin.generate_image("a fox in the snow").document.images[0].pixels
        assert all(np.array_equal(decoded(own["data"][0]["b64_json"]), expected) for own in drawn)
    finally:
        serve.shutdown()
        ray.shutdown()
