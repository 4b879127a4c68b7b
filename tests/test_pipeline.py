"""The whole system on tiny models with random weights: what they draw is noise, but every step is the real one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from racm3.attribution import attribute
from racm3.data import Item
from racm3.document import Document, Hole, Image, Modality, Text, modality_of
from racm3.errors import (
    CheckpointError,
    ConfigError,
    DocumentError,
    EncoderMismatchError,
    InputError,
    MemoryStoreError,
    PromptTooLongError,
    RACM3Error,
)
from racm3.generator.engine import Context, SequenceRequest
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.prompt import Answer, answer_constraint, build_prompt
from racm3.generator.sampling import Sampling
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.pipeline import RACM3, Completion, Request, Settings, query_of
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Hit, Retriever
from racm3.tokens.codec import image_codes, token_documents
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.markup import Markup, TokenDocument
from racm3.tokens.parts import HiddenCodes
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

CAPTIONS = ["a fox in the snow", "two castles at night", "a boat on a beach", "an owl in a forest"]
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = 32
CODES = 16
CONTEXT = 160
SETTINGS = Settings(image=Sampling(guidance=2.0), text=Sampling(), max_text_tokens=6)


def picture(seed: int, size: int = SIZE) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def masked(image: Image, rows: slice, columns: slice) -> Image:
    mask = np.zeros(image.pixels.shape[:2], dtype=bool)
    mask[rows, columns] = True
    return Image(image.pixels, mask)


def new_encoder(folder: Path, seed: int) -> Encoder:
    torch.manual_seed(seed)
    return Encoder.new(
        Tokenizer.from_file(str(folder / "generator" / "tokenizer.json")),
        dimension=8,
        text={**TOWER, "max_position_embeddings": 24},
        vision={**TOWER, "image_size": SIZE, "patch_size": 16},
        redundancy_threshold=1.0,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    text = TextTokenizer.train(CAPTIONS, 280)
    image = FSQImageTokenizer(
        FSQConfig(image_size_px=SIZE, levels=(4, 4), encoder_width=8, decoder_width=16, decoder_layers=1)
    )
    image.save_pretrained(folder / "image-tokenizer")
    vocabulary = Vocabulary(text.size, image.codebook_size)
    for name in ("generator", "vanilla"):
        generator = Generator(GeneratorConfig(vocabulary.size, 32, 2, 2, 1, 16, 32, context_tokens=CONTEXT))
        with torch.no_grad():  # an opinion: new weights make all tokens equally likely
            for weight in generator.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
        ModelFolder(folder, name).save_generator(generator, text, Markup(vocabulary, CODES), image.grid)
    new_encoder(folder, 1).save_pretrained(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def memory_path(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = Encoder.from_pretrained(models / "encoder")
    documents = [Document.of(caption, picture(i)) for i, caption in enumerate(CAPTIONS)]
    items = [Item(f"item-{i}", document, {"row": i}, "test") for i, document in enumerate(documents)]
    path = tmp_path_factory.mktemp("memory") / "m"
    Memory.create(path, encoder.fingerprint, encoder.dimension).add(items, encoder.embed(documents))
    return path


@pytest.fixture(scope="module")
def model(models: Path, memory_path: Path) -> RACM3:
    return RACM3.from_pretrained(models, memory=memory_path)


def same(one: Completion, other: Completion) -> bool:
    return one.document == other.document and np.isclose(one.score, other.score)


EVERY_KIND = {
    "caption to image": Document.of("a fox in the snow", Hole("image")),
    "image to caption": Document.of(Hole("text"), picture(7)),
    "image, then caption": Document.of(picture(7), Hole("text")),
    "text in the middle": Document.of("a fox", Hole("text"), "in the snow"),
    "words in a text": Document.of(Text("a red fox", hidden=(2, 5)), picture(7)),
    "region": Document.of("a fox", masked(picture(8), slice(8, 24), slice(0, 16))),
    "region without words": Document.of(masked(picture(8), slice(8, 24), slice(0, 16))),
    "image among images": Document.of(picture(1), "a fox", Hole("image"), picture(2)),
    "everything": Document.of(Hole("text"), masked(picture(3), slice(0, 8), slice(0, 8)), "at night", Hole("image")),
}


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.parametrize("k", [0, 2])
def test_every_kind_of_document_is_completed(model: RACM3, name: str, k: int) -> None:
    document = EVERY_KIND[name]
    (done,) = model.complete([document], replace(SETTINGS, k=k))
    assert done.document.holes == ()
    assert len(done.document.parts) == len(document.parts)
    for i, (before, after) in enumerate(zip(document.parts, done.document.parts, strict=True)):
        if i not in document.holes:
            assert after == before
        elif modality_of(before) == "text":
            assert isinstance(after, Text)
        else:
            assert isinstance(after, Image)
            assert after.pixels.shape == (SIZE, SIZE, 3)
    assert len(done.sources) == k
    assert done.score < 0
    assert (done.settings, done.seed) == (replace(SETTINGS, k=k), SETTINGS.seed)


def test_a_picture_is_exactly_its_codes(model: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    pixels = model.codec.pixels
    monkeypatch.setattr(model.codec, "pixels", lambda codes: drawn.append(codes) or pixels(codes))  # type: ignore[func-returns-value]
    model.complete(list(EVERY_KIND.values()), SETTINGS)
    assert len(drawn) == 6
    assert all(codes.shape == (CODES,) and codes.min() >= 0 and codes.max() < 16 for codes in drawn)


@pytest.mark.parametrize("size", [SIZE, 48])
def test_outside_the_region_nothing_changes(model: RACM3, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    pixels = model.codec.pixels
    monkeypatch.setattr(model.codec, "pixels", lambda codes: drawn.append(codes) or pixels(codes))  # type: ignore[func-returns-value]
    # Rows 9 to 15 and columns 17 to 23 of 32: the code in row 1, column 2 of the grid.
    scale = size / SIZE
    hole = masked(picture(5, size), slice(int(9 * scale), int(15 * scale)), slice(int(17 * scale), int(23 * scale)))
    (given_part,) = model.codec.encode_open(Document.of(hole))
    assert isinstance(given_part, HiddenCodes)
    assert np.flatnonzero(given_part.hidden).tolist() == [6]
    done = model.infill(hole, "a fox", SETTINGS)
    given, filled = hole.resized(SIZE).pixels, done.document.images[0]
    assert filled.mask is None
    changed = (given != filled.pixels).any(axis=2)
    assert changed[8:16, 16:24].any()
    changed[8:16, 16:24] = False
    assert not changed.any()
    before = image_codes([hole], model.image)[0]
    assert np.delete(drawn[0], 6).tolist() == np.delete(before, 6).tolist()


def test_a_hidden_region_is_query_of_its_words(model: RACM3) -> None:
    hole = masked(picture(5), slice(8, 16), slice(8, 16))
    by_words, by_both = (
        [hit.id for hit in model.complete([Document.of("a fox in the snow", part)], SETTINGS)[0].sources]
        for part in (Hole("image"), hole)
    )
    assert by_both == by_words
    assert query_of(Document.of(hole)) == Document.of(hole)
    assert query_of(Document.of("a fox", picture(5))) == Document.of("a fox", picture(5))


def test_a_picture_all_hidden_is_drawn_anew(model: RACM3) -> None:
    done = model.infill(masked(picture(5), slice(None), slice(None)), settings=SETTINGS)
    assert done.document.images[0].mask is None


def test_every_task_is_a_use_of_complete(model: RACM3) -> None:
    (expected,) = model.complete([EVERY_KIND["caption to image"]], SETTINGS)
    assert same(model.generate_image("a fox in the snow", SETTINGS), expected)
    (expected,) = model.complete([EVERY_KIND["image to caption"]], SETTINGS)
    assert same(model.caption(picture(7), SETTINGS), expected)
    for name, text in (("region", "a fox"), ("region without words", None)):
        (expected,) = model.complete([EVERY_KIND[name]], SETTINGS)
        hole = masked(picture(8), slice(8, 24), slice(0, 16))
        assert same(model.infill(hole, text, SETTINGS), expected)


def test_the_same_seed_gives_the_same_whoever_else_is_in_the_batch(model: RACM3) -> None:
    documents = list(EVERY_KIND.values())
    together = model.complete(documents, SETTINGS)
    again = model.complete(documents, SETTINGS)
    for number, (document, one, two) in enumerate(zip(documents, together, again, strict=True)):
        (alone,) = model.complete([document], replace(SETTINGS, seed=SETTINGS.seed + number))
        assert one.seed == alone.seed == number
        assert same(one, two)
        assert same(one, alone)
    other = model.complete(documents, replace(SETTINGS, seed=100))
    assert not any(same(one, two) for one, two in zip(together, other, strict=True))


def spied(model: RACM3, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Answer, Text | Image]]:
    """What is to be chosen from, as it comes."""
    seen: list[tuple[Answer, Text | Image]] = []
    best = model._best

    def spy(document: Document, answers: list[Answer], parts: list[Text | Image]) -> int:
        seen.extend(zip(answers, parts, strict=True))
        return best(document, answers, parts)

    monkeypatch.setattr(model, "_best", spy)
    return seen


def test_the_best_of_several_pictures_fits_the_words_best(model: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(model, monkeypatch)
    for document in (EVERY_KIND["caption to image"], EVERY_KIND["image among images"]):
        seen.clear()
        (done,) = model.complete([document], replace(SETTINGS, samples=5))
        pictures = [part for _, part in seen if isinstance(part, Image)]
        assert len({image.png() for image in pictures}) == 5
        words = model.encoder.embed_texts([document.text or ""])[0]
        best = int((model.encoder.embed_images(pictures) @ words).argmax())
        assert done.document.parts[document.holes[0]] == pictures[best]
        assert done.answers == (seen[best][0],)


def test_the_best_of_several_texts_has_the_lowest_perplexity(model: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(model, monkeypatch)
    done = model.caption(picture(7), replace(SETTINGS, samples=4))
    scores = [answer.log_probability / answer.steps for answer, _ in seen]
    assert len(set(scores)) == 4
    assert done.score == max(scores)
    seen.clear()
    model.caption(picture(7), replace(SETTINGS, samples=4, text=Sampling(temperature=0)))
    assert len(seen) == 1  # all are the same


def test_parts_are_generated_one_after_the_other(model: RACM3) -> None:
    """Each as a request of its own, in which what was generated before it is given."""
    asked = Document.of("a fox", Hole("image"), "at night", Hole("text"))
    (done,) = model.complete([asked], SETTINGS)
    assert [answer.part for answer in done.answers] == [1, 3]
    first, second = (answer.prompts[0] for answer in done.answers)
    codes = [id for id in first.ids if model.markup.vocabulary.is_image(id)]
    drawn = [id for id in second.ids if model.markup.vocabulary.is_image(id)]
    assert drawn == [*codes, *done.answers[0].spans[0]]  # as generated, not as encoded again


def test_words_hidden_in_a_text_are_infilled(model: RACM3) -> None:
    hidden = Text("a red fox in the snow", hidden=(2, 9))
    done = model.infill(hidden, settings=SETTINGS)
    (text,) = done.document.parts
    assert isinstance(text, Text)
    assert text.hidden is None
    assert text.text.startswith("a")
    assert text.text.endswith(" in the snow")
    prompt = done.answers[0].prompts[0]
    assert model.text.decode([i - 38 for i in prompt.ids if model.markup.vocabulary.is_text(i)]).endswith(
        "a in the snow"
    )
    beside = model.complete([Document.of(hidden, picture(7))], SETTINGS)[0]
    assert beside.document.images == (picture(7),)


def test_a_region_of_more_gaps_than_there_are_masks(model: RACM3) -> None:
    """A chequerboard of 8 gaps, twice, and a hole: 17."""
    board = np.indices((4, 4)).sum(0) % 2 == 0
    mask = board.repeat(8, 0).repeat(8, 1)
    asked = Document.of(Image(picture(1).pixels, mask), Image(picture(2).pixels, mask), Hole("image"))
    (done,) = model.complete([asked], SETTINGS)
    for number, answer in enumerate(done.answers[:2]):
        given, filled = asked.images[number], done.document.images[number]
        assert len(answer.generated(model.markup.vocabulary).codes) == 8
        assert (given.pixels == filled.pixels)[~mask].all()


def test_contexts_share_what_is_retrieved_and_are_averaged(model: RACM3) -> None:
    document = EVERY_KIND["caption to image"]
    settings = replace(SETTINGS, k=1, contexts=2)
    (done,) = model.complete([document], settings)
    (together,) = model.complete([document], SETTINGS)
    assert [hit.id for hit in done.sources] == [hit.id for hit in together.sources]
    first, second = done.answers[0].prompts
    contexts = [model.complete([document], SETTINGS, retrieved=[[hit.document]])[0] for hit in done.sources]
    assert [first.ids, second.ids] == [one.answers[0].prompts[0].ids for one in contexts]
    assert not same(done, together)
    twice = [[contexts[0].sources[0].document] * 2]
    assert same(model.complete([document], settings, retrieved=twice)[0], contexts[0])
    (part,) = done.attribution
    assert part.attribution.gains.shape == (CODES, 2)
    (more,) = model.complete([document], replace(SETTINGS, contexts=9), retrieved=twice)  # than documents
    assert same(more, contexts[0])


# Streams


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_stream_ends_with_what_complete_gives(model: RACM3, name: str) -> None:
    *partials, last = model.stream(EVERY_KIND[name], SETTINGS)
    (expected,) = model.complete([EVERY_KIND[name]], SETTINGS)
    assert last.completion is not None
    assert same(last.completion, expected)
    assert all(partial.completion is None for partial in partials)
    assert list(dict.fromkeys(partial.part for partial in partials)) == list(EVERY_KIND[name].holes)


@pytest.mark.parametrize("drafts", [False, True])
def test_a_picture_comes_row_by_row(model: RACM3, drafts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a time, or where drafts were right several."""
    monkeypatch.setattr(model.engine, "drafts", drafts)
    *partials, last = model.stream(EVERY_KIND["caption to image"], SETTINGS)
    pictures = [partial.content for partial in partials]
    grey = [(picture.pixels == 128).all(axis=(1, 2)).sum() for picture in pictures]  # type: ignore[union-attr]
    assert grey == sorted(set(grey) & {24, 16, 8, 0} if drafts else {24, 16, 8, 0}, reverse=True)
    assert grey[-1] == 0
    assert pictures[-1] == last.content


