"""Weighted cross entropy that never holds the logits of a whole batch.

The logits of a batch, (B * T, V) in 32 bits, are the largest array of training by far. Here they are made a chunk of
tokens at a time, and made again in the backward pass.

Letters in shapes: B batch, T tokens, V vocabulary, D width, N = B * T tokens in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from racm3.generator.model import Generator

__all__ = ["Loss", "weighted_cross_entropy"]


@dataclass(frozen=True)
class Loss:
    """``total`` is what to minimise; the rest is for the log and carries no gradient."""

    total: Tensor  # () cross entropy + z-loss
    cross_entropy: Tensor  # () weighted mean, in nats
    z_loss: Tensor  # () weighted mean of log^2 Z, times its coefficient
    weight: Tensor  # () sum of the weights
    token_nll: Tensor  # (B, T) negative log-likelihood of every target, in nats, not weighted


def weighted_cross_entropy(
    hidden: Tensor,
    generator: Generator,
    targets: Tensor,
    weights: Tensor,
    *,
    z_loss: float = 0.0,
    normaliser: Tensor | float | None = None,
    chunk_tokens: int = 2048,
    recompute: bool = True,
) -> Loss:
    """Sum of weights x negative log-likelihood, divided by the sum of weights.

    ``hidden`` (B, T, D) from the generator; ``targets`` (B, T) the id that follows each token; ``weights`` (B, T), 0
    where nothing is to be learned (the target there may be any id). ``z_loss`` adds that much of log^2 Z, which
    keeps the logits from drifting (Chameleon: 1e-5). ``normaliser`` replaces the sum of weights as the divisor: for a
    step that is split over several calls or machines, give the sum over all of them. ``recompute=False`` keeps the
    logits for the backward pass: faster where they fit in memory.
    """
    flat_hidden, flat_targets, flat_weights = hidden.flatten(0, 1), targets.flatten(), weights.flatten().float()

    def chunk(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = generator.logits(h).float()  # (chunk, V)
        log_z = logits.logsumexp(-1)
        return log_z - logits.gather(-1, target[:, None])[:, 0], log_z  # (chunk,), (chunk,)

    nlls, log_zs = [], []
    for h, target in zip(flat_hidden.split(chunk_tokens), flat_targets.split(chunk_tokens), strict=True):
        nll, log_z = checkpoint(chunk, h, target, use_reentrant=False) if recompute else chunk(h, target)
        nlls.append(nll)
        log_zs.append(log_z)
    nll, log_z = torch.cat(nlls), torch.cat(log_zs)  # (N,)

    weight = flat_weights.sum()
    # A batch in which nothing counts has loss 0, not nan.
    divisor = weight.clamp(min=torch.finfo(torch.float32).tiny) if normaliser is None else normaliser
    cross_entropy = (nll * flat_weights).sum() / divisor
    z = z_loss * (log_z.square() * flat_weights).sum() / divisor
    return Loss(
        total=cross_entropy + z,
        cross_entropy=cross_entropy.detach(),
        z_loss=z.detach(),
        weight=weight.detach(),
        token_nll=nll.detach().view_as(targets),
    )
