"""The command line: one function a verb, and ``VERBS``, the map of them.

A verb imports its room when it runs, so that ``racm3 --help`` is quick. What it returns as an int is the exit status;
an error that racm3 raises on purpose is one line on stderr and status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from racm3.errors import InputError, RACM3Error

if TYPE_CHECKING:
    import numpy as np

    from racm3.data import Item, Skipped
    from racm3.data import Source as DataSource
    from racm3.data.skip_report import SkipReport
    from racm3.document import Document, Image
    from racm3.generator.sampling import Sampling
    from racm3.memory.memory import Memory
    from racm3.pipeline import RACM3, Completion, Settings
    from racm3.retriever.encoder import Encoder

C = TypeVar("C")
Verbs = Mapping[str, "Callable[..., int | None] | Verbs"]
Folder = Positional[Annotated[Path, arg(metavar="FOLDER")]]
Source = Positional[Annotated[Path, arg(metavar="DATA")]]
Sources = Positional[Annotated[tuple[str, ...], arg(metavar="[DATA ...]")]]
Ids = Positional[Annotated[tuple[str, ...], arg(metavar="[ID ...]")]]
Conditions = Annotated[tuple[str, ...], arg(metavar="[CONDITION ...]")]
Out = Annotated[Path, arg(metavar="FOLDER")]
OptionalText = Annotated[str | None, arg(metavar="TEXT")]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER")]
OptionalFile = Annotated[Path | None, arg(metavar="FILE")]
OptionalNumber = Annotated[float | None, arg(metavar="NUMBER")]
File = Annotated[Path, arg(metavar="FILE")]
Result = Positional[Annotated[Path, arg(metavar="FILE")]]
Picture = Positional[Annotated[Path, arg(metavar="PICTURE")]]
Boxes = Annotated[tuple[tuple[int, int, int, int], ...], arg(metavar="[LEFT TOP WIDTH HEIGHT ...]")]
Format = Literal["transformers"]
Overrides = Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")]

PICTURES_OUT = (".png", ".jpg", ".jpeg", ".webp")


def doctor() -> int:
    """Say what is installed, what is broken and what to do about it; exit status 1 if something needed is broken."""
    from racm3.doctor import doctor

    return doctor()


def train_image_tokenizer(
    data: Source,
    *,
    out: Out,
    preset: str = "scenes",
    config: OptionalFile = None,
    set: Overrides = (),
) -> None:
    """Train the built-in image tokenizer. The same command resumes a broken run.

    Args:
        data: Captioned pictures in any layout of docs/formats.md.
        out: Where the model, the state of its training and the prepared pictures go.
        preset: The run to start from; racm3/presets.py lists them.
        config: Settings of the run as .json or .toml instead; what it leaves out keeps its default.
        set: Settings that replace those, such as loop.steps=2000 model.patch_px=4 init_from=FOLDER.
    """
    from racm3.presets import preset as runs
    from racm3.training.image_tokenizer_recipe import ImageTokenizerRun
    from racm3.training.models import make_image_tokenizer

    make_image_tokenizer(data, _settings(ImageTokenizerRun, lambda: runs(preset).image_tokenizer, config, set), out)
    print(f"wrote {out}")


def train_encoder(
    data: Source,
    *,
    out: Out,
    tokenizer: OptionalFile = None,
    preset: str = "scenes",
    config: OptionalFile = None,
    set: Overrides = (),
) -> None:
    """Train a small CLIP, which retrieves. The same command resumes a broken run.

    Args:
        data: Captioned pictures in any layout of docs/formats.md.
        out: Where the model, the state of its training and the prepared pictures go.
        tokenizer: The tokenizer.json for its texts; without one, it is learnt from the captions.
        preset: The run to start from; racm3/presets.py lists them.
        config: Settings of the run as .json or .toml instead; what it leaves out keeps its default.
        set: Settings that replace those, such as loop.steps=2000 batch_size=128 init_from=FOLDER.
    """
    from racm3.presets import preset as runs
    from racm3.training.encoder_recipe import EncoderRun
    from racm3.training.models import make_encoder

    make_encoder(data, _settings(EncoderRun, lambda: runs(preset).encoder, config, set), out, tokenizer)
    print(f"wrote {out}")


def train_generator(
    data: Source,
    *,
    out: Out,
    image_tokenizer: OptionalFolder = None,
    encoder: OptionalFolder = None,
    tokenizer: OptionalFile = None,
    prepared: Annotated[str | None, arg(metavar="FOLDER")] = None,
    preset: str = "scenes",
    config: OptionalFile = None,
    set: Overrides = (),
) -> None:
    """Train a generator, and before it whatever it needs; what is there is reused. The same command resumes.

    Without --image-tokenizer and --encoder, those beside --out are used, or trained there on the same data; a memory of
    the data is made there too.

    Args:
        data: Documents in any layout of docs/formats.md.
        out: Where the model and the state of its training go, such as MODELS/generator.
        image_tokenizer: What turns pictures into codes: ours or a JanusVQVAE. By default MODELS/image-tokenizer.
        encoder: What retrieves: ours or a CLIP. By default MODELS/encoder; a run with retrieved_shares=[1] needs none.
        tokenizer: The tokenizer.json for texts; without one, it is learnt from the captions.
        prepared: Where the data's ids, vectors and neighbours are kept, a folder or s3://... By default OUT/prepared.
        preset: The runs to start from; racm3/presets.py lists them.
        config: Settings of the generator's run as .json or .toml instead; what it leaves out keeps its default.
        set: Settings that replace those, such as loop.steps=2000 alpha=1 model.width=384.
    """
    from dataclasses import replace
    from shlex import quote

    from racm3.data import read
    from racm3.presets import preset as presets
    from racm3.training.distributed import connect
    from racm3.training.generator_recipe import GeneratorRun
    from racm3.training.models import make_all

    runs = presets(preset)
    runs = replace(runs, generator=_settings(GeneratorRun, lambda: runs.generator, config, set))
    memory = make_all(data, runs, out, image_tokenizer, encoder, tokenizer, prepared)
    if not connect().main:
        return
    print(f"wrote {out}")
    if memory and image_tokenizer is None and out.name == "generator":  # a whole folder of models
        where = f"--models {out.parent} --memory {memory}"
        caption = next(item.document.text for item in read(data) if item.document.text)
        print("try it:")
        print(f"  racm3 generate {quote(caption)} {where} --out {out.parent / 'drawn.png'}")
        print(f"  racm3 caption {out.parent / 'drawn.png'} {where}")


def train_judge(*, out: Out, config: OptionalFile = None, set: Overrides = ()) -> None:
    """Train the judge that tells what a picture of the built-in world shows. The same command resumes a broken run.

    Args:
        out: Where the model and the state of its training go.
        config: Settings of the run as .json or .toml; what it leaves out keeps its default.
        set: Settings that replace those, such as loop.steps=500 batch_size=32.
    """
    from racm3.scenes.judges import JudgeRun, train_judge

    run = _settings(JudgeRun, JudgeRun, config, set)
    train_judge(run, out)
    print(f"wrote {out}")


def plan(
    *,
    preset: str = "scenes",
    config: OptionalFile = None,
    set: Overrides = (),
    gpus: int = 1,
    tokens: float = 0.0,
    gpu_memory_gb: float = 80.0,
    reserved_gb: float = 4.0,
    gpu_tflops: float = 312.0,
    mfu: float = 0.4,
    gpu_hour_price: float = 2.0,
    caption_tokens: int = 24,
    pair_kb: float = 30.0,
    epochs: float = 1.0,
) -> None:
    """Print what a generator's training takes: FLOPs, memory, data, hours, cost; exit status 2 if it does not fit.

    Args:
        preset: The runs to start from; racm3/presets.py lists them.
        config: Settings of the generator's run as .json or .toml instead; what it leaves out keeps its default.
        set: Settings that replace those, such as tokens_per_step=1000000 recompute_layers=true.
        gpus: GPUs that share the weights and each step's tokens.
        tokens: Tokens trained on, main and retrieved; 0: the run's steps times its tokens a step.
        gpu_memory_gb: Memory of a GPU.
        reserved_gb: Of it, for its context, communication buffers and fragmentation.
        gpu_tflops: Dense bfloat16 rate of a GPU; an A100's by default.
        mfu: Share of that rate which the model's own FLOPs reach; computing layers again lowers it.
        gpu_hour_price: Of one GPU for one hour.
        caption_tokens: Text ids of a document.
        pair_kb: Thousand bytes of a captioned picture on disk; a 256 px JPEG's by default.
        epochs: How often a document is the main one of a sequence.
    """
    from dataclasses import replace

    from racm3.presets import preset as presets
    from racm3.training import training_plan as planning
    from racm3.training.generator_recipe import GeneratorRun

    assumed = planning.Assumptions(
        gpus=gpus,
        tokens=tokens,
        gpu_memory_gb=gpu_memory_gb,
        reserved_gb=reserved_gb,
        gpu_tflops=gpu_tflops,
        mfu=mfu,
        gpu_hour_price=gpu_hour_price,
        caption_tokens=caption_tokens,
        pair_kb=pair_kb,
        epochs=epochs,
    )
    runs = presets(preset)
    runs = replace(runs, generator=_settings(GeneratorRun, lambda: runs.generator, config, set))
    made = planning.plan(runs, assumed)
    print("\n".join(planning.lines(made)))
    planning.check(made)


def _settings(kind: type[C], preset: Callable[[], C], config: Path | None, set: Sequence[str]) -> C:
    """A run's configuration: the preset or the file, then the overrides."""
    from racm3.util.config import load, override

    run: Any = load(kind, config) if config else preset()  # type: ignore[type-var]
    return override(run, set)


