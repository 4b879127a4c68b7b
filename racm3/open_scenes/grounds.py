"""Backgrounds: crops of photographs and wallpapers, painted ones, and plain colours. No two are alike.

A ground is a name and a seed: the same two are the same pixels.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import PIL.Image
from PIL import ImageDraw

from racm3.errors import ConfigError, unknown
from racm3.open_scenes.art import DATA

COLOURS = {
    "white": (250, 250, 250), "black": (24, 24, 26), "grey": (150, 150, 152), "red": (205, 52, 48),
    "orange": (240, 140, 50), "yellow": (245, 212, 80), "green": (88, 168, 92), "dark green": (30, 84, 54),
    "turquoise": (70, 190, 185), "blue": (66, 122, 214), "light blue": (158, 204, 240), "navy": (28, 40, 92),
    "purple": (136, 88, 182), "pink": (244, 168, 198), "brown": (122, 82, 54), "beige": (226, 208, 176),
}  # fmt: skip
NOVEL_GROUNDS = frozenset({"turquoise", "a brick wall", "bubbles"})
"""Plain and painted ones that nothing is trained on; the photographs have their split in ``backgrounds.json``."""


@dataclass(frozen=True)
class Ground:
    """What lies behind the entities."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in all_grounds():
            raise ConfigError(unknown("background", self.name, all_grounds()))

    @property
    def kind(self) -> str:
        return "plain" if self.name in COLOURS else "painted" if self.name in PAINTERS else "photograph"

    def pixels(self, size_px: int) -> np.ndarray:
        """(size_px, size_px, 3) float32 in [0, 255]."""
        rng = np.random.default_rng((self.seed, 1))
        if self.kind == "plain":
            jittered = np.array(COLOURS[self.name], np.float32) + rng.normal(0, 7, 3)
            return np.broadcast_to(np.clip(jittered, 0, 255).astype(np.float32), (size_px, size_px, 3))
        if self.kind == "painted":
            return PAINTERS[self.name](rng, size_px)
        return _crop(_photograph(self.name), rng, size_px)


@lru_cache(maxsize=1)
def photographs() -> dict[str, dict[str, str]]:
    """Facts of the photographs and wallpapers, by name."""
    rows = json.loads((DATA / "backgrounds.json").read_text(encoding="utf-8"))
    return {row["name"]: row for row in rows}


@lru_cache(maxsize=4)
def all_grounds(split: str | None = None) -> tuple[str, ...]:
    """The names of all backgrounds, or those of a split, seen or novel."""
    names = (*COLOURS, *PAINTERS, *photographs())
    novel = NOVEL_GROUNDS | {name for name, row in photographs().items() if row["split"] == "novel"}
    return tuple(name for name in names if split is None or (name in novel) == (split == "novel"))


@lru_cache(maxsize=64)
def _photograph(name: str) -> PIL.Image.Image:
    with zipfile.ZipFile(DATA / "backgrounds.zip") as archive:
        return PIL.Image.open(io.BytesIO(archive.read(photographs()[name]["file"]))).convert("RGB")


def _crop(picture: PIL.Image.Image, rng: np.random.Generator, size_px: int) -> np.ndarray:
    """A square of a third to all of the height, perhaps mirrored, a little lighter or darker."""
    side = int(rng.uniform(0.4, 1.0) * min(picture.size))
    left, top = (int(rng.integers(full - side + 1)) for full in picture.size)
    crop = picture.crop((left, top, left + side, top + side)).resize((size_px, size_px), PIL.Image.Resampling.BILINEAR)
    pixels = np.asarray(crop, np.float32)
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    return np.clip(pixels * rng.uniform(0.85, 1.1) + rng.normal(0, 6, 3).astype(np.float32), 0, 255)


def _ramp(rng: np.random.Generator, size_px: int, *colours: tuple[int, int, int]) -> np.ndarray:
    """Colours from the top to the bottom."""
    stops = np.array(colours, np.float32) + rng.normal(0, 8, (len(colours), 3))
    places = np.linspace(0, len(colours) - 1, size_px)
    ramp = np.stack([np.interp(places, np.arange(len(colours)), stops[:, c]) for c in range(3)], axis=1)
    return np.repeat(ramp[:, None], size_px, axis=1).astype(np.float32)


