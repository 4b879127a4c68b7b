from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.errors import CheckpointError, ConfigError, InputError
from racm3.tokens.text_tokenizer import TextTokenizer

CAPTIONS = [
    f"{count} {thing} on a {place}"
    for count in ("one", "two")
    for thing in ("fox", "car")
    for place in ("beach", "hill")
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, size=290)


@given(st.text())
def test_every_string_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= id < tokenizer.size for id in ids)


def test_training_learns_merges_and_is_repeatable(tokenizer: TextTokenizer) -> None:
    assert 256 < tokenizer.size <= 290
    assert len(tokenizer.encode("two fox on a beach")) < len("two fox on a beach") / 2
    again = TextTokenizer.train(CAPTIONS, size=290)
    assert [again.encode(caption) for caption in CAPTIONS] == [tokenizer.encode(caption) for caption in CAPTIONS]


@given(text=st.text())
def test_without_merges_an_id_is_a_byte(text: str) -> None:
    assert len(TextTokenizer.train([], size=256).encode(text)) == len(text.encode())


def test_save_and_load(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.size == tokenizer.size
    assert loaded.encode("a car, zwölf 🦊") == tokenizer.encode("a car, zwölf 🦊")


def test_any_tokenizer_json_loads(tmp_path: Path) -> None:
    """One with special tokens and a template that would add them: `encode` adds none."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    foreign = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "fox": 2}, unk_token="[UNK]"))
    foreign.pre_tokenizer = Whitespace()
    foreign.add_special_tokens(["[CLS]"])
    foreign.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 3)])
    foreign.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert (tokenizer.size, tokenizer.encode("a fox")) == (4, [1, 2])


def test_bad_input_is_named(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no text tokenizer"):
        TextTokenizer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match=r"bad.json cannot be read"):
        TextTokenizer.load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="at least 256 ids, but size 255"):
        TextTokenizer.train(CAPTIONS, size=255)
    with pytest.raises(InputError, match="lone surrogate at 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(InputError, match=f"text id {tokenizer.size} was given"):
        tokenizer.decode([0, tokenizer.size])
