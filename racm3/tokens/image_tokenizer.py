"""Image tokenizers: a picture <-> a grid of codes.

The built-in one has a *local encoder* and a *wide decoder*. The encoder sees one patch and nothing else, so a patch has
the same code wherever it stands and whatever surrounds it: that is what lets the generator copy from a retrieved
picture. The decoder is convolutional and smooths the seams. Codes are by finite scalar quantisation (Mentzer et al.
2023, arXiv 2309.15505): every latent dimension is rounded to a few levels, so there is no codebook to collapse.

B batch, N codes of a picture, P patch side in px, D latent dimensions, C channels.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from racm3.errors import CheckpointError, ConfigError
from racm3.util.config import from_dict
from racm3.util.registry import Registry
from racm3.util.weights_version import WeightsVersion

if TYPE_CHECKING:
    from transformers import JanusVQVAE


class ImageTokenizer(Protocol):
    """What the rest of racm3 asks of an image tokenizer.

    One may also have ``code_vectors()``, (codebook_size, D): vectors of its codes, near each other where the codes are
    alike. The embeddings of a new generator start with them.
    """

    @property
    def image_size_px(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def codebook_size(self) -> int: ...

    @property
    def digest(self) -> str:
        """16 hex digits that change with whatever changes the codes, so that those that are kept are known by it.

        `state_digest` makes them of a module's weights.
        """
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, N) codes, row by row."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """(B, N) codes to (B, 3, H, W) in [0, 1]."""
        ...


IMAGE_TOKENIZERS: Registry[Callable[[Path], ImageTokenizer]] = Registry("image tokenizer")
"""What opens a folder, by the ``model_type`` in its config.json. A name is registered by the code of whoever adds one,
which has to be imported first: no folder of weights names code."""


def state_digest(module: nn.Module) -> str:
    """16 hex digits of a module's weights, without those of its ``decoder``."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        if not name.startswith("decoder"):
            digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class FSQConfig:
    """Shape of the built-in image tokenizer."""

    image_size_px: int = 64
    patch_px: int = 8
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    encoder_width: int = 256
    encoder_layers: int = 2
    decoder_width: int = 128
    decoder_layers: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.image_size_px % self.patch_px or self.patch_px not in (2, 4, 6, 8, 16):
            given = f"{self.patch_px} and {self.image_size_px}"
            raise ConfigError(f"patch_px is 2, 4, 6, 8 or 16 and divides image_size_px; {given} were given")
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(f"levels are at least one number >= 2 each, not {self.levels}")


class FSQ(nn.Module):
    """Finite scalar quantisation: D numbers, each rounded to one of ``levels[d]`` values in [-1, 1]."""

    steps: Tensor
    place_values: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(levels), persistent=False)
        place_values = [math.prod(levels[:d]) for d in range(len(levels))]
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)

    def digits(self, latents: Tensor) -> Tensor:
        """(..., D) real latents to (..., D) digits in [0, level), still real; the gradient passes the rounding."""
        top = (self.steps - 1).to(latents.dtype)
        unrounded = torch.sigmoid(latents) * top
        return unrounded + (unrounded.round() - unrounded).detach()

    def values(self, digits: Tensor) -> Tensor:
        """(..., D) digits to values in [-1, 1]."""
        return digits * 2 / (self.steps - 1) - 1

    def codes(self, digits: Tensor) -> Tensor:
        """(..., D) digits to (...) code numbers in mixed radix."""
        return (digits.round().long() * self.place_values).sum(-1)

    def digits_of(self, codes: Tensor) -> Tensor:
        """Inverse of ``codes``."""
        return (codes[..., None] // self.place_values) % self.steps


class ResidualMLP(nn.Module):
    """A step of the encoder, on each patch by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class ResidualConv(nn.Module):
    """A step of the decoder, on each patch and its neighbours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(self.norm(x)))))


