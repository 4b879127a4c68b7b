from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from racm3.data import Item, write_coco, write_webdataset
from racm3.document import Document, Hole, Image
from racm3.errors import DocumentError, SourceError
from racm3.retriever.corpus_neighbours import document_neighbours
from racm3.retriever.encoder import Encoder
from racm3.retriever.strategy import Relevance, RelevanceRedundancy
from racm3.tokens.codec import image_codes, token_documents
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary
from racm3.training import prepare as module
from racm3.training.prepare import TrainingSet, _digest, _files, load_pairs, prepare
from racm3.training.prepared_cache import Cache
from racm3.util.s3 import Remote

TEXT = TextTokenizer.train(["a fox in the snow"], 256)
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = 32


def picture(seed: int, size: int = SIZE) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def new_image_tokenizer(seed: int) -> FSQImageTokenizer:
    torch.manual_seed(seed)
    config = FSQConfig(image_size_px=SIZE, levels=(4, 4), encoder_width=8, decoder_width=16, decoder_layers=1)
    return FSQImageTokenizer(config).eval()


@pytest.fixture(scope="module")
def image() -> FSQImageTokenizer:
    return new_image_tokenizer(0)


@pytest.fixture(scope="module")
def markup(image: FSQImageTokenizer) -> Markup:
    return Markup(Vocabulary(TEXT.size, image.codebook_size), 16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    file = tmp_path_factory.mktemp("text") / "tokenizer.json"
    TEXT.save(file)
    torch.manual_seed(0)
    return Encoder.new(
        Tokenizer.from_file(str(file)),
        dimension=8,
        text={**TOWER, "max_position_embeddings": 40},
        vision={**TOWER, "image_size": SIZE, "patch_size": 16},
        redundancy_threshold=1.0,
    )


def items(number: int, start: int = 0) -> list[Item]:
    return [
        Item(f"item-{i}", Document.of(f"{i} foxes in the snow", picture(i)), {"captions": [f"{i} foxes"]}, "test")
        for i in range(start, start + number)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_coco(items(7), tmp_path / "data")
    return tmp_path / "data"


def same_ids(one: TrainingSet, other: TrainingSet) -> bool:
    return len(one.ids) == len(other.ids) and all(map(np.array_equal, one.ids, other.ids))


def equal(one: TrainingSet, other: TrainingSet) -> bool:
    return same_ids(one, other) and np.array_equal(one.neighbours, other.neighbours)  # type: ignore[arg-type]


# Documents as ids


def test_token_documents(image: FSQImageTokenizer) -> None:
    documents = [
        Document.of("a fox", picture(0), picture(1, 48)),
        Document.of("an owl"),
        Document.of(picture(2), "in the snow"),
    ]
    codes = [
        ImageCodes(tuple(image_codes([shown], image)[0].tolist())) for shown in (picture(0), picture(1, 48), picture(2))
    ]
    texts = [TextIds(tuple(TEXT.encode(text))) for text in ("a fox", "an owl", "in the snow")]
    expected = [(texts[0], codes[0], codes[1]), (texts[1],), (codes[2], texts[2])]
    assert token_documents(documents, TEXT, image) == expected
    assert token_documents([], TEXT, image) == []


def test_documents_with_holes_are_refused(image: FSQImageTokenizer) -> None:
    for hole in (Hole("text"), Image(picture(0).pixels, np.zeros((SIZE, SIZE), dtype=bool))):
        with pytest.raises(DocumentError, match="fill them first"):
            token_documents([Document.of("a fox", hole)], TEXT, image)


def test_pairs(tmp_path: Path) -> None:
    given = [*items(3), Item("words", Document.of("no picture"), {}, "test")]
    write_webdataset(given, tmp_path / "data")
    pictures, captions = load_pairs(tmp_path / "data", 16, tmp_path / "cache")
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert captions == [[f"{i} foxes in the snow", f"{i} foxes"] for i in range(3)]
    assert (pictures == [item.document.images[0].resized(16).pixels for item in items(3)]).all()
    assert load_pairs(tmp_path / "data", 16, tmp_path / "cache")[1] == captions
    write_webdataset(given[-1:], tmp_path / "words")
    with pytest.raises(SourceError, match="no document with both a picture and a caption"):
        load_pairs(tmp_path / "words", 16, tmp_path / "cache")


# The training set


def test_what_was_kept_equals_what_is_made_anew(
    folder: Path,
    image: FSQImageTokenizer,
    markup: Markup,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "one"))
    again = prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "two"))
    assert equal(fresh, again)
    reads = count()
    monkeypatch.setattr(module, "read", lambda path: next(reads) and iter(()))
    kept = prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "one"))
    assert next(reads) == 0  # nothing was read again
    assert equal(kept, fresh)
    assert prepare(folder, TEXT, image, markup, None, Cache(tmp_path / "one")).neighbours is None
    assert next(reads) == 1


