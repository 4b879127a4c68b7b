"""The short form of benchmarks/fuzz_sources.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damaged_files_are_read_skipped_or_refused() -> None:
    counts = ["--files", "300", "--folders", "100", "--no-peak"]
    command = [sys.executable, "benchmarks/fuzz_sources.py", *counts, "--seed", "1"]
    printed = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    result = json.loads(printed.stdout.splitlines()[-1])
    assert result["files"] == result["read"] + result["skipped"] + result["refused"] == 300, printed.stdout
    assert (result["folders"], result["passed_over"]) == (100, 0), printed.stdout
    assert min(result["read"], result["skipped"], result["refused"]) > 5
