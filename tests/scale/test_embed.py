"""What is done with the pieces, here one after the other in this process; test_pool.py does it on a cluster."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from racm3.data import Skipped, recognise
from racm3.errors import EncoderMismatchError
from racm3.memory.check import Checked, check
from racm3.memory.memory import Memory
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import Changes, ingest
from racm3.scale import embed as module
from racm3.scale.embed import embed
from racm3.scale.pool import Workers
from racm3.util.s3 import Remote
from tests.scale.conftest import ITEMS

ONE = Workers(1)


class InTurn:
    """`each` without a cluster. It breaks down after ``left`` pieces."""

    def __init__(self) -> None:
        self.left, self.done = 1000, 0

    def __call__(
        self, pieces: Sequence[Any], workers: Workers, make: Callable[..., Any], *given: Any
    ) -> Iterator[tuple[int, Any]]:
        pieces, make, given = pickle.loads(pickle.dumps((pieces, make, given)))  # as Ray sends them
        work = make(*given)
        for number, piece in enumerate(pieces):
            if self.done == self.left:
                raise KeyboardInterrupt
            self.done += 1
            yield number, json.loads(json.dumps(work(piece)))


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> InTurn:
    made = InTurn()
    monkeypatch.setattr(module, "each", made)
    return made


@pytest.fixture
def memory(encoder: Encoder, tmp_path: Path) -> Memory:
    return Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)


def same(one: Memory, other: Memory) -> None:
    ids = sorted(one.ids)
    assert sorted(other.ids) == ids
    assert one.get(ids) == other.get(ids)
    vectors = [dict(zip(memory.ids, memory.vectors, strict=True)) for memory in (one, other)]
    np.testing.assert_allclose([vectors[0][i] for i in ids], [vectors[1][i] for i in ids], atol=1e-5)


@pytest.mark.usefixtures("in_turn")
def test_the_memory_is_that_of_one_machine(
    memory: Memory, folder: Path, shards: Path, tmp_path: Path, encoder: Encoder
) -> None:
    alone = Memory.create(tmp_path / "alone", encoder.fingerprint, encoder.dimension)
    ingest(alone, encoder, recognise(shards).read())
    skipped, looked_at = list[Skipped](), list[int]()
    done = embed(memory, folder, [recognise(shards)], ONE, skipped.append, looked_at.append)
    assert done == Changes(added=20, unchanged=1)  # what two shards have is added once, though both were new at first
    same(memory, alone)
    assert check(memory.path) == Checked(20)
    assert sorted((skip.origin.rpartition("/")[2].split("#")[0], skip.reason[:12]) for skip in skipped) == [
        ("000002.tar", "its id is in"),
        ("000003.tar", "the shard is"),
    ]
    assert looked_at == [8, 16, 16, 21]
    assert embed(memory, folder, [recognise(shards)], ONE) == Changes(unchanged=21)


def test_it_goes_on_where_it_was_broken_off(
    memory: Memory, folder: Path, shards: Path, in_turn: InTurn, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn.left = 2
    with pytest.raises(KeyboardInterrupt):
        embed(memory, folder, [recognise(shards)], ONE)
    assert sorted(Memory.open(memory.path).ids) == sorted(item.id for item in ITEMS[:16])
    in_turn.left = 1000
    embedded: list[int] = []
    embed_documents = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, docs: embedded.append(len(docs)) or embed_documents(self, docs))
    assert embed(memory, folder, [recognise(shards)], ONE) == Changes(added=4, unchanged=17)
    assert embedded == [4]


@pytest.mark.usefixtures("in_turn")
def test_every_minute_what_is_done_is_committed(
    memory: Memory, folder: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_S", -1.0)
    reader, seen = Memory.open(memory.path), list[int]()

    def look(done: int) -> None:
        reader.refresh()
        seen.append(len(reader))

    embed(memory, folder, [recognise(shards)], ONE, report=look)
    assert seen == [0, 8, 16, 16]
    reader.refresh()
    assert len(reader) == 20


@pytest.mark.usefixtures("in_turn")
def test_shards_and_memory_may_lie_in_a_bucket(bucket: str, folder: Path, shards: Path, encoder: Encoder) -> None:
    for file in shards.glob("*.tar"):
        with Remote(f"{bucket}/shards/{file.name}").open("wb") as stream:
            stream.write(file.read_bytes())
    memory = Memory.create(f"{bucket}/memory", encoder.fingerprint, encoder.dimension)
    assert embed(memory, folder, [recognise(f"{bucket}/shards/*.tar")], ONE) == Changes(added=20, unchanged=1)
    assert check(memory.path) == Checked(20)


def test_pictures_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from racm3.data import reading

    monkeypatch.setattr(reading, "PICTURES_A_PIECE", 3)
    for number in range(7):
        ITEMS[number].document.images[0].pil.save(tmp_path / f"{number}.png")
    pieces = list(recognise(tmp_path).pieces())
    assert [len(list(piece.read())) for piece in pieces] == [3, 3, 1]
    assert [item for piece in pieces for item in piece.read()] == list(recognise(tmp_path).read())


def test_another_encoder_is_refused_before_anything_is_done(folder: Path, shards: Path, tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "memory", "another", 24)
    with pytest.raises(EncoderMismatchError):
        embed(memory, folder, [recognise(shards)], ONE)
