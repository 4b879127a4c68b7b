"""ModelRunner: the generator's forward pass for decoding, on weights laid out for it once.

The same arithmetic as ``model.py``, which trains and is the twin that tests compare with. Prompts are read in operators
of torch. On a CPU with a C compiler, steps of one token a row are one call of ``step.c`` (``native.py``); elsewhere
they are operators as well. What these pay for at small batches is their calls and weights in an order that the
processor cannot stream; hence

    fused      query, key and value are one matrix, gate and up another; norm weights are folded into what follows them
    laid out   matrices are packed for oneDNN, which sums a row in one order at any number of rows; torch.mm does so on
               some processors only
    in pairs   rotary pairs lie beside each other (queries and keys are permuted alike): rotating is one complex product
    ragged     tokens of all sequences are rows of one matrix; only attention, which the caches do, tells them apart
    in two     the output projection is cut at the first image code: a picture needs no scores of words

On a CPU a token's result does not depend on what is read beside it, bit by bit: ``step.c`` sums in one order always,
and the kernels of torch sum each row in the same order at any number of rows from 2 on (so a single row is doubled),
with lengths of attention rounded up to the same multiple.

Letters in shapes: N tokens of all sequences together, V vocabulary, D width, H heads, G key/value heads, E width of a
head, F width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from racm3.document import MODALITIES, Modality
from racm3.errors import ConfigError
from racm3.generator import native
from racm3.generator.kv_cache import BatchCache, Cache, PromptCache
from racm3.generator.model import Generator

__all__ = ["ModelRunner", "Weights"]

Weights = Literal["float32", "bfloat16", "int8"]
"""How weights are held; ``int8`` with one scale an output. Less to read makes steps faster, of ``step.c`` at least."""

Matrix = Callable[[Tensor], Tensor]
"""x (N, inputs) -> (N, outputs), float32 both."""


def matrix(weight: Tensor, weights: Weights) -> Matrix:
    """The product with ``weight`` (outputs, inputs), laid out for the device."""
    if weights == "int8":
        return _int8(weight)
    weight = weight.to(getattr(torch, weights))
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 8)
        product = torch.ops.mkldnn._linear_pointwise
        if weights == "float32":
            return lambda x: product(x, packed, None, "none", [], "")
        return lambda x: product(x.bfloat16(), packed, None, "none", [], "").float()
    transposed = weight.t().contiguous()
    if weights == "float32":
        return lambda x: torch.mm(x, transposed)
    return lambda x: torch.mm(x.bfloat16(), transposed).float()


def filled_up(rows: int) -> int:
    """Rows of a product that are few different numbers, at most a sixteenth and 15 too many: oneDNN keeps a plan for
    each of the last thousand, and a single row would be summed in another order.

    >>> [filled_up(rows) for rows in (1, 16, 17, 300, 4000)]
    [16, 16, 32, 320, 4096]
    """
    step = max(16, 1 << max(0, (rows - 1).bit_length() - 4))
    return -(-rows // step) * step


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weights, and the scale (outputs,) of each output."""
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _native(weight: Tensor, weights: Weights, gated: bool = False) -> native.Matrix:
    if weights == "int8":
        return native.Matrix(*_quantised(weight), gated=gated)
    return native.Matrix(weight.to(getattr(torch, weights)), gated=gated)


def _int8(weight: Tensor) -> Matrix:
    rounded, scale = _quantised(weight)
    transposed = rounded.t().contiguous()
    return lambda x: torch.mm(x.bfloat16(), transposed.bfloat16()).float() * scale


