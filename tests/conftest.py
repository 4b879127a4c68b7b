"""Settings for all tests: small, offline and the same everywhere."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ["RACM3_TRACEBACK"] = "1"  # a command that meets a defect raises it

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tensors here are tiny: more threads wait longer than they compute, and sum in another order
settings.register_profile("racm3", deadline=None, print_blob=True)  # no deadline: a busy machine is not a defect
settings.load_profile("racm3")

SMOKE = (
    "tests/cli/test_command_line.py::test_an_unknown_setting_is_named",
    "tests/cli/test_command_line.py::test_bad_usage_exits_with_2",
    "tests/data/test_listed.py",
    "tests/data/test_reading.py",
    "tests/evaluation/test_cider.py",
    "tests/evaluation/test_scenes_tasks.py",
    "tests/generator/test_engine.py",
    "tests/generator/test_model.py",
    "tests/generator/test_prompt.py",
    "tests/memory/test_memory.py",
    "tests/retriever/test_retriever.py",
    "tests/retriever/test_strategy.py",
    "tests/scale/test_memory_plan.py",
    "tests/scale/test_neighbours.py",
    "tests/scenes/test_draw.py",
    "tests/serve/test_guard.py",
    "tests/serve/test_openai.py",
    "tests/study/test_runs.py::test_claims_hold_where_the_numbers_say_so",
    "tests/study/test_runs.py::test_every_training_is_a_valid_run",
    "tests/test_architecture.py",
    "tests/test_attribution.py",
    "tests/test_doctor.py",
    "tests/test_errors.py",
    "tests/test_export.py",
    "tests/test_formats.py",
    "tests/test_masks.py",
    "tests/test_pipeline.py",
    "tests/test_prose.py",
    "tests/test_weights.py",
    "tests/tokens/test_codec.py",
    "tests/tokens/test_masking.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_models.py::test_from_a_folder_to_a_model_and_again",
    "tests/util/test_config.py",
    "tests/util/test_registry.py",
)
"""``pytest -m smoke``: quick ones of every part, which find most of what a change breaks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SMOKE):
            item.add_marker("smoke")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that are not for ``-m smoke`` are not even imported then."""
    file = collection_path.relative_to(config.rootpath).as_posix() if collection_path.suffix == ".py" else ""
    if config.getoption("markexpr") != "smoke" or not file.startswith("tests/"):
        return None
    return not any(chosen.startswith(file) for chosen in SMOKE) or None


MAY_SKIP = ("needs CUDA",)
"""Beginnings of the reasons that no installation removes."""


def failed_in_ci(report: Any) -> Any:
    """The report of a test or a file of tests, as a failure if it was skipped where ``CI`` is set.

    Nobody reads that a test was skipped, so CI installs what tests need (``.ci/run``).
    """
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    if not reason.startswith(MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    return failed_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    return failed_in_ci((yield))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket on a server of this process, to which the environment leads."""
    server = pytest.importorskip("moto.server", reason="needs the extra dev")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    # What servers of this process keep outlives them.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="tests")
        yield "s3://tests"
    running.stop()
