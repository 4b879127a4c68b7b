"""Endless training sequences: retrieved documents, then the main one, each drawn for this sequence alone.

No picture comes twice, so nothing can be learnt by heart: what the main picture shows has to be read from the documents
before it. The main entity has the size of one of its sources and the same place on the grid of the codes (their phases
are equal), for only then do its codes stand there; any other source of it may differ. It stands exactly where its
caption says, so that where it begins is no chance: else the likeliest picture is an empty one.

T tokens of a sequence, S sequences of a step, N codes of a picture, E entities.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from racm3.errors import ConfigError
from racm3.open_scenes.art import Cutout
from racm3.open_scenes.grounds import Ground
from racm3.open_scenes.names import made_up
from racm3.open_scenes.open_world import MORE_PX, ONE_PX, TWO_PX, World
from racm3.open_scenes.scene import PICTURE_PX, Placed, Scene, draw_masked
from racm3.open_scenes.wording import TRAINED, describe, facts
from racm3.tokens.image_tokenizer import FSQ, FSQImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.masking import mask, part_spans, region_spans
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.training.generator_recipe import PackedBatch, without_words

SYNONYM_SHARE = 0.15
"""Of the sequences: another name of the entity, the same in all its documents."""

COMPANION_SHARE = 0.2
"""Of the sources: another entity stands there as well."""

SAME_SECOND_SHARE = 0.5
"""Of the second sources of an entity: the same size, too, and the same phase; the others differ in all."""


SOURCES = ("twice", "distracted", "once", "nothing", "two", "three", "labels", "style")

TRAINED_STYLES = ("grey", "negative", "sketch", "mosaic")
"""Sepia is held out."""

NEAR_CODES = 2
"""Rows and columns around an entity in which the background counts as much as it does."""


@dataclass(frozen=True)
class Kinds:
    """Shares of what the sources of a sequence are, and of what is asked.

    ``twice``: one entity, shown by both. ``distracted``: by one of two. ``once``: by the only one. ``nothing``: there
    is no source. ``two``: two entities, a source each. ``three``: three of them. ``labels``: two entities whose
    captions are made-up words, and the main picture's is asked for. ``style``: of two, one or
    both in a style that the main caption names. ``same_ground``: all of its pictures are on the very same plain colour,
    so that the codes at the edge of an entity can be copied as well.
    ``same_place``: an entity stands where its source shows it, at any pixel; else in the middle of a third.
    """

    twice: float = 0.12
    distracted: float = 0.24
    once: float = 0.14
    nothing: float = 0.05
    two: float = 0.24
    three: float = 0.03
    labels: float = 0.1
    style: float = 0.08
    caption: float = 0.24
    region: float = 0.12
    wordless: float = 0.3
    same_ground: float = 0.15
    same_place: float = 0.5

    def __post_init__(self) -> None:
        if abs(sum(self.of_sources) - 1) > 1e-6 or self.caption + self.region > 1:
            raise ConfigError(f"the shares of sources add up to 1, those of tasks to at most 1; given {self}")

    @property
    def of_sources(self) -> tuple[float, ...]:
        return tuple(getattr(self, name) for name in SOURCES)

    def towards(self, other: Kinds, share: float) -> Kinds:
        """A mixture of both: these at share 0, the others at 1."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return Kinds(**{name: one + (two - one) * share for (name, one), two in pairs})


FIRST = replace(Kinds(), once=0.34, twice=0.02, two=0.14, same_ground=0.4, same_place=0.7)
"""What a run begins with: with one source a sequence takes half of the time, and on one ground edges can be copied."""

NOISY_SHARE, NOISE = 0.5, 0.15
"""Of the sequences some read a main picture of whose codes up to so many are others, mostly neighbours in one digit.
What is drawn freely is never quite what stands in a source; copying has to go on behind it."""


@dataclass(frozen=True)
class Weights:
    """Of tokens in the loss. What is copied counts; what is chance (backgrounds) and what was read (sources) little.

    A weight that depends on what a code shows is a bias: with 1 for an entity and .12 for all of the background,
    entities are drawn everywhere (docs/log-open.md). So the background around an entity counts as much,
    and only that far away counts less, where it is no question which of the two comes.
    """

    entity: float = 1.0
    ground: float = 0.3
    source: float = 0.06
    words: float = 0.1
    caption: float = 1.5


