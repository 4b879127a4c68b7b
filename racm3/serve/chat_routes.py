"""``/v1/chat/completions``: a document in words and pictures, completed. And ``/v1/classify``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from racm3.completion import Completion, Request
from racm3.document import Document, Hole, Image, Part, Text
from racm3.serve.api import STREAM, Api, base64_png, event, settings_of, streamed
from racm3.serve.guard import ApiError
from racm3.serve.shapes import (
    AnyPart,
    Chat,
    ChatCompletion,
    Choice,
    Classification,
    Classifications,
    Classified,
    HolePart,
    ImagePart,
    ImageUrl,
    Label,
    Said,
    TextPart,
    TextUsage,
)
from racm3.settings import Settings
from racm3.tokens.codec import NOTHING
from racm3.util.config import override

MOST_PAIRS = 400
"""Comparisons of two labels in one request for a classification (ours): seconds of the shipped model's time."""


def routes(api: Api) -> APIRouter:
    """The routes of chat completions and classification."""
    router = APIRouter(prefix="/v1", tags=["documents"])

    @router.post("/chat/completions", response_model=ChatCompletion, responses=STREAM)
    async def complete(http: HttpRequest, asked: Chat) -> Any:
        """Complete a document. Its parts are those of all messages; what is asked for are its holes.

        Without a hole, a text is: before a lone picture (its caption), or else at the end.
        """
        api.check_model(asked.model)
        parts = [part for message in asked.messages for part in _parts(message.content)]
        urls = [(part.image_url.url, "image_url") for part in parts if isinstance(part, ImagePart)]
        document = _document(parts, await api.pictures(urls))
        own = Request(document, _settings(asked))
        if asked.stream:
            if asked.n != 1 or asked.racm3.samples != 1:
                raise ApiError(400, "a stream shows one answer; leave out n and samples, or stream", None, "stream")
            return await streamed(chunks(http, own, asked))
        done = await api.completions(http, own, asked.racm3, asked.n)
        return await api.aside(made, done, asked, own.settings, f"chatcmpl-{token_hex(12)}")

    async def chunks(http: HttpRequest, request: Request, asked: Chat) -> AsyncIterator[bytes]:
        head = {"id": f"chatcmpl-{token_hex(12)}", "object": "chat.completion.chunk"}
        head |= {"created": int(time.time()), "model": api.name}  # type: ignore[dict-item]

        said, begun = "", False

        def chunk(delta: dict[str, Any], own: Mapping[str, Any] = {}, told: Mapping[str, Any] = {}) -> bytes:
            nonlocal begun
            delta, begun = delta if begun else {"role": "assistant"} | delta, True
            return event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **own}], **told})

        texts: dict[int, str] = {}

        def news() -> str:
            """What is new of the words said. What was said is not taken back."""
            nonlocal said
            whole = _joined([texts[part] for part in sorted(texts)])
            new = whole[len(said) :] if whole.startswith(said) else ""
            said += new
            return new

        async for partial in api.partials(http, request, asked.racm3, show=True):
            if not isinstance(partial, list):
                content = await api.aside(lambda now: now.content, partial)
                if isinstance(content, Text) and content.text != NOTHING:
                    texts[partial.part] = content.text
                    if new := news():
                        yield chunk({"content": new})
                elif isinstance(content, Image):
                    shown = await api.aside(_image_part, content)
                    yield chunk({"images": [shown.model_dump()]})
                continue
            whole = await api.aside(made, partial, asked, request.settings, str(head["id"]))
            choice = whole.choices[0]
            texts = dict(enumerate([choice.message.content or ""]))
            delta: dict[str, Any] = {"content": new} if (new := news()) else {}
            if choice.message.images:
                delta["images"] = [one.model_dump() for one in choice.message.images]
            own = choice.model_dump(include={"finish_reason", "parts", "attribution", "score"})
            told = whole.model_dump(include={"racm3", "sources"}, by_alias=True)
            yield chunk(delta, own, told)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield event(head | {"choices": [], "usage": whole.usage.model_dump()})
        yield event("[DONE]")

    def made(done: Sequence[Completion], asked: Chat, settings: Settings, name: str) -> ChatCompletion:
        text, image = api.prompt_tokens(done)
        new = sum(own.steps for one in done for own in one.answers)
        return ChatCompletion(
            id=name,
            created=int(time.time()),
            model=api.name,
            choices=[choice(i, one, asked, settings) for i, one in enumerate(done)],
            usage=TextUsage(prompt_tokens=text + image, completion_tokens=new, total_tokens=text + image + new),
            sources=api.sources(done[0]),
            racm3=api.used(settings, asked.racm3, settings.text.temperature),
        )

    def choice(index: int, done: Completion, asked: Chat, settings: Settings) -> Choice:
        filled = [done.document.parts[answer.part] for answer in done.answers]
        texts = [part.text for part in filled if isinstance(part, Text)]
        cut = any(
            answer.modality == "text" and len(answer.spans[0]) == settings.max_text_tokens for answer in done.answers
        )
        parts = [_image_part(part) if isinstance(part, Image) else TextPart(text=_words(part)) for part in filled]
        return Choice(
            index=index,
            finish_reason="length" if cut else "stop",
            message=Said(content=_joined(texts) or None, images=[p for p in parts if isinstance(p, ImagePart)]),
            parts=parts,
            attribution=api.attributions(done, asked.racm3),
            score=done.score,
        )

    @router.post("/classify", response_model=Classifications)
    async def classify(asked: Classification) -> Any:
        """Tell how probable each label is for each picture, from examples of every label."""
        api.check_model(asked.model)
        labels = list(asked.examples)
        pairs = len(asked.images) * len(asked.examples[labels[0]]) * len(labels) * (len(labels) - 1) // 2
        if pairs > MOST_PAIRS:
            raise ApiError(400, f"pictures x examples x pairs of labels are {pairs}; at most {MOST_PAIRS} are compared")
        given = [(url, f"images.{i}") for i, url in enumerate(asked.images)]
        given += [(url, f"examples.{label}") for label in labels for url in asked.examples[label]]
        found = await api.pictures(given)
        for picture in found:
            await api.aside(api.check_policy, "request", Document.of(picture))
        images, rest = found[: len(asked.images)], iter(found[len(asked.images) :])
        examples = {label: [next(rest) for _ in asked.examples[label]] for label in labels}
        tables = await api.engine_thread.call(lambda: api.model.classify(images, examples))
        data = [
            Classified(index=i, labels=[Label(label=label, probability=share) for label, share in table.items()])
            for i, table in enumerate(tables)
        ]
        return Classifications(model=api.name, data=data)

    return router


