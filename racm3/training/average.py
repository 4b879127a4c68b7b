"""The moving average of a model's weights, which often generalises better than the last ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """``weights`` by name: decay x what they were + (1 - decay) x the model's, after every step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights as they are now."""
        for name, value in self.model.named_parameters():
            self.weights[name].lerp_(value, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the averages; done twice, everything is as it was."""
        for name, value in self.model.named_parameters():
            kept = value.detach().clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(kept)
