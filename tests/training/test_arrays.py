from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.training.arrays import Growing, Sequences


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_what_grew_is_an_ordinary_npy(shape: tuple[int, ...], tmp_path: Path) -> None:
    file = tmp_path / "rows.npy"
    rows = np.random.default_rng(0).integers(100, size=(7, *shape)).astype(np.uint16)
    with Growing(file, np.uint16, shape) as grown:
        grown.append(rows[:4])
        assert len(grown) == 4
    with Growing(file, np.uint16, shape) as grown:
        grown.append(rows[:2])  # to be forgotten
        grown.truncate(4)
        grown.append(rows[4:])
    assert np.array_equal(np.load(file), rows)
    assert np.load(file).dtype == np.uint16
    np.save(tmp_path / "plain.npy", rows)
    assert (tmp_path / "plain.npy").read_bytes() == file.read_bytes()


def test_a_torn_row_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "rows.npy"
    with Growing(file, np.int64) as grown:
        grown.append(np.array([5, 6]))
    file.write_bytes(file.read_bytes() + b"abc")
    with Growing(file, np.int64) as grown:
        assert len(grown) == 2
        assert grown.last() == 6
    assert np.load(file).tolist() == [5, 6]


@given(st.lists(st.lists(st.integers(0, 65535), max_size=5)))
def test_sequences_are_the_lists_that_were_laid_end_to_end(lists: list[list[int]]) -> None:
    flat = np.array([value for row in lists for value in row], np.uint16)
    sequences = Sequences(flat, np.cumsum([len(row) for row in lists], dtype=np.int64))
    assert [row.tolist() for row in sequences] == lists
    assert [row.tolist() for row in sequences[::2]] == lists[::2]
    if lists:
        assert sequences[-1].tolist() == lists[-1]
        assert sequences[0].dtype == np.int32
