"""Protocol: what the system makes of Emoji Scenes that it has never seen (``racm3 evaluate scenes``).

The memory holds the world's ``memory`` split. Each caption of a test split is drawn, and the judge tells from the
picture which entity stands there, on what and where:

    retrieval   the generator with the documents it retrieved
    vanilla     the generator of the same size and compute that was trained and is used without retrieval
    returned    the best-ranked retrieved picture itself, nothing generated
    ceiling     the true picture, through the image tokenizer and back
    judge       the true picture itself: the judge's own accuracy

Each test picture is also captioned, with and without retrieval; ``tasks.py`` adds infill, edit, style and one-shot
classification. The generators never met an entity of the novel
split; image tokenizer and encoder, which count as pretrained, saw all entities.

N pictures, H W pixels.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from racm3 import __version__
from racm3.config import to_dict
from racm3.document import Document, Hole, Image
from racm3.errors import ConfigError, InputError, MemoryStoreError
from racm3.evaluation.cider import cider_d
from racm3.evaluation.tasks import SHOTS, examine_tasks
from racm3.generator.decoding import Sampling
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3, SCENES, Completion, Settings
from racm3.retriever.encoder import Encoder
from racm3.retriever.remember import remember
from racm3.scenes.caption import FORMS, describe, read
from racm3.scenes.draw import SCENE_PX, Scene, draw
from racm3.scenes.glyphs import load_glyphs
from racm3.scenes.judges import Judge, Verdict
from racm3.scenes.world import World, counted
from racm3.tokens.documents import image_codes
from racm3.tokens.image import ImageTokenizer

if TYPE_CHECKING:
    from rich.console import RenderableType

SPLITS = {"seen": "test-seen", "novel": "test-novel"}
ROWS = ("retrieval", "vanilla", "returned", "ceiling", "judge")
QUESTIONS = ("entity", "background", "position")
WEIGHTS = ("generator", "vanilla", "image-tokenizer", "encoder", "judge")
QUICK = 100
"""Pictures of each split in the quick run: a share then has a standard error of at most 5 points."""
QUICK_TRIALS = 60
AT_ONCE = 256  # pictures encoded together
NOTE = (
    "The generators never saw the novel entities; image tokenizer, encoder and judge saw all glyphs. "
    "No test combination of entity, background and position was in any training split."
)

Scores = dict[str, float]
Steps = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True)
class Protocol:
    """``n``: at most so many pictures of each test split, its first. ``drawing`` and ``captioning`` hold for both
    generators, but that vanilla has k = 0. Of 4 drawings the best by the encoder's score of picture and words is kept
    (ours; the paper draws 10); captions are greedy. ``filling`` is for the tasks of ``tasks.py``, of which one-shot
    classification has so many ``trials``."""

    n: int = 600
    trials: int = 300
    world: World = World()
    drawing: Settings = Settings(k=2, samples=4, image=Sampling(temperature=0.7, top_p=0.9, guidance=1.5), seed=0)
    captioning: Settings = Settings(k=2, samples=1, text=Sampling(temperature=0.0), max_text_tokens=48, seed=0)
    filling: Settings = Settings(k=2, samples=1, image=Sampling(temperature=0.7, top_p=0.9, guidance=1.5), seed=0)

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.world.tests:
            raise ConfigError(f"n is {self.n}; each test split holds {self.world.tests} pictures: give 1 to that many")
        if self.trials < 1:
            raise ConfigError(f"trials is {self.trials}; it must be 1 or above")


def evaluate_scenes(
    models: str | Path = "scenes", memory: Path | None = None, protocol: Protocol = Protocol()
) -> dict[str, Any]:
    """Examine a folder of models, "scenes" for the shipped ones, with progress on stderr; returns what ``examine`` does
    for "seen" and "novel", what ``examine_tasks`` does as "tasks", and the "protocol".

    ``memory``: where the world's memory is, or is made if nothing is there; a temporary folder if not given.
    Raises CheckpointError, MemoryStoreError or EncoderMismatchError.
    """
    started = time.monotonic()
    folder = SCENES if str(models) == "scenes" else Path(models)
    judge = Judge.from_pretrained(folder / "judge")
    vanilla = RACM3.from_pretrained(folder, generator="vanilla")
    retrieval = RACM3.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as temporary, _progress() as on_step:
        path = memory or Path(temporary) / "memory"
        retrieval.memory = world_memory(path, protocol.world, retrieval.encoder, on_step)
        results: dict[str, Any] = {}
        tests = {
            name: [(scene, caption) for _, scene, caption in islice(protocol.world.scenes(split), protocol.n)]
            for name, split in SPLITS.items()
        }
        for name, own in tests.items():
            results[name] = examine(own, retrieval, vanilla, judge, protocol, _within(on_step, name))
        rows, world = {"retrieval": retrieval, "vanilla": vanilla}, protocol.world
        results["tasks"] = examine_tasks(tests, rows, judge, world, protocol.filling, protocol.trials, on_step)
        documents = len(retrieval.memory)
    return results | {
        "protocol": to_dict(protocol)
        | {
            "ids": {name: [f"{split}-{i:04d}" for i in (0, protocol.n - 1)] for name, split in SPLITS.items()},
            "memory": {"source": "racm3.scenes, split memory", "documents": documents},
            "encoder": retrieval.encoder.fingerprint,
            "weights": {name: weights_digest(folder / name) for name in WEIGHTS},
            "picture_px": SCENE_PX,
            "resize": "none",
            "racm3": __version__,
            "elapsed_s": round(time.monotonic() - started),
            "note": NOTE,
        }
    }


def world_memory(path: Path, world: World, encoder: Encoder, on_step: Steps = lambda *_: None) -> Memory:
    """The memory of a world: opened if it is there, else made.

    Raises MemoryStoreError if what is there is not exactly this world's memory, EncoderMismatchError if another encoder
    made it.
    """
    expected = {id_ for id_, _, _ in world.scenes("memory")}
    if path.exists():
        memory = Memory.open(path, encoder.fingerprint)
        if set(memory.ids) != expected:
            raise MemoryStoreError(
                f"the memory {path} holds {len(memory)} documents, and not the {len(expected)} of {world}; "
                "give the path of that one, or one where nothing is yet"
            )
        return memory
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = Memory.create(path, encoder.fingerprint, encoder.dimension)
    remember(memory, encoder, counted(world.items("memory"), len(expected), partial(on_step, "memory")))
    return memory


def examine(
    tests: Sequence[tuple[Scene, str]],
    retrieval: RACM3,
    vanilla: RACM3,
    judge: Judge,
    protocol: Protocol,
    on_step: Steps = lambda *_: None,
) -> dict[str, Any]:
    """One row of shares for each of ``ROWS``, and "caption", of scenes with their captions.

    ``retrieval`` has its memory. Raises InputError if for one of the captions no picture is retrieved.
    """
    scenes = [scene for scene, _ in tests]
    truth = [Image(draw(scene)) for scene in scenes]
    requests = {
        "pictures": ([Document.of(caption, Hole("image")) for _, caption in tests], protocol.drawing),
        "captions": ([Document.of(Hole("text"), image) for image in truth], protocol.captioning),
    }

    def complete(what: str, row: str) -> list[Completion]:
        documents, settings = requests[what]
        model, settings = (retrieval, settings) if row == "retrieval" else (vanilla, replace(settings, k=0))
        return model.complete(documents, settings, on_step=partial(on_step, f"{what}, {row}"))

    drawn = {row: complete("pictures", row) for row in ("retrieval", "vanilla")}
    pictures = {row: [done.document.images[0] for done in completions] for row, completions in drawn.items()}
    pictures["returned"] = [best_retrieved(done) for done in drawn["retrieval"]]
    pictures["ceiling"] = through_tokenizer(truth, retrieval.image)
    pictures["judge"] = truth
    results: dict[str, Any] = {row: accuracy(judge.verdict(pixels(pictures[row])), scenes) for row in ROWS}
    results["caption"] = {
        row: caption_scores([done.document.text or "" for done in complete("captions", row)], scenes)
        for row in ("retrieval", "vanilla")
    }
    return results


# What is judged --------------------------------------------------------------------------------------------------


def best_retrieved(done: Completion) -> Image:
    """The picture of the best-ranked source that has one. Raises InputError if none has."""
    for source in done.sources:
        if source.document.images:
            return source.document.images[0]
    raise InputError(f"no picture was retrieved for {done.document.text!r}; the memory holds none that is near")


def through_tokenizer(images: Sequence[Image], tokenizer: ImageTokenizer) -> list[Image]:
    """The pictures as the image tokenizer gives them back: the best that any generator on its codes can draw."""
    decoded: list[Image] = []
    for start in range(0, len(images), AT_ONCE):
        codes = image_codes(images[start : start + AT_ONCE], tokenizer)  # (N, codes)
        values = tokenizer.decode(torch.from_numpy(codes)).permute(0, 2, 3, 1)  # (N, H, W, 3)
        decoded += [Image(picture) for picture in (values * 255).round().to(torch.uint8).numpy()]
    return decoded


def pixels(images: Sequence[Image]) -> np.ndarray:
    """(N, 64, 64, 3) uint8, as the judge takes them."""
    return np.stack([image.resized(SCENE_PX).pixels for image in images])


# Scores ----------------------------------------------------------------------------------------------------------


def accuracy(verdict: Verdict, scenes: Sequence[Scene]) -> Scores:
    """The share of pictures in which the judge sees the right entity, background, position, and all three; and n."""
    truth = {
        "entity": [scene.entities[0] for scene in scenes],
        "background": [scene.background for scene in scenes],
        "position": [scene.position for scene in scenes],
    }
    right = np.array([np.array(getattr(verdict, q)) == np.array(truth[q]) for q in QUESTIONS])  # (3, N)
    shares = dict(zip(QUESTIONS, right.mean(axis=1), strict=True)) | {"all_correct": right.all(axis=0).mean()}
    return {name: round(float(share), 4) for name, share in shares.items()} | {"n": len(scenes)}


def caption_scores(captions: Sequence[str], scenes: Sequence[Scene]) -> Scores:
    """The share of captions that name their scene's entity, and the mean CIDEr-D (0 to 10) against every way of
    ``describe`` to say the scene."""
    named = [entity_named(caption, scene.entities[0]) for caption, scene in zip(captions, scenes, strict=True)]
    references = [list(dict.fromkeys(describe(scene, form) for form in range(FORMS))) for scene in scenes]
    scores = cider_d([words(caption) for caption in captions], [[words(text) for text in own] for own in references])
    return {"entity_named": round(float(np.mean(named)), 4), "cider_d": round(float(scores.mean()), 4)}


def entity_named(caption: str, entity: str) -> bool:
    """Whether a caption names an entity: "a teddy bear in the snow" names the teddy bear, and no bear.

    A caption that ``read`` understands is taken at its word; in any other, names stand as whole words, and one inside
    a longer one does not count.
    """
    scene = read(caption)
    if scene is not None:
        return entity in scene.entities
    spoken = f" {' '.join(words(caption))} "
    if f" {' '.join(words(entity))} " not in spoken:
        return False
    for name in load_glyphs().names:
        longer = f" {' '.join(words(name))} "
        if f" {' '.join(words(entity))} " in longer and name != entity:
            spoken = spoken.replace(longer, " | ")
    return f" {' '.join(words(entity))} " in spoken


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[^\s,.;:!?()\"]+", text.lower())


def weights_digest(folder: Path) -> str:
    """16 hex digits of a model's weights file."""
    return hashlib.blake2b((folder / "model.safetensors").read_bytes(), digest_size=8).hexdigest()


