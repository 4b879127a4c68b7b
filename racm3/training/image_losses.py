"""What makes reconstructions sharp, beside the error of the pixels: a perceptual and an adversarial term.

Both are options of the image tokenizer's run. B batch, C H W pixels, N patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from racm3.retriever.encoder import Encoder


class PerceptualLoss:
    """How differently a frozen CLIP's layers see two pictures: 1 - cosine of each patch, averaged over the layers.

    Pictures are scaled to the size that the encoder sees. Its weights follow them to their device and
    are never trained.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._tower: Any = encoder.model.vision_model.requires_grad_(False)
        self._size_px = encoder.image_size_px
        mean, std = encoder.processor.image_mean, encoder.processor.image_std
        self._mean, self._std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """() from two batches (B, 3, H, W) in [0, 1]; differentiable in ``output``."""
        with torch.no_grad():
            wanted = self._layers(target)
        pairs = zip(self._layers(output), wanted, strict=True)
        return torch.stack([1 - F.cosine_similarity(a.float(), b.float(), dim=-1).mean() for a, b in pairs]).mean()

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        """(B, N, D) of every layer."""
        pixels = F.interpolate(pixels.float(), size=self._size_px, mode="bilinear", antialias=True)
        pixels = (pixels - self._mean.to(pixels)) / self._std.to(pixels)
        tower = self._tower.to(pixels.device)
        return list(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:])


class Critic(nn.Module):
    """Tells true patches from made ones (Isola et al. 2017, arXiv 1611.07004): (B, 3, H, W) to (B, 1, h, w)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixels * 2 - 1)


def adversarial_losses(critic: Critic, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(what the tokenizer minimises, what the critic does: the hinge loss), each () and blind to the other's weights.

    So one backward pass of their sum trains both.
    """
    frozen = {name: weight.detach() for name, weight in critic.named_parameters()}
    fooled = -functional_call(critic, frozen, (output,)).float().mean()
    hinge = F.relu(1 - critic(target).float()).mean() + F.relu(1 + critic(output.detach()).float()).mean()
    return fooled, hinge
