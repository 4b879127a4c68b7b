"""From a data folder to what a generator is trained on: token ids of every document, and its neighbours.

Both are computed once, kept beside the run, and reused while the data and the models that made them stay the same.

N documents, R query draws (text and image part, several dropout draws each), K retrieved documents.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from racm3.document import Document
from racm3.errors import SourceError
from racm3.memory.sources import read
from racm3.retriever.encoder import Encoder
from racm3.retriever.neighbours import draw_queries, neighbours
from racm3.retriever.strategy import QUERY_DROPOUT
from racm3.tokens.documents import token_documents
from racm3.tokens.image import ImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.text import TextTokenizer

BATCH = 256
PROBE = "a fox in the snow"
"""A text whose ids tell one text tokenizer from another of the same size."""


@dataclass(frozen=True)
class TrainingSet:
    """``ids``: N token sequences; ``neighbours``: (N, R, K) rows, -1 where there are fewer; None without retrieval."""

    ids: list[np.ndarray]
    neighbours: np.ndarray | None


def load_pairs(path: Path, image_size_px: int) -> tuple[np.ndarray, list[list[str]]]:
    """All documents that have both a picture and a text: (N, H, W, 3) uint8, and the captions of each.

    A picture's captions are its document's text and those of ``metadata["captions"]``, if there are any.
    Raises SourceError if there is no such document.
    """
    pictures, captions = [], []
    for item in read(path):
        if item.document.images and item.document.text:
            pictures.append(item.document.images[0].resized(image_size_px).pixels)
            captions.append(list(dict.fromkeys([item.document.text, *item.metadata.get("captions", [])])))
    if not pictures:
        raise SourceError(f"{path} holds no document with both a picture and a caption; training needs such pairs")
    return np.stack(pictures), captions


def prepare(
    path: Path,
    text: TextTokenizer,
    image: ImageTokenizer,
    markup: Markup,
    encoder: Encoder | None,
    cache: Path,
    *,
    k: int = 2,
    dropouts: tuple[float, ...] = (0.0, QUERY_DROPOUT),
    seed: int = 0,
) -> TrainingSet:
    """The training set of a data folder, from ``cache`` where that was made of the same data by the same models.

    Queries are, as in training of the paper, the text part or the picture part of the document itself, never the
    whole. There is one draw of both for each of ``dropouts``, the share of the query that is dropped: by default half
    of the queries are asked as they are. Of the built-in world's short captions a fifth is often the entity's name.
    Raises SourceError if the folder holds no readable document.
    """
    data = _files(path)
    tokens = cache / f"tokens-{_digest(data, text.size, text.encode(PROBE), _codes_of(image))}.npz"
    if not tokens.exists():
        _write(tokens, **_tokenised(path, text, image, markup))
    with np.load(tokens) as stored:
        ids = np.split(stored["ids"], stored["offsets"])
    if encoder is None:
        return TrainingSet(ids, None)
    made_by = (encoder.fingerprint, encoder.redundancy_threshold, k, dropouts, seed)
    found = cache / f"neighbours-{_digest(data, *made_by)}.npz"
    if not found.exists():
        _write(found, rows=_neighbours(path, encoder, k, dropouts, seed))
    with np.load(found) as stored:
        return TrainingSet(ids, stored["rows"])


def _tokenised(path: Path, text: TextTokenizer, image: ImageTokenizer, markup: Markup) -> dict[str, np.ndarray]:
    """All documents' ids in a row, and where each but the first begins."""
    ids: list[np.ndarray] = []
    for documents in _batches(path, "tokenise"):
        ids += [np.array(markup.to_ids(d), np.int32) for d in token_documents(documents, text, image)]
    return {"ids": np.concatenate(ids), "offsets": np.cumsum([len(row) for row in ids])[:-1]}


def _neighbours(path: Path, encoder: Encoder, k: int, dropouts: tuple[float, ...], seed: int) -> np.ndarray:
    """(N, R, K) rows of every document's diverse neighbours, -1 where there are fewer.

    R: for each of ``dropouts`` the text part's query, then the picture part's.
    """
    parts: list[np.ndarray] = []  # (B, 2, D) each
    queries: list[np.ndarray] = []  # (B, R, D) each
    rng = np.random.default_rng(seed)
    for documents in _batches(path, "embed"):
        whole = draw_queries(documents, encoder, (0.0,), rng)
        parts.append(whole)
        drawn = [draw_queries(documents, encoder, (rate,), rng) if rate else whole for rate in dropouts]
        queries.append(np.concatenate(drawn, axis=1))
    table, asked = np.concatenate(parts).sum(axis=1), np.concatenate(queries)
    table /= np.linalg.norm(table, axis=1, keepdims=True)  # the mixed-modal vector of each document
    own = np.arange(len(table))
    columns = []
    for draw in range(asked.shape[1]):
        columns.append(neighbours(asked[:, draw], table, k, encoder.redundancy_threshold, own))
        print(f"neighbours: draw {draw + 1} of {asked.shape[1]}", file=sys.stderr)
    return np.stack(columns, axis=1).astype(np.int32)


def _batches(path: Path, what: str) -> Iterator[list[Document]]:
    """The documents of a data folder, ``BATCH`` at a time, with progress. Raises SourceError if there is none."""
    items, done, started = read(path), 0, time.monotonic()
    while batch := [item.document for item in islice(items, BATCH)]:
        yield batch
        done += len(batch)
        print(f"\r{what}: {done} documents, {done / (time.monotonic() - started):.0f}/s", end="", file=sys.stderr)
    print(file=sys.stderr)
    if not done:
        raise SourceError(f"{path} holds no readable document; see the warnings above")


def _write(file: Path, **arrays: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, **arrays)  # type: ignore[arg-type]
    part.rename(file)


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a source's files: what is cached holds while these do."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*"))
    else:
        files = [path] if path.is_file() else [Path(f) for f in sorted(glob.glob(str(path)))]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]


def _codes_of(image: ImageTokenizer) -> str:
    """A digest of what writes the codes; the decoder does not."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(image, torch.nn.Module):
        for name, value in image.state_dict().items():
            if not name.startswith("decoder"):
                digest.update(name.encode() + value.float().numpy().tobytes())
    return digest.hexdigest()


def _digest(*facts: object) -> str:
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
