"""Verbs that keep a memory in order: what is like a document, what lies in it twice, what it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

import racm3
from racm3.cli.option_blocks import Embedding, OfMemory
from racm3.cli.option_types import IdArgument, OptionalText
from racm3.errors import InputError
from racm3.util.one_line import one_line

if TYPE_CHECKING:
    from racm3.data.item import Item
    from racm3.memory.memory import Memory


def _of(memory: Memory, item_id: str) -> Item:
    """A document by its id. Raises InputError if the memory does not hold it."""
    if not memory.known([item_id]):
        raise InputError(
            f"ID is {one_line(item_id)}, and {memory.path} holds no such document; "
            f"`racm3 memory search {memory.path} WORDS` prints ids"
        )
    (item,) = memory.get([item_id])
    return item


class MemorySimilar(Embedding, name="memory similar"):
    """Print the documents of a memory that are most like one of its own."""

    id: IdArgument
    hits: int = 5  # Print so many documents.

    def run(self) -> None:
        memory, encoder = self.open_both()
        item = _of(memory, self.id)
        (ranking,) = memory.search(encoder.embed([item.document]), self.hits, exclude_ids=[[self.id]])
        for other, score in zip(memory.get(ranking.ids), ranking.scores.tolist(), strict=True):
            print(one_line(f"{score:.3f}  {other.id}  {other.document.text or '(no text)'}  {other.origin}"))


class MemoryDedupe(Embedding, name="memory dedupe"):
    """Print the groups of documents that are copies of one another. Nothing is removed unless that is asked for."""

    # Documents more alike than this, as a cosine, are copies; by default what was measured for the encoder.
    above: Annotated[float | None, arg(metavar="FLOAT")] = None
    remove: bool = False  # Remove all but the first of each group.

    def run(self) -> None:
        from racm3.retriever.upkeep import copies_in

        memory, encoder = self.open_both()
        groups = copies_in(memory, encoder.copy_threshold if self.above is None else self.above)
        for group in groups:
            print(one_line("  ".join(group)))
        extra = [item_id for group in groups for item_id in group[1:]]
        if self.remove and extra:
            memory.remove(extra)
        what = "removed" if self.remove else "could be removed with --remove"
        print(f"{len(groups)} groups of copies; {len(extra)} documents {what}; {memory.path} holds {len(memory)}")


class MemoryStats(OfMemory, name="memory stats"):
    """Read every document, and print what kinds there are, from where, in which scripts, and how large."""

    def run(self) -> None:
        from racm3.retriever.upkeep import stats

        found = stats(self.open())
        print(f"documents  {found.documents}")
        for name, counts in (("kinds", found.kinds), ("origins", found.origins), ("scripts", found.scripts)):
            print(f"{name:10} {', '.join(f'{what} {count}' for what, count in counts.items()) or 'none'}")
        print(f"pictures   sides of {found.shortest_px} to {found.longest_px} px")


class MemoryEdit(Embedding, name="memory edit"):
    """Give one document of a memory another caption, or other metadata. It is embedded again and keeps its id."""

    id: IdArgument
    text: OptionalText = None  # The new caption, in the place of all its texts.
    # Metadata to set, as KEY=VALUE; a VALUE that reads as JSON is kept as such.
    metadata: Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")] = ()

    def run(self) -> None:
        import json

        if self.text is None and not self.metadata:
            raise InputError("nothing was given to change; give --text or --metadata")
        memory, encoder = self.open_both()
        item = _of(memory, self.id)
        facts = dict(item.metadata)
        for pair in self.metadata:
            key, sign, value = pair.partition("=")
            if not sign:
                raise InputError(f"{pair!r} is no metadata; write KEY=VALUE")
            try:
                facts[key] = json.loads(value)
            except ValueError:
                facts[key] = value
        document = item.document
        if self.text is not None:
            document = racm3.Document.of(self.text, *document.images)
        memory.put([replace(item, document=document, metadata=facts)], encoder.embed([document]))
        print(f"{self.id} was changed; {memory.path} holds {len(memory)} documents")
