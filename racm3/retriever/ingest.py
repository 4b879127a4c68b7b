"""Ingest: fill a memory with documents, make it equal to a source, move it to another encoder.

Each goes on where it was broken off: what is stored already is recognised before it is embedded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from racm3.data import Item, Protected
from racm3.data.reading import AT
from racm3.document import modality_of
from racm3.errors import MemoryStoreError
from racm3.memory.memory import Memory
from racm3.memory.storage import storage_at
from racm3.retriever.encoder import Encoder

__all__ = [
    "Changes",
    "Plan",
    "apply",
    "batches",
    "finished_memory",
    "ingest",
    "memory_of",
    "plan_sync",
    "re_embed",
    "remember_kinds",
    "sync",
]

DOCUMENTS_AT_ONCE = 512
PIXELS_AT_ONCE = 2**26
"""What is embedded and added together has at most so many documents, and little more pixels than these (ours): few
commits, and 200 MB of large pictures."""


KINDS = "kinds"
"""Under which a memory keeps what it was made of."""


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
    memory: Memory,
    encoder: Encoder,
    items: Iterable[Item],
    kinds: Sequence[str] = (),
    report: Callable[[int], None] = lambda _: None,
) -> Changes:
    """Embed the items and add them to the memory; those that are there already are passed over, unembedded.

    ``kinds``: what the source is, in words (`Source.told`); the memory keeps it for `plan_sync`. ``report`` is told how
    many items are stored. Raises EncoderMismatchError if another encoder made the memory, MemoryStoreError if it holds
    an item's id with other content.
    """
    memory.check_encoder(encoder.fingerprint)
    done = Changes()
    for batch in batches(items):
        new = memory.unlike(batch)
        if clash := memory.known([item.id for item in new]):
            raise MemoryStoreError(
                f"the id {min(clash)!r} is already in the memory, with other content; replace what has changed with "
                "`racm3 memory sync`; if it is another document, name the folder above both, in which their ids differ"
            )
        if new:
            added = memory.add_missing(new, encoder.embed([item.document for item in new]))
            done.added += added
            done.unchanged += len(new) - added
        done.unchanged += len(batch) - len(new)
        report(done.added + done.unchanged)
    memory.tidy()
    remember_kinds(memory, kinds)
    return done


def remember_kinds(memory: Memory, kinds: Iterable[str]) -> None:
    """Have the memory keep what it was made of, beside what it was made of before."""
    if known := {*_kinds_of(memory), *kinds}:
        memory.set_note(KINDS, json.dumps(sorted(known)))


def memory_of(path: Path, encoder: Encoder, items: Iterable[Item]) -> Memory:
    """The memory at ``path``; where there is none, or one whose making was broken off, it is made of ``items``.

    Raises MemoryStoreError if something else is there, or it cannot be read; EncoderMismatchError if another encoder
    made it.
    """
    if (made := finished_memory(path)) is not None:
        made.check_encoder(encoder.fingerprint)
        return made
    memory = Memory.create_or_resume(path, encoder.fingerprint, encoder.dimension)
    ingest(memory, encoder, items)
    memory.finish()
    return memory


def finished_memory(path: Path) -> Memory | None:
    """The memory at ``path``, unless there is nothing, or one whose making was broken off.

    Raises MemoryStoreError if something else is there, or it cannot be read.
    """
    memory = Memory.open(path) if storage_at(path).exists() else None
    return None if memory is None or memory.unfinished else memory


@dataclass
class Plan:
    """What a sync would do, in documents; `apply` does it. ``reasons``: why somebody is to agree first."""

    added: int = 0
    replaced: int = 0
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    losing: list[str] = field(default_factory=list)
    """Those of the replaced that lose all their text, or all their pictures."""
    protected: list[str] = field(default_factory=list)
    """Those that stay as they are because what was skipped may stand for them."""
    warnings: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    kinds: Sequence[str] = ()
    changed: list[Item] | None = field(default_factory=list)
    """The items that are new or replaced, if they are few."""

    def __str__(self) -> str:
        counts = {"add": self.added, "replace": self.replaced, "remove": len(self.removed)}
        told = [f"{name} {count:,}" for name, count in counts.items() if count]
        kept = f"; {len(self.protected):,} that could not be read stay as they are" if self.protected else ""
        return f"would {', '.join(told) or 'change nothing'}{kept}"


def plan_sync(
    memory: Memory, items: Iterable[Item], protected: Protected | None = None, kinds: Sequence[str] = ()
) -> Plan:
    """What makes the memory equal to ``items``: new ones are added, changed ones replaced, all others removed.

    Equal is what has the same content and metadata. ``protected``, asked when all items were read, says which documents
    stay because they may be among those that could not be read: they are not removed, nor do they lose a caption or
    their pictures. A plan has reasons to be confirmed if it removes more than half of the memory, or anything from one
    that was filled from other places as well, takes the text or the pictures from most of what it replaces, or has
    other ``kinds`` than last time. Raises MemoryStoreError if there are no items.
    """
    memory.refresh()
    plan, seen, losing, shorter, size = Plan(kinds=kinds), set[str](), list[str](), dict[str, str](), 0
    for batch in batches(items):
        seen.update(item.id for item in batch)
        fresh = memory.unlike(batch)
        known = memory.facts([item.id for item in fresh])
        for item in fresh:
            if fact := known.get(item.id):
                lost = fact.modalities - {modality_of(part) for part in item.document.parts}
                losing += [item.id] if lost else []
                if lost or _captions(item.metadata) < _captions(fact.metadata):
                    shorter[item.id] = fact.origin
        plan.added += len(fresh) - len(known)
        plan.replaced += len(known)
        plan.unchanged += len(batch) - len(fresh)
        size += _pixels(fresh)
        if plan.changed is not None:
            few = len(plan.changed) + len(fresh) <= DOCUMENTS_AT_ONCE and size <= PIXELS_AT_ONCE
            plan.changed = [*plan.changed, *fresh] if few else None
    if not seen:
        raise MemoryStoreError(
            f"there is not one document to make {memory.path} equal to; nothing was removed: check the source"
        )
    gone = memory.known([item_id for item_id in memory.ids if item_id not in seen])
    if protected is not None:
        protected.settle(memory.known)
        plan.protected = [item_id for item_id, origin in shorter.items() if protected(item_id, origin)]
        plan.replaced -= len(plan.protected)
        plan.protected += [item_id for item_id, origin in gone.items() if protected(item_id, origin)]
        plan.warnings = [
            f"{why}; it may be any of the documents from there, so none of them is removed" for why in protected.unknown
        ]
    stay = set(plan.protected)
    plan.removed = [item_id for item_id in gone if item_id not in stay]
    plan.losing = [item_id for item_id in losing if item_id not in stay]
    plan.reasons = list(_reasons(plan, memory))
    return plan


def _captions(metadata: dict[str, Any]) -> int:
    """How many captions the metadata hold; a document has but one."""
    captions = metadata.get("captions")
    return len(captions) if isinstance(captions, list) else 1


def _reasons(plan: Plan, memory: Memory) -> Iterator[str]:
    if 2 * len(plan.removed) > len(memory):
        yield f"it would remove {len(plan.removed):,} of {len(memory):,} documents"
    if 2 * len(plan.losing) > plan.replaced:
        yield (
            f"it would take the text or the pictures from {len(plan.losing):,} of the {plan.replaced:,} documents that "
            f"it replaces, such as {plan.losing[0]!r}: was a column or an ending renamed?"
        )
    last, now = _kinds_of(memory), set(plan.kinds)
    others = {kind for kind in last - now if kind.startswith(AT)}
    if others and now and plan.removed:
        yield (
            f"it would remove {len(plan.removed):,} documents, such as {plan.removed[0]!r}, and the memory was also "
            f"filled {' and '.join(sorted(others))}"
        )
    last, now = ({kind for kind in kinds if not kind.startswith(AT)} for kinds in (last, now))
    if last and now and now != last and (plan.added or plan.replaced or plan.removed):
        yield f"it was {' + '.join(sorted(last))} last time, and is {' + '.join(sorted(now))} now"


def _kinds_of(memory: Memory) -> set[str]:
    """What the memory was made of."""
    return set(json.loads(memory.note(KINDS) or "[]"))


def apply(
    plan: Plan,
    memory: Memory,
    encoder: Encoder,
    items: Iterable[Item],
    report: Callable[[int], None] = lambda _: None,
) -> Changes:
    """Do what was planned. ``items`` are those of the plan, from the beginning; they are not read if few have changed.

    ``report`` is told how many items are stored. Raises EncoderMismatchError if another encoder made the memory.
    """
    memory.check_encoder(encoder.fingerprint)
    done, stay, seen = Changes(unchanged=plan.unchanged), set(plan.protected), set[str]()
    for batch in batches(items if plan.changed is None else plan.changed):
        fresh = [item for item in memory.unlike(batch) if item.id not in stay]
        seen.update(item.id for item in batch)
        if fresh:
            replaced = len(memory.known([item.id for item in fresh]))
            memory.put(fresh, encoder.embed([item.document for item in fresh]))
            done.replaced += replaced
            done.added += len(fresh) - replaced
        report(len(seen))
    gone = [item_id for item_id in memory.known(plan.removed) if item_id not in seen]
    memory.remove(gone)
    done.removed = len(gone)
    memory.tidy()
    if plan.kinds:
        memory.set_note(KINDS, json.dumps(sorted(plan.kinds)))
    return done


def sync(
    memory: Memory,
    encoder: Encoder,
    items: Iterable[Item],
    protected: Protected | None = None,
    kinds: Sequence[str] = (),
    *,
    confirmed: bool = False,
) -> Changes:
    """`plan_sync`, then `apply`. An iterator is held in memory, as it is gone through twice.

    Raises MemoryStoreError if the plan has reasons to be confirmed and is not ``confirmed``, or if there are no items.
    """
    memory.check_encoder(encoder.fingerprint)
    held = list(items) if isinstance(items, Iterator) else items
    plan = plan_sync(memory, held, protected, kinds)
    if plan.reasons and not confirmed:
        raise MemoryStoreError(
            f"nothing was changed: {memory.path} {plan}. {'; '.join(plan.reasons)}. If that is what is wanted, "
            "confirm it with --yes"
        )
    return apply(plan, memory, encoder, held)


def re_embed(memory: Memory, encoder: Encoder, report: Callable[[int], None] = lambda _: None) -> None:
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
        pixels += _pixels([item])
        if len(batch) == DOCUMENTS_AT_ONCE or pixels >= PIXELS_AT_ONCE:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _pixels(items: Iterable[Item]) -> int:
    return sum(image.pixels[..., 0].size for item in items for image in item.document.images)
