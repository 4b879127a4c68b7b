from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from racm3.evaluation.perplexity import document_perplexity, perplexity
from racm3.pipeline import RACM3
from racm3.scenes.world import World
from racm3.tokens.codec import token_documents


def test_by_hand() -> None:
    """Four tokens, each one of eight as probable; and one certain token among them."""
    assert perplexity([np.log([1 / 8, 1 / 8]), np.log([1 / 8, 1 / 8])]) == pytest.approx(8)
    assert perplexity([np.log([1 / 8, 1.0]), np.log([1 / 8, 1 / 8])]) == pytest.approx(8 ** (3 / 4))


def test_text_and_image_tokens_are_counted_apart(vanilla: RACM3) -> None:
    """Slowly: every document read by itself, every token looked up."""
    documents = [item.document for item in islice(World().items("test-seen"), 3)]
    given = [[documents[1], documents[2]], [documents[0]], []]
    found = document_perplexity(vanilla, documents, given)
    v = vanilla.markup.vocabulary
    logs: dict[str, list[float]] = {"text": [], "image": []}
    for document, context in zip(documents, given, strict=True):
        tokens = token_documents([*context, document], vanilla.text, vanilla.image)
        ids = [id_ for one in tokens for id_ in vanilla.markup.to_ids(one)]
        own = len(vanilla.markup.to_ids(tokens[-1]))
        with torch.no_grad():
            scores = vanilla.generator.logits(vanilla.generator(torch.tensor([ids]))[0]).log_softmax(-1)
        for place in range(len(ids) - own + 1, len(ids)):
            if ids[place] >= v.text_start:
                logs["image" if v.is_image(ids[place]) else "text"].append(float(scores[place - 1, ids[place]]))
    for kind, own_logs in logs.items():
        assert found[kind] == pytest.approx(np.exp(-np.mean(own_logs)), rel=1e-3)
        low, high = found["interval"][kind]
        assert low <= found[kind] <= high
    assert found["n"] == 3
