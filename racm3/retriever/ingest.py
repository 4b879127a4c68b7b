"""Ingest: fill a memory with documents, make it equal to a source, move it to another encoder.

Each goes on where it was broken off: what is stored already is recognised before it is embedded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from racm3.data import Item
from racm3.errors import MemoryStoreError
from racm3.memory.memory import Memory
from racm3.retriever.encoder import Encoder

__all__ = ["Changes", "batches", "ingest", "memory_of", "re_embed", "sync"]

DOCUMENTS_AT_ONCE = 512
PIXELS_AT_ONCE = 2**26
"""What is embedded and added together has at most so many documents, and little more pixels than these (ours): few
commits, and 200 MB of large pictures."""


@dataclass
class Changes:
    """What was done, in documents."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    unchanged: int = 0

    def __str__(self) -> str:
        done = [f"{name} {count}" for name, count in vars(self).items() if count]
        return ", ".join(done) or "nothing to do"


def ingest(
    memory: Memory, encoder: Encoder, items: Iterable[Item], report: Callable[[int], None] = lambda done: None
) -> Changes:
    """Embed the items and add them to the memory; those that are there already are passed over, unembedded.

    ``report`` is told how many of them are stored.
    Raises EncoderMismatchError if another encoder made the memory, MemoryStoreError if it holds an item's id with other
    content.
    """
    memory.check_encoder(encoder.fingerprint)
    done = Changes()
    for batch in batches(items):
        new = memory.unlike(batch)
        if clash := memory.known([item.id for item in new]):
            raise MemoryStoreError(
                f"the id {min(clash)!r} is already in the memory, with other content; remove it first, or replace what "
                "has changed with `racm3 memory sync`"
            )
        if new:
            memory.add(new, encoder.embed([item.document for item in new]))
        done.added += len(new)
        done.unchanged += len(batch) - len(new)
        report(done.added + done.unchanged)
    memory.tidy()
    return done


def memory_of(path: Path, encoder: Encoder, items: Iterable[Item]) -> Memory:
    """The memory at ``path``; if nothing is there it is made of ``items``, whole or not at all.

    What a kill left half made, in ``path``.part, is completed. Raises MemoryStoreError if something else is there,
    EncoderMismatchError if another encoder made it.
    """
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        try:
            memory = Memory.open(part, encoder.fingerprint)
        except MemoryStoreError:  # there is none yet, or one that is of no use
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            memory = Memory.create(part, encoder.fingerprint, encoder.dimension)
        ingest(memory, encoder, items)
        part.rename(path)
    return Memory.open(path, encoder.fingerprint)


def sync(
    memory: Memory,
    encoder: Encoder,
    items: Iterable[Item],
    is_broken: Callable[[str], bool] = lambda origin: False,
    report: Callable[[int], None] = lambda done: None,
) -> Changes:
    """Make the memory equal to ``items``: new ones are added, changed ones replaced, all others removed.

    Equal is what has the same content and metadata. What comes from an origin that ``is_broken`` (asked at the end) is
    not removed: a file that is there but broken takes no document with it. ``report`` is told how many are stored.
    Raises EncoderMismatchError if another encoder made the memory, MemoryStoreError if there are no items.
    """
    memory.check_encoder(encoder.fingerprint)
    memory.refresh()
    done, seen = Changes(), set[str]()
    for batch in batches(items):
        seen.update(item.id for item in batch)
        fresh = memory.unlike(batch)
        if fresh:
            replaced = len(memory.known([item.id for item in fresh]))
            memory.put(fresh, encoder.embed([item.document for item in fresh]))
            done.replaced += replaced
            done.added += len(fresh) - replaced
        done.unchanged += len(batch) - len(fresh)
        report(len(seen))
    if not seen:
        raise MemoryStoreError(
            f"there is not one document to make {memory.path} equal to; nothing was removed: check the source"
        )
    gone = [item_id for item_id in memory.ids if item_id not in seen]
    gone = [item_id for item_id, origin in memory.known(gone).items() if not is_broken(origin)]
    memory.remove(gone)
    done.removed = len(gone)
    memory.tidy()
    return done


def re_embed(memory: Memory, encoder: Encoder, report: Callable[[int], None] = lambda done: None) -> None:
    """Move the memory to ``encoder``: the same documents with its vectors. Until it is done, the old ones are there."""
    memory.re_embed(
        encoder.fingerprint,
        encoder.dimension,
        lambda items: encoder.embed([item.document for item in items]),
        DOCUMENTS_AT_ONCE,
        report,
    )
    memory.tidy()


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, so many at once as are embedded and added together."""
    batch: list[Item] = []
    pixels = 0
    for item in items:
        batch.append(item)
        pixels += sum(image.pixels[..., 0].size for image in item.document.images)
        if len(batch) == DOCUMENTS_AT_ONCE or pixels >= PIXELS_AT_ONCE:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