def test_a_kill_costs_one_batch(
    folder: Path,
    image: FSQImageTokenizer,
    markup: Markup,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    whole = prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "whole"))
    real, done = module._batches, count()

    def broken(*given: object) -> Iterator[list[Document]]:
        for batch in real(*given):  # type: ignore[arg-type]
            yield batch
            if next(done) % 2:  # the second batch of a run is appended, then the run dies
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "_batches", broken)
    for _ in range(2):  # while tokenising, then while embedding
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "cache"))
    monkeypatch.setattr(module, "_batches", real)
    for torn in (tmp_path / "cache").glob("*.part/*"):
        torn.write_bytes(torn.read_bytes() + b"torn")
    assert equal(prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "cache")), whole)


def test_another_text_tokenizer_of_the_same_size_is_another_set(
    folder: Path, image: FSQImageTokenizer, markup: Markup, tmp_path: Path
) -> None:
    one, other = (TextTokenizer.train([text * 9], 257) for text in ("ab", "yz"))  # neither pair is in the captions
    prepare(folder, one, image, markup, None, Cache(tmp_path / "cache"))
    prepare(folder, other, image, markup, None, Cache(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_ids_are_those_of_the_documents(
    folder: Path, image: FSQImageTokenizer, markup: Markup, tmp_path: Path
) -> None:
    made = prepare(folder, TEXT, image, markup, None, Cache(tmp_path / "cache"))
    documents = [item.document for item in items(7)]
    for ids, expected in zip(made.ids, token_documents(documents, TEXT, image), strict=True):
        assert markup.from_ids(ids) == expected


def test_neighbours_are_other_documents(
    folder: Path, image: FSQImageTokenizer, markup: Markup, encoder: Encoder, tmp_path: Path
) -> None:
    found = prepare(
        folder, TEXT, image, markup, encoder, Cache(tmp_path / "cache"), k=2, dropouts=(0, 0.2, 0.5)
    ).neighbours
    assert found is not None
    assert found.shape == (7, 6, 2)  # N, text and picture of each draw, K
    own = np.arange(7)[:, None, None]
    assert (found != own).all()
    assert ((0 <= found) & (found < 7)).all()
    assert (found[..., 0] != found[..., 1]).all()
    plain = prepare(folder, TEXT, image, markup, encoder, Cache(tmp_path / "cache"), k=2, dropouts=(0.0,)).neighbours
    assert plain is not None
    documents = [item.document for item in items(7)]
    table = encoder.embed(documents)
    for column, part in enumerate(("text", "image")):
        scores = encoder.embed([document.only(part) for document in documents]) @ table.T  # type: ignore[arg-type, misc]
        np.fill_diagonal(scores, -1)
        assert plain[:, column].tolist() == np.argsort(-scores, axis=1)[:, :2].tolist()


def test_neighbours_go_on_where_they_were_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 3, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    np.save(tmp_path / "whole.npy", vectors[:, 0])
    np.save(tmp_path / "queries.npy", vectors[:, 1:])
    module._find(tmp_path, 2, RelevanceRedundancy(0.9), tmp_path / "one.npy")
    asked: list[int] = []

    def breaks(queries: np.ndarray, table: np.ndarray, first: int, *settings: Any, **more: Any) -> np.ndarray:
        asked.append(first)
        if asked.count(14) == 1 and first == 14:
            raise KeyboardInterrupt
        return document_neighbours(queries, table, first, *settings, **more)

    monkeypatch.setattr(module, "PART", 7)
    monkeypatch.setattr(module, "document_neighbours", breaks)
    with pytest.raises(KeyboardInterrupt):
        module._find(tmp_path, 2, RelevanceRedundancy(0.9), tmp_path / "two.npy")
    module._find(tmp_path, 2, RelevanceRedundancy(0.9), tmp_path / "two.npy")
    assert asked == [0, 7, 14, 14, 21, 28, 35]
    np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"))


def test_a_lone_document_has_no_neighbours(
    image: FSQImageTokenizer, markup: Markup, encoder: Encoder, tmp_path: Path
) -> None:
    write_coco(items(1), tmp_path / "data")
    made = prepare(tmp_path / "data", TEXT, image, markup, encoder, Cache(tmp_path / "cache"))
    assert made.neighbours is not None
    assert made.neighbours.tolist() == [[[-1, -1]] * 4]


def test_another_model_or_other_data_is_another_set(
    folder: Path, image: FSQImageTokenizer, markup: Markup, encoder: Encoder, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    one = prepare(folder, TEXT, image, markup, encoder, cache)
    other = prepare(folder, TEXT, new_image_tokenizer(1), markup, encoder, cache)
    assert not equal(one, other)
    others = prepare(folder, TEXT, image, markup, encoder, cache, dropouts=(0.5, 0.9), seed=3)
    assert not equal(one, others)
    files = sorted(folder.rglob("*.png"))
    files[0].write_bytes(picture(99).png())
    os.utime(files[0], ns=(0, 0))
    assert not equal(one, prepare(folder, TEXT, image, markup, encoder, cache))


def test_a_change_of_what_is_linked_or_listed_or_of_the_reader_is_seen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "there").symlink_to(folder)
    (folder / "list.jsonl").write_text('{"file_name": "1.png", "text": "a fox"}')
    (folder / "1.png").write_bytes(picture(1).png())
    sources = [folder, linked, folder / "list.jsonl", folder / "*.jsonl"]
    before = [_digest(_files(source)) for source in sources]
    assert before == [_digest(_files(source)) for source in sources]
    (folder / "1.png").write_bytes(picture(2, 16).png())
    after = [_digest(_files(source)) for source in sources]
    assert not set(before) & set(after)
    monkeypatch.setattr(module, "READER", module.READER + 1)
    assert not {_digest(_files(source)) for source in sources} & set(after)


def test_another_strategy_is_another_set_and_the_usual_one_is_known_as_ever(
    folder: Path, image: FSQImageTokenizer, markup: Markup, encoder: Encoder, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    prepare(folder, TEXT, image, markup, encoder, cache)
    made_by = (encoder.fingerprint, (0.0, 0.2), 0)
    name = _digest(_files(folder), made_by, encoder.redundancy_threshold, 2, encoder.copy_threshold)
    assert [file.name for file in cache.folder.glob("neighbours-*")] == [f"neighbours-{name}.npy"]
    prepare(folder, TEXT, image, markup, encoder, cache, strategy=Relevance())
    assert len(list(cache.folder.glob("neighbours-*"))) == 2
    assert len(list(cache.folder.glob("vectors-*"))) == 1


def test_globs_of_the_same_cache_are_told_apart(image: FSQImageTokenizer, markup: Markup, tmp_path: Path) -> None:
    write_webdataset(items(2), tmp_path / "one")
    write_webdataset(items(3, start=2), tmp_path / "two")
    found = [
        len(prepare(tmp_path / n / "*.tar", TEXT, image, markup, None, Cache(tmp_path / "c")).ids)
        for n in ("one", "two")
    ]
    assert found == [2, 3]


def test_a_folder_without_documents(image: FSQImageTokenizer, markup: Markup, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(SourceError):
        prepare(tmp_path / "data", TEXT, image, markup, None, Cache(tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/*"))


def test_shards_in_a_bucket_prepared_in_a_bucket(
    bucket: str, image: FSQImageTokenizer, markup: Markup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_webdataset(items(3), tmp_path)
    (shard,) = tmp_path.glob("*.tar")
    data = Remote(bucket) / "data" / "{0..0}.tar"

    def put(shard: Path) -> None:
        with (data.parent / "0.tar").open("wb") as stream:
            stream.write(shard.read_bytes())

    def prepared(machine: str) -> TrainingSet:
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / machine))
        return prepare(data, TEXT, image, markup, None, Cache(f"{bucket}/prepared"))

    put(shard)
    one = prepared("one")
    local = prepare(tmp_path, TEXT, image, markup, None, Cache(tmp_path / "cache"))
    assert same_ids(one, local)
    monkeypatch.setattr(module, "read", lambda path: pytest.fail("made again"))
    assert same_ids(prepared("two"), one)
    write_webdataset(items(4), tmp_path)
    put(shard)
    with pytest.raises(pytest.fail.Exception, match="made again"):
        prepared("two")
