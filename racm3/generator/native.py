"""Native: ``step.c``, compiled for this machine, and the weights as it reads them.

At small batches a step in operators of torch is mostly the calls of them. Here it is one call, which reads every weight
once for all rows. Compiling takes a second, once a process, and needs a C compiler (``cc``); without one, or on a GPU,
``model_runner.py`` decodes in operators.

Letters in shapes: R rows, P panels, D width, H heads, G key/value heads, E width of a head, F width of the MLP.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from racm3.generator.kv_cache import BatchCache
from racm3.generator.model import GeneratorConfig

__all__ = ["Matrix", "NativeRunner", "compiled"]

LANES, PANEL = 16, 32
"""As in ``step.c``: numbers of a vector, outputs that are summed at once."""

FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


PLACES = (None, Path.home() / ".cache", Path("/dev/shm"))
"""Where to compile: the folder for temporary files, or if that is missing, read-only or not for programs, another."""


def compiled(weight_bytes: int) -> ctypes.CDLL | None:
    """``step.c`` for weights of this many bytes, or None where it cannot be compiled: one line on stderr says why.

    What failed once is tried again at the next call, for a disk may have been full.
    """
    try:
        return _library(weight_bytes)
    except OSError as error:
        _say(f"racm3: decoding is 3 to 6 times slower than it could be, for step.c cannot be compiled: {error}")
        return None


@functools.cache
def _say(line: str) -> None:
    """Once a process."""
    print(line, file=sys.stderr)


@functools.cache
def _library(weight_bytes: int) -> ctypes.CDLL:
    """Raises OSError if there is no compiler, it fails, or no place where a program may lie."""
    errors: list[str] = []
    for place in PLACES:
        try:
            with tempfile.TemporaryDirectory(dir=place, prefix="racm3-") as folder:
                library = _built(weight_bytes, Path(folder))
            break
        except OSError as error:
            if str(error) not in errors:
                errors.append(str(error))
    else:
        raise OSError("; ".join(errors))
    pointers, rows, threads = [ctypes.c_void_p], [ctypes.c_int64], [ctypes.c_int]
    library.step.argtypes = [*3 * pointers, *rows, *7 * pointers, ctypes.c_int64, *threads]
    library.product.argtypes = [*2 * pointers, *rows, ctypes.c_float, *2 * pointers, *threads]
    return library


def _built(weight_bytes: int, folder: Path) -> ctypes.CDLL:
    """Compiled in a folder and loaded, after which the file is needed no more. Raises OSError if it fails."""
    parts, whole = str(folder / "step.o"), str(folder / "step.so")
    compiler, source = shlex.split(os.environ.get("CC") or "cc"), str(Path(__file__).with_name("step.c"))
    # Linked without -fopenmp: the threads shall be torch's, whose library is loaded already, not a second set.
    for command in (
        [*compiler, *FLAGS, f"-DWEIGHT_BYTES={weight_bytes}", "-c", source, "-o", parts],
        [*compiler, "-shared", parts, "-o", whole],
    ):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it says nothing"]
            raise OSError(f"{compiler[0]} failed: {said[-1]}")
    return ctypes.CDLL(whole)


class Matrix:
    """Weights (outputs, inputs), float32, bfloat16, or int8 with a scale (outputs,), in panels as ``step.c`` has them.

    ``gated``: the first half of the outputs are gates of the second.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None = None, gated: bool = False) -> None:
        self.inputs, self.outputs = weight.shape[1], len(weight) // (2 if gated else 1)
        self.panels = _panels(weight, gated).transpose(1, 2).contiguous()  # (P, inputs, PANEL)
        self.scales: Tensor | None = None
        if scale is not None:  # the two halves in turns, and 2^24: see ``widen`` of int8
            self.panels = self.panels.unflatten(2, (2, LANES)).transpose(2, 3).contiguous()
            self.scales = _panels(scale / 2**24, gated).contiguous()  # (P, PANEL)
        self.library = compiled(weight.dtype.itemsize)
        scales = 0 if self.scales is None else self.scales.data_ptr()
        self.fields = [self.panels.data_ptr(), scales, self.inputs, self.outputs]  # the struct
        self._struct = torch.tensor(self.fields)

    def normed(self, x: Tensor, floor: float) -> Tensor:
        """x / sqrt(|x|^2 + floor) times the matrix: (R, inputs) -> (R, outputs), float32; each row as if alone."""
        assert self.library is not None
        x, count, threads = x.contiguous(), x.shape[0], torch.get_num_threads()
        out, units = torch.empty(count, self.outputs), torch.empty(threads, count)
        self.library.product(*_pointers(self._struct, x), count, floor, *_pointers(units, out), threads)
        return out


def _panels(weight: Tensor, gated: bool) -> Tensor:
    """(outputs, ...) -> (P, PANEL, ...), filled up with zeros; of gated ones, gates and what they gate alternate."""
    if gated:
        halves = [_panels_of(half, LANES) for half in weight.chunk(2)]
        return torch.cat(halves, dim=1)
    return _panels_of(weight, PANEL)


def _panels_of(weight: Tensor, size: int) -> Tensor:
    missing = -len(weight) % size
    return F.pad(weight, (0, 0) * (weight.dim() - 1) + (0, missing)).unflatten(0, (-1, size))


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "groups", "head_dim", "mlp_width")),
        ("floor", ctypes.c_float),
        ("head_floor", ctypes.c_float),
    ]


class NativeRunner:
    """Reads one token a row, or a few.

    ``layers``: of each, the matrices of queries, keys and values, of the output, of gate and up (gated), and down, and
    the norm weights (H + G, E) of queries and keys. ``angles`` (positions, E): cosine and sine of each rotary pair.
    """

    def __init__(
        self, config: GeneratorConfig, layers: Sequence[tuple[Matrix, Matrix, Matrix, Matrix, Tensor]], angles: Tensor
    ) -> None:
        c = self.config = config
        self.layers, self.angles = layers, angles.contiguous()
        self.scales = [scales.contiguous() for *_, scales in layers]
        self.library = layers[0][0].library
        fields = [
            [*(field for matrix in matrices for field in matrix.fields), scales.data_ptr()]
            for (*matrices, _), scales in zip(layers, self.scales, strict=True)
        ]
        self._layers = torch.tensor(fields)
        shape = c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width
        self._shape = _Shape(*shape, c.width * c.norm_eps, c.head_dim * c.norm_eps)

    def __call__(self, x: Tensor, caches: Sequence[BatchCache]) -> Tensor:
        """The hidden states (N, D) of tokens with embeddings x (N, D), overwritten, behind what caches hold.

        Raises RuntimeError if there is no room or no position for a token.
        """
        c, count, threads = self.config, x.shape[0], torch.get_num_threads()
        tokens = max(cache.longest for cache in caches)
        if tokens > c.context_tokens:
            raise RuntimeError(f"a row of {tokens} tokens is longer than the context of {c.context_tokens}")
        places = torch.cat([cache.places() for cache in caches])
        inner = c.heads * c.head_dim
        use = (
            torch.empty(count, inner + 2 * c.kv_heads * c.head_dim),
            torch.empty(count, inner),
            torch.empty(count, c.mlp_width),
            torch.empty(threads, count),
            torch.empty(threads, tokens),
        )
        assert self.library is not None
        self.library.step(
            ctypes.addressof(self._shape),
            *_pointers(self._layers, places),
            count,
            *_pointers(self.angles, x, *use),
            tokens,
            threads,
        )
        return x


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
