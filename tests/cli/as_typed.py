"""Commands as a user types them, and settings that make models tiny."""

from __future__ import annotations

import shlex
from pathlib import Path

from racm3.cli import main

COLOURS = {"a red square": (255, 0, 0), "a green square": (0, 255, 0), "a blue square": (0, 0, 255)}
TINY = "dimension=8 vision_width=32 vision_layers=1 text_width=32 text_layers=1 image_size_px=16 patch_px=8"
SHAPE = "model.width=16 model.layers=1 model.heads=2 model.kv_heads=2 model.head_dim=8 model.mlp_width=16 compile=false"


def run(command: str, **places: Path) -> int:
    return main([word.format(**places) for word in shlex.split(command)])


def train_encoder(data: Path, out: Path, *settings: str) -> int:
    return main(
        ["train", "encoder", str(data), "--out", str(out)]
        + ["--set", *TINY.split(), "text_ids=270", "batch_size=4", "loop.steps=2", *settings]
    )
