"""Encoder: documents to vectors, with CLIP or SigLIP (paper.md, "mixed-modal encoder").

A document is split into its text and its picture part, the model encodes each, and the unit vectors are averaged and
scaled to unit norm again. The same encoder serves queries and the memory, so that their dot product is the score.

Letters: B batch, T tokens, D dimension, C H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from racm3.document import Document, Image
from racm3.errors import CheckpointError, ConfigError, DocumentError, unknown
from racm3.util.weights_version import WeightsVersion

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import CLIPImageProcessorPil, CLIPModel, SiglipImageProcessorPil, SiglipModel

__all__ = ["REDUNDANCY_THRESHOLD", "Encoder"]

REDUNDANCY_THRESHOLD = 0.9
"""Two documents more similar than this are redundant. Source: CM3Leon, for CLIP ViT-L/14; another encoder has another
scale, so the number is stored with the encoder."""

CHANCE, COPY = "chance_score", "copy_threshold"
"""The best cosine that words without meaning reach: nothing below it says that a document fits. And the cosine of two
whole documents above which one is a copy of the other. Measured where the encoder is trained, if they are there."""

SETTINGS = "racm3.json"
PREPROCESSING = "preprocessor_config.json"
LONGEST_SIDE = 8
"""Of a picture that is scaled by its shorter side and cropped to the middle, in shorter sides: the rest is cut off
before (ours), or a strip of 30,000 x 1 px would take gigabytes."""
LEGACY_EOS = 2
"""CLIP configurations with this ``eos_token_id`` are pooled at the highest id of a text, the true end token."""


@dataclass(frozen=True)
class Padding:
    """How SigLIP pads every text to the full length: with which id, and on which side."""

    id: int
    left: bool


class Encoder:
    """A frozen CLIP, or SigLIP (which has a ``padding``), with its tokenizer and its image preprocessing."""

    def __init__(
        self,
        model: CLIPModel | SiglipModel,
        tokenizer: Tokenizer,
        processor: CLIPImageProcessorPil | SiglipImageProcessorPil,
        redundancy_threshold: float = REDUNDANCY_THRESHOLD,
        padding: Padding | None = None,
        chance_score: float = 0.0,
        copy_threshold: float | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.processor = processor
        self.redundancy_threshold = redundancy_threshold
        self.chance_score = chance_score
        self.copy_threshold = redundancy_threshold if copy_threshold is None else copy_threshold
        self.padding = padding
        self._printed: tuple[tuple[object, WeightsVersion], str] | None = None  # what the last one is of, and it
        self._words: tuple[Tokenizer, int, list[tuple[str, int]]] | None = None
        config: Any = model.config
        text = config.text_config
        self._eos = text.vocab_size - 1 if text.eos_token_id == LEGACY_EOS else int(text.eos_token_id)
        self._max_tokens = int(text.max_position_embeddings)
        self.image_size_px = int(config.vision_config.image_size)

    # Making, loading, saving ---------------------------------------------------------------------------------------

    @classmethod
    def new(
        cls,
        tokenizer: Tokenizer,
        *,
        dimension: int,
        text: dict[str, Any],
        vision: dict[str, Any],
        redundancy_threshold: float = REDUNDANCY_THRESHOLD,
    ) -> Encoder:
        """An untrained encoder for ``tokenizer``, a byte-level BPE without special tokens.

        ``text`` and ``vision`` are fields of CLIPTextConfig and CLIPVisionConfig (hidden_size, intermediate_size,
        num_hidden_layers, num_attention_heads, max_position_embeddings; image_size, patch_size). The end token, which
        also pads, gets the first id after the tokenizer's own. Raises ConfigError for an unknown field.
        """
        from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

        for kind, given, known in (("text", text, CLIPTextConfig()), ("vision", vision, CLIPVisionConfig())):
            fields = known.to_dict()
            for key in given:
                if key not in fields:
                    raise ConfigError(unknown(f"{kind} setting", key, fields))
        end = tokenizer.get_vocab_size()
        special = {"vocab_size": end + 1, "eos_token_id": end, "pad_token_id": end, "bos_token_id": end}
        config = CLIPConfig(text_config={**text, **special}, vision_config=dict(vision), projection_dim=dimension)
        model = CLIPModel(config)
        size = int(model.vision_model.config.image_size)
        preprocessing: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        return cls(model, _plain(tokenizer), CLIPImageProcessorPil(**preprocessing), redundancy_threshold)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Encoder:
        """Open the folder of a CLIPModel or a SiglipModel: config.json, safetensors, preprocessor_config.json (or
        processor_config.json with an image_processor in it, as transformers 5 writes it), and tokenizer.json (or CLIP's
        vocab.json with merges.txt; SigLIP's tokenizer_config.json as well).

        Raises CheckpointError if something is missing or damaged, or it is another kind of model.
        """
        from safetensors import SafetensorError
        from transformers import CLIPImageProcessorPil, CLIPModel, SiglipImageProcessorPil, SiglipModel

        folder = Path(folder)
        needed = {"config.json": (folder / "config.json").is_file(), PREPROCESSING: _has_preprocessing(folder)}
        missing = [name for name, there in needed.items() if not there]
        if missing:
            what = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
            raise CheckpointError(
                f"the encoder folder {folder} {what}; give the folder of a CLIPModel or a SiglipModel, made by "
                "`racm3 train encoder` or downloaded (for instance openai/clip-vit-large-patch14)"
            )
        settings = _settings(folder)
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"the encoder in {folder} cannot be opened: {error}; fetch it again") from error
        if kind not in ("clip", "siglip"):
            raise CheckpointError(
                f"{folder} has model_type {kind!r}; allowed: 'clip' (CLIPModel), 'siglip' (SiglipModel)"
            )
        model_class: Any = CLIPModel if kind == "clip" else SiglipModel
        processor_class: Any = CLIPImageProcessorPil if kind == "clip" else SiglipImageProcessorPil
        try:
            loaded: Any = model_class.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            processor = processor_class.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the encoder in {folder} cannot be opened: {error}; make or fetch it again"
            ) from error
        model, loading = loaded
        if lost := sorted(loading["missing_keys"]):
            raise CheckpointError(
                f"the encoder in {folder} lacks {len(lost)} weights, among them {lost[0]}; fetch it again"
            )
        tokenizer = _tokenizer(folder)
        padding = _padding(folder, tokenizer) if kind == "siglip" else None
        return cls(model.to(device), tokenizer, processor, padding=padding, **settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder so that `from_pretrained`, and transformers, open it."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        if self.padding:
            names = {"pad_token": self.tokenizer.id_to_token(self.padding.id)}
            names["padding_side"] = "left" if self.padding.left else "right"
            (folder / "tokenizer_config.json").write_text(json.dumps(names) + "\n")
        settings = {"redundancy_threshold": self.redundancy_threshold}
        settings |= {CHANCE: self.chance_score} if self.chance_score else {}
        settings |= {COPY: self.copy_threshold} if self.copy_threshold != self.redundancy_threshold else {}
        (folder / SETTINGS).write_text(json.dumps(settings) + "\n")

    # What it is ----------------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        config: Any = self.model.config
        return int(config.vision_config.hidden_size if self.padding else config.projection_dim)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with whatever changes the vectors: weights, shape, vocabulary, preprocessing.

        Computed from the tensors (about a second for each 2 GB), and again when torch has written to one of them or
        another stands in its place, so it is the same before saving and after loading.
        """
        config: Any = self.model.config
        processor: Any = self.processor
        shape = ("hidden_act", "layer_norm_eps", "num_attention_heads")
        towers = [[getattr(tower, key) for key in shape] for tower in (config.text_config, config.vision_config)]
        image = [list(processor.image_mean), list(processor.image_std), dict(processor.size), int(processor.resample)]
        facts = [towers, self._eos, self._max_tokens, self.image_size_px, image, self._vocabulary()]
        facts += [asdict(self.padding)] if self.padding else []
        weights = sorted(self.model.state_dict(keep_vars=True).items())
        state = facts, WeightsVersion(tensor for _, tensor in weights)
        if self._printed is None or self._printed[0] != state:
            self._printed = state, self._digest(json.dumps(facts), weights)
        return self._printed[1]

    def _vocabulary(self) -> list[tuple[str, int]]:
        """Words and ids, sorted; made again when the tokenizer is another one, or has grown."""
        known = self.tokenizer, self.tokenizer.get_vocab_size()
        if self._words is None or self._words[0] is not known[0] or self._words[1] != known[1]:
            self._words = *known, sorted(self.tokenizer.get_vocab().items())
        return self._words[2]

    @staticmethod
    def _digest(facts: str, weights: Sequence[tuple[str, Tensor]]) -> str:
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        for name, tensor in weights:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # Inputs of the model -------------------------------------------------------------------------------------------

    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``{"input_ids": (B, T) int64}`` on the model's device: every text ends with, and is padded by, the end token.

        The model attends to the past only and pools at the first end token, so padding changes nothing. A text that is
        too long loses its tail, never the end token. SigLIP looks at the padding too: every text has the full length
        that it was trained with, and its tokenizer itself adds the end token.
        """
        if self.padding:
            return {"input_ids": torch.from_numpy(self._padded(texts, self.padding)).to(self.model.device)}
        rows = [
            [token for token in encoding.ids if token != self._eos][: self._max_tokens - 1]
            for encoding in self.tokenizer.encode_batch_fast(list(texts))
        ]
        ids = np.full((len(rows), max(map(len, rows), default=0) + 1), self._eos)  # (B, T)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return {"input_ids": torch.from_numpy(ids).to(self.model.device)}

    def _padded(self, texts: Sequence[str], padding: Padding) -> np.ndarray:
        """(B, T) ids of the full length T."""
        ids = np.full((len(texts), self._max_tokens), padding.id)
        for row, encoding in zip(ids, self.tokenizer.encode_batch_fast(list(texts)), strict=True):
            tokens = encoding.ids
            if len(tokens) > len(row):
                tokens = [*tokens[: len(row) - 1], tokens[-1]]
            row[len(row) - len(tokens) if padding.left else 0 :][: len(tokens)] = tokens
        return ids

    def image_inputs(self, images: Sequence[Image]) -> Tensor:
        """(B, 3, H, W) float32 normalised pixels on the model's device; a hidden region becomes the mean colour.

        Pictures that all have the model's size skip the processor's resizing: the same numbers, many times faster.
        """
        arrays = [self._visible(image) for image in images]
        size = self.image_size_px
        if all(array.shape[:2] == (size, size) for array in arrays) and self._keeps_size():
            pixels = torch.from_numpy(np.stack(arrays)).to(self.model.device)  # (B, H, W, 3) uint8
            mean, std = (pixels.new_tensor(v, dtype=torch.float32) * 255 for v in self._statistics())
            return ((pixels.float() - mean) / std).permute(0, 3, 1, 2).contiguous()
        pictures = [Image(self._middle(array)).pil for array in arrays]
        return self.processor(pictures, return_tensors="pt")["pixel_values"].to(self.model.device, torch.float32)

    def _statistics(self) -> tuple[list[float], list[float]]:
        return list(self.processor.image_mean), list(self.processor.image_std)

    def _keeps_size(self) -> bool:
        """Whether the processor leaves a picture of the model's size as it is, but for normalising it."""
        size, given = self.image_size_px, dict(self.processor.size)
        resizes_to = {given.get("shortest_edge", size), given.get("height", size), given.get("width", size)}
        return resizes_to == {size} and self.processor.do_normalize and self.processor.do_rescale

    def _middle(self, pixels: np.ndarray) -> np.ndarray:
        """The part of a very long picture that the processor may look at."""
        height, width = pixels.shape[:2]
        if "shortest_edge" not in dict(self.processor.size) or not getattr(self.processor, "do_center_crop", False):
            return pixels
        cut = [max(0, side - LONGEST_SIDE * min(height, width)) // 2 for side in (height, width)]
        return pixels[cut[0] : height - cut[0], cut[1] : width - cut[1]]

    def _visible(self, image: Image) -> np.ndarray:
        """(H, W, 3) uint8: what of the picture a query may see."""
        if image.mask is None:
            return image.pixels
        pixels = image.pixels.copy()
        pixels[image.mask] = np.round(np.array(self.processor.image_mean) * 255)
        return pixels

    # Vectors -------------------------------------------------------------------------------------------------------

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(B, D) float32, unit norm."""
        return self._batched(texts, batch_size, lambda batch: self.model.get_text_features(**self.text_inputs(batch)))

    def embed_images(self, images: Sequence[Image], batch_size: int = 64) -> np.ndarray:
        """(B, D) float32, unit norm."""
        return self._batched(
            images, batch_size, lambda batch: self.model.get_image_features(pixel_values=self.image_inputs(batch))
        )

    @torch.inference_mode()
    def _batched(self, values: Sequence[Any], batch_size: int, features: Any) -> np.ndarray:
        out = np.zeros((len(values), self.dimension), np.float32)
        for start in range(0, len(values), batch_size):
            pooled = features(values[start : start + batch_size]).pooler_output  # (B, D)
            out[start : start + batch_size] = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        return out

    def embed(self, documents: Sequence[Document], batch_size: int = 64) -> np.ndarray:
        """(B, D) float32, unit norm: the mean of the text's vector and the pictures' vector, of those there are.

        Texts of a document are joined by a space, the vectors of several pictures are averaged; holes say nothing.
        Raises DocumentError if a document has holes only.
        """
        texts = [(i, document.text) for i, document in enumerate(documents) if document.text]
        images = [(i, image) for i, document in enumerate(documents) for image in document.images]
        empty = set(range(len(documents))) - {i for i, _ in texts} - {i for i, _ in images}
        if empty:
            raise DocumentError(f"document {min(empty)} has holes only, nothing to encode; give it a text or a picture")
        total = np.zeros((len(documents), self.dimension), np.float32)
        np.add.at(total, [i for i, _ in images], self.embed_images([image for _, image in images], batch_size))
        total = _unit(total)
        np.add.at(total, [i for i, _ in texts], self.embed_texts([text for _, text in texts], batch_size))
        return _unit(total)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at unit norm; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _has_preprocessing(folder: Path) -> bool:
    """Whether a folder says how pictures are prepared, in either of the files in which transformers writes it."""
    try:
        nested = json.loads((folder / "processor_config.json").read_text(encoding="utf-8")).get("image_processor")
    except (OSError, ValueError, AttributeError):
        nested = None
    return nested is not None or (folder / PREPROCESSING).is_file()


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without padding and truncation of its own: the encoder does both."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _tokenizer(folder: Path) -> Tokenizer:
    """From tokenizer.json, or from CLIP's older pair of files."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    file = folder / "tokenizer.json"
    if not file.is_file() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise CheckpointError(
            f"the encoder {folder} lacks tokenizer.json (or vocab.json with merges.txt); fetch it again"
        )
    try:
        if file.is_file():
            return _plain(Tokenizer.from_file(str(file)))
        return _plain(AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}; fetch it again") from error


def _padding(folder: Path, tokenizer: Tokenizer) -> Padding:
    """From tokenizer_config.json: a SigLIP's config.json repeats CLIP's special ids, which are not its own."""
    try:
        names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        token = names["pad_token"]
        id_ = tokenizer.token_to_id(token if isinstance(token, str) else token["content"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} needs a tokenizer_config.json with a pad_token ({error!r}); fetch it"
        ) from error
    if id_ is None:
        raise CheckpointError(f"the pad_token {token!r} of {folder} is not in its tokenizer.json; fetch both again")
    return Padding(id_, names.get("padding_side") == "left")


def _settings(folder: Path) -> dict[str, float]:
    """What racm3 keeps beside the weights; nothing for a CLIP from elsewhere."""
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text())
        threshold = settings["redundancy_threshold"]
        found = {CHANCE: 0.0, COPY: threshold} | settings
        in_range = 0 < threshold <= 1 > found[CHANCE] >= 0 < found[COPY] <= 1
        if found.keys() == {"redundancy_threshold", CHANCE, COPY} and in_range:
            return {key: float(value) for key, value in found.items()}
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    raise CheckpointError(f'{file} is not {{"redundancy_threshold": number above 0, at most 1}}; write it again')
