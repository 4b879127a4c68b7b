"""From a folder of captioned pictures to a folder of models, step by step; what is there already is reused.

MODELS/image-tokenizer   MODELS/encoder   MODELS/generator   MODELS/memory
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from racm3.data import read
from racm3.errors import ConfigError
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import ingest
from racm3.tokens.image_tokenizer import FSQImageTokenizer, load_image_tokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.distributed import connect
from racm3.training.encoder_recipe import EncoderRun, train_encoder
from racm3.training.generator_recipe import GeneratorRun, train_generator
from racm3.training.image_losses import PerceptualLoss
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun, train_image_tokenizer
from racm3.training.init_from import init_encoder, init_folder, init_generator, init_image_tokenizer, init_text
from racm3.training.prepare import code_digest, learn_text, load_pairs, prepare
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
    cache = Cache(prepared or out / "prepared")
    codes = load_image_tokenizer(image_tokenizer)
    retriever = Encoder.from_pretrained(encoder) if encoder else None
    if tokenizer:
        words = TextTokenizer.load(tokenizer)
    else:
        words = learn_text(data, run.text_ids, cache) if run.text_ids else init_text(run)
    markup = Markup(Vocabulary(words.size, codes.codebook_size), codes.grid[0] * codes.grid[1])
    initial = init_generator(run, markup.vocabulary, words, codes)
    k = max(1, run.k)
    documents = prepare(data, words, codes, markup, retriever, cache, k=k, dropouts=run.dropouts, seed=run.loop.seed)
    vectors = None
    if isinstance(codes, FSQImageTokenizer):
        vectors = codes.fsq.values(codes.fsq.digits_of(torch.arange(codes.codebook_size)))
    made_of = {"image_tokenizer": code_digest(codes)} | ({"encoder": retriever.fingerprint} if retriever else {})
    train_generator(documents, words, markup, codes.grid, run, out, vectors, initial, codes, made_of)


def make_memory(data: Path, out: Path, encoder: Path) -> None:
    """Make a memory of ``data`` at ``out``, unless there is one; the same call completes a broken one."""
    if reused(out, "memory"):
        return
    model, part = Encoder.from_pretrained(encoder), out.with_name(out.name + ".part")
    memory = Memory.open(part) if part.exists() else Memory.create(part, model.fingerprint, model.dimension)
    ingest(memory, model, read(data))
    part.rename(out)
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
    one; its path is returned. The same call resumes.
    """
    beside, memory = ModelFolder.around(out), None
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
