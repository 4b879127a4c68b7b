"""Foreign pictures: whole art sets that nothing is trained on, for evaluation alone.

Flags and logos are drawn by code. Photographic cut-outs are those of Tux Paint (Debian ``tuxpaint-stamps-default``,
GPL-2): not part of this project, fetched and unpacked by whoever evaluates,

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb FOLDER
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageDraw

from racm3.errors import SourceError
from racm3.open_scenes.art import Art, Cutout
from racm3.open_scenes.make import cropped

DRAWN_PX = 96
SYLLABLES = "ba ce do fi gu ka le mo ni pu ra se to vi zu lor mek tan wis ral".split()
PHOTOGRAPH_COLOURS = 0.35
"""Different colours a visible pixel: drawings have few, photographs have many."""

PAINTS = np.array(
    [(206, 43, 55), (0, 106, 78), (0, 57, 166), (252, 209, 22), (255, 255, 255), (20, 20, 20), (242, 120, 30),
     (120, 190, 230), (130, 40, 120), (60, 170, 90)], np.uint8,
)  # fmt: skip


@lru_cache(maxsize=1)
def drawn(count: int = 80, seed: int = 0) -> Art:
    """Flags and logos that exist nowhere else, as many of each, with made-up names."""
    rng = np.random.default_rng((seed, 3))
    found, names = [], set()
    for number in range(2 * count):
        kind, paint = (("flag", _flag), ("logo", _logo))[number % 2]
        word = _word(rng)
        while word in names:
            word = _word(rng)
        names.add(word)
        name = f"flag of {word}" if kind == "flag" else f"{word} logo"
        found.append(Cutout(f"drawn-{kind}s", f"{word}.png", (name,), "foreign", word, pixels=paint(rng)))
    return Art(tuple(found))


def stamps(folder: Path) -> Art:
    """The photographic cut-outs of Tux Paint. Raises SourceError if they are not in ``folder``."""
    found, names = [], set()
    for file in sorted(folder.rglob("stamps/**/*.png")):
        text = file.with_suffix(".txt")
        if not text.exists():
            continue
        name = _short(text.read_text(encoding="utf-8", errors="replace").splitlines()[0])
        picture = PIL.Image.open(file).convert("RGBA")
        if not name or name in names or not _is_photograph(picture):
            continue
        cutout = cropped(picture)
        if cutout is not None and max(cutout.size) >= 48:
            names.add(name)
            found.append(Cutout("stamps", str(file.relative_to(folder)), (name,), "foreign", name, pixels=cutout))
    if not found:
        raise SourceError(f"there are no stamps in {folder}; unpack Debian's tuxpaint-stamps-default there")
    return Art(tuple(found))


def _short(sentence: str) -> str:
    """``A Sumatran tiger.`` is a ``sumatran tiger``; nothing for what is longer than three words."""
    words = re.sub(r"^(an?|the|some|two|three)\s+", "", sentence.strip().rstrip(".!"), flags=re.IGNORECASE).lower()
    return words if re.fullmatch(r"[a-z' -]{3,28}", words) and len(words.split()) <= 3 else ""


def _is_photograph(picture: PIL.Image.Image) -> bool:
    pixels = np.asarray(picture)
    visible = pixels[..., :3][pixels[..., 3] > 128]
    if len(visible) < 500 or (pixels[..., 3] > 128).mean() > 0.97:
        return False
    return len(np.unique(visible // 2, axis=0)) / len(visible) > PHOTOGRAPH_COLOURS


def _word(rng: np.random.Generator) -> str:
    return "".join(SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=rng.integers(2, 4)))


def _paints(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in PAINTS[i]) + (255,) for i in rng.choice(len(PAINTS), count, replace=False)]


def _canvas() -> tuple[PIL.Image.Image, ImageDraw.ImageDraw]:
    picture = PIL.Image.new("RGBA", (4 * DRAWN_PX, 4 * DRAWN_PX))
    return picture, ImageDraw.Draw(picture)


def _done(picture: PIL.Image.Image) -> PIL.Image.Image:
    small = picture.convert("RGBa").resize((DRAWN_PX, DRAWN_PX), PIL.Image.Resampling.BOX).convert("RGBA")
    return small.crop(small.getchannel("A").getbbox())


def _flag(rng: np.random.Generator) -> PIL.Image.Image:
    """Stripes, a cross, a saltire or a hoist triangle; perhaps a disc or a star."""
    picture, pen = _canvas()
    wide, high, top = 384, 252, 66
    a, b, c, d = _paints(rng, 4)
    pen.rectangle((0, top, wide, top + high), fill=a)
    kind = rng.integers(5)
    if kind == 0:
        pen.rectangle((0, top + high / 3, wide, top + 2 * high / 3), fill=b)
        pen.rectangle((0, top + 2 * high / 3, wide, top + high), fill=c)
    elif kind == 1:
        pen.rectangle((wide / 3, top, 2 * wide / 3, top + high), fill=b)
        pen.rectangle((2 * wide / 3, top, wide, top + high), fill=c)
    elif kind == 2:
        across = wide * rng.choice((0.36, 0.5))
        pen.rectangle((across - 34, top, across + 34, top + high), fill=b)
        pen.rectangle((0, top + high / 2 - 34, wide, top + high / 2 + 34), fill=b)
    elif kind == 3:
        pen.line((0, top, wide, top + high), fill=b, width=52)
        pen.line((0, top + high, wide, top), fill=b, width=52)
    else:
        pen.rectangle((0, top + high / 2, wide, top + high), fill=b)
        pen.polygon((0, top, wide * 0.45, top + high / 2, 0, top + high), fill=c)
    if rng.random() < 0.6:
        x, y, r = wide * rng.choice((0.22, 0.5)), top + high / 2, rng.uniform(40, 70)
        if rng.random() < 0.5:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=d)
        else:
            _star(pen, x, y, r, 5, d)
    return _done(picture)


def _star(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, points: int, fill: tuple[int, ...]) -> None:
    corners = []
    for i in range(2 * points):
        far, angle = (r if i % 2 == 0 else 0.42 * r), np.pi * i / points - np.pi / 2
        corners += [x + far * np.cos(angle), y + far * np.sin(angle)]
    pen.polygon(corners, fill=fill)


def _logo(rng: np.random.Generator) -> PIL.Image.Image:
    """A badge with a shape on it."""
    picture, pen = _canvas()
    a, b, c = _paints(rng, 3)
    badge: Callable[[tuple[float, float, float, float], tuple[int, ...]], None] = (
        lambda box, fill: pen.ellipse(box, fill=fill),
        lambda box, fill: pen.rounded_rectangle(box, radius=60, fill=fill),
        lambda box, fill: pen.regular_polygon(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 190), 6, fill=fill),
    )[rng.integers(3)]
    badge((12, 12, 372, 372), a)
    kind = rng.integers(4)
    if kind == 0:
        _star(pen, 192, 192, 130, int(rng.integers(4, 9)), b)
    elif kind == 1:
        for radius, fill in ((130, b), (88, a), (46, c)):
            pen.ellipse((192 - radius, 192 - radius, 192 + radius, 192 + radius), fill=fill)
    elif kind == 2:
        pen.polygon((192, 70, 300, 290, 84, 290), fill=b)
        pen.ellipse((150, 190, 234, 274), fill=c)
    else:
        for i in range(int(rng.integers(3, 6))):
            left = 84 + i * 48
            pen.rectangle((left, 290 - float(rng.uniform(60, 200)), left + 34, 290), fill=b if i % 2 else c)
    return _done(picture)