def _noise(rng: np.random.Generator, size_px: int, cells: int) -> np.ndarray:
    """(size_px, size_px) smooth noise, about -1 to 1."""
    coarse = PIL.Image.fromarray(rng.normal(0, 0.5, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size_px, size_px), PIL.Image.Resampling.BICUBIC))


def _scattered(
    rng: np.random.Generator, base: np.ndarray, count: int, radius: tuple[float, float], colours: np.ndarray
) -> np.ndarray:
    """Discs of the colours strewn over the picture; the radii are shares of its side."""
    size_px = base.shape[0]
    canvas = PIL.Image.fromarray(np.clip(base, 0, 255).astype(np.uint8)).resize((2 * size_px, 2 * size_px))
    pen = ImageDraw.Draw(canvas)
    for _ in range(count):
        x, y = rng.uniform(0, 2 * size_px, 2)
        r = rng.uniform(*radius) * 2 * size_px
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in colours[rng.integers(len(colours))]))
    return np.asarray(canvas.resize((size_px, size_px), PIL.Image.Resampling.BOX), np.float32)


def _hill(rng: np.random.Generator, picture: np.ndarray, height: float, colour: tuple[int, int, int]) -> np.ndarray:
    """A rolling ground in front of what is there."""
    size_px = picture.shape[0]
    x = np.linspace(0, 1, size_px)
    edge = height + 0.05 * np.sin(2 * np.pi * (x * rng.uniform(0.4, 1.6) + rng.random()))
    rows = np.arange(size_px)[:, None] / size_px
    ground = (
        np.array(colour, np.float32) * (1 - 0.3 * (rows[..., None] - height)) + 5 * _noise(rng, size_px, 24)[..., None]
    )
    return np.where((rows > edge)[..., None], ground, picture)


def _starry(rng: np.random.Generator, n: int) -> np.ndarray:
    return _scattered(rng, _ramp(rng, n, (12, 14, 50), (38, 44, 96)), 45, (0.004, 0.011), np.array([(255, 250, 215)]))


def _evening(rng: np.random.Generator, n: int) -> np.ndarray:
    return _ramp(rng, n, (70, 50, 120), (220, 96, 90), (250, 190, 110))


def _foggy(rng: np.random.Generator, n: int) -> np.ndarray:
    return _ramp(rng, n, (196, 204, 210), (222, 224, 226)) + 14 * _noise(rng, n, 5)[..., None]


def _cloudy(rng: np.random.Generator, n: int) -> np.ndarray:
    cover = np.clip(_noise(rng, n, 6) + 0.6 * _noise(rng, n, 12) + 0.1, 0, 1)[..., None]
    return _ramp(rng, n, (92, 156, 226), (170, 208, 240)) * (1 - cover) + 248 * cover


def _grassy(rng: np.random.Generator, n: int) -> np.ndarray:
    return _hill(rng, _ramp(rng, n, (140, 198, 244), (214, 236, 250)), rng.uniform(0.45, 0.65), (108, 178, 76))


def _snowy(rng: np.random.Generator, n: int) -> np.ndarray:
    sky = _hill(rng, _ramp(rng, n, (176, 200, 228), (222, 232, 244)), 0.42, (170, 188, 212))
    return _hill(rng, sky, rng.uniform(0.52, 0.66), (242, 246, 252))


def _desert(rng: np.random.Generator, n: int) -> np.ndarray:
    sky = _hill(rng, _ramp(rng, n, (250, 214, 150), (252, 234, 196)), 0.5, (226, 178, 104))
    return _hill(rng, sky, rng.uniform(0.62, 0.74), (208, 152, 84))


def _sea(rng: np.random.Generator, n: int) -> np.ndarray:
    water = _hill(rng, _ramp(rng, n, (160, 208, 242), (226, 240, 250)), rng.uniform(0.4, 0.55), (44, 112, 178))
    return water + 6 * np.sin(np.arange(n)[:, None, None] * 1.3) * (np.arange(n)[:, None, None] > 0.55 * n)


def _underwater(rng: np.random.Generator, n: int) -> np.ndarray:
    deep = _ramp(rng, n, (70, 190, 210), (14, 60, 120)) + 12 * _noise(rng, n, 7)[..., None]
    return _scattered(rng, deep, 9, (0.01, 0.025), np.array([(180, 230, 240)]))


