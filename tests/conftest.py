"""Settings for all tests: small, offline and the same everywhere."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ["RACM3_TRACEBACK"] = "1"  # a command that meets a defect raises it

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)  # tensors here are tiny: more threads wait longer than they compute, and sum in another order
settings.register_profile("racm3", deadline=None, print_blob=True)  # no deadline: a busy machine is not a defect
settings.load_profile("racm3")

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
