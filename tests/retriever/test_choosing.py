from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from racm3.data import Item
from racm3.document import Document, Text
from racm3.errors import ConfigError
from racm3.memory.candidates import Candidates
from racm3.memory.memory import Memory
from racm3.memory.words import Term
from racm3.retriever.choosing import MMR, Coverage, Hybrid, Nothing, Oracle, Random, strategy_for, word_scores, worth
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Retriever, searcher
from racm3.retriever.strategy import STRATEGIES, Choosing
from tests.retriever.conftest import picture

CAPTIONS = [
    "a fox in the snow",
    "a fox on a red background",
    "a polar bear on a red background",
    "a cake on a table",
    "A Fox",
    "a cup of tea",
    *(f"a boat number {i}" for i in range(90)),
]


@pytest.fixture
def memory(encoder: Encoder, tmp_path: Path) -> Memory:
    memory = Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)
    items = [Item(str(i), Document.of(text, picture(i)), {}, "test") for i, text in enumerate(CAPTIONS)]
    memory.add(items, encoder.embed([item.document for item in items]))
    return memory


def found(memory: Memory, encoder: Encoder, query: str, strategy: str = "coverage", k: int = 2) -> list[int]:
    made = strategy_for(encoder, strategy)
    assert isinstance(made, Hybrid)
    retriever = Retriever(memory, encoder, replace(made, threshold=2.0))  # to an untrained encoder all is alike
    return [int(hit.id) for hit in retriever.retrieve([Document((Text(query),))], k)[0]]


def test_an_exact_caption_comes_first(memory: Memory, encoder: Encoder) -> None:
    for number, caption in enumerate(CAPTIONS[:6]):
        assert found(memory, encoder, caption.upper(), "hybrid")[0] == number


def test_two_things_are_both_covered_and_one_is_not_left_for_its_background(memory: Memory, encoder: Encoder) -> None:
    assert set(found(memory, encoder, "a cake and a polar bear")) == {2, 3}
    assert set(found(memory, encoder, "a cup of tea next to a fox", k=2)) == {5, 4}
    assert found(memory, encoder, "please draw a fox on a red background")[0] == 1
    assert found(memory, encoder, "please draw a fox on a red background")[1] in (0, 4)


def test_words_that_nothing_fits_find_nothing(memory: Memory, encoder: Encoder) -> None:
    encoder.chance_score = 0.99
    assert found(memory, encoder, "quarterly revenue of the insurance branch") == []
    assert found(memory, encoder, "fox")  # and what is named is found, whatever the vectors say
    encoder.chance_score = 0.0


def test_a_hit_shows_both_parts_of_its_score(memory: Memory, encoder: Encoder) -> None:
    (hit, *_) = searcher(memory, encoder).retrieve([Document.of("a fox")], 3)[0]
    assert hit.words == pytest.approx(1)
    assert hit.score == pytest.approx(0.95 * 1 + 0.05 * max(0.0, hit.cosine or 0.0))
    (hit, *_) = searcher(memory, encoder).retrieve([Document.of(picture(3))], 3)[0]
    assert hit.words is None
    assert hit.score == pytest.approx(hit.cosine)


def test_people_who_search_see_copies_as_well(memory: Memory, encoder: Encoder) -> None:
    item = Item("copy", Document.of(CAPTIONS[3], picture(3)), {}, "test")
    memory.add([item], encoder.embed([item.document]))
    asked = [Document.of("cake")]
    assert {hit.id for hit in searcher(memory, encoder).retrieve(asked, 2)[0]} == {"3", "copy"}
    assert {"3", "copy"} - {hit.id for hit in Retriever(memory, encoder, Hybrid(0.95)).retrieve(asked, 2)[0]}


def test_every_strategy_is_known_by_name_and_by_its_fingerprint(encoder: Encoder) -> None:
    names = ("relevance-redundancy", "relevance", "hybrid", "coverage", "mmr", "random", "oracle", "none")
    made = [strategy_for(encoder, name) for name in names]
    assert set(names) <= set(STRATEGIES.names())
    assert len({one.fingerprint for one in made}) == len(names)
    assert [type(one) for one in made[2:]] == [Hybrid, Coverage, MMR, Random, Oracle, Nothing]
    assert all(isinstance(one, Choosing) for one in made[2:] if not isinstance(one, Random))
    with pytest.raises(ConfigError, match="coverage"):
        strategy_for(encoder, "covrage")


def candidates(main: bool = False) -> Candidates:
    """Five vectors in a plane; the second one is the first one's copy."""
    angles = np.deg2rad([0, 1, 30, 60, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Candidates(vectors @ vectors[0], vectors, main=vectors[0] if main else None)


def test_what_a_copy_of_the_main_document_is_worth() -> None:
    """In training neither is retrieved: the document itself and its copy."""
    assert Hybrid(0.99).choose(candidates(), 2) == [0, 2]
    assert Hybrid(0.99).choose(candidates(main=True), 2) == [2, 3]
    assert Oracle(0.99).choose(candidates(main=True), 2) == [2, 3]
    assert Oracle(0.99).choose(candidates(), 2) == [0, 1]


def test_mmr_trades_relevance_for_difference() -> None:
    assert MMR(1.1, trade=1.0).choose(candidates(), 3) == [0, 1, 2]
    assert MMR(1.1, trade=0.4).choose(candidates(), 2) == [0, 4]


def test_random_and_none() -> None:
    some = candidates()
    taken = Random().select(some.scores, some.vectors, 3)
    assert taken == Random().select(some.scores, some.vectors, 3)
    assert len(set(taken)) == 3
    assert Nothing().choose(some, 2) == []


def test_a_rare_word_outweighs_usual_ones_and_a_phrase_counts_once() -> None:
    terms = [Term("fox", "fox", 8.0, 0), Term("red", "red", 3.0, 1), Term("wall", "wall", 3.0, 1)]
    counts = worth(terms)
    assert counts[0] == 8.0**3
    assert counts[1] + counts[2] == pytest.approx(3.0**3)
    held = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    scores = word_scores(Candidates(np.zeros(2), np.zeros((2, 2)), terms, held, np.array([0.5, 0.0])))
    assert scores == pytest.approx([512 / 539 * 0.975, 27 / 539])
    unknown = [Term("fox", "fox", 8.0, 0), Term("qwerty", None, 12.0, 1)]
    assert worth(unknown) == pytest.approx([512, 512])
