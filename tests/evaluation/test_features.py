from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from racm3.document import Image
from racm3.errors import CheckpointError
from racm3.evaluation.features import Features


class Means(nn.Module):
    """The mean of each channel."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((2, 3))


class Asked(nn.Module):
    """As the Inception file: features only if they are asked for."""

    def forward(self, pixels: Tensor, return_features: bool = False) -> Tensor:
        found = pixels.float().mean((2, 3))
        return found if return_features else found[:, :1]


class Maps(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float()


def saved(network: nn.Module, folder: Path) -> Path:
    torch.jit.script(network).save(str(folder / "network.pt"))
    return folder / "network.pt"


@pytest.mark.parametrize("network", [Means(), Asked()])
def test_a_network_sees_bytes_of_its_size(network: nn.Module, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    found = Features(saved(network, tmp_path), 8)([Image(picture) for picture in pixels])
    np.testing.assert_allclose(found, pixels.mean((1, 2)), rtol=1e-5)


def test_pictures_are_cut_and_scaled(tmp_path: Path) -> None:
    """Red where the middle square of a wide picture is, and as far beside it as the filter reaches; else black."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 8:52, 0] = 200
    features = Features(saved(Means(), tmp_path), 5)
    np.testing.assert_allclose(features([Image(pixels)]), [[200, 0, 0]])
    assert "5 px" in features.resize
    assert features([]).shape == (0, 0)


def test_its_digest_is_that_of_the_file(tmp_path: Path) -> None:
    one = Features(saved(Means(), tmp_path)).digest
    assert one == Features(tmp_path / "network.pt", 5).digest != Features(saved(Asked(), tmp_path)).digest


def test_what_is_no_network_of_features(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"x")
    for name in ("broken.pt", "missing.pt"):
        with pytest.raises(CheckpointError, match="inception-2015-12-05.pt"):
            Features(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"gave \(1, 3, 5, 5\) for 1 pictures"):
        Features(saved(Maps(), tmp_path), 5)([Image(np.zeros((5, 5, 3), np.uint8))])
