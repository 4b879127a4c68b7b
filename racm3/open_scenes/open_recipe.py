"""Recipe: train the generator on the endless sequences of the open world.

    loss = sum of weight x nats of each token / sum of weights

The weights are ``sequences.Weights``. The learning rate keeps its peak until the last part of the run, so that a run
can be made longer: keep a checkpoint of before the decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.model_folder import ModelFolder
from racm3.open_scenes.copying import begin_by_copying
from racm3.open_scenes.digit_generator import DigitGenerator, from_plain, plain
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PATCH_PX
from racm3.open_scenes.sequences import FIRST, Kinds, OpenBatches, Plan, Planner, Weights, packed, without_sources
from racm3.tokens.image_tokenizer import FSQImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.generator_recipe import ShapeConfig, packed_loss
from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig

MEASURED = 24
"""Sequences of each kind that a look measures: seconds of work, and differences of a tenth of a nat can be told."""


@dataclass(frozen=True)
class OpenRun:
    """One training run. The kinds of sequences begin as ``first`` and become ``kinds`` in the course of
    ``first_steps``."""

    model: ShapeConfig = ShapeConfig(
        width=256, layers=6, heads=6, kv_heads=6, head_dim=64, mlp_width=704, context_tokens=1536, rope_theta=1e6
    )
    optimiser: OptimiserConfig = OptimiserConfig(
        lr=1e-3, muon_lr=1e-3, warmup_steps=100, decay="wsd", decay_share=0.2, betas=(0.9, 0.95)
    )
    loop: LoopConfig = LoopConfig(steps=4000)
    kinds: Kinds = Kinds()
    first: Kinds = FIRST
    first_steps: int = 800
    weights: Weights = Weights()
    sequences: int = 8
    begin_by_copying: bool = True
    text_ids: int = 28
    z_loss: float = 1e-5
    compile: bool = True


def train_open(
    run: OpenRun,
    folder: Path,
    text: TextTokenizer,
    image: FSQImageTokenizer,
    world: World | None = None,
    start: Generator | None = None,
) -> Generator:
    """Train and save to ``folder``; the same call resumes. Every ``loop.look_every`` steps it measures and draws.

    ``start`` is a generator to go on from, of the same tokenizers.
    """
    vocabulary = Vocabulary(text.size, image.codebook_size)
    markup = Markup(vocabulary, image.grid[0] * image.grid[1], run.text_ids)
    torch.manual_seed(run.loop.seed)
    config = GeneratorConfig(vocabulary_size=vocabulary.size, **asdict(run.model))
    if start is not None:
        generator = from_plain(start, vocabulary, image.config.levels)
    else:
        generator = DigitGenerator(config, vocabulary, image.config.levels)
        if run.begin_by_copying:
            begin_by_copying(generator, image.grid[1], stride(markup))
    generator.train_fast(compile=run.compile, recompute_layers=False)
    planner = Planner(world or World.of("seen"), run.kinds, image.config.patch_px)
    batches = OpenBatches(
        planner,
        text,
        image,
        markup,
        sequences=run.sequences,
        weights=run.weights,
        seed=run.loop.seed,
        first=run.first,
        first_steps=run.first_steps,
    )

    def batch(step: int, part: int, parts: int) -> Batch:
        content = batches.batch(step, part, parts)
        names = [f"step {step} sequence {row}" for row in content.rows]
        return Batch(content, names, float(content.weights.sum(dtype=np.float64)), len(content.ids))

    def loss(batch: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        content = batch.content
        object.__setattr__(content, "normaliser", normaliser)
        return packed_loss(generator, content, vocabulary, run.z_loss)

    def look(step: int) -> Mapping[str, float]:
        now = plain(generator)
        ModelFolder.around(folder / "now").save_generator(now, text, markup, image.grid, asdict(run), torch.float16)
        draw_look(now, text, image, markup, run.kinds, folder / "samples" / f"step-{step:06d}.png")
        seen: dict[str, float] = {}
        for split in ("seen", "novel"):
            for kind, same in (("once", True), ("twice", False), ("two", True)):
                numbers = measure(now, World.of(split), text, image, markup, kind, same)
                place = "there" if same else "moved"
                seen |= {f"{split}_{kind}_{place}_{name}": value for name, value in numbers.items()}
        return seen

    recipe = Recipe(
        folder.name,
        batch,
        loss,
        made_of={"text": text.fingerprint, "codes": image.digest},
        flops_per_token=generator.flops_per_token(800),
        look=look,
    )
    fit(generator, recipe, run, folder)
    trained = plain(generator)
    ModelFolder.around(folder).save_generator(trained, text, markup, image.grid, asdict(run), torch.float16)
    return trained


def stride(markup: Markup) -> int:
    """Tokens from a picture to the same place of the next one: of a document with a caption of the common length."""
    return len(markup.to_ids((TextIds((0,)), ImageCodes((0,) * markup.codes_per_image))))


def plans(
    world: World, kind: str, count: int, step_px: int, same_place: float, task: str = "draw", seed: int = 7
) -> list[Plan]:
    """The same sequences at every call."""
    rng = np.random.default_rng(seed)
    planner = Planner(world, Kinds(same_ground=0.0, same_place=same_place), step_px)
    return [planner.plan(rng, task, kind) for _ in range(count)]


@torch.no_grad()
def measure(
    generator: Generator,
    world: World,
    text: TextTokenizer,
    image: FSQImageTokenizer,
    markup: Markup,
    kind: str,
    same_place: bool,
) -> dict[str, float]:
    """Nats a code of the main picture behind the sources, and what they save, by what the code shows.

    ``interior`` shows an entity alone, ``edge`` some of it, ``ground`` nothing of it.
    """
    some = plans(world, kind, MEASURED, image.config.patch_px, float(same_place))
    batches = OpenBatches(Planner(world, Kinds(), image.config.patch_px), text, image, markup)
    seen: dict[str, float] = {}
    shows = np.concatenate([one.shows[one.shows >= 0] for one in batches.drawn([plan.main for plan in some])])
    parts = {"interior": shows > 0.98, "edge": (shows > 0.02) & (shows <= 0.98), "ground": shows <= 0.02}
    for name, given in (("", some), ("_alone", [without_sources(plan) for plan in some])):
        drawn = batches.sequences_of(given, np.random.default_rng(0))
        nats = []
        for start in range(0, len(drawn), 8):
            row = packed(drawn[start : start + 8], markup, 1.0)
            code = row.main & (row.targets >= markup.vocabulary.image_start)
            hidden = generator(torch.from_numpy(row.ids)[None], offsets=torch.from_numpy(row.offsets))[0]
            targets = torch.from_numpy(row.targets[code])
            loss = weighted_cross_entropy(hidden[torch.from_numpy(code)], generator, targets, torch.ones(len(targets)))
            nats.append(loss.token_nll.numpy())
        every = np.concatenate(nats)
        seen |= {part + name: float(every[which].mean()) for part, which in parts.items()}
    return seen


def draw_look(
    generator: Generator, text: TextTokenizer, image: FSQImageTokenizer, markup: Markup, kinds: Kinds, path: Path
) -> None:
    """A sheet of novel entities: a column each, from the top sources, the true picture, two drawn ones."""
    import PIL.Image

    from racm3.document import Hole
    from racm3.generator.engine import Engine
    from racm3.generator.prompt import answer_constraint, build_prompt
    from racm3.generator.sampling import Sampling
    from racm3.generator.sequence import SequenceRequest

    world = World.of("novel", "seen")
    step = image.config.patch_px
    some = [one for same in (1.0, 0.0) for kind in ("once", "two") for one in plans(world, kind, 3, step, same)]
    batches = OpenBatches(Planner(world, kinds, image.config.patch_px), text, image, markup)
    columns: list[list[np.ndarray]] = []
    requests: list[SequenceRequest] = []
    for plan in some:
        documents = [markup.from_ids(one.ids) for one in batches.drawn([*plan.sources, plan.main])]
        *sources, (words, own) = documents
        prompt = build_prompt(sources, [words, Hole("image")], markup, 1)
        constraint = answer_constraint(prompt.spans, markup.vocabulary)
        requests += [
            SequenceRequest(prompt.ids, constraint, Sampling(temperature=t, top_p=p), seed=1)
            for t, p in ((1.0, 0.9), (0.01, 1.0))
        ]
        columns.append([np.array(document[1].codes) for document in sources] + [np.array(own.codes)])  # type: ignore[union-attr]
    drawn = [
        np.array(done.tokens) - markup.vocabulary.image_start
        for done in Engine(generator, markup.vocabulary).run(requests)
    ]
    codes = [code for i, column in enumerate(columns) for code in (*column, *drawn[2 * i : 2 * i + 2])]
    pixels = image.decode(torch.from_numpy(np.stack(codes))).permute(0, 2, 3, 1)
    tiles = (pixels * 255).round().to(torch.uint8).numpy()
    side = tiles.shape[1]
    sheet = np.full((5 * side, len(columns) * side, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        column, row = divmod(number, 5)
        sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(sheet).save(path)


def learn_words(world: World, ids: int = 2048, captions: int = 30_000, seed: int = 0) -> TextTokenizer:
    """A text tokenizer from captions of the world, and the names of all that is in it."""
    planner = Planner(world, Kinds(), PATCH_PX)
    rng = np.random.default_rng(seed)
    names = [name for one in world.art.cutouts for name in one.names]
    texts = (
        document.caption
        for _ in range(captions // 3)
        for plan in [planner.plan(rng)]
        for document in (*plan.sources, plan.main)
    )
    return TextTokenizer.train((*texts, *names), ids)
