from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.errors import ConfigError
from racm3.training.encoder_recipe import EncoderRun
from racm3.util.config import from_dict, load, override, save, to_dict


@dataclass(frozen=True)
class Model:
    width: int
    levels: tuple[int, ...] = (8, 5, 5, 5)
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width is at least 1, but {self.width} was given")


@dataclass(frozen=True)
class Run:
    model: Model
    rate: float = 1e-3
    name: str = "first"
    decay: Literal["linear", "cosine"] = "linear"
    resume: bool = False
    limit: int | None = None
    note: str | None = None
    folder: Path = Path("runs")
    teacher: Model | None = None
    weights: dict[str, float] = field(default_factory=dict)


RUN = Run(Model(192))

models = st.builds(
    Model,
    width=st.integers(1),
    levels=st.lists(st.integers()).map(tuple),
    betas=st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1)),
)
runs = st.builds(
    Run,
    model=models,
    rate=st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(),
    decay=st.sampled_from(["linear", "cosine"]),
    resume=st.booleans(),
    limit=st.none() | st.integers(),
    note=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    folder=st.just(Path("runs/a b")),
    teacher=st.none() | models,
    weights=st.dictionaries(st.text(), st.floats(0, 1)),
)


def nested(path: str, value: Any) -> dict[str, Any]:
    """RUN as a dict, with one value replaced."""
    given = to_dict(RUN)
    *above, last = path.split(".")
    table = given
    for key in above:
        table = table[key]
    table[last] = value
    return given


# Dict and file


@given(run=runs)
def test_dict_and_back(run: Run) -> None:
    assert from_dict(Run, to_dict(run)) == run


@given(run=runs)
def test_file_and_back(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "new" / "run.json"
    save(run, path)
    assert load(Run, path) == run


def test_toml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "toml"\nrate = 1\n[model]\nwidth = 64\nlevels = [4, 4]\n')
    assert load(Run, path) == Run(Model(64, (4, 4)), rate=1.0, name="toml")


def test_absent_keys_take_their_defaults() -> None:
    assert from_dict(Run, {"model": {"width": 192}}) == RUN


def test_a_whole_number_for_a_float_becomes_a_float() -> None:
    assert type(from_dict(Run, nested("rate", 1)).rate) is float


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rte", 1.0, "unknown key 'rte'; did you mean 'rate'?"),
        ("model.widht", 3, "unknown key 'model.widht'; did you mean 'model.width'?"),
        ("teacher", {"width": 3, "depth": 3}, "unknown key 'teacher.depth'"),
        ("model", {}, "model.width is missing; give a whole number"),
        ("model", 3, "model is a table with the keys width, levels, betas, but 3 (int) was given"),
        ("model.width", True, "model.width is a whole number, but True (bool) was given"),
        ("model.width", 3.0, "model.width is a whole number, but 3.0 (float) was given"),
        ("model.width", "3", "model.width is a whole number, but '3' (str) was given"),
        ("model.width", 0, "width is at least 1"),
        ("model.levels", [8, "5"], "model.levels.1 is a whole number, but '5' (str) was given"),
        ("model.levels", 8, "model.levels is a list, each a whole number, but 8 (int) was given"),
        ("model.betas", [0.9], "model.betas is a list of 2 (a finite number, a finite number), but [0.9]"),
        ("rate", float("nan"), "rate is a finite number, but nan (float) was given"),
        ("rate", float("inf"), "rate is a finite number"),
        ("rate", 10**400, "rate is a finite number"),
        ("rate", True, "rate is a finite number, but True (bool) was given"),
        ("name", None, "name is a text, but None (NoneType) was given"),
        ("decay", "step", "decay is one of 'linear', 'cosine', but 'step' (str) was given"),
        ("resume", 1, "resume is true or false, but 1 (int) was given"),
        ("limit", 1.5, "limit is a whole number or null, but 1.5 (float) was given"),
        ("teacher", "tiny", "teacher is a table with the keys width, levels, betas or null"),
        ("folder", 3, "folder is a path, but 3 (int) was given"),
        ("weights", {"main": "much"}, "weights.main is a finite number, but 'much' (str) was given"),
        ("weights", [1.0], "weights is a table of names, each a finite number"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_dict(Run, nested(path, value))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("given", [[], None, "run", 3])
def test_what_is_not_a_table_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="a configuration is a table with the keys model, rate"):
        from_dict(Run, given)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", '{"model": {"width": 3, "width": 4}}', "the key 'width' is given twice"),
        ("run.json", "{", "cannot be read as a configuration"),
        ("run.json", "[]", "a configuration is a table"),
        ("run.json", '{"model": {"wdth": 3}}', "did you mean 'model.width'"),
        ("run.json", '{"model": {"width": 3}, "rate": NaN}', "rate is a finite number"),
        ("run.toml", "rate = ", "cannot be read as a configuration"),
        ("run.toml", "rate = 1\nrate = 2", "cannot be read as a configuration"),
        ("run.yaml", "rate: 1", "is a .json or .toml file"),
    ],
)
def test_a_bad_file_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load(Run, path)
    assert name in str(raised.value)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*run\.json"):
        load(Run, tmp_path / "run.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a configuration"):
        load(Run, tmp_path / "binary.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read as a configuration"):
        load(Run, tmp_path / "folder.json")


