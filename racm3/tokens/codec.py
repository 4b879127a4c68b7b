"""Codec: parts of documents <-> text ids, image codes, pixels. What comes before the prompt, and after the engine.

A picture is scaled and cropped to the image tokenizer's size once, when it is encoded.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch

from racm3.document import Document, Hole, Image, Part, Text
from racm3.errors import DocumentError
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.parts import (
    GeneratedCodes,
    HiddenCodes,
    HiddenText,
    ImageCodes,
    OpenPart,
    TextIds,
    TokenDocument,
    TokenPart,
)
from racm3.tokens.text_tokenizer import TextTokenizer

__all__ = ["NOTHING", "Codec", "image_codes", "token_documents"]

KEPT = 1024
"""Documents whose tokens are kept (ours): megabytes, at a thousand tokens each."""

GREY = 128
"""Of a picture's codes that are still to come."""

NOTHING = "(nothing)"
"""In place of a generated text that is blank, which no text may be."""


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


class Codec:
    """A text tokenizer and an image tokenizer. For several threads."""

    def __init__(self, text: TextTokenizer, image: ImageTokenizer) -> None:
        self.text, self.image = text, image
        self._kept: OrderedDict[bytes, TokenDocument] = OrderedDict()
        self._lock = Lock()

    # Documents to ids ------------------------------------------------------------------------------------------------

    def encode(self, documents: Sequence[Document]) -> list[TokenDocument]:
        """``token_documents`` that remembers the last documents, by what they show: retrieved ones come again."""
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

    def encode_open(self, document: Document) -> list[OpenPart]:
        """The parts of a document with holes; a hidden region grows to whole codes.

        Raises DocumentError if a mask hides nothing of the middle square.
        """
        return [self._encode_part(part) for part in document.parts]

    def _encode_part(self, part: Part) -> OpenPart:
        if isinstance(part, Hole):
            return part
        if isinstance(part, Text):
            before, after = (tuple(self.text.encode(side)) for side in part.around)
            return TextIds(before) if part.hidden is None else HiddenText(before, after)
        shown = part.resized(self.image.image_size_px)
        codes = tuple(image_codes([shown], self.image)[0].tolist())
        if shown.mask is None:
            return ImageCodes(codes)
        rows, columns = self.image.grid
        height, width = shown.mask.shape
        hidden = shown.mask.reshape(rows, height // rows, columns, width // columns).any(axis=(1, 3)).flatten()
        if not hidden.any():
            raise DocumentError(
                "nothing of a picture is hidden: its mask is empty, or outside the middle square of the picture, all "
                "that is looked at; move it"
            )
        return HiddenCodes(codes, tuple(hidden.tolist()), shown.pixels)

    # Ids to parts ----------------------------------------------------------------------------------------------------

    def complete(self, given: OpenPart, made: TextIds | GeneratedCodes) -> TokenPart:
        """The open part ``given`` with what was generated of it: ids or codes without a gap."""
        if isinstance(made, TextIds):
            before, after = (given.before, given.after) if isinstance(given, HiddenText) else ((), ())
            return TextIds((*before, *made.ids, *after))
        codes = list(given.codes) if isinstance(given, HiddenCodes) else [0] * (self.image.grid[0] * self.image.grid[1])
        for place, code in made.codes.items():
            codes[place] = code
        return ImageCodes(tuple(codes))

    def decode(self, part: Part, given: OpenPart, made: TextIds | GeneratedCodes) -> Part:
        """``part``, which is ``given`` as ids, as far as it is generated; codes of a picture still to come are grey.
        What was not hidden is as it was, to the pixel."""
        if isinstance(made, TextIds):
            before, after = part.around if isinstance(part, Text) else ("", "")
            text = f"{before}{self.text.decode(made.ids)}{after}"
            return Text(text if text.strip() else NOTHING)
        whole = self.complete(given, made)
        assert isinstance(whole, ImageCodes)
        picture = self.pixels(np.array(whole.codes))
        if isinstance(given, HiddenCodes) and given.pixels is not None:
            picture = np.where(self._cells(np.flatnonzero(given.hidden))[..., None], picture, given.pixels)
        if made.missing:
            picture = np.where(self._cells(made.missing)[..., None], np.uint8(GREY), picture)
        return Image(picture)

    def pixels(self, codes: np.ndarray) -> np.ndarray:
        """(N,) codes to an (H, W, 3) uint8 picture."""
        decoded = self.image.decode(torch.from_numpy(codes)[None])[0]
        return (decoded.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    def _cells(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """(H, W) bool: the pixels of the codes at these places."""
        rows, columns = self.image.grid
        cells, side = np.zeros(rows * columns, dtype=bool), self.image.image_size_px
        cells[list(places)] = True
        return cells.reshape(rows, columns).repeat(side // rows, 0).repeat(side // columns, 1)

    def presentable(self, made: TextIds | GeneratedCodes) -> int:
        """How many ids of an unfinished part are fit to be shown, 0 if it ends within a character or a row."""
        if isinstance(made, TextIds):
            return 0 if self.text.decode(made.ids).endswith("\ufffd") else len(made.ids)
        if not made.codes or not made.missing:
            return len(made.codes)
        columns = self.image.grid[1]
        last, following = list(made.codes)[-1], made.missing[0]
        return len(made.codes) if last // columns != following // columns else 0


def _digest(document: Document) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in document.parts:
        if isinstance(part, Image):
            digest.update(repr((part.pixels.shape, part.mask is None)).encode())
            digest.update(np.ascontiguousarray(part.pixels).data)
        else:
            digest.update(repr(part).encode())
    return digest.digest()