def memory_create(folder: Folder, data: Sources, *, encoder: OptionalFolder = None, strict: bool = False) -> None:
    """Make a memory and add the documents of the data to it.

    Args:
        folder: The memory, a folder or s3://bucket/name; there must be nothing there yet.
        data: Documents in any layout of docs/formats.md; none for an empty memory.
        encoder: The model that turns documents into vectors; by default the shipped one.
        strict: Stop at the first broken item; without it, FOLDER.skipped.jsonl lists what was left out, and why.
    """
    from racm3.data import recognise
    from racm3.memory.memory import Memory

    sources = [recognise(source) for source in data]  # before anything is made: a wrong path is an error here
    model = _encoder(encoder)
    with _reading(sources, folder, strict) as documents:
        _fill(Memory.create(folder, model.fingerprint, model.dimension), model, sources, documents)


def memory_add(folder: Folder, data: Sources, *, encoder: OptionalFolder = None, strict: bool = False) -> None:
    """Add the documents of the data to a memory.

    Args:
        folder: The memory.
        data: Documents in any layout of docs/formats.md.
        encoder: The model that made the memory; by default the shipped one.
        strict: Stop at the first broken item; without it, FOLDER.skipped.jsonl lists what was left out, and why.
    """
    from racm3.data import recognise
    from racm3.memory.memory import Memory

    if not data:
        raise InputError(f"no documents were given to add to {folder}; name a folder or a file of them")
    sources = [recognise(source) for source in data]
    model = _encoder(encoder)
    memory = Memory.open(folder, model.fingerprint)
    with _reading(sources, folder, strict) as documents:
        _fill(memory, model, sources, documents)


@contextmanager
def _reading(
    sources: Sequence[DataSource], folder: Path, strict: bool, skip: Callable[[Skipped], None] = lambda skipped: None
) -> Iterator[list[Iterable[Item]]]:
    """The items of each source, of which the first are shown; what is skipped is listed, and given to ``skip``."""
    from racm3.data.skip_report import with_samples

    with _skips(folder) as report:

        def note(skipped: Skipped) -> None:
            report(skipped)
            skip(skipped)

        yield [with_samples(source, source.read(strict=strict, report=note), report) for source in sources]


