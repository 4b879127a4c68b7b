"""Recipe: train the generator on retrieved + main documents with the CM3 objective.

    loss = (LM loss of the main document) + alpha x (LM loss of the retrieved documents)

T tokens of a sequence, N of a batch, S sequences, K retrieved documents.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from racm3.errors import ConfigError, SourceError, values
from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.model_folder import ModelFolder
from racm3.retriever.strategy import QUERY_DROPOUT
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.masking import draw_count, draw_spans, mask, part_spans, prediction_weights, region_spans
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary
from racm3.training.distributed import connect, whole
from racm3.training.journal import fingerprint
from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig
from racm3.training.prepare import TrainingSet
from racm3.training.samples import draw_sheet

RARE = 0.05
"""A text id in fewer of the documents is rare: a piece of a name, and not a word of the grammar. Ours: in the built-in
world colours and places stand in 6 to 9 % of the captions, pieces of names in less than 5 %."""

ROW_TOKENS = 64
"""Packed rows are as long as a multiple of this: oneDNN makes and keeps a plan for each shape of a matrix product.
After the `scenes` run's first 100 steps on one core: 1.5 GB resident instead of 2.5, and 8 % more tokens a second."""

SAMPLE = 50_000
"""At most so many documents, evenly spaced, tell what is rare and how long a document is."""


@dataclass(frozen=True)
class MaskingConfig:
    """How the main document is masked.

    ``minimum`` 1 is the CM3 paper, 0 the authors' later code (36.8 % of sequences stay causal). A share of documents
    is masked instead as the tasks will ask: one whole text (captioning), or a rectangle of a picture (infilling).
    Those shares are ours: at a few million training tokens, uniform spans almost never hide exactly a caption. Of the
    rectangles ``around_share`` lie around what the retrieved documents show too, the rest anywhere, and
    ``wordless_share`` of these pictures stand without their words, as in editing. To a generator that can draw, both
    teach infilling and editing; one that learns all at once draws worse (`docs/log.md`).
    """

    minimum: Literal[0, 1] = 0
    whole_text_share: float = 0.2
    region_share: float = 0.2
    around_share: float = 0.0
    wordless_share: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.whole_text_share, self.region_share)
        of_regions = (self.around_share, self.wordless_share)
        if (
            self.minimum not in (0, 1)
            or min(shares) < 0
            or sum(shares) > 1
            or not 0 <= min(of_regions) <= max(of_regions) <= 1
        ):
            raise ConfigError(
                "masking: minimum is 0 or 1, whole_text_share and region_share are >= 0 and sum to at most 1, "
                f"around_share and wordless_share are between 0 and 1; given {values(self, *vars(self))}"
            )


@dataclass(frozen=True)
class ShapeConfig:
    """The generator's shape, but for the vocabulary, which the tokenizers decide."""

    width: int = 192
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 48
    mlp_width: int = 512
    context_tokens: int = 512
    rope_theta: float = 10000.0
    tie_embeddings: bool = True


