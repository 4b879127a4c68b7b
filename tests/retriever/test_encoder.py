from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from racm3.document import Document, Hole, Image
from racm3.errors import CheckpointError, ConfigError, DocumentError
from racm3.retriever.encoder import REDUNDANCY_THRESHOLD, Encoder
from tests.retriever.conftest import CAPTIONS, TOWER, bpe, picture


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


# Vectors -----------------------------------------------------------------------------------------------------------


def test_a_vector_is_the_mean_of_its_texts_and_its_pictures(encoder: Encoder) -> None:
    one, two = picture(1), picture(2)
    text = encoder.embed_texts(["a fox in the snow"])[0]
    images = encoder.embed_images([one, two])
    expected = {
        Document.of("a fox in the snow"): text,
        Document.of(one): images[0],
        Document.of("a fox in the snow", one): unit(text + images[0]),
        Document.of("a fox", two, "in the snow", one): unit(text + unit(images[0] + images[1])),
        Document.of(Hole("text"), one): images[0],
    }
    vectors = encoder.embed(list(expected), batch_size=2)
    assert (vectors.shape, vectors.dtype) == ((5, encoder.dimension), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for document, vector in zip(expected, vectors, strict=True):
        np.testing.assert_allclose(vector, expected[document], atol=2e-6)


def test_vectors_equal_those_of_transformers(encoder: Encoder) -> None:
    pictures = [picture(1), picture(2, 40, 50)]
    with torch.inference_mode():
        pixels = encoder.processor([image.pil for image in pictures], return_tensors="pt")["pixel_values"]
        out = encoder.model(**encoder.text_inputs(CAPTIONS), pixel_values=pixels)
    np.testing.assert_allclose(encoder.embed_texts(CAPTIONS), out.text_embeds, atol=2e-6)
    np.testing.assert_allclose(encoder.embed_images(pictures), out.image_embeds, atol=2e-6)


def test_batching_and_padding_change_nothing(encoder: Encoder) -> None:
    texts = [*CAPTIONS, "x", "a " * 40]
    together = encoder.embed_texts(texts)
    alone = np.concatenate([encoder.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(encoder.embed_texts(texts, batch_size=2), together, atol=2e-6)


def test_nothing_to_encode(encoder: Encoder) -> None:
    assert encoder.embed([]).shape == (0, encoder.dimension)
    with pytest.raises(DocumentError, match="document 1 has holes only"):
        encoder.embed([Document.of("x"), Document.of(Hole("image"))])


# Inputs ------------------------------------------------------------------------------------------------------------


def test_pictures_of_the_models_size_take_the_fast_path_with_equal_result(encoder: Encoder) -> None:
    pictures = [picture(seed) for seed in range(4)]
    slow = encoder.processor([image.pil for image in pictures], return_tensors="pt")["pixel_values"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "processor", _OnlyFacts(encoder.processor))
        fast = encoder.image_inputs(pictures)
    assert fast.is_contiguous()
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)


class _OnlyFacts:
    """A processor that knows its settings, but must not be called."""

    def __init__(self, processor: object) -> None:
        self.__dict__.update(vars(processor))


def test_pictures_of_any_size_are_resized(encoder: Encoder) -> None:
    assert encoder.image_inputs([picture(0), picture(1, 50, 90)]).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("height", "width"), [(2, 90), (91, 3), (1, 64)])
def test_the_middle_of_a_strip_is_all_that_is_scaled(encoder: Encoder, height: int, width: int) -> None:
    strip = picture(3, height, width)
    whole = encoder.processor([strip.pil], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoder.image_inputs([strip]), whole, atol=0.05, rtol=0)
    scaled: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "processor", _Watched(encoder.processor, scaled))
        encoder.image_inputs([picture(0, 2, 30_000), picture(0, 30_000, 1)])
    assert max(scaled) <= 8 * 2


class _Watched:
    """A processor that notes the sides of the pictures that it is given."""

    def __init__(self, processor: Any, sides: list[int]) -> None:
        self.__dict__.update(vars(processor))
        self.call, self.sides = processor, sides

    def __call__(self, pictures: Any, **options: Any) -> Any:
        self.sides += [max(one.size) for one in pictures]
        return self.call(pictures, **options)


