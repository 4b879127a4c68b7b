"""Strict dataclasses <-> file <-> dotted override. Knows how to read a configuration, never what is in one.

A configuration is a frozen dataclass whose fields are bool, int, float, str, Path, Literal, tuple, dict, another
configuration, or one of these or None. An unknown key, a missing one or a value of another type is a ConfigError
that names the key by its dotted path.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Run:
    ...     steps: int
    ...     rate: float = 1e-3
    >>> override(from_dict(Run, {"steps": 10}), ["rate=0.5"])
    Run(steps=10, rate=0.5)
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tomllib
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from racm3.errors import ConfigError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

RENAMED = {"start": "init_from", "grounding": "context_aware"}
"""Keys that had another name: whoever gives the old one is told the new one."""


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """The configuration as plain JSON types: dict, list, str, int, float, bool, None."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def dotted(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a table of tables by their dotted names.

    >>> dotted({"loop": {"steps": 10, "seed": 0}, "alpha": 0.1})
    {'loop.steps': 10, 'loop.seed': 0, 'alpha': 0.1}
    """
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= dotted(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return values


def from_dict(kind: type[C], given: Mapping[str, Any]) -> C:
    """The configuration of class ``kind`` with the given values; exact inverse of ``to_dict``.

    Raises ConfigError for a key that ``kind`` does not have, one without a default that is missing, and a value of
    the wrong type.
    """
    return typing.cast(C, _build(kind, given, ()))


def load(kind: type[C], path: str | Path) -> C:
    """Read a configuration from a ``.json`` or ``.toml`` file, or from the ``settings`` in one, such as a run.json.

    Raises ConfigError if the file is missing, malformed, holds a key twice, or does not fit ``kind``.
    """
    path = Path(path)
    if path.suffix not in (".json", ".toml"):
        raise ConfigError(f"a configuration is a .json or .toml file, but {path} was given")
    try:
        text = path.read_text(encoding="utf-8")
        given = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text, object_pairs_hook=_without_doubles)
        return from_dict(kind, given["settings"] if isinstance(given, dict) and "settings" in given else given)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}; check the path") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error


def save(config: DataclassInstance, path: str | Path) -> None:
    """Write the configuration as a ``.json`` file that ``load`` reads back unchanged; its folder is made."""
    path = Path(path)
    if path.suffix != ".json":
        raise ConfigError(f"a configuration is written as .json, but {path} was given")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def override(config: C, assignments: Iterable[str]) -> C:
    """The configuration with some values replaced, each given as ``a.b=3``; it is checked when all are.

    The value is JSON where that fits the field's type, and the bare text otherwise: ``name=fox``, ``levels=[8,5]``,
    ``limit=null``. Raises ConfigError for an unknown key or a value of the wrong type.
    """
    given = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override is key=value, such as model.width=192, but {assignment!r} was given")
        given.append((key.strip().split("."), text.strip()))
    return _replaced(config, (), given)


def _replaced(config: C, path: tuple[str, ...], given: Sequence[tuple[list[str], str]]) -> C:
    """``config``, which stands at ``path``, with the values at the keys below it read from texts, later ones last."""
    field_types, values = _field_types(type(config)), dict[str, Any]()
    below: dict[str, list[tuple[list[str], str]]] = {}
    for (key, *rest), text in given:
        here = (*path, key)
        if key not in field_types:
            raise ConfigError(_unknown(here, field_types))
        if rest:
            below.setdefault(key, []).append((rest, text))
        else:
            values[key] = _parse(field_types[key], text, here)
            below.pop(key, None)
    for key, inner in below.items():
        value, above = values.get(key, getattr(config, key)), ".".join((*path, key))
        if not dataclasses.is_dataclass(value):
            whole = ".".join((above, *inner[0][0]))
            raise ConfigError(f"{whole} cannot be set: {above} is {value!r}, with no keys below it")
        values[key] = _replaced(value, (*path, key), inner)  # type: ignore[type-var]
    return dataclasses.replace(config, **values) if values else config


def _parse(expected: Any, text: str, path: tuple[str, ...]) -> Any:
    """The value that ``text`` stands for, as JSON where that gives the expected type, else as it is."""
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError:
        value = _number(text)
    try:
        return _build(expected, value, path)
    except ConfigError as error:
        try:
            return _build(expected, text, path)
        except ConfigError:
            raise error from None


def _number(text: str) -> float | str:
    """A number as people write it and JSON does not, such as .95; else the text."""
    try:
        return float(text)
    except ValueError:
        return text


def _build(expected: Any, value: Any, path: tuple[str, ...]) -> Any:
    """``value``, made of plain JSON types, as the type ``expected``. Raises ConfigError, naming ``path``."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return _build_one_of(arguments, value, path)
    if dataclasses.is_dataclass(expected) and isinstance(value, Mapping):
        return _build_dataclass(typing.cast("type[DataclassInstance]", expected), value, path)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_build(kind, v, (*path, str(i))) for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        return {key: _build(arguments[1], v, (*path, key)) for key, v in value.items()}
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if expected is Path and isinstance(value, (str, Path)):
        return Path(value)
    if expected is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if expected in (bool, int, str, types.NoneType) and type(value) is expected:
        return value
    raise ConfigError(_misfit(_described(expected), value, path))


def _build_one_of(kinds: tuple[Any, ...], value: Any, path: tuple[str, ...]) -> Any:
    """``value`` as the first of ``kinds`` that it fits; a dict given for a configuration gets that one's message."""
    for kind in kinds:
        try:
            return _build(kind, value, path)
        except ConfigError:
            if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
                raise
    raise ConfigError(_misfit(" or ".join(_described(kind) for kind in kinds), value, path))


def _misfit(described: str, value: Any, path: tuple[str, ...]) -> str:
    return f"{'.'.join(path) or 'a configuration'} is {described}, but {value!r} ({type(value).__name__}) was given"


def _build_dataclass(kind: type[DataclassInstance], given: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    field_types = _field_types(kind)
    for key in given:
        if key not in field_types:
            raise ConfigError(_unknown((*path, key), field_types))
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in given and not has_default:
            raise ConfigError(f"{'.'.join((*path, field.name))} is missing; give {_described(field_types[field.name])}")
    return kind(**{key: _build(field_types[key], value, (*path, key)) for key, value in given.items()})


def _unknown(path: tuple[str, ...], known: Collection[str]) -> str:
    """The message for a key that is none of the ``known`` ones at its place."""
    *above, key = path
    new = RENAMED.get(key, key)
    if new in known:
        return f"the key {'.'.join(path)!r} is called {'.'.join((*above, new))!r} now; give that"
    return unknown("key", ".".join(path), (".".join((*above, name)) for name in known))


def _field_types(kind: type[DataclassInstance]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _described(expected: Any) -> str:
    """A type in words that fit after "is" or "give"."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(kind) for kind in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(_described(kind) for kind in arguments)})"
    if origin is tuple:
        return f"a list, each {_described(arguments[0])}"
    if origin is dict:
        return f"a table of names, each {_described(arguments[1])}"
    if dataclasses.is_dataclass(expected):
        return f"a table with the keys {', '.join(field.name for field in dataclasses.fields(expected))}"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", Path: "a path"}
    return words.get(expected, "null" if expected is types.NoneType else str(expected))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's pairs as a dict. Raises ConfigError for a key that is given twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"the key {key!r} is given twice; keep one")
        result[key] = value
    return result
