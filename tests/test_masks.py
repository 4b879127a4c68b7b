from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3.document import Image
from racm3.errors import ImageError
from racm3.masks import masked
from racm3.serve.picture_input import with_mask

HOLE = np.zeros((64, 64), dtype=bool)
HOLE[24:40, 24:40] = True
PHOTO = np.where(np.indices((64, 64)).sum(0)[..., None] // 8 % 2, (90, 140, 235), (235, 235, 225)).astype(np.uint8)
WHITE = PIL.Image.fromarray((HOLE * 255).astype(np.uint8))
ALPHA = np.where(HOLE, 0, 255).astype(np.uint8)
MASKS = {
    "copy_with_hole.png": PIL.Image.fromarray(np.dstack([PHOTO, ALPHA])),
    "black_with_hole.png": PIL.Image.fromarray(np.dstack([PHOTO * 0, ALPHA])),
    "white.png": WHITE,
    "palette.png": WHITE.convert("P"),
    "one_bit.png": WHITE.convert("1"),
    "colour.bmp": WHITE.convert("RGB"),
    "noisy.jpg": WHITE,
    "twice.png": WHITE.resize((128, 128), PIL.Image.Resampling.NEAREST),
    "half.webp": WHITE.resize((32, 32), PIL.Image.Resampling.NEAREST),
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image(PHOTO).pil.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_hides_the_same_region(name: str, photo: Path, tmp_path: Path) -> None:
    mask = tmp_path / name
    MASKS[name].save(mask)
    for shown in (masked(photo, mask), with_mask(photo.read_bytes(), mask.read_bytes())):
        assert shown.mask is not None
        assert np.array_equal(shown.mask, HOLE)
        assert np.array_equal(shown.pixels, PHOTO)


def test_without_a_mask_what_is_transparent_is_hidden(tmp_path: Path) -> None:
    MASKS["copy_with_hole.png"].save(tmp_path / "own.png")
    assert np.array_equal(masked(tmp_path / "own.png").mask, HOLE)  # type: ignore[arg-type]


def test_a_mask_that_hides_nothing_or_has_another_shape_is_refused(photo: Path, tmp_path: Path) -> None:
    Image(np.zeros((64, 64, 3), np.uint8)).pil.save(tmp_path / "black.png")
    with pytest.raises(
        ImageError, match=r"the mask .*black\.png hides nothing; give a mask that is transparent, or wh"
    ):
        masked(photo, tmp_path / "black.png")
    with pytest.raises(ImageError, match="the picture hides nothing"):
        masked(photo)
    Image(np.zeros((64, 32, 3), np.uint8)).pil.save(tmp_path / "narrow.png")
    with pytest.raises(ImageError, match=r"narrow\.png is 32 x 64 px, the picture 64 x 64; make them the same size"):
        masked(photo, tmp_path / "narrow.png")