# Showing ---------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> list[RenderableType]:
    """What ``evaluate_scenes`` found, to be printed with rich."""
    from rich.table import Table

    n = results["novel"]["judge"]["n"]
    error = 100 * 0.5 / n**0.5
    drawn = Table(title="Caption -> picture: right by the judge, %", caption=f"n = {n}; standard error <= {error:.1f}")
    told = Table(title="Picture -> caption", caption="entity named in %, CIDEr-D 0 to 10")
    for table, columns in ((drawn, (*QUESTIONS, "all correct")), (told, ("entity named", "CIDEr-D"))):
        table.add_column("entities")
        table.add_column("picture" if table is drawn else "caption")
        for column in columns:
            table.add_column(column, justify="right")
    for split in SPLITS:
        for row in ROWS:
            shares = [results[split][row][key] for key in (*QUESTIONS, "all_correct")]
            drawn.add_row(split, row, *(f"{100 * share:.1f}" for share in shares), end_section=row == ROWS[-1])
        for row, scores in results[split]["caption"].items():
            told.add_row(split, row, f"{100 * scores['entity_named']:.1f}", f"{scores['cider_d']:.2f}")
    return [drawn, told, *_task_tables(results["tasks"])]


def _task_tables(results: dict[str, Any]) -> list[RenderableType]:
    from rich.table import Table

    filled = Table(title="Other tasks, %")
    for column in ("task", "entities", "model"):
        filled.add_column(column)
    for column in ("entity", "style", "untouched"):
        filled.add_column(column, justify="right")
    for task in ("infill", "edit", "style"):
        for split, rows in results[task].items():
            for row, scores in rows.items():
                found = [scores.get(key) for key in ("entity", "style", "untouched")]
                shares = ["" if share is None else f"{100 * share:.1f}" for share in found]
                filled.add_row(task, split, row, *shares)
    shots = Table(title="One-shot classification, and averages of several, % right", caption="chance is 50")
    shots.add_column("by")
    shots.add_column("model")
    for count in SHOTS:
        shots.add_column(str(count), justify="right")
    for by, task in (("picture", "one_shot"), ("label", "one_shot_by_label")):
        for row, scores in results[task]["novel"].items():
            shots.add_row(by, row, *(f"{100 * scores[str(count)]:.1f}" for count in SHOTS))
    return [filled, shots]


def _within(on_step: Steps, split: str) -> Steps:
    """``on_step``, told which split it is."""
    return lambda what, done, total: on_step(f"{split}: {what}", done, total)


@contextmanager
def _progress() -> Iterator[Steps]:
    """One bar on stderr for each thing done."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def on_step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield on_step
