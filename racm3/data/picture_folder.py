"""Pictures, each with a caption in a file of the same name, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from racm3.data.captions import beside, is_json, read_record, told_beside
from racm3.data.item import Draft, Item, Skipped, broken, name_of
from racm3.errors import SourceError


def read_picture(file: Path, root: Path) -> Iterator[Draft | Skipped]:
    """The id is the path inside ``root``. A .json beside it that is no record is said not to be read, if there is a
    text; else nobody knows the caption, and the picture is broken."""
    name, item_id = name_of(file), name_of(file.relative_to(root))
    found = beside(file)
    files = (name, *map(name_of, found))
    records: list[dict[str, Any]] = []
    for record in filter(is_json, found):
        try:
            records.append(read_record(record))
        except SourceError as error:
            if all(map(is_json, found)):
                reason = f"its caption may be in {name_of(record)}, but {error}"
                yield Draft(name, partial(broken, reason), item_id, files=files)
                return
            yield Skipped(name_of(record), f"{error}; its picture has a text", unread=".json")
    yield Draft(name, partial(_item, file, item_id, found, records), item_id, files=files)


def _item(file: Path, item_id: str, found: Sequence[Path], records: Sequence[dict[str, Any]]) -> Item:
    captions, metadata = told_beside(found, records)
    return captions.item(item_id, [file], metadata, name_of(file))
