"""The table of digits: what is saved computes what was trained."""

from __future__ import annotations

import torch

from racm3.generator.model import GeneratorConfig
from racm3.open_scenes.digit_generator import DigitGenerator, from_plain, plain
from racm3.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=50, image_size=60)
LEVELS = (5, 4, 3)


def generator() -> DigitGenerator:
    torch.manual_seed(0)
    config = GeneratorConfig(
        vocabulary_size=VOCABULARY.size, width=64, layers=2, heads=4, kv_heads=4, head_dim=32, mlp_width=64,
        context_tokens=128, rope_theta=2000.0,
    )  # fmt: skip
    return DigitGenerator(config, VOCABULARY, LEVELS)


def test_the_plain_generator_is_the_same_function() -> None:
    trained = generator()
    ids = torch.randint(VOCABULARY.size, (2, 40))
    ordinary = plain(trained)
    assert type(ordinary) is not DigitGenerator
    assert torch.equal(ordinary.logits(ordinary(ids)), trained.logits(trained(ids)))


def test_training_goes_on_from_a_plain_generator() -> None:
    ordinary = plain(generator())
    again = from_plain(ordinary, VOCABULARY, LEVELS)
    ids = torch.randint(VOCABULARY.size, (2, 40))
    assert torch.allclose(ordinary.logits(ordinary(ids)), again.logits(again(ids)), atol=1e-5)
    codes = ordinary.model.embed_tokens.weight[VOCABULARY.image_start :]
    assert again.model.embed_tokens.own[VOCABULARY.image_start :].norm() < 0.8 * codes.norm()


def test_every_parameter_is_trained_once() -> None:
    trained = generator()
    names = [name for name, _ in trained.named_parameters()]
    assert "model.embed_tokens.digits" in names
    assert not any(name.startswith("lm_head") for name in names)
    trained.logits(trained(torch.randint(VOCABULARY.size, (1, 20)))).logsumexp(-1).sum().backward()
    assert all(weight.grad is not None for weight in trained.parameters())


def test_codes_that_differ_in_one_digit_begin_nearer_than_codes_that_differ_in_all() -> None:
    table = generator().model.embed_tokens.weight[VOCABULARY.image_start :]
    assert (table[0] - table[1]).norm() < (table[0] - table[-1]).norm()
