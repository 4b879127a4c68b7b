from __future__ import annotations

import pytest
import torch

from racm3.errors import CheckpointError
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.vocabulary_growth import grown, origins
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

OLD, NEW = TextTokenizer.train(["a fox"] * 9, 259), TextTokenizer.train(["a fox in the snow"] * 9, 264)


def generator(vocabulary_size: int, tied: bool = True) -> Generator:
    torch.manual_seed(0)
    shape = GeneratorConfig(vocabulary_size, 16, 2, 2, 2, 8, 16, 64, tie_embeddings=tied)
    return Generator(shape).double()


@pytest.mark.parametrize("tied", [True, False])
def test_a_renumbered_generator_says_the_same_in_other_numbers(tied: bool) -> None:
    old = generator(20, tied)
    order = torch.randperm(20)
    new = grown(old, [[int(i)] for i in order], context_tokens=32)
    assert new.config.context_tokens == 32
    ids = torch.randint(20, (2, 9))
    with torch.no_grad():
        assert torch.equal(new(ids), old(order[ids]))
        # Not bit by bit: some processors sum a column in an order that its place decides.
        expected = old.logits(old(order[ids]))[..., order]
        torch.testing.assert_close(new.logits(new(ids)), expected, rtol=1e-12, atol=1e-14)


def test_new_rows_are_means() -> None:
    old = generator(20)
    table = old.lm_head.weight
    new = grown(old, [[3], [4, 7], []], context_tokens=64).lm_head.weight
    assert torch.equal(new[0], table[3])
    torch.testing.assert_close(new[1], (table[4] + table[7]) / 2)
    assert 0 < (new[2] - table.mean(0)).norm() < 0.1 * table.std(0).norm()


def test_ids_come_from_those_that_mean_the_same() -> None:
    before, after = Vocabulary(OLD.size, 5), Vocabulary(NEW.size, 5)
    found = origins(after, NEW, before, OLD, same_codes=True)
    assert len(found) == after.size
    assert [list(ids) for ids in found[: after.text_start]] == [[i] for i in range(38)]
    assert [list(ids) for ids in found[after.image_start :]] == [[before.image_start + i] for i in range(5)]
    for id_, ids in enumerate(found[after.text_start : after.image_start]):
        spelled = OLD.decode([old - before.text_start for old in ids])
        assert spelled in (NEW.decode([id_]), "")
        assert len(ids) == 1 or id_ >= 256  # each byte is one id of both
    assert any(len(ids) > 1 for ids in found)
    assert not any(origins(after, NEW, before, OLD, same_codes=False)[after.image_start :])


def test_a_language_models_ids_are_its_tokenizers() -> None:
    found = origins(Vocabulary(OLD.size, 5), OLD, None, OLD, same_codes=False)
    assert [list(ids) for ids in found] == [[]] * 38 + [[i] for i in range(OLD.size)] + [[]] * 5


def test_other_codes_are_not_the_same_codes() -> None:
    with pytest.raises(CheckpointError, match="5 image codes became 6"):
        origins(Vocabulary(OLD.size, 6), OLD, Vocabulary(OLD.size, 5), OLD, same_codes=True)
