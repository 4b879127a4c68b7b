"""What whoever runs a server meets: starts that cannot be, recipes, a proxy, new weights, limits that are told."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fastapi.testclient import TestClient

from racm3 import cli
from racm3.pipeline import RACM3
from racm3.serve import engine_thread, run
from racm3.serve.app import create_app
from racm3.serve.engine_thread import Place
from racm3.serve.limits import limits_table
from tests.serve.conftest import decoded
from tests.serve.test_app import FOX
from tests.serve.test_engine_thread import FOX as ASKED
from tests.serve.test_engine_thread import working

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--memory", "{tmp}/none"], "does not exist; make one with `racm3 memory create"),
        (["--memory", "{tmp}"], "is no memory; make one with"),
        (["--port", "{port}"], "cannot be listened at: Address already in use; give another --port"),
        (["--cors-origin", "example.org"], "give scheme and host alone"),
        (["--root-path", "racm3/"], "begins with / and does not end with it"),
    ],
)
def test_a_start_that_cannot_be_ends_before_anything_large_is_opened(
    tmp_path: Path, wrong: list[str], told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.format(tmp=tmp_path, port=taken.getsockname()[1]) for word in wrong]
        program = "import sys\nfrom racm3 import cli\nstatus = cli.main(sys.argv[1:])\n"
        program += (
            "print('large' if {'torch', 'lance', 'transformers'} & sys.modules.keys() else 'small')\nsys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "serve", *words], capture_output=True, text=True, cwd=ROOT
        )
    assert (done.returncode != 0, done.stdout) == (True, "small\n")
    assert told in done.stderr


def given_to_serve(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Any]:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "serve", lambda *args, **options: given.append(options))
    assert words[:2] == ["racm3", "serve"]
    assert cli.main(words[1:]) == 0
    return given[0]


def test_the_recipe_of_the_container(monkeypatch: pytest.MonkeyPatch, served: str) -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    steps = dict(re.findall(r"^(ENTRYPOINT|CMD) (.+)$", text, re.MULTILINE))
    options = given_to_serve(monkeypatch, json.loads(steps["ENTRYPOINT"]) + json.loads(steps["CMD"]))
    assert options["token_file"] == Path("/run/secrets/tokens")
    (extra,) = re.findall(r'"/source\[(\w+)\]"', text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra in project["optional-dependencies"]
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
    assert {project["readme"], *project["license-files"]} <= set(re.findall(r"[\w.]+", text)), "or pip cannot build it"
    (probe,) = re.findall(r"HEALTHCHECK .*CMD (.+)$", text, re.MULTILINE)
    python, *words = json.loads(probe.replace("http://127.0.0.1:8000", served))
    assert python == "python"
    subprocess.run([sys.executable, *words], check=True)


def test_the_compose_file_and_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["racm3"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    given_to_serve(monkeypatch, ["racm3", "serve", "--host", "0.0.0.0", *service["command"]])
    unit = (DEPLOY / "racm3.service").read_text(encoding="utf-8")
    (start,) = re.findall(r"^ExecStart=/opt/racm3/bin/(.+)$", unit, re.MULTILINE)
    assert given_to_serve(monkeypatch, shlex.split(start))["access_log"] == "json"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", DEPLOY / "racm3.service"], capture_output=True, text=True)
        assert "Unknown" not in done.stderr


def test_the_limits_that_are_told_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    assert limits_table() in page, "put what racm3.serve.limits.limits_table() gives there"


def test_behind_a_proxy_at_a_path_of_its_own(models: Path, memory_path: Path) -> None:
    """As uvicorn tells it, whose --root-path puts it before the path of each request."""
    app = create_app(RACM3.from_pretrained(models, memory_path))
    with TestClient(app, root_path="/racm3") as client:
        assert client.get("/racm3/health").json() == {"status": "ok"}
        assert client.get("/racm3/").status_code == 200
        (shown, *_) = client.get("/racm3/v1/memory/documents").json()["data"]
        assert shown["image"].startswith("/racm3/v1/memory/images/")
        assert client.get(shown["image"]).headers["content-type"] == "image/png"
        by_url = client.post("/racm3/v1/images/generations", json=FOX | {"response_format": "url"}).json()
        assert "/racm3/v1/images/files/" in by_url["data"][0]["url"]


def test_weights_that_were_opened_again_answer_what_comes_next(models: Path, memory_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    model = RACM3.from_pretrained(copy, memory_path)
    other = RACM3.from_pretrained(copy, memory_path)
    with torch.no_grad():
        for weight in other.generator.parameters():
            weight.mul_(1.5)
    wanted = other.generate_image(FOX["prompt"]).document.images[0].pixels
    with TestClient(create_app(model)) as client:

        def drawn() -> np.ndarray:
            return decoded(client.post("/v1/images/generations", json=FOX).json()["data"][0]["b64_json"])

        before = drawn()
        assert not np.array_equal(before, wanted)
        other.generator.save_pretrained(copy / "generator")
        client.app.state.engine_thread.reload(str(copy))  # type: ignore[attr-defined]
        until = time.monotonic() + 30
        while np.array_equal(drawn(), before):
            assert time.monotonic() < until
        assert np.array_equal(drawn(), wanted)
        client.app.state.engine_thread.reload(str(tmp_path / "none"))  # type: ignore[attr-defined]
        time.sleep(0.2)
        assert np.array_equal(drawn(), wanted)


def test_those_that_wait_are_told_how_many_are_ahead(
    models: Path, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_thread, "PLACES_S", 0.0)
    model = RACM3.from_pretrained(models, memory_path)

    async def run() -> list[Any]:
        async with working(model) as own:
            first = own.submit([ASKED] * 60, timeout_s=60, client="one")
            while not own.running:
                await asyncio.sleep(0.001)
            second = own.submit([ASKED], timeout_s=60, client="one", show=True)
            happenings = [happening async for happening in second.events()]
            await first.completions()
            return happenings

    places = [one.ahead for one in asyncio.run(run()) if isinstance(one, Place)]
    assert places == sorted(places, reverse=True)
    assert places[0] > 0


def test_a_caption_is_changed_in_place_and_found_by_the_new_one(client: TestClient) -> None:
    before = client.get("/v1/memory/documents/item-0").json()
    changed = client.patch("/v1/memory/documents/item-0", json={"text": "a zebra", "metadata": {"a": 1}})
    assert changed.json() == before | {"text": "a zebra", "metadata": {"a": 1}}
    assert client.get("/v1/memory/documents/item-0").json() == changed.json()
    assert client.get("/v1/memory/documents").json()["total"] == 4
    assert client.patch("/v1/memory/documents/item-0", json={}).status_code == 400
    assert client.patch("/v1/memory/documents/none", json={"text": "a"}).status_code == 404


def test_a_listing_is_filtered_and_sorted(client: TestClient) -> None:
    every = client.get("/v1/memory/documents?limit=100").json()["data"]

    def listed(query: str) -> list[str]:
        return [one["id"] for one in client.get(f"/v1/memory/documents?{query}").json()["data"]]

    assert listed("order=down") == [one["id"] for one in reversed(every)]
    assert listed("sort=text") == [one["id"] for one in sorted(every, key=lambda one: (one["text"] or "", one["id"]))]
    part = (every[1]["text"] or "")[:5].upper()
    assert listed(f"contains={part}") == [one["id"] for one in every if part.lower() in (one["text"] or "").lower()]
    assert listed("where=row%3D2") == ["item-2"]
    assert listed("modality=image") == [one["id"] for one in every if one["image"]]
