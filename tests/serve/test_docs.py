"""docs/serve.md is executed: its program runs, its commands parse, its routes are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.routing import compile_path

from racm3 import cli
from racm3.serve import run
from tests.test_prose import commands

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_its_program_runs(served: str) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(program.replace("http://127.0.0.1:8000", served), {})


def test_its_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(run, "serve", lambda *args, **options: given.append((args, options)))
    for words in commands(PAGE, "racm3"):
        assert cli.main(words) == 0
    assert len(given) == 4


def test_its_routes_are_there(client: TestClient) -> None:
    known = [compile_path(path)[0] for path in client.get("/openapi.json").json()["paths"]]
    told = re.findall(r"`(?:GET |POST )?(/[\w/.]+)`", PAGE)
    assert len(told) > 10
    assert [path for path in told if not any(one.match(path) for one in known) and path != "/openapi.json"] == []
