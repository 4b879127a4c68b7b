"""Scene: the facts of one built-in picture, and its drawing.

Everything stands on the 8 px grid of the image codes, so that the same drawing elsewhere has the same codes.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageDraw

from racm3.errors import ConfigError, unknown
from racm3.scenes.glyphs import GLYPH_PX, load_glyphs

SCENE_PX = 64

COLOURS = {
    "white": (255, 255, 255),
    "red": (214, 64, 60),
    "yellow": (250, 216, 90),
    "green": (96, 176, 104),
    "blue": (84, 140, 220),
    "purple": (144, 104, 190),
    "pink": (246, 180, 204),
    "gray": (168, 168, 168),
}
PAINTED = ("night sky", "beach", "meadow", "snow", "desert", "sea", "forest", "sunset")
BACKGROUNDS = (*COLOURS, *PAINTED)

POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Row by row; a scene with several glyphs is always in the centre."""

SIZES = {"normal": GLYPH_PX, "small": 24}
CARD = 250
"""Grey of the card that every entity is printed on. Cut out, an entity shares only 23 % of its codes with itself on
another background, and there is little to copy: docs/decisions/0005-cards.md."""
MANY_PX = 32  # side of each glyph when there are several
STYLES = ("plain", "grayscale", "sketch", "mosaic", "negative", "sepia")

# Left and top edges in px for (first, middle, last); all multiples of 8. A 40 px glyph cannot stand exactly in the
# middle of a grid of eight cells: it leans left by half a cell, and down by half a cell, as if it stood on the ground.
EDGES = {GLYPH_PX: ((0, 8, 24), (0, 16, 24)), 24: ((0, 16, 40), (0, 24, 40))}
MANY_CORNERS = {2: ((0, 16), (32, 16)), 3: ((16, 0), (0, 32), (32, 32))}


@dataclass(frozen=True)
class Scene:
    """One picture: one entity ``count`` times, or two entities side by side.

    Raises ConfigError for a name that is not in the lists above or a combination that is not drawn.
    """

    entities: tuple[str, ...]
    background: str
    position: str = "centre"
    count: int = 1
    size: str = "normal"
    style: str = "plain"

    def __post_init__(self) -> None:
        object.__setattr__(self, "entities", tuple(self.entities))
        for kind, given, allowed in (
            ("background", self.background, BACKGROUNDS),
            ("position", self.position, POSITIONS),
            ("size", self.size, tuple(SIZES)),
            ("style", self.style, STYLES),
        ):
            if given not in allowed:
                raise ConfigError(unknown(kind, given, allowed))
        for entity in self.entities:
            if entity not in load_glyphs().index:
                near = difflib.get_close_matches(entity, load_glyphs().names, 20) or load_glyphs().names[:20]
                raise ConfigError(unknown("entity", entity, near))
        kinds = len(self.entities)
        if self.glyph_count not in (1, 2, 3) or kinds not in (1, 2) or kinds == 2 < self.count:
            given = f"{self.entities} x {self.count}"
            raise ConfigError(f"a scene has 1 to 3 of one entity, or one each of two; given {given}")
        if self.glyph_count > 1 and (self.position != "centre" or self.size != "normal"):
            raise ConfigError("only a single glyph has a position and a size; use position='centre', size='normal'")

    @property
    def glyph_count(self) -> int:
        return self.count * len(self.entities)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; ``from_dict`` reads it back."""
        return asdict(self) | {"entities": list(self.entities)}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Scene:
        """The scene that ``to_dict`` wrote."""
        return cls(**(facts | {"entities": tuple(facts["entities"])}))

    @property
    def boxes(self) -> tuple[tuple[int, int, int], ...]:
        """(left, top, side) of every glyph, in px."""
        if self.glyph_count > 1:
            return tuple((x, y, MANY_PX) for x, y in MANY_CORNERS[self.glyph_count])
        side = SIZES[self.size]
        row, column = divmod(POSITIONS.index(self.position), 3)
        xs, ys = EDGES[side]
        return ((xs[column], ys[row], side),)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene, (64, 64, 3) uint8."""
    picture = background(scene.background).astype(np.float32)
    names = scene.entities * scene.count
    for name, (left, top, side) in zip(names, scene.boxes, strict=True):
        colour, alpha = glyph(name, side)
        region = picture[top : top + side, left : left + side]
        region[:] = CARD
        region += (colour - region) * alpha
    return apply_style(np.clip(picture + 0.5, 0, 255).astype(np.uint8), scene.style)


