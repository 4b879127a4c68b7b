"""Judges: one small network, trained on true renders, that tells what a picture of the built-in world shows.

It is an instrument, not part of the method. Its own accuracy on held-out true renders is reported beside every number.
B pictures.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from racm3.errors import CheckpointError
from racm3.scenes.draw import BACKGROUNDS, POSITIONS, STYLES, Scene, draw
from racm3.scenes.glyphs import load_glyphs
from racm3.scenes.world import World
from racm3.tokens.image_tokenizer import ResidualConv
from racm3.training.loop import Batch, LoopConfig, Metrics, Recipe, fit
from racm3.training.optimiser import OptimiserConfig


@dataclass(frozen=True)
class Verdict:
    """What the judge sees: one name per picture and question, (B,) each."""

    entity: list[str]
    background: list[str]
    position: list[str]
    style: list[str]


class Judge(nn.Module):
    """Convolutions down to 4 x 4, then one linear head a question."""

    def __init__(self, entities: tuple[str, ...]) -> None:
        super().__init__()
        self.names = {"entity": entities, "background": BACKGROUNDS, "position": POSITIONS, "style": STYLES}
        blocks: list[nn.Module] = [nn.Conv2d(3, 64, 4, stride=4), nn.GELU()]
        for channels, wider in ((64, 128), (128, 256)):
            blocks += [ResidualConv(channels), nn.GroupNorm(8, channels), nn.GELU()]
            blocks += [nn.Conv2d(channels, wider, 3, stride=2, padding=1)]
        self.trunk = nn.Sequential(*blocks, ResidualConv(256), nn.GroupNorm(8, 256), nn.GELU())
        self.heads = nn.ModuleDict(
            {
                "entity": nn.Linear(512, len(entities)),
                "background": nn.Linear(512, len(BACKGROUNDS)),
                "position": nn.Linear(256 * 16, len(POSITIONS)),
                "style": nn.Linear(512, len(STYLES)),
            }
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, 64, 64) in [0, 1] to the logits of every question."""
        features = self.trunk(pixels * 2 - 1)  # (B, 256, 4, 4)
        pooled = torch.cat((features.amax((2, 3)), features.mean((2, 3))), dim=1)
        flat = features.flatten(1)
        return {name: head(flat if name == "position" else pooled) for name, head in self.heads.items()}

    @torch.inference_mode()
    def verdict(self, pixels: np.ndarray) -> Verdict:
        """Judge (B, 64, 64, 3) uint8 pictures."""
        answers: dict[str, list[str]] = {name: [] for name in self.names}
        for part in torch.from_numpy(pixels).split(256):
            for name, logits in self(part.permute(0, 3, 1, 2).float() / 255).items():
                answers[name] += [self.names[name][i] for i in logits.argmax(dim=1).tolist()]
        return Verdict(**answers)

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that ``from_pretrained`` opens, in 16 bits."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: value.half().contiguous() for key, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "racm3-judge"}) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Judge:
        """Raises CheckpointError if the folder holds no judge."""
        weights = folder / "model.safetensors"
        if not weights.exists():
            raise CheckpointError(f"{folder} holds no judge; train one with: racm3 train judge --out {folder}")
        judge = cls(load_glyphs().names)
        judge.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        return judge.eval()


@dataclass(frozen=True)
class JudgeRun:
    """One training run on freshly drawn scenes; the combinations of the test splits are left out."""

    optimiser: OptimiserConfig = OptimiserConfig(lr=2e-3, betas=(0.9, 0.99), decay="cosine")
    loop: LoopConfig = LoopConfig(steps=2500)
    batch_size: int = 64
    world: World = World()


def train_judge(run: JudgeRun, folder: Path) -> Judge:
    """Train on true renders, half of them a little blurred, and save to ``folder``.

    The blur keeps the judge from relying on detail finer than any image tokenizer keeps.
    """
    torch.manual_seed(run.loop.seed)
    judge = Judge(load_glyphs().names)
    combinations = {name: run.world.combinations(name) for name in load_glyphs().names}
    last = run.world.train + run.world.pretrain

    def batch(step: int, _part: int, _parts: int) -> Batch:
        rng = random.Random(f"judge {run.loop.seed} {step}")
        scenes = [_random_scene(rng, combinations, last) for _ in range(run.batch_size)]
        content = {
            "pixels": torch.from_numpy(np.stack([draw(scene) for scene in scenes])),
            "blur": torch.tensor([rng.choice((0.0, rng.random())) for _ in scenes]),
        }
        truth = {
            "entity": [scene.entities[0] for scene in scenes],
            "background": [scene.background for scene in scenes],
            "position": [scene.position for scene in scenes],
            "style": [scene.style for scene in scenes],
        }
        for name, answers in truth.items():
            content[name] = torch.tensor([judge.names[name].index(answer) for answer in answers])
        return Batch(content, [str(scene) for scene in scenes])

    def loss(batch: Batch, _normaliser: float) -> tuple[Tensor, Metrics]:
        given = {name: value.to(next(judge.parameters()).device) for name, value in batch.content.items()}
        pixels = given["pixels"].permute(0, 3, 1, 2).float() / 255
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        logits = judge(pixels + given["blur"][:, None, None, None] * (blurred - pixels))
        losses = {name: F.cross_entropy(logits[name].float(), given[name]) for name in judge.names}
        return torch.stack(list(losses.values())).sum(), {name: (one.detach(), 1) for name, one in losses.items()}

    fit(judge, Recipe("judge", batch, loss, splits=False), run, folder)
    judge.save_pretrained(folder)
    return judge


def _random_scene(rng: random.Random, combinations: dict[str, list[tuple[str, str]]], last: int) -> Scene:
    name = rng.choice(load_glyphs().names)
    background, position = combinations[name][rng.randrange(last)]
    style = "plain" if rng.random() < 0.85 else rng.choice(STYLES)
    return Scene((name,), background, position, style=style)