@contextmanager
def _skips(folder: Path) -> Iterator[SkipReport]:
    """Lists what was skipped in ``folder``.skipped.jsonl; for a bucket that file lies in the current folder. The last
    line says how many were read, and how many were not."""
    from racm3.data.skip_report import SkipReport
    from racm3.memory.storage import Bucket, storage_at

    beside = Path() if isinstance(storage_at(folder), Bucket) else folder.parent
    with SkipReport(beside / f"{folder.name}.skipped.jsonl") as report:
        yield report
    print(report.line(), file=sys.stderr)


def memory_remove(folder: Folder, ids: Ids) -> None:
    """Remove documents from a memory.

    Args:
        folder: The memory.
        ids: Of the documents; racm3 memory search prints them.
    """
    from racm3.memory.memory import Memory

    if not ids:
        raise InputError(f"no documents were named to remove from {folder}; give their ids")
    memory = Memory.open(folder)
    memory.remove(ids)
    print(f"removed {len(set(ids))}; {memory.path} holds {len(memory)} documents")


def memory_sync(
    folder: Folder,
    data: Source,
    *,
    encoder: OptionalFolder = None,
    strict: bool = False,
    yes: bool = False,
    dry_run: bool = False,
) -> None:
    """Make a memory equal to the data: add what is new, replace what has changed, remove what is gone.

    What has not changed is not embedded again. A document that cannot be read now is kept as it is. What would remove
    more than half of the memory, or looks like a mistake, is done only with --yes.

    Args:
        folder: The memory.
        data: Documents in any layout of docs/formats.md.
        encoder: The model that made the memory; by default the shipped one.
        strict: Stop at the first broken item; without it, FOLDER.skipped.jsonl lists what was left out, and why.
        yes: Go on, whatever would be removed.
        dry_run: Only say what would be done.
    """
    from racm3.data import Protected, recognise
    from racm3.memory.memory import Memory
    from racm3.retriever.ingest import apply, plan_sync

    source = recognise(data)
    model = _encoder(encoder)
    memory = Memory.open(folder, model.fingerprint)
    protected, kinds = Protected(source.root), [kind.title for kind in source.kinds]
    with _reading([source], folder, strict, protected.add) as (documents,):
        plan = plan_sync(memory, _shown(documents, "comparing documents"), protected, kinds)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if dry_run:
        print(f"{memory.path} {plan}" + "".join(f"\nto be confirmed with --yes: {why}" for why in plan.reasons))
        return
    if plan.reasons and not yes:
        raise InputError(f"nothing was changed: sync {plan}. {'; '.join(plan.reasons)}. Add --yes if that is meant")
    done = apply(plan, memory, model, source.read(report=lambda skipped: None))
    print(f"{done}; {memory.path} holds {len(memory)} documents")


