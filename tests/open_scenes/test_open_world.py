"""The open world: scenes and captions are functions of a seed, and what is novel is met by nothing that is trained."""

from __future__ import annotations

import random

import numpy as np
import pytest

from racm3.errors import ConfigError
from racm3.open_scenes.art import load_art
from racm3.open_scenes.grounds import Ground, all_grounds
from racm3.open_scenes.names import clean, groups, head, is_novel
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PICTURE_PX, Placed, Scene, draw, draw_masked, position
from racm3.open_scenes.wording import HELD_OUT, TRAINED, WORDINGS, describe, facts


def test_at_least_fifteen_percent_of_the_concepts_are_novel_with_all_their_twins() -> None:
    art = load_art()
    seen, novel = World.of("seen"), World.of("novel")
    assert len(novel.names) >= 0.15 * (len(seen.names) + len(novel.names))
    assert not {one.group for one in seen.art.cutouts} & {one.group for one in novel.art.cutouts}
    assert not set(seen.grounds) & set(novel.grounds)
    for one in art.cutouts:
        assert one.split == ("novel" if is_novel(one.group) else "seen")


def test_every_cutout_opens_and_is_scaled_to_its_longer_side() -> None:
    for one in load_art().cutouts[::97]:
        rgba = one.rgba(40)
        assert max(rgba.shape[:2]) == 40
        assert 0 < rgba[..., 3].mean() < 1


def test_names() -> None:
    assert clean("Bee2_outline") == "bee outline"
    assert head("red racing cars") == "car"
    assert head("ball of yarn") == "ball"
    assert head("dog face") == "dog"
    same = groups([["car", "automobile"], ["racing car"], ["automobile"], ["fox"]])
    assert same[0] == same[1] == same[2] != same[3]


def test_a_scene_is_drawn_the_same_twice_and_comes_back_from_its_facts() -> None:
    scene = World.of("seen").scene(np.random.default_rng(5))
    again = Scene.from_dict(scene.to_dict())
    assert again == scene
    assert np.array_equal(draw(scene), draw(again))


def test_masks_say_which_pixels_an_entity_changed() -> None:
    cutout = World.of("seen").art.cutouts[10]
    empty = Scene(Ground("blue", 3), ())
    scene = Scene(Ground("blue", 3), (Placed(cutout.id, 20, 30, 40),))
    picture, masks = draw_masked(scene)
    changed = (picture != draw(empty)).any(-1)
    assert masks.shape == (1, PICTURE_PX, PICTURE_PX)
    assert changed[masks[0] == 0].sum() == 0
    assert changed[masks[0] > 0.9].mean() > 0.9


def test_the_one_in_front_hides_the_one_behind() -> None:
    one, other = World.of("seen").art.cutouts[10:12]
    scene = Scene(Ground("white", 1), (Placed(one.id, 20, 20, 40), Placed(other.id, 20, 20, 40)))
    masks = draw_masked(scene)[1]
    assert (masks.sum(0) <= 1.001).all()
    alone = draw_masked(Scene(Ground("white", 1), (Placed(other.id, 20, 20, 40),)))[1]
    assert np.array_equal(masks[1], alone[0])


def test_a_place_is_congruent_to_the_phase_that_is_asked_for() -> None:
    world, rng = World.of("seen"), np.random.default_rng(0)
    for _ in range(50):
        placed = world.placed(world.cutout(rng), rng, phase=(3, 5), step=6)
        assert (placed.left % 6, placed.top % 6) == (3, 5)


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_wording_names_the_entity_and_its_background(wording: str) -> None:
    cutout = next(one for one in World.of("seen").art.cutouts if one.name == "penguin")
    scene = Scene(Ground("snow", 1), (Placed(cutout.id, 2, 2, 40),))
    told = facts(scene, random.Random(1), places=1, grounds=1)
    caption = describe(told, wording, random.Random(2))
    if wording != "typos":
        assert "penguin" in caption.lower()
        assert "snow" in caption.lower()
    assert describe(told, wording, random.Random(2)) == caption


def test_positions() -> None:
    assert position((0, 0, 20, 20)) == "top left"
    assert position((38, 38, 20, 20)) == "centre"
    assert position((76, 40, 20, 20)) == "right"


def test_unknown_names_are_errors_that_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match="wording"):
        describe(facts(World.of("seen").scene(np.random.default_rng(0)), random.Random(0)), "sung", random.Random(0))
    with pytest.raises(ConfigError, match="background"):
        Ground("a beech")


def test_four_wordings_are_held_out() -> None:
    assert len(HELD_OUT) == 4
    assert not set(HELD_OUT) & set(TRAINED)


@pytest.mark.parametrize("name", all_grounds())
def test_every_background_is_drawn_at_any_seed(name: str) -> None:
    pixels = Ground(name, 7).pixels(48)
    assert pixels.shape == (48, 48, 3)
    assert np.isfinite(pixels).all()