def _stripes(rng: np.random.Generator, n: int) -> np.ndarray:
    colours = rng.uniform(60, 245, (2, 3)).astype(np.float32)
    angle, width = rng.uniform(0, np.pi), rng.uniform(0.07, 0.16) * n
    y, x = np.mgrid[:n, :n]
    phase = (x * np.cos(angle) + y * np.sin(angle)) / width
    share = np.clip(0.5 + 3 * np.sin(np.pi * phase), 0, 1)[..., None]
    return (colours[0] * share + colours[1] * (1 - share)).astype(np.float32)


def _checked(rng: np.random.Generator, n: int) -> np.ndarray:
    colours = rng.uniform(60, 245, (2, 3)).astype(np.float32)
    side, (dx, dy) = rng.uniform(0.09, 0.2) * n, rng.uniform(0, n, 2)
    y, x = np.mgrid[:n, :n]
    odd = (np.floor((x + dx) / side) + np.floor((y + dy) / side)) % 2
    return np.where(odd[..., None] > 0, colours[0], colours[1]).astype(np.float32)


def _dotted(rng: np.random.Generator, n: int) -> np.ndarray:
    colours = rng.uniform(60, 245, (2, 3)).astype(np.float32)
    step, (dx, dy) = rng.uniform(0.12, 0.2) * n, rng.uniform(0, n, 2)
    y, x = np.mgrid[:n, :n]
    far = np.hypot((x + dx) % step - step / 2, (y + dy) % step - step / 2)
    share = np.clip(0.28 * step - far + 0.5, 0, 1)[..., None]
    return (colours[0] * share + colours[1] * (1 - share)).astype(np.float32)


def _bricks(rng: np.random.Generator, n: int) -> np.ndarray:
    height, width = rng.uniform(0.08, 0.12) * n, rng.uniform(0.2, 0.28) * n
    y, x = np.mgrid[:n, :n]
    row = np.floor(y / height)
    across = (x + (row % 2) * width / 2 + rng.uniform(0, width)) % width
    joint = (across < 1.5) | (y % height < 1.5)
    wall = np.array((168, 78, 60), np.float32) + 16 * _noise(rng, n, 14)[..., None]
    return np.where(joint[..., None], np.float32(198), wall)


def _bubbles(rng: np.random.Generator, n: int) -> np.ndarray:
    return _scattered(
        rng, _ramp(rng, n, (200, 226, 246), (236, 214, 240)), 26, (0.02, 0.09), rng.uniform(170, 250, (6, 3))
    )


def _lights(rng: np.random.Generator, n: int) -> np.ndarray:
    colours = np.array([(255, 214, 130), (240, 150, 90), (150, 130, 220), (110, 180, 230)])
    spots = _scattered(rng, _ramp(rng, n, (30, 26, 48), (60, 44, 60)), 22, (0.02, 0.07), colours)
    return (0.6 * spots + 0.4 * np.roll(spots, 2, axis=(0, 1))).astype(np.float32)


def _confetti(rng: np.random.Generator, n: int) -> np.ndarray:
    return _scattered(
        rng, _ramp(rng, n, (250, 248, 240), (244, 240, 236)), 40, (0.01, 0.025), rng.uniform(40, 250, (9, 3))
    )


def _wooden(rng: np.random.Generator, n: int) -> np.ndarray:
    grain = _noise(rng, n, 3)[:1].repeat(n, axis=0) + 0.8 * rng.normal(0, 1, (1, n)).astype(np.float32)
    planks = (np.arange(n) % max(8, n // 4) < 2)[None, :, None] * 34
    return np.array((164, 116, 72), np.float32) + 9 * grain[..., None] - planks + 5 * _noise(rng, n, 16)[..., None]


def _watercolour(rng: np.random.Generator, n: int) -> np.ndarray:
    base = rng.uniform(120, 235, 3).astype(np.float32)
    return base + np.stack([34 * _noise(rng, n, 4) + 14 * _noise(rng, n, 9) for _ in range(3)], axis=-1)


PAINTERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "a starry night": _starry,
    "an evening sky": _evening,
    "fog": _foggy,
    "a cloudy sky": _cloudy,
    "a grassy hill": _grassy,
    "snow": _snowy,
    "a desert": _desert,
    "the sea": _sea,
    "deep water": _underwater,
    "stripes": _stripes,
    "a checked cloth": _checked,
    "polka dots": _dotted,
    "a brick wall": _bricks,
    "bubbles": _bubbles,
    "blurred lights": _lights,
    "confetti": _confetti,
    "a wooden wall": _wooden,
    "watercolour": _watercolour,
}
