from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import racm3


@pytest.mark.parametrize("name", racm3.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(racm3, name)
    assert name in dir(racm3)


def test_the_public_names_are_these() -> None:
    names = {
        "RACM3",
        "Settings",
        "Sampling",
        "Document",
        "Text",
        "Image",
        "Hole",
        "Memory",
        "RACM3Error",
        "__version__",
    }
    assert set(racm3.__all__) == names
    assert len(racm3.__all__) == len(names)


def test_another_name_is_an_error_that_lists_them() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Documnet'; it has RACM3, Document"):
        racm3.Documnet  # noqa: B018
    with pytest.raises(ImportError):
        from racm3 import Documnet  # noqa: F401


def test_importing_racm3_loads_no_room() -> None:
    code = "import sys, racm3; print([m for m in sys.modules if m.startswith('racm3.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert racm3.__version__ == project["version"]
