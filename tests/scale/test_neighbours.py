from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from racm3.memory.memory import Memory
from racm3.retriever import corpus_neighbours as one_machine
from racm3.retriever.corpus_neighbours import memory_neighbours
from racm3.retriever.encoder import Encoder
from racm3.scale import neighbours as module
from racm3.scale.neighbours import neighbours
from racm3.scale.pool import Workers
from tests.scale.conftest import ITEMS
from tests.scale.test_embed import InTurn


def test_parts_that_are_missing_are_found(
    folder: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_machine, "PART", 6)
    monkeypatch.setattr(module, "PART", 6)
    monkeypatch.setattr(module, "each", InTurn())
    memory = Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)
    memory.add(ITEMS, encoder.embed([item.document for item in ITEMS]))
    memory_neighbours(memory, encoder, tmp_path / "one", k=3)
    done: list[int] = []
    neighbours(memory, folder, tmp_path / "many", Workers(1), done.append, k=3)
    assert done == [6, 12, 18, 20]
    (tmp_path / "many" / "000002.parquet").unlink()
    neighbours(memory, folder, tmp_path / "many", Workers(1), done.append, k=3)
    assert done[4:] == [20]
    assert pq.read_table(tmp_path / "many").equals(pq.read_table(tmp_path / "one"))
