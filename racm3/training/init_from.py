"""Weights to go on from: what a run's ``init_from`` names, checked against the run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from racm3.errors import CheckpointError, ConfigError
from racm3.generator.model import Generator
from racm3.generator.vocabulary_growth import grown, origins
from racm3.model_folder import SCENES, ModelFolder
from racm3.retriever.encoder import Encoder
from racm3.tokens.image_tokenizer import FSQImageTokenizer, ImageTokenizer, load_image_tokenizer
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.encoder_recipe import EncoderRun, shape_of
from racm3.training.generator_recipe import GeneratorRun
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun


def init_folder(init_from: str, name: str) -> Path:
    """The folder that ``init_from`` names; "scenes" is the shipped model of that ``name``. Raises CheckpointError."""
    folder = SCENES / name if init_from == "scenes" else Path(init_from)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} of weights to go on from; --set init_from=FOLDER")
    return folder


def init_image_tokenizer(run: ImageTokenizerRun) -> FSQImageTokenizer | None:
    """The image tokenizer that the run goes on from. Raises CheckpointError, or ConfigError if it has another shape."""
    if run.init_from is None:
        return None
    folder = init_folder(run.init_from, "image-tokenizer")
    found = load_image_tokenizer(folder)
    if not isinstance(found, FSQImageTokenizer):
        raise CheckpointError(f"{folder} is not a built-in image tokenizer; only that is trained here")
    _same_shape(folder, asdict(found.config), asdict(run.model), "model.")
    return found


def init_encoder(run: EncoderRun) -> Encoder | None:
    """The encoder that the run goes on from. Raises CheckpointError, or ConfigError if it has another shape."""
    if run.init_from is None:
        return None
    folder = init_folder(run.init_from, "encoder")
    found = Encoder.from_pretrained(folder)
    _same_shape(folder, shape_of(found), asdict(run), "")
    return found


def init_text(run: GeneratorRun) -> TextTokenizer:
    """The text tokenizer of the generator that the run goes on from."""
    if run.init_from is None:
        raise ConfigError("text_ids is 0, the text tokenizer of `init_from`, but that is not set; set one of the two")
    return ModelFolder.around(init_folder(run.init_from, "generator")).text()


def init_generator(
    run: GeneratorRun, vocabulary: Vocabulary, text: TextTokenizer, image: ImageTokenizer
) -> Generator | None:
    """The generator that the run goes on from, under the run's vocabulary (`grow.py`).

    Its image codes stay what they are if the image tokenizer that lies beside it writes the same ones as ``image``; if
    not, they are learnt from nothing, and stderr is told so.
    Raises CheckpointError if the folder is no generator, or its vocabulary smaller than its text tokenizer's;
    ConfigError if it has another shape than the run, or was trained with texts that are filled up.
    """
    if run.init_from is None:
        return None
    folder = init_folder(run.init_from, "generator")
    models = ModelFolder.around(folder)
    old = Generator.from_pretrained(folder)
    shape = {key: value for key, value in asdict(old.config).items() if key in asdict(run.model)}
    shape["context_tokens"] = min(shape["context_tokens"], run.model.context_tokens)
    _same_shape(folder, shape, asdict(run.model), "model.")
    old_text, beside = models.text(), models.image_tokenizer_path
    old_vocabulary, same_codes = None, False
    if models.has_facts:  # without them, a language model of words alone
        old_vocabulary = models.markup.vocabulary
        if models.markup.text_ids:
            raise ConfigError(
                f"{folder} was trained with texts that are filled up to {models.markup.text_ids} ids, which this verb "
                "does not write; go on with `python -m racm3.open_scenes generator`"
            )
        same_codes = beside.is_dir() and models.image_tokenizer().digest == image.digest
        if not same_codes:
            why = f"{beside} writes others" if beside.is_dir() else f"there is no {beside} to show that it knows them"
            print(f"init_from: image codes are new to {folder}, and learnt from nothing: {why}", file=sys.stderr)
    needed = old_vocabulary.size if old_vocabulary else old_text.size
    if needed > old.config.vocabulary_size:
        raise CheckpointError(
            f"{folder} has rows for {old.config.vocabulary_size} ids, but its tokenizers write {needed}; "
            "give weights and tokenizer.json that belong together"
        )
    return grown(old, origins(vocabulary, text, old_vocabulary, old_text, same_codes), run.model.context_tokens)


def _same_shape(folder: Path, found: Mapping[str, object], asked: Mapping[str, object], prefix: str) -> None:
    differing = [f"{prefix}{key}={_written(found[key])}" for key in found if found[key] != asked[key]]
    if differing:
        raise ConfigError(f"the weights in {folder} have another shape than the run; --set {' '.join(differing)}")


def _written(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
