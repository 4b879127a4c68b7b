"""The open world from the command line, from packages to numbers:

    python -m racm3.open_scenes pictures PACKAGES OUT            cut-outs and backgrounds, from unpacked packages
    python -m racm3.open_scenes image-tokenizer MODELS           MODELS/image-tokenizer
    python -m racm3.open_scenes generator MODELS [--steps N] [--init-from FOLDER]    MODELS/generator
    python -m racm3.open_scenes encoder MODELS                   MODELS/encoder, with the words of the generator
    python -m racm3.open_scenes evaluate MODELS [--count N] [--stamps FOLDER]

The trainings resume: give the same command again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from racm3.generator.model import Generator
from racm3.generator.sampling import Sampling
from racm3.model_folder import ModelFolder
from racm3.open_scenes.foreign import stamps
from racm3.open_scenes.make import make
from racm3.open_scenes.open_encoder_recipe import train_open_encoder
from racm3.open_scenes.open_evaluation import ROWS, Examiner, examine
from racm3.open_scenes.open_recipe import OpenRun, learn_words, train_open
from racm3.open_scenes.open_world import World
from racm3.open_scenes.scene import PATCH_PX, PICTURE_PX, draw
from racm3.pipeline import RACM3
from racm3.settings import Settings
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer, load_image_tokenizer
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun, train_image_tokenizer
from racm3.training.loop import LoopConfig

CROP_PX = PICTURE_PX // 2
"""Side of what the image tokenizer is trained on: half of a picture, so that a step costs a quarter. Its codes are
local, so they carry over to the whole."""

SCENES_CROPPED, CROPS_EACH = 9000, 3


def crops(world: World, seed: int = 0) -> np.ndarray:
    """(N, CROP_PX, CROP_PX, 3) uint8: two of three around an entity."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(SCENES_CROPPED):
        scene = world.scene(rng)
        picture = draw(scene)
        for number in range(CROPS_EACH):
            one = scene.placed[rng.integers(len(scene.placed))]
            middle = rng.integers(0, PICTURE_PX, 2)
            if number < CROPS_EACH - 1:
                middle = np.array((one.left, one.top)) + rng.integers(0, one.size, 2)
            left, top = np.clip(middle - CROP_PX // 2, 0, PICTURE_PX - CROP_PX)
            found.append(picture[top : top + CROP_PX, left : left + CROP_PX])
    return np.stack(found)


def make_image_tokenizer(models: Path, steps: int) -> FSQImageTokenizer:
    """Train on crops and save for whole pictures."""
    config = FSQConfig(image_size_px=CROP_PX, patch_px=PATCH_PX, levels=(8, 5, 5, 5))
    run = ImageTokenizerRun(model=config, loop=LoopConfig(steps=steps, threads=1))
    trained = train_image_tokenizer(crops(World.of("seen")), run, models / "image-tokenizer" / "crops")
    whole = FSQImageTokenizer(replace(config, image_size_px=PICTURE_PX))
    whole.load_state_dict(trained.state_dict())
    whole.save_pretrained(models / "image-tokenizer")
    return whole.eval()


def make_generator(models: Path, run: OpenRun, start: Path | None) -> Generator:
    """Train with the image tokenizer of the same folder; a text tokenizer is learnt if there is none."""
    image = load_image_tokenizer(models / "image-tokenizer")
    assert isinstance(image, FSQImageTokenizer)
    words = (start or models / "generator") / "tokenizer.json"
    text = TextTokenizer.load(words) if words.exists() else learn_words(World.of("seen"))
    begun = Generator.from_pretrained(start) if start else None
    return train_open(run, models / "generator", text, image, start=begun)


def load(models: Path) -> RACM3:
    """The models of a folder. Without an encoder in it the shipped one stands in: it is not asked here."""
    folder = ModelFolder(models)
    encoder = folder if (models / "encoder").exists() else ModelFolder.open("scenes")
    return RACM3(folder.generator(), folder.text(), folder.image_tokenizer(), folder.markup, encoder.encoder())


def main(arguments: list[str] | None = None) -> None:
    """Run one command, by default the process's own."""
    parser = argparse.ArgumentParser("python -m racm3.open_scenes")
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("pictures", help="make the cut-outs and backgrounds anew")
    pictures.add_argument("packages", type=Path)
    pictures.add_argument("out", type=Path)
    tokenizer = commands.add_parser("image-tokenizer", help="train the image tokenizer")
    tokenizer.add_argument("models", type=Path)
    tokenizer.add_argument("--steps", type=int, default=3500)
    generator = commands.add_parser("generator", help="train the generator")
    generator.add_argument("models", type=Path)
    generator.add_argument("--steps", type=int, default=4000)
    generator.add_argument("--look-every", type=int, default=250)
    generator.add_argument("--init-from", type=Path)
    encoder = commands.add_parser("encoder", help="train the encoder")
    encoder.add_argument("models", type=Path)
    evaluate = commands.add_parser("evaluate", help="draw, describe and fill what was never met, and judge it")
    evaluate.add_argument("models", type=Path)
    evaluate.add_argument("--count", type=int, default=24)
    evaluate.add_argument("--temperature", type=float, default=0.9)
    evaluate.add_argument("--min-p", type=float, default=0.004)
    evaluate.add_argument("--context-aware", type=float, default=2.0)
    evaluate.add_argument("--rows", nargs="+", default=tuple(ROWS), choices=tuple(ROWS))
    evaluate.add_argument("--stamps", type=Path, help="where Debian's tuxpaint-stamps-default is unpacked")
    given = parser.parse_args(arguments)
    if given.command == "pictures":
        make(given.packages, given.out)
    elif given.command == "image-tokenizer":
        make_image_tokenizer(given.models, given.steps)
    elif given.command == "generator":
        loop = LoopConfig(steps=given.steps, threads=1, look_every=given.look_every, log_every_s=30)
        run = OpenRun(loop=loop, first_steps=0 if given.init_from else OpenRun.first_steps)
        make_generator(given.models, run, given.init_from)
    elif given.command == "encoder":
        words = given.models / "generator" / "tokenizer.json"
        train_open_encoder(Tokenizer.from_file(str(words)), given.models / "encoder")
    else:
        image = Sampling(temperature=given.temperature, min_p=given.min_p, context_aware=given.context_aware)
        settings = Settings(image=image, text=Sampling(temperature=0.0, context_aware=given.context_aware))
        foreign = stamps(given.stamps) if given.stamps else None
        values: dict[str, float] = {}
        for row, found in examine(Examiner(load(given.models), settings, given.count, foreign), given.rows):
            values |= {name: round(value, 3) for name, value in found.items()}
            print(row, {name: values[name] for name in found}, file=sys.stderr, flush=True)
        print(json.dumps(values))


if __name__ == "__main__":
    main()
