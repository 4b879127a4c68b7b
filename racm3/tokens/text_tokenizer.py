"""TextTokenizer: byte-level BPE, so that every string has ids and comes back from them unchanged.

Ids are the tokenizer's own, from 0; ``markup.py`` moves them to their place in the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from racm3.errors import CheckpointError, ConfigError, InputError

__all__ = ["TextTokenizer"]

BYTES = 256
"""Smallest size: one id for each byte."""


class TextTokenizer:
    """Text to ids and back. Any ``tokenizer.json`` of the `tokenizers` library will do.

    >>> t = TextTokenizer.train(["a fox in the snow"], size=256)
    >>> t.decode(t.encode("два лиса 🦊")), t.size
    ('два лиса 🦊', 256)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        """Number of ids: every encoded id is below it."""
        self.longest_token: int = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        """Bytes of the longest token: a text has at least so many times fewer tokens than bytes."""

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> TextTokenizer:
        """Learn at most ``size`` ids from ``texts``: fewer if the texts hold fewer repeated pairs.

        Raises ConfigError if ``size`` is below 256, the number of bytes.
        """
        if size < BYTES:
            raise ConfigError(f"a byte-level tokenizer has at least {BYTES} ids, but size {size} was given")
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        alphabet = ByteLevel.alphabet()
        trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> TextTokenizer:
        """Read a ``tokenizer.json``. Raises CheckpointError if it is missing or damaged."""
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"there is no text tokenizer {path}; give the path of a tokenizer.json")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read as a tokenizer.json: {error}") from error

    def spelled_by(self, other: TextTokenizer) -> list[list[int]]:
        """For every id the ids of ``other`` that stand for the same characters; none for half a character."""
        names = {id_: token for token, id_ in self._tokenizer.get_vocab().items()}
        of_other = other._tokenizer.get_vocab()
        found: list[list[int]] = []
        for id_ in range(self.size):
            if (name := names.get(id_)) in of_other:
                found.append([of_other[name]])
            else:
                text = self.decode([id_])
                found.append([] if "\ufffd" in text else other.encode(text))
        return found

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with whatever changes the ids: the whole ``tokenizer.json``."""
        return hashlib.blake2b(self._tokenizer.to_str().encode(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json."""
        self._tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Ids from 0 to ``size`` - 1. Raises InputError if ``text`` is not Unicode (a lone surrogate)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text {text!r} has a lone surrogate at {error.start}; give valid Unicode") from None
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Inverse of ``encode``. Ids that cut a character in two give U+FFFD. Raises InputError on an unknown id."""
        for id in ids:
            if not 0 <= id < self.size:
                raise InputError(f"text id {id} was given, but this tokenizer has ids 0 to {self.size - 1}")
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)
