"""Recipe: train a small CLIP on the captioned pictures of a data folder, and measure its redundancy threshold."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from racm3.document import Document, Image
from racm3.errors import SourceError
from racm3.retriever.encoder import Encoder
from racm3.training.loop import LoopConfig, Metrics, fit
from racm3.training.optimiser import OptimiserConfig

LEAST_TEMPERATURE = 0.01  # CLIP clips the learned logit scale at 100


@dataclass(frozen=True)
class MiningConfig:
    """Hard batches: every ``every_steps``, ``pool`` random captions are embedded; a batch is drawn from the ``nearest``
    of them to a random one."""

    every_steps: int = 100
    pool: int = 8192
    nearest: int = 512


@dataclass(frozen=True)
class EncoderRun:
    """One training run of a small CLIP; the shape fields are those of CLIPTextConfig and CLIPVisionConfig.

    A share ``hard_share`` of the batches holds pairs with similar captions. In random batches a pair can be told apart
    by its background and position alone, and the encoder ranks by these instead of by what stands there.
    """

    dimension: int = 128
    image_size_px: int = 64
    patch_px: int = 16
    vision_width: int = 192
    vision_layers: int = 3
    text_width: int = 128
    text_layers: int = 2
    text_tokens: int = 32
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3, muon_lr=2e-3, weight_decay=0.05)
    loop: LoopConfig = LoopConfig(steps=900)
    batch_size: int = 256
    hard_share: float = 0.85
    mining: MiningConfig = MiningConfig()


def new_encoder(tokenizer: Tokenizer, run: EncoderRun) -> Encoder:
    """An untrained encoder of the run's shape."""
    return Encoder.new(
        tokenizer,
        dimension=run.dimension,
        text={
            "hidden_size": run.text_width,
            "intermediate_size": 4 * run.text_width,
            "num_hidden_layers": run.text_layers,
            "num_attention_heads": run.text_width // 32,
            "max_position_embeddings": run.text_tokens,
        },
        vision={
            "hidden_size": run.vision_width,
            "intermediate_size": 4 * run.vision_width,
            "num_hidden_layers": run.vision_layers,
            "num_attention_heads": run.vision_width // 32,
            "image_size": run.image_size_px,
            "patch_size": run.patch_px,
        },
    )


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Metrics]:
    """CLIP's symmetric cross-entropy of (B, D) image and text features; pair i belongs together."""
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    logits = scale.exp().clamp(max=1 / LEAST_TEMPERATURE) * image @ text.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    matched = (logits.argmax(dim=1) == target).float().mean()
    return loss, {"matched": matched.detach()}


def train_encoder(
    pictures: np.ndarray,
    captions: list[str],
    tokenizer: Tokenizer,
    run: EncoderRun,
    folder: Path,
    start: Encoder | None = None,
) -> Encoder:
    """Train on N (H, W, 3) uint8 pictures and their captions, and save to ``folder``.

    Raises SourceError if there are fewer pairs than one batch.
    """
    if len(pictures) < run.batch_size or len(pictures) != len(captions):
        raise SourceError(
            f"{len(pictures)} pictures and {len(captions)} captions were given; a batch takes {run.batch_size} pairs"
        )
    torch.manual_seed(run.loop.seed)
    encoder = start or new_encoder(tokenizer, run)
    ids = encoder.text_inputs(captions)["input_ids"]  # (N, T)

    pool = np.arange(0)
    vectors = np.zeros((0, run.dimension), np.float32)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        nonlocal pool, vectors
        rng = np.random.default_rng((run.loop.seed, step))
        if len(pool) == 0 or step % run.mining.every_steps == 0:
            pool = rng.permutation(len(captions))[: run.mining.pool]
            encoder.model.eval()
            vectors = encoder.embed_texts([captions[row] for row in pool], batch_size=256)
            encoder.model.train()
        candidates = np.arange(len(captions))
        if rng.random() < run.hard_share and run.batch_size < run.mining.nearest < len(pool):
            scores = vectors @ vectors[rng.integers(len(pool))]
            candidates = pool[np.argpartition(-scores, run.mining.nearest)[: run.mining.nearest]]
        rows = rng.choice(candidates, run.batch_size, replace=False)
        pixels = encoder.image_inputs([Image(pictures[row]) for row in rows])
        image = encoder.model.get_image_features(pixel_values=pixels).pooler_output
        text = encoder.model.get_text_features(input_ids=ids[torch.from_numpy(rows)]).pooler_output
        return contrastive_loss(image, text, encoder.model.logit_scale)

    fit(encoder.model, loss_of, run.optimiser, run.loop, folder, "encoder")
    encoder.redundancy_threshold = redundancy_threshold(encoder, pictures, captions, folder)
    encoder.save_pretrained(folder)
    return encoder


def redundancy_threshold(encoder: Encoder, pictures: np.ndarray, captions: list[str], folder: Path | None) -> float:
    """The score above which two documents are taken for the same: 95 % of true duplicates lie above it.

    A duplicate is the same picture saved as JPEG of quality 60 and a little brighter, with the same caption. The scores
    of the duplicates and, beside them, of every document's nearest *other* document are written to
    ``folder/redundancy.json``, so that the two histograms can be held side by side.
    """
    rows = np.random.default_rng(0).choice(len(captions), min(1000, len(captions)), replace=False)
    originals = [Document.of(captions[row], Image(pictures[row])) for row in rows]
    copies = [Document.of(captions[row], _resaved(pictures[row])) for row in rows]
    vectors, copied = encoder.embed(originals), encoder.embed(copies)
    duplicates = (vectors * copied).sum(axis=1)
    others = vectors @ vectors.T
    np.fill_diagonal(others, -1)
    nearest = others.max(axis=1)
    threshold = float(np.quantile(duplicates, 0.05).round(3))
    if folder is not None:
        edges = np.linspace(-1, 1, 201)
        facts = {
            "threshold": threshold,
            "edges": [round(float(edge), 2) for edge in edges],
            "duplicates": np.histogram(duplicates, edges)[0].tolist(),
            "nearest_other": np.histogram(nearest, edges)[0].tolist(),
            "nearest_other_above_threshold": float((nearest > threshold).mean()),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "redundancy.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return threshold


def _resaved(pixels: np.ndarray) -> Image:
    buffer = io.BytesIO()
    brighter = np.clip(pixels.astype(np.int16) + 8, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(brighter).save(buffer, format="JPEG", quality=60)
    return Image.open(buffer.getvalue())
