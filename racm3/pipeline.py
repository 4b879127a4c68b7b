"""RACM3: retrieve, then generate. The whole system behind one operation, ``complete``, and its thin daughters.

A picture for a caption, and the documents it was made from:

    model = RACM3.from_pretrained("scenes", memory="out/memory")
    done = model.generate_image("a fox in the snow")
    done.document.images[0].pil.save("fox.png")
    for source in done.sources:
        print(source.id, source.score, source.document.text)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from racm3.attribution import Attribution, attribute, overlay
from racm3.classification import By, compare
from racm3.document import Document, Hole, Image, Part, Text, is_open, modality_of
from racm3.errors import CheckpointError, ConfigError, DocumentError, InputError, MemoryStoreError
from racm3.generator.decoding import Sampling
from racm3.generator.engine import Completion as EngineCompletion
from racm3.generator.engine import Context, Engine, Job, Request
from racm3.generator.model import Generator
from racm3.generator.prompt import HiddenCodes, HiddenText, OpenPart, Prompt, answer_constraint, build_prompt
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Hit, Retriever
from racm3.tokens.documents import TokenCache, image_codes, token_documents
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds, TokenDocument
from racm3.tokens.text_tokenizer import TextTokenizer

GREY = 128
"""Of a streamed picture's codes that are still to come."""

BY_HAND = "given by hand"
"""The origin of documents that were not retrieved but given."""

NOTHING = "(nothing)"
"""In place of a generated text that is blank, which no text may be."""


@dataclass(frozen=True)
class Settings:
    """How to complete. ``k`` documents are read at a time (2 at inference in the paper). With several ``contexts``, as
    many times k are retrieved, each context reads k of them, and the predictions of all are averaged at every step.
    Of ``samples`` the best is kept: images by the encoder's score of picture and words (the paper: of 10), texts by
    perplexity (the paper: of 32). At temperature 0 all samples are the same, and one is drawn. The grounding was chosen
    on scenes that no result looks at (docs/log.md)."""

    k: int = 2
    contexts: int = 1
    samples: int = 1
    image: Sampling = Sampling(temperature=0.5, top_p=0.9, grounding=1.25)
    text: Sampling = Sampling(temperature=0.0, grounding=1.25)
    max_text_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("k", 0), ("contexts", 1), ("samples", 1), ("max_text_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {least} or above")


@dataclass(frozen=True)
class Answer:
    """What was generated for one part of a document: the ``spans`` of the answer to ``prompts``, one a context.

    ``log_probability``: of all ``steps`` tokens together, in nats.
    """

    prompts: tuple[Prompt, ...]
    spans: tuple[tuple[int, ...], ...]
    log_probability: float
    steps: int

    @property
    def part(self) -> int:
        return self.prompts[0].part

    @property
    def is_text(self) -> bool:
        return bool(self.prompts[0].spans[0].stop)

    @property
    def places(self) -> list[int]:
        """The places in the picture for which the generator chooses codes, in its order."""
        return [span.start + place for span in self.prompts[0].spans for place in span.chosen]

    @property
    def chosen(self) -> dict[int, int]:
        """What it chose so far: codes, as ids of the one vocabulary, by their place in the picture."""
        spans = zip(self.prompts[0].spans, self.spans, strict=False)
        return {span.start + i: ids[i] for span, ids in spans for i in span.chosen if i < len(ids)}


@dataclass(frozen=True, eq=False)
class PartAttribution:
    """What a generated part drew on. The K documents of ``attribution`` are the completion's sources, its tokens those
    of a picture's ``cells`` (places on the grid, row by row), or of a text.

    ``words``: each word of a text and what it drew on each source, (K,) in nats. ``overlay``: a picture and its sources
    side by side, coloured by what was drawn from where; None if there is no source.
    """

    part: int
    attribution: Attribution
    cells: tuple[int, ...] = ()
    words: tuple[tuple[str, np.ndarray], ...] = ()
    overlay: PIL.Image.Image | None = None


@dataclass(frozen=True)
class Completion:
    """The document with its open parts filled, the sources it was given, and what reproduces it."""

    document: Document
    sources: tuple[Hit, ...]
    settings: Settings
    seed: int
    answers: tuple[Answer, ...]
    model: RACM3 = field(repr=False, compare=False)

    @cached_property
    def attribution(self) -> tuple[PartAttribution, ...]:
        """How much each generated code and word drew on each source, and where in it, of every generated part.

        Computed when first asked for: racm3/attribution.py says how.
        """
        return tuple(self.model.attribute(self, answer) for answer in self.answers)

    @property
    def score(self) -> float:
        """Mean log-probability of the generated tokens, in nats."""
        return sum(a.log_probability for a in self.answers) / sum(a.steps for a in self.answers)


