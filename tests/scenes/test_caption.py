from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.scenes.caption import FORMS, describe, name_subject, plural, read, with_article
from racm3.scenes.draw import BACKGROUNDS, POSITIONS, SIZES, STYLES, Scene
from racm3.scenes.glyphs import load_glyphs


def scenes() -> st.SearchStrategy[Scene]:
    entity, place, style = st.sampled_from(load_glyphs().names), st.sampled_from(BACKGROUNDS), st.sampled_from(STYLES)
    position, size = st.sampled_from(POSITIONS), st.sampled_from(tuple(SIZES))
    one = st.builds(Scene, st.tuples(entity), place, position, size=size, style=style)
    several = st.builds(Scene, st.tuples(entity), place, count=st.sampled_from((2, 3)), style=style)
    two = st.builds(Scene, st.tuples(entity, entity), place, style=style)
    return one | several | two


@given(scenes(), st.integers(0, FORMS - 1))
@settings(max_examples=500)
def test_a_caption_is_read_back(scene: Scene, form: int) -> None:
    assert read(describe(scene, form)) == scene


def test_every_entity_is_read_back() -> None:
    """Names hold commas, numbers, "and", "on": each must survive on its own, tiny, and in numbers."""
    variants: list[dict[str, Any]] = [{}, {"size": "small"}, {"count": 2}, {"count": 3}]
    for name in load_glyphs().names:
        for variant in variants:
            scene = Scene((name,), "night sky", **variant)
            assert read(describe(scene)) == scene


@pytest.mark.parametrize(
    ("scene", "form", "caption"),
    [
        (Scene(("fox",), "snow"), 0, "a fox in the snow"),
        (Scene(("fox",), "snow", "top left"), 0, "a fox at the top left in the snow"),
        (Scene(("fox",), "snow", "left"), 1, "a fox in the snow, on the left"),
        (Scene(("fox",), "snow", "bottom"), 2, "at the bottom, a fox in the snow"),
        (Scene(("fox",), "snow", size="small"), 0, "a tiny fox in the snow"),
        (Scene(("fox",), "snow", count=2), 0, "two foxes in the snow"),
        (Scene(("fox", "castle"), "red"), 0, "a fox and a castle on a red background"),
        (Scene(("castle",), "beach", style="sketch"), 0, "a pencil sketch of a castle on a beach"),
    ],
)
def test_captions_are_natural(scene: Scene, form: int, caption: str) -> None:
    assert describe(scene, form) == caption


def test_a_brief_caption_names_the_subject_alone() -> None:
    scene = Scene(("castle",), "beach", "top", style="sketch")
    assert name_subject(scene) == "a pencil sketch of a castle"
    assert describe(scene).startswith(name_subject(scene))


@pytest.mark.parametrize(
    "caption",
    ["", "a fox", "in the snow", "a dragonfox in the snow", "four foxes in the snow", "two foxes, at the top"],
)
def test_another_text_is_none_of_ours(caption: str) -> None:
    assert read(caption) is None


def test_grammar() -> None:
    assert [with_article(name) for name in ("fox", "owl", "grapes", "cactus")] == [
        "a fox",
        "an owl",
        "some grapes",
        "a cactus",
    ]
    assert [plural(name) for name in ("fox", "cherry", "boy", "ball of yarn")] == [
        "foxes",
        "cherries",
        "boys",
        "balls of yarn",
    ]