@lru_cache(maxsize=8192)
def glyph(name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour (side, side, 3) and alpha (side, side, 1) in [0, 1] of an entity, both float32."""
    glyphs = load_glyphs()
    rgba = glyphs.rgba[glyphs.index[name]]
    if side != GLYPH_PX:
        rgba = np.array(PIL.Image.fromarray(rgba).resize((side, side), PIL.Image.Resampling.LANCZOS))
    return rgba[..., :3].astype(np.float32), rgba[..., 3:].astype(np.float32) / 255


@lru_cache(maxsize=32)
def background(name: str) -> np.ndarray:
    """A background, (64, 64, 3) uint8; always the same for a name."""
    if name in COLOURS:
        return np.full((SCENE_PX, SCENE_PX, 3), COLOURS[name], np.uint8)
    scale = 4
    side = SCENE_PX * scale
    top, bottom = _SKIES[name]
    ramp = np.linspace(0, 1, side)[:, None, None]
    sky = np.broadcast_to((1 - ramp) * np.array(top) + ramp * np.array(bottom), (side, side, 3))
    canvas = PIL.Image.fromarray(sky.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)

    def px(*values: float) -> list[float]:
        return [v * scale for v in values]

    if name == "night sky":
        for x, y in ((5, 6), (20, 12), (36, 4), (52, 10), (60, 26), (4, 30), (28, 34), (46, 40), (12, 52), (58, 54)):
            pen.ellipse(px(x - 0.9, y - 0.9, x + 0.9, y + 0.9), fill=(255, 250, 210))
        pen.ellipse(px(46, 18, 56, 28), fill=(250, 240, 190))
    elif name == "beach":
        pen.rectangle(px(0, 26, 64, 40), fill=(64, 156, 206))
        pen.rectangle(px(0, 40, 64, 64), fill=(240, 218, 162))
        pen.ellipse(px(50, 3, 60, 13), fill=(255, 240, 150))
    elif name == "meadow":
        pen.rectangle(px(0, 36, 64, 64), fill=(110, 184, 80))
        for x, y in ((4, 44), (16, 58), (30, 46), (44, 60), (58, 46), (54, 56)):
            pen.ellipse(px(x - 1.4, y - 1.4, x + 1.4, y + 1.4), fill=(255, 236, 110))
    elif name == "snow":
        pen.polygon(px(0, 40, 20, 20, 40, 40, 54, 26, 64, 36, 64, 64, 0, 64), fill=(176, 196, 222))
        pen.ellipse(px(-30, 38, 94, 110), fill=(246, 250, 255))
    elif name == "desert":
        pen.ellipse(px(46, 4, 60, 18), fill=(255, 244, 190))
        pen.ellipse(px(-24, 36, 44, 104), fill=(222, 170, 96))
        pen.ellipse(px(16, 42, 100, 120), fill=(206, 150, 80))
    elif name == "sea":
        pen.rectangle(px(0, 32, 64, 64), fill=(40, 110, 176))
        for y in (38, 46, 54, 62):
            for x in range(-4, 64, 16):
                left = x + (y % 3) * 4
                pen.arc(px(left, y - 3, left + 10, y + 3), 200, 340, fill=(150, 205, 235), width=5)
    elif name == "forest":
        pen.rectangle(px(0, 48, 64, 64), fill=(70, 110, 56))
        for x in (0, 12, 24, 36, 48, 60):
            pen.rectangle(px(x + 1.5, 40, x + 4.5, 54), fill=(96, 66, 44))
            pen.polygon(px(x - 5, 46, x + 3, 8 + (x % 5) * 2, x + 11, 46), fill=(38, 98, 58))
    elif name == "sunset":
        pen.ellipse(px(20, 24, 44, 48), fill=(255, 232, 140))
        pen.rectangle(px(0, 44, 64, 64), fill=(92, 60, 110))
    return np.array(canvas.resize((SCENE_PX, SCENE_PX), PIL.Image.Resampling.BOX))


_SKIES = {  # top and bottom colour of the sky, before the ground is painted
    "night sky": ((12, 16, 52), (36, 44, 96)),
    "beach": ((130, 200, 245), (200, 232, 250)),
    "meadow": ((150, 205, 245), (215, 238, 250)),
    "snow": ((190, 212, 236), (226, 236, 246)),
    "desert": ((250, 206, 140), (252, 230, 190)),
    "sea": ((170, 212, 240), (224, 240, 248)),
    "forest": ((176, 214, 206), (214, 232, 214)),
    "sunset": ((240, 110, 84), (250, 180, 110)),
}


def apply_style(picture: np.ndarray, style: str) -> np.ndarray:
    """The picture in a style, (64, 64, 3) uint8 to the same."""
    if style == "plain":
        return picture
    if style == "negative":
        return 255 - picture
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if style == "grayscale":
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if style == "sepia":
        tinted = np.clip(grey[..., None] * np.array([1.05, 0.86, 0.62], np.float32) + 10, 0, 255)
        return tinted.astype(np.uint8)
    if style == "mosaic":
        block = 4
        cells = picture.reshape(SCENE_PX // block, block, SCENE_PX // block, block, 3).mean(axis=(1, 3), keepdims=True)
        blocks = np.broadcast_to(cells, (SCENE_PX // block, block, SCENE_PX // block, block, 3))
        return blocks.reshape(picture.shape).astype(np.uint8)
    across = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    down = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    lines = np.clip(255 - 2.0 * (across + down), 40, 255)
    return np.repeat(lines[..., None], 3, axis=2).astype(np.uint8)
