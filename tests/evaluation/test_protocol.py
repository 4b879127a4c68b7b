from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from racm3 import cli
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
    check_comparable(ONE, other, ("a.json", "b.json"), may_differ=("n", "drawing.k", "resize"))
    with pytest.raises(InputError, match="drawing.k: 2 and 0"):
        check_comparable(ONE, other, ("a.json", "b.json"), may_differ=("n", "drawing.kk", "draw", "resize"))


def test_two_files_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"entities": "novel", "model": "vanilla", "fd": 12.5, "n": 100, "interval": {"fd": [12, 13]}}
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps({"rows": [row], "drawing": {"fid": 16.0, "n": 3}, "protocol": ONE}))
    other.write_text(json.dumps({"drawing": {"fid": 29.0, "n": 3}, "protocol": ONE | {"drawing": {"k": 0, "seed": 0}}}))
    assert cli.main(["evaluate", "compare", str(one), str(other)]) == 2
    assert "drawing.k: 2 and 0" in capsys.readouterr().err
    assert cli.main(["evaluate", "compare", str(one), str(other), "--but", "drawing.k"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines == [["12.5", "-", "novel, vanilla.fd"], ["16", "29", "drawing.fid"]]
    other.write_text("[]")
    assert cli.main(["evaluate", "compare", str(one), str(other)]) == 2
    assert "is no result file" in capsys.readouterr().err


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
