"""RACM3: retrieve, then generate. The whole system behind one operation, ``complete``; every task is a use of it.

A picture for a caption, and the documents it was made from:

    model = RACM3.from_pretrained("scenes", memory="out/memory")
    done = model.generate_image("a fox in the snow")
    done.document.images[0].pil.save("fox.png")
    for source in done.sources:
        print(source.id, source.score, source.document.text)

A request goes through it from top to bottom: ``start`` retrieves and encodes; then, for each part to be generated, a
prompt is written, the engine samples the answers, and the codec decodes the best of them into the document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from racm3 import classification, tasks
from racm3.attribution import PartAttribution, attribute_answer
from racm3.classification import By
from racm3.completion import BY_HAND, Completion, Partial, Request
from racm3.document import Document, Image, Part, Text
from racm3.errors import CheckpointError, ConfigError, DocumentError, MemoryStoreError
from racm3.generator.engine import Context, Engine, SequenceOutput, SequenceRequest
from racm3.generator.model import Generator
from racm3.generator.prompt import Answer, Prompt, answer_constraint, build_prompt, split
from racm3.generator.sequence import RunningSequence
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.retriever.choosing import strategy_for
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Hit, Retriever
from racm3.settings import USUAL, Settings
from racm3.tokens.codec import Codec
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.parts import OpenPart, TokenDocument
from racm3.tokens.text_tokenizer import TextTokenizer

__all__ = ["RACM3", "Completion", "DocumentRetriever", "Partial", "Progress", "Request", "Settings"]


class DocumentRetriever(Protocol):
    """What finds the documents to read; by default a ``Retriever`` of the memory and the encoder."""

    def retrieve(self, queries: Sequence[Document], k: int) -> list[list[Hit]]:
        """Up to ``k`` hits for each query, best first."""


@dataclass
class Progress:
    """A request on its way: ``document`` with what is filled so far, ``parts`` the same as ids and codes."""

    request: Request
    document: Document
    parts: list[OpenPart]
    sources: list[Hit]
    contexts: list[Sequence[TokenDocument]]
    answers: list[Answer] = field(default_factory=list)


class RACM3:
    """A generator with its tokenizers, an encoder, and a memory that can be changed at any time.

    ``retriever``: what finds the documents to read, instead of the default one over ``memory``, which chooses by the
    ``strategy`` of that name, or MODULE:NAME (racm3/retriever/choosing.py; by default the paper's).
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
        retriever: DocumentRetriever | None = None,
        strategy: str | None = None,
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
        self.codec = Codec(text, image)
        self.memory, self.retriever, self.strategy = memory, retriever, strategy_for(encoder, strategy)
        if memory is not None:
            memory.check_encoder(encoder.fingerprint)

    @classmethod
    def from_pretrained(
        cls,
        models: str | Path = "scenes",
        memory: Memory | str | Path | None = None,
        generator: str = "generator",
        strategy: str | None = None,
    ) -> RACM3:
        """Open a folder that holds ``image-tokenizer``, ``encoder`` and a generator; "scenes" is the shipped one.

        ``generator`` is the name of the generator's folder in it ("vanilla": the shipped model without retrieval).
        Raises CheckpointError, MemoryStoreError or EncoderMismatchError, ConfigError for an unknown ``strategy``.
        """
        folder = ModelFolder.open(models, generator)
        markup, encoder = folder.markup, folder.encoder()
        if isinstance(memory, (str, Path)):
            memory = Memory.open(memory, encoder.fingerprint)
        models_ = folder.generator(), folder.text(), folder.image_tokenizer()
        return cls(*models_, markup, encoder, memory, strategy=strategy)

    # One operation ---------------------------------------------------------------------------------------------------

    def complete(
        self,
        documents: Sequence[Document],
        settings: Settings = USUAL,
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
        requests = [
            Request(document, replace(settings, seed=settings.seed + number), own)
            for number, (document, own) in enumerate(zip(documents, given, strict=True))
        ]
        return self.answer(requests, memory, on_step)

    def answer(
        self,
        requests: Sequence[Request],
        memory: Memory | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """``complete`` for requests that each have settings of their own."""
        started = self.start(requests, memory)
        while unfinished := [progress for progress in started if progress.document.holes]:
            asked = [self._ask(progress) for progress in unfinished]
            outputs = iter(self.engine.run([one for _, wanted in asked for one in wanted], on_step=on_step))
            for progress, (prompts, wanted) in zip(unfinished, asked, strict=True):
                self._fill(progress, prompts, [next(outputs) for _ in wanted])
        return [self._completion(progress) for progress in started]

    def stream(
        self,
        document: Document,
        settings: Settings = USUAL,
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
        (progress,) = self.start([Request(document, settings, retrieved)], memory)
        for now in self.advance(progress):
            if now is None:
                self.engine.step()
            else:
                yield now

    # Its steps -------------------------------------------------------------------------------------------------------

    def start(self, requests: Sequence[Request], memory: Memory | None = None) -> list[Progress]:
        """Retrieve for all requests together, and encode; ``advance`` does the rest. Errors as in ``complete``."""
        for number, request in enumerate(requests):
            if not request.document.holes:
                raise DocumentError(f"document {number} has no hole; give it a Hole, or a part that is partly hidden")
        parts = [self.codec.encode_open(request.document) for request in requests]
        started = []
        for request, own, hits in zip(requests, parts, self._retrieve(requests, memory), strict=True):
            documents = self.codec.encode([hit.document for hit in hits])
            contexts = split(documents, request.settings.contexts)
            started.append(Progress(request, request.document, own, hits, contexts))
        return started

    def _retrieve(self, requests: Sequence[Request], memory: Memory | None) -> list[list[Hit]]:
        """The documents that each request reads: as many as k times its contexts, or those given with it."""
        found = [
            [Hit(f"given-{i}", 1.0, document, {}, BY_HAND) for i, document in enumerate(request.retrieved or ())]
            for request in requests
        ]
        asking = [i for i, one in enumerate(requests) if one.retrieved is None and one.settings.k]
        retriever = self._retriever(memory) if asking else None
        if retriever is not None:
            counts = [requests[i].settings.k * requests[i].settings.contexts for i in asking]
            queries = [query_of(requests[i].document) for i in asking]
            for i, count, hits in zip(asking, counts, retriever.retrieve(queries, max(counts)), strict=True):
                found[i] = hits[:count]
        return found

    def _retriever(self, memory: Memory | None) -> DocumentRetriever | None:
        if memory is None and self.retriever is not None:
            return self.retriever
        memory = self.memory if memory is None else memory
        if memory is None:
            return None
        if len(memory) == 0:
            raise MemoryStoreError("the memory is empty; add documents to it, or use k=0 to generate without it")
        return Retriever(memory, self.encoder, self.strategy)

    def advance(self, progress: Progress, show: bool = True) -> Iterator[Partial | None]:
        """``stream`` for whoever steps the engine, for many requests at once: after a None it is to make a step.

        Without ``show``, and where there are several samples, the completion alone comes. Closing the iterator cancels.
        """
        while progress.document.holes:
            prompts, wanted = self._ask(progress)
            sequences: list[RunningSequence] = []
            shown = 0
            try:
                sequences += [self.engine.submit(one) for one in wanted]
                while not all(sequence.done for sequence in sequences):
                    yield None
                    if not show or len(sequences) > 1:
                        continue
                    made = Answer(prompts, sequences[0].output.spans, 0.0, 0).generated(self.markup.vocabulary)
                    part = prompts[0].part
                    if (now := self.codec.presentable(made)) > shown:
                        shown = now
                        before, given = progress.document.parts[part], progress.parts[part]
                        yield Partial(part, partial(self.codec.decode, before, given, made))
            finally:
                for sequence in sequences:
                    sequence.cancel()
            self._fill(progress, prompts, [sequence.output for sequence in sequences])
        done = self._completion(progress)
        last = done.answers[-1].part
        yield Partial(last, lambda: done.document.parts[last], done)

    def _ask(self, progress: Progress) -> tuple[tuple[Prompt, ...], list[SequenceRequest]]:
        """What to ask the engine for the next open part: the prompt of each context, and a request for each sample."""
        settings = progress.request.settings
        prompt = partial(
            build_prompt, main=progress.parts, markup=self.markup, max_text_tokens=settings.max_text_tokens
        )
        prompts = tuple(prompt(context) for context in progress.contexts)
        part = prompts[0].part
        sampling = settings.image if prompts[0].modality == "image" else settings.text
        samples = settings.samples if sampling.temperature else 1
        constraint = answer_constraint(prompts[0].spans, self.markup.vocabulary)
        first, *others = (Context(p.ids, p.unconditional if sampling.unconditional else None) for p in prompts)
        row = (
            self.codec.image.grid[1]
            if [span.count for span in prompts[0].spans] == [self.markup.codes_per_image]
            else None
        )
        without_context = None
        if sampling.context_aware != 1 and any(progress.contexts):  # else nothing is read beside the main document
            without_context = prompt(()).ids
        seeds = np.random.SeedSequence([settings.seed, part]).generate_state(samples).tolist()
        return prompts, [
            SequenceRequest(
                first.prompt, constraint, sampling, seed, first.unconditional, tuple(others), without_context, row
            )
            for seed in seeds
        ]

    def _fill(self, progress: Progress, prompts: tuple[Prompt, ...], outputs: Sequence[SequenceOutput]) -> None:
        """Fill the part that was asked for with the best of the outputs."""
        number = prompts[0].part
        part, given = progress.document.parts[number], progress.parts[number]
        answers = [Answer(prompts, output.spans, output.log_probability, output.steps) for output in outputs]
        made = [answer.generated(self.markup.vocabulary) for answer in answers]
        decoded = [self.codec.decode(part, given, one) for one in made]
        best = self._best(progress.document, answers, decoded)
        progress.document = progress.document.filled({number: decoded[best]})
        progress.parts[number] = self.codec.complete(given, made[best])
        progress.answers.append(answers[best])

    def _best(self, document: Document, answers: Sequence[Answer], parts: Sequence[Part]) -> int:
        """Which of the answers to keep: the picture nearest to the words, if there are any, or else the likeliest."""
        pictures = [part for part in parts if isinstance(part, Image)]
        if len(answers) == 1:
            return 0
        if pictures and document.text:
            scores = self.encoder.embed_images(pictures) @ self.encoder.embed_texts([document.text])[0]
            return int(scores.argmax())
        return int(np.argmax([answer.log_probability / answer.steps for answer in answers]))

    def _completion(self, progress: Progress) -> Completion:
        return Completion(progress.document, tuple(progress.sources), progress.request, tuple(progress.answers), self)

    # Tasks -----------------------------------------------------------------------------------------------------------

    def run(self, task: str, *inputs: Any, settings: Settings | None = None, **options: Any) -> Completion:
        """Do a task of ``racm3/tasks.py``, or another package's; ``inputs`` and ``options`` are those of the task."""
        request = tasks.TASKS.get(task)(*inputs, **options)
        return self.answer([request if settings is None else replace(request, settings=settings)])[0]

    def generate_image(self, caption: str, settings: Settings = USUAL, **given: Any) -> Completion:
        """Caption -> image. Keyword arguments are those of ``complete``."""
        return self.complete([tasks.generate_image(caption).document], settings, **given)[0]

    def caption(self, image: Image, settings: Settings = USUAL, **given: Any) -> Completion:
        """Image -> caption: the text is infilled before the picture."""
        return self.complete([tasks.caption(image).document], settings, **given)[0]

    def infill(
        self, part: Image | Text, text: str | None = None, settings: Settings = USUAL, **given: Any
    ) -> Completion:
        """Fill what is hidden of a picture (its mask) or of a text; the words ``text`` before it guide, if given."""
        return self.complete([tasks.infill(part, text).document], settings, **given)[0]

    def edit(
        self,
        image: Image,
        control: Image | Document,
        text: str | None = None,
        settings: Settings = USUAL,
        **given: Any,
    ) -> Completion:
        """Fill the hidden region of ``image`` after ``control``, a picture or a document with one, which is read as if
        it had been retrieved: what it shows is what the region becomes."""
        request = tasks.edit(image, control, text)
        return self.complete([request.document], settings, retrieved=[request.retrieved or ()], **given)[0]

    def classify(
        self, images: Sequence[Image], examples: Mapping[str, Sequence[Image]], by: By = "picture"
    ) -> list[dict[str, float]]:
        """How probable each label is for each picture, the most probable first, from examples of every label.

        One example each is one-shot classification; of more, the predictions are averaged. Labels may be any words.
        ``by``: what is predicted, the picture behind each label's example, or the label behind examples of two, as in
        the paper: see racm3/classification.py.
        Raises InputError if there are fewer than two labels, or not equally many examples of each.
        """
        means = self.compare(images, examples, by).mean(1).tolist()
        labelled = [zip(examples, row, strict=True) for row in means]
        return [dict(sorted(own, key=lambda item: -item[1])) for own in labelled]

    def compare(
        self, images: Sequence[Image], examples: Mapping[str, Sequence[Image]], by: By = "picture"
    ) -> np.ndarray:
        """The same for each shot by itself: (images, shots, labels), sums of 1 over the labels."""
        return classification.compare(self.engine, self.codec, self.markup, images, examples, by)

    def attribute(self, done: Completion, answer: Answer) -> PartAttribution:
        """The attribution of one generated part of a completion of this model."""
        part, sources = done.document.parts[answer.part], [hit.document for hit in done.sources]
        return attribute_answer(self.engine, self.codec, self.markup, answer, part, sources, done.settings.contexts)


def query_of(document: Document) -> Document:
    """The query of a request: the words alone where they say what the hidden region of a picture is to show, for what
    is left to see there does not; else the whole document."""
    hides = any(image.mask is not None for image in document.images)
    return (document.only("text") if hides else None) or document
