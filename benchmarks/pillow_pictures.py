"""Pillow's own test pictures: each that Pillow opens is read, with its pixels, or named as broken or not read.

They are in Pillow's source distribution, of the version that is installed, fetched once into ``--cache``. The pixels
are compared with what Pillow decodes, after exif_transpose and the conversion that `Image.open` states, done here in
the slow way of one step after the other. What is counted:

    opened       files that Pillow opens and decodes, whatever their format
    read         of these, how many are read
    named        the others, with a reason: a format that is not read, values without a scale
    passed_over  neither
    different    read with a pixel that is off by more than 1

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import PIL
import PIL.Image
import PIL.ImageOps

from racm3.data import Item, Skipped, read
from racm3.document import formats

TOLERANCE = 1
SCALED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey of 2 and 4 bits by, but not the grey that is transparent."""


def fetched(cache: Path) -> Path:
    """The source distribution of the installed Pillow."""
    archive = cache / f"pillow-{PIL.__version__}.tar.gz"
    if not archive.exists():
        wanted = ["--no-deps", "--no-binary", "pillow", f"pillow=={PIL.__version__}", "-d", str(cache)]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
    return archive


def expected(file: Path) -> np.ndarray | None:
    """(H, W, 3) float: the first frame as Pillow decodes it, in the stated conversion; None if it has none."""
    with PIL.Image.open(file, formats=formats()) as picture:
        tile = next(iter(getattr(picture, "tile", None) or ()), None)
        raw_mode = (tile[3][0] if isinstance(tile[3], tuple) else tile[3]) if tile else None
        tags = dict(picture.tag_v2) if picture.format == "TIFF" else {}  # type: ignore[attr-defined]
        wide = picture.format == "PPM"
        picture.load()
        try:
            picture = PIL.ImageOps.exif_transpose(picture)
        except Exception:  # damaged EXIF, which says nothing
            pass
        clear = picture.info.get("transparency")
        values = np.asarray(picture).astype(float)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        top = 65535 if picture.mode.startswith("I;16") else values.max()
        if values.min() < 0 or not top <= 65535 or not np.isfinite(values).all():
            return None
        scale = 1 / 256 if top > 255 or (wide and picture.mode == "I") else 1.0
        scale = 1 / 16 if raw_mode == "I;12" else 255 if picture.mode == "F" and top <= 1 else scale
        grey = values * scale
        grey = 255 - grey if tags.get(262) == 0 else grey
        grey[values == clear] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if tags.get(339) in (2, (2,)) and picture.mode == "L" and values.max() > 127:
        return None
    if isinstance(clear, int) and raw_mode in SCALED:
        picture.info["transparency"] = clear * SCALED[raw_mode]
    if isinstance(clear, tuple) and raw_mode == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    opaque = rgba[..., 3:] / 255
    return rgba[..., :3] * opaque + 255 * (1 - opaque)


def opens(file: Path) -> bool:
    try:
        with PIL.Image.open(file) as picture:
            picture.load()
    except Exception:  # what Pillow's parsers raise at damaged bytes is of every kind
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "racm3-pillow")
    chosen = parser.parse_args()
    chosen.cache.mkdir(parents=True, exist_ok=True)
    logging.disable()
    warnings.simplefilter("ignore")
    counts = dict.fromkeys(("files", "opened", "read", "named", "passed_over", "different"), 0)
    with tempfile.TemporaryDirectory() as place, tarfile.open(fetched(chosen.cache)) as archive:
        members = [member for member in archive.getmembers() if "/Tests/images/" in member.name and member.isfile()]
        archive.extractall(place, members, filter="data")
        skipped: list[Skipped] = []
        counts["files"] = len(members)
        (root,) = Path(place).glob("*/Tests/images")
        items: dict[str, Item | None] = {}
        for item in read(root, report=skipped.append):
            if "#" not in item.origin and (difference := compared(Path(item.origin), item)):
                counts["different"] += 1
                print(f"{Path(item.origin).relative_to(root)}: {difference}")
            items[item.origin] = None
        named = {one.origin: one for one in skipped}
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            if not opens(file):
                continue
            counts["opened"] += 1
            if str(file) in items:
                counts["read"] += 1
            elif str(file) in named:
                counts["named"] += 1
                print(f"{file.relative_to(root)}: {named[str(file)].reason.replace(str(root) + '/', '')[:150]}")
            else:
                counts["passed_over"] += 1
                print(f"{file.relative_to(root)}: passed over")
    print(json.dumps(counts))


def compared(file: Path, item: Item) -> str:
    """How the pixels differ; '' if they do not."""
    found = item.document.images[0].pixels
    try:
        right = expected(file)
    except Exception as error:
        return f"Pillow cannot read it: {error}"
    if right is None:
        return "its values have no scale, but it was read"
    if found.shape != right.shape:
        return f"{found.shape}, but {right.shape} is right"
    most = float(np.abs(found - right).max())
    return "" if most <= TOLERANCE else f"off by {most:g}"


if __name__ == "__main__":
    main()
