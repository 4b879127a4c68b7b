"""How much of a retrieved picture can be copied: the share of an entity's codes that are equal in two scenes.

The two scenes differ in background and position. Printed for entities on their card and cut out, with the shipped image
tokenizer; ends with one JSON line.
"""

from __future__ import annotations

import json
import random

import numpy as np

from racm3.document import Image
from racm3.model_folder import ModelFolder
from racm3.scenes.draw import BACKGROUNDS, POSITIONS, Scene, background, draw, glyph
from racm3.scenes.glyphs import load_glyphs
from racm3.tokens.codec import image_codes

PAIRS, PATCH_PX = 400, 8


def cut_out(scene: Scene) -> np.ndarray:
    """The scene without the card."""
    picture = background(scene.background).astype(np.float32)
    left, top, side = scene.boxes[0]
    colour, alpha = glyph(scene.entities[0], side)
    region = picture[top : top + side, left : left + side]
    region += (colour - region) * alpha
    return picture.round().astype(np.uint8)


def main() -> None:
    tokenizer = ModelFolder.open("scenes").image_tokenizer()
    rows, columns = tokenizer.grid
    rng = random.Random(0)
    pairs = []
    for name in rng.sample(load_glyphs().names, PAIRS):
        grounds, places = rng.sample(BACKGROUNDS, 2), rng.sample(POSITIONS, 2)
        pairs.append([Scene((name,), *where) for where in zip(grounds, places, strict=True)])

    def entity_codes(scene: Scene, picture: np.ndarray) -> np.ndarray:
        codes = image_codes([Image(picture)], tokenizer)[0].reshape(rows, columns)
        left, top, side = (px // PATCH_PX for px in scene.boxes[0])
        return codes[top : top + side, left : left + side]

    shares = {}
    for name, paint in (("card", draw), ("cut_out", cut_out)):
        equal = [entity_codes(a, paint(a)) == entity_codes(b, paint(b)) for a, b in pairs]
        shares[f"{name}_equal_share"] = round(float(np.mean(equal)), 4)
    print(json.dumps(shares | {"pairs": PAIRS}))


if __name__ == "__main__":
    main()