def test_a_hidden_region_cannot_be_seen(encoder: Encoder) -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:20, :12] = True
    other = picture(0).pixels.copy()
    other[mask] = 7
    hidden = encoder.image_inputs([Image(picture(0).pixels, mask), Image(other, mask), picture(0)])
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], hidden[2])
    assert hidden[0][:, mask].abs().max() < 0.01  # the mean colour, in units of the standard deviation


def test_a_text_ends_with_the_end_token_however_long(encoder: Encoder) -> None:
    end, longest = encoder.tokenizer.get_vocab_size(), 16
    ids = encoder.text_inputs(["a fox", "a castle " * 30])["input_ids"]
    fox = encoder.tokenizer.encode("a fox").ids
    assert ids.shape == (2, longest)
    assert ids[0].tolist() == fox + [end] * (longest - len(fox))
    assert ids[1].tolist() == [*encoder.tokenizer.encode("a castle " * 30).ids[: longest - 1], end]


# On disk -----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = Encoder.from_pretrained(tmp_path)
    documents = [Document.of(CAPTIONS[0], picture(0)), Document.of(picture(1, 40, 40))]
    np.testing.assert_allclose(loaded.embed(documents), encoder.embed(documents), atol=1e-6)
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.redundancy_threshold == 0.95
    assert isinstance(CLIPModel.from_pretrained(tmp_path), CLIPModel)

    (tmp_path / "racm3.json").unlink()  # a CLIP from elsewhere
    assert Encoder.from_pretrained(tmp_path).redundancy_threshold == REDUNDANCY_THRESHOLD == 0.9


def test_the_fingerprint_is_computed_again_when_a_weight_was_written_to(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = Encoder.from_pretrained(tmp_path)
    assert loaded.fingerprint == loaded.fingerprint == encoder.fingerprint
    weight = next(loaded.model.parameters())
    with torch.no_grad():
        weight += 1
    assert loaded.fingerprint != encoder.fingerprint
    with torch.no_grad():
        weight -= 1
    other = Encoder.from_pretrained(tmp_path)
    next(other.model.parameters()).data = next(other.model.parameters()).data + 1
    assert other.fingerprint != encoder.fingerprint


def test_the_fingerprint_changes_with_what_changes_the_vectors(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    prints = {encoder.fingerprint}
    loaded = Encoder.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.model.text_projection.weight[0, 0] += 1e-3
    prints.add(loaded.fingerprint)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    prints.add(Encoder.from_pretrained(tmp_path).fingerprint)
    assert len(prints) == 3


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, of a tiny model with random weights; the tokenizer ends a text itself."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    words = bpe()
    end = words.get_vocab_size()
    words.add_special_tokens(["</s>"])
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="</s>", eos_token="</s>").save_pretrained(folder)
    text = {**TOWER, "vocab_size": end + 1, "max_position_embeddings": 8, "projection_size": 32}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def test_a_siglip_opens_with_the_vectors_of_transformers(siglip: Path, tmp_path: Path) -> None:
    opened = Encoder.from_pretrained(siglip)
    texts = ["a fox", "a fox in the snow at the top left of a beach", "a"]
    tokenizer = AutoTokenizer.from_pretrained(siglip)
    theirs = tokenizer(texts, padding="max_length", truncation=True, max_length=8)["input_ids"]
    assert opened.text_inputs(texts)["input_ids"].tolist() == theirs
    pictures = [picture(0), picture(1, 48, 40)]
    model, processor = SiglipModel.from_pretrained(siglip).eval(), SiglipImageProcessorPil.from_pretrained(siglip)
    pixels = processor([one.pil for one in pictures], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = [
            model.get_text_features(torch.tensor(theirs)).pooler_output,
            model.get_image_features(pixels).pooler_output,
        ]
    for found, vectors in zip((opened.embed_texts(texts), opened.embed_images(pictures)), expected, strict=True):
        np.testing.assert_allclose(found, torch.nn.functional.normalize(vectors, dim=-1), atol=2e-6)
    assert opened.embed([Document.of("a fox", pictures[0])]).shape == (1, opened.dimension)

    opened.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path)
    assert (again.padding, again.fingerprint) == (opened.padding, opened.fingerprint)
    left = Encoder(opened.model, opened.tokenizer, opened.processor, padding=replace(opened.padding, left=True))
    assert left.text_inputs(["a"])["input_ids"][0].tolist() == [*[theirs[2][-1]] * 6, *theirs[2][:2]]
    assert left.fingerprint != opened.fingerprint


def test_a_siglip_needs_its_padding_and_another_model_is_refused(siglip: Path, tmp_path: Path) -> None:
    shutil.copytree(siglip, tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="needs a tokenizer_config.json with a pad_token"):
        Encoder.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"pad_token": "<none>"}')
    with pytest.raises(CheckpointError, match="pad_token '<none>' .* is not in its tokenizer.json"):
        Encoder.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type 'bert'; allowed: 'clip'"):
        Encoder.from_pretrained(tmp_path / "a")


