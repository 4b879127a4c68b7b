"""``racm3 demo``: a memory of the built-in world, three tasks on it, and one page that shows what came of them.

requests   the first pictures of the seeded test splits, turned into documents with holes
answers    racm3's, and beside each one the vanilla model's, the returned document and the true one
page       demo.html filled in, all pictures inside it; sheet: the same as one PNG
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from string import Template

import numpy as np
import PIL.Image

from racm3 import __version__
from racm3.data import Item
from racm3.document import Document, Hole, Image, Modality, Part, Text
from racm3.errors import InputError, MemoryStoreError
from racm3.memory.memory import Memory
from racm3.memory.storage import storage_at
from racm3.pipeline import RACM3, Completion, Settings
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import memory_of
from racm3.retriever.retriever import Hit
from racm3.scenes.draw import Scene
from racm3.scenes.world import World
from racm3.util.contact_sheet import Tile, sheet
from racm3.util.one_line import one_line
from racm3.util.progress import counted, progress

WORDS_TO_PICTURE, PICTURE_TO_WORDS, HIDDEN_REGION = "words to picture", "picture to words", "hidden region"
TASKS = {
    WORDS_TO_PICTURE: "The caption is given, the picture is drawn.",
    PICTURE_TO_WORDS: "The picture is given, the caption is written.",
    HIDDEN_REGION: "The hatched region is hidden and filled in: the whole thing with its caption given, or most of it "
    "with no words at all.",
}
FROM_EACH_SPLIT = {WORDS_TO_PICTURE: 4, PICTURE_TO_WORDS: 2, HIDDEN_REGION: 2}
"""How many pictures of each test split go to a task, one task after the other."""
SAMPLES = 4
"""Answers drawn for each request, of which the best-scored is shown; as in `racm3 evaluate scenes`."""
UNSEEN = "never seen in training"
SHOWN_OF_BOX_PX = 16  # two of the five columns of codes that a thing is wide, where it is not hidden whole


@dataclass(frozen=True)
class Request:
    """What is asked of the models: a document with one hole, made of the true one."""

    task: str
    novel: bool
    asked: Document
    truth: Item

    @property
    def modality(self) -> Modality:
        """What the answer is."""
        return "text" if self.task == PICTURE_TO_WORDS else "image"

    @property
    def title(self) -> str:
        return f"{self.truth.id}: {self.asked.text}" if self.asked.text else f"{self.truth.id}, no words given"


@dataclass(frozen=True)
class Cell:
    """One thing to look at: a picture, words, or both."""

    head: str
    image: Image | None
    words: str


@dataclass(frozen=True)
class Row:
    """A request and what came of it."""

    request: Request
    answer: Completion
    vanilla: Completion

    @property
    def cells(self) -> list[Cell]:
        """What was asked, racm3's answer, the vanilla model's, the returned document, the true one."""
        asked, sources = self.request.asked, self.answer.sources
        given = asked.images[0] if asked.images else None
        answers = [("racm3", self.answer.document), ("vanilla", self.vanilla.document)]
        answers += [("returned", sources[0].document)] if sources else []
        answers += [("true", self.request.truth.document)]
        cells = [Cell("asked", given and hatched(given), asked.text or "")]
        return cells + [self._cell(head, document) for head, document in answers]

    def _cell(self, head: str, document: Document) -> Cell:
        if self.request.modality == "text":
            return Cell(head, None, document.text or "(no words)")
        return Cell(head, document.images[0] if document.images else None, "")

    @property
    def sources(self) -> list[Cell]:
        return [
            Cell(f"source {number}, {hit.score:.3f}", next(iter(hit.document.images), None), _about(hit))
            for number, hit in enumerate(self.answer.sources, start=1)
        ]

    @property
    def lines(self) -> list[str]:
        """What was asked, the answer if it is words, and the sources, to print."""
        unseen = f"  ({UNSEEN})" if self.request.novel else ""
        words = [cell for cell in self.cells if self.request.modality == "text" and cell.head in ("racm3", "true")]
        answers = [f"  {cell.head}: {cell.words}" for cell in words]
        sources = [f"  {source_line(hit)}" for hit in self.answer.sources]
        return [f"{self.request.task} | {self.request.title}{unseen}", *answers, *sources]


@dataclass(frozen=True)
class Demo:
    """The rows, and the files they were written to."""

    rows: tuple[Row, ...]
    memory: Path
    page: Path
    sheet: Path


def source_line(hit: Hit) -> str:
    """Score, id, caption and origin of a source."""
    return one_line(f"{hit.score:.3f}  {hit.id}  {hit.document.text or '(no text)'}  {hit.origin}")


def _about(hit: Hit) -> str:
    return f"{hit.document.text or '(no text)'} ({hit.id}, from {hit.origin})"


def demo(
    out: Path, models: str | Path = "scenes", world: World | None = None, settings: Settings | None = None
) -> Demo:
    """Build the memory of ``world`` in ``out``/memory, answer the requests, write index.html and sheet.png.

    ``world`` and ``settings`` are the default ones unless given. Shows its progress on stderr. Raises CheckpointError
    if a model is missing, InputError or MemoryStoreError if there is something else where the demo writes.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder to write the demo into, or a new name")
    world, settings = world or World(), settings or Settings(samples=SAMPLES)
    model = RACM3.from_pretrained(models)
    vanilla = RACM3.from_pretrained(models, generator="vanilla")
    asked = list(requests(world))
    documents = [request.asked for request in asked]
    with progress() as report:
        total = world.memory * (len(world.seen) + len(world.novel))
        items = counted(world.items("memory"), "memory: documents", report, total)
        memory = build_memory(out / "memory", model.encoder, items, {id_ for id_, _, _ in world.scenes("memory")})
        answers = model.complete(documents, settings, memory=memory, on_step=partial(report, "racm3: steps"))
        without = vanilla.complete(documents, settings, on_step=partial(report, "vanilla: steps"))
    rows = tuple(Row(*row) for row in zip(asked, answers, without, strict=True))
    page, picture = out / "index.html", out / "sheet.png"
    page.write_text(write_page(rows, len(memory), _facts(world, settings), _models(model, vanilla)), encoding="utf-8")
    draw_sheet(rows).save(picture)
    return Demo(rows, out / "memory", page, picture)


