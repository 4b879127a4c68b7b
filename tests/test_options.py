"""Options of sampling and completion: declared once, offered alike by Python, by --set and by the API."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from racm3.errors import ConfigError
from racm3.generator.sampling import FILTERS, Sampling, filter_logits
from racm3.serve.answers import Used
from racm3.serve.api import settings_of
from racm3.serve.shapes import Asked, Options
from racm3.settings import Settings
from racm3.util.config import override
from racm3.util.options import Option, options_of

EVERY = {name: (value, about) for name, value, about in options_of(Settings())}


def another(value: Any, about: Option) -> Any:
    """Another value that is allowed."""
    if isinstance(value, dict):
        return {}
    for candidate in (1, 2, 0.5, 0.25):
        if candidate != value and about.allows(candidate) and (isinstance(candidate, int) or isinstance(value, float)):
            return candidate
    raise AssertionError("no other value")


def nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", EVERY)
def test_python_the_command_line_and_the_api_set_the_same(name: str) -> None:
    value = another(*EVERY[name])
    *modality, key = name.split(".")
    if modality:
        inner = dataclasses.replace(getattr(Settings(), modality[0]), **{key: value})
        expected = dataclasses.replace(Settings(), **{modality[0]: inner})
    else:
        expected = dataclasses.replace(Settings(), **{key: value})
    assert override(Settings(), [f"{name}={json.dumps(value)}"]) == expected
    assert settings_of(Options.model_validate(nested(name, value))) == expected


def schema(shape: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted name, schema) of every field of a shape."""
    whole = shape.model_json_schema()

    def below(part: dict[str, Any], above: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, one in part["properties"].items():
            if "$ref" in one:
                yield from below(whole["$defs"][one["$ref"].rpartition("/")[2]], f"{above}{name}.")
            else:
                yield f"{above}{name}", one

    return below(whole, "")


def test_the_three_offer_the_same_options_with_the_same_words() -> None:
    asked, used = dict(schema(Options)), dict(schema(Used))
    own = set(Asked.model_fields)
    assert asked.keys() - own == used.keys() - own == EVERY.keys()
    assert {"context_aware", "guidance", "temperature", "retrieve"} == used.keys() & own
    for name, (value, about) in EVERY.items():
        assert asked[name]["description"] == about.help
        assert asked[name].get("default") == value or name == "seed"
    for kind in (Settings, Sampling):
        for field in dataclasses.fields(kind):
            assert f"{field.name}: {field.metadata['option'].help}" in (kind.__doc__ or "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image.grounding": 2}, "the key 'image.grounding' is called 'image.context_aware' now; give that"),
        ({"image.top_p": 1.5}, "sampling.top_p is 1.5; it must be above 0 and at most 1"),
        ({"text.top_k": 0}, "sampling.top_k is 0; it must be 1 or above, or None"),
        ({"k": -1}, "settings.k is -1; it must be 0 or above"),
    ],
)
def test_what_is_not_allowed_is_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Settings(), [f"{name}={value}" for name, value in given.items()])


def test_numbers_as_people_write_them() -> None:
    assert override(Settings(), ["image.top_p=.95", "text.temperature=1."]) == Settings(
        image=dataclasses.replace(Settings().image, top_p=0.95),
        text=dataclasses.replace(Settings().text, temperature=1.0),
    )


def test_one_for_a_modality_goes_before_one_for_all() -> None:
    options = Options.model_validate({"context_aware": 2.0, "temperature": 0.25, "text": {"context_aware": 3.0}})
    settings = settings_of(options)
    assert (settings.image.context_aware, settings.text.context_aware) == (2.0, 3.0)
    assert (settings.image.temperature, settings.text.temperature) == (0.25, 0.0)
    assert settings_of(options, temperature_of="text").text.temperature == 0.25


def test_a_filter_of_another_package_works_in_all_three(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function and one registration."""
    (tmp_path / "no_lower_ids.py").write_text(
        "import torch\n"
        "from racm3.generator.sampling import FILTERS\n\n"
        "@FILTERS.register('first_id')\n"
        "def first_id(logits, value):\n"
        "    ids = torch.arange(logits.shape[-1])\n"
        "    return logits.masked_fill(ids < value[:, None], -torch.inf)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FILTERS, "_known", dict(FILTERS._known))
    with pytest.raises(ConfigError, match="unknown logit filter 'first_id'"):
        Sampling(filters={"first_id": 3.0})
    text = 'image.filters={"no_lower_ids:first_id": 3}'  # imported because it is named
    assert override(Settings(), [text]).image.filters == {"no_lower_ids:first_id": 3.0}
    python = Settings(image=dataclasses.replace(Settings().image, filters={"first_id": 3.0}))
    assert override(Settings(), ['image.filters={"first_id": 3}']) == python
    assert settings_of(Options.model_validate({"image": {"filters": {"first_id": 3}}})) == python
    with pytest.raises(ValueError, match="String should match pattern"):  # a request imports nothing
        Options.model_validate({"image": {"filters": {"no_lower_ids:first_id": 3}}})

    def filtered(*samplings: Sampling) -> Tensor:
        logits, allowed = torch.zeros(len(samplings), 5), torch.ones(len(samplings), 5, dtype=torch.bool)
        return filter_logits(logits, None, None, allowed, samplings).isfinite()

    found = filtered(python.image, Sampling(), dataclasses.replace(python.image, filters={"first_id": 1.0}))
    assert found.sum(1).tolist() == [2, 5, 4]
