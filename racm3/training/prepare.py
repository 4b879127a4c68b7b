"""From a data folder to what a generator is trained on: token ids of every document, and its neighbours.

Both are computed once, kept, and reused while the data and the models that made them stay the same.

N documents, R query draws (text and image part, several dropout draws each), K retrieved documents.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from racm3.data import read, recognise
from racm3.data.reading import READER
from racm3.document import Document
from racm3.errors import SourceError
from racm3.retriever.choosing import strategy_for
from racm3.retriever.corpus_neighbours import PART, copied, document_neighbours, draw_queries
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import QUERY_DROPOUT, Strategy, cache_key
from racm3.tokens.codec import token_documents
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.training.arrays import Growing, Sequences
from racm3.training.distributed import connect
from racm3.training.prepared_cache import Cache, reused
from racm3.util.files import unfinished
from racm3.util.progress import progress
from racm3.util.s3 import is_remote, matching

BATCH = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """``ids``: N token sequences; ``neighbours``: (N, R, K) rows, -1 where there are fewer; None without retrieval.

    The rows ``held_out`` are for validation: they are never main documents of training, nor retrieved for one.
    """

    ids: Sequence[np.ndarray]
    neighbours: np.ndarray | None
    held_out: frozenset[int] = frozenset()

    def holding_out(self, held: float, seed: int) -> TrainingSet:
        """The same set with ``held`` rows held out, or that share of them. Raises SourceError if it is above half."""
        count = held_out(held, len(self.ids))
        rows = np.random.default_rng(seed).choice(len(self.ids), count, replace=False)
        return replace(self, held_out=frozenset(rows.tolist()))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) rows to train on, each as likely as any other."""
        rows = rng.integers(len(self.ids), size=count)
        while any(held := [row in self.held_out for row in rows.tolist()]):
            rows[held] = rng.integers(len(self.ids), size=sum(held))
        return rows


def held_out(held: float, documents: int) -> int:
    """How many of the documents are held out: ``held``, or if that is below 1 that share of them and at least one.

    Raises SourceError if that is more than half of them.
    """
    count = int(held) if held >= 1 or not held else max(1, round(held * documents))
    if 2 * count > documents:
        raise SourceError(
            f"{count} of {documents} documents are to be held out; lower validation_documents, as with "
            f"--set validation_documents={documents // 2}, or give more data"
        )
    return count


def check_enough(path: Path, held: float, pairs: int) -> None:
    """Raises SourceError if ``held`` documents cannot be held out, or fewer than ``pairs`` have a picture and a text.

    Reads no more than it takes to know.
    """
    documents = found = 0
    for item in read(path, report=lambda _: None):
        documents += 1
        found += bool(item.document.images and item.document.text)
        if documents >= 2 * max(held, 1) and found >= pairs:
            return
    held_out(held, documents)
    if found < pairs:
        raise SourceError(
            f"{path} holds {found} documents with both a picture and a caption; training needs at least {pairs}"
        )


def load_pairs(path: Path, image_size_px: int, cache: Path) -> tuple[np.ndarray, list[list[str]]]:
    """All documents that have both a picture and a text: (N, H, W, 3) uint8, and the captions of each.

    A picture's captions are its document's text and those of ``metadata["captions"]``, if there are any. The pictures
    lie in ``cache`` and are read from there, so that they may be more than memory holds.
    Raises SourceError if there is no such document.
    """
    folder = cache / f"pictures-{_digest(_files(path), image_size_px)}"
    if not reused(folder, "pictures"):
        part = unfinished(folder)
        shutil.rmtree(part)
        part.mkdir()
        shape = (image_size_px, image_size_px, 3)
        with (
            Growing(part / "pictures.npy", np.uint8, shape) as pictures,
            open(part / "captions.jsonl", "w", encoding="utf-8") as captions,
        ):
            for item in read(path):
                if item.document.images and item.document.text:
                    pictures.append(item.document.images[0].resized(image_size_px).pixels[None])
                    texts = [item.document.text, *item.metadata.get("captions", [])]
                    captions.write(json.dumps(list(dict.fromkeys(texts))) + "\n")
            found = len(pictures)
        if not found:
            raise SourceError(f"{path} holds no document with both a picture and a caption; training needs such pairs")
        part.rename(folder)
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return np.load(folder / "pictures.npy", mmap_mode="c"), [json.loads(line) for line in lines]


def learn_text(path: Path, size: int, cache: Cache) -> TextTokenizer:
    """The text tokenizer of at most ``size`` ids learnt from a data folder's captions, from ``cache`` if there."""

    def learn(file: Path) -> None:
        texts = (item.document.text for item in read(path))
        learnt = TextTokenizer.train((text for text in texts if text), size)
        part = file.with_suffix(".part")
        learnt.save(part)
        part.rename(file)

    def name() -> str:
        return cache.made(f"text-{_digest(_files(path), size)}.json", "text tokenizer", learn)

    return TextTokenizer.load(cache.there(connect().from_main(name)))


