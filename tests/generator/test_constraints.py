"""Constraints against what they promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.errors import ConfigError, MarkupError
from racm3.generator.constraints import Chain, Constraint, Fixed, ImageSpan, TextSpan
from racm3.tokens.vocabulary import Vocabulary

V = Vocabulary(text_size=5, image_size=4)


def allowed_ids(constraint: Constraint) -> list[int]:
    allowed = constraint.allowed()
    assert allowed.dtype == np.bool_
    assert allowed.shape == (V.size,)
    return allowed.nonzero()[0].tolist()


TEXT = list(range(V.text_start, V.image_start))
CODES = list(range(V.image_start, V.size))


def test_text_span() -> None:
    span = TextSpan(V, [V.end, V.image], max_tokens=2)
    assert span.max_steps == 3
    assert allowed_ids(span) == TEXT  # at least one
    assert span.push(TEXT[0])
    assert allowed_ids(span) == sorted([V.end, V.image, *TEXT])
    assert span.push(TEXT[1])
    assert allowed_ids(span) == [V.end, V.image]  # at most two
    assert not span.done
    assert not span.push(V.image)  # not part of the answer
    assert span.done


def test_image_span() -> None:
    span = ImageSpan(V, 3)
    for _ in range(3):
        assert not span.done
        assert allowed_ids(span) == CODES
        assert span.push(CODES[0])
    assert span.done


def test_an_image_span_with_given_codes() -> None:
    span = ImageSpan(V, 3, {1: 2})
    assert allowed_ids(span) == CODES
    span.push(CODES[0])
    assert allowed_ids(span) == [CODES[2]]
    assert span.push(CODES[2])
    assert allowed_ids(span) == CODES
    with pytest.raises(ConfigError, match="places 0 to 2"):
        ImageSpan(V, 3, {3: 0})


def test_chain() -> None:
    """A row of two codes, the next sentinel, another row."""
    chain = Chain(ImageSpan(V, 2), Fixed(V, [V.infill(1)]), ImageSpan(V, 1))
    assert chain.max_steps == 4
    belong = []
    for allowed, id in [(CODES, CODES[3]), (CODES, CODES[0]), ([V.infill(1)], V.infill(1)), (CODES, CODES[1])]:
        assert not chain.done
        assert allowed_ids(chain) == allowed
        belong.append(chain.push(id))
    assert chain.done
    assert belong == [True, True, False, True]


MAKERS: list[Callable[[], Constraint]] = [
    lambda: TextSpan(V, [V.end, V.eos], 4),
    lambda: ImageSpan(V, 5),
    lambda: Chain(TextSpan(V, [V.infill(1)], 3), ImageSpan(V, 2), Fixed(V, [V.eos])),
]


@pytest.mark.parametrize("maker", MAKERS)
@given(random=st.randoms(use_true_random=False))
def test_any_way_through_ends_in_time_and_refuses_the_rest(maker: Callable[[], Constraint], random: Any) -> None:
    constraint = maker()
    steps = 0
    while not constraint.done:
        allowed = allowed_ids(constraint)
        with pytest.raises(MarkupError, match="may not stand"):
            constraint.push(random.choice(sorted(set(range(-1, V.size + 1)) - set(allowed))))
        constraint.push(random.choice(allowed))
        steps += 1
    assert steps <= constraint.max_steps
    with pytest.raises(MarkupError, match="behind a complete"):
        constraint.push(TEXT[0])


@pytest.mark.parametrize(
    "maker",
    [
        lambda: TextSpan(V, [], 3),
        lambda: TextSpan(V, [V.end], 0),
        lambda: ImageSpan(V, 0),
        lambda: Fixed(V, []),
        lambda: Chain(),
    ],
)
def test_constraints_of_nothing(maker: Callable[[], Constraint]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        maker()
