"""Judges: which cut-out a picture shows, where, and on what, found by comparing pixels with true renders.

They are instruments, not part of the method, and nothing is learnt: a cut-out is laid at every place of the picture,
and what counts is how much of that which sets it apart from the ground around it is really there,

    missing(place) = sum alpha |picture - cut-out|^2 / sum alpha |ground around - cut-out|^2

so that a white cut-out on white is no match. Their own accuracy on true renders, as the image tokenizer keeps them, is
reported beside every number.

C candidates, H W pixels of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from racm3.open_scenes.art import Cutout
from racm3.open_scenes.grounds import Ground, all_grounds

CANDIDATES = 100
"""Cut-outs that a picture is compared with, the true one among them."""

RING_PX = 4
"""Width of the frame whose mean colour is the ground around a cut-out."""

CLOSER = 8
"""Cut-outs that are looked for at full size."""

FAINT = 20.0**2
"""Added to the mean squared contrast (of 255 squared): a cut-out that hardly stands out is hard to see."""

SAMPLES = 24
"""Drawings of each background that a picture's is compared with."""

NEAREST = 5


@dataclass(frozen=True)
class Seen:
    """A cut-out found in a picture: how much of it is missing (0 all there, 1 as good as nothing), and its box."""

    missing: float
    box: tuple[int, int, int, int]  # left, top, width, height


