from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from racm3.errors import ConfigError
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer, load_image_tokenizer
from racm3.training.image_tokenizer_recipe import (
    ImageTokenizerRun,
    code_use,
    reconstruction_loss,
    train_image_tokenizer,
)
from racm3.training.loop import LoopConfig
from racm3.training.optimiser import OptimiserConfig

RUN = ImageTokenizerRun(
    model=FSQConfig(image_size_px=16, levels=(5, 5, 5), encoder_width=32, decoder_width=16, decoder_layers=1),
    optimiser=OptimiserConfig(lr=5e-3, warmup_steps=5),
    loop=LoopConfig(steps=120, dtype="float32", log_every_s=0),
    batch_size=4,
)


def pictures(count: int = 8) -> np.ndarray:
    """Two plain halves each: (N, 16, 16, 3) uint8."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 2, 3), dtype=np.uint8)
    return colours.repeat(16, axis=1).repeat(8, axis=2)


def test_the_loss_falls_and_the_folder_opens(tmp_path: Path) -> None:
    trained = train_image_tokenizer(pictures(), RUN, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert np.mean([row["mse"] for row in rows[-5:]]) < 0.5 * rows[0]["mse"]
    opened = load_image_tokenizer(tmp_path)
    assert isinstance(opened, FSQImageTokenizer)
    assert opened.config == trained.config == RUN.model


def test_the_decoder_alone_keeps_every_code(tmp_path: Path) -> None:
    initial = train_image_tokenizer(pictures(), replace(RUN, loop=replace(RUN.loop, steps=3)), tmp_path / "first")
    encoder = {name: value.clone() for name, value in initial.encoder.state_dict().items()}
    decoder = initial.decoder[0].weight.detach().clone()
    run = replace(RUN, decoder_only=True, loop=replace(RUN.loop, steps=3))
    more = train_image_tokenizer(pictures(), run, tmp_path / "more", initial=initial)
    assert all(torch.equal(value, more.encoder.state_dict()[name]) for name, value in encoder.items())
    assert not torch.equal(more.decoder[0].weight, decoder)


def test_the_loss_weighs_patches_by_their_error() -> None:
    target = torch.zeros(1, 3, 16, 16)
    assert torch.isfinite(reconstruction_loss(target + 0.1, target, 1.0, 8)[0])
    output = target.clone()
    output[..., :8, :8] = 0.5  # one patch of four is wrong
    loss, mse = reconstruction_loss(output, target, 0.0, 8)
    error = 0.5 + 2 * 0.25
    assert loss.item() == pytest.approx(4 * error / 4)  # weight 4 for that patch, the mean over four
    assert mse == pytest.approx(0.25 / 4)
    with_edges, _ = reconstruction_loss(output, target, 1.0, 8)
    assert with_edges > loss


def test_a_perfect_reconstruction_has_loss_0() -> None:
    target = torch.rand(2, 3, 16, 16)
    assert reconstruction_loss(target, target, 1.0, 8)[0] == 0


def test_one_picture_is_enough(tmp_path: Path) -> None:
    train_image_tokenizer(pictures(1), replace(RUN, loop=replace(RUN.loop, steps=2)), tmp_path)
    assert json.loads((tmp_path / "codes.json").read_text(encoding="utf-8"))["pictures"] == 1


def test_the_use_of_a_codebook() -> None:
    use = code_use(torch.tensor([[0, 0, 3], [3, 0, 0]]), 5)
    assert (use.codes, use.used) == (5, 2)
    assert use.perplexity == pytest.approx((2 / 3) ** (-2 / 3) * (1 / 3) ** (-1 / 3))
    assert code_use(torch.arange(7), 7).perplexity == pytest.approx(7)


def test_every_term_is_trained_on(tmp_path: Path) -> None:
    def seen(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.mean() - target.mean()).square()

    run = replace(
        RUN,
        loop=replace(RUN.loop, steps=3),
        perceptual="scenes",
        perceptual_weight=1.0,
        adversarial_weight=0.1,
        adversarial_start=2,
    )
    train_image_tokenizer(pictures(), run, tmp_path, perceptual=seen)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"mse", "codes", "perplexity", "perceptual", "critic"} <= rows[0].keys()
    assert rows[-1]["critic"] < rows[0]["critic"]
    assert isinstance(load_image_tokenizer(tmp_path), FSQImageTokenizer)  # the critic is not part of it


def test_the_decoder_meets_the_critic_at_its_step(tmp_path: Path) -> None:
    def after(steps: int, weight: float) -> torch.Tensor:
        run = replace(RUN, loop=replace(RUN.loop, steps=steps), adversarial_weight=weight, adversarial_start=1)
        run = replace(run, optimiser=replace(run.optimiser, clip_norm=1e9))
        trained = train_image_tokenizer(pictures(), run, tmp_path / f"{steps} {weight}")
        return trained.decoder[0].weight

    assert torch.equal(after(1, 0.1), after(1, 5.0))
    assert not torch.equal(after(2, 0.1), after(2, 5.0))


def test_a_perceptual_weight_needs_an_encoder() -> None:
    with pytest.raises(ConfigError, match="set both"):
        ImageTokenizerRun(perceptual_weight=1.0)
