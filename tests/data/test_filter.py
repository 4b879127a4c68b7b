from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from racm3 import cli
from racm3.data import filter as module
from racm3.data import read, recognise
from racm3.data.filter import Rules, filter_shards
from racm3.document import Document
from racm3.errors import ConfigError, SourceError
from tests.data.conftest import PNG, picture, tar

RULES = Rules(min_side_px=5, max_aspect=2, min_caption_chars=3, max_caption_chars=9, max_watermark=0.5)
WRONG = {
    "small": (picture(0, 4, 6).png(), b"a fox", {}),
    "long": (picture(0, 20, 6).png(), b"a fox", {}),
    "terse": (PNG, b"a", {}),
    "wordy": (PNG, b"a fox in the snow", {}),
    "marked": (PNG, b"a fox", {"pwatermark": 0.7}),
    "broken": (PNG[:-30], b"a fox", {}),
    "silent": (PNG, b" ", {}),
}


def shards(folder: Path) -> Path:
    """Two shards of a fine pair, each of the others, and a pair that needs no caption file."""
    for name in ("0", "1"):
        members: dict[str, bytes] = {
            "fine.jpg": PNG,
            "fine.txt": b"a fox",
            "fine.json": b'{"pwatermark": 0.2, "n": NaN}',
        }
        for key, (image, text, record) in WRONG.items():
            members |= {f"{key}.png": image, f"{key}.txt": text, f"{key}.json": json.dumps(record).encode()}
        folder.mkdir(exist_ok=True)
        tar(folder / f"{name}.tar", members | {"last.png": PNG, "last.json": b'{"caption": "an owl"}'})
    return folder


def run(folder: Path, out: Path, rules: Rules = RULES, score: module.Score | None = None) -> Counter[str]:
    return sum(filter_shards(recognise(folder), out, rules, score), Counter())


def test_what_fulfils_the_rules_is_kept_as_it_was(tmp_path: Path) -> None:
    data, out = shards(tmp_path / "data"), tmp_path / "out"
    counts = run(data, out)
    assert counts.pop("kept") == 4
    assert counts.pop("caption not of 3 to 9 characters") == 4
    assert sorted(counts.values()) == [2] * (len(WRONG) - 2)
    kept = {item.id: item for item in read(data) if item.id.endswith(("fine", "last"))}
    assert {item.id: item.document for item in read(out)} == {i: item.document for i, item in kept.items()}
    assert [item.metadata for item in read(out)] == [{"pwatermark": 0.2, "n": None}, {"caption": "an owl"}] * 2


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = shards(tmp_path / "data"), tmp_path / "out"
    first = run(data, out)
    (out / "1_filter.json").unlink()  # as if it had been killed before
    (out / "1.tar").write_bytes(b"half")
    read_again: list[Path] = []
    samples = module.samples
    monkeypatch.setattr(module, "samples", lambda shard: (read_again.append(shard), samples(shard))[1])
    assert run(data, out) == first
    assert read_again == [data / "1.tar"]
    assert len(list(read(out, strict=True))) == 4
    with pytest.raises(SourceError, match="was filtered by other rules"):
        run(data, out, replace(RULES, max_watermark=0.6))


def test_scores_are_written_and_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 1)

    def score(pairs: Sequence[Document]) -> np.ndarray:
        return np.array([0.25 if pair.text == "a fox" else 0.31 for pair in pairs], np.float32)

    data = shards(tmp_path / "data")
    run(data, tmp_path / "all", RULES, score)
    assert [item.metadata["clip_score"] for item in read(tmp_path / "all")] == [0.25, 0.31] * 2
    counts = run(data, tmp_path / "best", replace(RULES, min_clip_score=0.3), score)
    assert counts["CLIP score under 0.3"] == counts["kept"] == 2
    assert [item.document.text for item in read(tmp_path / "best")] == ["an owl"] * 2


def test_a_damaged_shard_gives_what_comes_before(tmp_path: Path) -> None:
    data = shards(tmp_path / "data")
    (data / "0.tar").write_bytes((data / "0.tar").read_bytes()[:2048])
    (data / "1.tar").write_bytes(b"")
    assert run(data, tmp_path / "out") == Counter({"the rest of a damaged shard": 2})
    assert list(read(tmp_path / "out", strict=True)) == []


def test_what_cannot_be_filtered(tmp_path: Path) -> None:
    data = shards(tmp_path / "data")
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(SourceError, match="only WebDataset shards are filtered"):
        run(tmp_path / "a.png", tmp_path / "out")
    with pytest.raises(SourceError, match="give another folder"):
        run(data, data)
    with pytest.raises(ConfigError, match="needs an encoder"):
        run(data, tmp_path / "out", replace(RULES, min_clip_score=0.3))
    for wrong in ({"min_side_px": 0}, {"max_aspect": 0.5}, {"max_caption_chars": 1}):
        with pytest.raises(ConfigError):
            Rules(**wrong)


def test_the_command_says_what_was_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shards(tmp_path / "data")
    settings = ["--set", "min_side_px=5", "max_aspect=2", "min_caption_chars=3", "max_caption_chars=9"]
    assert cli.main(["data", "filter", str(data), "--out", str(tmp_path / "out"), *settings]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["6", "kept"]  # the watermark of 0.7 is under the usual limit
    assert ["2", "shorter side under 5 px"] in lines
    assert len(list(read(tmp_path / "out"))) == 6
