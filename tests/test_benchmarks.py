"""Parts of benchmarks that take too long, or need a machine that the tests do not have."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import mfu, time_to_effect
from tests.training.test_generator_recipe import RUN, batches


def test_mfu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfu, "can_compile", lambda device: False)  # which takes a minute
    measure, tried = mfu.measure, []

    def short_of_memory(*given: object) -> dict[str, object]:
        tried.append(given[-1])
        if not given[-1]:
            raise torch.OutOfMemoryError
        return measure(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(mfu, "measure", short_of_memory)
    mfu.main(["--shape", "tiny", "--sequences", "2", "--rounds", "2"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tried == [False, True]
    assert line["recompute_layers"]
    assert 0 < line["mfu"] < 1
    assert line["loss_equal"]
    assert line["tokens"] == 2 * 128


def test_padded_sequences_are_those_packed() -> None:
    sampler = batches()
    packed = sampler.batch(0)
    padded = time_to_effect.padded(packed)
    assert set(np.diff(padded.offsets)) == {np.diff(packed.offsets).max()}
    assert padded.weights.sum() == pytest.approx(packed.weights.sum())
    starts = padded.offsets[:-1]
    for start, low, high in zip(starts, packed.offsets[:-1], packed.offsets[1:], strict=True):
        for name in ("ids", "targets", "weights", "main"):
            one, other = getattr(padded, name)[start:][: high - low], getattr(packed, name)[low:high]
            assert np.array_equal(one, other), name
    assert time_to_effect.pass_seconds(sampler, RUN, 2).keys() == {"packed", "padded"}  # whose losses are equal
