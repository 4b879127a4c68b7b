from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from racm3 import doctor
from racm3.doctor import Finding

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path. ``install`` puts packages into it."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(folder: Path, name: str, version: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / f"{name}.py").write_text(code)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_what_the_project_depends_on_is_well_here() -> None:
    requirements = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    found = doctor.packages(requirements)
    assert [(finding.level, finding.cure) for finding in found] == [("ok", "")] * len(requirements)


def test_a_missing_package() -> None:
    (finding,) = doctor.packages(["no-such-package>=3"])
    assert finding == Finding("broken", "no-such-package", "is not installed", "pip install 'no-such-package>=3'")


def test_a_package_of_another_version(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(installed, "antique", "1.0", "", monkeypatch)
    (finding,) = doctor.packages(["antique>=2,<3"])
    assert finding.level == "broken"
    assert finding.found.startswith("1.0 is installed, antique<3,>=2 is needed")


def test_a_package_that_cannot_be_imported(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(installed, "torn", "1.0", "raise OSError('libtorn.so: no such file\\nand a long trace')", monkeypatch)
    (finding,) = doctor.packages(["torn"])
    assert finding.level == "broken"
    assert finding.found == "1.0 is installed but cannot be imported (OSError: libtorn.so: no such file)"
    assert finding.cure == "pip install --force-reinstall 'torn'"


def test_a_torchvision_that_cannot_be_imported_is_to_be_uninstalled(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(installed, "torchvision", "0.1", "raise RuntimeError('operator torchvision::nms is missing')", monkeypatch)
    finding = doctor.torchvision()
    assert finding.level == "broken"
    assert "breaks the encoder" in finding.found
    assert "torchvision::nms" in finding.found
    assert finding.cure.endswith("pip uninstall torchvision")


def test_a_torchvision_that_works_is_left_alone(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(installed, "torchvision", "0.1", "", monkeypatch)
    assert doctor.torchvision() == Finding("ok", "torchvision", "0.1 can be imported")


@pytest.mark.parametrize(("used", "cores", "level"), [(2, 2, "ok"), (8, 2, "note"), (1, 2, "note")])
def test_threads_are_held_against_cores(used: int, cores: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: used)
    monkeypatch.setattr(doctor, "usable_cores", lambda: cores)
    finding = doctor.threads()
    assert finding.level == level
    assert finding.found.startswith(f"{used} for {cores} usable cores")
    assert ("OMP_NUM_THREADS=2" in finding.cure) == (level == "note")


@pytest.mark.parametrize(("library", "level"), [(None, "note"), (object(), "ok")])
def test_a_missing_compiler_is_noted(library: object, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("racm3.generator.native.compiled", lambda weight_bytes: library)
    assert doctor.compiler().level == level


def test_the_machine_is_described() -> None:
    for finding in (doctor.device(), doctor.processor()):
        assert finding.level in ("ok", "note")
        assert finding.found


def shipped(folder: Path) -> Path:
    for name in doctor.SHIPPED:
        (folder / name).mkdir(parents=True)
        save_file({"weight": np.zeros((1000, 1000), np.float32)}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({}))
    return folder


def test_weights_that_are_there(tmp_path: Path) -> None:
    found = doctor.weights(shipped(tmp_path))
    assert [(finding.level, finding.found) for finding in found] == [("ok", "1 tensors, 4.0 MB")] * len(doctor.SHIPPED)


@pytest.mark.parametrize("harm", ["no file", "no configuration", "cut off", "nothing in it", "another file"])
def test_weights_that_are_missing_or_damaged(harm: str, tmp_path: Path) -> None:
    model = shipped(tmp_path) / "generator"
    path = model / "model.safetensors"
    if harm == "no file":
        path.unlink()
    elif harm == "no configuration":
        (model / "config.json").unlink()
    elif harm == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.write_bytes(b"" if harm == "nothing in it" else b"version https://git-lfs.github.com/spec/v1")
    bad = [finding for finding in doctor.weights(tmp_path) if finding.level != "ok"]
    assert [(finding.level, finding.what) for finding in bad] == [("broken", "weights of generator")]
    assert str(model) in bad[0].found
    assert bad[0].cure


def test_the_drawings_are_readable() -> None:
    assert doctor.glyphs()[0].level == "ok"


def test_without_the_font_only_remaking_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from racm3.scenes import glyphs

    monkeypatch.setattr(glyphs, "FONT", Path("nowhere.ttf"))
    drawings, remaking = doctor.glyphs()
    assert drawings.level == "ok"
    assert remaking.level == "note"
    assert "fonts-noto-color-emoji" in remaking.found


@pytest.mark.parametrize("level", ["ok", "note", "broken"])
def test_the_report_and_its_status(
    level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("ok", "python", "3.11"), Finding(level, "threads", "too many", "use fewer")]  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert doctor.doctor() == (level == "broken")
    printed = capsys.readouterr().out
    assert "too many" in printed
    assert "-> use fewer" in printed
    assert printed.strip().endswith("broken: threads" if level == "broken" else "nothing that is needed is broken")


def test_a_check_that_trips_over_a_broken_package_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    found = doctor.examine()
    assert "glyphs" in [finding.what for finding in found]
    assert "threads" not in [finding.what for finding in found]
