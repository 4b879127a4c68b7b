"""Recipe: train the built-in image tokenizer on the pictures of a data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from racm3.errors import SourceError
from racm3.tokens.image import FSQConfig, FSQImageTokenizer
from racm3.training.loop import LoopConfig, Metrics, fit
from racm3.training.optimiser import OptimiserConfig


@dataclass(frozen=True)
class ImageTokenizerRun:
    """One training run. ``edge_weight`` weighs the difference of neighbouring pixels: it keeps outlines sharp."""

    model: FSQConfig = FSQConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=2e-3, betas=(0.9, 0.99), decay="cosine")
    loop: LoopConfig = LoopConfig(steps=6000)
    batch_size: int = 32
    edge_weight: float = 1.0
    decoder_only: bool = False
    """Keep the encoder, and so every code ever written, and train the decoder alone."""


def reconstruction_loss(output: Tensor, target: Tensor, edge_weight: float, patch_px: int) -> tuple[Tensor, Metrics]:
    """Absolute and squared error of the pixels, and of their differences to the neighbours; (B, 3, H, W) in [0, 1].

    Every patch is weighed by its own share of the error, within bounds: most patches of a picture are plain ground that
    is soon right, and would go on taking codes from the few that carry the drawing.
    """
    output = output.float()
    error = (output - target).abs() + 2 * (output - target).square()
    share = F.avg_pool2d(error.detach().mean(dim=1, keepdim=True), patch_px)  # (B, 1, h, w)
    weight = (share / share.mean().clamp(min=torch.finfo(share.dtype).tiny)).clamp(0.2, 4.0)
    pixels = (F.interpolate(weight, scale_factor=patch_px) * error).mean()
    across = (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
    down = (output.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return pixels + edge_weight * (across + down), {"mse": F.mse_loss(output, target).detach()}


def train_image_tokenizer(
    pictures: np.ndarray, run: ImageTokenizerRun, folder: Path, start: FSQImageTokenizer | None = None
) -> FSQImageTokenizer:
    """Train on (N, H, W, 3) uint8 pictures of the configured size and save to ``folder``.

    Raises SourceError if there are fewer pictures than one batch.
    """
    if len(pictures) < run.batch_size:
        raise SourceError(f"{len(pictures)} pictures are fewer than one batch of {run.batch_size}; give more data")
    torch.manual_seed(run.loop.seed)
    tokenizer = start or FSQImageTokenizer(run.model)
    if run.decoder_only:
        tokenizer.encoder.requires_grad_(False)
    data = torch.from_numpy(pictures)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng((run.loop.seed, step))
        rows = torch.from_numpy(rng.integers(len(data), size=run.batch_size))
        batch = data[rows].permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        return reconstruction_loss(tokenizer(batch), batch, run.edge_weight, tokenizer.config.patch_px)

    fit(tokenizer, loss_of, run.optimiser, run.loop, folder, "image tokenizer")
    tokenizer.save_pretrained(folder)
    return tokenizer
