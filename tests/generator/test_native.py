"""Products of ``step.c`` against torch's; whole steps are compared with the model in ``test_reader.py``."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch

from racm3.generator import native
from racm3.generator.native import Matrix

FLOOR = 0.5
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (32, 16), (77, 50)])
def test_products(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, inputs)).to(dtype)
    scale = torch.rand(outputs) if dtype == torch.int8 else None
    matrix = Matrix(weight, scale)
    rows = torch.randn(19, inputs)
    found = matrix.normed(rows, FLOOR)
    unit = rows.double() / (rows.double().square().sum(1, keepdim=True) + FLOOR).sqrt()
    expected = unit @ weight.double().t() * (1 if scale is None else scale)
    assert torch.allclose(found.double(), expected, atol=1e-3)
    for count in range(1, 19):
        assert torch.equal(matrix.normed(rows[:count], FLOOR), found[:count])


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_library", "_say"):
        monkeypatch.setattr(native, name, functools.cache(getattr(native, name).__wrapped__))


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_one_line_says_so(
    compiler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert native.compiled(4) is None
    assert native.compiled(4) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "slower" in said
    assert compiler in said


@needs_compiler
@pytest.mark.usefixtures("afresh")
def test_a_compiler_may_have_options_and_a_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    assert native.compiled(4) is None
    monkeypatch.setenv("CC", "cc -O2")
    assert native.compiled(4) is not None


@needs_compiler
@pytest.mark.usefixtures("afresh")
def test_another_folder_is_used_where_the_first_is_no_good(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, one whose programs may not be loaded, then a good one."""
    loaded = native.ctypes.CDLL

    def cdll(path: str) -> object:
        if "/noexec/" in path:
            raise OSError(f"{path}: failed to map segment from shared object")
        return loaded(path)

    for name in ("noexec", "good"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(native.ctypes, "CDLL", cdll)
    monkeypatch.setattr(native, "PLACES", (tmp_path / "missing", tmp_path / "noexec"))
    assert native.compiled(4) is None
    said = capsys.readouterr().err
    assert "missing" in said
    assert "failed to map" in said
    monkeypatch.setattr(native, "PLACES", (*native.PLACES, tmp_path / "good"))
    assert native.compiled(4) is not None
