"""Names of concepts: cleaned, and put into groups of near twins that no split may part."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

NOVEL_SHARE = 0.2
"""Share of the groups of near twins that nothing is trained on."""

GENERIC = frozenset(
    "face person man woman men women people hand hands sign symbol button mark icon picture image illustration clipart "
    "drawing art set group girl boy child kid old young head logo silhouette outline cartoon piece part body thing "
    "object equipment figure character color colour".split()
)
"""Head words that say too little to make two names twins; the word before decides."""

PREPOSITIONS = frozenset("of with without in on at for and from to the a".split())


def clean(name: str) -> str:
    """A name as a person would write it in the middle of a sentence: ``Bee2_outline`` is ``bee outline``."""
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    name = re.sub(r"[^A-Za-z' ]+", " ", name).lower()
    return re.sub(r"\s+", " ", name).strip()


def singular(word: str) -> str:
    """The singular of an English noun, roughly: good enough to find twins."""
    for ending, instead in (("ies", "y"), ("ves", "f"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)] + instead
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def head(name: str) -> str:
    """The word that says what a thing is: ``red racing car`` is a ``car``, ``ball of yarn`` a ``ball``."""
    words = name.split()
    cut = next((i for i, word in enumerate(words) if i and word in PREPOSITIONS), len(words))
    words = [word for word in words[:cut] if word not in PREPOSITIONS] or words
    while len(words) > 1 and words[-1] in GENERIC:
        words = words[:-1]
    return singular(words[-1]) if words else ""


def groups(named: Sequence[Iterable[str]]) -> list[str]:
    """A group for each of the concepts, given all its names: concepts that share the head of any name are together."""
    parent: dict[str, str] = {}

    def root(word: str) -> str:
        while parent.setdefault(word, word) != word:
            word = parent[word]
        return word

    for names in named:
        heads = sorted({head(name) for name in names} - {""})
        for other in heads[1:]:
            one, two = sorted((root(heads[0]), root(other)))
            parent[two] = one
    return [root(min({head(name) for name in names} - {""})) for names in named]


def made_up(rng: np.random.Generator) -> str:
    """A word that means nothing, of two or three syllables."""
    consonants, vowels = "b d f g k l m n p r s t v w z bl dr gr st tr".split(), "aeiou"
    syllables = int(rng.integers(2, 4))
    return "".join(consonants[rng.integers(len(consonants))] + vowels[rng.integers(5)] for _ in range(syllables))


def is_novel(group: str) -> bool:
    """Whether a group of near twins is held out from every training; of the name alone, so that it never changes."""
    digest = hashlib.blake2b(f"open scenes {group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < NOVEL_SHARE
