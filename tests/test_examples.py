"""The examples run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from racm3.data import read

ROOT = Path(__file__).parent.parent


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_pictures_are_drawn_with_their_captions(tmp_path: Path) -> None:
    assert example("pictures.py", str(tmp_path), "--count", "7").returncode == 0
    items = list(read(tmp_path))
    assert len(items) == len({item.document.text for item in items}) == 7
    assert all(item.document.images[0].pixels.std() > 10 for item in items)


@pytest.mark.parametrize("count", ["0", "865"])
def test_more_pictures_than_there_are(count: str, tmp_path: Path) -> None:
    assert "1 to 864" in example("pictures.py", str(tmp_path), "--count", count).stderr
