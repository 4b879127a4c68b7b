"""RACM3: retrieve, then generate. The whole system behind one operation, ``complete``, and its thin daughters.

A picture for a caption, and the documents it was made from:

    model = RACM3.from_pretrained("scenes", memory="out/memory")
    done = model.generate_image("a fox in the snow")
    done.document.images[0].pil.save("fox.png")
    for source in done.sources:
        print(source.id, source.score, source.document.text)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from racm3.document import Document, Hole, Image, Part, Text
from racm3.errors import CheckpointError, ConfigError, DocumentError, MemoryStoreError
from racm3.generator.decoding import Sampling
from racm3.generator.engine import Engine, Job
from racm3.generator.model import Generator
from racm3.generator.prompt import HiddenCodes, OpenPart, Prompt, answer_constraint, build_prompt
from racm3.memory.memory import Memory
from racm3.retriever.encoder import Encoder
from racm3.retriever.retriever import Hit, Retriever
from racm3.tokens.documents import image_codes, token_documents
from racm3.tokens.image import ImageTokenizer, load_image_tokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.text import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

SCENES = Path(__file__).parent / "weights" / "scenes"
"""The shipped models of the built-in world."""


@dataclass(frozen=True)
class Settings:
    """How to complete. ``k`` documents are retrieved (2 at inference in the paper); of ``samples`` the best is kept:
    images by the encoder's score of picture and words (the paper keeps the best of 10), texts by likelihood."""

    k: int = 2
    samples: int = 1
    image: Sampling = Sampling(temperature=0.7, top_p=0.9, guidance=1.5)
    text: Sampling = Sampling(temperature=0.0)
    max_text_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 0 or self.samples < 1 or self.max_text_tokens < 1 or self.seed < 0:
            raise ConfigError(f"k >= 0, samples >= 1, max_text_tokens >= 1 and seed >= 0; given {self}")


