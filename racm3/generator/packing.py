"""Attention within sequences that are laid end to end in one row: no padding, and none sees another.

On CUDA, in 16 bits, this is torch's FlashAttention for sequences of unequal length. Elsewhere one sequence is attended
to after the other. The forward pass there is torch's own; the backward pass is ours, a plain chain of matrix products:
on a CPU torch's took twice to ten times as long (2.5 x at 4 heads of 48, 10 x at 12 heads of 64 in bfloat16).

Letters in shapes: N tokens of the row, S sequences, H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["packed_attention", "positions"]

BLOCK_TOKENS = 128
"""Queries whose scores are made at once in the backward pass: they stay in the processor's cache, and of a sequence
longer than this the half that lies in the future is mostly not computed."""


def positions(offsets: Tensor) -> Tensor:
    """(N,) place of every token in its own sequence; ``offsets`` (S + 1,) as in ``packed_attention``.

    >>> positions(torch.tensor([0, 3, 5]))
    tensor([0, 1, 2, 0, 1])
    """
    starts, lengths = offsets[:-1], offsets.diff()
    return torch.arange(int(offsets[-1])) - starts.repeat_interleave(lengths)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Causal attention within each sequence: (N, H, E), (N, G, E), (N, G, E) -> (N, H, E).

    ``offsets`` (S + 1,) int32, on the device of ``q``: sequence i is the tokens ``offsets[i]:offsets[i + 1]``, the
    first offset is 0 and the last N. ``longest``: no sequence has more tokens.
    """
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        y = varlen_attn(
            q, k, v, offsets, offsets, longest, longest, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
        )
        assert isinstance(y, Tensor)  # a pair only where more was asked for
        return y
    return _attend(q, k, v, offsets)


# The two passes are opaque to torch.compile: a loop over sequences, whose lengths differ at every step, would be traced
# anew each time.


@torch.library.custom_op("racm3::packed_attention", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    y = torch.empty_like(q)
    grouped = q.shape[1] != k.shape[1]
    for start, end in _sequences(offsets):
        qs, ks, vs = (x[None, start:end].transpose(1, 2) for x in (q, k, v))  # (1, H, T, E), (1, G, T, E) twice
        one = F.scaled_dot_product_attention(qs, ks, vs, is_causal=True, enable_gqa=grouped)
        y[start:end] = one[0].transpose(0, 1)
    return y


@torch.library.custom_op("racm3::packed_attention_backward", mutates_args=())
def _attend_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    scale = 1 / math.sqrt(q.shape[-1])
    groups, share = k.shape[1], q.shape[1] // k.shape[1]
    for start, end in _sequences(offsets):
        for low in range(start, end, BLOCK_TOKENS):
            high = min(low + BLOCK_TOKENS, end)
            queries, keys = slice(low, high), slice(start, high)
            # The heads that share a key stand below one another as queries of it: (G, H/G * block, E).
            qs, dys = (
                x[queries].unflatten(1, (groups, share)).permute(1, 2, 0, 3).reshape(groups, -1, x.shape[-1])
                for x in (q, dy)
            )
            ks, vs = k[keys].transpose(0, 1), v[keys].transpose(0, 1)  # (G, T, E)
            scores = torch.bmm(qs, ks.transpose(1, 2)).mul_(scale)  # (G, H/G * block, T)
            future = torch.full((high - low, high - start), -math.inf, dtype=q.dtype, device=q.device)
            scores.unflatten(1, (share, -1)).add_(future.triu_(1 + low - start))
            p = scores.softmax(-1)
            dp = torch.bmm(dys, vs.transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
            dv[keys] += torch.bmm(p.transpose(1, 2), dys).transpose(0, 1)
            dk[keys] += torch.bmm(ds.transpose(1, 2), qs).transpose(0, 1)
            of_heads = torch.bmm(ds, ks).unflatten(1, (share, -1))  # (G, H/G, block, E)
            dq[queries] = of_heads.permute(2, 0, 1, 3).flatten(1, 2)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty_like(q)


@_attend_backward.register_fake
def _(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(dy, *ctx.saved_tensors), None  # type: ignore[attr-defined]


_attend.register_autograd(_differentiate, setup_context=_save)


def _sequences(offsets: Tensor) -> list[tuple[int, int]]:
    """Start and end of every sequence."""
    edges = offsets.tolist()
    return list(zip(edges[:-1], edges[1:], strict=True))