def prepare(
    path: Path,
    text: TextTokenizer,
    image: ImageTokenizer,
    markup: Markup,
    encoder: Encoder | None,
    cache: Cache,
    *,
    k: int = 2,
    dropouts: tuple[float, ...] = (0.0, QUERY_DROPOUT),
    seed: int = 0,
    strategy: Strategy | None = None,
) -> TrainingSet:
    """The training set of a data folder, from ``cache`` where that was made of the same data by the same models.

    Queries are, as in training of the paper, the text part or the picture part of the document itself, never the
    whole. There is one draw of both for each of ``dropouts``, the share of the query that is dropped.
    ``strategy`` chooses what they retrieve, by default the paper's.
    What a kill left half done is taken up where it stood. Among several processes the first does all this, and needs
    the data; each finds in ``cache`` what that made. Raises SourceError if the folder holds no readable document.
    """

    def names() -> tuple[str, str | None]:
        """Of the tokens, and of the neighbours."""
        data = _files(path)
        tokens = cache.made(
            f"tokens-{_digest(data, text.fingerprint, image.digest)}",
            "tokens",
            partial(_tokenise, path, text, image, markup),
        )
        if encoder is None:
            return tokens, None
        made_by, chosen = (encoder.fingerprint, dropouts, seed), strategy or strategy_for(encoder)

        def embed(folder: Path) -> None:
            _embed(path, encoder, dropouts, seed, folder, len(_ids(cache.there(tokens))))

        def find(file: Path) -> None:
            vectors = cache.made(f"vectors-{_digest(data, made_by)}", "vectors", embed)
            _find(cache.there(vectors), k, chosen, file, encoder.copy_threshold)

        name = f"neighbours-{_digest(data, made_by, *cache_key(chosen).values(), k, encoder.copy_threshold)}.npy"
        return tokens, cache.made(name, "neighbours", find)

    tokens, neighbours = connect().from_main(names)
    table = None if neighbours is None else np.load(cache.there(neighbours), mmap_mode="r")
    return TrainingSet(_ids(cache.there(tokens)), table)


def _ids(tokens: Path) -> Sequences:
    return Sequences(np.load(tokens / "ids.npy", mmap_mode="r"), np.load(tokens / "ends.npy", mmap_mode="r"))


def _tokenise(path: Path, text: TextTokenizer, image: ImageTokenizer, markup: Markup, folder: Path) -> None:
    """Write all documents' ids in a row, ``ids.npy``, and where each ends, ``ends.npy`` (N,)."""
    kind = np.uint16 if markup.vocabulary.size <= 1 << 16 else np.int32
    part = unfinished(folder)
    with Growing(part / "ids.npy", kind) as ids, Growing(part / "ends.npy", np.int64) as ends:
        ids.truncate(ends.last() if len(ends) else 0)
        for documents in _batches(path, "tokenising documents", len(ends)):
            rows = [np.array(markup.to_ids(d), kind) for d in token_documents(documents, text, image)]
            before = len(ids)
            ids.append(np.concatenate(rows))
            ends.append(before + np.cumsum([len(row) for row in rows]))
    part.rename(folder)


def _embed(path: Path, encoder: Encoder, dropouts: tuple[float, ...], seed: int, folder: Path, total: int) -> None:
    """Write the vector of every document, ``whole.npy`` (N, D), and those of its queries, ``queries.npy`` (N, R, D).

    R: for each of ``dropouts`` the text part's query, then the picture part's.
    """
    part, size = unfinished(folder), encoder.dimension
    with (
        Growing(part / "whole.npy", np.float32, (size,)) as whole,
        Growing(part / "queries.npy", np.float32, (2 * len(dropouts), size)) as queries,
    ):
        done = min(len(whole), len(queries))
        whole.truncate(done)
        queries.truncate(done)
        for documents in _batches(path, "embedding documents", done, total):
            rng = np.random.default_rng((seed, len(whole)))  # of the place, so that a resumed run draws the same
            parts = draw_queries(documents, encoder, (0.0,), rng)  # (B, 2, D)
            drawn = [draw_queries(documents, encoder, (rate,), rng) if rate else parts for rate in dropouts]
            mixed = parts.sum(axis=1)
            whole.append(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
            queries.append(np.concatenate(drawn, axis=1))
    part.rename(folder)


def _find(vectors: Path, k: int, strategy: Strategy, file: Path, copies: float | None = None) -> None:
    """Write (N, R, K) rows of every document's neighbours, -1 where there are fewer. Documents more similar than
    ``copies`` to the main one are skipped, and counted."""
    table, asked = (np.load(vectors / name, mmap_mode="c") for name in ("whole.npy", "queries.npy"))
    part = file.with_suffix(".part")
    with Growing(part, np.int32, (asked.shape[1], k)) as found, progress() as report:
        for first in range(len(found), len(table), PART):
            found.append(document_neighbours(asked[first : first + PART], table, first, k, strategy, copies=copies))
            report("finding neighbours", len(found), len(table))
    if copies is not None and (skipped := copied(table, copies)):
        log.warning(
            "%d of %d documents have copies beside them, which were not retrieved for them", skipped, len(table)
        )
    part.rename(file)


def _batches(path: Path, what: str, done: int = 0, total: int = 0) -> Iterator[list[Document]]:
    """The documents of a data folder behind the first ``done``, ``BATCH`` at a time, with progress.

    Raises SourceError if there is none at all.
    """
    items = islice(read(path), done, None)
    with progress() as report:
        report(what, done, total or None)
        while batch := [item.document for item in islice(items, BATCH)]:
            yield batch
            done += len(batch)
            report(what, done, total or None)
    if not done:
        raise SourceError(f"{path} holds no readable document; see the warnings above")


def _files(path: Path) -> list[object]:
    """How the source is read; names, sizes and times of its files: what is cached holds while these do."""
    if is_remote(path):
        return [READER, *((str(file), *facts) for file, facts in matching(path)[1].items())]
    facts = ((str(file), file.stat()) for file in sorted(recognise(path).touched()) if file.is_file())
    return [READER, *((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts)]


def _digest(*facts: object) -> str:
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
