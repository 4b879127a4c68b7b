from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from racm3.document import Image
from racm3.retriever.encoder import Encoder

CAPTIONS = ["a fox in the snow", "two castles at night", "a pencil sketch of a boat at the top left of a beach"]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def bpe() -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(CAPTIONS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """A tiny CLIP with random weights: enough to tell inputs apart."""
    torch.manual_seed(0)
    return Encoder.new(
        bpe(),
        dimension=24,
        text={**TOWER, "max_position_embeddings": 16},
        vision={**TOWER, "image_size": 32, "patch_size": 8},
        redundancy_threshold=0.95,
    )


def picture(seed: int, height: int = 32, width: int = 32) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
