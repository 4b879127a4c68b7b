"""Metadata filter: which documents of a memory a search may find, said in conditions on what is known about them.

>>> licensed = where(["license=CC0", "width>=512"])
>>> licensed(Facts("a", {"license": "CC0", "width": 640}, frozenset({"image"}), ""))
True
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from racm3.document import Modality
from racm3.errors import InputError

__all__ = ["Facts", "Where", "where"]


@dataclass(frozen=True)
class Facts:
    """What is known about a document without decoding it."""

    id: str
    metadata: dict[str, Any]
    modalities: frozenset[Modality]
    origin: str
    text: str | None = None


Where = Callable[[Facts], bool]

CONDITION = re.compile(r"(.+?)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def where(conditions: Sequence[str]) -> Where:
    """All of ``conditions``, each KEY=VALUE on the metadata, or != < <= > >=; a.b is the key b inside of a.

    A VALUE that reads as JSON (a number, true, null...) is compared as such, and else as text; a key that is missing is
    null. Values of another kind than VALUE are neither equal nor less nor greater. Raises InputError for anything else.
    """
    tests = [_test(condition) for condition in conditions]
    return lambda facts: all(test(facts.metadata) for test in tests)


def _test(condition: str) -> Callable[[dict[str, Any]], bool]:
    parsed = CONDITION.fullmatch(condition)
    if parsed is None:
        raise InputError(f"{condition!r} is no condition; write KEY=VALUE, or != < <= > >= instead of =")
    path, sign, text = parsed[1].strip().split("."), parsed[2], parsed[3].strip()
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = text

    def test(metadata: dict[str, Any]) -> bool:
        value: Any = metadata
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        same_kind = _kind(value) == _kind(wanted)
        if sign in ORDERS:
            return same_kind and isinstance(value, float | int | str) and ORDERS[sign](value, wanted)
        return (same_kind and value == wanted) == (sign == "=")

    return test


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
