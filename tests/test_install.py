"""The README's first minutes as a new user has them: a wheel in an empty environment, commands in a fresh shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.test_prose import FENCED, README, ROOT


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of one language below a heading of the README."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [block for found, block in FENCED.findall(section) if found == language]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel of this checkout. What the wheel needs is taken from the tests' own."""
    folder = tmp_path_factory.mktemp("install")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # searched last, its own .pth files not read
    return folder / "env"


def pasted(environment: Path, folder: Path, lines: str) -> str:
    """What a fresh bash prints, to whose terminal the lines are pasted. The first that fails ends it."""
    script = f"set -e\nsource {environment}/bin/activate\n{lines}"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(["bash", "--norc"], input=script, cwd=folder, env=clean, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_has_its_command_and_its_own_package(environment: Path, tmp_path: Path) -> None:
    assert pasted(environment, tmp_path, "racm3 --help").startswith("usage: racm3")
    where = pasted(environment, tmp_path, "python -c 'import racm3; print(racm3.__file__)'")
    assert Path(where.strip()).is_relative_to(environment)


@pytest.mark.slow
def test_the_readmes_commands_work_when_pasted(environment: Path, tmp_path: Path) -> None:
    (commands,) = blocks("Try it", "sh")
    assert len(commands.splitlines()) == 5
    told = pasted(environment, tmp_path, commands)
    (program,) = blocks("Try it", "python")
    told += pasted(environment, tmp_path, f"python - <<'END'\n{program}END\n")
    for made in ("demo/index.html", "demo/sheet.png", "fox.png", "filled.png"):
        assert (tmp_path / "out" / made).stat().st_size > 0
    assert told.count("fox") > 3


def test_the_install_lines_name_what_is_there() -> None:
    (lines,) = blocks("Install", "sh")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (ROOT / "constraints.txt").exists()
    assert re.findall(r"pip install (.+)", lines) == ["-c constraints.txt -e '.[serve]'"]
    assert "serve" in project["optional-dependencies"]