def test_only_json_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"written as \.json"):
        save(RUN, tmp_path / "run.toml")


# Overrides


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("model.width=3", Run(Model(3))),
        ("model.levels=[4,4]", Run(Model(192, levels=(4, 4)))),
        ("model.levels=[]", Run(Model(192, levels=()))),
        ('model={"width": 3}', Run(Model(3))),
        ("rate=1e-4", Run(Model(192), rate=1e-4)),
        ("rate=2", Run(Model(192), rate=2.0)),
        ("name=fox", Run(Model(192), name="fox")),
        ("name=3", Run(Model(192), name="3")),
        ("name=null", Run(Model(192), name="null")),
        ('name="3"', Run(Model(192), name="3")),
        ("name=a=b", Run(Model(192), name="a=b")),
        ("name=", Run(Model(192), name="")),
        ("note=null", Run(Model(192), note=None)),
        ("note=a fox", Run(Model(192), note="a fox")),
        ("decay=cosine", Run(Model(192), decay="cosine")),
        ("resume=true", Run(Model(192), resume=True)),
        ("limit=5", Run(Model(192), limit=5)),
        ("folder=a/b", Run(Model(192), folder=Path("a/b"))),
        (" rate = 0.5 ", Run(Model(192), rate=0.5)),
    ],
)
def test_an_override_replaces_one_value(assignment: str, expected: Run) -> None:
    assert override(RUN, [assignment]) == expected


def test_later_overrides_win_and_the_given_configuration_stays() -> None:
    assert override(RUN, ["model.width=3", "model.width=4", "rate=1"]) == Run(Model(4), rate=1.0)
    assert Run(Model(192)) == RUN


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rate", "an override is key=value, such as model.width=192, but 'rate' was given"),
        ("=3", "an override is key=value"),
        ("modl.width=3", "unknown key 'modl'; did you mean 'model'?"),
        ("model.wdth=3", "unknown key 'model.wdth'; did you mean 'model.width'?"),
        ("model.=3", "unknown key 'model.'"),
        ("rate.x=3", r"rate.x cannot be set: rate is 0.001, with no keys below it"),
        ("teacher.width=3", "teacher.width cannot be set: teacher is None"),
        ("model.width=wide", r"model.width is a whole number, but 'wide' \(str\) was given"),
        ("model.width=1.5", r"model.width is a whole number, but 1.5 \(float\) was given"),
        ("model.width=0", "width is at least 1"),
        ("resume=True", r"resume is true or false, but 'True' \(str\) was given"),
        ("rate=NaN", "rate is a finite number"),
        ('model={"width":1,"width":2}', "the key 'width' is given twice"),
    ],
)
def test_a_bad_override_says_why(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RUN, [assignment])


@dataclass(frozen=True)
class Ordered:
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError("low is above high")


@dataclass(frozen=True)
class Outer:
    inner: Ordered = Ordered()
    share: float = 0.5


@pytest.mark.parametrize("order", [1, -1])
def test_values_are_checked_when_all_are_set(order: int) -> None:
    assert override(Ordered(), ["low=5", "high=9"][::order]) == Ordered(5, 9)
    assert override(Outer(), ["inner.low=5", "inner.high=9"][::order]) == Outer(Ordered(5, 9))
    with pytest.raises(ConfigError, match="low is above high"):
        override(Outer(), ["inner.low=5", "inner.high=4"][::order])


def test_the_last_value_of_a_key_counts() -> None:
    assert override(Outer(), ["inner.low=2", 'inner={"low": 3, "high": 4}', "inner.high=5"]).inner == Ordered(3, 5)
    assert override(Ordered(), ["high=3", "high=4"]).high == 4


def test_a_number_may_begin_or_end_with_its_point() -> None:
    assert override(Outer(), ["share=.95"]).share == 0.95
    assert override(Outer(), ["share=1."]).share == 1.0


def test_a_key_that_was_renamed_is_named(tmp_path: Path) -> None:
    """By whoever still gives the old one: on the command line, or in the run.json of an earlier version."""
    with pytest.raises(ConfigError, match="'start' is called 'init_from' now"):
        override(EncoderRun(), ["start=scenes"])
    settings = {"start": None, "batch_size": 8}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    with pytest.raises(ConfigError, match="run.json: the key 'start' is called 'init_from' now"):
        load(EncoderRun, tmp_path / "run.json")
    with pytest.raises(ConfigError, match="unknown key 'start'"):
        override(RUN, ["start=scenes"])
