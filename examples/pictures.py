"""Draw a folder of captioned pictures to try racm3 on: ``python examples/pictures.py out/pictures``.

Houses, sailing boats, trees, cars, balloons and lighthouses in eight colours, before six landscapes: 300 of the 864
combinations of subject, colour, landscape and side, each with its caption in a ``.txt`` file of the same name.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 128
FINE = 4  # drawn so many times larger, then scaled down: smooth edges

COLOURS = {
    "red": (200, 40, 40),
    "orange": (235, 130, 30),
    "yellow": (240, 205, 60),
    "green": (50, 130, 60),
    "blue": (45, 85, 190),
    "purple": (125, 60, 155),
    "white": (245, 245, 240),
    "black": (35, 35, 40),
}
LANDSCAPES = {
    "in a meadow": ((150, 205, 240), (110, 175, 80)),
    "by the sea": ((190, 225, 245), (50, 120, 175)),
    "in the desert": ((250, 220, 170), (215, 165, 95)),
    "in the snow": ((205, 215, 225), (238, 242, 248)),
    "at night": ((20, 25, 60), (35, 50, 55)),
    "at sunset": ((245, 150, 90), (95, 70, 80)),
}
SIDES = {"on the left": 0.28, "in the middle": 0.5, "on the right": 0.72}
Colour = tuple[int, int, int]


class Sheet:
    """A drawing surface whose x and y go from 0 to 1."""

    def __init__(self, sky: Colour, ground: Colour) -> None:
        side = SIZE_PX * FINE
        self.image = Image.new("RGB", (side, side), sky)
        self.draw = ImageDraw.Draw(self.image)
        self.shape([(0, 0.68), (1, 0.68), (1, 1), (0, 1)], ground)

    def shape(self, points: list[tuple[float, float]], fill: Colour) -> None:
        side = SIZE_PX * FINE
        self.draw.polygon([(x * side, y * side) for x, y in points], fill=fill)

    def box(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        self.shape([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        side = SIZE_PX * FINE
        self.draw.ellipse([(c + s * radius) * side for s in (-1, 1) for c in (x, y)], fill=fill)


def darker(colour: Colour) -> Colour:
    red, green, blue = (int(0.6 * c) for c in colour)
    return red, green, blue


def house(sheet: Sheet, x: float, colour: Colour) -> None:
    sheet.box(x - 0.17, 0.5, 0.34, 0.28, colour)
    sheet.shape([(x - 0.22, 0.5), (x, 0.3), (x + 0.22, 0.5)], darker(colour))
    sheet.box(x - 0.04, 0.62, 0.09, 0.16, (90, 60, 40))
    for side in (-0.13, 0.08):
        sheet.box(x + side, 0.55, 0.06, 0.07, (250, 235, 150))


def boat(sheet: Sheet, x: float, colour: Colour) -> None:
    sheet.box(x - 0.01, 0.28, 0.02, 0.4, (90, 60, 40))
    sheet.shape([(x + 0.02, 0.3), (x + 0.19, 0.62), (x + 0.02, 0.62)], (250, 250, 245))
    sheet.shape([(x - 0.02, 0.36), (x - 0.15, 0.62), (x - 0.02, 0.62)], (225, 225, 220))
    sheet.shape([(x - 0.22, 0.66), (x + 0.22, 0.66), (x + 0.14, 0.78), (x - 0.14, 0.78)], colour)


def tree(sheet: Sheet, x: float, colour: Colour) -> None:
    sheet.box(x - 0.03, 0.55, 0.06, 0.23, (100, 65, 40))
    for dx, y in ((-0.11, 0.48), (0.11, 0.48), (0, 0.36)):
        sheet.disc(x + dx, y, 0.13, colour)


def car(sheet: Sheet, x: float, colour: Colour) -> None:
    sheet.shape([(x - 0.12, 0.54), (x + 0.1, 0.54), (x + 0.16, 0.64), (x - 0.18, 0.64)], darker(colour))
    sheet.box(x - 0.08, 0.56, 0.15, 0.07, (190, 225, 240))
    sheet.box(x - 0.23, 0.63, 0.46, 0.11, colour)
    for dx in (-0.13, 0.13):
        sheet.disc(x + dx, 0.75, 0.055, (25, 25, 25))
        sheet.disc(x + dx, 0.75, 0.025, (170, 170, 170))


def balloon(sheet: Sheet, x: float, colour: Colour) -> None:
    sheet.shape([(x - 0.15, 0.36), (x + 0.15, 0.36), (x + 0.04, 0.52), (x - 0.04, 0.52)], darker(colour))
    sheet.disc(x, 0.28, 0.18, colour)
    sheet.box(x - 0.045, 0.55, 0.09, 0.07, (120, 80, 45))


def lighthouse(sheet: Sheet, x: float, colour: Colour) -> None:
    sheet.shape([(x - 0.06, 0.3), (x + 0.06, 0.3), (x + 0.1, 0.78), (x - 0.1, 0.78)], (245, 245, 240))
    for y in (0.38, 0.54, 0.7):
        sheet.box(x - 0.075, y, 0.15, 0.08, colour)
    sheet.box(x - 0.045, 0.22, 0.09, 0.08, (255, 240, 130))
    sheet.shape([(x - 0.07, 0.22), (x, 0.14), (x + 0.07, 0.22)], colour)


SUBJECTS: dict[str, Callable[[Sheet, float, Colour], None]] = {
    "house": house,
    "sailing boat": boat,
    "tree": tree,
    "car": car,
    "hot-air balloon": balloon,
    "lighthouse": lighthouse,
}


def landscape(name: str, rng: np.random.Generator) -> Sheet:
    """Sky and ground, with what belongs to them at chance places."""
    sky, ground = LANDSCAPES[name]
    sheet = Sheet(sky, ground)
    if name == "at night":
        sheet.disc(0.85, 0.14, 0.07, (240, 240, 215))
        for x, y in rng.uniform((0.03, 0.03), (0.97, 0.5), (14, 2)):
            sheet.disc(x, y, 0.008, (255, 255, 255))
    elif name == "at sunset":
        sheet.disc(rng.uniform(0.2, 0.8), 0.66, 0.12, (255, 215, 110))
        sheet.box(0, 0.68, 1, 0.32, ground)
    elif name == "in the snow":
        for x, y in rng.uniform(0.03, 0.97, (22, 2)):
            sheet.disc(x, y, 0.011, (255, 255, 255))
    else:
        sheet.disc(0.13, 0.13, 0.08, (255, 230, 90))
    return sheet


def picture(subject: str, colour: str, where: str, side: str, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """One picture and a caption for it."""
    sheet = landscape(where, rng)
    x = SIDES[side] + rng.uniform(-0.03, 0.03)
    SUBJECTS[subject](sheet, x, COLOURS[colour])
    article = "an" if colour == "orange" else "a"
    captions = (
        f"{article} {colour} {subject} {where}, {side}",
        f"{side}, {article} {colour} {subject} {where}",
        f"a picture of {article} {colour} {subject} {where}, {side}",
    )
    return sheet.image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS), captions[rng.integers(len(captions))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    every = list(itertools.product(SUBJECTS, COLOURS, LANDSCAPES, SIDES))
    if not 1 <= given.count <= len(every):
        parser.error(f"--count is 1 to {len(every)}, the number of combinations; {given.count} was given")
    given.folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rng.permutation(len(every))[: given.count]):
        drawn, caption = picture(*every[row], rng)
        drawn.save(given.folder / f"{number:04d}.png")
        (given.folder / f"{number:04d}.txt").write_text(caption + "\n", encoding="utf-8")
    print(f"drew {given.count} pictures into {given.folder}")


if __name__ == "__main__":
    main()
