from __future__ import annotations

import numpy as np

from racm3.document import Image
from racm3.util.contact_sheet import GAP_PX, Tile, sheet


def plain(colour: int, height: int, width: int) -> Image:
    return Image(np.full((height, width, 3), colour, np.uint8))


def test_pictures_stand_in_their_rows_and_large_ones_fit() -> None:
    drawn = np.asarray(sheet([[Tile(plain(10, 20, 40)), Tile(plain(30, 8, 8))], [Tile(plain(50, 20, 20))]], 20))
    side = 20 + GAP_PX
    assert drawn.shape == (GAP_PX + 2 * side, GAP_PX + 2 * side, 3)
    first, small, below = drawn[GAP_PX, GAP_PX], drawn[GAP_PX, GAP_PX + side], drawn[GAP_PX + side, GAP_PX]
    assert [tile.tolist() for tile in (first, small, below)] == [[10] * 3, [30] * 3, [50] * 3]
    assert (drawn == 10).all(axis=2).sum() == 10 * 20  # half as large, in its proportions
    assert (drawn == 30).all(axis=2).sum() == 8 * 8  # never larger


def test_words_stand_below_and_a_text_has_a_tile() -> None:
    drawn = np.asarray(sheet([[Tile(plain(255, 60, 60), "a fox in the snow " * 9), Tile(None)]], 60))
    assert (drawn[: GAP_PX + 60] == 255).all()
    assert (drawn[GAP_PX + 60 :, : GAP_PX + 60] < 128).any()
    assert (drawn[:, 60 + 2 * GAP_PX :] == 255).all()
    assert np.asarray(sheet([], 60)).shape == (GAP_PX, 60 + 2 * GAP_PX, 3)


def test_titles_heads_and_enlarged_pictures() -> None:
    drawn = np.asarray(sheet([[Tile(plain(10, 8, 8), head="asked")]] * 2, 60, ["one", "two"], {1}, enlarge=True))
    assert (drawn == 10).all(axis=2).sum() == 2 * 60 * 60
    assert ((drawn[..., 0] > 140) & (drawn[..., 2] < 80)).any(axis=1).nonzero()[0].min() > 60  # the second title
    text = np.asarray(sheet([[Tile(None, "only words " * 20)]], 60))
    assert (text[GAP_PX : GAP_PX + 60] < 128).any()  # in the place of the picture
