"""What is chosen by name: registered, imported, taken and unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest

from racm3.errors import ConfigError
from racm3.util.registry import Registry


@pytest.fixture
def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour")
    registry.register("red")(1)
    registry.register("green")(2)
    return registry


def test_what_is_registered_is_found_in_order(colours: Registry[int]) -> None:
    assert colours.names() == ("red", "green")
    assert colours.get("green") == 2


def test_an_unknown_name_names_the_nearest(colours: Registry[int]) -> None:
    with pytest.raises(ConfigError, match="colour.*'gren'.*green"):
        colours.get("gren")


@pytest.mark.parametrize("name", ["red", "a:b"])
def test_a_name_is_taken_once_and_has_no_colon(colours: Registry[int], name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        colours.register(name)


def test_a_name_with_a_colon_is_imported(
    colours: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "paint.py").write_text("BLUE = 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert colours.get("paint:BLUE") == 3
    for wrong in ("paint:PINK", "no_such_module:X", "paint:", ":X"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            colours.get(wrong)