@dataclass(frozen=True)
class Asked:
    """One document to complete. ``retrieved``: the documents to read, instead of those that the memory finds."""

    document: Document
    settings: Settings
    seed: int
    retrieved: Sequence[Document] | None = None


@dataclass(frozen=True)
class Partial:
    """How far a part of a document is. The last one of a stream has the ``completion``."""

    part: int
    make: Callable[[], Part] = field(repr=False)
    completion: Completion | None = None

    @cached_property
    def content(self) -> Part:
        """A text so far, or a picture whose codes still to come are grey; made when first asked for, in any thread."""
        return self.make()


@dataclass
class Draft:
    """A document on its way: ``document`` with what is filled so far, ``parts`` the same as ids and codes."""

    document: Document
    parts: list[OpenPart]
    sources: list[Hit]
    contexts: list[list[TokenDocument]]
    settings: Settings
    seed: int
    answers: list[Answer] = field(default_factory=list)


class RACM3:
    """A generator with its tokenizers, an encoder, and a memory that can be changed at any time.

    Raises CheckpointError if the tokenizers are not those of the generator, EncoderMismatchError if another encoder
    made the memory.
    """

    def __init__(
        self,
        generator: Generator,
        text: TextTokenizer,
        image: ImageTokenizer,
        markup: Markup,
        encoder: Encoder,
        memory: Memory | None = None,
    ) -> None:
        trained = (markup.vocabulary.text_size, markup.vocabulary.image_size, markup.codes_per_image)
        given = (text.size, image.codebook_size, math.prod(image.grid))
        if trained != given:
            raise CheckpointError(
                f"the generator was trained with (text ids, image codes, codes a picture) = {trained}, but the "
                f"tokenizers have {given}; give those it was trained with"
            )
        self.text, self.image, self.markup, self.encoder = text, image, markup, encoder
        self.generator = generator
        self.engine = Engine(generator, markup.vocabulary)
        self._tokens = TokenCache(text, image)
        self.memory = memory
        if memory is not None:
            memory.check_encoder(encoder.fingerprint)

    @classmethod
    def from_pretrained(
        cls, models: str | Path = "scenes", memory: Memory | str | Path | None = None, generator: str = "generator"
    ) -> RACM3:
        """Open a folder that holds ``image-tokenizer``, ``encoder`` and a generator; "scenes" is the shipped one.

        ``generator`` is the name of the generator's folder in it ("vanilla": the shipped model without retrieval).
        Raises CheckpointError, MemoryStoreError or EncoderMismatchError.
        """
        folder = ModelFolder.open(models, generator)
        markup, encoder = folder.markup, folder.encoder()
        if isinstance(memory, (str, Path)):
            memory = Memory.open(memory, encoder.fingerprint)
        return cls(folder.generator(), folder.text(), folder.image_tokenizer(), markup, encoder, memory)

    def complete(
        self,
        documents: Sequence[Document],
        settings: Settings = Settings(),
        *,
        memory: Memory | None = None,
        retrieved: Sequence[Sequence[Document]] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Fill the holes of every document.

        Documents are fetched from ``memory`` (default: the model's own; none if it has none or ``settings.k`` is 0),
        or given by hand as ``retrieved``, one sequence a document. Request i uses the seed ``settings.seed + i``, and
        its result does not depend on the others.
        Raises DocumentError if a document has no hole, PromptTooLongError if it does not fit the context.
        """
        if retrieved is not None and len(retrieved) != len(documents):
            raise DocumentError(
                f"{len(documents)} documents, but {len(retrieved)} lists of retrieved ones; give one a document"
            )
        given = [None] * len(documents) if retrieved is None else retrieved
        asked = [
            Asked(document, settings, settings.seed + number, own)
            for number, (document, own) in enumerate(zip(documents, given, strict=True))
        ]
        drafts = self.begin(asked, memory)
        while unfinished := [draft for draft in drafts if draft.document.holes]:
            work = [self._jobs(draft) for draft in unfinished]
            results = iter(self.engine.run([job for _, jobs in work for job in jobs], on_step=on_step))
            for draft, (prompts, jobs) in zip(unfinished, work, strict=True):
                self._accept(draft, prompts, [next(results) for _ in jobs])
        return [self._completion(draft) for draft in drafts]

    def stream(
        self,
        document: Document,
        settings: Settings = Settings(),
        *,
        memory: Memory | None = None,
        retrieved: Sequence[Document] | None = None,
    ) -> Iterator[Partial]:
        """``complete`` for one document, as it comes: each text as it grows, each picture row by row, at last the
        completion, which is the one that ``complete`` gives. Closing the iterator cancels the request.

        Raises as ``complete`` does, and ConfigError if there is more than one sample to choose from.
        """
        if settings.samples != 1:
            raise ConfigError(f"a stream shows one sample, but samples is {settings.samples}; give 1, or use complete")
        (draft,) = self.begin([Asked(document, settings, settings.seed, retrieved)], memory)
        for now in self.go_on(draft):
            if now is None:
                self.engine.step()
            else:
                yield now

    def begin(self, asked: Sequence[Asked], memory: Memory | None = None) -> list[Draft]:
        """Look up what is asked, all together; ``go_on`` does the rest. ``memory`` and errors as in ``complete``."""
        for number, one in enumerate(asked):
            if not one.document.holes:
                raise DocumentError(f"document {number} has no hole; give it a Hole, or a part that is partly hidden")
        opened = [self._open_parts(one.document) for one in asked]
        sources = self._sources(asked, self.memory if memory is None else memory)
        return [
            Draft(one.document, parts, hits, self._contexts(hits, one.settings), one.settings, one.seed)
            for one, parts, hits in zip(asked, opened, sources, strict=True)
        ]

    def go_on(self, draft: Draft, show: bool = True) -> Iterator[Partial | None]:
        """``stream`` for whoever steps the engine, for many drafts at once: after a None it is to make a step.

        Without ``show``, and where there are several samples, the completion alone comes. Closing the iterator cancels.
        """
        while draft.document.holes:
            prompts, jobs = self._jobs(draft)
            requests: list[Request] = []
            shown = 0
            try:
                requests += [self.engine.submit(job) for job in jobs]
                while not all(request.done for request in requests):
                    yield None
                    if not show or len(requests) > 1:
                        continue
                    answer = Answer(prompts, requests[0].completion.spans, 0.0, 0)
                    now = self._shown(answer)
                    if now > shown:
                        shown = now
                        yield Partial(answer.part, self._so_far(draft, answer))
            finally:
                for request in requests:
                    request.cancel()
            self._accept(draft, prompts, [request.completion for request in requests])
        done = self._completion(draft)
        part = done.answers[-1].part
        yield Partial(part, lambda: done.document.parts[part], done)

    def generate_image(self, caption: str, settings: Settings = Settings(), **given: Any) -> Completion:
        """Caption -> image. Keyword arguments are those of ``complete``."""
        return self.complete([Document.of(caption, Hole("image"))], settings, **given)[0]

    def caption(self, image: Image, settings: Settings = Settings(), **given: Any) -> Completion:
        """Image -> caption: the text is infilled before the picture."""
        return self.complete([Document.of(Hole("text"), image)], settings, **given)[0]

    def infill(
        self, part: Image | Text, text: str | None = None, settings: Settings = Settings(), **given: Any
    ) -> Completion:
        """Fill what is hidden of a picture (its mask) or of a text; the words ``text`` before it guide, if given."""
        if not is_open(part):
            raise DocumentError(
                "infill needs a part that hides something: an image with a mask, such as image.hiding((0, 0, 32, 32)), "
                "or Text(text, hidden=(start, end))"
            )
        return self.complete([Document.of(*([] if text is None else [text]), part)], settings, **given)[0]

    def edit(
        self,
        image: Image,
        control: Image | Document,
        text: str | None = None,
        settings: Settings = Settings(),
        **given: Any,
    ) -> Completion:
        """Fill the hidden region of ``image`` after ``control``, a picture or a document with one, which is read as if
        it had been retrieved: what it shows is what the region becomes."""
        shown = control if isinstance(control, Document) else Document.of(control)
        return self.infill(image, text, settings, retrieved=[[shown]], **given)

    def classify(
        self, images: Sequence[Image], examples: Mapping[str, Sequence[Image]], by: By = "picture"
    ) -> list[dict[str, float]]:
        """How probable each label is for each picture, the most probable first, from examples of every label.

        One example each is one-shot classification; of more, the predictions are averaged. Labels may be any words.
        ``by``: what is predicted, the picture behind each label's example, or the label behind examples of two, as in
        the talk: see racm3/classification.py.
        Raises InputError if there are fewer than two labels, or not equally many examples of each.
        """
        means = self.compare(images, examples, by).mean(1).tolist()
        labelled = [zip(examples, row, strict=True) for row in means]
        return [dict(sorted(own, key=lambda item: -item[1])) for own in labelled]

    def compare(
        self, images: Sequence[Image], examples: Mapping[str, Sequence[Image]], by: By = "picture"
    ) -> np.ndarray:
        """The same for each shot by itself: (images, shots, labels), sums of 1 over the labels."""
        counts = {label: len(shown) for label, shown in examples.items()}
        if len(counts) < 2 or len(set(counts.values())) != 1 or 0 in counts.values():
            raise InputError(f"give two labels or more, with equally many pictures of each, 1 or more; not {counts}")
        shown = [
            token_documents([Document.of(label, image) for image in own], self.text, self.image)
            for label, own in examples.items()
        ]
        asked = [ImageCodes(tuple(codes)) for codes in image_codes(images, self.image).tolist()] if images else []
        return compare(self.engine, self.markup, asked, shown, by)

    def attribute(self, done: Completion, answer: Answer) -> PartAttribution:
        """The attribution of one generated part of a completion of this model."""
        v, every = self.markup.vocabulary, done.settings.contexts  # source i was read in context i % every
        spans = answer.prompts[0].spans
        ids = [id_ for i, own in enumerate(answer.spans) for id_ in [*([v.infill(i)] if i else []), *own]]
        starts = np.cumsum([0, *(len(own) + 1 for own in answer.spans)]).tolist()  # of the spans in ids
        gains = np.zeros((len(ids), len(done.sources)))
        places: list[np.ndarray] = [np.zeros(0)] * len(done.sources)
        for i, context in enumerate(self._contexts(done.sources, done.settings)):
            documents = [self.markup.to_ids(document) for document in context]
            found = attribute(self.engine, documents, answer.prompts[i].ids, ids)
            gains[:, i::every] = found.gains / len(answer.prompts)
            places[i::every] = found.places
        whole = Attribution(gains, tuple(places))
        if answer.is_text:
            return PartAttribution(answer.part, whole, words=self._words(answer.spans[0], gains))
        chosen = [(starts[i] + place, span.start + place) for i, span in enumerate(spans) for place in span.chosen]
        own, cells = whole.of([token for token, _ in chosen]), tuple(cell for _, cell in chosen)
        return PartAttribution(answer.part, own, cells, overlay=self._overlay(done, answer.part, own, cells))

    def _words(self, ids: Sequence[int], gains: np.ndarray) -> tuple[tuple[str, np.ndarray], ...]:
        """Whole words, and the sums of their tokens' gains."""
        words: list[tuple[list[int], np.ndarray]] = []
        for id_, gain in zip((id_ - self.markup.vocabulary.text_start for id_ in ids), gains, strict=True):
            if words and not self.text.decode([id_])[:1].isspace():
                words[-1] = ([*words[-1][0], id_], words[-1][1] + gain)
            else:
                words.append(([id_], gain))
        return tuple((self.text.decode(word).strip(), gain) for word, gain in words)

    def _overlay(self, done: Completion, part: int, own: Attribution, cells: Sequence[int]) -> PIL.Image.Image | None:
        picture = done.document.parts[part]
        if not done.sources or not isinstance(picture, Image):
            return None
        gains = np.zeros((self.markup.codes_per_image, len(done.sources)))
        gains[list(cells)] = own.gains
        shown: list[tuple[Image | None, np.ndarray]] = []
        documents = self._tokens([hit.document for hit in done.sources])
        for hit, document, drawn in zip(done.sources, documents, own.drawn, strict=True):
            ids = self.markup.to_ids(document)
            if hit.document.images:
                first = ids.index(self.markup.vocabulary.image) + 1
                grid = drawn[first : first + self.markup.codes_per_image].reshape(self.image.grid)
                shown.append((hit.document.images[0].resized(self.image.image_size_px), grid))
            else:
                shown.append((None, np.zeros(self.image.grid)))
        return overlay(picture, gains.reshape(*self.image.grid, -1), shown)

    # The steps of complete ------------------------------------------------------------------------------------------

    def _sources(self, asked: Sequence[Asked], memory: Memory | None) -> list[list[Hit]]:
        sources = [
            [Hit(f"given-{i}", 1.0, document, {}, BY_HAND) for i, document in enumerate(one.retrieved or ())]
            for one in asked
        ]
        looking = [i for i, one in enumerate(asked) if one.retrieved is None and one.settings.k]
        if memory is None or not looking:
            return sources
        if len(memory) == 0:
            raise MemoryStoreError("the memory is empty; add documents to it, or use k=0 to generate without it")
        wanted = [asked[i].settings.k * asked[i].settings.contexts for i in looking]
        queries = [looked_up_by(asked[i].document) for i in looking]
        found = Retriever(memory, self.encoder).retrieve(queries, max(wanted))
        for i, count, hits in zip(looking, wanted, found, strict=True):
            sources[i] = hits[:count]
        return sources

    def _contexts(self, hits: Sequence[Hit], settings: Settings) -> list[list[TokenDocument]]:
        """The documents of every context; the best go to different ones, and none stays empty beside others."""
        documents = self._tokens([hit.document for hit in hits])
        return [documents[i :: settings.contexts] for i in range(min(settings.contexts, len(documents)) or 1)]

    def _open_parts(self, document: Document) -> list[OpenPart]:
        """The document as ids, codes and holes; a hidden region is snapped outward to whole codes."""
        parts: list[OpenPart] = []
        for part in document.parts:
            if isinstance(part, Hole):
                parts.append(part)
            elif isinstance(part, Text):
                before, after = (tuple(self.text.encode(side)) for side in part.around)
                parts.append(TextIds(before) if part.hidden is None else HiddenText(before, after))
            else:
                codes, hidden = tuple(image_codes([part], self.image)[0].tolist()), self.hidden_codes(part)
                if part.mask is not None and not any(hidden):
                    raise DocumentError(
                        "nothing of a picture is hidden: its mask is empty, or outside the middle square of the "
                        "picture, all that is looked at; move it"
                    )
                parts.append(ImageCodes(codes) if part.mask is None else HiddenCodes(codes, hidden))
        return parts

    def hidden_codes(self, image: Image) -> tuple[bool, ...]:
        """Which codes of the grid, row by row, a picture's mask touches."""
        rows, columns = self.image.grid
        mask = image.resized(self.image.image_size_px).mask
        if mask is None:
            return (False,) * (rows * columns)
        cells = mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns).any(axis=(1, 3))
        return tuple(bool(flag) for flag in cells.flatten())

    def _jobs(self, draft: Draft) -> tuple[tuple[Prompt, ...], list[Job]]:
        """What to ask the engine for the first open part of a draft: the prompt of each context, a job a sample."""
        settings = draft.settings
        prompts = tuple(
            build_prompt(context, draft.parts, self.markup, settings.max_text_tokens) for context in draft.contexts
        )
        part = prompts[0].part
        sampling = settings.image if modality_of(draft.document.parts[part]) == "image" else settings.text
        samples = settings.samples if sampling.temperature else 1
        constraint = answer_constraint(prompts[0].spans, self.markup.vocabulary)
        first, *others = (Context(p.ids, p.unconditional if sampling.unconditional else None) for p in prompts)
        alone = None
        if sampling.grounding != 1 and any(draft.contexts):  # behind nothing, the main document is alone as it is
            alone = build_prompt((), draft.parts, self.markup, settings.max_text_tokens).ids
        seeds = np.random.SeedSequence([draft.seed, part]).generate_state(samples).tolist()
        return prompts, [
            Job(first.prompt, constraint, sampling, seed, first.unconditional, tuple(others), alone) for seed in seeds
        ]

    def _accept(self, draft: Draft, prompts: tuple[Prompt, ...], results: Sequence[EngineCompletion]) -> None:
        """Fill the first open part of a draft with the best of the results."""
        answers = [Answer(prompts, result.spans, result.log_probability, result.steps) for result in results]
        parts = [self._filled(draft, answer) for answer in answers]
        best = self._best(draft.document, answers, [part for part, _ in parts])
        number = answers[best].part
        answered, draft.parts[number] = parts[best]
        draft.document = draft.document.filled({number: answered})
        draft.answers.append(answers[best])

    def _completion(self, draft: Draft) -> Completion:
        return Completion(draft.document, tuple(draft.sources), draft.settings, draft.seed, tuple(draft.answers), self)

    def _filled(self, draft: Draft, answer: Answer) -> tuple[Part, TextIds | ImageCodes]:
        """The part that was asked for, complete, and the same as ids or codes."""
        given = draft.parts[answer.part]
        if answer.is_text:
            ids = tuple(id_ - self.markup.vocabulary.text_start for id_ in answer.spans[0])
            before, after = (given.before, given.after) if isinstance(given, HiddenText) else ((), ())
            return self._so_far(draft, answer)(), TextIds((*before, *ids, *after))
        return self._so_far(draft, answer)(), ImageCodes(tuple(self._codes(given, answer).tolist()))

    def _so_far(self, draft: Draft, answer: Answer) -> Callable[[], Part]:
        """What makes the part that was asked for, as far as it is generated now."""
        return partial(self._content, draft.document.parts[answer.part], draft.parts[answer.part], answer)

    def _content(self, part: Part, given: OpenPart, answer: Answer) -> Part:
        """A part as far as it is generated; codes still to come are grey. ``given``: its ids and codes."""
        v = self.markup.vocabulary
        if answer.is_text:
            text = self.text.decode([id_ - v.text_start for id_ in answer.spans[0]])
            before, after = part.around if isinstance(part, Text) else ("", "")
            return Text(f"{before}{text}{after}" if f"{before}{text}{after}".strip() else NOTHING)
        picture = self.pixels(self._codes(given, answer))
        if isinstance(part, Image):
            picture = self._outside_kept(part, picture)
        if missing := answer.places[len(answer.chosen) :]:
            picture = np.where(self._cells(missing)[..., None], np.uint8(GREY), picture)
        return Image(picture)

    def _codes(self, given: OpenPart, answer: Answer) -> np.ndarray:
        """(N,) codes of the picture that was asked for, as far as they are generated."""
        codes = np.array(given.codes if isinstance(given, HiddenCodes) else [0] * self.markup.codes_per_image)
        codes[list(answer.chosen)] = [id_ - self.markup.vocabulary.image_start for id_ in answer.chosen.values()]
        return codes

    def _shown(self, answer: Answer) -> int:
        """How many ids of an unfinished answer are fit to be shown: up to whole characters and whole rows."""
        if answer.is_text:
            ids = [id_ - self.markup.vocabulary.text_start for id_ in answer.spans[0]]
            return 0 if self.text.decode(ids).endswith("\ufffd") else len(ids)
        rows = [place // self.image.grid[1] for place in answer.places]
        count = len(answer.chosen)
        return count if count == len(rows) or rows[count - 1] != rows[count] else 0

    def _cells(self, places: Sequence[int]) -> np.ndarray:
        """(H, W) bool: the pixels of the codes at these places."""
        rows, columns = self.image.grid
        cells, side = np.zeros(rows * columns, dtype=bool), self.image.image_size_px
        cells[list(places)] = True
        return cells.reshape(rows, columns).repeat(side // rows, 0).repeat(side // columns, 1)

    def pixels(self, codes: np.ndarray) -> np.ndarray:
        """(N,) codes to an (H, W, 3) uint8 picture."""
        decoded = self.image.decode(torch.from_numpy(codes)[None])[0]
        return (decoded.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    def _outside_kept(self, part: Image, picture: np.ndarray) -> np.ndarray:
        """The infilled picture with every pixel outside the hidden codes as it was given."""
        given = part.resized(self.image.image_size_px)
        hidden = self._cells(np.flatnonzero(self.hidden_codes(part)).tolist())
        return np.where(hidden[..., None], picture, given.pixels)

    def _best(self, document: Document, answers: Sequence[Answer], parts: Sequence[Part]) -> int:
        """Which of the answers to keep: the picture nearest to the words, if there are any, or else the likeliest."""
        pictures = [part for part in parts if isinstance(part, Image)]
        if len(answers) == 1:
            return 0
        if pictures and document.text:
            scores = self.encoder.embed_images(pictures) @ self.encoder.embed_texts([document.text])[0]
            return int(scores.argmax())
        return int(np.argmax([answer.log_probability / answer.steps for answer in answers]))


def looked_up_by(document: Document) -> Document:
    """The query of a request: the words alone where they say what the hidden region of a picture is to show, for what
    is left to see there does not; else the whole document."""
    hides = any(image.mask is not None for image in document.images)
    return (document.only("text") if hides else None) or document
