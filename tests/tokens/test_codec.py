from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.document import Document, Hole, Image
from racm3.errors import DocumentError
from racm3.tokens import codec as codec_module
from racm3.tokens.codec import Codec, token_documents
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.text_tokenizer import TextTokenizer


def test_a_cache_gives_what_it_is_a_cache_of(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    text = TextTokenizer.train(["a fox in the snow"] * 9, 264)
    image = FSQImageTokenizer(FSQConfig(image_size_px=16, levels=(7, 5), encoder_width=8, decoder_width=16)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    words = [Document.of("a fox"), Document.of("a", "fox")]
    pictures = [Document.of("a fox", Image(p)) for p in pixels]
    every = [*words, *pictures, Document.of(Image(pixels[0]), "a fox"), Document.of(Image(pixels[0].reshape(8, 32, 3)))]
    expected = [token_documents([document], text, image)[0] for document in every]
    encoded: list[int] = []
    encode = image.encode

    def counting(given: torch.Tensor) -> torch.Tensor:
        encoded.append(len(given))
        return encode(given)

    monkeypatch.setattr(image, "encode", counting)
    monkeypatch.setattr(codec_module, "KEPT", len(every))
    codec = Codec(text, image)
    assert codec.encode([*every, *every]) == [*expected, *expected]
    again = [Document.of("a fox", Image(p.copy())) for p in pixels]
    assert codec.encode(again) == expected[2:7]
    assert encoded == [7]  # each picture once

    monkeypatch.setattr(codec_module, "KEPT", 2)
    assert codec.encode(every) == expected
    assert codec.encode(every[:3]) == expected[:3]  # forgotten but for the last two
    assert encoded == [7, 1]
    with pytest.raises(DocumentError, match="holes"):
        codec.encode([Document.of(Hole("image"))])