@dataclass(frozen=True)
class Completion:
    """The document with its holes filled, the sources it was given, and what reproduces it."""

    document: Document
    sources: tuple[Hit, ...]
    settings: Settings
    seed: int
    score: float
    """Mean log-probability of the generated tokens, in nats."""


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
        folder = SCENES if str(models) == "scenes" else Path(models)
        if not folder.is_dir():
            raise CheckpointError(f"there is no model folder {folder}; give a folder, or 'scenes' for the shipped one")
        path = folder / generator
        facts_file = path / "racm3.json"
        if not facts_file.exists():
            raise CheckpointError(f"{path} is not a generator folder of racm3: there is no racm3.json in it")
        try:
            facts = json.loads(facts_file.read_text(encoding="utf-8"))
            markup = Markup(Vocabulary(facts["text_size"], facts["image_size"]), facts["codes_per_image"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{facts_file} is damaged: {error}; copy or train the generator again") from error
        encoder = Encoder.from_pretrained(folder / "encoder")
        if isinstance(memory, (str, Path)):
            memory = Memory.open(memory, encoder.fingerprint)
        return cls(
            Generator.from_pretrained(path).eval(),
            TextTokenizer.load(path / "tokenizer.json"),
            load_image_tokenizer(folder / "image-tokenizer"),
            markup,
            encoder,
            memory,
        )

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
        for number, document in enumerate(documents):
            if not document.holes:
                raise DocumentError(f"document {number} has no hole; give it a Hole, or an image with a mask")
        sources = self._sources(documents, settings, memory, retrieved)
        prompts = [
            build_prompt(
                token_documents([hit.document for hit in hits], self.text, self.image) if hits else [],
                self._open_parts(document),
                self.markup,
                settings.max_text_tokens,
            )
            for document, hits in zip(documents, sources, strict=True)
        ]
        jobs: list[Job] = []
        for number, (prompt, document) in enumerate(zip(prompts, documents, strict=True)):
            sampling = settings.image if draws(document) else settings.text
            constraint = answer_constraint(prompt.spans, self.markup.vocabulary)
            unconditional = prompt.unconditional if sampling.guidance != 1 else None
            seeds = np.random.SeedSequence([settings.seed + number]).generate_state(settings.samples).tolist()
            jobs += [Job(prompt.ids, constraint, sampling, seed, unconditional) for seed in seeds]
        results = self.engine.run(jobs, on_step=on_step)
        completions = []
        for number, (document, prompt) in enumerate(zip(documents, prompts, strict=True)):
            own = results[number * settings.samples : (number + 1) * settings.samples]
            candidates = [
                (self._filled(document, prompt, result.spans), result.log_probability / result.steps) for result in own
            ]
            best, score = self._best(document, candidates)
            completions.append(Completion(best, tuple(sources[number]), settings, settings.seed + number, score))
        return completions

    def generate_image(self, caption: str, settings: Settings = Settings(), **given: Any) -> Completion:
        """Caption -> image. Keyword arguments are those of ``complete``."""
        return self.complete([Document.of(caption, Hole("image"))], settings, **given)[0]

    def caption(self, image: Image, settings: Settings = Settings(), **given: Any) -> Completion:
        """Image -> caption: the text is infilled before the picture."""
        return self.complete([Document.of(Hole("text"), image)], settings, **given)[0]

    def infill(
        self, image: Image, text: str | None = None, settings: Settings = Settings(), **given: Any
    ) -> Completion:
        """Fill the hidden region of ``image`` (its mask), optionally guided by a text."""
        if image.mask is None or not image.mask.any():
            raise DocumentError("infill needs an image with a mask that hides something; give Image(pixels, mask)")
        return self.complete([Document.of(*([text] if text else []), image)], settings, **given)[0]

    # The steps of complete ------------------------------------------------------------------------------------------

    def _sources(
        self,
        documents: Sequence[Document],
        settings: Settings,
        memory: Memory | None,
        retrieved: Sequence[Sequence[Document]] | None,
    ) -> list[list[Hit]]:
        if retrieved is not None:
            if len(retrieved) != len(documents):
                raise DocumentError(
                    f"{len(documents)} documents, but {len(retrieved)} lists of retrieved ones; give one a document"
                )
            return [[Hit(f"given-{i}", 1.0, d, {}, "given by hand") for i, d in enumerate(ds)] for ds in retrieved]
        memory = self.memory if memory is None else memory
        if memory is None or settings.k == 0:
            return [[] for _ in documents]
        if len(memory) == 0:
            raise MemoryStoreError("the memory is empty; add documents to it, or use k=0 to generate without it")
        return Retriever(memory, self.encoder).retrieve(documents, settings.k)

    def _open_parts(self, document: Document) -> list[OpenPart]:
        """The document as ids, codes and holes; a hidden region is snapped outward to whole codes."""
        parts: list[OpenPart] = []
        for part in document.parts:
            if isinstance(part, Hole):
                parts.append(part)
            elif isinstance(part, Text):
                parts.append(TextIds(tuple(self.text.encode(part.text))))
            else:
                codes = tuple(image_codes([part], self.image)[0].tolist())
                parts.append(ImageCodes(codes) if part.mask is None else HiddenCodes(codes, self.hidden_codes(part)))
        return parts

    def hidden_codes(self, image: Image) -> tuple[bool, ...]:
        """Which codes of the grid, row by row, a picture's mask touches."""
        rows, columns = self.image.grid
        mask = image.resized(self.image.image_size_px).mask
        if mask is None:
            return (False,) * (rows * columns)
        cells = mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns).any(axis=(1, 3))
        return tuple(bool(flag) for flag in cells.flatten())

    def _filled(self, document: Document, prompt: Prompt, spans: Sequence[Sequence[int]]) -> Document:
        """Put the answers of the spans back where they belong."""
        v = self.markup.vocabulary
        answers: dict[int, Part] = {}
        written: dict[int, list[int]] = {}
        for span, answer in zip(prompt.spans, spans, strict=True):
            written.setdefault(span.part, []).extend(answer)
        for number, ids in written.items():
            part = document.parts[number]
            if isinstance(part, Hole) and part.modality == "text":
                text = self.text.decode([id_ - v.text_start for id_ in ids])
                answers[number] = Text(text) if text.strip() else Text("(nothing)")
                continue
            codes = np.array([id_ - v.image_start for id_ in ids])
            if isinstance(part, Image):
                whole = image_codes([part], self.image)[0]
                whole[np.array(self.hidden_codes(part))] = codes
                codes = whole
            picture = self.pixels(codes)
            if isinstance(part, Image):
                picture = self._outside_kept(part, picture)
            answers[number] = Image(picture)
        return document.filled(answers)

    def pixels(self, codes: np.ndarray) -> np.ndarray:
        """(N,) codes to an (H, W, 3) uint8 picture."""
        decoded = self.image.decode(torch.from_numpy(codes)[None])[0]
        return (decoded.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    def _outside_kept(self, part: Image, picture: np.ndarray) -> np.ndarray:
        """The infilled picture with every pixel outside the hidden codes as it was given."""
        given = part.resized(self.image.image_size_px)
        rows, columns = self.image.grid
        cells = np.array(self.hidden_codes(part)).reshape(rows, columns)
        height, width = given.pixels.shape[:2]
        hidden = cells.repeat(height // rows, 0).repeat(width // columns, 1)
        return np.where(hidden[..., None], picture, given.pixels)

    def _best(self, document: Document, candidates: list[tuple[Document, float]]) -> tuple[Document, float]:
        if len(candidates) == 1:
            return candidates[0]
        if draws(document) and document.text:
            gap = document.holes[0]
            pictures = [picture for candidate, _ in candidates for picture in Document((candidate.parts[gap],)).images]
            scores = self.encoder.embed_images(pictures) @ self.encoder.embed_texts([document.text])[0]
            return candidates[int(scores.argmax())]
        return max(candidates, key=lambda candidate: candidate[1])


def draws(document: Document) -> bool:
    """Whether the document's first gap is a picture."""
    first = document.parts[document.holes[0]]
    return isinstance(first, Image) or (isinstance(first, Hole) and first.modality == "image")
