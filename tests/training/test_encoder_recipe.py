from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from racm3.errors import SourceError
from racm3.retriever.encoder import Encoder
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.training.encoder_recipe import (
    EncoderRun,
    contrastive_loss,
    new_encoder,
    redundancy_threshold,
    shape_of,
    train_encoder,
)
from racm3.training.loop import LoopConfig
from racm3.training.optimiser import OptimiserConfig

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
RUN = EncoderRun(
    dimension=16,
    image_size_px=16,
    patch_px=8,
    vision_width=32,
    vision_layers=1,
    text_width=32,
    text_layers=1,
    text_tokens=16,
    optimiser=OptimiserConfig(lr=3e-3, warmup_steps=5),
    loop=LoopConfig(steps=40, dtype="float32", log_every_s=0),
    batch_size=4,
)


def pairs() -> tuple[np.ndarray, list[list[str]]]:
    """Plain pictures of four colours; some have two captions."""
    pictures = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in COLOURS.values()])
    return pictures, [[f"a {name} square", name] if name != "white" else [f"a {name} square"] for name in COLOURS]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    TextTokenizer.train([f"a {name} square" for name in COLOURS], 280).save(tmp_path / "tokenizer.json")
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def test_pictures_find_their_captions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pictures, captions = pairs()
    encoder = train_encoder(pictures, captions, tokenizer, RUN, tmp_path / "encoder")
    rows = [json.loads(line) for line in (tmp_path / "encoder/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["matched"] == 1
    opened = Encoder.from_pretrained(tmp_path / "encoder")
    assert opened.fingerprint == encoder.fingerprint
    assert opened.redundancy_threshold == encoder.redundancy_threshold
    facts = json.loads((tmp_path / "encoder/redundancy.json").read_text(encoding="utf-8"))
    assert facts["threshold"] == encoder.redundancy_threshold
    assert sum(facts["duplicates"]) == sum(facts["nearest_other"]) == len(pictures)
    assert len(facts["edges"]) == len(facts["duplicates"]) + 1


def test_true_duplicates_lie_above_the_threshold(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pictures, captions = pairs()
    encoder = train_encoder(
        pictures, captions, tokenizer, replace(RUN, loop=replace(RUN.loop, steps=2)), tmp_path / "e"
    )
    threshold = redundancy_threshold(encoder, pictures, [texts[0] for texts in captions], None)
    assert 0.5 < threshold <= 1


def test_the_contrastive_loss_is_clips() -> None:
    random = torch.Generator().manual_seed(0)
    image, text = torch.randn(5, 8, generator=random), torch.randn(5, 8, generator=random)
    scale = torch.tensor(1.5)
    cosine = torch.stack([torch.stack([F.cosine_similarity(i, t, dim=0) for t in text]) for i in image]) * scale.exp()
    by_image = -sum(cosine[i, i] - cosine[i].logsumexp(0) for i in range(5)) / 5
    by_text = -sum(cosine[i, i] - cosine[:, i].logsumexp(0) for i in range(5)) / 5
    loss, matched = contrastive_loss(image, text, scale)
    assert loss.item() == pytest.approx(float(by_image + by_text) / 2, rel=1e-5)
    assert matched == pytest.approx(sum(int(cosine[i].argmax()) == i for i in range(5)) / 5)
    clipped, _ = contrastive_loss(image, text, torch.tensor(99.0))
    assert clipped == contrastive_loss(image, text, torch.tensor(100.0).log())[0]


def test_a_batch_is_at_most_all_pairs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pictures, captions = pairs()
    run = replace(RUN, batch_size=100, loop=replace(RUN.loop, steps=1))
    train_encoder(pictures, captions, tokenizer, run, tmp_path)
    for few in (pictures[:1], captions[:1]), (pictures, captions[:3]):
        with pytest.raises(SourceError, match="give at least two pairs"):
            train_encoder(*few, tokenizer, run, tmp_path)


def test_going_on_from_an_encoder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    initial = new_encoder(tokenizer, RUN)
    assert shape_of(initial) == {key: value for key, value in asdict(RUN).items() if key in shape_of(initial)}
    before = initial.model.text_projection.weight.detach().clone()
    run = replace(RUN, loop=replace(RUN.loop, steps=1), optimiser=replace(RUN.optimiser, warmup_steps=10**6))
    trained = train_encoder(*pairs(), tokenizer, run, tmp_path, initial)
    torch.testing.assert_close(trained.model.text_projection.weight, before, atol=1e-6, rtol=0)
