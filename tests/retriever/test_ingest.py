from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from racm3.data import Item, Protected, Skipped
from racm3.document import Document
from racm3.errors import EncoderMismatchError, MemoryStoreError
from racm3.memory.memory import Memory
from racm3.retriever import ingest as module
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import Changes, apply, ingest, plan_sync, re_embed, sync
from racm3.retriever.retriever import Retriever
from racm3.retriever.strategy import RelevanceRedundancy
from tests.retriever.conftest import TOWER, bpe, picture

ITEMS = [Item(f"d{i}", Document.of(f"fox number {i}", picture(i)), {"i": i}, f"file{i}") for i in range(10)]


class Counting:
    """An encoder that counts what it embeds, and breaks down after ``left`` documents."""

    def __init__(self, encoder: Encoder, left: int = 1000) -> None:
        self.encoder, self.fingerprint, self.dimension = encoder, encoder.fingerprint, encoder.dimension
        self.done, self.left = 0, left

    def embed(self, documents: Sequence[Document]) -> np.ndarray:
        self.done += len(documents)
        if self.done > self.left:
            raise KeyboardInterrupt
        return self.encoder.embed(documents)


@pytest.fixture
def memory(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 4)
    return Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)


@pytest.fixture(scope="module")
def other() -> Encoder:
    torch.manual_seed(1)
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    return Encoder.new(bpe(), dimension=16, text={**TOWER, "max_position_embeddings": 16}, vision=vision)


def holds(memory: Memory, items: Sequence[Item], encoder: Encoder) -> None:
    opened = Memory.open(memory.path, encoder.fingerprint)
    assert sorted(opened.ids) == sorted(item.id for item in items)
    assert opened.get([item.id for item in items]) == list(items)
    right = dict(zip(opened.ids, opened.vectors, strict=True))
    made = encoder.embed([item.document for item in items])
    np.testing.assert_allclose([right[item.id] for item in items], made, atol=1e-5)


def test_adding_goes_on_where_it_was_broken_off(memory: Memory, encoder: Encoder) -> None:
    with pytest.raises(KeyboardInterrupt):
        ingest(memory, Counting(encoder, left=6), ITEMS)  # type: ignore[arg-type]
    assert len(Memory.open(memory.path)) == 4
    again = Counting(encoder)
    assert ingest(memory, again, ITEMS) == Changes(added=6, unchanged=4)  # type: ignore[arg-type]
    assert again.done == 6  # what was there was not embedded again
    holds(memory, ITEMS, encoder)
    with pytest.raises(MemoryStoreError, match="'d3' is already in the memory, with other content"):
        ingest(memory, encoder, [replace(ITEMS[3], document=Document.of("x"))])


def test_sync_makes_the_memory_equal_to_the_source(memory: Memory, encoder: Encoder) -> None:
    ingest(memory, encoder, ITEMS)
    changed = replace(ITEMS[2], document=Document.of("a boat"))
    told = replace(ITEMS[3], metadata={"i": "new"})
    new = Item("new", Document.of(picture(50)), {}, "file50")
    source = [ITEMS[0], changed, told, *ITEMS[5:], new]
    counting = Counting(encoder)
    assert sync(memory, counting, source) == Changes(added=1, replaced=2, removed=2, unchanged=6)  # type: ignore[arg-type]
    assert counting.done == 3
    holds(memory, source, encoder)
    assert sync(memory, encoder, source) == Changes(unchanged=9)
    assert str(Changes()) == "nothing to do"


def test_a_broken_file_and_an_empty_source_remove_nothing(memory: Memory, encoder: Encoder) -> None:
    ingest(memory, encoder, ITEMS)
    with pytest.raises(MemoryStoreError, match="nothing was removed"):
        sync(memory, encoder, [])
    protected = Protected(Path())
    protected.add(Skipped("file1", "broken", item_id="d1"))
    assert sync(memory, encoder, ITEMS[2:], protected) == Changes(removed=1, unchanged=8)
    holds(memory, ITEMS[1:], encoder)
    protected.add(Skipped("list:3", "broken", scope="."))  # whatever that was
    plan = plan_sync(memory, ITEMS[9:], protected)
    assert (plan.removed, len(plan.protected), plan.reasons) == ([], 8, [])
    assert plan.warnings == ["list:3: broken; it may be any of the documents from there, so none of them is removed"]


