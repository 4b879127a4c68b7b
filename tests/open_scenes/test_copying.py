"""A new generator that begins by copying: it does, of codes that nobody has trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from racm3.errors import ConfigError
from racm3.generator.model import GeneratorConfig, rotate
from racm3.open_scenes.copying import begin_by_copying
from racm3.open_scenes.digit_generator import DigitGenerator, plain
from racm3.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=50, image_size=420)
LEVELS, COLUMNS, ROWS, STRIDE = (7, 5, 4, 3), 16, 12, 220
CONFIG = GeneratorConfig(
    vocabulary_size=VOCABULARY.size, width=256, layers=3, heads=6, kv_heads=6, head_dim=64, mlp_width=128,
    context_tokens=512, rope_theta=1e6,
)  # fmt: skip


def generator(copying: bool = True) -> DigitGenerator:
    torch.manual_seed(0)
    result = DigitGenerator(CONFIG, VOCABULARY, LEVELS)
    if copying:
        begin_by_copying(result, COLUMNS, STRIDE)
    return result


def shifted_pair(down: int, across: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a picture, and of what it shows elsewhere; and where the second one shows what stood in the first."""
    codes = VOCABULARY.image_start + torch.randint(VOCABULARY.image_size, (2, ROWS, COLUMNS))
    codes[1, down:, across:] = codes[0, : ROWS - down, : COLUMNS - across]
    known = torch.zeros(2, ROWS, COLUMNS, dtype=torch.bool)
    known[1, down + 1 :, across + 1 :] = True  # with a left and an upper neighbour that are in the first as well
    return codes.flatten()[None], known.flatten()


@pytest.mark.parametrize(("down", "across"), [(0, 0), (2, 5), (4, 1)])
def test_it_copies_codes_from_anywhere_before_any_training(down: int, across: int) -> None:
    ids, known = shifted_pair(down, across)
    right = []
    for copying in (True, False):
        model = plain(generator(copying))
        guessed = model.logits(model(ids))[0, :-1].argmax(-1) == ids[0, 1:]
        right.append(float(guessed[known[1:]].float().mean()))
    assert right[0] > 0.6
    assert right[1] < 0.1


def test_it_copies_words_as_well() -> None:
    words = VOCABULARY.text_start + torch.randperm(VOCABULARY.text_size)[:24]
    ids = torch.cat((words, words))[None]
    model = plain(generator())
    guessed = model.logits(model(ids))[0, :-1].argmax(-1) == ids[0, 1:]
    assert guessed[24:].float().mean() > 0.6


def test_it_expects_what_stands_at_the_same_place_of_the_document_before() -> None:
    """No neighbour of these codes is alike, so that their place alone tells them."""
    torch.manual_seed(1)
    codes = VOCABULARY.image_start + torch.randint(VOCABULARY.image_size, (2, STRIDE))
    codes[1, 5::7] = codes[0, 5::7]
    ids = codes.flatten()[None]
    alike = torch.arange(STRIDE + 5, 2 * STRIDE, 7)
    ranks = []
    for copying in (True, False):
        model = plain(generator(copying))
        logits = model.logits(model(ids))[0, alike - 1]
        likelier = logits > logits.gather(1, ids[0, alike, None])
        ranks.append(float(likelier.sum(1).float().median()))
    assert ranks[0] < 0.25 * ranks[1]


@pytest.mark.parametrize(("head", "distance"), [(0, 1), (1, COLUMNS - 1), (2, COLUMNS), (3, STRIDE - 1)])
def test_heads_of_the_first_layer_begin_by_looking_back(head: int, distance: int) -> None:
    trained = generator()
    ids = torch.randint(VOCABULARY.size, (1, 400))
    layer = trained.model.layers[0]
    x = layer.input_layernorm(trained.model.embed_tokens(ids))
    heads = (1, 400, 6, 64)
    q = layer.self_attn.q_norm(layer.self_attn.q_proj(x).view(heads))
    k = layer.self_attn.k_norm(layer.self_attn.k_proj(x).view(heads))
    rope = trained.cos[:400, None], trained.sin[:400, None]
    scores = torch.einsum("bthe,bshe->bhts", rotate(q, *rope), rotate(k, *rope))[0, head]
    causal = scores.masked_fill(torch.ones(400, 400).triu(1).bool(), -torch.inf)
    assert (causal[300:].argmax(-1) == torch.arange(300, 400) - distance).float().mean() > 0.95


@pytest.mark.parametrize("change", [{"rope_theta": 1e4}, {"head_dim": 32}, {"width": 130}, {"heads": 2, "kv_heads": 2}])
def test_a_shape_without_room_for_it_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="copying needs"):
        begin_by_copying(DigitGenerator(replace(CONFIG, **change), VOCABULARY, LEVELS), COLUMNS, STRIDE)
