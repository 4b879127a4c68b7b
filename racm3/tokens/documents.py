"""Documents as token documents: words to text ids, pictures to image codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from racm3.document import Document, Image, Part, Text
from racm3.errors import DocumentError
from racm3.tokens.image import ImageTokenizer
from racm3.tokens.markup import ImageCodes, TextIds, TokenDocument, TokenPart
from racm3.tokens.text import TextTokenizer


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
