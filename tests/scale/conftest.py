from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from racm3.data import Item, write_webdataset
from racm3.document import Document
from racm3.retriever.encoder import Encoder
from tests.retriever.conftest import encoder, picture  # noqa: F401

ITEMS = [Item(f"d{i}", Document.of(f"fox number {i}", picture(i)), {"i": i}, "") for i in range(20)]


@pytest.fixture(scope="session")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Where the encoder lies."""
    path = tmp_path_factory.mktemp("encoder")
    encoder.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of ``ITEMS``; the last has two of the first shard's too, one of them changed. One more is broken."""
    path = tmp_path_factory.mktemp("shards")
    write_webdataset(ITEMS, path, items_per_shard=8)
    last = [*ITEMS[16:], ITEMS[3], replace(ITEMS[4], document=Document.of("changed"))]
    (made,) = write_webdataset(last, path / "again")
    made.rename(path / "000002.tar")
    (path / "000003.tar").write_bytes(b"no tar at all" * 100)
    return path
