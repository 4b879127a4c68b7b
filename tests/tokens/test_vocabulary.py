from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.errors import ConfigError, MarkupError
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary

SIZES = st.integers(1, 50)


def test_the_order_of_the_ids_is_frozen() -> None:
    v = Vocabulary(text_size=2, image_size=3)
    names = ["<pad>", "<eos>", "<doc>", "</doc>", "<text>", "<image>"]
    names += [f"<mask:{i}>" for i in range(16)] + [f"<infill:{i}>" for i in range(16)]
    names += ["text id 0", "text id 1", "image code 0", "image code 1", "image code 2"]
    assert [v.name(id) for id in range(v.size)] == names
    assert [v.pad, v.eos, v.doc, v.end, v.text, v.image] == [0, 1, 2, 3, 4, 5]


@given(SIZES, SIZES)
def test_every_id_is_of_exactly_one_kind(text_size: int, image_size: int) -> None:
    v = Vocabulary(text_size, image_size)
    ids = np.arange(v.size)
    kinds = [ids <= v.image, v.is_mask(ids), v.is_infill(ids), v.is_text(ids), v.is_image(ids)]
    assert (np.sum(kinds, axis=0) == 1).all()
    assert [int(np.sum(kind)) for kind in kinds] == [6, MAX_MASKS, MAX_MASKS, text_size, image_size]
    for id in range(-1, v.size + 1):
        one = np.array([id])
        for kind in (v.is_mask, v.is_infill, v.is_text, v.is_image):
            assert kind(id) == kind(one)[0]


def test_mask_and_infill_ids() -> None:
    v = Vocabulary(3, 3)
    assert [v.name(v.mask(i)) for i in range(MAX_MASKS)] == [f"<mask:{i}>" for i in range(MAX_MASKS)]
    assert [v.name(v.infill(i)) for i in range(MAX_MASKS)] == [f"<infill:{i}>" for i in range(MAX_MASKS)]
    for i in (-1, MAX_MASKS):
        with pytest.raises(MarkupError, match="at most 16 masks"):
            v.mask(i)
        with pytest.raises(MarkupError, match="at most 16 masks"):
            v.infill(i)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1), "text_size of a vocabulary is a positive integer, but 0"),
        ((1, "9"), "image_size of a vocabulary is a positive integer, but '9'"),
        ((True, 1), "text_size of a vocabulary is a positive integer, but True"),
    ],
)
def test_bad_values_are_named(values: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Vocabulary(*values)
