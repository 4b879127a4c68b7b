"""Files that are written whole or not at all, and pictures that are written for people."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from racm3.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["check_pictures_out", "new_folder", "save_picture", "unfinished", "write_whole"]

PICTURES_OUT = (".png", ".jpg", ".jpeg", ".webp")


def write_whole(path: Path, text: str) -> None:
    """Replace a file by another in one moment, so that a kill leaves the one or the other."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def unfinished(folder: Path) -> Path:
    """Where ``folder`` is made before it is renamed to it; there already if a kill left it half done."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    return part


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Where to make a folder, so that it is there whole or not at all; the folder itself if that is there already."""
    if folder.exists():
        yield folder
    else:
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        yield part
        part.rename(folder)


def check_pictures_out(*paths: Path | None) -> None:
    """Raises InputError if no picture can be written there: before the work, not after it."""
    for out in filter(None, paths):
        if out.suffix.lower() not in PICTURES_OUT:
            raise InputError(f"a picture cannot be written as {out}; end its name with {', '.join(PICTURES_OUT)}")
        if out.is_dir() or (out.parent.exists() and not out.parent.is_dir()):
            raise InputError(f"{out} is a folder, or lies below a file; give the path of a new picture")


def save_picture(picture: PIL.Image.Image, out: Path) -> None:
    """Write a picture, its folder with it, and say so."""
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(f"wrote {out}")
