from __future__ import annotations

import importlib
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item, read, write_coco
from racm3.document import Document, Image
from racm3.errors import CheckpointError, ConfigError, MemoryStoreError, SourceError
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.pipeline import RACM3, Settings
from racm3.presets import PRESETS
from racm3.retriever.encoder import Encoder
from racm3.tokens.image_tokenizer import FSQConfig
from racm3.training.encoder_recipe import EncoderRun
from racm3.training.generator_recipe import GeneratorRun, ShapeConfig
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun
from racm3.training.loop import LoopConfig
from racm3.training.models import Runs, make_all, make_encoder, make_generator, make_memory

PICTURES_HELD_OUT = PRESETS.get("pictures")().generator.validation_documents
ONE = LoopConfig(steps=1, dtype="float32")
RUNS = Runs(
    ImageTokenizerRun(
        model=FSQConfig(image_size_px=16, levels=(4, 4), encoder_width=8, decoder_width=16, decoder_layers=1), loop=ONE
    ),
    EncoderRun(
        dimension=8,
        image_size_px=16,
        patch_px=8,
        vision_width=32,
        vision_layers=1,
        text_width=32,
        text_layers=1,
        text_ids=270,
        loop=ONE,
    ),
    GeneratorRun(
        model=ShapeConfig(width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16),
        text_ids=270,
        tokens_per_step=100,
        validation_documents=2,
        loop=replace(ONE, look_every=1),
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    pictures = [Image(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(9)]
    items = [Item(str(i), Document.of(f"{i} foxes", picture), {}, "test") for i, picture in enumerate(pictures)]
    return write_coco(items, tmp_path_factory.mktemp("data")).parent


def test_from_a_folder_to_a_model_and_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_all(data, RUNS, tmp_path / "generator")
    assert {made.name for made in tmp_path.iterdir()} == {"image-tokenizer", "encoder", "generator", "memory"}
    model = RACM3.from_pretrained(tmp_path, tmp_path / "memory")
    done = model.generate_image("3 foxes", Settings(k=2))
    assert done.document.images[0].pixels.shape == (16, 16, 3)
    assert done.sources
    assert "reused" not in capsys.readouterr().err.replace("pictures: reused", "")

    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if "prepared" in file.parts}
    make_all(data, RUNS, tmp_path / "generator")
    said = capsys.readouterr().err
    for what in ("image tokenizer", "encoder", "memory", "text tokenizer", "tokens", "neighbours"):
        assert f"{what}: reused" in said
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(Memory.open(tmp_path / "memory")) == 9

    undropped = replace(RUNS, generator=replace(RUNS.generator, query_dropout=0.0))
    make_all(data, undropped, tmp_path / "undropped")
    queries = [
        np.load(next((tmp_path / name / "prepared").glob("neighbours-*.npy"))).shape[1]
        for name in ("generator", "undropped")
    ]
    assert queries == [4, 2]  # of words and of the picture, dropped and whole; whole alone


def test_a_memory_that_was_half_made_is_completed(data: Path, tmp_path: Path) -> None:
    make_encoder(data, RUNS.encoder, tmp_path / "encoder")
    make_memory(data, tmp_path / "whole", tmp_path / "encoder")
    whole = Memory.open(tmp_path / "whole")
    ids = list(whole.ids)
    partly = Memory.create_or_resume(tmp_path / "memory", whole.encoder_fingerprint, whole.dimension)
    partly.add(whole.get(ids[:4]), whole.vectors[:4])
    make_memory(data, tmp_path / "memory", tmp_path / "encoder")
    made = Memory.open(tmp_path / "memory")
    assert list(made.ids) == ids
    assert np.allclose(made.vectors, whole.vectors)
    assert not made.unfinished


def test_a_half_made_memory_that_cannot_be_read_just_now_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_encoder(data, RUNS.encoder, tmp_path / "encoder")
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    Memory.create_or_resume(tmp_path / "memory", encoder.fingerprint, encoder.dimension)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("lance.dataset", refused)
        with pytest.raises(MemoryStoreError, match="nothing was changed"):
            make_memory(data, tmp_path / "memory", tmp_path / "encoder")
    make_memory(data, tmp_path / "memory", tmp_path / "encoder")
    assert len(Memory.open(tmp_path / "memory")) == 9


def test_without_retrieval_there_is_no_encoder_and_no_memory(data: Path, tmp_path: Path) -> None:
    make_all(data, replace(RUNS, generator=replace(RUNS.generator, retrieved_shares=(1.0,))), tmp_path / "vanilla")
    assert {made.name for made in tmp_path.iterdir()} == {"image-tokenizer", "vanilla"}


def test_more_held_out_than_trained_on(data: Path, tmp_path: Path) -> None:
    runs = replace(RUNS, generator=replace(RUNS.generator, validation_documents=5))
    with pytest.raises(SourceError, match="5 of 9 documents are to be held out; lower validation_documents"):
        make_all(data, runs, tmp_path / "generator")
    assert not (tmp_path / "image-tokenizer").exists()  # it is said before anything is trained


@pytest.mark.parametrize("count", [2, 3])
def test_a_share_of_the_fewest_pictures_is_held_out(data: Path, tmp_path: Path, count: int) -> None:
    write_coco(islice(read(data), count), tmp_path / "few")
    runs = replace(RUNS, generator=replace(RUNS.generator, validation_documents=PICTURES_HELD_OUT))
    assert make_all(tmp_path / "few", runs, tmp_path / "generator") == tmp_path / "memory"


def test_a_single_pair_is_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    write_coco(islice(read(data), 1), tmp_path / "few")
    with pytest.raises(SourceError, match="holds 1 documents with both a picture and a caption.* needs at least 2"):
        make_all(
            tmp_path / "few",
            replace(RUNS, generator=replace(RUNS.generator, validation_documents=0)),
            tmp_path / "generator",
        )
    assert not (tmp_path / "image-tokenizer").exists()


def test_an_encoder_that_goes_on_keeps_its_tokenizer(data: Path, tmp_path: Path) -> None:
    make_encoder(data, RUNS.encoder, tmp_path / "one")
    on = replace(RUNS.encoder, init_from=str(tmp_path / "one"))
    with pytest.raises(ConfigError, match="goes on from .* with its own tokenizer"):
        make_encoder(data, on, tmp_path / "two", tmp_path / "one" / "tokenizer.json")
    make_encoder(data, on, tmp_path / "two")
    assert (tmp_path / "one" / "tokenizer.json").read_text() == (tmp_path / "two" / "tokenizer.json").read_text()


THEIRS = '''
"""How bright each patch of 8 px is, in so many steps."""

import json

import torch

from racm3.tokens.image_tokenizer import IMAGE_TOKENIZERS


class Brightness:
    image_size_px, grid = 16, (2, 2)

    def __init__(self, steps):
        self.codebook_size = steps

    @property
    def digest(self):
        return f"{self.codebook_size:016x}"

    def encode(self, pixels):
        means = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 8)
        return (means.flatten(1) * (self.codebook_size - 1)).round().long()

    def decode(self, codes):
        grey = codes.float().reshape(-1, 1, 2, 2) / (self.codebook_size - 1)
        return torch.nn.functional.interpolate(grey, scale_factor=8).repeat(1, 3, 1, 1)


@IMAGE_TOKENIZERS.register("brightness")
def open_brightness(folder):
    return Brightness(json.loads((folder / "config.json").read_text())["steps"])
'''


def test_an_image_tokenizer_of_another_package(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on and drawn with; and what is prepared by one is not taken for another's."""
    for name, steps in (("few", 8), ("many", 9)):
        (tmp_path / name / "image-tokenizer").mkdir(parents=True)
        facts = json.dumps({"model_type": "brightness", "steps": steps})
        (tmp_path / name / "image-tokenizer" / "config.json").write_text(facts, encoding="utf-8")
    (tmp_path / "their_tokenizer.py").write_text(THEIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="model_type 'brightness'; allowed: .*imported module registers"):
        ModelFolder(tmp_path / "few").image_tokenizer()
    importlib.import_module("their_tokenizer")
    encoder = tmp_path / "few" / "encoder"
    make_encoder(data, RUNS.encoder, encoder)
    for name in ("few", "many"):
        out, tokenizer = tmp_path / name / "generator", tmp_path / name / "image-tokenizer"
        make_generator(data, RUNS.generator, out, tokenizer, encoder, prepared=str(tmp_path / "prepared"))
    assert len(list((tmp_path / "prepared").glob("tokens-*"))) == 2
    done = RACM3.from_pretrained(tmp_path / "few").generate_image("3 foxes", Settings(k=0))
    assert len({tuple(pixel) for row in done.document.images[0].pixels for pixel in row.tolist()}) <= 4
