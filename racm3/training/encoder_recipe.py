"""Recipe: train a small CLIP on the captioned pictures of a data folder, and measure its redundancy threshold."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from racm3.document import Document, Image
from racm3.errors import SourceError
from racm3.retriever.encoder import Encoder
from racm3.training.journal import fingerprint
from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig

LEAST_TEMPERATURE = 0.01  # CLIP clips the learned logit scale at 100


@dataclass(frozen=True)
class EncoderRun:
    """One training run of a small CLIP; the shape fields are those of CLIPTextConfig and CLIPVisionConfig.

    ``agreement_weight`` pulls the captions of one picture together. What they do not all mention (where a thing stands,
    on what) tells pictures of a batch apart all the same, so without this pull an encoder ranks by it, and not by what
    the picture is of. With one caption a picture it does nothing.

    A text tokenizer that is learnt from the captions has at most ``text_ids`` ids. ``init_from`` is an encoder folder
    to go on from, with its tokenizer, or "scenes", the shipped one.
    """

    dimension: int = 128
    image_size_px: int = 64
    patch_px: int = 16
    vision_width: int = 192
    vision_layers: int = 3
    text_width: int = 128
    text_layers: int = 2
    text_tokens: int = 32
    head_width: int = 32
    text_ids: int = 2048
    init_from: str | None = None
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3, muon_lr=2e-3, weight_decay=0.05)
    loop: LoopConfig = LoopConfig(steps=900)
    batch_size: int = 256
    agreement_weight: float = 1.0


def new_encoder(tokenizer: Tokenizer, run: EncoderRun) -> Encoder:
    """An untrained encoder of the run's shape."""
    return Encoder.new(
        tokenizer,
        dimension=run.dimension,
        text={
            "hidden_size": run.text_width,
            "intermediate_size": 4 * run.text_width,
            "num_hidden_layers": run.text_layers,
            "num_attention_heads": run.text_width // run.head_width,
            "max_position_embeddings": run.text_tokens,
        },
        vision={
            "hidden_size": run.vision_width,
            "intermediate_size": 4 * run.vision_width,
            "num_hidden_layers": run.vision_layers,
            "num_attention_heads": run.vision_width // run.head_width,
            "image_size": run.image_size_px,
            "patch_size": run.patch_px,
        },
    )


