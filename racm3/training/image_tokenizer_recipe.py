"""Recipe: train the built-in image tokenizer on the pictures of a data folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racm3.errors import ConfigError, values
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.training.image_losses import Critic, PerceptualLoss, adversarial_losses
from racm3.training.journal import fingerprint
from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig

CODE_USE_PICTURES = 2000
"""Pictures whose codes are counted at the end: enough to see what is in use, and some seconds of work."""


@dataclass(frozen=True)
class ImageTokenizerRun:
    """One training run. ``edge_weight`` weighs the difference of neighbouring pixels: it keeps outlines sharp.

    ``perceptual_weight`` > 0 adds the difference that the layers of ``perceptual`` see, an encoder folder or "scenes",
    the shipped one. ``adversarial_weight`` > 0 trains a critic from the first step, and the decoder against it from
    step ``adversarial_start``, once there is something to refine. ``init_from`` is an image tokenizer folder to go on
    from, or "scenes". ``decoder_only`` keeps the encoder, and so every code ever written, and trains the decoder alone.
    """

    model: FSQConfig = FSQConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=2e-3, betas=(0.9, 0.99), decay="cosine")
    loop: LoopConfig = LoopConfig(steps=6000)
    batch_size: int = 32
    edge_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual: str | None = None
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    init_from: str | None = None
    decoder_only: bool = False

    def __post_init__(self) -> None:
        weights = ("edge_weight", "perceptual_weight", "adversarial_weight", "adversarial_start")
        if min(getattr(self, name) for name in weights) < 0 or self.batch_size < 1:
            given = values(self, *weights, "batch_size")
            raise ConfigError(f"weights and adversarial_start >= 0, batch_size >= 1; given {given}")
        if (self.perceptual_weight > 0) != (self.perceptual is not None):
            raise ConfigError("perceptual_weight and perceptual, the encoder whose layers look, go together: set both")


def reconstruction_loss(output: Tensor, target: Tensor, edge_weight: float, patch_px: int) -> tuple[Tensor, Tensor]:
    """Absolute and squared error of the pixels, and of their differences to the neighbours; (B, 3, H, W) in [0, 1].

    Every patch is weighed by its own share of the error, within bounds: most patches of a picture are plain ground that
    is soon right, and would go on taking codes from the few that carry the drawing. The mean squared error is returned
    beside it, to be shown.
    """
    output = output.float()
    error = (output - target).abs() + 2 * (output - target).square()
    share = F.avg_pool2d(error.detach().mean(dim=1, keepdim=True), patch_px)  # (B, 1, h, w)
    weight = (share / share.mean().clamp(min=torch.finfo(share.dtype).tiny)).clamp(0.2, 4.0)
    pixels = (F.interpolate(weight, scale_factor=patch_px) * error).mean()
    across = (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
    down = (output.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return pixels + edge_weight * (across + down), F.mse_loss(output, target).detach()


@dataclass(frozen=True)
class CodeUse:
    """How much of a codebook pictures use. ``perplexity``: as many codes, used evenly, would be as hard to guess."""

    codes: int
    used: int
    perplexity: float


def code_use(codes: Tensor, codebook_size: int) -> CodeUse:
    """The use of a codebook by codes of any shape."""
    counts = torch.bincount(codes.flatten(), minlength=codebook_size)
    shares = counts[counts > 0] / counts.sum()
    return CodeUse(codebook_size, len(shares), float((-shares * shares.log()).sum().exp()))


def train_image_tokenizer(
    pictures: np.ndarray,
    run: ImageTokenizerRun,
    folder: Path,
    initial: FSQImageTokenizer | None = None,
    perceptual: PerceptualLoss | None = None,
) -> FSQImageTokenizer:
    """Train on (N, H, W, 3) uint8 pictures of the configured size and save to ``folder``.

    Beside the weights goes ``codes.json``, the use of the codebook by at most ``CODE_USE_PICTURES`` of the pictures.
    """
    torch.manual_seed(run.loop.seed)
    tokenizer = initial or FSQImageTokenizer(run.model)
    if run.decoder_only:
        tokenizer.encoder.requires_grad_(False)
    critic = Critic() if run.adversarial_weight else None
    model = nn.ModuleDict({"tokenizer": tokenizer} | ({"critic": critic} if critic else {}))
    data = torch.from_numpy(pictures)

    def batch(step: int, _part: int, _parts: int) -> Batch:
        rows = np.random.default_rng((run.loop.seed, step)).integers(len(data), size=run.batch_size)
        adversarial_weight = run.adversarial_weight if step >= run.adversarial_start else 0.0
        return Batch((data[torch.from_numpy(rows)], adversarial_weight), [f"picture {row}" for row in rows])

    def loss_of(batch: Batch, _normaliser: float) -> tuple[Tensor, Metrics]:
        pixels, adversarial_weight = batch.content
        target = pixels.to(next(model.parameters()).device).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        digits = tokenizer.digits(target)
        output = tokenizer.picture(digits)
        loss, mse = reconstruction_loss(output, target, run.edge_weight, tokenizer.config.patch_px)
        use = code_use(tokenizer.fsq.codes(digits.detach()), tokenizer.codebook_size)
        metrics: Metrics = {"mse": (mse, 1), "codes": (use.used, 1), "perplexity": (use.perplexity, 1)}
        if perceptual is not None:
            seen = perceptual(output, target)
            loss, metrics = loss + run.perceptual_weight * seen, metrics | {"perceptual": (seen.detach(), 1)}
        if critic is not None:
            fooled, hinge = adversarial_losses(critic, output, target)
            loss, metrics = loss + adversarial_weight * fooled + hinge, metrics | {"critic": (hinge.detach(), 1)}
        return loss, metrics

    made_of = {"pictures": fingerprint(pictures)}
    fit(model, Recipe("image tokenizer", batch, loss_of, splits=False, made_of=made_of), run, folder)
    tokenizer.save_pretrained(folder)
    rows = np.random.default_rng(0).permutation(len(pictures))[:CODE_USE_PICTURES]
    batches = (torch.from_numpy(pictures[rows[i : i + 64]]) for i in range(0, len(rows), 64))
    codes = torch.cat([tokenizer.encode(batch.permute(0, 3, 1, 2).float() / 255) for batch in batches])
    facts = asdict(code_use(codes, tokenizer.codebook_size)) | {"pictures": len(codes)}
    (folder / "codes.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return tokenizer
