"""Requests that nobody thought of: made from the OpenAPI document, and hostile ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # or it is parsed beside a server's threads, where Python 3.11 may fail
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from benchmarks.serve_hostile import HANG_S, attack
from racm3.serve.app import create_app
from racm3.serve.guard import Tokens
from racm3.serve.limits import LIMITS
from tests.serve.conftest import listening, open_model

TOKEN = "t" * 20
EXAMPLES = 8
HOSTILE = 300


@pytest.fixture(scope="module")
def url(models: Path, memory_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = open_model(models, memory_path, tmp_path_factory.mktemp("fuzzed") / "m")
    limits = replace(LIMITS, requests_a_minute=0)
    with listening(create_app(model, limits=limits, tokens=Tokens({TOKEN: "write"}))) as (url, _):
        yield url


def test_the_openapi_document_is_true(url: str) -> None:
    """Requests that fit it, and requests that do not, to every operation. What fits may still be refused: a string
    that looks like a picture's URL need not hold a picture."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == 19

    def check(operation: Any, mode: GenerationMode) -> None:
        @settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            form = case.media_type == "multipart/form-data"  # all of it is text: an object is one in JSON
            excluded = [positive_data_acceptance, *([negative_data_rejection] if form else [])]
            case.call_and_validate(headers=headers, excluded_checks=excluded, timeout=HANG_S)

        run()

    for operation in operations:
        for mode in GenerationMode:
            try:
                check(operation, mode)
            except Unsatisfiable:  # nothing to be wrong in
                assert mode == GenerationMode.NEGATIVE, operation.label


def test_hostile_requests_are_refused_and_leave_nothing(models: Path, memory_path: Path, tmp_path: Path) -> None:
    """The short form of benchmarks/serve_hostile.py."""
    app = create_app(open_model(models, memory_path, tmp_path / "m"), limits=replace(LIMITS, requests_a_minute=0))
    with listening(app) as (url, _):
        port = int(url.rpartition(":")[2])
        found = attack(port, range(50))
        files = len(os.listdir("/proc/self/fd"))
        found += attack(port, range(50, HOSTILE))
        assert len(os.listdir("/proc/self/fd")) <= files + 4  # connections that are just being closed
    assert sum(found.values()) == HOSTILE
    assert not [status for status in found if status.startswith("5") or status == "hung"]
    assert found["400"] > HOSTILE / 5
