"""The settings for all tests are tested: skipping where CI is set, and the choice of smoke tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import SMOKE

ROOT = Path(__file__).parent.parent
SKIPPING = """
import pytest
def test_passes(): pass
def test_skips(): pytest.skip("no compiler")
def test_lacks(): pytest.importorskip("no_such_module")
@pytest.mark.skipif(True, reason="needs CUDA")
def test_may_skip(): pass
@pytest.mark.xfail
def test_fails_as_known(): assert False
"""
MODULE = 'import pytest\npytest.skip("no browser", allow_module_level=True)\n'


def test_what_is_skipped_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPING)
    (tmp_path / "test_whole.py").write_text(MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--continue-on-collection-errors", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CI": "true"}
    told = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    failed = {
        where.rpartition("::")[2].rpartition("/")[2] for where in re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.M)
    }
    assert failed == {"test_skips", "test_lacks", "test_whole.py"}
    assert "skipped, which CI does not allow: no compiler" in told
    assert re.search(r"2 failed, 1 passed, 1 skipped, 1 xfailed, 1 error", told)


def test_smoke_tests_are_there_and_of_every_room() -> None:
    for chosen in SMOKE:
        file, _, name = chosen.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).exists(), chosen
    rooms = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    assert rooms == {chosen.split("/")[1] for chosen in SMOKE if chosen.count("/") == 2}