@dataclass(frozen=True)
class GeneratorRun:
    """One training run.

    ``alpha`` weighs the loss of the retrieved documents (0.1 is the paper's best). ``retrieved_shares[k]`` is the share
    of sequences with k retrieved documents (uniform over 0, 1, 2 in the paper, second-hand); ``(1,)`` is the vanilla
    CM3. In ``rename_share`` of the sequences with retrieved documents, the image codes and the rare text ids that the
    main document shares with them are renamed at random (ours): they mean nothing by themselves and can only be copied,
    so copying is learned for entities and names never met, and not a memory of those in the training data. The query
    is the main document's text part in ``text_query_share`` of sequences, else its picture part (ours: words name the
    entity more reliably than the small encoder's eyes). Of half of the queries the share ``query_dropout`` is dropped,
    so that what is retrieved differs; the others are asked as they are. A step is as many whole sequences, of any k,
    as have ``tokens_per_step`` tokens on average. ``strategy`` names how documents are retrieved, or is MODULE:NAME;
    null is the paper's, "relevance-redundancy". ``recompute_layers`` saves memory, ``compile`` time: see
    ``Generator.train_fast``.

    A text tokenizer that is learnt from the captions has at most ``text_ids`` ids; 0 is the tokenizer of ``init_from``.
    ``init_from`` is a generator folder to go on from, ours or Qwen3's, or "scenes", the shipped one.
    ``validation_documents``, below 1 a share of all, are never trained on nor retrieved; the loss on them is shown
    every ``loop.look_every`` steps.
    """

    model: ShapeConfig = ShapeConfig()
    masking: MaskingConfig = MaskingConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-3, muon_lr=3e-3, warmup_steps=100)
    loop: LoopConfig = LoopConfig(steps=3000)
    alpha: float = 0.1
    rename_share: float = 0.5
    text_query_share: float = 0.8
    query_dropout: float = QUERY_DROPOUT
    retrieved_shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    tokens_per_step: int = 3840
    text_ids: int = 1024
    init_from: str | None = None
    strategy: str | None = None
    validation_documents: int | float = 0
    z_loss: float = 1e-5
    recompute_layers: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "retrieved_shares", tuple(self.retrieved_shares))
        shares = self.retrieved_shares
        if self.alpha < 0 or not shares or min(shares) < 0 or not sum(shares):
            raise ConfigError(
                f"alpha >= 0, retrieved_shares >= 0 and not all 0; given {values(self, 'alpha', 'retrieved_shares')}"
            )
        if min(self.text_ids, self.validation_documents) < 0:
            raise ConfigError(
                f"text_ids and validation_documents are >= 0; given {values(self, 'text_ids', 'validation_documents')}"
            )
        if self.validation_documents > 1 and self.validation_documents % 1:
            raise ConfigError(
                f"validation_documents is a whole number, or below 1 a share; given {self.validation_documents}"
            )
        for name in ("text_query_share", "rename_share", "query_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is between 0 and 1, but {getattr(self, name)} was given")

    @property
    def k(self) -> int:
        """The most documents that are retrieved for a sequence; 0: this run does not retrieve."""
        return len(self.retrieved_shares) - 1

    @property
    def dropouts(self) -> tuple[float, ...]:
        """The share that is dropped of each draw of the queries."""
        return (0.0, self.query_dropout) if self.query_dropout else (0.0,)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences laid end to end, each token beside the one that follows it; no padding.

    Sequence i is the tokens ``offsets[i]:offsets[i + 1]``; its main document is that row of the training set.
    """

    ids: np.ndarray  # (N,) int64
    targets: np.ndarray  # (N,) int64, the id that follows
    weights: np.ndarray  # (N,) float32, of the target in the loss
    main: np.ndarray  # (N,) bool: whether the target is the main document's
    offsets: np.ndarray  # (S + 1,) int64
    rows: np.ndarray  # (S,) int64
    normaliser: float
    """Sum of the weights of the whole step, of which this may be a part."""


class Batches:
    """``batch(step)``: the sequences of a step, a function of the step alone."""

    def __init__(self, data: TrainingSet, markup: Markup, grid: tuple[int, int], run: GeneratorRun) -> None:
        self.data, self.markup, self.grid, self.run = data, markup, grid, run
        if run.k and data.neighbours is None:
            raise SourceError("this run retrieves, but the data was prepared without an encoder; give one")
        sample = data.ids[:: -(-len(data.ids) // SAMPLE)]
        held = np.bincount(np.concatenate([np.unique(ids) for ids in sample]), minlength=markup.vocabulary.size)
        every = np.arange(markup.vocabulary.size)
        self.rare = held < RARE * len(sample)  # (V,)
        self.renamable = (markup.vocabulary.is_text(every) & self.rare) | markup.vocabulary.is_image(every)  # (V,)
        shares = np.array(run.retrieved_shares, dtype=float)
        self.share_edges = (shares.cumsum() / shares.sum())[:-1]
        documents = 1 + (np.arange(len(shares)) * shares).sum() / shares.sum()  # of a sequence, on average
        document_tokens = float(np.mean([len(ids) for ids in sample]))
        self.mean_tokens = documents * document_tokens  # of a sequence
        self.sequences = max(1, round(run.tokens_per_step / self.mean_tokens))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> PackedBatch:
        """Part ``part`` of ``parts`` of a step: every sequence is in one part, and they are about equally long.

        Every process draws the whole step and keeps its part, for only then is known how long the sequences are: 40 ms,
        measured, for the 2 M tokens of the paper's steps.
        Raises ConfigError if there are more parts than sequences.
        """
        if parts > self.sequences:
            raise ConfigError(
                f"a step of {self.run.tokens_per_step} tokens is about {self.sequences} sequences, too few for "
                f"{parts} processes and accumulation steps; raise tokens_per_step or use fewer"
            )
        rng = np.random.default_rng((self.run.loop.seed, step))
        # One draw places all: each k has its share of the step's sequences but for a fraction of one.
        places = (np.arange(self.sequences) + rng.random()) / self.sequences
        counts = np.searchsorted(self.share_edges, places, side="right")
        rows = self.data.draw(self.sequences, rng)
        drawn = [(row, *self.sequence(int(row), int(k), rng)) for row, k in zip(rows, counts, strict=True)]
        drawn.sort(key=lambda one: -len(one[1]))
        return self._packed(drawn[part::parts], float(sum(weights[1:].sum(dtype=np.float64) for *_, weights in drawn)))

    def validation(self) -> PackedBatch:
        """The documents held out, each behind as many retrieved ones as the run has at most; the same every time.

        Only the main documents have a weight.
        """
        rng = np.random.default_rng(self.run.loop.seed)
        batch = self._packed([(row, *self.sequence(row, self.run.k, rng)) for row in sorted(self.data.held_out)], 1.0)
        weights = batch.weights * batch.main
        return replace(batch, weights=weights, normaliser=float(weights.sum()))

    def _packed(self, drawn: list[tuple[int, np.ndarray, np.ndarray]], normaliser: float) -> PackedBatch:
        """(row, ids, weights) each, laid end to end."""
        doc = self.markup.vocabulary.doc
        return PackedBatch(
            ids=np.concatenate([ids[:-1] for _, ids, _ in drawn]).astype(np.int64),
            targets=np.concatenate([ids[1:] for _, ids, _ in drawn]).astype(np.int64),
            weights=np.concatenate([weights[1:] for *_, weights in drawn]),
            main=np.concatenate([np.arange(1, len(ids)) >= (ids == doc).nonzero()[0][-1] for _, ids, _ in drawn]),
            offsets=np.cumsum([0, *(len(ids) - 1 for _, ids, _ in drawn)]),
            rows=np.array([row for row, *_ in drawn]),
            normaliser=normaliser,
        )

    def sequence(self, row: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A sequence (T,) and its weights (T,): up to ``k`` retrieved documents, then the main one, masked."""
        retrieved: list[np.ndarray] = []
        if k and self.data.neighbours is not None:
            by_text = rng.random() < self.run.text_query_share
            draws = self.data.neighbours[row, 0 if by_text else 1 :: 2]  # (R / 2, K)
            chosen = draws[rng.integers(len(draws))][:k]
            retrieved = [self.data.ids[other] for other in chosen if other >= 0 and other not in self.data.held_out]
        alpha = self.run.alpha
        main, spans = self.hidden(self.data.ids[row], retrieved, rng)
        if retrieved and rng.random() < self.run.rename_share:
            *retrieved, main = self.renamed([*retrieved, main], rng)
            alpha = 0.0  # new names are chance: there is nothing to learn in predicting them the first time
        before = sum(len(document) for document in retrieved)
        spans = [(start + before, end + before) for start, end in spans]
        ids = mask(np.concatenate([*retrieved, main]), spans, self.markup.vocabulary)
        weights = prediction_weights(ids, self.markup.vocabulary)
        weights[:before] *= alpha
        return ids, weights

    def renamed(self, documents: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """The documents with all codes and rare text ids that the last one shares with the others renamed alike."""
        v = self.markup.vocabulary
        *others, main = documents
        shared = np.intersect1d(main, np.concatenate(others))
        shared = shared[self.renamable[shared]]
        names = np.arange(v.size)
        for old, first, size in (
            (shared[v.is_text(shared)], v.text_start, v.text_size),
            (shared[v.is_image(shared)], v.image_start, v.image_size),
        ):
            names[old] = first + rng.choice(size, len(old), replace=False)
        return [names[document].astype(document.dtype) for document in documents]

    def hidden(
        self, main: np.ndarray, retrieved: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The main document, with its words or without, and which spans of it are hidden."""
        vocabulary, masking = self.markup.vocabulary, self.run.masking
        dice = rng.random()
        if dice < masking.whole_text_share:
            texts = part_spans(main, vocabulary, "text")
            if texts:
                return main, [texts[rng.integers(len(texts))]]
        elif dice < masking.whole_text_share + masking.region_share and (main == vocabulary.image).any():
            if rng.random() < masking.wordless_share:
                main = without_words(main, vocabulary)
            start = int(rng.choice(np.flatnonzero(main == vocabulary.image))) + 1
            return main, region_spans(start, self.grid, *self.rectangle(main[start:], retrieved, rng))
        return main, draw_spans(rng, [(1, len(main) - 1)], draw_count(rng, masking.minimum))

    def rectangle(
        self, codes: np.ndarray, retrieved: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Top, left, height and width of a region of the picture that ``codes`` begin with.

        In ``masking.around_share`` of them it lies around the rare codes that ``retrieved`` ones have too, if any.
        """
        rows, columns = self.grid
        if rng.random() < self.run.masking.around_share and retrieved:
            shown = codes[: rows * columns].reshape(rows, columns)
            shared = np.isin(shown, np.concatenate(retrieved)) & self.rare[shown]
            if shared.any():
                tops, lefts = (np.flatnonzero(shared.any(axis)).tolist() for axis in (1, 0))
                height, width = tops[-1] - tops[0] + 1, lefts[-1] - lefts[0] + 1
                return tops[0], lefts[0], min(height, MAX_MASKS), width
        height, width = draw_side(rng, rows, MAX_MASKS), draw_side(rng, columns, columns)
        return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width


def without_words(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """A document's pictures alone."""
    return ids[~(vocabulary.is_text(ids) | np.isin(ids, (vocabulary.text, vocabulary.pad)))]


def draw_side(rng: np.random.Generator, codes: int, most: int) -> int:
    """A side of a hidden region: a quarter to three quarters of the grid's ``codes``, at least 1, at most ``most``."""
    high = max(1, min(3 * codes // 4, most))
    return int(rng.integers(min(1 + codes // 4, high), high + 1))


def packed_loss(
    generator: Generator, batch: PackedBatch, vocabulary: Vocabulary, z_loss: float
) -> tuple[Tensor, Metrics]:
    """The batch's share of the step's loss; and of each kind of target that it holds, the sum of the losses and their
    number. ``output_rms`` is the root mean square of the hidden states.

    The row is padded to a multiple of ``ROW_TOKENS`` by sequences without a weight."""
    device = generator.lm_head.weight.device
    tokens = len(batch.ids)
    end = tokens + -tokens % ROW_TOKENS
    arrays = (np.pad(array, (0, end - tokens)) for array in (batch.ids, batch.targets, batch.weights, batch.main))
    ids, targets, weights, main = (torch.from_numpy(array).to(device) for array in arrays)
    offsets = np.union1d(batch.offsets, np.r_[tokens : end : generator.config.context_tokens, end])
    hidden = generator(ids[None], offsets=torch.from_numpy(offsets))[0]  # (N, D)
    (learnt,) = np.nonzero(batch.weights)  # what has no weight needs no logits
    chosen = torch.from_numpy(np.pad(learnt, (0, -len(learnt) % ROW_TOKENS), constant_values=end - 1)).to(device)
    targets, main, padding = targets[chosen], main[chosen], torch.arange(len(chosen), device=device) >= len(learnt)
    weights = weights[chosen].masked_fill(padding, 0)
    loss = weighted_cross_entropy(
        hidden[chosen], generator, targets, weights, z_loss=z_loss, normaliser=batch.normaliser
    )
    image = targets >= vocabulary.image_start
    text = (targets >= vocabulary.text_start) & ~image
    kinds = {"main_image": main & image, "main_text": main & text, "retrieved": ~main}
    own = {name: kind & ~padding for name, kind in kinds.items()}
    metrics: Metrics = {name: ((loss.token_nll * kind).sum(), kind.sum()) for name, kind in own.items()}
    rms = hidden[:tokens].detach().float().square().mean(dim=-1).sqrt()
    return loss.total, metrics | {"output_rms": (rms.sum(), len(rms))}


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: Python's headers and a compiler, for C++ on a CPU. On CUDA it writes
    Triton, which builds its launchers in C."""
    c = os.environ.get("CC", "gcc"), "clang"
    cpp = os.environ.get("CXX", "g++"), "clang++"
    found = any(map(shutil.which, c if device.type == "cuda" else cpp))
    return found and (Path(sysconfig.get_path("include")) / "Python.h").exists()


def train_generator(
    data: TrainingSet,
    text: TextTokenizer,
    markup: Markup,
    grid: tuple[int, int],
    run: GeneratorRun,
    folder: Path,
    code_vectors: Tensor | None = None,
    initial: Generator | None = None,
    image: ImageTokenizer | None = None,
    made_of: Mapping[str, str] | None = None,
    examine: Callable[[int, Generator], Mapping[str, float]] | None = None,
) -> Generator | None:
    """Train and save a generator folder: Qwen3 layout plus ``tokenizer.json`` and ``racm3.json``.

    ``code_vectors`` (codes, D) are the image tokenizer's own vectors of its codes: similar codes then start with
    similar embeddings, which rare codes profit from. ``initial`` is a generator of this vocabulary to go on from.
    Every ``run.loop.look_every`` steps ``image`` shows what the generator draws, in ``samples``, and ``examine``
    measures it after so many steps; its numbers go into the metrics. ``made_of``: hashes of the models that made the
    data. Returns None in all processes but the first.
    Raises ConfigError if documents are held out and never looked at.
    """
    if run.validation_documents and not run.loop.look_every:
        raise ConfigError(
            f"validation_documents={run.validation_documents} are looked at every loop.look_every steps, which is 0; "
            "set both, or neither"
        )
    torch.manual_seed(run.loop.seed)
    vocabulary = markup.vocabulary
    generator = initial or Generator(GeneratorConfig(vocabulary_size=vocabulary.size, **asdict(run.model)))
    if initial is None and code_vectors is not None:
        with torch.no_grad():
            table = generator.model.embed_tokens.weight[vocabulary.image_start :]
            directions = torch.randn(code_vectors.shape[1], table.shape[1])
            table.add_(0.02 * torch.nn.functional.normalize(code_vectors, dim=1) @ directions)
    batches = Batches(data.holding_out(run.validation_documents, run.loop.seed), markup, grid, run)
    compiled = run.compile and can_compile(connect().device)
    if run.compile and not compiled:
        print(
            f"{folder.name}: no compiler (g++; on CUDA, gcc) or no Python.h: not compiled, so slower", file=sys.stderr
        )
    generator.train_fast(compile=compiled, recompute_layers=run.recompute_layers)

    def batch(step: int, part: int, parts: int) -> Batch:
        packed = batches.batch(step, part, parts)
        names = [f"document {row}" for row in packed.rows]
        return Batch(packed, names, float(packed.weights.sum(dtype=np.float64)), len(packed.ids))

    def loss(batch: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        return packed_loss(generator, replace(batch.content, normaliser=normaliser), vocabulary, run.z_loss)

    def look(step: int) -> Mapping[str, float]:
        now = whole(generator, lambda: Generator(generator.config))
        if now is None:
            return {}
        if image is not None:
            draw_sheet(now, batches.data, markup, image, folder / "samples" / f"step-{step:09d}.png", run.k)
        seen = {} if examine is None else dict(examine(step, now))
        if run.validation_documents:
            seen["validation"] = float(packed_loss(now, batches.validation(), vocabulary, 0.0)[0])
        return seen

    neighbours = [] if data.neighbours is None else [data.neighbours]
    recipe = Recipe(
        folder.name,
        batch,
        loss,
        made_of={"data": fingerprint(data.ids, *neighbours)} | dict(made_of or {}),
        flops_per_token=generator.flops_per_token(round(batches.mean_tokens)),
        look=look if image is not None or examine is not None or run.validation_documents else None,
    )
    fit(generator, recipe, run, folder)
    trained = whole(generator, lambda: Generator(generator.config))
    if trained is None:
        return None
    ModelFolder.around(folder).save_generator(trained, text, markup, grid, asdict(run), torch.float16)
    return trained