@dataclass(frozen=True)
class Told:
    """A document: a scene and its caption."""

    scene: Scene
    caption: str


@dataclass(frozen=True)
class Plan:
    """A sequence before its pictures are drawn."""

    sources: tuple[Told, ...]
    main: Told
    task: str = "draw"  # or "caption", "region", "wordless"


class Planner:
    """Sequences of a world, as functions of a random generator."""

    def __init__(self, world: World, kinds: Kinds, step_px: int, wordings: Sequence[str] = TRAINED) -> None:
        self.world, self.kinds, self.step_px, self.wordings = world, kinds, step_px, wordings

    def plan(
        self,
        rng: np.random.Generator,
        task: str | None = None,
        sources: str | None = None,
        kinds: Kinds | None = None,
    ) -> Plan:
        """A sequence of the given kinds, or of kinds drawn by their shares."""
        kinds = kinds or self.kinds
        sources = sources or SOURCES[rng.choice(len(SOURCES), p=np.array(kinds.of_sources) / sum(kinds.of_sources))]
        if sources == "labels":
            return self._labelled(rng)
        if sources == "style":
            return self._styled(rng)
        if task is None:
            dice = rng.random() - kinds.caption
            task = "caption" if dice < 0 else "region" if dice < kinds.region else "draw"
            if task == "region" and rng.random() < kinds.wordless:
                task = "wordless"
        count = {"two": 2, "three": 3}.get(sources, 1)
        spare, *shown = self.world.others(count + 1, rng)
        ground = self.world.plain_ground(rng) if rng.random() < kinds.same_ground else None
        called = self._called([*shown, spare], rng)
        low, high = (ONE_PX, TWO_PX, MORE_PX)[count - 1]
        documents: list[Told] = []
        placed: list[Placed] = []
        same_place = rng.random() < kinds.same_place
        middles = self.world.middles(count, rng) if same_place else self.world.middles(count, rng, jitter_px=0.0)
        for cutout, middle in zip(shown, middles, strict=True):
            size = int(rng.integers(low, high + 1))
            source = self._source(cutout, size, called, rng, ground, middle if same_place else None)
            own = source.scene.placed[[one.cutout for one in source.scene.placed].index(cutout.id)]
            placed.append(own if same_place else self._moved(own, middle, rng))
            if sources != "nothing":
                documents.append(source)
            if sources == "twice":
                documents.append(self._second(cutout, own, called, rng, ground, middle if same_place else None))
        if sources == "distracted":
            documents.append(self._source(spare, int(rng.integers(low, high + 1)), called, rng, ground))
        order = rng.permutation(len(documents))
        back = rng.permutation(len(placed))
        main = Scene(ground or self.world.ground(rng), tuple(placed[i] for i in back))
        return Plan(tuple(documents[i] for i in order), self._told(main, called, rng, places=0.95), task)

    def _labelled(self, rng: np.random.Generator) -> Plan:
        """Two entities, a made-up word each, and another picture of one of them, whose word is asked for."""
        cutouts = self.world.others(2, rng)
        words = [made_up(rng), made_up(rng)]
        scenes = []
        for cutout in cutouts:
            (middle,) = self.world.middles(1, rng)
            scenes.append(Scene(self.world.ground(rng), (self.world.placed(cutout, rng, middle=middle),)))
        main = self._again(scenes[0].placed[0], rng, self.kinds.same_place)
        order = rng.permutation(2)
        return Plan(tuple(Told(scenes[i], words[i]) for i in order), Told(main, words[0]), "caption")

    def _styled(self, rng: np.random.Generator) -> Plan:
        """Another entity in a style, one in that style or plain, and then the latter in the style."""
        style = TRAINED_STYLES[rng.integers(len(TRAINED_STYLES))]
        cutouts = self.world.others(2, rng)
        called = self._called(cutouts, rng)
        own, other = (self._source(cutout, int(rng.integers(*ONE_PX)), called, rng).scene for cutout in cutouts)
        own = replace(own, style=style if rng.random() < 0.5 else "plain")
        other = replace(other, style=style)
        shown = own.placed[[one.cutout for one in own.placed].index(cutouts[0].id)]
        main = replace(self._again(shown, rng, self.kinds.same_place), style=style)
        documents = [self._told(scene, called, rng) for scene in (own, other)]
        order = rng.permutation(2)
        return Plan(tuple(documents[i] for i in order), self._told(main, called, rng, places=0.95))

    def _again(self, shown: Placed, rng: np.random.Generator, same_place: float) -> Scene:
        """What is shown, there or elsewhere at the same phase, on another background."""
        (middle,) = self.world.middles(1, rng, jitter_px=0.0)
        placed = shown if rng.random() < same_place else self._moved(shown, middle, rng)
        return Scene(self.world.ground(rng), (placed,))

    def _moved(self, shown: Placed, middle: tuple[float, float], rng: np.random.Generator) -> Placed:
        """What is shown, its middle near another place, at the same phase."""
        return self.world.placed(
            self.world.art.by_id[shown.cutout], rng, size=shown.size, middle=middle, phase=(shown.left, shown.top),
            step=self.step_px, mirrored=shown.mirrored, tint=shown.tint,
        )  # fmt: skip

    def _source(
        self,
        cutout: Cutout,
        size: int,
        called: dict[str, str],
        rng: np.random.Generator,
        ground: Ground | None = None,
        middle: tuple[float, float] | None = None,
    ) -> Told:
        """A picture of the cut-out at a size, its middle at ``middle`` if given, now and then beside another one."""
        cutouts = [cutout]
        if rng.random() < COMPANION_SHARE and size <= TWO_PX[1]:
            cutouts += [one for one in self.world.others(2, rng) if one.group != cutout.group][:1]
        sizes = [size, *(int(rng.integers(*TWO_PX)) for _ in cutouts[1:])]
        middles = self.world.middles(len(cutouts), rng)
        if middle is not None:
            middles[0] = middle
        placed = [self.world.placed(c, rng, size=s, middle=m) for c, s, m in zip(cutouts, sizes, middles, strict=True)]
        return self._told(
            Scene(ground or self.world.ground(rng), tuple(placed[i] for i in rng.permutation(len(placed)))), called, rng
        )

    def _second(
        self,
        cutout: Cutout,
        first: Placed,
        called: dict[str, str],
        rng: np.random.Generator,
        ground: Ground | None = None,
        middle: tuple[float, float] | None = None,
    ) -> Told:
        """Another picture of the cut-out: as the first, perhaps elsewhere, or different in all that can differ."""
        if middle is None:
            (middle,) = self.world.middles(1, rng)
        if rng.random() < SAME_SECOND_SHARE:
            placed = self._moved(first, middle, rng)
        else:
            placed = self.world.placed(cutout, rng, middle=middle)
        return self._told(Scene(ground or self.world.ground(rng), (placed,)), called, rng)

    def _called(self, cutouts: Sequence[Cutout], rng: np.random.Generator) -> dict[str, str]:
        """What each is called throughout the sequence."""
        return {
            one.id: one.names[rng.integers(len(one.names))] if rng.random() < SYNONYM_SHARE else one.name
            for one in cutouts
        }

    def _told(self, scene: Scene, called: dict[str, str], rng: np.random.Generator, places: float = 0.75) -> Told:
        dice = random.Random(int(rng.integers(2**31)))
        told = facts(scene, dice, self.world.art, names=called, places=places)
        return Told(scene, describe(told, dice.choice(self.wordings), dice))


