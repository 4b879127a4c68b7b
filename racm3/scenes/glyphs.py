"""The entities of the built-in world: colour emoji, drawn once from a font and kept as one small data file.

The drawings are rendered from Noto Color Emoji (SIL Open Font License 1.1, Copyright Google Inc.; see
``data/ATTRIBUTION.md``). Remake the file with ``racm3 scenes glyphs`` on a machine that has the font
(Debian: ``fonts-noto-color-emoji``) and the ``emoji`` package (``pip install racm3[scenes]``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import PIL.Image

from racm3.errors import SourceError

GLYPH_PX = 40
"""Side of a stored drawing, in pixels: five cells of the 8 px code grid."""

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_STRIKE = 109  # the only bitmap size in the font
NEWEST_EMOJI = 15.0  # newer ones are missing from the font and would be drawn as an empty box
SAME_DRAWING = 2.0  # mean absolute difference (of 255) under which two drawings are one entity, e.g. Norway, Svalbard
ATLAS_COLUMNS = 50
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Glyphs:
    """``names``: N entity names; ``rgba``: (N, 40, 40, 4) uint8 drawings."""

    names: tuple[str, ...]
    rgba: np.ndarray

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}


@lru_cache(maxsize=1)
def load_glyphs() -> Glyphs:
    """The drawings kept in the package."""
    names = json.loads((DATA / "glyphs.json").read_text(encoding="utf-8"))
    atlas = np.array(PIL.Image.open(DATA / "glyphs.webp").convert("RGBA"))
    rows = atlas.shape[0] // GLYPH_PX
    tiles = atlas.reshape(rows, GLYPH_PX, ATLAS_COLUMNS, GLYPH_PX, 4).swapaxes(1, 2).reshape(-1, GLYPH_PX, GLYPH_PX, 4)
    return Glyphs(tuple(names), tiles[: len(names)])


def entity_name(emoji_name: str, characters: str) -> str:
    """``:red_apple:`` -> ``red apple``; country flags become ``flag of ...``."""
    name = emoji_name.strip(":").replace("_", " ").replace("(", "").replace(")", "").replace("\u2019", "'")
    is_flag = all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in characters) or characters.startswith("\U0001f3f4\U000e0067")
    return f"flag of {name}" if is_flag else name


def make_glyphs(font_path: Path = FONT, folder: Path = DATA) -> Glyphs:
    """Draw every emoji without a skin tone that the font has, drop doubles, and write ``glyphs.webp`` and ``.json``.

    Raises SourceError if the font is missing.
    """
    import emoji
    from PIL import ImageDraw, ImageFont

    if not font_path.exists():
        raise SourceError(f"there is no font {font_path}; on Debian: apt-get install fonts-noto-color-emoji")
    try:
        font = ImageFont.truetype(str(font_path), FONT_STRIKE)
    except OSError as error:  # Pillow's, of a file that is no font
        raise SourceError(f"{font_path} is no font that can be read: {error}; give NotoColorEmoji.ttf") from error
    names: list[str] = []
    drawings: list[np.ndarray] = []
    for characters, entry in emoji.EMOJI_DATA.items():
        has_skin_tone = any(0x1F3FB <= ord(c) <= 0x1F3FF for c in characters)
        if entry["status"] != emoji.STATUS["fully_qualified"] or entry["E"] > NEWEST_EMOJI or has_skin_tone:
            continue
        if font.getlength(characters) > 140:  # the font lacks the ligature and would draw its pieces side by side
            continue
        canvas = PIL.Image.new("RGBA", (136, 136))
        ImageDraw.Draw(canvas).text((0, 4), characters, font=font, embedded_color=True)
        drawing = np.array(canvas.resize((GLYPH_PX, GLYPH_PX), PIL.Image.Resampling.LANCZOS))
        drawing[drawing[..., 3] < 8] = 0
        if not drawing[..., 3].any():
            continue
        name = entity_name(entry["en"], characters)
        if drawings:
            others = np.stack(drawings).astype(np.int16)
            distance = np.abs(others - drawing.astype(np.int16)).mean(axis=(1, 2, 3))
            if distance.min() < SAME_DRAWING or name in names:
                continue
        names.append(name)
        drawings.append(drawing)
    rows = -(-len(names) // ATLAS_COLUMNS)
    tiles = np.zeros((rows * ATLAS_COLUMNS, GLYPH_PX, GLYPH_PX, 4), np.uint8)
    tiles[: len(names)] = drawings
    atlas = tiles.reshape(rows, ATLAS_COLUMNS, GLYPH_PX, GLYPH_PX, 4).swapaxes(1, 2).reshape(rows * GLYPH_PX, -1, 4)
    folder.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(atlas).save(folder / "glyphs.webp", lossless=True, method=6)
    (folder / "glyphs.json").write_text(json.dumps(names, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return Glyphs(tuple(names), tiles[: len(names)])
