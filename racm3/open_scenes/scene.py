"""Scene: the facts of one picture of the open world, and its drawing.

No card and no grid: an entity is a cut-out at any pixel, of any size, on any background.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from racm3.open_scenes.art import Art, Cutout, load_art
from racm3.open_scenes.grounds import Ground

PICTURE_PX = 96
SMALLEST_PX, LARGEST_PX = 18, 72
"""Longer side of an entity: 24 to 96 px of a picture of 128."""

COLUMNS, ROWS = ("left", "", "right"), ("top", "", "bottom")
POSITIONS = tuple(f"{row} {column}".strip() or "centre" for row in ROWS for column in COLUMNS)
"""Thirds of the picture, row by row: the one in which the middle of an entity lies."""

STYLES = ("plain", "sepia", "grey", "negative", "sketch", "mosaic")
TINTS = {"": (1.0, 1.0, 1.0), "warm": (1.1, 1.0, 0.85), "cold": (0.85, 0.97, 1.12), "dark": (0.72, 0.72, 0.76)}


@dataclass(frozen=True)
class Placed:
    """A cut-out in a picture: the pixel of its upper left corner, and its longer side."""

    cutout: str
    left: int
    top: int
    size: int
    mirrored: bool = False
    tint: str = ""

    def rgba(self, art: Art) -> np.ndarray:
        """(H, W, 4) uint8: the cut-out at its size."""
        return art.by_id[self.cutout].rgba(self.size, self.mirrored)

    def box(self, art: Art) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        height, width = self.rgba(art).shape[:2]
        return self.left, self.top, width, height


@dataclass(frozen=True)
class Scene:
    """Entities on a background, the first at the back."""

    ground: Ground
    placed: tuple[Placed, ...]
    style: str = "plain"

    def to_dict(self) -> dict[str, Any]:
        """The scene as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`."""
        placed = tuple(Placed(**one) for one in facts["placed"])
        return cls(Ground(**facts["ground"]), placed, facts["style"])

    def cutouts(self, art: Art | None = None) -> list[Cutout]:
        """The cut-out of each entity."""
        return [(art or load_art()).by_id[one.cutout] for one in self.placed]


def draw(scene: Scene, art: Art | None = None, size_px: int = PICTURE_PX) -> np.ndarray:
    """The picture of a scene, (size_px, size_px, 3) uint8."""
    return draw_masked(scene, art, size_px)[0]


def draw_masked(scene: Scene, art: Art | None = None, size_px: int = PICTURE_PX) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and how much of each pixel each entity shows, (E, size_px, size_px) float32 in [0, 1]."""
    art = art or load_art()
    picture = np.array(scene.ground.pixels(size_px), np.float32)
    masks = np.zeros((len(scene.placed), size_px, size_px), np.float32)
    for number, one in enumerate(scene.placed):
        rgba = one.rgba(art)
        left, top = max(0, one.left), max(0, one.top)
        part = rgba[top - one.top : size_px - one.top, left - one.left : size_px - one.left]
        rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        alpha = part[..., 3:]
        colours = part[..., :3] * np.array(TINTS[one.tint], np.float32)
        picture[rows, columns] = picture[rows, columns] * (1 - alpha) + colours
        masks[:number, rows, columns] *= 1 - alpha[..., 0]
        masks[number, rows, columns] = alpha[..., 0]
    return apply_style(np.clip(picture + 0.5, 0, 255).astype(np.uint8), scene.style), masks


def position(box: tuple[int, int, int, int], size_px: int = PICTURE_PX) -> str:
    """The third of the picture in which the middle of a box lies."""
    left, top, width, height = box
    column, row = (min(2, max(0, int(3 * middle / size_px))) for middle in (left + width / 2, top + height / 2))
    return POSITIONS[3 * row + column]


def apply_style(picture: np.ndarray, style: str) -> np.ndarray:
    """The picture in a style, (H, W, 3) uint8 to the same."""
    if style == "plain":
        return picture
    if style == "negative":
        return 255 - picture
    if style == "mosaic":
        block = 6
        side = picture.shape[0] // block
        means = picture.reshape(side, block, side, block, 3).mean(axis=(1, 3))
        return means.repeat(block, 0).repeat(block, 1).astype(np.uint8)
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if style == "sepia":
        return np.clip(grey[..., None] * np.array([1.05, 0.86, 0.62], np.float32) + 10, 0, 255).astype(np.uint8)
    if style == "sketch":
        across, down = (
            np.abs(np.diff(grey, axis=1, prepend=grey[:, :1])),
            np.abs(np.diff(grey, axis=0, prepend=grey[:1])),
        )
        grey = np.clip(255 - 2.0 * (across + down), 40, 255)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