def test_a_text_comes_word_by_word(model: RACM3) -> None:
    *partials, last = model.stream(EVERY_KIND["image to caption"], SETTINGS)
    texts = [partial.content.text for partial in partials if isinstance(partial.content, Text)]
    assert last.content == Text(texts[-1])
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts) if earlier != "(nothing)")


def test_a_closed_stream_leaves_the_engine_idle(model: RACM3) -> None:
    stream = model.stream(EVERY_KIND["caption to image"], SETTINGS)
    next(stream)
    stream.close()
    assert model.engine.step() == []
    with pytest.raises(ConfigError, match="a stream shows one sample"):
        next(model.stream(EVERY_KIND["caption to image"], replace(SETTINGS, samples=2)))


# Attribution


def test_every_generated_code_and_word_is_attributed_to_the_sources(model: RACM3) -> None:
    done = model.complete([EVERY_KIND["everything"]], SETTINGS)[0]
    text, region, whole = done.attribution
    assert [part.part for part in done.attribution] == [0, 1, 3]
    first = done.document.parts[0]
    assert isinstance(first, Text)
    assert " ".join(word for word, _ in text.words).split() == first.text.split()
    assert sum(gains for _, gains in text.words) == pytest.approx(text.attribution.gains.sum(axis=0))
    assert (region.cells, whole.cells) == ((0,), tuple(range(CODES)))
    for part in (region, whole):
        assert part.attribution.gains.shape == (len(part.cells), 2)
        assert part.overlay is not None
    assert done.attribution is done.attribution  # computed once


