"""What a run writes about itself: run.json, metrics.jsonl, TensorBoard and a line on stderr now and then.

In a run of several processes only the first writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from racm3.errors import ConfigError
from racm3.util.files import write_whole

ROWS = 10_000
"""Rows of a table that tell one from another: seconds, however large it is."""

PACKAGES = ("racm3", "torch", "transformers", "tokenizers", "numpy")


class Journal:
    """The rows of one run: each a step's numbers. Opened at step ``first``, it forgets what lies beyond it.

    As a context manager it closes itself. In a process that is not the ``main`` one it does nothing.
    """

    def __init__(self, folder: Path, name: str, first: int, steps: int, tensorboard: bool, main: bool) -> None:
        self.name, self.steps, self.main, self.board = name, steps, main, None
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            write_whole(path, "".join(_rows_until(first, path)))
        self.board = _tensorboard(folder / "tensorboard", first) if tensorboard else None
        self.file = open(path, "a", encoding="utf-8")
        if first:
            print(f"{name}: resumed at step {first} of {steps}", file=sys.stderr)

    def write(self, step: int, numbers: Mapping[str, float], shown: Iterable[str], left_s: float) -> None:
        """Keep a row, and print those of its numbers that are ``shown``."""
        if not self.main:
            return
        self.file.write(json.dumps({"step": step} | dict(numbers)) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in numbers.items():
                self.board.add_scalar(key, value, step)
        words = "  ".join(f"{key} {numbers[key]:.4f}" for key in shown)
        print(f"{self.name}: step {step}/{self.steps}  {words}  {left_s / 60:.1f} min left", file=sys.stderr)

    def sync(self) -> None:
        """Bring the rows to the disk: before a checkpoint, which continues them."""
        if self.main:
            os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            self.file.close()
        if self.board is not None:
            self.board.close()


def write_run(folder: Path, settings: Mapping[str, Any], made_of: Mapping[str, str], processes: int) -> None:
    """``run.json``: settings, as ``racm3 train --config`` reads them, versions, and hashes of what went in."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    about = {"settings": settings, "made_of": made_of, "versions": versions, "processes": processes}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "run.json", json.dumps(about, indent=2) + "\n")


def fingerprint(*tables: Sequence[np.ndarray] | np.ndarray) -> str:
    """A hash of what went into a run: the number of rows of each table, and their contents, types and shapes.

    Of a table with more than ``ROWS`` rows, so many that are evenly spaced are read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for table in tables:
        digest.update(str(len(table)).encode())
        for row in table[:: max(1, -(-len(table) // ROWS))]:
            digest.update(f"{row.dtype.str}{row.shape}".encode())
            digest.update(np.ascontiguousarray(row).data)
    return digest.hexdigest()


def _rows_until(step: int, path: Path) -> Iterable[str]:
    """The lines of metrics.jsonl up to ``step``, without what was torn by a kill."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            return
        if row["step"] <= step:
            yield f"{line}\n"


def _tensorboard(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "loop.tensorboard=true needs a package that is not installed; pip install 'racm3[train]', or leave it out "
            f"({error})"
        ) from error
    return SummaryWriter(folder, purge_step=first + 1)
