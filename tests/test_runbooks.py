"""The runbooks are executed: every racm3 command of a page, in its order, on tiny data in the layout that it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from racm3 import cli
from racm3.document import Image
from racm3.retriever.encoder import Encoder
from tests.data.conftest import tar
from tests.retriever.conftest import TOWER, bpe

PAGES = Path(__file__).parent.parent / "docs" / "runbooks"
COMMAND = re.compile(r"^(?:(?:srun )?torchrun .*?-m racm3\.cli|racm3) (.+)$")
SMALL_CODES = "model.image_size_px=32 model.encoder_width=8 model.encoder_layers=1 model.decoder_width=16"
SMALL_CLIP = "dimension=8 vision_width=32 vision_layers=1 text_width=32 text_layers=1 head_width=32 patch_px=8"
SMALL_SHAPE = "model.width=16 model.layers=1 model.heads=2 model.kv_heads=2 model.head_dim=8 model.mlp_width=16"
TINY = {
    "data filter": "min_side_px=16 min_clip_score=-1",
    "train image-tokenizer": f"{SMALL_CODES} model.decoder_layers=1 batch_size=4 loop.steps=2",
    "train encoder": f"{SMALL_CLIP} image_size_px=16 text_ids=270 batch_size=4 loop.steps=2",
    "train generator": f"{SMALL_SHAPE} compile=false text_ids=270 tokens_per_step=200 loop.steps=2",
    "evaluate coco": "drawn=2 captioned=2 drawing.samples=1 captioning.samples=1 captioning.max_text_tokens=4",
}


def commands(page: str) -> list[list[str]]:
    """The words of each racm3 command in the page's blocks of shell, also of those that torchrun starts."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [shlex.split(found.group(1)) for line in lines if (found := COMMAND.match(line))]


def tiny(words: list[str]) -> list[str]:
    """The same command with tiny settings after its own."""
    settings = TINY.get(" ".join(words[:2]), "").split()
    if not settings:
        return words
    return [*words, *settings] if "--set" in words else [*words, "--set", *settings]


def pictures(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [Image(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).png() for _ in range(count)]


class Means(nn.Module):
    """In the place of Inception."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((2, 3))


def laion(folder: Path) -> None:
    (folder / "laion").mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number, data in enumerate(pictures(5)):
            key = f"{shard:05}{number:04}"
            record = {"key": key, "pwatermark": 0.1 * number, "similarity": float("nan"), "caption": "x"}
            members |= {f"{key}.jpg": data, f"{key}.txt": f"fox number {number}".encode()}
            members |= {f"{key}.json": json.dumps(record).encode()}
        tar(folder / "laion" / f"{shard:05}.tar", members)
        (folder / "laion" / f"{shard:05}_stats.json").write_text("{}")
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    encoder = Encoder.new(bpe(), dimension=8, text={**TOWER, "max_position_embeddings": 16}, vision=vision)
    encoder.save_pretrained(folder / "models" / "encoder")


def coco(folder: Path) -> None:
    karpathy = []
    for split, first in (("train2017", 9), ("val2017", 139), ("train2014", 9), ("val2014", 42)):
        (folder / "coco" / split).mkdir(parents=True)
        images, annotations = [], []
        for number, data in enumerate(pictures(8), start=first):
            name = f"{number:012}.jpg" if split.endswith("2017") else f"COCO_{split}_{number:012}.jpg"
            (folder / "coco" / split / name).write_bytes(data)
            images.append({"id": number, "file_name": name, "license": 1})
            annotations += [{"image_id": number, "id": number, "caption": f"fox number {number}"}] * 2
            known = {"cocoid": number, "filepath": split, "filename": name, "sentences": [{"raw": "a fox"}]}
            karpathy += [known | {"split": "test" if split == "val2014" else "train"}] * split.endswith("2014")
        annotated = folder / "coco" / "annotations" / f"captions_{split}.json"
        annotated.parent.mkdir(exist_ok=True)
        annotated.write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "coco" / "dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    torch.jit.script(Means()).save(str(folder / "inception-2015-12-05.pt"))


@pytest.mark.parametrize("make", [laion, coco])
def test_a_runbook_runs(make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    for words in commands((PAGES / f"{make.__name__}.md").read_text(encoding="utf-8")):  # type: ignore[attr-defined]
        assert cli.main(tiny(words)) == 0, shlex.join(words)
    for made in ("memory", "generator/model.safetensors", "image-tokenizer/model.safetensors"):
        assert (tmp_path / "models" / made).exists()


def test_commands_are_found_and_every_page_is_run() -> None:
    page = '```sh\nsrun torchrun --nnodes 2 \\\n    -m racm3.cli a --b "c d"\nracm3 e\nother\n```\nracm3 f\n'
    assert commands(page) == [["a", "--b", "c d"], ["e"]]
    assert {file.stem for file in PAGES.glob("*.md")} == {"laion", "coco"}
