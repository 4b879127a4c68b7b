"""Check: is every document of a memory still what was put in?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from racm3.errors import RACM3Error
from racm3.memory.store import DOCUMENT, UNREADABLE, Store, content_hash, item_of, no_panic

__all__ = ["Damage", "check"]


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was: a document, or the file of several that cannot be read at all."""

    what: str
    documents: int
    reason: str


def check(path: str | Path, *, repair: bool = False) -> tuple[int, list[Damage]]:
    """Read every document and compare it with its hash: how many are sound, and what is not.

    ``repair`` removes what is damaged, so that it can be added again. Raises MemoryStoreError if there is no memory.
    """
    store = Store.open(path, damaged=True)
    sound, damaged, rows, fragments = 0, list[Damage](), list[int](), list[int]()
    for fragment in store.table.get_fragments():
        here, spoilt = 0, list[tuple[int, Damage]]()
        try:
            with no_panic():
                store.vectors(fragment)
                for row in store.scan([*DOCUMENT, "hash"], fragment):
                    if reason := _problem(row):
                        spoilt.append((row["_rowaddr"], Damage(f"document {row['id']!r}", 1, reason)))
                    else:
                        here += 1
        except UNREADABLE as error:
            documents = fragment.metadata.num_rows
            names = " and ".join(file.path for file in fragment.metadata.files)
            damaged.append(Damage(f"data file {names}", documents, str(error)))
            fragments.append(fragment.fragment_id)
        else:
            sound += here
            rows += [address for address, _ in spoilt]
            damaged += [damage for _, damage in spoilt]
    if repair and damaged:
        with store.writing(refreshed=False):
            store.change([], np.zeros((0, store.about.dimension), np.float32), rows, fragments)
    return sound, damaged


def _problem(row: dict[str, Any]) -> str | None:
    try:
        found = content_hash(item_of(row))
    except (RACM3Error, ValueError) as error:
        return str(error)
    return None if found == row["hash"] else f"its content has the hash {found}, but {row['hash']} was put in"
