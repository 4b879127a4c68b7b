from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from racm3.errors import InputError
from racm3.evaluation.protocol import about_code, check_comparable, digest_of_ids
from racm3.pipeline import RACM3

ONE: dict[str, Any] = {"n": 100, "drawing": {"k": 2, "seed": 0}, "weights": {"generator": "a"}, "commit": "x"}


def test_other_weights_compare() -> None:
    check_comparable(ONE, ONE | {"weights": {"generator": "b"}, "commit": "y"}, ("a.json", "b.json"))


def test_every_field_that_differs_is_named() -> None:
    other = ONE | {"n": 50, "drawing": {"k": 0, "seed": 0}, "resize": "none"}
    with pytest.raises(InputError) as error:
        check_comparable(ONE, other, ("a.json", "b.json"))
    for words in ("a.json and b.json", "drawing.k: 2 and 0", "n: 100 and 50", "resize: missing and none"):
        assert words in str(error.value)
    assert "seed" not in str(error.value)
    check_comparable(ONE, other, ("a.json", "b.json"), may_differ=("n", "drawing", "resize"))


def test_the_commit_is_that_of_this_checkout() -> None:
    if (Path(__file__).parents[2] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{12}\+?", about_code()["commit"])


def test_order_of_ids_counts() -> None:
    assert digest_of_ids(["a", "b"]) != digest_of_ids(["b", "a"])


def test_a_memory_is_known_by_its_documents(retrieval: RACM3) -> None:
    memory = retrieval.memory
    assert memory is not None
    before, items = memory.fingerprint, list(islice(memory.items(), 2))
    memory.remove([item.id for item in items])
    assert memory.fingerprint != before
    memory.add(items[::-1], retrieval.encoder.embed([item.document for item in items[::-1]]))
    assert memory.fingerprint == before