def test_as_transformers_5_saves_a_processor(encoder: Encoder, siglip: Path, tmp_path: Path) -> None:
    """In one file with the tokenizer's, processor_config.json; the encoder is the same."""
    encoder.save_pretrained(tmp_path / "clip")
    shutil.copytree(siglip, tmp_path / "siglip")
    kinds = (("clip", CLIPImageProcessorPil, {}), ("siglip", SiglipImageProcessorPil, {"pad_token": "</s>"}))
    for name, processor, pads in kinds:
        folder = tmp_path / name
        before = Encoder.from_pretrained(folder).fingerprint
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **pads)
        whole = (CLIPProcessor if name == "clip" else SiglipProcessor)(processor.from_pretrained(folder), tokenizer)
        (folder / "preprocessor_config.json").unlink()
        whole.save_pretrained(folder)
        assert not (folder / "preprocessor_config.json").exists()
        assert Encoder.from_pretrained(folder).fingerprint == before
        (folder / "processor_config.json").write_text('{"processor_class": "X"}')
        with pytest.raises(CheckpointError, match="lacks preprocessor_config.json"):
            Encoder.from_pretrained(folder)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_clip_with_its_own_tokenizer_opens(encoder: Encoder, tmp_path: Path, legacy: bool) -> None:
    """vocab.json and merges.txt; older configurations say eos_token_id 2, and are pooled at the highest id."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "fo", "fox</w>", "<|startoftext|>", "<|endoftext|>"]
    start, end = len(tokens) - 2, len(tokens) - 1
    text = {**TOWER, "max_position_embeddings": 8}
    clip = Encoder.new(bpe(), dimension=24, text=text, vision={**TOWER, "image_size": 32, "patch_size": 8})
    clip.model.text_model.resize_token_embeddings(len(tokens))
    clip.model.config.text_config.vocab_size = len(tokens)
    clip.model.config.text_config.eos_token_id = 2 if legacy else end
    clip.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nf o\nfo x</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))

    opened = Encoder.from_pretrained(tmp_path)
    texts = ["A fox", "fox a b c d e f g h", "a"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, truncation=True, max_length=8)["input_ids"]
    ids = opened.text_inputs(texts)["input_ids"]
    assert ids.tolist() == theirs
    assert ids[0, 0] == start
    with torch.inference_mode():
        expected = opened.model.get_text_features(torch.tensor(theirs)).pooler_output.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(opened.embed_texts(texts), expected, atol=2e-6)
    assert isinstance(opened.embed([Document.of("a fox", picture(0))]), np.ndarray)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_a_checkpoint_error(encoder: Encoder, tmp_path: Path, name: str) -> None:
    encoder.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Encoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_a_checkpoint_error(encoder: Encoder, tmp_path: Path, name: str) -> None:
    encoder.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Encoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"redundancy": 0.9}', '{"redundancy_threshold": 2}', '"x"'])
def test_bad_settings_are_a_checkpoint_error(encoder: Encoder, tmp_path: Path, text: str) -> None:
    encoder.save_pretrained(tmp_path)
    (tmp_path / "racm3.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"racm3\.json is not"):
        Encoder.from_pretrained(tmp_path)


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; give the folder of a CLIPModel"):
        Encoder.from_pretrained(tmp_path / "nowhere")


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hidden_size'"):
        Encoder.new(bpe(), dimension=8, text={"hiden_size": 8}, vision={})
