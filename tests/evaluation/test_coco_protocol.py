"""The protocol on a small set in the layout of MS-COCO, tiny random models and a tiny network of features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from racm3 import cli
from racm3.data import Item
from racm3.document import Document, Image
from racm3.errors import InputError, SourceError
from racm3.evaluation.coco_protocol import CocoProtocol, chosen, read_karpathy
from racm3.evaluation.frechet import Moments, frechet_distance
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.retriever.encoder import Encoder

SIZES = ["drawn=5", "captioned=3", "drawing.samples=1", "captioning.samples=1", "captioning.max_text_tokens=4"]


class Means(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((2, 3))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of train2014, eight of val2014: of those four restval, one val, three test."""
    folder, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    images = []
    splits = ["train"] * 4 + ["restval"] * 4 + ["val"] + ["test"] * 3
    for number, split in enumerate(splits):
        part = "train2014" if split == "train" else "val2014"
        (folder / part).mkdir(exist_ok=True)
        name = f"COCO_{part}_{number:012}.jpg"
        pixels = np.repeat(rng.integers(0, 256, (1, 1, 3), dtype=np.uint8), 40 * 60, axis=0).reshape(40, 60, 3)
        Image(pixels).pil.save(folder / part / name)
        sentences = [{"raw": f"A fox, number {number}.", "tokens": []}, {"raw": f"fox {number} {split}", "tokens": []}]
        images.append({"cocoid": number, "filepath": part, "filename": name, "split": split, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    torch.jit.script(Means()).save(str(folder / "network.pt"))
    return folder


@pytest.fixture(scope="module")
def memory(coco: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, path = Encoder.from_pretrained(models / "encoder"), tmp_path_factory.mktemp("memory") / "m"
    made = Memory.create(path, encoder.fingerprint, encoder.dimension)
    known = read_karpathy(coco / "dataset_coco.json")[:4]
    items = [Item(one.id, Document.of(one.captions[0], one.image), {}, str(one.file)) for one in known]
    made.add(items, encoder.embed([item.document for item in items]))
    return path


def command(coco: Path, models: Path, memory: Path, out: Path, *more: str) -> list[str]:
    data, network = str(coco / "dataset_coco.json"), str(coco / "network.pt")
    where = ["--models", str(models), "--memory", str(memory), "--out", str(out), "--features", network]
    return ["evaluate", "coco", data, *where, "--set", *SIZES, *more]


def test_it_goes_on_and_ends_as_if_it_had_not_been_broken_off(
    coco: Path, models: Path, memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("racm3.evaluation.coco_protocol.AT_ONCE", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(command(coco, models, memory, whole)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    complete, calls = RACM3.complete, 0

    def failing(self: RACM3, documents: Sequence[Document], *rest: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return complete(self, documents, *rest, **named)

    monkeypatch.setattr(RACM3, "complete", failing)
    assert cli.main(command(coco, models, memory, broken)) == 130
    with open(broken / "drawn.jsonl", "a") as records:
        records.write('{"id": "torn')
    assert cli.main(command(coco, models, memory, broken)) == 0
    assert calls == 2 + 2 + 2  # one batch of drawings before, two after, and two of captions
    again = json.loads((broken / "result.json").read_text())
    assert {key: again[key] for key in ("drawing", "captioning")} == {k: result[k] for k in ("drawing", "captioning")}

    # What was drawn is scored against the pictures of the very captions: here by hand.
    drawn = [json.loads(line)["id"] for line in (whole / "drawn.jsonl").read_text().splitlines()]
    pictures = {one.id: one for one in read_karpathy(coco / "dataset_coco.json")}
    ours = np.stack([Image.open(whole / "drawn" / f"{id_}.png").resized(299).pixels.mean((0, 1)) for id_ in drawn])
    side = Image.open(whole / "drawn" / f"{drawn[0]}.png").pixels.shape[0]
    true = np.stack([pictures[id_].image.resized(side).resized(299).pixels.mean((0, 1)) for id_ in drawn])
    expected = frechet_distance(Moments.of(ours), Moments.of(true))
    assert result["drawing"]["retrieval"]["fid"] == pytest.approx(expected, rel=1e-3)
    assert all(pictures[id_].file.parent.name == "val2014" for id_ in drawn)
    assert set(result["drawing"]) == {"retrieval", "returned"}
    assert {"fid", "fd", "clip_score", "n"} <= set(result["drawing"]["returned"])
    assert 0 <= result["captioning"]["retrieval"]["cider_d"] <= 10
    assert result["captioning"]["retrieval"]["n"] == 3
    assert {"ids", "drawn", "resize", "extractor", "memory", "drawing", "commit", "weights"} <= set(result["protocol"])

    # Another protocol does not go on with these drawings.
    capsys.readouterr()
    assert cli.main(command(coco, models, memory, broken, "drawing.seed=1")) == 2
    assert "run.drawing.seed: 0 and 1" in capsys.readouterr().err


def test_what_is_examined_may_not_be_retrieved(
    coco: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder.from_pretrained(models / "encoder")
    leaking = Memory.create(tmp_path / "leaking", encoder.fingerprint, encoder.dimension)
    one = read_karpathy(coco / "dataset_coco.json")[-1]
    document = Document.of(one.captions[0], one.image)
    leaking.add([Item(one.id, document, {}, "")], encoder.embed([document]))
    assert cli.main(command(coco, models, tmp_path / "leaking", tmp_path / "out")) == 2
    assert "holds 1 of the pictures under examination, such as 11" in capsys.readouterr().err


def test_captions_are_drawn_by_seed(coco: Path) -> None:
    pictures = read_karpathy(coco / "dataset_coco.json")
    one, other = (chosen(pictures, CocoProtocol(drawn=6, captioned=3, seed=seed))[0] for seed in (0, 1))
    assert one == chosen(pictures, CocoProtocol(drawn=6, captioned=3))[0] != other
    assert len({picture.id for picture, _ in one}) == 6
    assert all(caption in picture.captions for picture, caption in one)


@pytest.mark.parametrize(("sizes", "words"), [((9, 3), "drawn is 9, but there are 8"), ((8, 4), "captioned is 4, but")])
def test_fewer_pictures_than_asked_for(coco: Path, sizes: tuple[int, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        chosen(read_karpathy(coco / "dataset_coco.json"), CocoProtocol(*sizes))


@pytest.mark.parametrize("text", ["[]", "{", '{"images": [{"cocoid": 1, "filepath": "..", "filename": "../x"}]}'])
def test_what_is_not_karpathys(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(SourceError, match="is not Karpathy's|leaves"):
        read_karpathy(tmp_path / "data.json")
