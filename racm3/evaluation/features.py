"""Features: what a network given as a TorchScript file sees in pictures. With the usual Inception file, those of FID.

That file is ``inception-2015-12-05.pt``: it takes bytes (N, 3, 299, 299) and, asked to ``return_features``, gives
2,048 numbers. A network without that argument is called with the pictures alone. Pictures of another size are first cut
to the middle square and scaled by Pillow with antialiasing (Parmar et al. 2022, arXiv 2104.11222, show what scaling
without costs; their filter is bicubic, ours Lanczos).

N pictures, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from racm3.document import Image
from racm3.errors import CheckpointError

__all__ = ["INCEPTION_PX", "Features"]

INCEPTION_PX = 299
RESIZE = "centre square, Pillow Lanczos, {px} px"
AT_ONCE = 32


class Features:
    """The network in a file, called on pictures of ``size_px``. Raises CheckpointError if it is no TorchScript."""

    def __init__(self, path: Path, size_px: int = INCEPTION_PX) -> None:
        try:
            self.network = torch.jit.load(path, map_location="cpu").eval()
            self.digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} cannot be opened as a TorchScript network: {error!s:.200}; for FID fetch "
                "inception-2015-12-05.pt, as StyleGAN2-ADA publishes it"
            ) from error
        self.size_px = size_px
        asked = {argument.name for argument in self.network.forward.schema.arguments}
        self._asking = {"return_features": True} if "return_features" in asked else {}

    @property
    def resize(self) -> str:
        """How pictures are brought to its size, for the protocol."""
        return RESIZE.format(px=self.size_px)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image]) -> np.ndarray:
        """(N, D) float32. Raises CheckpointError if the network gives anything else."""
        parts = [np.zeros((0, 0), np.float32)]
        for start in range(0, len(images), AT_ONCE):
            pixels = np.stack([image.resized(self.size_px).pixels for image in images[start : start + AT_ONCE]])
            found = self.network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), **self._asking)
            if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(pixels):
                shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
                raise CheckpointError(f"the network of features gave {shape} for {len(pixels)} pictures, not (N, D)")
            parts.append(found.float().numpy())
        return np.concatenate(parts[1:] or parts)