def find(
    picture: np.ndarray, cutouts: Sequence[Cutout], variants: Sequence[tuple[int, bool]], overhang: float = 0.15
) -> list[Seen]:
    """Where each cut-out would best be in a picture (H, W, 3) uint8, of those sizes (and mirrored or not).

    All are looked for in the picture of half the size; those that fit best there, again in the whole one.
    """
    half = _half(picture)
    small = [(max(1, size // 2), mirrored) for size, mirrored in variants]
    found = []
    for cutout in cutouts:
        one = min((_best(half, cutout, *variant, overhang) for variant in small), key=lambda seen: seen.missing)
        found.append(Seen(one.missing, tuple(2 * edge for edge in one.box)))  # type: ignore[arg-type]
    for i in sorted(range(len(found)), key=lambda i: found[i].missing)[:CLOSER]:
        closer = (_best(picture, cutouts[i], *variant, overhang) for variant in variants)
        found[i] = min(closer, key=lambda seen: seen.missing)
    return found


def _half(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    return picture.reshape(height, 2, width, 2, 3).mean((1, 3)).astype(np.uint8)


def _best(picture: np.ndarray, cutout: Cutout, size: int, mirrored: bool, overhang: float) -> Seen:
    """By sums over all places at once: cross-correlations, in the frequency domain."""
    spectra = _spectra(picture.tobytes(), picture.shape, picture.dtype.str)
    height, width, kernel, mass = _kernel(cutout, size, mirrored, spectra.side)
    margin = int(overhang * size)
    rows = torch.arange(-margin, picture.shape[0] - height + margin + 1)
    columns = torch.arange(-margin, picture.shape[1] - width + margin + 1)
    sums = torch.fft.irfft2(spectra.of_picture * kernel, s=(spectra.side, spectra.side))
    sums = sums[:, rows[:, None] % spectra.side, columns[None] % spectra.side]
    squares, products, inside, colours, own = sums[0], sums[1:4].sum(0), sums[4], sums[5:8], sums[8]
    ring = spectra.around(rows, columns, height, width)  # (3, rows, columns)
    contrast = own - 2 * (ring * colours).sum(0) + ring.square().sum(0) * inside
    missing = (squares - 2 * products + own) / (contrast + FAINT * inside).clamp(min=1.0)
    missing = torch.where(inside > 0.7 * mass, missing, torch.inf)
    row, column = divmod(int(missing.argmin()), missing.shape[1])
    return Seen(max(0.0, float(missing[row, column])), (int(columns[column]), int(rows[row]), width, height))


class _Spectra:
    """What is computed once for a picture."""

    def __init__(self, picture: np.ndarray) -> None:
        self.height, self.width = picture.shape[:2]
        self.side = 32 * math.ceil(1.75 * max(self.height, self.width) / 32)  # no cut-out is larger than the rest
        x = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)  # (3, H, W)
        ones = torch.ones(1, self.height, self.width)
        planes = torch.cat((x.square().sum(0, keepdim=True), x, ones.expand(5, -1, -1)))
        self.of_picture = torch.fft.rfft2(planes, s=(self.side, self.side))
        self.sums = torch.nn.functional.pad(x.cumsum(1).cumsum(2), (1, 0, 1, 0))  # (3, H + 1, W + 1)

    def _in_box(self, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the colours and number of pixels of boxes, cut at the picture's edge."""
        top, bottom = (edge.clamp(0, self.height) for edge in (top, bottom))
        left, right = (edge.clamp(0, self.width) for edge in (left, right))
        total = (
            self.sums[:, bottom[:, None], right] - self.sums[:, top[:, None], right]
            - self.sums[:, bottom[:, None], left] + self.sums[:, top[:, None], left]
        )  # fmt: skip
        return total, (bottom - top)[:, None] * (right - left)

    def around(self, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        """Mean colour of the frame around a box at each place."""
        inner, few = self._in_box(rows, columns, rows + height, columns + width)
        outer, many = self._in_box(
            rows - RING_PX, columns - RING_PX, rows + height + RING_PX, columns + width + RING_PX
        )
        return (outer - inner) / (many - few).clamp(min=1)


@lru_cache(maxsize=4)
def _spectra(content: bytes, shape: tuple[int, ...], kind: str) -> _Spectra:
    return _Spectra(np.frombuffer(content, kind).reshape(shape))


@lru_cache(maxsize=2048)
def _kernel(cutout: Cutout, size: int, mirrored: bool, side: int) -> tuple[int, int, Tensor, float]:
    """Height, width, conjugate spectra of a cut-out's planes, and its mass.

    Laid over the picture's planes they give, at each place, the sums of alpha |x|^2, alpha colour . x (of three
    channels), and of alpha, alpha colour (three) and alpha |colour|^2 of what lies inside the picture.
    """
    rgba = torch.from_numpy(cutout.rgba(size, mirrored).copy())
    alpha, colour = rgba[..., 3], rgba[..., :3].permute(2, 0, 1)  # times alpha
    squares = (colour.square() / alpha.clamp(min=1e-3)).sum(0)
    planes = torch.cat((alpha[None], colour, alpha[None], colour, squares[None]))
    return rgba.shape[0], rgba.shape[1], torch.fft.rfft2(planes, s=(side, side)).conj(), float(alpha.sum())


def candidates(true: Sequence[Cutout], of: Sequence[Cutout], seed: int) -> list[Cutout]:
    """The true cut-outs, and others of other groups up to ``CANDIDATES``."""
    rng = np.random.default_rng(seed)
    groups = {one.group for one in true if one.group}
    others = [one for one in of if one.group not in groups and one not in true]
    chosen = rng.choice(len(others), min(CANDIDATES - len(true), len(others)), replace=False)
    return [*true, *(others[i] for i in chosen)]


def ground_features(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """What tells a background: colours by thirds, contrast and grain, where nothing is ``hidden`` (H, W)."""
    x = picture.astype(np.float32)
    free = (~hidden).astype(np.float32)[..., None]

    def mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return (values * where).sum((0, 1)) / max(float(where.sum()), 1.0)

    third = x.shape[0] // 3
    overall = mean(x, free)
    parts = []
    for i in range(3):
        where = free[i * third : (i + 1) * third]
        parts.append(mean(x[i * third : (i + 1) * third], where) if where.sum() > 20 else overall)
    spread = np.sqrt(mean((x - overall) ** 2, free))
    grey = x.mean(-1, keepdims=True)
    grain = []
    for distance in (1, 3, 8):
        for axis in (0, 1):
            step = np.abs(np.roll(grey, distance, axis) - grey)
            both = free * np.roll(free, distance, axis)
            grain.append(np.sqrt(mean(step, both)) * 8)
    return np.concatenate([*parts, spread, overall, *grain])


class GroundJudge:
    """Tells a background by its nearest true drawings; each may be cropped and jittered as the world does."""

    def __init__(self, size_px: int, names: Sequence[str] | None = None, seed: int = 11) -> None:
        self.names = tuple(names or all_grounds())
        rng = np.random.default_rng(seed)
        nothing = np.zeros((size_px, size_px), bool)
        self.rows = np.stack(
            [
                ground_features(np.clip(Ground(name, int(rng.integers(2**31))).pixels(size_px), 0, 255), nothing)
                for name in self.names
                for _ in range(SAMPLES)
            ]
        )
        self.scale = self.rows.reshape(len(self.names), SAMPLES, -1).std(1).mean(0) + 4.0

    def __call__(self, picture: np.ndarray, hidden: np.ndarray) -> str:
        """The name of the background of a picture (H, W, 3); what is ``hidden`` (H, W) is an entity's."""
        far = np.abs((self.rows - ground_features(picture, hidden)) / self.scale).mean(1)
        near = np.argsort(far)[:NEAREST]
        votes: dict[str, float] = {}
        for row in near:
            name = self.names[row // SAMPLES]
            votes[name] = votes.get(name, 0.0) + 1 / (0.1 + float(far[row]))
        return max(votes, key=lambda name: votes[name])


def box_mask(box: tuple[int, int, int, int], size_px: int) -> np.ndarray:
    """(size_px, size_px) bool, true inside a box."""
    left, top, width, height = box
    hidden = np.zeros((size_px, size_px), bool)
    hidden[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
    return hidden
