from __future__ import annotations

import numpy as np
import pytest

from racm3.scenes.glyphs import DATA, GLYPH_PX, entity_name, load_glyphs


def test_the_package_holds_every_entity() -> None:
    glyphs = load_glyphs()
    assert 1700 < len(glyphs.names) < 2000
    assert glyphs.rgba.shape == (len(glyphs.names), GLYPH_PX, GLYPH_PX, 4)
    assert glyphs.rgba.dtype == np.uint8
    assert [glyphs.index[name] for name in glyphs.names] == list(range(len(glyphs.names)))


def test_no_drawing_is_empty_and_no_two_are_the_same() -> None:
    rgba = load_glyphs().rgba
    assert rgba[..., 3].any(axis=(1, 2)).all()
    assert len({drawing.tobytes() for drawing in rgba}) == len(rgba)


def test_the_source_is_attributed() -> None:
    text = " ".join((DATA / "ATTRIBUTION.md").read_text(encoding="utf-8").split())
    assert "Noto" in text
    assert "Open Font License" in text
    assert "racm3 scenes glyphs" in text


@pytest.mark.parametrize(
    ("emoji_name", "characters", "name"),
    [
        (":red_apple:", "\U0001f34e", "red apple"),
        (":Norway:", "\U0001f1f3\U0001f1f4", "flag of Norway"),
        (":O_button_(blood_type):", "\U0001f17e", "O button blood type"),
        (":twelve_o’clock:", "\U0001f55b", "twelve o'clock"),
    ],
)
def test_entities_are_named_in_words(emoji_name: str, characters: str, name: str) -> None:
    assert entity_name(emoji_name, characters) == name
