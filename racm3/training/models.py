"""From a folder of captioned pictures to a folder of models, step by step; what is there already is reused.

MODELS/image-tokenizer   MODELS/encoder   MODELS/generator   MODELS/memory
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from racm3.data import read
from racm3.errors import ConfigError
from racm3.generator.model import Generator
from racm3.model_folder import ModelFolder
from racm3.retriever.choosing import strategy_for
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import finished_memory, memory_of
from racm3.tokens.image_tokenizer import ImageTokenizer, load_image_tokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.distributed import connect
from racm3.training.encoder_recipe import EncoderRun, train_encoder
from racm3.training.generator_recipe import GeneratorRun, train_generator
from racm3.training.image_losses import PerceptualLoss
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun, train_image_tokenizer
from racm3.training.init_from import init_encoder, init_folder, init_generator, init_image_tokenizer, init_text
from racm3.training.prepare import TrainingSet, check_enough, learn_text, load_pairs, prepare
from racm3.training.prepared_cache import Cache, reused


@dataclass(frozen=True)
class Runs:
    """The trainings that make a folder of models."""

    image_tokenizer: ImageTokenizerRun
    encoder: EncoderRun
    generator: GeneratorRun


def make_image_tokenizer(data: Path, run: ImageTokenizerRun, out: Path) -> None:
    """Train the built-in image tokenizer and save it to ``out``; the same call resumes."""
    initial = init_image_tokenizer(run)
    pictures, _ = load_pairs(data, run.model.image_size_px, out / "prepared")
    perceptual = (
        PerceptualLoss(Encoder.from_pretrained(init_folder(run.perceptual, "encoder"))) if run.perceptual else None
    )
    train_image_tokenizer(pictures, run, out, initial, perceptual)


def make_encoder(data: Path, run: EncoderRun, out: Path, tokenizer: Path | None = None) -> None:
    """Train an encoder and save it to ``out``; the same call resumes. Without ``tokenizer`` one is learnt."""
    initial = init_encoder(run)
    if initial and tokenizer:
        raise ConfigError(
            f"the encoder goes on from {run.init_from}, with its own tokenizer; give no other ({tokenizer})"
        )
    pictures, captions = load_pairs(data, run.image_size_px, out / "prepared")
    if initial:
        words = initial.tokenizer
    else:
        every = (text for texts in captions for text in texts)
        learnt = TextTokenizer.load(tokenizer) if tokenizer else TextTokenizer.train(every, run.text_ids)
        learnt.save(out / "tokenizer.json")
        words = Tokenizer.from_file(str(out / "tokenizer.json"))
    train_encoder(pictures, captions, words, run, out, initial)


def make_generator(
    data: Path,
    run: GeneratorRun,
    out: Path,
    image_tokenizer: Path,
    encoder: Path | None,
    tokenizer: Path | None = None,
    prepared: str | None = None,
) -> None:
    """Train a generator and save it to ``out``; the same call resumes.

    What the data becomes before goes to ``prepared``, a folder or s3://bucket/name, by default into ``out``.
    """
    image = load_image_tokenizer(image_tokenizer)
    retriever = Encoder.from_pretrained(encoder) if encoder else None
    cache = Cache(prepared or out / "prepared")
    prepared_model(data, run, image, retriever, cache, tokenizer).train(run, out)


@dataclass(frozen=True)
class PreparedModel:
    """A generator before its training: its data, the models that made them, and the weights that it goes on from."""

    documents: TrainingSet
    text: TextTokenizer
    image: ImageTokenizer
    markup: Markup
    encoder: Encoder | None
    initial: Generator | None

    def train(
        self,
        run: GeneratorRun,
        out: Path,
        samples: bool = True,
        examine: Callable[[int, Generator], Mapping[str, float]] | None = None,
    ) -> Generator | None:
        """`train_generator` to ``out``; with ``samples`` every look of the run draws a sheet of pictures."""
        vectors = self.image.code_vectors() if hasattr(self.image, "code_vectors") else None
        made_of = {"image_tokenizer": self.image.digest}
        made_of |= {"encoder": self.encoder.fingerprint} if self.encoder else {}
        return train_generator(
            self.documents, self.text, self.markup, self.image.grid, run, out,
            vectors, self.initial, self.image if samples else None, made_of, examine,
        )  # fmt: skip


def prepared_model(
    data: Path,
    run: GeneratorRun,
    image: ImageTokenizer,
    encoder: Encoder | None,
    cache: Cache,
    tokenizer: Path | None = None,
    seed: int | None = None,
) -> PreparedModel:
    """What ``run`` trains on, from ``cache`` where it is there. ``seed``: of the query dropout, the run's."""
    if tokenizer:
        text = TextTokenizer.load(tokenizer)
    else:
        text = learn_text(data, run.text_ids, cache) if run.text_ids else init_text(run)
    markup = Markup(Vocabulary(text.size, image.codebook_size), math.prod(image.grid))
    initial = init_generator(run, markup.vocabulary, text, image)
    draws = run.loop.seed if seed is None else seed
    strategy = strategy_for(encoder, run.strategy) if encoder else None
    documents = prepare(
        data, text, image, markup, encoder, cache, k=max(1, run.k), dropouts=run.dropouts, seed=draws, strategy=strategy
    )
    return PreparedModel(documents, text, image, markup, encoder, initial)


def make_memory(data: Path, out: Path, encoder: Path) -> None:
    """Make a memory of ``data`` at ``out``, unless there is one; the same call completes a broken one."""
    if finished_memory(out) is not None:
        reused(out, "memory")
        return
    memory = memory_of(out, Encoder.from_pretrained(encoder), read(data))
    print(f"memory: wrote {len(memory)} documents to {out}", file=sys.stderr)


def make_all(
    data: Path,
    runs: Runs,
    out: Path,
    image_tokenizer: Path | None = None,
    encoder: Path | None = None,
    tokenizer: Path | None = None,
    prepared: str | None = None,
) -> Path | None:
    """Train the generator at ``out``, after whatever it needs that is not given and not found beside it.

    Where it retrieves, and by an encoder that lies beside it, a memory of the data is made there too, unless there is
    one; its path is returned. The same call resumes. Raises SourceError before anything is trained if the data are too
    few for a later training.
    """
    beside, memory = ModelFolder.around(out), None
    needs_pairs = encoder is None and runs.generator.k and not (beside.encoder_path / "model.safetensors").exists()
    connect().from_main(partial(check_enough, data, runs.generator.validation_documents, 2 if needs_pairs else 0))
    if image_tokenizer is None:
        image_tokenizer = beside.image_tokenizer_path
        if not reused(image_tokenizer / "model.safetensors", "image tokenizer"):
            make_image_tokenizer(data, runs.image_tokenizer, image_tokenizer)
    if encoder is None and runs.generator.k:
        encoder, memory = beside.encoder_path, beside.memory_path
        if not reused(encoder / "model.safetensors", "encoder"):
            make_encoder(data, runs.encoder, encoder)
        connect().from_main(partial(make_memory, data, memory, encoder))
    make_generator(data, runs.generator, out, image_tokenizer, encoder, tokenizer, prepared)
    return memory