# Requests --------------------------------------------------------------------------------------------------------


def requests(world: World) -> Iterator[Request]:
    """The first pictures of the two test splits, as many a task as ``FROM_EACH_SPLIT`` says; none is skipped."""
    seen, novel = world.items("test-seen"), world.items("test-novel")
    for task, count in FROM_EACH_SPLIT.items():
        for items, is_novel in ((seen, False), (novel, True)):
            for number, item in enumerate(islice(items, count)):
                yield Request(task, is_novel, _asked(task, item, whole=number % 2 == 0), item)


def _asked(task: str, item: Item, whole: bool) -> Document:
    """The item without what the task asks for; ``whole``: all of the thing is hidden, and its words are given."""
    picture = item.document.images[0]
    words = [Text(item.document.text)] if item.document.text else []
    if task == WORDS_TO_PICTURE:
        return Document((*words, Hole("image")))
    if task == PICTURE_TO_WORDS:
        return Document((Hole("text"), picture))
    left, top, side = Scene.from_dict(item.metadata["scene"]).boxes[0]
    hidden = np.zeros(picture.pixels.shape[:2], dtype=bool)
    hidden[top : top + side, left + (0 if whole else SHOWN_OF_BOX_PX) : left + side] = True
    masked = Image(picture.pixels, hidden)
    parts: tuple[Part, ...] = (*words, masked) if whole else (masked,)
    return Document(parts)


# Memory ----------------------------------------------------------------------------------------------------------