@dataclass(frozen=True)
class Drawn:
    """A document as tokens: its ids (T,), and for each the share of an entity in it, (T,), -1 for what is no code."""

    ids: np.ndarray
    shows: np.ndarray


class OpenBatches:
    """``batch(step)``: the sequences of a step, a function of the step alone."""

    def __init__(
        self,
        planner: Planner,
        text: TextTokenizer,
        image: FSQImageTokenizer,
        markup: Markup,
        *,
        sequences: int = 8,
        weights: Weights | None = None,
        seed: int = 0,
        first: Kinds | None = None,
        first_steps: int = 0,
    ) -> None:
        self.first, self.first_steps = first or planner.kinds, first_steps
        self.planner, self.text, self.image, self.markup = planner, text, image, markup
        self.unfilled = replace(markup, text_ids=0)
        self.levels = image.config.levels
        self.digits = FSQ(self.levels).digits_of(torch.arange(image.codebook_size)).numpy()  # (codes, places)
        self.sequences, self.weights, self.seed = sequences, weights or Weights(), seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> PackedBatch:
        """Part ``part`` of ``parts`` of a step. Raises ConfigError if there are more parts than sequences."""
        if parts > self.sequences:
            raise ConfigError(f"a step has {self.sequences} sequences, too few for {parts} parts; raise sequences")
        rng = np.random.default_rng((self.seed, step))
        share = min(1.0, step / self.first_steps) if self.first_steps else 1.0
        kinds = self.first.towards(self.planner.kinds, share)
        plans = [self.planner.plan(rng, kinds=kinds) for _ in range(self.sequences)]
        drawn = self.sequences_of(plans, rng)
        normaliser = float(sum(weights[1:].sum(dtype=np.float64) for _, weights in drawn))
        read = [self._noisy(ids, rng) if rng.random() < NOISY_SHARE else ids for ids, _ in drawn]
        return packed(drawn[part::parts], self.markup, normaliser, read[part::parts])

    def _noisy(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The ids with some codes of the main picture replaced: by a neighbour in one digit, or by any other of it."""
        v = self.markup.vocabulary
        codes = np.flatnonzero(v.is_image(ids))
        codes = codes[codes > np.flatnonzero(ids == v.doc)[-1]]
        some = codes[rng.random(len(codes)) < rng.uniform(0, NOISE)]
        digits = self.digits[ids[some] - v.image_start]  # (C, places)
        place = rng.integers(digits.shape[1], size=len(some))
        moved = digits[np.arange(len(some)), place] + rng.choice((-1, 1), len(some))
        digits[np.arange(len(some)), place] = np.clip(moved, 0, np.array(self.levels)[place] - 1)
        near = v.image_start + digits @ np.cumprod((1, *self.levels[:-1]))
        other = ids[rng.choice(codes, len(some))] if len(some) else near
        result = ids.copy()
        result[some] = np.where(rng.random(len(some)) < 0.75, near, other)
        return result

    def sequences_of(self, plans: Sequence[Plan], rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids (T,) and weights (T,) of each."""
        told = [document for plan in plans for document in (*plan.sources, plan.main)]
        documents = iter(self.drawn(told))
        return [self._sequence(plan, [next(documents) for _ in range(len(plan.sources) + 1)], rng) for plan in plans]

    def drawn(self, told: Sequence[Told]) -> list[Drawn]:
        """Documents as tokens, all pictures encoded at once."""
        pictures, shares = [], []
        patch = PICTURE_PX // self.markup_grid[0]
        for document in told:
            picture, masks = draw_masked(document.scene, self.planner.world.art)
            cover = np.clip(masks.sum(0), 0, 1)  # (PX, PX)
            rows, columns = self.markup_grid
            shares.append(cover.reshape(rows, patch, columns, patch).mean(axis=(1, 3)).ravel())
            pictures.append(picture)
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        codes = self.image.encode(pixels).numpy()  # (B, N)
        found = []
        for document, row, share in zip(told, codes, shares, strict=True):
            words = TextIds(tuple(self.text.encode(document.caption)))
            ids = np.array(self.unfilled.to_ids((words, ImageCodes(tuple(row.tolist())))), np.int64)
            shows = np.full(len(ids), -1, np.float32)
            shows[self.markup.vocabulary.is_image(ids)] = share
            found.append(Drawn(ids, shows))
        return found

    @property
    def markup_grid(self) -> tuple[int, int]:
        return self.image.grid

    def _sequence(
        self, plan: Plan, documents: Sequence[Drawn], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        v, own = self.markup.vocabulary, self.weights
        *sources, main = documents
        ids, shows = main.ids, main.shows
        if plan.task == "wordless":
            keep = ~(v.is_text(ids) | (ids == v.text))
            ids, shows = without_words(ids, v), shows[keep]
        weights = np.full(len(ids), own.words, np.float32)
        codes = shows >= 0
        near = around(shows[codes].reshape(self.image.grid) > 0.02, NEAR_CODES).ravel()
        weights[codes] = np.where(near, own.entity, own.ground)
        spans: list[tuple[int, int]] = []
        if plan.task == "caption":
            spans = part_spans(ids, v, "text")
            weights[codes] *= 0.5
            weights[v.is_text(ids)] = own.caption
        elif plan.task in ("region", "wordless"):
            start = int(np.flatnonzero(ids == v.image)[0]) + 1
            spans = region_spans(start, self.image.grid, *self._rectangle(shows[codes], rng))
            outside = codes.copy()
            for first, end in spans:
                outside[first:end] = False
            weights[outside] *= 0.25
        before = np.concatenate([one.ids for one in sources]) if sources else np.zeros(0, np.int64)
        read = np.zeros(len(before), np.float32)
        place = 0
        for one in sources:
            if rng.random() < 0.25:
                read[place : place + len(one.ids)] = 4 * own.source
            place += len(one.ids)
        moved = [(start + len(before), end + len(before)) for start, end in spans]
        masked = mask(np.concatenate([before, ids]), moved, v)
        order = masked_order(len(before) + len(ids), moved)
        weights = np.append(np.concatenate([read, weights]), np.float32(0))[order]  # -1 is what mask() added
        if plan.task == "caption":
            weights[-1] = own.caption  # the caption ends here
        order = self.markup.filling(masked)
        filler = order < 0
        return (
            np.where(filler, v.pad, masked[order]),
            np.where(filler, 0, weights[order]).astype(np.float32),
        )

    def _rectangle(self, shows: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is hidden: mostly around the entities, else anywhere."""
        rows, columns = self.image.grid
        grid = shows.reshape(rows, columns) > 0.02
        if rng.random() < 0.7 and grid.any():
            sides = []
            for axis in (1, 0):
                hit = np.flatnonzero(grid.any(axis))
                first, last = int(hit[0]) - int(rng.integers(2)), int(hit[-1]) + 1 + int(rng.integers(2))
                sides.append((max(0, first), min(rows, last)))
            (top, bottom), (left, right) = sides
            return top, left, bottom - top, right - left
        height, width = (int(rng.integers(rows // 4, 3 * rows // 4 + 1)) for _ in range(2))
        return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width


def around(shown: np.ndarray, codes: int) -> np.ndarray:
    """What is at most so many rows and columns from where something is shown, (rows, columns) bool."""
    wide = np.pad(shown, codes)
    rows, columns = shown.shape
    steps = range(2 * codes + 1)
    return np.any([wide[down : down + rows, across : across + columns] for down in steps for across in steps], axis=0)


def masked_order(length: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Where each token of ``mask(ids, spans)`` stood in the ids, -1 for what was added."""
    gaps: list[np.ndarray] = []
    moved: list[np.ndarray] = []
    read, added = 0, np.array([-1])
    for start, end in spans:
        gaps += [np.arange(read, start), added]
        moved += [added, np.arange(start, end)]
        read = end
    return np.concatenate([*gaps, np.arange(read, length), *moved, added])


def packed(
    drawn: Sequence[tuple[np.ndarray, np.ndarray]],
    markup: Markup,
    normaliser: float,
    read: Sequence[np.ndarray] | None = None,
) -> PackedBatch:
    """(ids, weights) each, laid end to end; ``read`` are the ids to read where they are not those to write."""
    doc = markup.vocabulary.doc
    return PackedBatch(
        ids=np.concatenate([ids[:-1] for ids in read or [ids for ids, _ in drawn]]).astype(np.int64),
        targets=np.concatenate([ids[1:] for ids, _ in drawn]).astype(np.int64),
        weights=np.concatenate([weights[1:] for _, weights in drawn]),
        main=np.concatenate([np.arange(1, len(ids)) >= (ids == doc).nonzero()[0][-1] for ids, _ in drawn]),
        offsets=np.cumsum([0, *(len(ids) - 1 for ids, _ in drawn)]),
        rows=np.arange(len(drawn)),
        normaliser=normaliser,
    )


def without_sources(plan: Plan) -> Plan:
    """The same sequence with nothing to copy from."""
    return replace(plan, sources=())
