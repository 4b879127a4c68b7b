"""Weighted cross entropy that never holds the logits of a whole batch, nor makes them twice.

The logits of a batch, N x V in 32 bits, are the largest array of training by far. Here they are made a chunk of tokens
at a time, and the gradient of a chunk, with respect to the hidden states and to the output projection, is taken on the
spot, in the forward pass: softmax minus target is all it needs. What is kept for the backward pass is as large as the
inputs.

Letters in shapes: N tokens (of any leading shape), V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from racm3.generator.model import Generator

__all__ = ["Loss", "weighted_cross_entropy"]

CHUNK_TOKENS = 256
"""Tokens whose logits are made at once on a CPU: measured at V 5,437, 128 to 384 are within 5 % of each other."""

CHUNK_LOGITS = 2**28
"""Logits that are made at once on other devices, which want large matrix products: 1 GiB in 32 bits."""


@dataclass(frozen=True)
class Loss:
    """``total`` is what to minimise; the rest is for the log and carries no gradient."""

    total: Tensor  # () cross entropy + z-loss
    cross_entropy: Tensor  # () weighted mean, in nats
    z_loss: Tensor  # () weighted mean of log^2 Z, times its coefficient
    weight: Tensor  # () sum of the weights
    token_nll: Tensor  # like targets: negative log-likelihood of every target, in nats, not weighted


def weighted_cross_entropy(
    hidden: Tensor,
    generator: Generator,
    targets: Tensor,
    weights: Tensor,
    *,
    z_loss: float = 0.0,
    normaliser: Tensor | float | None = None,
    chunk_tokens: int | None = None,
) -> Loss:
    """Sum of weights x negative log-likelihood, divided by the sum of weights.

    ``hidden`` (..., D) from the generator; ``targets`` (...) the id that follows each token; ``weights`` (...), 0
    where nothing is to be learned (the target there may be any id). ``z_loss`` adds that much of log^2 Z, which
    keeps the logits from drifting (Chameleon: 1e-5). ``normaliser`` replaces the sum of weights as the divisor: for a
    step that is split over several calls or machines, give the sum over all of them. ``chunk_tokens``: how many tokens'
    logits exist at once; by default what suits the device.
    """
    flat_weights = weights.flatten().float()
    weight = flat_weights.sum()
    # A batch in which nothing counts has loss 0, not nan.
    divisor = weight.clamp(min=torch.finfo(torch.float32).tiny) if normaliser is None else normaliser
    projection = generator.lm_head.weight
    if chunk_tokens is None:
        chunk_tokens = CHUNK_TOKENS if hidden.device.type == "cpu" else -(-CHUNK_LOGITS // len(projection))
    shares = flat_weights / divisor
    total, nll, log_z = _ChunkedCrossEntropy.apply(
        hidden.flatten(0, -2), projection, targets.flatten(), shares, z_loss, chunk_tokens
    )
    return Loss(
        total=total,
        cross_entropy=(nll * shares).sum(),
        z_loss=z_loss * (log_z.square() * shares).sum(),
        weight=weight,
        token_nll=nll.view_as(targets),
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(N, D), (V, D), (N,), (N,) -> sum of shares x (nll + z_loss log^2 Z), nll (N,), log Z (N,).

    With p the softmax of a token's logits, the gradient of its summand with respect to them is

        share x (p x (1 + 2 z_loss log Z) - onehot(target))
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, projection: Tensor, targets: Tensor, shares: Tensor, z_loss: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        h, w = hidden.to(dtype), projection.to(dtype)
        learn = any(ctx.needs_input_grad[:2])
        sums = torch.promote_types(projection.dtype, torch.float32)  # sharded, the projection has 16 bits
        d_hidden = torch.empty_like(hidden) if learn else None
        d_projection = torch.zeros_like(projection, dtype=sums) if learn else None
        nll, log_z = shares.new_empty(len(h)), shares.new_empty(len(h))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(h), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                target, share = targets[part, None], shares[part, None]  # (n, 1)
                logits = (h[part] @ w.T).float()  # (n, V)
                top = logits.amax(-1, keepdim=True)
                of_target = logits.gather(-1, target)
                p = logits.sub_(top).exp_()  # in place: on a CPU new arrays of this size cost more than the sums
                z = p.sum(-1, keepdim=True)
                log_z[part, None] = log = z.log() + top
                nll[part, None] = log - of_target
                if d_hidden is not None and d_projection is not None:
                    p.mul_(share * (1 + 2 * z_loss * log) / z).scatter_add_(1, target, -share)
                    d_logits = p.to(dtype)
                    d_hidden[part] = d_logits @ w
                    d_projection += d_logits.T @ h[part]
        ctx.save_for_backward(d_hidden, d_projection)
        ctx.dtype = projection.dtype
        ctx.mark_non_differentiable(nll, log_z)
        return ((nll + z_loss * log_z.square()) * shares).sum(), nll, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_projection = ctx.saved_tensors
        return d_hidden.mul_(d_total), d_projection.mul_(d_total).to(ctx.dtype), None, None, None, None
