"""Generator: the whole decoder-only transformer, from token ids to logits.

Pre-norm RMSNorm, rotary positions, grouped-query attention with per-head RMS query/key norm, SwiGLU, no biases.
Names of weights are those of transformers' ``Qwen3ForCausalLM``, so a saved folder opens there and in vLLM as it is,
and Qwen3 weights open here.

Letters in shapes: B batch, T tokens, V vocabulary, D width, H heads, G key/value heads,
E width of a head, F width of the MLP, L layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from racm3.errors import CheckpointError, ConfigError, PromptTooLongError
from racm3.generator.packing import packed_attention, positions

__all__ = ["Generator", "GeneratorConfig"]

INIT_STD = 0.02
"""Standard deviation of new weights: GPT-2's, also the default of Qwen3 (``initializer_range``)."""


@dataclass(frozen=True)
class GeneratorConfig:
    """The shape of a generator. Raises ConfigError if the numbers do not fit together."""

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    context_tokens: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "tie_embeddings" and not value > 0:
                raise ConfigError(f"generator.{name} is {value}; it must be above 0")
        if self.heads % self.kv_heads:
            raise ConfigError(f"generator.heads is {self.heads}; it must be a multiple of kv_heads, {self.kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"generator.head_dim is {self.head_dim}; rotary positions need an even number")

    def to_qwen3(self) -> dict[str, Any]:
        """The ``config.json`` with which transformers opens the same model."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp_width,
            "max_position_embeddings": self.context_tokens,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "initializer_range": INIT_STD,
        }

    @classmethod
    def from_qwen3(cls, fields: dict[str, Any]) -> GeneratorConfig:
        """Read a Qwen3 ``config.json``. Raises CheckpointError if it asks for something this model does not have."""
        rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
        needed = {
            "model_type": (fields.get("model_type"), "qwen3"),
            "attention_bias": (fields.get("attention_bias", False), False),
            "use_sliding_window": (fields.get("use_sliding_window", False), False),
            "hidden_act": (fields.get("hidden_act", "silu"), "silu"),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        }
        for name, (given, allowed) in needed.items():
            if given != allowed:
                raise CheckpointError(
                    f"the model's config.json has {name} = {given!r}; the generator reads {allowed!r}"
                )
        try:
            return cls(
                vocabulary_size=fields["vocab_size"],
                width=fields["hidden_size"],
                layers=fields["num_hidden_layers"],
                heads=fields["num_attention_heads"],
                kv_heads=fields["num_key_value_heads"],
                head_dim=fields["head_dim"],
                mlp_width=fields["intermediate_size"],
                context_tokens=fields["max_position_embeddings"],
                rope_theta=float(rope.get("rope_theta", fields.get("rope_theta", 10000.0))),
                norm_eps=fields["rms_norm_eps"],
                tie_embeddings=fields["tie_word_embeddings"],
            )
        except KeyError as error:
            raise CheckpointError(f"the model's config.json has no {error}; save the model again") from None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of each head of x (B, T, H, E) by the angles of its position, (T, 1, E/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.heads != config.kv_heads
        inner, kv_inner = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, kv_inner, bias=False)
        self.v_proj = nn.Linear(config.width, kv_inner, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], packed: tuple[Tensor, int] | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads))  # (B, T, H, E)
        k = self.k_norm(self.k_proj(x).view(heads))  # (B, T, G, E)
        v = self.v_proj(x).view(heads)  # (B, T, G, E)
        cos, sin = (table.to(q.dtype) for table in rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if packed is not None:
            q, k = q.to(v.dtype), k.to(v.dtype)  # some devices' autocast leaves a norm's output in 32 bits
            return self.o_proj(packed_attention(q[0], k[0], v[0], *packed).flatten(1)[None])
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=self.grouped
        )  # (B, H, T, E)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], packed: tuple[Tensor, int] | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, packed)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything below the output projection; a module of its own only because Qwen3's weight names say ``model.``"""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Generator(nn.Module):
    """A causal language model over the one vocabulary of text and image tokens."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        angles = torch.arange(config.context_tokens, dtype=torch.float32)[:, None] / config.rope_theta**pairs
        self.register_buffer("cos", angles.cos(), persistent=False)  # (context_tokens, E/2)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.recompute_layers = False
        self.packed_layer: Callable[..., Tensor] = Layer.__call__
        self.initialise()

    def train_fast(self, *, compile: bool, recompute_layers: bool) -> None:
        """How packed rows are computed from now on: compiled, and with what memory.

        ``compile`` traces one layer, for rows of any length, and all layers share the code; it takes half a minute at
        the first step. ``recompute_layers`` keeps the input of each layer alone and computes the rest of it again in
        the backward pass: a third more work for a fraction of the memory.
        """
        self.packed_layer = torch.compile(Layer.__call__) if compile else Layer.__call__
        self.recompute_layers = recompute_layers

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw new weights from torch's generator: normal, and smaller where a layer adds to the residual stream.

        The factor 1/sqrt(2 L) keeps the variance of the stream independent of depth (GPT-2, section 2.3).
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.layers)
        for name, weight in self.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(std=residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD)

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of the token ids (B, T); ``logits`` turns them into scores of the next token.

        A token sees itself and all before it, so rows that are padded on the right need no mask.
        With ``offsets`` (S + 1,) the one row is S sequences laid end to end, which do not see each other: sequence i
        is ``ids[0, offsets[i]:offsets[i + 1]]``. They are best left on the CPU, where they are read.
        Raises PromptTooLongError if the ids do not fit in the context.
        """
        if offsets is not None:
            return self._packed(ids, offsets)
        self._check_length(ids.shape[1])
        rope = self.cos[: ids.shape[1], None], self.sin[: ids.shape[1], None]  # (T, 1, E/2)
        x = self.model.embed_tokens(ids)  # (B, T, D)
        for layer in self.model.layers:
            x = layer(x, rope)
        return self.model.norm(x)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.context_tokens:
            raise PromptTooLongError(
                f"{tokens} tokens were given; the generator reads at most {self.config.context_tokens}. "
                "Shorten the text or retrieve fewer documents"
            )

    def _packed(self, ids: Tensor, offsets: Tensor) -> Tensor:
        self._check_length(int(offsets.diff().max()))
        places = positions(offsets).to(ids.device)
        rope = self.cos[places].unsqueeze(-2), self.sin[places].unsqueeze(-2)  # (N, 1, E/2)
        packed = offsets.to(ids.device, torch.int32), self.config.context_tokens
        x = self.model.embed_tokens(ids)  # (1, N, D)
        for tensor, axis in ((x, 1), (rope[0], 0), (rope[1], 0), (packed[0], 0)):
            torch._dynamo.maybe_mark_dynamic(tensor, axis)  # rows differ in length: compile once for all
        for layer in self.model.layers:
            if self.recompute_layers:
                x = checkpoint(self.packed_layer, layer, x, rope, packed, use_reentrant=False)
            else:
                x = self.packed_layer(layer, x, rope, packed)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (B, T, D) -> (B, T, V)."""
        return self.lm_head(hidden)

    @property
    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.parameters())

    def flops_per_token(self, tokens: int) -> int:
        """Floating point operations of training (forward and backward) per token, in sequences of ``tokens`` tokens.

        6 a matrix weight (2 forward, 4 backward) and 6 L H E T for attention, of which the causal half is counted.
        The embedding is a look-up and free; the output projection is not.
        """
        c = self.config
        matrices = sum(weight.numel() for name, weight in self.named_parameters() if weight.dim() == 2)
        if not c.tie_embeddings:
            matrices -= c.vocabulary_size * c.width
        return 6 * matrices + 6 * c.layers * c.heads * c.head_dim * tokens

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``, the weights in ``dtype`` if given."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = dtype or self.lm_head.weight.dtype
        weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in self.state_dict().items()}
        if self.config.tie_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        fields = self.config.to_qwen3() | {"dtype": str(dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Generator:
        """Open a folder written by ``save_pretrained`` or by transformers' Qwen3ForCausalLM.

        Raises CheckpointError if the folder is missing, incomplete or damaged, or holds another kind of model.
        """
        folder = Path(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not files or not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} is not a generator: it needs config.json and model.safetensors")
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = {name: value for file in files for name, value in load_file(file).items()}
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is damaged: {error}; copy or train it again") from error
        config = GeneratorConfig.from_qwen3(fields)
        if config.tie_embeddings:
            weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", torch.empty(0)))
        generator = cls(config)
        try:
            generator.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights in {folder} do not fit its config.json: {error}") from error
        return generator.to(device=device, dtype=dtype)
