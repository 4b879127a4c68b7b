"""Recipe: train a small CLIP on the endless pictures of the open world, so that it finds what it has never met.

A step draws B concepts of different groups, and of each a scene, told twice, and a second picture of it:

    recomposed   the concept elsewhere, on another background, of another size, now and then of another art set
    taken        the very same picture, cropped, mirrored, lighter or darker, in other colours

    loss = CLIP's, of picture and caption
         + the same of the two pictures, which belong together, and of the two captions, half as much

B pairs of a step, C H W pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer
from torch import Tensor

from racm3.document import Image
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PICTURE_PX, Scene, draw
from racm3.open_scenes.wording import TRAINED, describe, facts
from racm3.retriever.encoder import Encoder
from racm3.training.encoder_recipe import EncoderRun, contrastive_loss, new_encoder, redundancy_threshold
from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig

TAKEN_SHARE = 0.4
"""Of the second pictures: the same one again, as a screenshot or another crop of it would be."""

RUN = EncoderRun(
    image_size_px=PICTURE_PX,
    patch_px=PICTURE_PX // 6,
    vision_layers=3,
    text_tokens=48,
    optimiser=OptimiserConfig(lr=1e-3, muon_lr=2e-3, weight_decay=0.05, decay="wsd", decay_share=0.3),
    loop=LoopConfig(steps=1500, threads=1, log_every_s=30),
    batch_size=80,
)


@dataclass(frozen=True)
class Shown:
    """Two pictures of a concept, (H, W, 3) uint8, and two captions of the first."""

    pictures: tuple[np.ndarray, np.ndarray]
    captions: tuple[str, str]


def taken(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture as somebody else would have it: cropped, perhaps mirrored, other light and colours; (H, W, 3) uint8.

    >>> taken(np.zeros((96, 96, 3), np.uint8), np.random.default_rng(0)).shape
    (96, 96, 3)
    """
    size = picture.shape[0]
    side = int(round(size * rng.uniform(0.7, 1.0)))
    left, top = rng.integers(0, size - side + 1, 2)
    crop = PIL.Image.fromarray(picture[top : top + side, left : left + side])
    pixels: np.ndarray = np.asarray(crop.resize((size, size), PIL.Image.Resampling.BICUBIC), np.float32)
    if rng.random() < 0.4:
        pixels = pixels[:, ::-1]
    pixels = (pixels - 128) * rng.uniform(0.75, 1.3) + 128 + rng.normal(0, 14) + rng.normal(0, 8, 3)
    pixels += rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def shown(world: World, count: int, rng: np.random.Generator) -> list[Shown]:
    """As many concepts of different groups."""
    found = []
    for cutout in world.others(count, rng):
        scene = Scene(world.ground(rng), (world.placed(cutout, rng),))
        first = draw(scene, world.art)
        if rng.random() < TAKEN_SHARE:
            second = taken(first, rng)
        else:
            same = world.art.by_name[cutout.name]
            other = cutout if rng.random() < 0.6 else same[rng.integers(len(same))]
            second = draw(Scene(world.ground(rng), (world.placed(other, rng),)), world.art)
            second = taken(second, rng) if rng.random() < 0.3 else second
        dice = random.Random(int(rng.integers(2**31)))
        names = {cutout.id: dice.choice(cutout.names) if dice.random() < 0.15 else cutout.name}
        one, two = (
            describe(facts(scene, dice, world.art, names=names, places=0.6, grounds=0.6), dice.choice(TRAINED), dice)
            for _ in range(2)
        )
        found.append(Shown((first, second), (one, cutout.name if dice.random() < 0.25 else two)))
    return found


def train_open_encoder(
    tokenizer: Tokenizer, folder: Path, run: EncoderRun = RUN, world: World | None = None
) -> Encoder:
    """Train on what is seen and save to ``folder``, with the redundancy threshold; the same call resumes."""
    world = world or World.of("seen")
    torch.manual_seed(run.loop.seed)
    encoder = new_encoder(tokenizer, run)

    def batch(step: int, _part: int, _parts: int) -> Batch:
        some = shown(world, run.batch_size, np.random.default_rng((run.loop.seed, step, 5)))
        pixels = encoder.image_inputs([Image(one.pictures[i]) for i in (0, 1) for one in some])  # (2 B, C, H, W)
        ids = encoder.text_inputs([one.captions[i] for i in (0, 1) for one in some])["input_ids"]  # (2 B, T)
        return Batch((pixels, ids), [f"step {step} pair {number}" for number in range(len(some))])

    def loss(batch: Batch, _normaliser: float) -> tuple[Tensor, Metrics]:
        pixels, ids = batch.content
        scale = encoder.model.logit_scale
        first, second = encoder.model.get_image_features(pixel_values=pixels).pooler_output.chunk(2)  # (B, D) each
        one, two = encoder.model.get_text_features(input_ids=ids).pooler_output.chunk(2)
        named, matched = contrastive_loss(first, one, scale)
        named_too, _ = contrastive_loss(second, two, scale)
        same, same_matched = contrastive_loss(first, second, scale)
        told, _ = contrastive_loss(one, two, scale)
        metrics: Metrics = {"matched": (matched, 1), "same_picture": (same_matched, 1)}
        return (named + named_too) / 2 + same + told / 2, metrics

    fit(encoder.model, Recipe("encoder", batch, loss, splits=False, made_of={"world": "seen"}), run, folder)
    rng = np.random.default_rng(3)
    some = [one for _ in range(5) for one in shown(world, 200, rng)]
    pictures = np.stack([one.pictures[0] for one in some])
    encoder.redundancy_threshold = redundancy_threshold(encoder, pictures, [one.captions[0] for one in some], folder)
    encoder.save_pretrained(folder)
    return encoder


def recalls(encoder: Encoder, world: World, count: int = 200, seed: int = 9) -> dict[str, float]:
    """Shares from 0 to 1 of what is among the two nearest of ``count`` pictures, one of each concept.

    ``taken``: the picture, asked for by the same one cropped, mirrored and recoloured. ``recomposed``: by another
    picture of the concept's cut-out. ``name``: by its name. ``caption``: by a caption of it.
    """
    rng = np.random.default_rng(seed)
    cutouts = world.others(min(count, len({one.group or one.name for one in world.art.cutouts})), rng)
    scenes = [Scene(world.ground(rng), (world.placed(one, rng),)) for one in cutouts]
    again = [Scene(world.ground(rng), (world.placed(one, rng, tint=""),)) for one in cutouts]
    pictures = [draw(scene, world.art) for scene in scenes]
    dice = random.Random(seed)
    kept = encoder.embed_images([Image(one) for one in pictures])
    asked = {
        "taken": encoder.embed_images([Image(taken(one, rng)) for one in pictures]),
        "recomposed": encoder.embed_images([Image(draw(scene, world.art)) for scene in again]),
        "name": encoder.embed_texts([one.name for one in cutouts]),
        "caption": encoder.embed_texts(
            [describe(facts(scene, dice, world.art, places=1, grounds=1), "plain", dice) for scene in scenes]
        ),
    }
    found = {}
    for name, vectors in asked.items():
        ranks = (-vectors @ kept.T).argsort(1)[:, :2]
        found[name] = float((ranks == np.arange(len(kept))[:, None]).any(1).mean())
    return found
