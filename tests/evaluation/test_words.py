from __future__ import annotations

import pytest

from racm3.evaluation.words import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, riding a wave.", "a man riding a wave"),
        ("The dog's toy doesn't bounce", "the dog 's toy does n't bounce"),
        ("I cannot; they're gone!", "i can not they 're gone"),
        ("a half-eaten (large) pizza -- hot", "a half-eaten large pizza hot"),
        ("2-story house, 3rd street at 10:30, 1,000 people", "2-story house 3rd street at 10:30 1,000 people"),
        ("the U.S. flag", "the u.s. flag"),
        ("dogs' beds \u201cso\u201d it\u2019s", "dogs beds so it 's"),
        ("...", ""),
    ],
)
def test_words_of_a_caption(text: str, expected: str) -> None:
    assert words(text) == expected.split()
