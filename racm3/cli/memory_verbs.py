"""Verbs that make a memory, change it, search it, and say what is in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

import racm3
from racm3.cli.option_blocks import Embedding, OfMemory, load_encoder
from racm3.cli.option_types import (
    DataArgument,
    DataArguments,
    Folder,
    Ids,
    OptionalFile,
    OptionalText,
    Overrides,
    WordsArgument,
)
from racm3.cli.verb import Verb
from racm3.errors import InputError
from racm3.util.files import check_pictures_out, save_picture
from racm3.util.one_line import one_line
from racm3.util.progress import counted, progress, telling

if TYPE_CHECKING:
    from racm3.data import Item, Skipped, Source
    from racm3.data.skip_report import SkipReport
    from racm3.document import Part
    from racm3.retriever.encoder import Encoder
    from racm3.scale.pool import Workers


class Ingesting(Embedding):
    """How data is read."""

    # Stop at the first broken item; without it, FOLDER.skipped.jsonl lists what was left out, and why.
    strict: bool = False

    @contextmanager
    def reading(
        self, sources: Sequence[Source], skip: Callable[[Skipped], None] = lambda _: None
    ) -> Iterator[list[Iterator[Item]]]:
        """The items of each source, of which the first are shown; what is skipped is listed, and given to ``skip``."""
        from racm3.data.skip_report import with_samples

        with self.skips() as report:

            def note(skipped: Skipped) -> None:
                report(skipped)
                skip(skipped)

            yield [with_samples(source, source.read(strict=self.strict, report=note), report) for source in sources]

    @contextmanager
    def skips(self) -> Iterator[SkipReport]:
        """Lists what was skipped in FOLDER.skipped.jsonl; for a bucket that file lies in the current folder. The last
        line says how many were read, and how many were not."""
        from racm3.data.skip_report import SkipReport
        from racm3.memory.storage import Bucket, storage_at

        beside = Path() if isinstance(storage_at(self.folder), Bucket) else self.folder.parent
        with SkipReport(beside / f"{self.folder.name}.skipped.jsonl") as report:
            yield report
        print(report.line(), file=sys.stderr)


class OnCluster(Embedding):
    """Who computes."""

    # Work with so many processes of a Ray cluster instead, on whose machines all paths mean the same.
    workers: Annotated[int | None, arg(metavar="INT")] = None
    gpus_each: float = 0.0  # What each of them takes of a GPU; 0: a CPU.

    @property
    def pool(self) -> Workers | None:
        from racm3.scale.pool import Workers

        return None if self.workers is None else Workers(self.workers, self.gpus_each)


class MemoryCreate(Ingesting, name="memory create"):
    """Make a memory and add the documents of the data to it. Without data, it is empty.

    The same command goes on where it was broken off.
    """

    data: DataArguments = ()

    def run(self) -> None:
        from racm3.data import recognise

        sources = [recognise(source) for source in self.data]  # before anything is made: a wrong path is an error here
        encoder = load_encoder(self.encoder_folder)
        with self.reading(sources) as documents:
            made_of = " and ".join(sorted(source.place for source in sources)) or "yes"
            memory = racm3.Memory.create_or_resume(self.folder, encoder.fingerprint, encoder.dimension, made_of)
            fill(memory, encoder, sources, documents)
            if sources and not len(memory):
                memory.discard()
                raise InputError(f"not one document was read, so {self.folder} was not made; name other data")
            memory.finish()


class MemoryAdd(Ingesting, OnCluster, name="memory add"):
    """Add the documents of the data to a memory. The same command goes on where it was broken off.

    With --workers each file is read as a whole by one of them.
    """

    data: DataArguments = ()

    def run(self) -> None:
        from racm3.data import recognise
        from racm3.scale.embed import embed

        if not self.data:
            raise InputError(f"no documents were given to add to {self.folder}; name a folder or a file of them")
        if self.pool and self.strict:
            raise InputError("--strict reads in order, --workers many files at once; leave one of the two out")
        sources = [recognise(source) for source in self.data]
        if self.pool is None:
            memory, encoder = self.open_both()
            with self.reading(sources) as documents:
                fill(memory, encoder, sources, documents)
            return
        memory = self.open()
        with self.skips() as skip, telling("embedding documents") as report:
            done = embed(memory, self.encoder_folder, sources, self.pool, skip, report)
        print(f"{done}; {memory.path} holds {len(memory)} documents")


class MemoryRemove(OfMemory, name="memory remove"):
    """Remove documents from a memory."""

    ids: Ids = ()  # Of the documents; racm3 memory search prints them.

    def run(self) -> None:
        if not self.ids:
            raise InputError(f"no documents were named to remove from {self.folder}; give their ids")
        memory = self.open()
        memory.remove(self.ids)
        print(f"removed {len(set(self.ids))}; {memory.path} holds {len(memory)} documents")


class MemorySync(Ingesting, name="memory sync"):
    """Make a memory equal to the data: add what is new, replace what has changed, remove what is gone.

    What has not changed is not embedded again. A document that cannot be read now is kept as it is. What would remove
    more than half of the memory, or looks like a mistake, is done only with --yes.
    """

    data: DataArgument
    yes: bool = False  # Go on, whatever would be removed.
    dry_run: bool = False  # Only say what would be done.

    def run(self) -> None:
        from racm3.data import Protected, recognise
        from racm3.retriever.ingest import apply, plan_sync

        source = recognise(self.data)
        protected = Protected(source.root)
        memory, encoder = self.open_both()
        with self.reading([source], protected.add) as (documents,), progress() as report:
            plan = plan_sync(memory, counted(documents, "comparing documents", report), protected, source.told)
        for warning in plan.warnings:
            print(one_line(f"warning: {warning}"), file=sys.stderr)
        if self.dry_run:
            print(f"{memory.path} {plan}")
            for reason in plan.reasons:
                print(one_line(f"to be confirmed with --yes: {reason}"))
            return
        if plan.reasons and not self.yes:
            raise InputError(f"nothing was changed: sync {plan}. {'; '.join(plan.reasons)}. Add --yes if that is meant")
        with telling("syncing documents") as stored:
            done = apply(plan, memory, encoder, source.read(report=lambda _: None), stored)
        print(f"{done}; {memory.path} holds {len(memory)} documents")


class MemorySearch(Embedding, name="memory search"):
    """Print the documents of a memory that hold the words and are nearest to them, to a picture, or to both together.

    Case, accents, the plural and a misspelt letter do not matter. Words that no document fits find none.
    """

    words: WordsArgument = ()
    text: OptionalText = None  # What to look for, in words; the same as the words behind FOLDER.
    image: OptionalFile = None  # What to look for, as a picture.
    hits: int = 5  # Print so many documents.
    # Only documents whose metadata fulfil these conditions, such as license=CC0 'width>=512' 'author.name!=x'.
    where: Annotated[tuple[str, ...], arg(metavar="[CONDITION ...]")] = ()
    out: OptionalFile = None  # Where to write a picture of the hits as well: a .png, .jpg or .webp file.
    # How they are chosen, by name: hybrid, coverage (of all that is asked for), mmr, relevance (vectors alone)...
    strategy: OptionalText = None
    explain: bool = False  # Print what of a score the words and the vectors are.

    def run(self) -> None:
        from racm3.memory.hit_sheet import draw_sheet
        from racm3.memory.metadata_filter import where
        from racm3.retriever.retriever import searcher

        if self.words and self.text is not None:
            raise InputError("words were given twice, behind FOLDER and as --text; give them once")
        text = " ".join(self.words) if self.words else self.text
        parts: list[Part] = [] if text is None else [racm3.Text(text)]
        parts += [] if self.image is None else [racm3.Image.open(self.image)]
        if not parts:
            raise InputError("nothing to look for was given; give words, --image or both")
        if self.hits < 1:
            raise InputError(f"--hits is {self.hits}; give 1 or more")
        check_pictures_out(self.out)
        condition = where(self.where) if self.where else None
        memory, encoder = self.open_both()
        asked = racm3.Document.of(*parts)
        (hits,) = searcher(memory, encoder, self.strategy).retrieve([asked], self.hits, where=condition)
        for hit in hits:
            print(one_line(f"{hit.score:.3f}  {hit.id}  {hit.document.text or '(no text)'}  {hit.origin}"))
            if self.explain:
                words = "no words were looked for" if hit.words is None else f"words {hit.words:.3f}"
                print(f"       {words}, vectors {hit.cosine:.3f}")
        if not hits:
            print("no document fits; memory info tells how many there are", file=sys.stderr)
        if self.out and hits:
            items = memory.get([hit.id for hit in hits])
            save_picture(draw_sheet([(item, hit.score) for item, hit in zip(items, hits, strict=True)]), self.out)


class MemoryInfo(OfMemory, name="memory info"):
    """Print how many documents a memory holds, its size, how it is searched, and which encoder made it."""

    def run(self) -> None:
        info = self.open().info()
        found = "" if info.recall_at_10 is None else f", finds {100 * info.recall_at_10:.1f} % of the true 10 nearest"
        print(f"documents  {info.documents}")
        print(f"same       {info.same_content} hold what another one holds")
        print(f"on disk    {info.bytes_on_disk / 1e6:.1f} MB, {info.fragments} fragments, version {info.version}")
        print(f"index      {'none: searched exactly' if info.indexed is None else f'{info.indexed} documents{found}'}")
        print(f"dimension  {info.dimension}")
        print(f"encoder    {info.encoder}")


class MemoryCheck(OfMemory, name="memory check"):
    """Read every document and compare it with the hash of what was put in; exit status 1 if something is damaged."""

    repair: bool = False  # Remove what is damaged; everything else stays. Add or sync it again afterwards.

    def run(self) -> int:
        from racm3.memory.check import check

        found = check(self.folder, repair=self.repair)
        for damage in found.damaged:
            print(one_line(f"damaged  {damage.what}, {damage.documents} documents: {damage.reason}"))
        if found.uncovered:
            print(f"{found.uncovered} documents have no checksums yet; the next change of the memory gives them some")
        lost, removed = sum(damage.documents for damage in found.damaged), " and were removed" if self.repair else ""
        print(f"{found.sound} documents are sound, {lost} are damaged{removed if lost else ''}")
        return int(bool(found.damaged))


class MemoryCompact(OfMemory, name="memory compact"):
    """Free the space of what was removed and replaced, and put small fragments together."""

    def run(self) -> None:
        memory = self.open()
        before = memory.info()
        memory.compact()
        after = memory.info()
        print(f"{before.bytes_on_disk / 1e6:.1f} MB are {after.bytes_on_disk / 1e6:.1f} MB now")
        print(f"{before.fragments} fragments are {after.fragments} now")


class MemoryIndex(OfMemory, name="memory index"):
    """Make the index that searches use beyond a million documents, or bring it up to date, and measure it.

    A memory that grows beyond a million documents gets one by itself.
    """

    def run(self) -> None:
        print(f"the index finds {100 * self.open().index():.1f} % of the true 10 nearest documents")


class MemoryExport(OfMemory, name="memory export"):
    """Write the documents of a memory as WebDataset shards, from which racm3 memory create makes an equal one.

    OUT is written as a whole or stays as it was; an earlier export of the same memory is replaced.
    """

    out: Folder  # Where the files go: a folder that is new, empty, or holds an earlier export of this memory.

    def run(self) -> None:
        from racm3.memory.memory_export import export

        memory = self.open()
        with telling("exporting documents", len(memory)) as report:
            shards = export(memory, self.out, report)
        print(f"wrote {len(memory)} documents to {len(shards)} shards in {self.out}")


class MemoryReEmbed(OfMemory, name="memory re-embed"):
    """Move a memory to another encoder. Until it is done the memory stays as it was; the same command goes on."""

    encoder: Folder  # The model whose vectors it gets.

    def run(self) -> None:
        from racm3.retriever.ingest import re_embed

        memory, encoder = self.open(), load_encoder(self.encoder)
        with telling("embedding documents", len(memory)) as report:
            re_embed(memory, encoder, report)
        print(f"{memory.path} holds {len(memory)} documents with vectors of encoder {encoder.fingerprint}")


class MemoryNeighbours(OnCluster, name="memory neighbours"):
    """Write, for every document, the documents that training retrieves for its text and for its picture.

    The same command goes on where it was broken off.
    """

    out: Folder  # Where the Parquet files go: id, query (text or image), dropout, neighbours (ids, best first).
    k: int = 2  # Neighbours of each query.
    # One draw of both queries for each: the share of the query that is dropped.
    dropouts: tuple[float, ...] = (0.0, 0.2)
    seed: int = 0  # Of the query dropout.

    def run(self) -> None:
        from racm3.retriever.corpus_neighbours import memory_neighbours
        from racm3.scale.neighbours import neighbours

        memory = self.open()
        with telling("finding neighbours", len(memory)) as report:
            if self.pool is None:
                memory, encoder = self.open_both()
                memory_neighbours(
                    memory, encoder, self.out, k=self.k, dropouts=self.dropouts, seed=self.seed, report=report
                )
            else:
                asked = {"k": self.k, "dropouts": self.dropouts, "seed": self.seed}
                neighbours(memory, self.encoder_folder, self.out, self.pool, report, **asked)
        print(f"wrote the neighbours of {len(memory)} documents to {self.out}")


class MemoryPlan(Verb, name="memory plan"):
    """Print what a memory of very many documents takes: bytes, hours, machines. docs/scale.md explains it."""

    # Settings of racm3.scale.memory_plan.Assumptions, such as documents=5e9 machines=64 dimension=512.
    set: Overrides = ()

    def run(self) -> None:
        from racm3.scale.memory_plan import Assumptions, lines
        from racm3.util.config import override

        print("\n".join(lines(override(Assumptions(), self.set))))


def fill(
    memory: racm3.Memory, encoder: Encoder, sources: Sequence[Source], documents: Sequence[Iterator[Item]]
) -> None:
    """Add the documents of each source, and say what became of them."""
    from racm3.retriever.ingest import ingest

    for source, items in zip(sources, documents, strict=True):
        with telling("adding documents") as report:
            done = ingest(memory, encoder, items, source.told, report)
        print(f"{done}; {memory.path} holds {len(memory)} documents")
