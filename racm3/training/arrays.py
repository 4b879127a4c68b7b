"""Arrays on disk: written row by row and taken up after a kill, then read in place without loading them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import SEEK_END
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


class Growing:
    """A ``.npy`` file that grows by rows, in a ``with`` block; what an earlier block appended is still there.

    numpy leaves room in the header for a larger number of rows; until the block ends it says 0.
    """

    def __init__(self, file: Path, kind: DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self._kind, self._shape = np.dtype(kind), shape
        self._file = open(file, "r+b" if file.exists() else "w+b")
        self._write_header(0)
        self._start = self._file.tell()
        self._rows = (self._file.seek(0, SEEK_END) - self._start) // self._row_bytes
        self.truncate(self._rows)

    def __len__(self) -> int:
        return self._rows

    @property
    def _row_bytes(self) -> int:
        return self._kind.itemsize * math.prod(self._shape)

    def append(self, rows: np.ndarray) -> None:
        """Add rows (B, ...) at the end."""
        self._file.write(np.ascontiguousarray(rows, self._kind).data)
        self._file.flush()
        self._rows += len(rows)

    def last(self) -> int:
        """The last row of a file of single integers."""
        self._file.seek(-self._row_bytes, SEEK_END)
        return int(np.frombuffer(self._file.read(), self._kind)[0])

    def truncate(self, rows: int) -> None:
        """Forget all rows but the first ``rows``."""
        self._file.truncate(self._start + rows * self._row_bytes)
        self._file.seek(0, SEEK_END)
        self._rows = rows

    def _write_header(self, rows: int) -> None:
        shape = (rows, *self._shape)
        facts = {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": shape}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, facts)

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_header(self._rows)
        self._file.close()


class Sequences(Sequence[np.ndarray]):
    """Sequences of different lengths that lie in one row: ``self[i]`` is ``flat[ends[i - 1]:ends[i]]``, int32.

    Both arrays may be files on disk: only what is asked for is read, so each process reads its own sequences.
    """

    def __init__(self, flat: np.ndarray, ends: np.ndarray) -> None:
        self._flat, self._ends = flat, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        return self._flat[self._ends[row - 1] if row else 0 : self._ends[row]].astype(np.int32)