def _parts(content: str | list[AnyPart]) -> list[AnyPart]:
    return [TextPart(text=content)] if isinstance(content, str) else content


def _document(parts: Sequence[AnyPart], images: Sequence[Image]) -> Document:
    """The document with its holes; ``images`` are those of the picture parts."""
    left = iter(images)
    given: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart):
            given.append(Text(part.text))
        else:
            given.append(Hole(part.modality) if isinstance(part, HolePart) else next(left))
    if not any(isinstance(part, Hole) for part in given):
        caption = len(given) == 1 and isinstance(given[0], Image)
        given.insert(0 if caption else len(given), Hole("text"))
    return Document(tuple(given))


def _settings(asked: Chat) -> Settings:
    """The fields of OpenAI's are those of texts; pictures are drawn as ``racm3`` says."""
    own, text = asked.racm3.model_dump(exclude_unset=True), asked.racm3.text.model_dump(exclude_unset=True)
    most = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
    for name, value, others in (
        ("temperature", asked.temperature, (own.get("temperature"), text.get("temperature"))),
        ("top_p", asked.top_p, (text.get("top_p"),)),
        ("seed", asked.seed, (own.get("seed"),)),
        ("max_tokens", most, (asked.max_completion_tokens, own.get("max_text_tokens"))),
    ):
        for other in others:
            if None not in (value, other) and value != other:
                raise ApiError(400, f"{name} is given twice, as {value} and {other}; give one", None, name)
    settings = settings_of(asked.racm3, temperature_of="text")
    given = {"text.temperature": asked.temperature, "text.top_p": asked.top_p}
    given |= {"seed": asked.seed, "max_text_tokens": most}
    return override(settings, [f"{name}={value}" for name, value in given.items() if value is not None])


def _words(part: Part) -> str:
    assert isinstance(part, Text)
    return part.text


def _joined(texts: Sequence[str]) -> str:
    return "\n".join(texts)


def _image_part(image: Image) -> ImagePart:
    return ImagePart(image_url=ImageUrl(url=f"data:image/png;base64,{base64_png(image.pil)}"))
