"""From a data folder to what a generator is trained on: token ids of every document, and its neighbours.

Both are computed once, kept beside the run, and reused while the data and the models that made them stay the same.

N documents, R query draws (text and image part, several dropout draws each), K retrieved documents.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from racm3.document import Document, Image, Part, Text
from racm3.errors import DocumentError, SourceError
from racm3.memory.sources import Item, read
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import drop_query, neighbours
from racm3.tokens.image import ImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds, TokenDocument, TokenPart
from racm3.tokens.text import TextTokenizer

BATCH = 256


@dataclass(frozen=True)
class TrainingSet:
    """``ids``: N token sequences; ``neighbours``: (N, R, K) rows, -1 where there are fewer; None without retrieval."""

    ids: list[np.ndarray]
    neighbours: np.ndarray | None


def load_pairs(path: Path, image_size_px: int) -> tuple[np.ndarray, list[str]]:
    """All documents that have both a picture and a text: (N, H, W, 3) uint8, and N captions.

    Raises SourceError if there is none.
    """
    pictures, captions = [], []
    for item in read(path):
        if item.document.images and item.document.text:
            pictures.append(item.document.images[0].resized(image_size_px).pixels)
            captions.append(item.document.text)
    if not pictures:
        raise SourceError(f"{path} holds no document with both a picture and a caption; training needs such pairs")
    return np.stack(pictures), captions


def image_codes(images: Sequence[Image], tokenizer: ImageTokenizer) -> np.ndarray:
    """(B, N) codes of pictures of any size: they are scaled and cropped to the tokenizer's size first."""
    size = tokenizer.image_size_px
    pixels = np.stack([image.resized(size).pixels for image in images])
    return tokenizer.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).cpu().numpy()


def token_documents(
    documents: Sequence[Document], text: TextTokenizer, image: ImageTokenizer
) -> list[TokenDocument]:
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


def prepare(
    path: Path,
    text: TextTokenizer,
    image: ImageTokenizer,
    markup: Markup,
    encoder: Encoder | None,
    cache: Path,
    *,
    k: int = 2,
    draws: int = 2,
    dropout: float = 0.2,
    seed: int = 0,
) -> TrainingSet:
    """The training set of a data folder, from ``cache`` if it was made of the same data by the same models.

    Queries are, as in training of the paper, the text part or the picture part of the document itself, never the
    whole; a share of ``dropout`` of each is dropped, in ``draws`` independent draws.
    """
    key = _key(path, text, image, encoder, k, draws, dropout, seed)
    file = cache / f"{key}.npz"
    if file.exists():
        with np.load(file) as stored:
            ids = np.split(stored["ids"], stored["offsets"])
            return TrainingSet(ids, stored["neighbours"] if encoder else None)
    ids: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    queries: list[np.ndarray] = []  # (batch, R, D)
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    for batch in _batches(read(path)):
        documents = [item.document for item in batch]
        ids += [np.array(markup.to_ids(d), np.int32) for d in token_documents(documents, text, image)]
        if encoder:
            vectors.append(encoder.embed(documents))
            queries.append(_query_vectors(documents, encoder, draws, dropout, rng))
        print(f"\rprepare: {len(ids)} documents, {len(ids) / (time.monotonic() - started):.0f}/s", end="", file=sys.stderr)
    print(file=sys.stderr)
    if not ids:
        raise SourceError(f"{path} holds no readable document; see the warnings above")
    found = np.zeros((len(ids), 0, k), np.int64)
    if encoder:
        table, asked = np.concatenate(vectors), np.concatenate(queries)
        own = np.arange(len(table))
        columns = []
        for draw in range(asked.shape[1]):
            columns.append(neighbours(asked[:, draw], table, k, encoder.redundancy_threshold, own))
            print(f"prepare: neighbours, draw {draw + 1} of {asked.shape[1]}", file=sys.stderr)
        found = np.stack(columns, axis=1)
    cache.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([len(row) for row in ids])[:-1]
    part = cache / f"{key}.part.npz"
    np.savez(part, ids=np.concatenate(ids), offsets=offsets, neighbours=found.astype(np.int32))
    part.rename(file)
    return TrainingSet(ids, found if encoder else None)


def _query_vectors(
    documents: Sequence[Document], encoder: Encoder, draws: int, dropout: float, rng: np.random.Generator
) -> np.ndarray:
    """(B, R, D): per draw the text part's vector and the picture part's; one that lacks a part asks with the other."""
    columns = []
    for _ in range(draws):
        for first, second in (("text", "image"), ("image", "text")):
            parts = [d.only(first) or d.only(second) for d in documents]  # type: ignore[arg-type]
            columns.append(encoder.embed([drop_query(part, dropout, rng) for part in parts if part is not None]))
    return np.stack(columns, axis=1)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _key(
    path: Path,
    text: TextTokenizer,
    image: ImageTokenizer,
    encoder: Encoder | None,
    k: int,
    draws: int,
    dropout: float,
    seed: int,
) -> str:
    """What the prepared set depends on, as 16 hex digits: the files' names, sizes and times, the models, the settings."""
    path = Path(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(image, torch.nn.Module):
        for name, value in image.state_dict().items():
            if not name.startswith("decoder"):  # the decoder writes no codes
                digest.update(name.encode() + value.float().numpy().tobytes())
    facts = [stats, text.encode("a fox in the snow"), text.size, encoder and encoder.fingerprint, k, draws, dropout, seed]
    if encoder:
        facts.append(encoder.redundancy_threshold)
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