def memory_search(
    folder: Folder,
    *,
    text: OptionalText = None,
    image: OptionalFile = None,
    hits: int = 5,
    where: Conditions = (),
    out: OptionalFile = None,
    encoder: OptionalFolder = None,
) -> None:
    """Print the documents of a memory that are nearest to a text, to a picture, or to both together.

    Args:
        folder: The memory.
        text: What to look for, in words.
        image: What to look for, as a picture.
        hits: Print so many documents.
        where: Only documents whose metadata fulfil these conditions, such as license=CC0 'width>=512' 'author.name!=x'.
        out: Where to write a picture of the hits as well: a .png, .jpg or .webp file.
        encoder: The model that made the memory; by default the shipped one.
    """
    from racm3.document import Document, Image, Part, Text
    from racm3.memory.hit_sheet import draw_sheet
    from racm3.memory.memory import Memory
    from racm3.memory.metadata_filter import where as fulfilling

    parts: list[Part] = [Text(text)] if text is not None else []
    parts += [Image.open(image)] if image is not None else []
    if not parts:
        raise InputError("nothing to look for was given; give --text, --image or both")
    if out:
        _checked_out(out)
    condition = fulfilling(where) if where else None
    model = _encoder(encoder)
    memory = Memory.open(folder, model.fingerprint)
    (ranking,) = memory.search(model.embed([Document(tuple(parts))]), hits, where=condition)
    items = memory.get(ranking.ids)
    for score, item in zip(ranking.scores, items, strict=True):
        print(f"{score:.3f}  {item.id}  {item.document.text or '(no text)'}  {item.origin}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet([(item, float(score)) for score, item in zip(ranking.scores, items, strict=True)]).save(out)
        print(f"wrote {out}")


def memory_info(folder: Folder) -> None:
    """Print how many documents a memory holds, its size, how it is searched, and which encoder made it.

    Args:
        folder: The memory.
    """
    from racm3.memory.memory import Memory

    info = Memory.open(folder).info()
    found = "" if info.recall_at_10 is None else f", finds {100 * info.recall_at_10:.1f} % of the true 10 nearest"
    print(f"documents  {info.documents}")
    print(f"same       {info.same_content} hold what another one holds")
    print(f"on disk    {info.bytes_on_disk / 1e6:.1f} MB, {info.fragments} fragments, version {info.version}")
    print(f"index      {'none: searched exactly' if info.indexed is None else f'{info.indexed} documents{found}'}")
    print(f"dimension  {info.dimension}")
    print(f"encoder    {info.encoder}")


def memory_check(folder: Folder, *, repair: bool = False) -> int:
    """Read every document and compare it with the hash of what was put in; exit status 1 if something is damaged.

    Args:
        folder: The memory.
        repair: Remove what is damaged; everything else stays. Add or sync it again afterwards.
    """
    from racm3.memory.check import check

    found = check(folder, repair=repair)
    for damage in found.damaged:
        print(f"damaged  {damage.what}, {damage.documents} documents: {damage.reason}")
    if found.uncovered:
        print(f"{found.uncovered} documents have no checksums yet; the next change of the memory gives them some")
    lost = sum(damage.documents for damage in found.damaged)
    print(f"{found.sound} documents are sound, {lost} are damaged{' and were removed' if repair and lost else ''}")
    return int(bool(found.damaged))


def memory_compact(folder: Folder) -> None:
    """Free the space of what was removed and replaced, and put small fragments together.

    Args:
        folder: The memory.
    """
    from racm3.memory.memory import Memory

    memory = Memory.open(folder)
    before = memory.info()
    memory.compact()
    after = memory.info()
    print(f"{before.bytes_on_disk / 1e6:.1f} MB are {after.bytes_on_disk / 1e6:.1f} MB now")
    print(f"{before.fragments} fragments are {after.fragments} now")


def memory_index(folder: Folder) -> None:
    """Make the index that searches use beyond a million documents, or bring it up to date, and measure it.

    A memory that grows beyond a million documents gets one by itself.

    Args:
        folder: The memory.
    """
    from racm3.memory.memory import Memory

    found = Memory.open(folder).index()
    print(f"the index finds {100 * found:.1f} % of the true 10 nearest documents")


def memory_export(folder: Folder, *, out: Out) -> None:
    """Write the documents of a memory as WebDataset shards; those of another shape than a caption and a picture go to
    OUT/interleaved/documents.jsonl. Both are read by racm3 memory create.

    Args:
        folder: The memory.
        out: Where the files go.
    """
    from racm3.data import write_webdataset, writing_documents
    from racm3.data.writing import is_pair
    from racm3.memory.memory import Memory

    memory, others = Memory.open(folder), 0
    with writing_documents(out / "interleaved") as write:

        def pairs() -> Iterator[Item]:
            nonlocal others
            for item in _shown(memory.items(), "exporting documents"):
                if is_pair(item):
                    yield item
                else:
                    write(item)
                    others += 1

        shards = write_webdataset(pairs(), out)
    print(f"wrote {len(memory) - others} documents to {len(shards)} shards in {out}")
    if others:
        print(f"wrote {others} documents of other shapes to {out / 'interleaved'}")


def memory_re_embed(folder: Folder, *, encoder: Annotated[Path, arg(metavar="FOLDER")]) -> None:
    """Move a memory to another encoder. Until it is done the memory stays as it was; the same command goes on.

    Args:
        folder: The memory.
        encoder: The model whose vectors it gets.
    """
    from racm3.memory.memory import Memory
    from racm3.retriever.ingest import re_embed

    model = _encoder(encoder)
    memory = Memory.open(folder)
    with _progress("embedding documents", len(memory)) as report:
        re_embed(memory, model, report)
    print(f"{memory.path} holds {len(memory)} documents with vectors of encoder {model.fingerprint}")


def memory_neighbours(
    folder: Folder,
    *,
    out: Out,
    k: int = 2,
    dropouts: tuple[float, ...] = (0.0, 0.2),
    seed: int = 0,
    encoder: OptionalFolder = None,
) -> None:
    """Write, for every document, the documents that training retrieves for its text and for its picture.

    The same command goes on where it was broken off.

    Args:
        folder: The memory.
        out: Where the Parquet files go: id, query (text or image), dropout, neighbours (ids, best first).
        k: Neighbours of each query.
        dropouts: One draw of both queries for each: the share of the query that is dropped.
        seed: Of what is dropped.
        encoder: The model that made the memory; by default the shipped one.
    """
    from racm3.memory.memory import Memory
    from racm3.retriever.corpus_neighbours import memory_neighbours

    model = _encoder(encoder)
    memory = Memory.open(folder, model.fingerprint)
    with _progress("finding neighbours", len(memory)) as report:
        memory_neighbours(memory, model, out, k=k, dropouts=dropouts, seed=seed, report=report)
    print(f"wrote the neighbours of {len(memory)} documents to {out}")


def scale_plan(*, set: Overrides = ()) -> None:
    """Print what a memory of very many documents takes: bytes, hours, machines. docs/scale.md explains it.

    Args:
        set: Settings of racm3.scale.memory_plan.Assumptions, such as documents=5e9 machines=64 dimension=512.
    """
    from racm3.scale.memory_plan import Assumptions, lines
    from racm3.util.config import override

    print("\n".join(lines(override(Assumptions(), set))))


def scale_embed(
    folder: Folder,
    data: Sources,
    *,
    workers: int,
    gpus_each: float = 0.0,
    encoder: OptionalFolder = None,
) -> None:
    """Add the documents of the data to a memory, as racm3 memory add does, on the machines of a Ray cluster.

    The same command goes on where it was broken off. Paths mean the same on all machines.

    Args:
        folder: The memory, in a folder that all machines share or at s3://bucket/name.
        data: Documents in any layout of docs/formats.md; each file is read as a whole by one worker.
        workers: Processes that embed.
        gpus_each: What each of them takes of a GPU; 0: a CPU.
        encoder: The model that made the memory; by default the shipped one.
    """
    from racm3.data import recognise
    from racm3.memory.memory import Memory
    from racm3.scale.embed import embed
    from racm3.scale.pool import Workers

    if not data:
        raise InputError(f"no documents were given to add to {folder}; name a folder or a file of them")
    sources = [recognise(source) for source in data]
    memory = Memory.open(folder)
    with _skips(folder) as skip, _progress("embedding documents", None) as report:
        done = embed(memory, _encoder_folder(encoder), sources, Workers(workers, gpus_each), skip, report)
    print(f"{done}; {memory.path} holds {len(memory)} documents")


def scale_neighbours(
    folder: Folder,
    *,
    out: Out,
    workers: int,
    gpus_each: float = 0.0,
    k: int = 2,
    dropouts: tuple[float, ...] = (0.0, 0.2),
    seed: int = 0,
    encoder: OptionalFolder = None,
) -> None:
    """Write what racm3 memory neighbours writes, on the machines of a Ray cluster.

    The same command goes on where it was broken off. Paths mean the same on all machines.

    Args:
        folder: The memory, in a folder that all machines share or at s3://bucket/name.
        out: Where the Parquet files go: a folder that all machines share.
        workers: Processes that search.
        gpus_each: What each of them takes of a GPU; 0: a CPU.
        k: Neighbours of each query.
        dropouts: One draw of both queries for each: the share of the query that is dropped.
        seed: Of what is dropped.
        encoder: The model that made the memory; by default the shipped one.
    """
    from racm3.memory.memory import Memory
    from racm3.scale.neighbours import neighbours
    from racm3.scale.pool import Workers

    memory = Memory.open(folder)
    asked = {"k": k, "dropouts": dropouts, "seed": seed}
    with _progress("finding neighbours", len(memory)) as report:
        neighbours(memory, _encoder_folder(encoder), out, Workers(workers, gpus_each), report, **asked)
    print(f"wrote the neighbours of {len(memory)} documents to {out}")


def _encoder(folder: Path | None) -> Encoder:
    from racm3.retriever.encoder import Encoder

    return Encoder.from_pretrained(_encoder_folder(folder))


def _encoder_folder(folder: Path | None) -> Path:
    from racm3.model_folder import ModelFolder

    return folder or ModelFolder().encoder_path


def _fill(memory: Memory, encoder: Encoder, sources: Sequence[DataSource], documents: Iterable[Iterable[Item]]) -> None:
    from racm3.retriever.ingest import ingest

    for source, items in zip(sources, documents, strict=True):
        done = ingest(memory, encoder, _shown(items, "adding documents"), [kind.title for kind in source.kinds])
        print(f"{done}; {memory.path} holds {len(memory)} documents")


def _shown(values: Iterable[C], what: str) -> Iterable[C]:
    """``values``, with their count shown on stderr as they are used."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(values, description=what)


def data_filter(
    shards: Positional[Annotated[str, arg(metavar="SHARDS")]],
    *,
    out: Out,
    encoder: OptionalFolder = None,
    set: Overrides = (),
) -> None:
    """Keep the good pairs of WebDataset shards, and say what was dropped. The same command goes on where it stopped.

    Args:
        shards: Shards as img2dataset writes them: a folder, one of them, or a pattern in quotes.
        out: Where the filtered shards go, under the same names; the given ones stay as they are.
        encoder: A CLIP that scores each pair; the score is written into its .json as clip_score.
        set: Settings of racm3.data.filter.Rules, such as min_side_px=256 max_watermark=0.5 min_clip_score=0.28.
    """
    from collections import Counter

    from racm3.data import recognise
    from racm3.data.filter import Rules, filter_shards
    from racm3.util.config import override

    rules, source = override(Rules(), set), recognise(shards)
    score = _clip_score(_encoder(encoder)) if encoder else None
    counts: Counter[str] = Counter()
    for of_shard in _shown(filter_shards(source, out, rules, score), "filtering shards"):
        counts.update(of_shard)
    for what, count in counts.most_common():
        print(f"{count:>12,}  {what}")
    print(f"wrote {out}")


def _clip_score(encoder: Encoder) -> Callable[[Sequence[Document]], np.ndarray]:
    """What gives the cosine of the text and the picture of each of N documents, (N,)."""

    def score(pairs: Sequence[Document]) -> np.ndarray:
        texts = encoder.embed_texts([pair.text or "" for pair in pairs])  # (N, D)
        return (texts * encoder.embed_images([pair.images[0] for pair in pairs])).sum(axis=1)

    return score


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, moved by telling it how much is done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def scenes_make(folder: Folder, *, set: Overrides = ()) -> None:
    """Write the built-in world: its training splits as WebDataset shards, the others in COCO format.

    Args:
        folder: Where to; made if it is not there.
        set: Settings of racm3.scenes.world.World, such as seed=1 tests=100.
    """
    from racm3.scenes.world import World
    from racm3.util.config import override

    override(World(), set).write(folder)
    print(f"wrote {folder}")


def scenes_glyphs(*, font: OptionalFile = None, folder: OptionalFolder = None) -> None:
    """Draw the entities of the built-in world from the emoji font again. The package already holds them.

    Args:
        font: NotoColorEmoji.ttf; by default the one that Debian's fonts-noto-color-emoji installs.
        folder: Where to write glyphs.webp and glyphs.json; by default into the package.
    """
    from racm3.scenes import glyphs

    made = glyphs.make_glyphs(font or glyphs.FONT, folder or glyphs.DATA)
    print(f"drew {len(made.names)} entities into {folder or glyphs.DATA}")


def demo(*, out: Out = Path("out/demo"), models: str = "scenes", seed: int = 0) -> None:
    """Draw, caption and infill pictures of the built-in world, and write a page and a contact sheet to look at.

    Needs no network; made to take less than three minutes on two cores.

    Args:
        out: Where the memory, index.html and sheet.png go; what an earlier demo wrote there is replaced.
        models: A folder with image-tokenizer, encoder, generator and vanilla, or scenes, the shipped one.
        seed: Of the answers. The requests are the first of the built-in world, whatever the seed.
    """
    from racm3.demo import SAMPLES, demo
    from racm3.pipeline import Settings

    made = demo(out, models, settings=Settings(samples=SAMPLES, seed=seed))
    for row in made.rows:
        print("\n".join(row.lines))
    print(f"\nwrote the memory to {made.memory}, a contact sheet to {made.sheet}, the page to {made.page}")


def generate(
    text: Positional[Annotated[str, arg(metavar="TEXT")]],
    *,
    out: File,
    memory: OptionalFolder = None,
    models: str = "scenes",
    k: int = 2,
    samples: int = 1,
    seed: int = 0,
    context_aware: OptionalNumber = None,
    guidance: OptionalNumber = None,
    temperature: OptionalNumber = None,
    contexts: int = 1,
    overlay: OptionalFile = None,
) -> None:
    """Draw the picture that a text describes, and print the documents that it was drawn from.

    Args:
        text: What to draw.
        out: Where the picture goes: a .png, .jpg or .webp file.
        memory: The memory to retrieve from; without one, nothing is retrieved.
        models: A folder with image-tokenizer, encoder and generator, or scenes, the shipped one.
        k: Retrieve so many documents.
        samples: Draw so many pictures and keep the one that the encoder finds nearest to the text.
        seed: The same one gives the same picture.
        context_aware: How much the documents count; 1 is as usual. By default what racm3.pipeline.Settings says.
        guidance: How much the text counts; 1 is as usual. By default what Settings says.
        temperature: 0 takes the most probable codes, 1 draws as the model believes. By default what Settings says.
        contexts: Retrieve so many times k documents, and average the predictions from k of them at a time.
        overlay: Where to draw what the picture took from which source: a .png, .jpg or .webp file.
    """
    from racm3.document import Document, Hole

    asked = Document.of(text, Hole("image"))
    chosen = _picture_settings(k, samples, seed, context_aware, guidance, temperature, contexts)
    _checked_out(out, overlay)
    done = _model(models, memory).complete([asked], chosen)[0]
    _print_sources(done)
    _save(done, out, overlay)


def caption(
    picture: Picture,
    *,
    memory: OptionalFolder = None,
    models: str = "scenes",
    k: int = 2,
    samples: int = 1,
    seed: int = 0,
    context_aware: OptionalNumber = None,
    temperature: OptionalNumber = None,
    contexts: int = 1,
) -> None:
    """Print a caption for a picture, below the documents that it was written from.

    Args:
        picture: A picture of any size: the middle square of it is looked at.
        memory: The memory to retrieve from; without one, nothing is retrieved.
        models: A folder with image-tokenizer, encoder and generator, or scenes, the shipped one.
        k: Retrieve so many documents.
        samples: Write so many captions and keep the likeliest.
        seed: The same one gives the same caption.
        context_aware: How much the documents count; 1 is as usual. By default what racm3.pipeline.Settings says.
        temperature: 0 takes the most probable words, 1 draws as the model believes. By default 0, or 1 for several.
        contexts: Retrieve so many times k documents, and average the predictions from k of them at a time.
    """
    from racm3.document import Image
    from racm3.pipeline import Settings

    image = Image.open(picture)
    if temperature is None:
        temperature = 0.0 if samples == 1 else 1.0
    text = _sampling(Settings().text, context_aware=context_aware, temperature=temperature)
    chosen = Settings(k=k, contexts=contexts, samples=samples, seed=seed, text=text)
    done = _model(models, memory).caption(image, chosen)
    _print_sources(done)
    print(done.document.text)


def infill(
    picture: Picture,
    *,
    out: File,
    box: Boxes = (),
    mask: OptionalFile = None,
    text: OptionalText = None,
    memory: OptionalFolder = None,
    models: str = "scenes",
    k: int = 2,
    samples: int = 1,
    seed: int = 0,
    context_aware: OptionalNumber = None,
    guidance: OptionalNumber = None,
    temperature: OptionalNumber = None,
    contexts: int = 1,
    overlay: OptionalFile = None,
) -> None:
    """Hide a region of a picture and fill it in, and print the documents that it was filled from.

    Args:
        picture: A picture of any size: the middle square of it is looked at.
        out: Where the filled picture goes: a .png, .jpg or .webp file.
        box: The region, as one or more boxes in px of the picture; they grow to whole codes.
        mask: The region as a picture of the same size instead, white where hidden, black elsewhere.
        text: What the whole picture shows.
        memory: The memory to retrieve from; without one, nothing is retrieved.
        models: A folder with image-tokenizer, encoder and generator, or scenes, the shipped one.
        k: Retrieve so many documents.
        samples: Fill it so many times and keep the one that the encoder finds nearest to the text, or the likeliest.
        seed: The same one gives the same picture.
        context_aware: How much the documents count; 1 is as usual. By default what racm3.pipeline.Settings says.
        guidance: How much the text counts; 1 is as usual. By default what Settings says.
        temperature: 0 takes the most probable codes, 1 draws as the model believes. By default what Settings says.
        contexts: Retrieve so many times k documents, and average the predictions from k of them at a time.
        overlay: Where to draw what the region took from which source: a .png, .jpg or .webp file.
    """
    from racm3.document import Image

    hidden = _hidden(Image.open(picture), box, mask)
    chosen = _picture_settings(k, samples, seed, context_aware, guidance, temperature, contexts)
    _checked_out(out, overlay)
    done = _model(models, memory).infill(hidden, text, chosen)
    _print_sources(done)
    _save(done, out, overlay)


def edit(
    picture: Picture,
    *,
    control: File,
    out: File,
    box: Boxes = (),
    mask: OptionalFile = None,
    text: OptionalText = None,
    models: str = "scenes",
    samples: int = 1,
    seed: int = 0,
    context_aware: OptionalNumber = None,
    guidance: OptionalNumber = None,
    temperature: OptionalNumber = None,
    overlay: OptionalFile = None,
) -> None:
    """Hide a region of a picture and fill it in after another picture, which is read as if it had been retrieved.

    Args:
        picture: A picture of any size: the middle square of it is looked at.
        control: The picture of what the region is to become.
        out: Where the filled picture goes: a .png, .jpg or .webp file.
        box: The region, as one or more boxes in px of the picture; they grow to whole codes.
        mask: The region as a picture of the same size instead, white where hidden, black elsewhere.
        text: What the whole picture is to show.
        models: A folder with image-tokenizer, encoder and generator, or scenes, the shipped one.
        samples: Fill it so many times and keep the one that the encoder finds nearest to the text, or the likeliest.
        seed: The same one gives the same picture.
        context_aware: How much the control counts; 1 is as usual. By default what racm3.pipeline.Settings says.
        guidance: How much the text counts; 1 is as usual. By default what Settings says.
        temperature: 0 takes the most probable codes, 1 draws as the model believes. By default what Settings says.
        overlay: Where to draw what the region took from where: a .png, .jpg or .webp file.
    """
    from racm3.document import Image
    from racm3.pipeline import RACM3

    hidden, shown = _hidden(Image.open(picture), box, mask), Image.open(control)
    chosen = _picture_settings(0, samples, seed, context_aware, guidance, temperature, 1)
    _checked_out(out, overlay)
    _save(RACM3.from_pretrained(models).edit(hidden, shown, text, chosen), out, overlay)


def classify(
    picture: Picture,
    *,
    example: Annotated[tuple[str, ...], arg(metavar="LABEL=PICTURE ...")],
    by: Literal["picture", "label"] = "picture",
    models: str = "scenes",
) -> None:
    """Tell which of some labels a picture has, from an example or more of each, and print how probable each is.

    Args:
        picture: A picture of any size: the middle square of it is looked at.
        example: Pictures with their labels, any words; equally many of each label.
        by: What is predicted: the picture behind an example of each label, or the label behind examples of two.
        models: A folder with image-tokenizer, encoder and generator, or scenes, the shipped one.
    """
    from racm3.document import Image
    from racm3.pipeline import RACM3

    shown: dict[str, list[Image]] = {}
    for one in example:
        label, _, path = one.rpartition("=")
        if not label.strip():
            raise InputError(f"the example {one!r} has no label; give LABEL=PICTURE, such as fox=out/fox.png")
        shown.setdefault(label, []).append(Image.open(path))
    (found,) = RACM3.from_pretrained(models).classify([Image.open(picture)], shown, by)
    for label, probability in found.items():
        print(f"{probability:.3f}  {label}")


def serve(
    *,
    models: str = "scenes",
    memory: OptionalFolder = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: OptionalFile = None,
    fetch_from: Annotated[tuple[str, ...], arg(metavar="[HOST ...]")] = (),
    policy: OptionalText = None,
    set: Overrides = (),
) -> None:
    """Serve the model and a memory over HTTP, in OpenAI's shapes, with a page: docs/serve.md says how.

    Args:
        models: A folder with image-tokenizer, encoder and generator, or scenes, the shipped one.
        memory: The memory to retrieve from and to change; by default the built-in world's, made at the first start.
        host: Where to listen. Others can reach every address but loopback: then a token is wanted.
        port: Where to listen; 0 for any that is free.
        token_file: Who may do what: lines 'read TOKEN' or 'write TOKEN'. Without it, everybody may do all.
        fetch_from: Hosts whose pictures may be given by their https URL; none by default.
        policy: What looks at every request and answer, as MODULE:FUNCTION.
        set: Limits of racm3.serve.guard.Limits that replace the usual ones, such as queue=100 timeout_s=20.
    """
    from racm3.serve import run
    from racm3.serve.guard import LIMITS
    from racm3.util.config import override

    limits = override(LIMITS, set)
    run.serve(models, memory, host, port, token_file=token_file, limits=limits, fetch_from=fetch_from, policy=policy)


def export(*, out: Out, models: str = "scenes", generator: str = "generator", format: Format = "transformers") -> None:
    """Write a generator for other tools to open: docs/interop.md says how.

    Args:
        out: Where to; a folder that is empty or not there yet.
        models: A folder with the generator, or scenes, the shipped one.
        generator: The name of the generator's folder in it.
        format: What opens it: AutoModelForCausalLM of transformers, and vLLM.
    """
    from racm3.export import export_transformers
    from racm3.model_folder import ModelFolder

    export_transformers(ModelFolder.open(models, generator), out)
    print(f"wrote {out}")


def _model(models: str, memory: Path | None) -> RACM3:
    from racm3.pipeline import RACM3

    model = RACM3.from_pretrained(models, memory)
    if memory is None:
        print("no --memory was given: nothing is retrieved", file=sys.stderr)
    return model


def _picture_settings(
    k: int,
    samples: int,
    seed: int,
    context_aware: float | None,
    guidance: float | None,
    temperature: float | None,
    contexts: int,
) -> Settings:
    from racm3.pipeline import Settings

    image = _sampling(Settings().image, context_aware=context_aware, guidance=guidance, temperature=temperature)
    return Settings(k=k, contexts=contexts, samples=samples, seed=seed, image=image)


def _sampling(usual: Sampling, **given: float | None) -> Sampling:
    """``usual``, with what was given instead."""
    from dataclasses import replace

    return replace(usual, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _hidden(image: Image, boxes: Sequence[tuple[int, int, int, int]], mask: Path | None) -> Image:
    """The picture with its region hidden. Raises InputError unless exactly one way to say which is given."""
    from racm3.document import Image

    height, width = image.pixels.shape[:2]
    if (not boxes) == (mask is None):
        raise InputError("say what to hide: give either --box LEFT TOP WIDTH HEIGHT or --mask FILE")
    if mask is None:
        return image.hiding(*boxes)
    white = Image.open(mask).pixels.mean(axis=2) > 127
    if white.shape != (height, width):
        size = f"{white.shape[1]} x {white.shape[0]}"
        raise InputError(f"the mask {mask} is {size} px, the picture {width} x {height}; make them the same size")
    if not white.any():
        raise InputError(f"the mask {mask} hides nothing; paint white what is to be filled in")
    return Image(image.pixels, white)


def _checked_out(*paths: Path | None) -> None:
    """Raises InputError if no picture can be written there: before the work, not after it."""
    for out in filter(None, paths):
        _check_out(out)


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in PICTURES_OUT:
        raise InputError(f"a picture cannot be written as {out}; end its name with {', '.join(PICTURES_OUT)}")
    if out.is_dir() or (out.parent.exists() and not out.parent.is_dir()):
        raise InputError(f"{out} is a folder, or lies below a file; give the path of a new picture")


def _print_sources(done: Completion) -> None:
    from racm3.demo import source_line

    for hit in done.sources:
        print(f"source  {source_line(hit)}")


def _save(done: Completion, out: Path, overlay: Path | None) -> None:
    """Write the picture of a completion, and what it drew on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done.document.images[-1].pil.save(out)
    print(f"wrote {out}")
    if overlay is None:
        return
    drawn = done.attribution[-1].overlay
    if drawn is None:
        raise InputError("there is no source to draw an overlay of; give --memory, and --k above 0")
    overlay.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(overlay)
    print(f"wrote {overlay}")


def evaluate_scenes(
    *,
    quick: bool = False,
    out: OptionalFile = None,
    memory: OptionalFolder = None,
    models: OptionalFolder = None,
    set: Overrides = (),
) -> None:
    """Measure the models on the built-in world: the last line printed is everything as JSON.

    Args:
        quick: The first 100 pictures of each test split instead of all: at most 10 minutes on two cores.
        out: Where to write the JSON as well.
        memory: Where the world's memory is, or is made if nothing is there; a temporary folder by default.
        models: A folder of image-tokenizer, encoder, generator, vanilla and judge; by default the shipped ones.
        set: Settings of racm3.evaluation.scenes_protocol.Protocol, such as n=20 drawing.samples=1.
    """
    import json
    from dataclasses import replace

    from rich.console import Console

    from racm3.evaluation.scenes_protocol import QUICK, QUICK_TRIALS, Protocol, evaluate_scenes, tables
    from racm3.util.config import override

    protocol = override(replace(Protocol(), n=QUICK, trials=QUICK_TRIALS) if quick else Protocol(), set)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    results = evaluate_scenes(models or "scenes", memory, protocol)
    Console().print(*tables(results))
    line = json.dumps(results)
    if out:
        out.write_text(line + "\n", encoding="utf-8")
    print(line)


def evaluate_coco(
    data: Source,
    *,
    memory: Out,
    models: Out,
    out: Out,
    features: OptionalFile = None,
    generator: str = "generator",
    set: Overrides = (),
) -> None:
    """Measure a model on MS-COCO: FID of 30,000 drawings, CIDEr-D of 5,000 captions. The same command goes on.

    Args:
        data: Karpathy's dataset_coco.json, beside the folders of pictures that it names.
        memory: What to retrieve from; it may hold none of the pictures under examination.
        models: A folder with image-tokenizer, encoder and generator.
        out: Where drawings, captions and result.json go.
        features: The TorchScript network of FID: inception-2015-12-05.pt of StyleGAN2-ADA. Without it, no FID.
        generator: The name of the generator's folder in models.
        set: Settings of racm3.evaluation.coco_protocol.CocoProtocol, such as drawn=1000 drawing.samples=1 drawing.k=0.
    """
    import json

    from racm3.evaluation.coco_protocol import CocoProtocol, evaluate_coco
    from racm3.util.config import override

    protocol = override(CocoProtocol(), set)
    print(json.dumps(evaluate_coco(data, models, memory, out, features, protocol, generator)))


def evaluate_compare(
    one: Result,
    other: Result,
    *,
    but: Annotated[tuple[str, ...], arg(metavar="[FIELD ...]")] = (),
) -> None:
    """Print the scores of two result files side by side; exit status 2 unless they were measured alike.

    Args:
        one: A result file of another evaluate command or of the study.
        other: The one to compare it with.
        but: Fields of the protocol that may differ, for they are what is compared, such as drawing.k.
    """
    from racm3.evaluation.protocol import check_comparable, numbers, read_result

    first, second = read_result(one), read_result(other)
    check_comparable(first["protocol"], second["protocol"], (str(one), str(other)), but)
    ours, theirs = numbers(first), numbers(second)
    for name in dict.fromkeys([*ours, *theirs]):
        shown = (f"{scores[name]:.4g}" if name in scores else "-" for scores in (ours, theirs))
        print("{:>10} {:>10}  {}".format(*shown, name))


VERBS: Verbs = {
    "demo": demo,
    "generate": generate,
    "caption": caption,
    "infill": infill,
    "edit": edit,
    "classify": classify,
    "serve": serve,
    "doctor": doctor,
    "plan": plan,
    "train": {
        "image-tokenizer": train_image_tokenizer,
        "encoder": train_encoder,
        "generator": train_generator,
        "judge": train_judge,
    },
    "memory": {
        "create": memory_create,
        "add": memory_add,
        "remove": memory_remove,
        "sync": memory_sync,
        "search": memory_search,
        "info": memory_info,
        "check": memory_check,
        "compact": memory_compact,
        "index": memory_index,
        "export": memory_export,
        "re-embed": memory_re_embed,
        "neighbours": memory_neighbours,
    },
    "scale": {"plan": scale_plan, "embed": scale_embed, "neighbours": scale_neighbours},
    "data": {"filter": data_filter},
    "scenes": {"make": scenes_make, "glyphs": scenes_glyphs},
    "evaluate": {"scenes": evaluate_scenes, "coco": evaluate_coco, "compare": evaluate_compare},
    "export": export,
}

GROUPS = {
    "train": "Train one of the models.",
    "memory": "Make a memory of documents, change it, search it, look after it.",
    "scale": "Fill a memory, and search it through, on many machines.",
    "data": "Prepare data to train on.",
    "scenes": "The built-in world, Emoji Scenes.",
    "evaluate": "Measure how good the models are.",
}


def _app(verbs: Verbs) -> SubcommandApp:
    app = SubcommandApp()
    for name, verb in verbs.items():
        if callable(verb):
            app.command(name=name)(verb)
        else:
            app.command(_app(verb), name=name, help=GROUPS[name])
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default the process's own, and return its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if any(one.partition("=")[0] == "--grounding" for one in given):
        return _complain("--grounding is called --context-aware now; give that")
    description = "Retrieval-augmented multimodal language model: retrieve documents, then generate with them."
    try:
        status: Any = _app(VERBS).cli(args=arguments, prog="racm3", description=description)
    except RACM3Error as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        return _complain(f"{error}; run racm3 doctor, which says what is missing or broken and what to do.")
    except KeyboardInterrupt as interrupt:
        return _complain(str(interrupt) or "interrupted", status=130)
    return status if isinstance(status, int) else 0


def _complain(message: str, status: int = 2) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
