"""The cut-outs of the world: what they are called, who made them, and their pixels at any size.

A *concept* is a name; a *cut-out* is one picture of it in one art set. What is *novel* no model is ever trained on, in
any set, nor its near twins. Foreign cut-outs can be added for evaluation: see ``read_folder``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from racm3.errors import SourceError

DATA = Path(__file__).parent / "data"
SETS = ("noto", "twemoji", "fluent", "openclipart")
LICENCES = {
    "noto": "Apache-2.0, Google Inc.",
    "twemoji": "CC-BY-4.0, Twitter, Inc and other contributors",
    "fluent": "MIT, Microsoft Corporation",
    "openclipart": "public domain",
}
Split = Literal["seen", "novel", "foreign"]


@dataclass(frozen=True)
class Cutout:
    """One picture with an alpha channel, and its names: the first is the usual one."""

    set: str
    file: str
    names: tuple[str, ...]
    split: Split
    group: str = ""
    keywords: tuple[str, ...] = ()
    author: str = ""
    pixels: PIL.Image.Image | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def id(self) -> str:
        return f"{self.set}/{self.file}"

    def picture(self) -> PIL.Image.Image:
        """As it is kept, RGBA."""
        return self.pixels or PIL.Image.open(io.BytesIO(_archive(self.set).read(self.file))).convert("RGBA")

    def rgba(self, longest_px: int, mirrored: bool = False) -> np.ndarray:
        """(H, W, 4) float32, colours times alpha and alpha in [0, 1]; the longer side is ``longest_px``."""
        return _scaled(self, longest_px, mirrored)


@dataclass(frozen=True)
class Art:
    """Cut-outs, and ways to find them."""

    cutouts: tuple[Cutout, ...]

    def of(self, split: Split, *sets: str) -> Art:
        """Those of a split and, if any are given, of some sets."""
        return Art(tuple(one for one in self.cutouts if one.split == split and (not sets or one.set in sets)))

    @cached_property
    def by_id(self) -> dict[str, Cutout]:
        return {one.id: one for one in self.cutouts}

    @cached_property
    def by_name(self) -> dict[str, tuple[Cutout, ...]]:
        """The cut-outs of each concept, in all sets."""
        found: dict[str, list[Cutout]] = {}
        for one in self.cutouts:
            found.setdefault(one.name, []).append(one)
        return {name: tuple(some) for name, some in found.items()}


@lru_cache(maxsize=1)
def load_art() -> Art:
    """The cut-outs kept in the package."""
    rows = json.loads((DATA / "art.json").read_text(encoding="utf-8"))
    cutouts = [
        Cutout(
            picture["set"],
            picture["file"],
            (row["name"], *row["also"]),
            row["split"],
            row["group"],
            tuple(row["keywords"]),
            picture.get("author", ""),
        )
        for row in rows
        for picture in row["pictures"]
    ]
    return Art(tuple(cutouts))


def read_folder(folder: Path, files: Sequence[tuple[Path, str]], name: str) -> Art:
    """A foreign art set: pictures with an alpha channel in ``folder``, each with a name, from where they were fetched.

    Raises SourceError if there is none.
    """
    from racm3.open_scenes.make import cropped

    found = []
    for file, called in files:
        picture = cropped(PIL.Image.open(folder / file))
        if picture is not None:
            found.append(Cutout(name, str(file), (called,), "foreign", pixels=picture))
    if not found:
        raise SourceError(f"there is no picture with an alpha channel in {folder}; unpack the package there")
    return Art(tuple(found))


@lru_cache(maxsize=8)
def _archive(set_: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(DATA / f"{set_}.zip")


@lru_cache(maxsize=8192)
def _premultiplied(cutout: Cutout) -> PIL.Image.Image:
    return cutout.picture().convert("RGBa")


@lru_cache(maxsize=4096)
def _scaled(cutout: Cutout, longest_px: int, mirrored: bool) -> np.ndarray:
    picture = _premultiplied(cutout)
    scale = longest_px / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if mirrored:
        picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(picture.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=2.0), np.float32)
    scaled = pixels / np.array([1, 1, 1, 255], np.float32)
    scaled.setflags(write=False)
    return scaled
