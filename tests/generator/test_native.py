"""Products of ``step.c`` against torch's; whole steps are compared with the model in ``test_reader.py``."""

from __future__ import annotations

import shutil

import pytest
import torch

from racm3.generator import native
from racm3.generator.native import Matrix

FLOOR = 0.5


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
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


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.compiled.__wrapped__(4) is None
    monkeypatch.setenv("CC", "false")  # there, but it fails
    assert native.compiled.__wrapped__(4) is None
