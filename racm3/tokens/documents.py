"""Documents as token documents: words to text ids, pictures to image codes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch

from racm3.document import Document, Image, Part, Text
from racm3.errors import DocumentError
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.markup import ImageCodes, TextIds, TokenDocument, TokenPart
from racm3.tokens.text_tokenizer import TextTokenizer

KEPT = 1024
"""Documents whose tokens are kept (ours): megabytes, at a thousand tokens each."""


def image_codes(images: Sequence[Image], tokenizer: ImageTokenizer) -> np.ndarray:
    """(B, N) codes of pictures of any size: they are scaled and cropped to the tokenizer's size first."""
    size = tokenizer.image_size_px
    pixels = np.stack([image.resized(size).pixels for image in images])
    return tokenizer.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).cpu().numpy()


def token_documents(documents: Sequence[Document], text: TextTokenizer, image: ImageTokenizer) -> list[TokenDocument]:
    """Documents as text ids and image codes. Raises DocumentError if one has a hole or a hidden region."""
    if any(document.holes for document in documents):
        raise DocumentError("a document with holes cannot be tokenised whole; fill them first")
    images = [picture for document in documents for picture in document.images]
    codes = iter(image_codes(images, image)) if images else iter(())

    def token_part(part: Part) -> TokenPart:
        if isinstance(part, Text):
            return TextIds(tuple(text.encode(part.text)))
        return ImageCodes(tuple(next(codes).tolist()))

    return [tuple(token_part(part) for part in document.parts) for document in documents]


class TokenCache:
    """``token_documents`` that remembers the last documents, by what they show: retrieved ones come again and again.

    For several threads.
    """

    def __init__(self, text: TextTokenizer, image: ImageTokenizer) -> None:
        self.text, self.image = text, image
        self._kept: OrderedDict[bytes, TokenDocument] = OrderedDict()
        self._lock = Lock()

    def __call__(self, documents: Sequence[Document]) -> list[TokenDocument]:
        keys = [_digest(document) for document in documents]
        with self._lock:
            new = {key: document for key, document in zip(keys, documents, strict=True) if key not in self._kept}
            self._kept.update(zip(new, token_documents(list(new.values()), self.text, self.image), strict=True))
            found = [self._kept[key] for key in keys]
            for key in keys:
                self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


def _digest(document: Document) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in document.parts:
        if isinstance(part, Image):
            digest.update(repr((part.pixels.shape, part.mask is None)).encode())
            digest.update(np.ascontiguousarray(part.pixels).data)
        else:
            digest.update(repr(part).encode())
    return digest.digest()