def test_gains_of_a_region_are_those_of_its_own_codes(model: RACM3) -> None:
    """Two rows of two codes: the sentinel between them is left out."""
    done = model.infill(masked(picture(8), slice(8, 24), slice(0, 16)), "a fox", SETTINGS)
    (part,) = done.attribution
    assert part.cells == (4, 5, 8, 9)
    prompt, (one, two) = done.answers[0].prompts[0], done.answers[0].spans
    documents = [
        model.markup.to_ids(d) for d in token_documents([h.document for h in done.sources], model.text, model.image)
    ]
    found = attribute(model.engine, documents, prompt.ids, [*one, model.markup.vocabulary.infill(1), *two])
    assert part.attribution.gains == pytest.approx(np.delete(found.gains, 2, axis=0), abs=1e-5)


def test_without_sources_nothing_is_attributed(model: RACM3) -> None:
    (part,) = model.generate_image("a fox", replace(SETTINGS, k=0)).attribution
    assert part.attribution.gains.shape == (CODES, 0)
    assert part.overlay is None


def test_an_edit_reads_the_control_as_a_retrieved_document(model: RACM3) -> None:
    hole, control = masked(picture(8), slice(8, 24), slice(0, 16)), picture(9)
    (expected,) = model.complete([Document.of("a fox", hole)], SETTINGS, retrieved=[[Document.of("an owl", control)]])
    assert same(model.edit(hole, Document.of("an owl", control), "a fox", SETTINGS), expected)
    assert not same(model.edit(hole, control, "a fox", SETTINGS), expected)


