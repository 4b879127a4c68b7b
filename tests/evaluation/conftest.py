from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from racm3.generator.model import Generator, GeneratorConfig
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.pipeline import RACM3
from racm3.retriever.encoder import Encoder
from racm3.scenes.glyphs import load_glyphs
from racm3.scenes.judges import Judge
from racm3.scenes.world import World
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the shipped one, of tiny models with random weights: they draw noise, but as the real ones do."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    text = TextTokenizer.train([caption for _, _, caption in World(tests=50).scenes("test-seen")], 300)
    text.save(folder / "tokenizer.json")
    image = FSQImageTokenizer(FSQConfig(levels=(4, 4), encoder_width=8, decoder_width=16, decoder_layers=1))
    image.save_pretrained(folder / "image-tokenizer")
    Encoder.new(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        dimension=8,
        text={**TOWER, "max_position_embeddings": 24},
        vision={**TOWER, "image_size": 32, "patch_size": 16},
        redundancy_threshold=1.0,
    ).save_pretrained(folder / "encoder")
    vocabulary = Vocabulary(text.size, image.codebook_size)
    shape = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 16, "context_tokens": 512}
    for name in ("generator", "vanilla"):
        generator = Generator(GeneratorConfig(vocabulary_size=vocabulary.size, **shape))
        ModelFolder(folder, name).save_generator(generator, text, Markup(vocabulary, 64), image.grid)
    Judge(load_glyphs().names).save_pretrained(folder / "judge")
    return folder


@pytest.fixture(scope="session")
def judge(models: Path) -> Judge:
    return Judge.from_pretrained(models / "judge")


@pytest.fixture(scope="session")
def vanilla(models: Path) -> RACM3:
    return RACM3.from_pretrained(models, generator="vanilla")


@pytest.fixture(scope="session")
def retrieval(models: Path, tmp_path_factory: pytest.TempPathFactory) -> RACM3:
    """With a memory of 20 documents."""
    model = RACM3.from_pretrained(models)
    items = list(islice(World().items("memory"), 20))
    model.memory = Memory.create(tmp_path_factory.mktemp("memory") / "m", model.encoder.fingerprint, 8)
    model.memory.add(items, model.encoder.embed([item.document for item in items]))
    return model