def test_a_sync_that_looks_like_a_mistake_is_to_be_confirmed(memory: Memory, encoder: Encoder) -> None:
    ingest(memory, encoder, ITEMS, ["pictures"])
    captions_gone = [replace(item, document=Document(item.document.images)) for item in ITEMS[:3]]
    for items, kinds, reason in [
        (ITEMS[6:], ["pictures"], r"would remove 6\. it would remove 6 of 10 documents"),
        ([*captions_gone, *ITEMS[3:]], ["pictures"], r"take the text or the pictures from 3 of the 3 .* such as 'd0'"),
        ([*ITEMS, Item("new", Document.of("x"), {}, "")], ["pictures", "shards"], "it was pictures last time, and is"),
    ]:
        with pytest.raises(MemoryStoreError, match=f"nothing was changed: .*{reason}.*--yes"):
            sync(memory, encoder, items, kinds=kinds)
    holds(memory, ITEMS, encoder)
    assert sync(memory, encoder, ITEMS, kinds=["shards"]) == Changes(unchanged=10)  # nothing to agree to
    more = [*captions_gone, *ITEMS[3:]]
    assert sync(memory, encoder, more, kinds=["shards"], confirmed=True) == Changes(replaced=3, unchanged=7)
    holds(memory, more, encoder)


def test_what_nobody_knows_keeps_its_caption(memory: Memory, encoder: Encoder) -> None:
    """A row that is broken, of a list beside which its picture is read for itself."""
    ingest(memory, encoder, ITEMS)
    protected = Protected(Path())
    protected.add(Skipped("list:3", "broken", scope="."))
    source = [replace(ITEMS[0], document=Document(ITEMS[0].document.images)), *ITEMS[1:]]
    assert sync(memory, encoder, source, protected) == Changes(unchanged=9)
    holds(memory, ITEMS, encoder)


def test_a_plan_says_what_apply_does(memory: Memory, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(memory, encoder, ITEMS)
    source = [*ITEMS[2:], *(Item(f"new{i}", Document.of(f"new {i}"), {}, "") for i in range(7))]
    for few in (True, False):  # whether the items are held, or read again
        monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 512 if few else 3)
        plan = plan_sync(memory, iter(source))
        assert str(plan) == "would add 7, remove 2"
        assert (plan.changed is not None) == few
    assert apply(plan, memory, encoder, iter(source)) == Changes(added=7, removed=2, unchanged=8)
    assert str(plan_sync(memory, source)) == "would change nothing"
    holds(memory, source, encoder)


def test_re_embedding_keeps_every_document(memory: Memory, encoder: Encoder, other: Encoder) -> None:
    ingest(memory, encoder, ITEMS)
    memory.remove(["d1"])
    kept = [item for item in ITEMS if item.id != "d1"]
    with pytest.raises(KeyboardInterrupt):
        re_embed(memory, Counting(other, left=5))  # type: ignore[arg-type]
    holds(memory, kept, encoder)  # the old vectors are there until the end
    reader, counting = Memory.open(memory.path), Counting(other)
    re_embed(memory, counting)  # type: ignore[arg-type]
    assert counting.done == 5  # four of nine were done
    holds(memory, kept, other)
    assert not list(memory.path.glob("re-embed*"))
    with pytest.raises(EncoderMismatchError, match="re-embed"):
        Memory.open(memory.path, encoder.fingerprint)
    with pytest.raises(EncoderMismatchError, match="was changed to encoder"):
        reader.search(encoder.embed([ITEMS[0].document]), 1)
    ingest(memory, other, ITEMS)  # it can be added to, compacted, and moved back
    memory.compact()
    assert [
        hit.id for hit in Retriever(memory, other, RelevanceRedundancy(1.1)).retrieve([ITEMS[1].document], k=1)[0]
    ] == ["d1"]
    re_embed(memory, encoder)
    holds(memory, ITEMS, encoder)


def test_an_empty_memory_moves_too(memory: Memory, encoder: Encoder, other: Encoder) -> None:
    re_embed(memory, other)
    ingest(memory, other, ITEMS)
    holds(memory, ITEMS, other)


def test_large_pictures_are_embedded_in_smaller_batches(
    memory: Memory, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2 * picture(0).pixels[..., 0].size)
    assert [len(batch) for batch in module.batches(ITEMS)] == [2] * 5
    ingest(memory, encoder, ITEMS)
    holds(memory, ITEMS, encoder)
