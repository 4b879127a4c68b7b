from __future__ import annotations

from typing import Any

import pytest

from racm3.errors import InputError
from racm3.memory.metadata_filter import Facts, where

METADATA: dict[str, Any] = {
    "license": "CC0",
    "width": 640,
    "score": 0.5,
    "safe": True,
    "author": {"name": "a=b"},
    "x": None,
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("license=CC0", True),
        ("license=BY", False),
        ("license!=BY", True),
        ("license!=CC0", False),
        ("width=640", True),
        ("width=640.0", True),
        ("width>=640", True),
        ("width>640", False),
        ("width < 641", True),
        ("score<=0.5", True),
        ("license>CC", True),
        ("safe=true", True),
        ("safe=1", False),  # another kind
        ("width=CC0", False),
        ("width<CC0", False),
        ("author.name=a=b", True),
        ("author.name.deeper=1", False),
        ("author>1", False),
        ("x=null", True),
        ("missing=null", True),
        ("missing=1", False),
        ("missing!=1", True),
        ("missing<1", False),
        ("x<null", False),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    facts = Facts("id", METADATA, frozenset({"text"}), "")
    assert where([condition])(facts) is holds
    assert where([condition, "license=CC0"])(facts) is holds
    assert where([condition, "license=BY"])(facts) is False


@pytest.mark.parametrize("condition", ["license", "=CC0", ""])
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(InputError, match="is no condition; write KEY=VALUE"):
        where([condition])
