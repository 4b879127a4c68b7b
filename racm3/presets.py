"""Presets: training runs as functions that return a whole configuration; one derives from another.

    racm3 train generator DATA --preset scenes-vanilla ...

The ``scenes`` presets are the runs of the built-in world, sized for two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from racm3.errors import ConfigError, unknown
from racm3.training.encoder import EncoderRun
from racm3.training.generator import GeneratorRun
from racm3.training.image_tokenizer import ImageTokenizerRun
from racm3.training.loop import LoopConfig
from racm3.training.optimiser import OptimiserConfig


def image_tokenizer_scenes() -> ImageTokenizerRun:
    """64 px to 8 x 8 codes of 4,375; about 20 minutes on one core with native bfloat16."""
    return ImageTokenizerRun(loop=LoopConfig(steps=6000))


def encoder_scenes() -> EncoderRun:
    """A CLIP of 64 px pictures and 32 text ids; about 20 minutes on one core with native bfloat16."""
    return EncoderRun(loop=LoopConfig(steps=1000))


def generator_scenes() -> GeneratorRun:
    """3.7M parameters, 2,100 steps of 3,840 tokens; about 55 minutes on one core with native bfloat16."""
    return GeneratorRun(
        loop=LoopConfig(steps=2100),
        optimiser=OptimiserConfig(lr=3e-3, muon_lr=4e-3, warmup_steps=100),
        compile=True,
    )


def generator_scenes_vanilla() -> GeneratorRun:
    """The same size and compute without retrieval: the baseline CM3."""
    return replace(generator_scenes(), retrieved_shares=(1.0,))


PRESETS: dict[type, dict[str, Callable[[], Any]]] = {
    ImageTokenizerRun: {"scenes": image_tokenizer_scenes},
    EncoderRun: {"scenes": encoder_scenes},
    GeneratorRun: {"scenes": generator_scenes, "scenes-vanilla": generator_scenes_vanilla},
}


def preset(kind: type, name: str) -> Any:
    """The run of that name. Raises ConfigError, naming the nearest, if there is none."""
    if name not in PRESETS[kind]:
        raise ConfigError(unknown("preset", name, PRESETS[kind]))
    return PRESETS[kind][name]()
