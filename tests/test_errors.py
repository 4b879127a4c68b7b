from __future__ import annotations

import inspect
import re

import pytest

from racm3 import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = {}
    branch = [""]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    (?P<indent>[│├└─ ]*)(?P<name>\w+Error)\b", line):
            depth = len(match["indent"]) // 4
            branch[depth:] = [match["name"]]
            drawn[match["name"]] = branch[depth - 1] if depth else "Exception"
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in classes}


def test_all_names_every_error() -> None:
    defined = {name for name, kind in vars(errors).items() if getattr(kind, "__module__", "") == errors.__name__}
    assert set(errors.__all__) == defined


@pytest.mark.parametrize("kind", [errors.DocumentError, errors.ImageError, errors.ConfigError, errors.MarkupError])
def test_a_wrong_value_is_also_a_value_error(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError)
    assert issubclass(kind, errors.RACM3Error)


def test_unknown_names_the_nearest_choice_and_all_of_them() -> None:
    message = errors.unknown("preset", "tini", ["tiny", "base"])
    assert message == "unknown preset 'tini'; did you mean 'tiny'? Allowed: base, tiny."


def test_unknown_does_not_guess_wildly() -> None:
    assert "did you mean" not in errors.unknown("preset", "zzz", ["tiny", "base"])
