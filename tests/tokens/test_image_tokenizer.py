from __future__ import annotations

import json
import math
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from racm3.errors import CheckpointError, ConfigError
from racm3.model_folder import ModelFolder
from racm3.tokens.image_tokenizer import FSQ, FSQConfig, FSQImageTokenizer, JanusImageTokenizer, load_image_tokenizer

CONFIG = FSQConfig(
    image_size_px=32, patch_px=8, levels=(4, 3), encoder_width=16, encoder_layers=1, decoder_width=16, decoder_layers=1
)


@pytest.fixture(scope="module")
def tokenizer() -> FSQImageTokenizer:
    torch.manual_seed(0)
    return FSQImageTokenizer(CONFIG).eval()


def noise(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_shapes_and_ranges(tokenizer: FSQImageTokenizer) -> None:
    codes = tokenizer.encode(noise(3))
    assert codes.shape == (3, 16)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codebook_size == 12
    assert (tokenizer.grid, tokenizer.image_size_px) == ((4, 4), 32)
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_a_patch_has_the_same_code_wherever_it_stands_and_whatever_surrounds_it(tokenizer: FSQImageTokenizer) -> None:
    patches = noise(20, size=8, seed=1)
    expected = []
    for patch in patches:
        found = set()
        for row, column in product(range(4), range(4)):
            picture = noise(1, seed=row * 4 + column)
            picture[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = patch
            found.add(int(tokenizer.encode(picture)[0, row * 4 + column]))
        assert len(found) == 1
        expected += found
    assert len(set(expected)) > 1  # the codes do tell patches apart


def test_a_packed_decoder_draws_what_the_plain_one_does_whatever_is_beside_it() -> None:
    torch.manual_seed(0)
    tokenizer = FSQImageTokenizer(CONFIG).eval()
    codes = torch.randint(12, (5, 16))
    with torch.no_grad():
        for _ in range(2):
            digits = tokenizer.fsq.digits_of(codes).float()
            drawn = tokenizer.decode(codes)
            torch.testing.assert_close(drawn, tokenizer.picture(digits).clamp(0, 1), rtol=0, atol=1e-5)
            for count in (1, 2, 3):
                assert torch.equal(tokenizer.decode(codes[:count]), drawn[:count])
            for weight in tokenizer.decoder.parameters():  # which is noticed
                weight.mul_(1.5)


def test_the_decoder_is_wider_than_a_patch(tokenizer: FSQImageTokenizer) -> None:
    codes = torch.zeros(1, 16, dtype=torch.int64)
    other = codes.clone()
    other[0, 5] = 11
    changed = (tokenizer.decode(codes) != tokenizer.decode(other))[0].any(dim=0)  # (H, W)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8:16, 8:16] = True
    assert changed[inside].any()
    assert changed[~inside].any()


@pytest.mark.parametrize("levels", [(2,), (4, 3), (8, 5, 5, 5), (7, 5, 5, 5, 5)])
def test_codes_and_digits_are_inverses(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    codes = torch.arange(math.prod(levels))
    digits = fsq.digits_of(codes)  # (codes, D)
    assert len(set(map(tuple, digits.tolist()))) == len(codes)
    assert (digits.amax(dim=0) == torch.tensor(levels) - 1).all()
    assert (digits.amin(dim=0) == 0).all()
    assert torch.equal(fsq.codes(digits.float()), codes)
    values = fsq.values(digits.float())
    assert (values.min(), values.max()) == (-1, 1)


def test_latents_are_rounded_and_the_gradient_passes() -> None:
    fsq = FSQ((8, 5))
    latents = (4 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    digits = fsq.digits(latents)
    assert torch.allclose(digits, digits.round(), atol=1e-5)
    assert digits.min() >= 0
    assert (digits.amax(dim=0) <= torch.tensor([7, 4]) + 1e-5).all()
    digits.sum().backward()
    assert latents.grad is not None
    assert (latents.grad > 0).all()


def test_saved_and_loaded_is_the_same(tokenizer: FSQImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "one")
    one = load_image_tokenizer(tmp_path / "one")
    assert isinstance(one, FSQImageTokenizer)
    assert one.config == CONFIG
    assert next(one.parameters()).dtype == torch.float32
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value.half().float(), one.state_dict()[name])
    one.save_pretrained(tmp_path / "two")
    two = load_image_tokenizer(tmp_path / "two")
    codes = one.encode(noise(2))
    assert torch.equal(two.encode(noise(2)), codes)
    assert torch.equal(two.decode(codes), one.decode(codes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size_px": 30}, "divides image_size_px; 8 and 30 were given"),
        ({"patch_px": 3}, "patch_px is 2, 4, 6, 8 or 16"),
        ({"levels": ()}, "levels are at least one number >= 2"),
        ({"levels": (5, 1)}, "levels are at least one number >= 2"),
    ],
)
def test_bad_shapes_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FSQConfig(**fields)  # type: ignore[arg-type]


# JanusVQVAE


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder saved by transformers, of a tiny model with random weights: 3 x 3 codes of 4 px."""
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=20,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        num_patches=3,
    )
    folder = tmp_path_factory.mktemp("janus")
    JanusVQVAE(config).save_pretrained(folder)
    return folder


def test_a_janus_folder_opens(janus: Path) -> None:
    from transformers import JanusVQVAE

    tokenizer = load_image_tokenizer(janus)
    assert isinstance(tokenizer, JanusImageTokenizer)
    assert (tokenizer.grid, tokenizer.image_size_px, tokenizer.codebook_size) == ((3, 3), 12, 20)
    pixels = noise(2, size=12)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 9)
    assert codes.dtype == torch.int64
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (2, 3, 12, 12)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    with torch.no_grad():
        expected = JanusVQVAE.from_pretrained(janus).eval()(pixels * 2 - 1).decoded_pixel_values
    assert torch.allclose(decoded, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_digests_are_as_they_were(tokenizer: FSQImageTokenizer, janus: Path) -> None:
    """What is prepared for a training is known by them."""
    assert ModelFolder.open("scenes").image_tokenizer().digest == "18a56b7ba8c7d1b9"
    other = FSQImageTokenizer(CONFIG)
    assert other.digest != tokenizer.digest
    other.encoder.load_state_dict(tokenizer.encoder.state_dict())
    assert other.digest == tokenizer.digest  # decoders do not write codes
    assert load_image_tokenizer(janus).digest == load_image_tokenizer(janus).digest


# Folders that are none


def damaged(folder: Path, what: str, tokenizer: FSQImageTokenizer) -> Path:
    tokenizer.save_pretrained(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if what == "no config":
        config.unlink()
    elif what == "not JSON":
        config.write_text("{")
    elif what == "a list":
        config.write_text("[]")
    elif what == "another model":
        config.write_text('{"model_type": "clip"}')
    elif what == "another shape":
        config.write_text(json.dumps({"model_type": "racm3-fsq", "levels": [9, 9, 9]}))
    elif what == "unknown key":
        config.write_text(json.dumps({"model_type": "racm3-fsq", "level": [4, 3]}))
    elif what == "no weights":
        weights.unlink()
    elif what == "half the weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif what == "a Janus without weights":
        config.write_text('{"model_type": "janus_vqgan"}')
        weights.unlink()
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "there is no config.json in it"),
        ("not JSON", "is damaged"),
        ("a list", "is damaged"),
        ("another model", "model_type 'clip'; allowed: 'racm3-fsq' and 'janus_vqgan'"),
        ("another shape", "is damaged"),
        ("unknown key", "unknown key 'level'; did you mean 'levels'"),
        ("no weights", "no model.safetensors"),
        ("half the weights", "is damaged"),
        ("a Janus without weights", "cannot be opened"),
    ],
)
def test_bad_folders_are_named(tokenizer: FSQImageTokenizer, tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_image_tokenizer(damaged(tmp_path, what, tokenizer))


def test_no_folder_names_code(tmp_path: Path) -> None:
    """Only what is imported already is run, whatever a folder of weights says."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "antigravity:geohash"}))
    with pytest.raises(CheckpointError, match="model_type 'antigravity:geohash'; allowed: .*imported module registers"):
        load_image_tokenizer(tmp_path)
    assert "antigravity" not in sys.modules
