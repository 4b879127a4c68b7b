"""The judges find what was drawn, and nothing where nothing was drawn."""

from __future__ import annotations

import numpy as np

from racm3.open_scenes.art import load_art
from racm3.open_scenes.grounds import Ground
from racm3.open_scenes.judge import GroundJudge, box_mask, candidates, find
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PICTURE_PX, Placed, Scene, draw


def test_the_true_cutout_is_found_where_it_stands_among_others() -> None:
    rng, world = np.random.default_rng(2), World.of("novel")
    for seed in range(3):
        scene = world.scene(rng, 1)
        (one,) = scene.placed
        few = candidates(scene.cutouts(), load_art().cutouts, seed)[:20]
        found = find(draw(scene), few, [(one.size, one.mirrored)])
        assert int(np.argmin([seen.missing for seen in found])) == 0
        assert abs(found[0].box[0] - one.left) <= 1
        assert abs(found[0].box[1] - one.top) <= 1


def test_an_empty_picture_shows_nothing() -> None:
    picture = draw(Scene(Ground("a cloudy sky", 4), ()))
    found = find(picture, World.of("novel").art.cutouts[:6], [(40, False)])
    assert min(seen.missing for seen in found) > 0.5


def test_candidates_are_the_true_ones_first_and_no_near_twin() -> None:
    true = World.of("novel").art.cutouts[:1]
    some = candidates(true, load_art().cutouts, 0)
    assert some[0] == true[0]
    assert len(some) == 100
    assert all(one.group != true[0].group for one in some[1:])


def test_backgrounds_are_told_apart_around_an_entity() -> None:
    names = ("white", "navy", "a starry night", "snow", "stripes", "ice")
    judge = GroundJudge(PICTURE_PX, names)
    cutout = World.of("novel").art.cutouts[0]
    for seed, name in enumerate(names):
        scene = Scene(Ground(name, seed), (Placed(cutout.id, 20, 20, 50),))
        assert judge(draw(scene), box_mask((20, 20, 50, 50), PICTURE_PX)) == name
