"""Four pictures of each of three colours, tiny models of them, and a memory: made once, changed by no test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from racm3.cli import main
from racm3.data import Item, write_coco
from racm3.document import Document, Image
from tests.cli.as_typed import COLOURS, SHAPE, train_encoder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of four pictures of each colour."""
    squares = [(name, colour, i) for name, colour in COLOURS.items() for i in range(4)]
    items = [
        Item(f"{name} {i}", Document.of(name, Image(np.full((20, 20, 3), colour, np.uint8))), {}, "test")
        for name, colour, i in squares
    ]
    return write_coco(items, tmp_path_factory.mktemp("data")).parent


@pytest.fixture(scope="session")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder")
    assert train_encoder(data, out) == 0
    return out


@pytest.fixture(scope="session")
def memory(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "squares"
    assert main(["memory", "create", str(folder), str(data), "--encoder", str(encoder)]) == 0
    return folder


@pytest.fixture(scope="session")
def image_tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image-tokenizer")
    tiny = ["model.encoder_width=8", "model.decoder_width=16", "model.image_size_px=32", "batch_size=4"]
    run = ["train", "image-tokenizer", str(data), "--out", str(out), "--set", *tiny, "loop.steps=2"]
    assert main(run) == 0
    return out


@pytest.fixture(scope="session")
def models(data: Path, encoder: Path, image_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models as RACM3.from_pretrained opens it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "encoder").symlink_to(encoder)
    (folder / "image-tokenizer").symlink_to(image_tokenizer)
    run = ["train", "generator", str(data), "--out", str(folder / "generator")]
    run += ["--image-tokenizer", str(image_tokenizer), "--encoder", str(encoder)]
    assert main([*run, "--set", "text_ids=270", *SHAPE.split(), "tokens_per_step=100", "loop.steps=1"]) == 0
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 40 x 20 px, of which the middle 20 x 20 are looked at."""
    file = tmp_path / "picture.png"
    Image(np.full((20, 40, 3), (255, 0, 0), np.uint8)).pil.save(file)
    return file