class ModelRunner:
    """Reads tokens into caches with a copy of ``generator``'s weights, as they are when it is made.

    ``boundary`` is the id at which the output projection is cut in two. Raises ConfigError if ``weights`` is unknown.
    """

    def __init__(self, generator: Generator, boundary: int, weights: Weights = "float32") -> None:
        if weights not in ("float32", "bfloat16", "int8"):
            raise ConfigError(f"weights is {weights!r}; it must be 'float32', 'bfloat16' or 'int8'")
        c = self.config = generator.config
        self.device = generator.lm_head.weight.device
        self.cache_dtype = torch.float32 if weights == "float32" else torch.bfloat16
        state = {name: value.detach().float() for name, value in generator.state_dict().items()}
        self.embedding = generator.model.embed_tokens.weight.detach()  # (V, D), shared with the generator
        # Each pair (i, i + E/2) of rotary channels becomes (2i, 2i + 1).
        pairs = torch.arange(c.head_dim).view(2, -1).t().flatten()  # (E,)
        self.angles = torch.complex(generator.cos, generator.sin)  # (context_tokens, E/2)
        root = math.sqrt(c.width)
        self.layers: list[tuple[Matrix, Tensor, Matrix, Matrix, Matrix]] = []
        native_layers = []
        sizes = {"float32": 4, "bfloat16": 2, "int8": 1}
        compiled = self.device.type == "cpu" and native.compiled(sizes[weights]) is not None
        for i in range(c.layers):
            own = {name: state[f"model.layers.{i}.{name}.weight"] for name in _NAMES}
            q, k = (
                own[f"self_attn.{name}_proj"].unflatten(0, (-1, c.head_dim))[:, pairs].flatten(0, 1) for name in "qk"
            )
            qkv = torch.cat((q, k, own["self_attn.v_proj"])) * (own["input_layernorm"] * root)
            gate_up = torch.cat((own["mlp.gate_proj"], own["mlp.up_proj"])) * (own["post_attention_layernorm"] * root)
            scale = torch.cat(
                (
                    own["self_attn.q_norm"][pairs].expand(c.heads, -1),
                    own["self_attn.k_norm"][pairs].expand(c.kv_heads, -1),
                )
            ) * math.sqrt(c.head_dim)  # (H + G, E)
            out, down = own["self_attn.o_proj"], own["mlp.down_proj"]
            self.layers.append(
                (matrix(qkv, weights), scale, matrix(out, weights), matrix(gate_up, weights), matrix(down, weights))
            )
            if compiled:
                gated = _native(gate_up, weights, gated=True)
                native_layers.append(
                    (_native(qkv, weights), _native(out, weights), gated, _native(down, weights), scale)
                )
        angles = torch.view_as_real(self.angles).flatten(1)
        self.native = native.NativeRunner(c, native_layers, angles) if compiled else None
        head = state["lm_head.weight"] * (state["model.norm.weight"] * root)
        parts = head[:boundary], head[boundary:]
        self.native_heads = [_native(part, weights) for part in parts] if compiled else []
        self.heads = [] if compiled else [matrix(part, weights) for part in parts]
        # The norm of a vector is that of (x, sqrt(width * eps)), whose last part is this.
        self.floors = [
            torch.tensor(math.sqrt(width * c.norm_eps), device=self.device) for width in (c.width, c.head_dim)
        ]

    def forward(self, ids: Tensor, caches: Sequence[Cache]) -> Tensor:
        """Read ids (N,) behind what the caches hold, ``cache.pending`` for each; their hidden states (N, D)."""
        c = self.config
        rows_only = [cache for cache in caches if isinstance(cache, BatchCache)]
        if self.native is not None and len(rows_only) == len(caches):
            x = self.native(self.embedding[ids].float(), rows_only)
            for cache in caches:
                cache.advance()
            return x
        count = len(ids)
        positions = torch.cat([cache.positions() for cache in caches])  # (N,)
        padding = filled_up(count) - count
        ids, positions = F.pad(ids, (0, padding)), F.pad(positions, (0, padding))
        angles = self.angles[positions][:, None]  # (N, 1, E/2)
        x = self.embedding[ids].float()  # (N, D)
        floor, head_floor = self.floors
        rows, both, narrow = len(x), c.heads + c.kv_heads, self.cache_dtype != torch.float32
        bounds = [0]
        for cache in caches:
            bounds.append(bounds[-1] + cache.pending)
        for layer, (qkv, scale, out, gate_up, down) in enumerate(self.layers):
            mixed = qkv(_unit(x, floor))
            mixed = mixed.view(rows, -1, c.head_dim)  # (N, H + 2 G, E)
            turned = _unit(mixed[:, :both], head_floor).mul_(scale)  # (N, H + G, E)
            torch.view_as_complex(turned.view(rows, both, -1, 2)).mul_(angles)
            q, k, v = turned[:, : c.heads], turned[:, c.heads :], mixed[:, both:]
            if narrow:
                q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
            if len(caches) == 1:
                y = caches[0].attend(layer, q[:count], k[:count], v[:count])
            else:
                y = torch.cat(
                    [
                        cache.attend(layer, q[a:b], k[a:b], v[a:b])
                        for cache, a, b in zip(caches, bounds, bounds[1:], strict=False)
                    ]
                )
            y = y.reshape(count, -1).float()  # (N, H E)
            x.add_(out(F.pad(y, (0, 0, 0, padding))))
            gate, up = gate_up(_unit(x, floor)).chunk(2, dim=1)  # (N, F)
            x.add_(down(torch.mul(F.silu(gate), up)))
        for cache in caches:
            cache.advance()
        return x[:count]

    def prompt_cache(self, tokens: int, after: PromptCache | None = None) -> PromptCache:
        """A cache for ``tokens`` in all, which begins with a copy of what ``after`` holds."""
        return PromptCache(self.config, tokens, self.cache_dtype, self.device, after)

    def logits(self, hidden_states: Tensor, modalities: Collection[Modality]) -> Tensor:
        """Scores of the next token: (N, D) -> (N, V'), of the ids of one or both modalities (``Vocabulary.reach``)."""
        wanted = [i for i, modality in enumerate(MODALITIES) if modality in modalities]
        if self.native_heads:
            floor = self.config.width * self.config.norm_eps
            parts = [self.native_heads[i].normed(hidden_states, floor) for i in wanted]
        else:
            unit = _unit(hidden_states if len(hidden_states) > 1 else hidden_states.repeat(2, 1), self.floors[0])
            parts = [self.heads[i](unit)[: len(hidden_states)] for i in wanted]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


_NAMES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def _unit(x: Tensor, floor: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + floor^2): RMSNorm but for a factor sqrt(width), which is in the weights."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(floor)
