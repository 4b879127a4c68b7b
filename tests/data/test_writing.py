from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.data import Item, read, write_coco, write_webdataset
from racm3.document import Document, Hole
from racm3.errors import SourceError
from tests.data.conftest import picture


@given(ids=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_any_id_survives_both_writers(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return  # lone surrogates are not text
    given_items = [Item(item_id, Document.of("x", picture()), {}, "") for item_id in ids]
    write_webdataset(given_items, folder / "shards")
    assert [item.id for item in read(folder / "shards")] == ids
    write_coco(given_items, folder / "coco")
    assert [item.id for item in read(folder / "coco")] == ids


def test_writers_refuse_what_they_cannot_keep(tmp_path: Path) -> None:
    twice = [Item("same", Document.of("x", picture()), {}, "")] * 2
    for write in (write_coco, write_webdataset):
        with pytest.raises(SourceError, match="two items have the id 'same'"):
            write(twice, tmp_path)
        with pytest.raises(SourceError, match="one text, then one picture"):
            write([Item("2", Document.of(picture(), picture()), {}, "")], tmp_path)
        with pytest.raises(SourceError, match="without holes"):
            write([Item("h", Document.of(Hole("text"), picture()), {}, "")], tmp_path)
