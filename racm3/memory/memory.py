"""Memory: documents and their vectors, on disk, searched and changed while others read.

memory = Memory.open("out/memory", encoder.fingerprint)
ranking = memory.search(encoder.embed([Document.of("a fox in the snow")]), 5)[0]
memory.get(ranking.ids)

What a change has acknowledged is on disk; every search sees what any process has acknowledged, and what it returns is
what was put in. Threads may share a memory. How it is kept is `store.Store`, how it is searched `search`.

Letters: B batch, D dimension, K hits, N items.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from racm3.data import Item
from racm3.document import Modality
from racm3.errors import EncoderMismatchError, InputError, MemoryStoreError, unknown
from racm3.memory.damage import UNREADABLE, no_panic, readable
from racm3.memory.metadata_filter import Facts, Where
from racm3.memory.re_embedding import UNIT_TOLERANCE, change_encoder
from racm3.memory.rows import DOCUMENT, FACTS, About, check_facts, content_hash, item_of, metadata_json
from racm3.memory.search import Ranking, View, recall
from racm3.memory.snapshot import Snapshot
from racm3.memory.storage import storage_at
from racm3.memory.store import INDEX_FROM, Store

__all__ = ["Memory", "Ranking"]

T = TypeVar("T")
Search = Literal["auto", "exact", "index"]
EXACT_UP_TO = 1_000_000
"""Documents whose vectors are held in memory; more are searched through an index, if there is one (ours: 512 numbers a
vector are 2 GB then)."""
UNINDEXED = 0.1
"""The share of documents outside the index from which it is brought up to date."""
GROWTH = 8
"""How many times more of a ranking is looked at, again and again, where conditions leave too little."""
SELF_CHECK = "racm3.self_check"
UNFINISHED = "racm3.unfinished"
"""Set while a memory is being made, until `Memory.finish`."""


@dataclass(frozen=True)
class Info:
    """What `Memory.info` tells."""

    documents: int
    same_content: int
    """Documents whose content another document before them holds too."""
    bytes_on_disk: int
    dimension: int
    encoder: str
    version: int
    fragments: int
    indexed: int | None
    """Documents in the index; None without one."""
    recall_at_10: float | None
    """What the index finds of the true 10 nearest, as measured when it was made."""


class Memory:
    """A memory in a folder or at s3://bucket/name, which threads may share. `create` makes one, `open` opens one."""

    def __init__(self, store: Store, search: Search = "auto") -> None:
        if search not in ("auto", "exact", "index"):
            raise InputError(unknown("search", search, ["auto", "exact", "index"]))
        self.path = store.storage.path
        self._store = store
        self._search = search
        self._encoder = store.about.encoder
        self._lock = threading.Lock()
        self._view = View(store.snapshot, self._by_index(store.snapshot), {})

    @classmethod
    def create(cls, path: str | Path, encoder_fingerprint: str, dimension: int) -> Memory:
        """An empty memory for one encoder's vectors (D,). Raises MemoryStoreError if ``path`` exists."""
        return cls(Store.create(path, encoder_fingerprint, dimension))

    @classmethod
    def create_or_resume(cls, path: str | Path, encoder_fingerprint: str, dimension: int) -> Memory:
        """As `create`, but a memory whose making was broken off before `finish` is opened, to go on with.

        Raises EncoderMismatchError if that was being made by another encoder.
        """
        try:
            return cls(Store.create(path, encoder_fingerprint, dimension, {UNFINISHED: "yes"}))
        except MemoryStoreError:
            if not storage_at(path).versions():
                raise
        memory = cls.open(path)
        begun = memory._store.snapshot.version == 1  # broken off before it was marked
        if not memory.unfinished and (len(memory) or not begun):
            raise MemoryStoreError(
                f"the memory {memory.path} is there already, with {len(memory)} documents; add to it with "
                "`racm3 memory add`, make it equal to the data with `racm3 memory sync`, or give a new path"
            )
        memory.check_encoder(encoder_fingerprint)
        return memory

    @property
    def unfinished(self) -> bool:
        """Whether the memory is being made, or its making was broken off."""
        return UNFINISHED in self._store.table.config()

    def finish(self) -> None:
        """Say that all is in it that it was made for."""
        if self.unfinished:
            with self.writing():
                self._store.set_config({UNFINISHED: None})

    def discard(self) -> None:
        """Delete a memory that is unfinished and empty: nothing was found to put in. Any other one stays."""
        with self.writing():
            if self.unfinished and not len(self):
                self._store.storage.remove()

    @classmethod
    def open(cls, path: str | Path, encoder_fingerprint: str | None = None, search: Search = "auto") -> Memory:
        """Open a memory, checking that it was made by the encoder given.

        ``search``: "exact" holds all vectors in memory, "index" asks the index on disk, "auto" asks it beyond
        ``EXACT_UP_TO`` documents. Raises MemoryStoreError if the memory is missing or damaged, or has no index that is
        asked for, EncoderMismatchError if another encoder made it.
        """
        memory = cls(Store.open(path), search)
        if encoder_fingerprint is not None:
            memory.check_encoder(encoder_fingerprint)
        return memory

    def check_encoder(self, fingerprint: str) -> None:
        """Raises EncoderMismatchError if another encoder made this memory: its vectors mean something else."""
        if fingerprint != self.encoder_fingerprint:
            raise EncoderMismatchError(
                f"the memory {self.path} was made by encoder {self.encoder_fingerprint}, but encoder {fingerprint} is "
                "given; open it with its own encoder, or move it to this one with `racm3 memory re-embed`"
            )

    # Reading -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._store.snapshot.rows

    @property
    def encoder_fingerprint(self) -> str:
        return self._store.about.encoder

    @property
    def dimension(self) -> int:
        return self._store.about.dimension

    @property
    def ids(self) -> Sequence[str]:
        """Ids in row order, as of the last `refresh`, `search` or change."""
        with readable(self.path):
            return self._view.ids

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with the documents and their ids, and with nothing else: not with their order, nor
        with the encoder."""
        rows = self._reading(lambda view: view.snapshot.table.to_table(columns=["id", "hash"]).to_pylist())
        pairs = sorted(f"{row['hash']} {row['id']}" for row in rows)
        return hashlib.blake2b("\n".join(pairs).encode(), digest_size=16).hexdigest()

    @property
    def vectors(self) -> np.ndarray:
        """(N, D) float32, unit norm, in row order, as of the last `refresh`, `search` or change: a copy."""
        return np.concatenate([np.zeros((0, self.dimension), np.float32), *self.vector_blocks()])

    def vector_blocks(self) -> Iterator[np.ndarray]:
        """`vectors`, a block of rows at a time."""
        snapshot = self._view.snapshot
        with readable(self.path):
            for fragment in snapshot.fragments:
                yield snapshot.vectors(fragment)[2]

    def refresh(self) -> None:
        """See what other processes have changed. Raises EncoderMismatchError if they changed the encoder."""
        self._newest()

    def _newest(self) -> View:
        """The newest version. Who still reads an older one is not disturbed."""
        snapshot = self._store.refresh()
        with self._lock:
            view = self._view
            if snapshot is not view.snapshot and snapshot.version >= view.snapshot.version:
                if snapshot.about.encoder != self._encoder:
                    raise EncoderMismatchError(
                        f"the memory {self.path} was changed to encoder {snapshot.about.encoder} while it was open; "
                        "open it again with that one"
                    )
                view = self._view = View(snapshot, self._by_index(snapshot), view.known)
            return view

    def _by_index(self, snapshot: Snapshot) -> bool:
        if self._search == "exact" or (self._search == "auto" and snapshot.rows <= EXACT_UP_TO):
            return False
        if snapshot.indexed is not None:
            return True
        if self._search == "index":
            raise MemoryStoreError(f"the memory {self.path} has no index; make one with `racm3 memory index`")
        return False

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude_ids: Sequence[Collection[str]] | None = None,
        where: Where | None = None,
    ) -> list[Ranking]:
        """For each of ``queries`` (B, D) float32 of unit norm, the ``k`` nearest documents, best first.

        ``exclude_ids`` holds one collection of ids a query; unknown ids are ignored. ``where`` says of a document
        whether it may be found. Raises InputError if the shapes do not fit.
        """
        queries = self._checked(queries)
        if exclude_ids is not None and (
            len(exclude_ids) != len(queries) or any(isinstance(e, str) for e in exclude_ids)
        ):
            raise InputError(f"exclude_ids holds one collection of ids for each of {len(queries)} queries")
        excluded = [frozenset(ids) for ids in exclude_ids] if exclude_ids is not None else [frozenset()] * len(queries)
        return self._reading(lambda view: self._found(view, queries, k, excluded, where))

    def _found(
        self, view: View, queries: np.ndarray, k: int, excluded: Sequence[frozenset[str]], where: Where | None
    ) -> list[Ranking]:
        engine, rows = view.engine, view.snapshot.rows
        found: dict[int, Ranking] = {}
        pending, wanted = list(range(len(queries))), k + max(map(len, excluded), default=0)
        while pending:
            for i, ranking in zip(pending, engine.nearest(queries[pending], min(wanted, rows)), strict=True):
                kept = [position for position, item_id in enumerate(ranking.ids) if item_id not in excluded[i]]
                if where is not None:
                    facts = _facts(view.snapshot, ranking.addresses[kept])
                    kept = [position for position, fact in zip(kept, facts, strict=True) if where(fact)]
                found[i] = ranking.at(kept[:k])
            pending = [i for i in pending if len(found[i]) < k] if wanted < rows else []
            wanted *= GROWTH
        return [found[i] for i in range(len(queries))]

    def get(self, ids: Sequence[str]) -> list[Item]:
        """The items of ``ids``, in that order.

        Raises MemoryStoreError for an id that is not here, or whose document is not what was put in.
        """

        def read(view: View) -> list[Item]:
            addresses = view.engine.find(ids)
            if missing := [item_id for item_id in ids if item_id not in addresses]:
                raise MemoryStoreError(
                    f"the memory {self.path} holds no document {missing[0]!r}; Memory.ids lists them all"
                )
            rows = view.snapshot.take([addresses[item_id] for item_id in ids], DOCUMENT)
            return [item_of(row) for row in rows]

        return self._reading(read, refreshed=False)

    def items(self, start: int = 0) -> Iterator[Item]:
        """Every item from row ``start``, in order, as of the last `refresh`, `search` or change; bounded in memory.

        Raises MemoryStoreError if a document is not what was put in.
        """
        with readable(self.path):
            yield from map(item_of, self._view.snapshot.scan(DOCUMENT, start=start))

    def _reading(self, read: Callable[[View], T], *, refreshed: bool = True) -> T:
        """What ``read`` gives of the newest version; once more if another process has compacted the memory meanwhile
        and deleted what was being read."""
        try:
            with no_panic():
                return read(self._newest() if refreshed else self._view)
        except UNREADABLE as error:
            if isinstance(error, InputError):
                raise
        with readable(self.path):
            return read(self._newest())

    def info(self) -> Info:
        """How much there is, of what, and how it is searched."""

        def read(view: View) -> Info:
            snapshot = view.snapshot
            hashes = snapshot.table.to_table(columns=["hash"])["hash"]
            recall = snapshot.table.config().get(SELF_CHECK)
            return Info(
                documents=snapshot.rows,
                same_content=len(hashes) - len(hashes.unique()),
                bytes_on_disk=self._store.storage.size_bytes(),
                dimension=snapshot.about.dimension,
                encoder=snapshot.about.encoder,
                version=snapshot.version,
                fragments=len(snapshot.fragments),
                indexed=snapshot.indexed,
                recall_at_10=float(recall) if recall and snapshot.indexed is not None else None,
            )

        return self._reading(read)

    # Writing -------------------------------------------------------------------------------------------------------

    def writing(self) -> AbstractContextManager[None]:
        """Keep other writers out for several changes. Raises MemoryStoreError if another process keeps writing."""
        return self._store.writing()

    def known(self, ids: Collection[str]) -> dict[str, str]:
        """Those ``ids`` that are here, and the origin of each."""
        with readable(self.path):
            return {item_id: row["origin"] for item_id, row in self._store.snapshot.find(ids, ["origin"]).items()}

    def facts(self, ids: Collection[str]) -> dict[str, Facts]:
        """What is known, without decoding them, of those ``ids`` that are here."""
        with readable(self.path):
            return {item_id: _fact(row) for item_id, row in self._store.snapshot.find(ids, FACTS[1:]).items()}

    def note(self, key: str) -> str | None:
        """What `set_note` has kept."""
        return self._store.table.config().get(f"racm3.{key}")

    def set_note(self, key: str, value: str) -> None:
        """Keep a fact about the memory, durably."""
        if self.note(key) != value:
            with self.writing():
                self._store.set_config({f"racm3.{key}": value})
            self.refresh()

    def unlike(self, items: Sequence[Item]) -> list[Item]:
        """Those of ``items`` that are not in the memory as they are: new, or with other content or metadata."""
        with readable(self.path):
            known = self._store.snapshot.find([item.id for item in items], ["hash", "metadata"])

        def here(item: Item) -> bool:
            row = known.get(item.id)
            return row is not None and (row["hash"], row["metadata"]) == (content_hash(item), metadata_json(item))

        return [item for item in items if not here(item)]

    def add(self, items: Iterable[Item], vectors: np.ndarray) -> None:
        """Add items with their vectors (N, D) float32 of unit norm; when this returns, they are on disk.

        All or none. Raises MemoryStoreError if an id is here already or given twice, or if another process keeps
        writing; DocumentError if a document has holes; InputError if vectors and items do not fit together.
        """
        self._put(list(items), vectors, replace=False)

    def add_missing(self, items: Sequence[Item], vectors: np.ndarray) -> int:
        """As `add`, but what is here already as it is, since another writer was faster, is passed over; how many were
        added."""
        vectors = self._fitting(items, vectors)
        with self.writing():
            missing = {id(item) for item in self.unlike(items)}
            rows = [row for row, item in enumerate(items) if id(item) in missing]
            self._put([items[row] for row in rows], vectors[rows], replace=False)
        return len(rows)

    def put(self, items: Iterable[Item], vectors: np.ndarray) -> None:
        """As `add`, but an item takes the place of the one that has its id, in the same step."""
        self._put(list(items), vectors, replace=True)

    def stage(self, added: Iterable[tuple[Sequence[Item], np.ndarray]]) -> list[str]:
        """Write items with their vectors (B, D) to the place of the memory, and nothing more: `append` adds them.

        Any process may, while another one is `writing` and does not compact. What is never appended is deleted by a
        later compaction. Raises InputError as `add` does.
        """
        checked = ((items, self._fitting(items, vectors)) for items, vectors in added)
        return [json.dumps(fragment.to_json()) for fragment in self._store.write(checked)]

    def append(self, staged: Sequence[str]) -> None:
        """Add what `stage` gave, in one step; when this returns, it is there. None of its ids may be here already.

        To be called while `writing`.
        """
        from lance import FragmentMetadata

        self._store.append([FragmentMetadata.from_json(fragment) for fragment in staged])
        self.refresh()

    def _fitting(self, items: Sequence[Item], vectors: np.ndarray) -> np.ndarray:
        vectors = self._checked(vectors)
        if len(items) != len(vectors):
            raise InputError(f"{len(items)} items came with {len(vectors)} vectors; give one vector an item")
        if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < UNIT_TOLERANCE).all():
            raise InputError("the vectors are not of unit norm; Encoder.embed makes them so")
        return vectors

    def _put(self, items: list[Item], vectors: np.ndarray, *, replace: bool) -> None:
        vectors = self._fitting(items, vectors)
        ids = [item.id for item in items]
        if twice := [item_id for item_id, count in Counter(ids).items() if count > 1]:
            raise MemoryStoreError(f"the id {twice[0]!r} is given twice; ids are unique: rename it or leave it out")
        if not items:
            return
        with self.writing():
            here = self._store.snapshot.find(ids)
            if here and not replace:
                raise MemoryStoreError(
                    f"the id {min(here)!r} is already in the memory; ids are unique: rename it or leave it out"
                )
            self._store.change(items, vectors, [row["_rowaddr"] for row in here.values()])
        self.refresh()

    def remove(self, ids: Collection[str]) -> None:
        """Remove documents; when this returns, they are gone for every reader. All or none.

        Raises MemoryStoreError if an id is not here, or if another process keeps writing.
        """
        if isinstance(ids, str):
            raise InputError(f"ids is a collection of ids, but the string {ids!r} was given; write [{ids!r}]")
        if not ids:
            return
        with self.writing():
            here = self._store.snapshot.find(set(ids))
            if missing := sorted(set(ids) - here.keys()):
                raise MemoryStoreError(f"the memory {self.path} holds no document {missing[0]!r}; nothing was removed")
            self._store.change([], np.zeros((0, self.dimension), np.float32), [r["_rowaddr"] for r in here.values()])
        self.refresh()

    def compact(self, *, thorough: bool = True) -> None:
        """Put small fragments together; a ``thorough`` one also frees the space of what was removed and replaced."""
        self._store.compact(thorough=thorough)
        self.refresh()

    def index(self) -> float:
        """Make the index, or bring it up to date; its recall of the true 10 nearest, measured on a sample.

        Raises MemoryStoreError for a memory of fewer than ``INDEX_FROM`` documents.
        """
        if len(self) < INDEX_FROM:
            raise MemoryStoreError(
                f"the memory {self.path} holds {len(self)} documents, and an index is made of {INDEX_FROM} or more; "
                "so few are searched exactly in no time"
            )
        with self.writing():
            self._store.index()
            found = recall(self._store.snapshot)
            self._store.set_config({SELF_CHECK: f"{found:.4f}"})
        self.refresh()
        return found

    def tidy(self) -> None:
        """What is due after many changes: an index for a memory beyond ``EXACT_UP_TO``, brought up to date."""
        indexed = self._store.snapshot.indexed
        if len(self) > EXACT_UP_TO and len(self) - (indexed or 0) > UNINDEXED * len(self):
            self.index()

    def re_embed(
        self,
        fingerprint: str,
        dimension: int,
        embed: Callable[[list[Item]], np.ndarray],
        batch: int,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Move the memory to another encoder. Until it is done, and if it is broken off, the old vectors are there.

        ``embed`` gives (B, D) unit vectors for ``batch`` items. What is embedded is kept beside the table, so that the
        same call goes on where another was broken off; ``report`` is told how many documents are done.
        """
        with self.writing():
            change_encoder(self._store, About(0, fingerprint, dimension), embed, batch, report)
            self._encoder = fingerprint
        self.refresh()

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise InputError(f"vectors are (count, {self.dimension}) here, but {vectors.shape} was given")
        return vectors


def _fact(row: dict[str, Any]) -> Facts:
    check_facts(row)
    parts = json.loads(row["parts"])
    modalities: frozenset[Modality] = frozenset("text" if isinstance(part, str) else "image" for part in parts)
    return Facts(row["id"], json.loads(row["metadata"]), modalities, row["origin"], row["text"])


def _facts(snapshot: Snapshot, addresses: np.ndarray) -> list[Facts]:
    return [_fact(row) for row in snapshot.take(addresses, FACTS)]