def build_memory(path: Path, encoder: Encoder, items: Iterable[Item], ids: Collection[str]) -> Memory:
    """A new memory of ``items``, whose ids are ``ids``. An older one of these is deleted.

    Raises MemoryStoreError if something else is there, or a memory with other documents.
    """
    if (storage := storage_at(path)).exists():
        if others := set(Memory.open(path).ids).difference(ids):
            raise MemoryStoreError(
                f"the memory {path} holds {len(others)} documents that are not the demo's, such as {min(others)!r}; "
                "give another --out, or move it away"
            )
        storage.remove()
    return memory_of(path, encoder, items)


# Page ------------------------------------------------------------------------------------------------------------


def write_page(rows: Sequence[Row], documents: int, facts: dict[str, object], models: str) -> str:
    """The whole page as HTML. ``documents`` is the size of the memory, ``facts`` what reproduces the page."""
    sections = []
    for task, about in TASKS.items():
        articles = "\n".join(_article(row) for row in rows if row.request.task == task)
        sections.append(f"<section>\n<h2>{task.capitalize()}</h2>\n<p>{html.escape(about)}</p>\n{articles}\n</section>")
    samples = rows[0].answer.settings.samples if rows else 1
    drawn = "the only answer drawn is shown" if samples == 1 else f"of {samples} answers drawn the best-scored is shown"
    return Template(Path(__file__).with_name("demo.html").read_text(encoding="utf-8")).substitute(
        documents=f"{documents:,}",
        sections="\n".join(sections),
        samples=drawn,
        models=html.escape(models),
        version=__version__,
        settings=html.escape(json.dumps(facts, indent=1), quote=False),
    )


def _article(row: Row) -> str:
    unseen = f' <span class="novel">{UNSEEN}</span>' if row.request.novel else ""
    answers = "\n".join(_figure(cell) for cell in row.cells)
    sources = "\n".join(_figure(cell) for cell in row.sources)
    title = f"<h3>{html.escape(row.request.title)}{unseen}</h3>"
    return (
        f'<article>\n{title}\n<div class="cells">\n{answers}\n</div>\n'
        f'<div class="cells sources">\n{sources}\n</div>\n</article>'
    )


def _figure(cell: Cell) -> str:
    words = html.escape(cell.words)
    ours = ' class="ours"' if cell.head == "racm3" else ""
    if cell.image is None:
        return f'<figure{ours}><b>{cell.head}</b><div class="words">{words}</div></figure>'
    data = base64.b64encode(cell.image.png()).decode()
    picture = f'<img alt="{cell.head}: {words or "a picture"}" src="data:image/png;base64,{data}">'
    caption = f"<figcaption>{words}</figcaption>" if words else ""
    return f"<figure{ours}><b>{cell.head}</b>{picture}{caption}</figure>"


def hatched(image: Image) -> Image:
    """The picture with its hidden region painted over in stripes."""
    if image.mask is None:
        return image
    y, x = np.indices(image.mask.shape)
    stripes = np.where((x + y) // 4 % 2, 128, 176)[..., None]
    return Image(np.where(image.mask[..., None], stripes, image.pixels).astype(np.uint8))


def _facts(world: World, settings: Settings) -> dict[str, object]:
    return {"world": asdict(world), "settings": asdict(settings)}


def _models(model: RACM3, vanilla: RACM3) -> str:
    sizes = [f"{one.generator.parameter_count / 1e6:.1f} million parameters" for one in (model, vanilla)]
    return f"The generator has {sizes[0]}, the vanilla model {sizes[1]}."


# Contact sheet ---------------------------------------------------------------------------------------------------

TILE_PX = 128


def draw_sheet(rows: Sequence[Row]) -> PIL.Image.Image:
    """All rows as one picture: a line of tiles each, sources at its end."""
    tiles = [[Tile(cell.image, cell.words, cell.head) for cell in (*row.cells, *row.sources)] for row in rows]
    novel = {number for number, row in enumerate(rows) if row.request.novel}
    titles = [
        f"{row.request.task}: {row.request.title}{f'  ({UNSEEN})' if number in novel else ''}"
        for number, row in enumerate(rows)
    ]
    return sheet(tiles, TILE_PX, titles, novel, enlarge=True)