class PackedConv(nn.Module):
    """A frozen convolution on a CPU. oneDNN lays out the weights of an ordinary one anew at every call, which for one
    picture takes twice as long as the sums; and here a picture's numbers do not depend on what else is in the batch."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.given = conv.padding, conv.stride, conv.dilation, conv.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.given)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.given, "none", [], "")


def packed(decoder: nn.Sequential) -> nn.Sequential:
    """A copy with its convolutions packed."""
    result = copy.deepcopy(decoder)
    for module in list(result.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(module, name, PackedConv(child))
    return result


class FSQImageTokenizer(nn.Module):
    """The built-in image tokenizer."""

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        self.fsq = FSQ(config.levels)
        patch = 3 * config.patch_px**2
        width = config.encoder_width
        self.encoder = nn.Sequential(
            nn.Linear(patch, width),
            *(ResidualMLP(width) for _ in range(config.encoder_layers)),
            nn.LayerNorm(width),
            nn.Linear(width, len(config.levels)),
        )
        channels = config.decoder_width
        stages: list[nn.Module] = [nn.Conv2d(len(config.levels), channels, 3, padding=1)]
        stages += [ResidualConv(channels) for _ in range(config.decoder_layers)]
        # One stage at twice the resolution of the codes, then straight to pixels: convolutions at full resolution cost
        # several times more on a CPU and sharpen little.
        channels //= 2
        stages += [nn.Conv2d(2 * channels, 4 * channels, 1), nn.PixelShuffle(2), ResidualConv(channels), nn.GELU()]
        rest = config.patch_px // 2
        stages += [nn.Conv2d(channels, 3 * rest**2, 3, padding=1), nn.PixelShuffle(rest)]
        self.decoder = nn.Sequential(*stages)
        # The packed decoder, and what it was made of.
        self._packed: tuple[nn.Sequential, WeightsVersion] | None = None

    @property
    def image_size_px(self) -> int:
        return self.config.image_size_px

    @property
    def grid(self) -> tuple[int, int]:
        side = self.config.image_size_px // self.config.patch_px
        return side, side

    @property
    def codebook_size(self) -> int:
        return math.prod(self.config.levels)

    @property
    def digest(self) -> str:
        return state_digest(self)

    def code_vectors(self) -> Tensor:
        return self.fsq.values(self.fsq.digits_of(torch.arange(self.codebook_size)))

    def digits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, N, D) digits; every patch on its own."""
        patches = F.pixel_unshuffle(pixels * 2 - 1, self.config.patch_px)  # (B, 3PP, h, w)
        return self.fsq.digits(self.encoder(patches.flatten(2).transpose(1, 2)))

    def picture(self, digits: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """(B, N, D) digits to (B, 3, H, W), not yet clamped to [0, 1]."""
        grid = self.fsq.values(digits).transpose(1, 2).unflatten(2, self.grid)
        return ((decoder or self.decoder)(grid) + 1) / 2

    def _frozen_decoder(self) -> nn.Module:
        """The decoder for inference, packed where that can be; again when the weights have changed."""
        weights = list(self.decoder.parameters())
        if weights[0].device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return self.decoder
        version = WeightsVersion(weights)
        if self._packed is None or self._packed[1] != version:
            self._packed = packed(self.decoder), version
        return self._packed[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """Reconstruction of (B, 3, H, W) pixels, differentiable throughout."""
        return self.picture(self.digits(pixels))

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.fsq.codes(self.digits(pixels))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        digits = self.fsq.digits_of(codes).to(next(self.parameters()).dtype)
        return self.picture(digits, self._frozen_decoder()).clamp(0, 1)

    @staticmethod
    @IMAGE_TOKENIZERS.register("racm3-fsq")
    def from_pretrained(folder: Path) -> FSQImageTokenizer:
        """Open a folder written by ``save_pretrained``. Raises CheckpointError if it is damaged."""
        weights = folder / "model.safetensors"
        if not weights.exists():
            raise CheckpointError(f"{folder} has a config.json but no model.safetensors; train or copy the weights")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config.pop("model_type", None)
            tokenizer = FSQImageTokenizer(from_dict(FSQConfig, config))
            tokenizer.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        except (ConfigError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the image tokenizer in {folder} is damaged: {error}; train or copy it again"
            ) from error
        return tokenizer.eval()

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (half precision; the weights are read back as float32)."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model_type": "racm3-fsq"} | asdict(self.config), indent=1)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        weights = {key: value.half().contiguous() for key, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")


class JanusImageTokenizer(nn.Module):
    """A public VQ model, transformers' ``JanusVQVAE`` (the LlamaGen VQ). Its configuration fixes the grid."""

    def __init__(self, model: JanusVQVAE) -> None:
        super().__init__()
        self.model = model

    @staticmethod
    @IMAGE_TOKENIZERS.register("janus_vqgan")
    def from_pretrained(folder: Path) -> JanusImageTokenizer:
        """Open a folder saved by ``JanusVQVAE.save_pretrained``. Raises CheckpointError if it is damaged."""
        from transformers import JanusVQVAE

        try:
            loaded: Any = JanusVQVAE.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"the JanusVQVAE in {folder} cannot be opened: {error}; fetch it again") from error
        model, loading = loaded
        if lost := sorted(loading["missing_keys"]):
            raise CheckpointError(f"{folder} lacks {len(lost)} weights, among them {lost[0]}; fetch it again")
        return JanusImageTokenizer(model.float().eval())

    @property
    def grid(self) -> tuple[int, int]:
        side = int(self.model.config.num_patches)
        return side, side

    @property
    def image_size_px(self) -> int:
        return self.grid[0] * 2 ** (len(self.model.config.channel_multiplier) - 1)  # each level but the first halves

    @property
    def codebook_size(self) -> int:
        return int(self.model.config.num_embeddings)

    @property
    def digest(self) -> str:
        return state_digest(self)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels * 2 - 1).image_tokens.view(len(pixels), -1)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        pixels = self.model.decode(codes)  # type: ignore[arg-type]  # a LongTensor is a Tensor of a type
        return ((pixels + 1) / 2).clamp(0, 1)


def load_image_tokenizer(folder: Path) -> ImageTokenizer:
    """Open a tokenizer folder: ours, a ``JanusVQVAE``, or one of a registered type.

    Raises CheckpointError if it is none of these, or damaged.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no image tokenizer: there is no config.json in it")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; train or fetch the image tokenizer again") from error
    if kind not in IMAGE_TOKENIZERS.names():
        allowed = " and ".join(map(repr, IMAGE_TOKENIZERS.names()))
        raise CheckpointError(
            f"{path} has model_type {kind!r}; allowed: {allowed} (JanusVQVAE), and what an imported module registers "
            "in racm3.tokens.image_tokenizer.IMAGE_TOKENIZERS"
        )
    return IMAGE_TOKENIZERS.get(kind)(Path(folder))