# Classification


def one_shot(model: RACM3, image: Image, context: list[tuple[str, Image]]) -> dict[str, float]:
    """The same with one forward pass a label, written out."""
    v = model.markup.vocabulary
    before = [id for label, shown in context for id in model.markup.to_ids(model_ids(model, label, shown))]
    codes = [v.image_start + int(code) for code in image_codes([image], model.image)[0]]
    prompt = [*before, v.doc, v.text, v.mask(0), v.image, *codes, v.end, v.infill(0)]
    likelihood = {}
    for label, _ in context:
        ids = [*prompt, *(v.text_start + id for id in model.text.encode(label)), v.eos]
        with torch.inference_mode():
            logits = model.generator.logits(model.generator(torch.tensor([ids])))[0].log_softmax(-1)
        likelihood[label] = math.exp(sum(float(logits[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
    return {label: value / sum(likelihood.values()) for label, value in likelihood.items()}


def model_ids(model: RACM3, label: str, image: Image) -> TokenDocument:
    return token_documents([Document.of(label, image)], model.text, model.image)[0]


def test_one_shot_classification_compares_the_probabilities_of_the_labels(model: RACM3) -> None:
    x, y, asked = picture(1), picture(2), [picture(3), picture(4)]
    found = model.classify(asked, {"animal X": [x], "animal Y": [y]}, by="label")
    for image, shares in zip(asked, found, strict=True):
        assert shares == pytest.approx(one_shot(model, image, [("animal Y", y), ("animal X", x)]), abs=1e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_more_shots_and_more_labels_are_averaged_over_contexts(model: RACM3) -> None:
    examples = {label: [picture(i), picture(i + 10)] for i, label in enumerate(("X", "Y", "Zed"))}
    (found,) = model.classify([picture(30)], examples, by="label")
    expected = dict.fromkeys(examples, 0.0)
    for a, b in (("X", "Y"), ("X", "Zed"), ("Y", "Zed")):
        for shot, labels in enumerate(((b, a), (a, b))):
            shares = one_shot(model, picture(30), [(label, examples[label][shot]) for label in labels])
            for label, share in shares.items():
                expected[label] += share / 6
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(found.values()) == pytest.approx(1)


def test_by_picture_the_label_is_that_whose_example_makes_the_picture_most_probable(model: RACM3) -> None:
    v, asked = model.markup.vocabulary, [picture(30), picture(31)]
    examples = {label: [picture(i), picture(i + 10)] for i, label in enumerate(("X", "Y", "Zed"))}
    found = model.classify(asked, examples)
    for image, shares in zip(asked, found, strict=True):
        codes = [v.image_start + int(code) for code in image_codes([image], model.image)[0]]
        expected = dict.fromkeys(examples, 0.0)
        for shot in range(2):
            likelihood = {}
            for label, shown in examples.items():
                own = model.markup.to_ids(model_ids(model, label, shown[shot]))
                words = [v.text_start + id for id in model.text.encode(label)]
                ids = [*own, v.doc, v.text, *words, v.image, *codes]
                with torch.inference_mode():
                    logits = model.generator.logits(model.generator(torch.tensor([ids])))[0].log_softmax(-1)
                likelihood[label] = sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - len(codes), len(ids)))
            for label, value in likelihood.items():
                expected[label] += 0.5 / sum(math.exp(other - value) for other in likelihood.values())
        assert shares == pytest.approx(expected, abs=1e-4)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_examples_that_do_not_do(model: RACM3) -> None:
    assert model.classify([], {"X": [picture(1)], "Y": [picture(2)]}) == []
    for examples in ({"X": [picture(1)]}, {"X": [picture(1)], "Y": []}, {"X": [picture(1)], "Y": [picture(2)] * 2}):
        with pytest.raises(InputError, match="give two labels or more"):
            model.classify([picture(3)], examples)


# Sources


def test_sources_are_what_the_retriever_finds(model: RACM3) -> None:
    assert model.memory is not None
    document = EVERY_KIND["caption to image"]
    (expected,) = Retriever(model.memory, model.encoder).retrieve([document], k=2)
    (done,) = model.complete([document], SETTINGS)
    assert [(hit.id, hit.document) for hit in done.sources] == [(hit.id, hit.document) for hit in expected]
    assert [hit.score for hit in done.sources] == pytest.approx([hit.score for hit in expected])
    assert [hit.origin for hit in done.sources] == ["test", "test"]


def test_a_retriever_of_ones_own(model: RACM3) -> None:
    """It is asked for all requests together, and replaces the one of the memory."""
    asked: list[tuple[list[Document], int]] = []

    class Newest:
        def retrieve(self, queries: Sequence[Document], k: int) -> list[list[Hit]]:
            asked.append((list(queries), k))
            return [[Hit(f"new-{i}", 0.5, Document.of("a boat", picture(i)), {}, "own") for i in range(k)]] * len(
                queries
            )

    own = RACM3(model.generator, model.text, model.image, model.markup, model.encoder, model.memory, Newest())
    documents = [EVERY_KIND["caption to image"], EVERY_KIND["image to caption"]]
    for done in own.complete(documents, SETTINGS):
        assert [hit.id for hit in done.sources] == ["new-0", "new-1"]
    assert asked == [(documents, 2)]
    by_hand = [[Document.of("a boat", picture(i)) for i in range(2)]]
    assert same(own.complete(documents[:1], SETTINGS)[0], model.complete(documents[:1], SETTINGS, retrieved=by_hand)[0])
    found = own.complete(documents[:1], SETTINGS, memory=model.memory)[0]  # a memory given goes before it
    assert same(found, model.complete(documents[:1], SETTINGS)[0])


def test_documents_given_by_hand_are_read_as_retrieved_ones(model: RACM3) -> None:
    (found,) = model.complete([EVERY_KIND["caption to image"]], SETTINGS)
    by_hand = [[hit.document for hit in found.sources]]
    (given,) = model.complete([EVERY_KIND["caption to image"]], SETTINGS, retrieved=by_hand)
    assert same(given, found)
    assert [hit.origin for hit in given.sources] == ["given by hand"] * 2
    (others,) = model.complete([EVERY_KIND["caption to image"]], SETTINGS, retrieved=[by_hand[0][:1]])
    assert not same(others, found)


@pytest.mark.parametrize("hole", ["image", "text"])
@pytest.mark.parametrize("contexts", [1, 2])
def test_context_aware_decoding_moves_away_from_no_context(model: RACM3, hole: Modality, contexts: int) -> None:
    usual, greedy = replace(SETTINGS, contexts=contexts), Sampling(temperature=0)
    plain, aware = (
        replace(usual, image=sampling, text=sampling) for sampling in (greedy, replace(greedy, context_aware=4.0))
    )
    asked = [Document.of(caption, Hole(hole)) for caption in CAPTIONS]
    for document, done in zip(asked, model.complete(asked, aware), strict=True):
        documents = token_documents([hit.document for hit in done.sources], model.text, model.image)
        (main,) = model.start([Request(document, plain, ())])
        prompt = partial(build_prompt, main=main.parts, markup=model.markup, max_text_tokens=usual.max_text_tokens)
        first, *others = (prompt(documents[i::contexts]) for i in range(contexts))
        constraint = answer_constraint(first.spans, model.markup.vocabulary)
        request = SequenceRequest(
            first.ids,
            constraint,
            aware.text,
            others=[Context(one.ids) for one in others],
            without_context=prompt([]).ids,
        )
        assert model.engine.run([request])[0].spans == done.answers[0].spans
    changed = zip(model.complete(asked, plain), model.complete(asked, aware), strict=True)
    assert any(one.document != other.document for one, other in changed)
    nothing = zip(*(model.complete(asked, replace(one, k=0)) for one in (plain, aware)), strict=True)
    assert all(one.document == other.document for one, other in nothing)


def test_without_retrieval(models: Path, model: RACM3) -> None:
    document = EVERY_KIND["caption to image"]
    (none,) = model.complete([document], replace(SETTINGS, k=0))
    (by_hand,) = model.complete([document], SETTINGS, retrieved=[[]])
    (without_memory,) = RACM3.from_pretrained(models).complete([document], SETTINGS)
    assert none.sources == by_hand.sources == without_memory.sources == ()
    assert same(none, by_hand)
    assert same(none, without_memory)


def test_the_vanilla_model_is_another(models: Path, model: RACM3) -> None:
    vanilla = RACM3.from_pretrained(models, generator="vanilla")
    one = vanilla.generate_image("a fox in the snow", SETTINGS)
    assert one.sources == ()
    assert not same(one, model.generate_image("a fox in the snow", replace(SETTINGS, k=0)))


def test_no_documents_give_no_completions(model: RACM3) -> None:
    assert model.complete([], SETTINGS) == []


# Errors


def test_documents_that_cannot_be_completed(model: RACM3, models: Path) -> None:
    seen = picture(5)
    for call, message in (
        (lambda: model.complete([EVERY_KIND["region"], Document.of("a fox")]), "document 1 has no hole"),
        (lambda: model.complete([Document.of(masked(seen, slice(0), slice(0)))]), "nothing of a picture is hidden"),
        (lambda: model.infill(seen), "infill needs a part that hides something"),
        (lambda: model.infill(masked(picture(5, 48).resized(64), slice(0), slice(0))), "its mask is empty"),
        (lambda: model.complete([Document.of(Hole("image"))]), "holes only"),
        (lambda: model.generate_image(" "), "the text is empty"),
        (lambda: model.generate_image("a fox", retrieved=[]), "1 documents, but 0 lists"),
        (lambda: model.generate_image("a fox", retrieved=[[EVERY_KIND["region"]]]), "fill them first"),
    ):
        with pytest.raises(DocumentError, match=message):
            call()


def test_a_prompt_that_is_too_long(model: RACM3) -> None:
    with pytest.raises(PromptTooLongError, match=f"exceed the generator's context of {CONTEXT}"):
        model.generate_image("a fox " * CONTEXT, SETTINGS)
    shown = [Document.of(picture(i)) for i in range(10)]
    with pytest.raises(PromptTooLongError, match="retrieve fewer documents"):
        model.generate_image("a fox", SETTINGS, retrieved=[shown])


def test_an_empty_memory(models: Path, model: RACM3, tmp_path: Path) -> None:
    empty = Memory.create(tmp_path / "m", model.encoder.fingerprint, model.encoder.dimension)
    with pytest.raises(MemoryStoreError, match="the memory is empty"):
        model.generate_image("a fox", SETTINGS, memory=empty)
    model.generate_image("a fox", replace(SETTINGS, k=0), memory=empty)


def test_a_memory_made_by_another_encoder(models: Path, model: RACM3, tmp_path: Path) -> None:
    other = new_encoder(models, 2)
    path = tmp_path / "m"
    memory = Memory.create(path, other.fingerprint, other.dimension)
    memory.add([Item("one", Document.of("a fox"), {}, "test")], other.embed([Document.of("a fox")]))
    for given in (path, memory):
        with pytest.raises(EncoderMismatchError, match="was made by encoder"):
            RACM3.from_pretrained(models, memory=given)
    with pytest.raises(EncoderMismatchError, match="was made by encoder"):
        model.generate_image("a fox", SETTINGS, memory=memory)


@pytest.mark.parametrize("fields", [{"k": -1}, {"samples": 0}, {"max_text_tokens": 0}, {"seed": -1}])
def test_settings_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"settings.{next(iter(fields))} is -?\d; it must be"):
        Settings(**fields)  # type: ignore[arg-type]


def test_model_folders_that_are_none(models: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, str, type[RACM3Error], str]] = [
        (tmp_path / "none", "generator", CheckpointError, "there is no model folder"),
        (models, "genrator", CheckpointError, "there is no racm3.json in it"),
    ]
    for folder, generator, error, message in cases:
        with pytest.raises(error, match=message):
            RACM3.from_pretrained(folder, generator=generator)
    with pytest.raises(MemoryStoreError, match="does not exist"):
        RACM3.from_pretrained(models, memory=tmp_path / "none")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"text_size": 0, "image_size": 16, "codes_per_image": 16}'])
def test_a_damaged_generator_folder(models: Path, content: str) -> None:
    folder = models / "broken"
    folder.mkdir(exist_ok=True)
    (folder / "racm3.json").write_text(content)
    with pytest.raises(CheckpointError, match="racm3.json is damaged"):
        RACM3.from_pretrained(models, generator="broken")


def test_tokenizers_of_another_generator(model: RACM3) -> None:
    image = FSQImageTokenizer(FSQConfig(image_size_px=SIZE, patch_px=16, levels=(4, 4)))
    with pytest.raises(CheckpointError, match=r"trained with .* 16, 16\), but the tokenizers have .* 16, 4\)"):
        RACM3(model.generator, model.text, image, model.markup, model.encoder)
    vocabulary = Vocabulary(model.text.size + 1, 15)
    with pytest.raises(CheckpointError, match="give those it was trained with"):
        RACM3(model.generator, model.text, model.image, Markup(vocabulary, CODES), model.encoder)