def shape_of(encoder: Encoder) -> dict[str, int]:
    """The fields of `EncoderRun` that say an encoder's shape."""
    config: Any = encoder.model.config
    text, vision = config.text_config, config.vision_config
    return {
        "dimension": encoder.dimension,
        "image_size_px": vision.image_size,
        "patch_px": vision.patch_size,
        "vision_width": vision.hidden_size,
        "vision_layers": vision.num_hidden_layers,
        "text_width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_tokens": text.max_position_embeddings,
        "head_width": vision.hidden_size // vision.num_attention_heads,
    }


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric cross-entropy of (B, D) image and text features; pair i belongs together.

    The share of images that find their text is returned beside it, to be shown.
    """
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    logits = scale.exp().clamp(max=1 / LEAST_TEMPERATURE) * image @ text.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    matched = (logits.argmax(dim=1) == target).float().mean()
    return loss, matched.detach()


def train_encoder(
    pictures: np.ndarray,
    captions: list[list[str]],
    tokenizer: Tokenizer,
    run: EncoderRun,
    folder: Path,
    initial: Encoder | None = None,
) -> Encoder:
    """Train on N (H, W, 3) uint8 pictures, each with at least one caption, and save to ``folder``.

    A batch is all pairs where there are fewer than ``run.batch_size``. Raises SourceError if there are fewer than two,
    which leave nothing to tell apart.
    """
    if len(pictures) < 2 or len(pictures) != len(captions):
        raise SourceError(f"{len(pictures)} pictures and {len(captions)} captions were given; give at least two pairs")
    torch.manual_seed(run.loop.seed)
    encoder = initial or new_encoder(tokenizer, run)
    size = min(run.batch_size, len(pictures))
    most = max(map(len, captions))
    every = encoder.text_inputs([texts[i % len(texts)] for texts in captions for i in range(most)])["input_ids"]
    ids = every.unflatten(0, (len(captions), most))  # (N, captions, T)

    def batch(step: int, _part: int, _parts: int) -> Batch:
        rng = np.random.default_rng((run.loop.seed, step))
        rows = rng.choice(len(captions), size, replace=False)
        one, other = (torch.from_numpy(rng.integers(most, size=size)) for _ in range(2))
        pixels = encoder.image_inputs([Image(pictures[row]) for row in rows])
        texts = torch.cat((ids[torch.from_numpy(rows), one], ids[torch.from_numpy(rows), other]))  # (2 B, T)
        return Batch((pixels, texts), [f"pair {row}" for row in rows])

    def loss(batch: Batch, _normaliser: float) -> tuple[Tensor, Metrics]:
        pixels, texts = (tensor.to(encoder.model.device) for tensor in batch.content)
        image = encoder.model.get_image_features(pixel_values=pixels).pooler_output  # (B, D)
        text, same = encoder.model.get_text_features(input_ids=texts).pooler_output.chunk(2)  # (B, D) each
        total, matched = contrastive_loss(image, text, encoder.model.logit_scale)
        disagreement = (1 - F.cosine_similarity(text.float(), same.float())).mean()
        metrics: Metrics = {"matched": (matched, 1), "disagreement": (disagreement.detach(), 1)}
        return total + run.agreement_weight * disagreement, metrics

    made_of = {"pictures": fingerprint(pictures), "captions": fingerprint(ids.numpy())}
    fit(encoder.model, Recipe("encoder", batch, loss, splits=False, made_of=made_of), run, folder)
    encoder.redundancy_threshold = redundancy_threshold(encoder, pictures, [texts[0] for texts in captions], folder)
    encoder.chance_score, encoder.copy_threshold = calibrated(encoder, pictures, [texts[0] for texts in captions])
    encoder.save_pretrained(folder)
    return encoder


def calibrated(encoder: Encoder, pictures: np.ndarray, captions: list[str]) -> tuple[float, float]:
    """The ``chance_score`` and the ``copy_threshold`` of an encoder, on at most 1,000 documents.

    Chance: the best cosine that 99 % of texts without meaning (captions with the letters of each word shuffled) stay
    below.
    Copies: midway between the least similar copy (saved as JPEG, resized, brightened) and the most similar other
    document; where the two overlap, what 99 % of the copies exceed.
    """
    rng = np.random.default_rng(0)
    rows = rng.choice(len(captions), min(1000, len(captions)), replace=False)
    vectors = encoder.embed([Document.of(captions[row] or "?", Image(pictures[row])) for row in rows])
    shuffled = [" ".join("".join(rng.permutation(list(word))) for word in captions[row].split()) for row in rows[:200]]
    chance = np.quantile((encoder.embed([Document.of(text or "?") for text in shuffled]) @ vectors.T).max(axis=1), 0.99)
    made = [Document.of(captions[row] or "?", copy) for row in rows[:200] for copy in copies(pictures[row])]
    each = encoder.embed(made).reshape(len(rows[:200]), -1, encoder.dimension)  # (rows, copies, D)
    alike = (each @ vectors[:200, :, None]).ravel()
    others = vectors @ vectors.T
    np.fill_diagonal(others, -1)
    same = {captions[row] for row in rows}
    highest = others.max() if len(same) == len(rows) else np.quantile(others.max(axis=1), 0.99)
    copy = (alike.min() + highest) / 2 if alike.min() > highest else np.quantile(alike, 0.01)
    return round(float(chance.clip(0, 0.99)), 3), round(float(copy.clip(0.01, 1)), 3)


def copies(pixels: np.ndarray) -> list[Image]:
    """The same picture saved as JPEG and a little brighter, resized, and brightened by more."""
    height, width = pixels.shape[:2]
    resized = PIL.Image.fromarray(pixels).resize((width * 5 // 4, height * 5 // 4))
    return [
        _resaved(pixels),
        Image(np.asarray(resized)),
        Image(np.clip(pixels.astype(np.int16) + 15, 0, 255).astype(np.uint8)),
    ]


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
    duplicates = (vectors * copied).sum(axis=1).clip(-1, 1)  # rounding can bring it above 1
    others = vectors @ vectors.T
    np.fill_diagonal(others, -1)
    nearest = others.max(axis=1).clip(-1, 1)
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
