"""Going on from trained weights: ours, and a Qwen3 as transformers saves it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from racm3.document import Hole
from racm3.errors import CheckpointError, ConfigError
from racm3.generator.engine import Engine, SequenceRequest
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.prompt import answer_constraint, build_prompt
from racm3.model_folder import ModelFolder
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.generator_recipe import GeneratorRun, ShapeConfig
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun
from racm3.training.init_from import init_generator, init_image_tokenizer, init_text

TEXT = TextTokenizer.train(["a fox in the snow"], 260)
SHAPE = ShapeConfig(16, 2, 4, 2, 8, 24, context_tokens=32, rope_theta=1e6)
IMAGE = FSQConfig(image_size_px=16, levels=(3, 3), encoder_width=8, decoder_width=16, decoder_layers=1)
VOCABULARY = Vocabulary(TEXT.size, 9)


@pytest.fixture
def image() -> FSQImageTokenizer:
    torch.manual_seed(0)
    return FSQImageTokenizer(IMAGE).eval()


def qwen3(folder: Path, rows: int = 300) -> Qwen3ForCausalLM:
    """A tiny one with ``rows`` ids, more than its tokenizer writes, as the real ones have."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        max_position_embeddings=64,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    TEXT.save(folder / "tokenizer.json")
    return model


def test_a_qwen3_reads_words_as_before_under_our_vocabulary(tmp_path: Path, image: FSQImageTokenizer) -> None:
    theirs = qwen3(tmp_path)
    run = GeneratorRun(model=SHAPE, init_from=str(tmp_path), text_ids=0)
    assert init_text(run).fingerprint == TEXT.fingerprint
    ours = init_generator(run, VOCABULARY, TEXT, image)
    assert ours is not None
    assert ours.config == GeneratorConfig(VOCABULARY.size, 16, 2, 4, 2, 8, 24, 32, rope_theta=1e6)
    ids = torch.tensor([TEXT.encode("a fox in the snow")])
    with torch.no_grad():
        expected = theirs(ids).logits[..., : TEXT.size]
        logits = ours.logits(ours(ids + VOCABULARY.text_start))
    torch.testing.assert_close(logits[..., VOCABULARY.text_start : VOCABULARY.image_start], expected)
    prompt = build_prompt([], [Hole("image")], Markup(VOCABULARY, 4), 8)  # and it can draw
    request = SequenceRequest(prompt.ids, answer_constraint(prompt.spans, VOCABULARY))
    assert len(Engine(ours.eval(), VOCABULARY).run([request])[0].tokens) == 4


def test_what_does_not_fit_is_refused(tmp_path: Path, image: FSQImageTokenizer) -> None:
    qwen3(tmp_path)
    run = GeneratorRun(model=replace(SHAPE, layers=3, width=32), init_from=str(tmp_path), text_ids=0)
    with pytest.raises(ConfigError, match="another shape than the run; --set model.width=16 model.layers=2$"):
        init_generator(run, VOCABULARY, TEXT, image)
    longer = replace(run, model=replace(SHAPE, context_tokens=128))
    with pytest.raises(ConfigError, match="--set model.context_tokens=64$"):
        init_generator(longer, VOCABULARY, TEXT, image)
    qwen3(tmp_path, rows=200)
    with pytest.raises(CheckpointError, match="has rows for 200 ids, but its tokenizers write 260"):
        init_generator(replace(run, model=SHAPE), VOCABULARY, TEXT, image)
    with pytest.raises(ConfigError, match="that is not set"):
        init_text(GeneratorRun(text_ids=0))
    with pytest.raises(CheckpointError, match="there is no folder .*none of weights to go on from"):
        init_text(GeneratorRun(init_from=str(tmp_path / "none"), text_ids=0))


def test_image_codes_are_kept_where_they_are_the_same(
    tmp_path: Path, image: FSQImageTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    old = Generator(GeneratorConfig(VOCABULARY.size, 16, 2, 4, 2, 8, 24, 32, rope_theta=1e6))
    ModelFolder(tmp_path).save_generator(old, TEXT, Markup(VOCABULARY, 4), (2, 2))
    image.save_pretrained(tmp_path / "image-tokenizer")
    run = GeneratorRun(model=SHAPE, init_from=str(tmp_path / "generator"))

    def rows(tokenizer: FSQImageTokenizer) -> torch.Tensor:
        found = init_generator(run, VOCABULARY, TEXT, tokenizer)
        assert found is not None
        assert torch.equal(found.lm_head.weight[: VOCABULARY.image_start], old.lm_head.weight[: VOCABULARY.image_start])
        return found.lm_head.weight[VOCABULARY.image_start :]

    other = FSQImageTokenizer(IMAGE).eval()
    same = FSQImageTokenizer(IMAGE).eval()
    same.load_state_dict({name: value.half().float() for name, value in image.state_dict().items()})
    with torch.no_grad():
        same.decoder[0].weight.add_(1)  # the decoder does not write codes
    assert torch.equal(rows(same), old.lm_head.weight[VOCABULARY.image_start :])
    assert "learnt from nothing" not in capsys.readouterr().err
    assert not torch.equal(rows(other), old.lm_head.weight[VOCABULARY.image_start :])
    assert f"learnt from nothing: {tmp_path / 'image-tokenizer'} writes others" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "image-tokenizer")
    assert not torch.equal(rows(same), old.lm_head.weight[VOCABULARY.image_start :])
    assert f"there is no {tmp_path / 'image-tokenizer'}" in capsys.readouterr().err


def test_an_image_tokenizer_of_another_shape(tmp_path: Path, image: FSQImageTokenizer) -> None:
    image.save_pretrained(tmp_path)
    run = ImageTokenizerRun(model=IMAGE, init_from=str(tmp_path))
    found = init_image_tokenizer(run)
    assert found is not None
    assert found.config == IMAGE
    with pytest.raises(ConfigError, match=r"--set model.levels=\[3,3\]$"):
        init_image_tokenizer(replace(run, model=replace(IMAGE, levels=(5, 5))))


def test_a_generator_whose_texts_are_filled_up_is_refused(tmp_path: Path, image: FSQImageTokenizer) -> None:
    old = Generator(GeneratorConfig(VOCABULARY.size, 16, 2, 4, 2, 8, 24, 32, rope_theta=1e6))
    ModelFolder(tmp_path).save_generator(old, TEXT, Markup(VOCABULARY, 4, text_ids=5), (2, 2))
    assert ModelFolder(tmp_path).markup == Markup(VOCABULARY, 4, text_ids=5)
    run = GeneratorRun(model=SHAPE, init_from=str(tmp_path / "generator"))
    with pytest.raises(ConfigError, match="filled up to 5 ids"):
        init_generator(run, VOCABULARY, TEXT, image)
