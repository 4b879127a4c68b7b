from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from racm3.errors import ConfigError
from racm3.scenes.draw import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SCENE_PX,
    SIZES,
    STYLES,
    Scene,
    apply_style,
    background,
    draw,
    glyph,
)
from racm3.scenes.glyphs import load_glyphs

CELL_PX = 8  # of the built-in image tokenizer


@pytest.mark.parametrize("side", [40, 32, 24])
def test_every_glyph_can_be_drawn(side: int) -> None:
    for name in load_glyphs().names:
        colour, alpha = glyph(name, side)
        assert colour.shape == (side, side, 3)
        assert alpha.shape == (side, side, 1)
        assert 0 < alpha.max() <= 1


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_every_background(name: str) -> None:
    picture = background(name)
    assert picture.shape == (SCENE_PX, SCENE_PX, 3)
    assert picture.dtype == np.uint8
    assert (len(np.unique(picture.reshape(-1, 3), axis=0)) == 1) == (name in COLOURS)


def test_no_two_backgrounds_are_the_same() -> None:
    assert len({background(name).tobytes() for name in BACKGROUNDS}) == len(BACKGROUNDS)


def test_drawing_leaves_the_background_as_it_was() -> None:
    before = background("beach").copy()
    draw(Scene(("fox",), "beach"))
    np.testing.assert_array_equal(background("beach"), before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_glyph_stands_on_the_grid_and_inside(position: str, size: str) -> None:
    scene = Scene(("fox",), "white", position, size=size)
    ((left, top, side),) = scene.boxes
    assert left % CELL_PX == top % CELL_PX == side % CELL_PX == 0
    assert 0 <= left <= SCENE_PX - side
    assert 0 <= top <= SCENE_PX - side
    outside = np.ones((SCENE_PX, SCENE_PX), bool)
    outside[top : top + side, left : left + side] = False
    picture = draw(scene)
    assert (picture[outside] == 255).all()
    assert (picture[~outside] != 255).any()


def test_positions_are_where_they_say() -> None:
    for size in SIZES:
        corners = {p: Scene(("fox",), "white", p, size=size).boxes[0][:2] for p in POSITIONS}
        assert len(set(corners.values())) == len(POSITIONS)
        assert corners["left"][0] < corners["centre"][0] < corners["right"][0]
        assert corners["top"][1] < corners["centre"][1] < corners["bottom"][1]
        assert corners["bottom right"] == (corners["right"][0], corners["bottom"][1])


@pytest.mark.parametrize(("entities", "count"), [(("fox",), 2), (("fox",), 3), (("fox", "castle"), 1)])
def test_several_glyphs_do_not_overlap(entities: tuple[str, ...], count: int) -> None:
    scene = Scene(entities, "snow", count=count)
    covered = np.zeros((SCENE_PX, SCENE_PX), int)
    for left, top, side in scene.boxes:
        covered[top : top + side, left : left + side] += 1
    assert len(scene.boxes) == scene.glyph_count
    assert covered.max() == 1
    assert (draw(scene) != background("snow")).any()


@pytest.mark.parametrize("style", STYLES)
def test_a_style_keeps_the_shape(style: str) -> None:
    plain = draw(Scene(("fox",), "beach"))
    styled = apply_style(plain, style)
    assert styled.shape == plain.shape
    assert styled.dtype == np.uint8
    assert np.array_equal(styled, plain) == (style == "plain")
    np.testing.assert_array_equal(styled, draw(Scene(("fox",), "beach", style=style)))


def test_a_scene_comes_back_from_its_facts() -> None:
    scene = Scene(("fox", "castle"), "sea", style="sepia")
    assert Scene.from_dict(scene.to_dict()) == scene
    assert Scene.from_dict(scene.to_dict()).entities == ("fox", "castle")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"background": "baech"}, "unknown background 'baech'; did you mean 'beach'"),
        ({"position": "center"}, "unknown position 'center'; did you mean 'centre'"),
        ({"size": "smal"}, "unknown size 'smal'; did you mean 'small'"),
        ({"style": "sketsh"}, "unknown style 'sketsh'; did you mean 'sketch'"),
        ({"entities": ("red aple",)}, "unknown entity 'red aple'; did you mean 'red apple'"),
        ({"entities": ()}, "1 to 3 of one entity"),
        ({"count": 4}, "1 to 3 of one entity"),
        ({"count": 0}, "1 to 3 of one entity"),
        ({"entities": ("fox", "castle"), "count": 2}, "1 to 3 of one entity"),
        ({"entities": ("fox", "castle", "bear")}, "1 to 3 of one entity"),
        ({"count": 2, "position": "top"}, "only a single glyph has a position"),
        ({"count": 2, "size": "small"}, "only a single glyph has a position and a size"),
    ],
)
def test_what_is_not_drawn_is_an_error(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scene(**({"entities": ("fox",), "background": "snow"} | facts))
