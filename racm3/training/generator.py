"""Recipe: train the generator on retrieved + main documents with the CM3 objective.

    loss = (LM loss of the main document) + alpha x (LM loss of the retrieved documents)

B batch, T tokens, K retrieved documents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from racm3.errors import ConfigError, SourceError
from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.tokens.markup import Markup
from racm3.tokens.masking import draw_count, draw_spans, mask, part_spans, prediction_weights, region_spans
from racm3.tokens.text import TextTokenizer
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary
from racm3.training.data import TrainingSet
from racm3.training.loop import LoopConfig, Metrics, fit
from racm3.training.optimiser import OptimiserConfig

LOGITS_TOKENS = 1024
"""Tokens whose logits are made at once: a third faster on a CPU than the whole batch, which leaves its caches."""

RARE = 0.05
"""A text id in fewer of the documents is rare: a piece of a name, and not a word of the grammar. Ours: in the built-in
world colours and places stand in 6 to 9 % of the captions, pieces of names in less than 5 %."""


@dataclass(frozen=True)
class MaskingConfig:
    """How the main document is masked.

    ``minimum`` 1 is the CM3 paper, 0 the authors' later code (36.8 % of sequences stay causal). A share of documents
    is masked instead as the tasks will ask: one whole text (captioning), or a rectangle of a picture (infilling).
    Those shares are ours: at a few million training tokens, uniform spans almost never hide exactly a caption.
    """

    minimum: Literal[0, 1] = 0
    whole_text_share: float = 0.2
    region_share: float = 0.2

    def __post_init__(self) -> None:
        shares = (self.whole_text_share, self.region_share)
        if self.minimum not in (0, 1) or min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"masking: minimum is 0 or 1, shares are >= 0 and sum to at most 1; given {self}")


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


@dataclass(frozen=True)
class GeneratorRun:
    """One training run.

    ``alpha`` weighs the loss of the retrieved documents (0.1 is the talk's best). ``retrieved_shares[k]`` is the share
    of sequences with k retrieved documents (uniform over 0, 1, 2 in the paper, second-hand); ``(1,)`` is the vanilla
    CM3. In ``rename_share`` of the sequences with retrieved documents, the image codes and the rare text ids that the
    main document shares with them are renamed at random (ours): they mean nothing by themselves and can only be copied,
    so copying is learned for entities and names never met, and not a memory of those in the training data. The query
    is the main document's text part in ``text_query_share`` of sequences, else its picture part (ours: words name the
    entity more reliably than the small encoder's eyes). Every step holds about ``tokens_per_step`` tokens, all with the
    same k: nothing is padded in vain.
    """

    model: ShapeConfig = ShapeConfig()
    masking: MaskingConfig = MaskingConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-3, muon_lr=3e-3, warmup_steps=100)
    loop: LoopConfig = LoopConfig(steps=3000)
    alpha: float = 0.1
    rename_share: float = 0.5
    text_query_share: float = 0.8
    retrieved_shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    tokens_per_step: int = 3840
    z_loss: float = 1e-5
    recompute_logits: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "retrieved_shares", tuple(self.retrieved_shares))
        shares = self.retrieved_shares
        if self.alpha < 0 or not shares or min(shares) < 0 or not sum(shares):
            raise ConfigError(f"alpha >= 0, retrieved_shares >= 0 and not all 0; given {self}")
        for name in ("text_query_share", "rename_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is between 0 and 1, but {getattr(self, name)} was given")


class Batches:
    """``batch(step)``: ids (B, T) and weights (B, T) of a step, a function of the step alone."""

    def __init__(self, data: TrainingSet, markup: Markup, grid: tuple[int, int], run: GeneratorRun) -> None:
        self.data, self.markup, self.grid, self.run = data, markup, grid, run
        if len(run.retrieved_shares) > 1 and data.neighbours is None:
            raise SourceError("this run retrieves, but the data was prepared without an encoder; give one")
        self.mean_tokens = float(np.mean([len(ids) for ids in data.ids]))
        held = np.bincount(np.concatenate([np.unique(ids) for ids in data.ids]), minlength=markup.vocabulary.size)
        every = np.arange(markup.vocabulary.size)
        rare_text = markup.vocabulary.is_text(every) & (held < RARE * len(data.ids))
        self.renamable = rare_text | markup.vocabulary.is_image(every)  # (V,)
        shares = np.array(run.retrieved_shares, dtype=float)
        # A step of k holds 1 / (k + 1) as many sequences, so it must come k + 1 times as often.
        of_steps = shares * np.arange(1, len(shares) + 1)
        self.step_shares = of_steps / of_steps.sum()

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.run.loop.seed, step))
        k = int(rng.choice(len(self.step_shares), p=self.step_shares))
        count = max(1, round(self.run.tokens_per_step / ((k + 1) * self.mean_tokens)))
        rows = rng.integers(len(self.data.ids), size=count)
        return pad([self.sequence(int(row), k, rng) for row in rows], self.markup.vocabulary)

    def sequence(self, row: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A sequence (T,) and its weights (T,): up to ``k`` retrieved documents, then the main one, masked."""
        retrieved: list[np.ndarray] = []
        if k and self.data.neighbours is not None:
            by_text = rng.random() < self.run.text_query_share
            draws = self.data.neighbours[row, 0 if by_text else 1 :: 2]  # (R / 2, K)
            chosen = draws[rng.integers(len(draws))][:k]
            retrieved = [self.data.ids[other] for other in chosen if other >= 0]
        main = self.data.ids[row]
        alpha = self.run.alpha
        if retrieved and rng.random() < self.run.rename_share:
            *retrieved, main = self.renamed([*retrieved, main], rng)
            alpha = 0.0  # new names are chance: there is nothing to learn in predicting them the first time
        before = sum(len(document) for document in retrieved)
        spans = [(start + before, end + before) for start, end in self.spans(main, rng)]
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

    def spans(self, main: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Which spans of the main document are hidden."""
        vocabulary, masking = self.markup.vocabulary, self.run.masking
        dice = rng.random()
        if dice < masking.whole_text_share:
            texts = part_spans(main, vocabulary, "text")
            if texts:
                return [texts[rng.integers(len(texts))]]
        elif dice < masking.whole_text_share + masking.region_share:
            starts = np.flatnonzero(main == vocabulary.image) + 1
            if len(starts):
                rows, columns = self.grid
                height, width = draw_side(rng, rows, MAX_MASKS), draw_side(rng, columns, columns)
                top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
                return region_spans(int(rng.choice(starts)), self.grid, top, left, height, width)
        return draw_spans(rng, [(1, len(main) - 1)], draw_count(rng, masking.minimum))


def draw_side(rng: np.random.Generator, codes: int, most: int) -> int:
    """A side of a hidden region: a quarter to three quarters of the grid's ``codes``, at least 1, at most ``most``."""
    high = max(1, min(3 * codes // 4, most))
    return int(rng.integers(min(1 + codes // 4, high), high + 1))


def pad(sequences: Sequence[tuple[np.ndarray, np.ndarray]], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of several lengths as (B, T) ids and weights; the padding on the right has weight 0.

    T is rounded up to a multiple of 16, so that compiled code meets few shapes.
    """
    longest = -(-max(len(ids) for ids, _ in sequences) // 16) * 16
    ids = np.full((len(sequences), longest), vocabulary.pad, np.int64)
    weights = np.zeros((len(sequences), longest), np.float32)
    for i, (row, weight) in enumerate(sequences):
        ids[i, : len(row)] = row
        weights[i, : len(row)] = weight
    return ids, weights


def train_generator(
    data: TrainingSet,
    text: TextTokenizer,
    markup: Markup,
    grid: tuple[int, int],
    run: GeneratorRun,
    folder: Path,
    code_vectors: Tensor | None = None,
) -> Generator:
    """Train and save a generator folder: Qwen3 layout plus ``tokenizer.json`` and ``racm3.json``.

    ``code_vectors`` (codes, D) are the image tokenizer's own vectors of its codes: similar codes then start with
    similar embeddings, which rare codes profit from.
    """
    torch.manual_seed(run.loop.seed)
    vocabulary = markup.vocabulary
    generator = Generator(GeneratorConfig(vocabulary_size=vocabulary.size, **asdict(run.model)))
    if code_vectors is not None:
        with torch.no_grad():
            table = generator.model.embed_tokens.weight[vocabulary.image_start :]
            directions = torch.randn(code_vectors.shape[1], table.shape[1])
            table.add_(0.02 * torch.nn.functional.normalize(code_vectors, dim=1) @ directions)
    batches = Batches(data, markup, grid, run)
    forward = torch.compile(generator, dynamic=True) if run.compile else generator
    image_start = vocabulary.image_start

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        ids, weights = (torch.from_numpy(array) for array in batches.batch(step))
        hidden = forward(ids[:, :-1])  # (B, T-1, D)
        targets, target_weights = ids[:, 1:], weights[:, 1:]
        loss = weighted_cross_entropy(
            hidden,
            generator,
            targets,
            target_weights,
            z_loss=run.z_loss,
            chunk_tokens=LOGITS_TOKENS,
            recompute=run.recompute_logits,
        )
        main = target_weights == 1
        image = main & (targets >= image_start)
        text_part = main & (targets >= vocabulary.text_start) & ~image
        kinds = {"main_image": image, "main_text": text_part, "retrieved": (target_weights > 0) & ~main}
        return loss.total, {name: loss.token_nll[kind].mean() for name, kind in kinds.items() if kind.any()}

    fit(generator, loss_of, run.optimiser, run.loop, folder, folder.name)
    generator.save_pretrained(folder, dtype=torch.float16)
    text.save(folder / "tokenizer.json")
    facts = vocabulary.to_dict() | {"codes_per_image": markup.codes_per_image, "grid": list(grid), "run": asdict(run)}
    (folder / "racm3.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return generator
