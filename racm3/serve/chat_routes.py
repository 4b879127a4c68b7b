"""``/v1/chat/completions``: a document in words and pictures, completed. And ``/v1/classify``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from secrets import token_hex
from typing import Any

import numpy as np
from fastapi import APIRouter

from racm3.completion import Completion, Request
from racm3.document import Document, Hole, Image, Part, Text
from racm3.pipeline import RACM3
from racm3.serve.answers import (
    ChatCompletion,
    Choice,
    Classifications,
    Classified,
    Label,
    LogProbs,
    Said,
    TextUsage,
    TokenLogProb,
)
from racm3.serve.api import STREAM, Api, base64_png, comment, event, new_tokens, settings_of, streamed, too_long
from racm3.serve.call import call
from racm3.serve.engine_thread import Place
from racm3.serve.guard import ApiError
from racm3.serve.shapes import AnyPart, Chat, Classification, HolePart, ImagePart, ImageUrl, Message, TextPart
from racm3.settings import Settings
from racm3.tokens.codec import NOTHING
from racm3.util.config import override

INSTRUCTIONS = ("system", "developer")
SEVERAL_TEMPERATURE = 1.0
MOST_PAIRS = 400
"""Comparisons of two labels in one request for a classification (ours): seconds of the shipped model's time."""


def routes(api: Api) -> APIRouter:
    """The routes of chat completions and classification."""
    router = APIRouter(prefix="/v1", tags=["documents"])

    @router.post("/chat/completions", response_model=ChatCompletion, responses=STREAM)
    async def complete(asked: Chat) -> Any:
        """Complete a document. Its parts are those of all messages; what is asked for are its holes.

        Without a hole, a text is: before a lone picture (its caption), or else at the end. The model follows no
        instructions: messages of system and developer are left out, and ``warnings`` of the answer say so.
        """
        api.check_model(asked.model)
        call().shorten(asked.racm3.timeout_s)
        parts = [part for i, message in enumerate(asked.messages) for part in _parts(message, f"messages.{i}")]
        if not parts:
            raise ApiError(400, "the messages have no content; give a text, a picture or a hole", None, "messages")
        urls = [(part.image_url.url, f"{where}.image_url.url") for part, where in parts if isinstance(part, ImagePart)]
        check_pictures(len(urls), "messages")
        document = _document([part for part, _ in parts], await api.pictures(urls))
        own = Request(document, _settings(asked))
        if asked.stream:
            if asked.n not in (None, 1) or asked.racm3.samples != 1:
                raise ApiError(400, "a stream shows one answer; leave out n and samples, or stream", None, "stream")
            return await streamed(chunks(own, asked))
        done = await api.completions(own, asked.racm3, asked.n or 1, "messages")
        whole = await api.aside(made, done, asked, own.settings, f"chatcmpl-{token_hex(12)}")
        await with_logprobs(whole, done, asked)
        return whole

    def check_pictures(count: int, param: str) -> None:
        """Raises ApiError for more pictures than the context has room for, before one is decoded."""
        codes, context = api.model.markup.codes_per_image, api.model.generator.config.context_tokens
        if count * codes > context:
            told = f"{count} pictures take {count * codes} tokens, which exceed the generator's context"
            raise too_long(told, param, context)

    async def with_logprobs(whole: ChatCompletion, done: Sequence[Completion], asked: Chat) -> None:
        """Put into an answer what the model gave each of its tokens, if that is asked for."""
        if not asked.logprobs:
            return
        for own, one in zip(whole.choices, done, strict=True):
            own.logprobs = await api.engine_thread.call(partial(_logprobs, api.model, one, own.message.content or ""))

    async def chunks(request: Request, asked: Chat) -> AsyncIterator[bytes]:
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
            whole = _certain(_joined([texts[part] for part in sorted(texts)]), asked.stops)
            new = whole[len(said) :] if whole.startswith(said) else ""
            said += new
            return new

        async for happening in api.happenings(request, asked.racm3, show=True, param="messages"):
            if isinstance(happening, Place):
                yield comment(happening)
                continue
            if not isinstance(happening, list):
                content = await api.aside(lambda now: now.content, happening)
                if isinstance(content, Text) and content.text != NOTHING:
                    texts[happening.part] = content.text
                    if new := news():
                        yield chunk({"content": new})
                elif isinstance(content, Image):
                    shown = await api.aside(_image_part, content)
                    yield chunk({"images": [shown.model_dump()]})
                continue
            whole = await api.aside(made, happening, asked, request.settings, str(head["id"]))
            await with_logprobs(whole, happening, asked)
            choice = whole.choices[0]
            new = (choice.message.content or "").removeprefix(said)
            delta: dict[str, Any] = {"content": new} if new else {}
            if choice.message.images:
                delta["images"] = [one.model_dump() for one in choice.message.images]
            own = choice.model_dump(include={"finish_reason", "parts", "attribution", "score", "logprobs"})
            told = whole.model_dump(include={"racm3", "sources"}, by_alias=True)
            yield chunk(delta, own, told)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield event(head | {"choices": [], "usage": whole.usage.model_dump()})
        yield event("[DONE]")

    def made(done: Sequence[Completion], asked: Chat, settings: Settings, name: str) -> ChatCompletion:
        text, image = api.prompt_tokens(done)
        new = new_tokens(done)
        return ChatCompletion(
            id=name,
            created=int(time.time()),
            model=api.name,
            choices=[choice(i, one, asked, settings) for i, one in enumerate(done)],
            usage=TextUsage(prompt_tokens=text + image, completion_tokens=new, total_tokens=text + image + new),
            sources=api.sources(done[0]),
            racm3=api.used(settings, asked.racm3, settings.text.temperature),
            warnings=[
                f"messages.{i}: the model follows no instructions; the {message.role} message is left out"
                for i, message in enumerate(asked.messages)
                if message.role in INSTRUCTIONS
            ],
        )

    def choice(index: int, done: Completion, asked: Chat, settings: Settings) -> Choice:
        filled = [done.document.parts[answer.part] for answer in done.answers]
        said = _joined([part.text for part in filled if isinstance(part, Text)])
        stopped = min((place for stop in asked.stops if (place := said.find(stop)) >= 0), default=None)
        long = any(
            answer.modality == "text" and len(answer.spans[0]) == settings.max_text_tokens for answer in done.answers
        )
        parts = [_image_part(part) if isinstance(part, Image) else TextPart(text=_words(part)) for part in filled]
        return Choice(
            index=index,
            finish_reason="length" if long and stopped is None else "stop",
            message=Said(content=said[:stopped] or None, images=[p for p in parts if isinstance(p, ImagePart)]),
            parts=parts,
            attribution=api.attributions(done, asked.racm3),
            score=done.score,
        )

    @router.post("/classify", response_model=Classifications)
    async def classify(asked: Classification) -> Any:
        """Tell how probable each label is for each picture, from examples of every label."""
        api.check_model(asked.model)
        labels = list(asked.examples)
        if len({len(shown) for shown in asked.examples.values()}) > 1:
            wrong = "the labels have different numbers of examples; give equally many of each"
            raise ApiError(400, wrong, None, "examples")
        pairs = len(asked.images) * len(asked.examples[labels[0]]) * len(labels) * (len(labels) - 1) // 2
        if pairs > MOST_PAIRS:
            raise ApiError(400, f"pictures x examples x pairs of labels are {pairs}; at most {MOST_PAIRS} are compared")
        given = [(url, f"images.{i}") for i, url in enumerate(asked.images)]
        given += [(url, f"examples.{label}.{i}") for label in labels for i, url in enumerate(asked.examples[label])]
        found = await api.pictures(given)
        for picture in found:
            await api.aside(api.check_policy, "request", Document.of(picture))
        images, rest = found[: len(asked.images)], iter(found[len(asked.images) :])
        examples = {label: [next(rest) for _ in asked.examples[label]] for label in labels}
        data = []
        for i, image in enumerate(images):  # a picture and an example of each label at a time: others go on between
            shares = np.mean(
                [
                    await api.engine_thread.call(
                        partial(api.model.compare, [image], {label: [shown] for label, shown in shot.items()})
                    )
                    for shot in (
                        {label: own[n] for label, own in examples.items()} for n in range(len(examples[labels[0]]))
                    )
                ],
                axis=0,
            )[0, 0]
            table = sorted(zip(labels, shares.tolist(), strict=True), key=lambda pair: -pair[1])
            told = [Label(label=label, probability=share) for label, share in table]
            data.append(Classified(index=i, labels=told))
        return Classifications(model=api.name, data=data)

    return router


def _parts(message: Message, where: str) -> list[tuple[AnyPart, str]]:
    """The parts of a message, and where each stands in the request."""
    if message.role in INSTRUCTIONS:
        return []
    content = message.content or []
    if isinstance(content, str):
        content = [TextPart(text=content)] if content.strip() else []
    said: list[tuple[AnyPart, str]] = [(part, f"{where}.content.{i}") for i, part in enumerate(content)]
    return said + [(part, f"{where}.images.{i}") for i, part in enumerate(message.images or [])]


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
    several = asked.n not in (None, 1) and {asked.temperature, own.get("temperature"), text.get("temperature")} == {
        None
    }
    if several:  # the most probable text is one, so several are drawn, as the command line draws several samples
        settings = override(settings, [f"text.temperature={SEVERAL_TEMPERATURE}"])
    given = {"text.temperature": asked.temperature, "text.top_p": asked.top_p}
    given |= {"seed": asked.seed, "max_text_tokens": most}
    return override(settings, [f"{name}={value}" for name, value in given.items() if value is not None])


def _certain(text: str, stops: Sequence[str]) -> str:
    """The part of a text that grows which no stop can take back: what is before one, and before what may become one."""
    for stop in stops:
        if (place := text.find(stop)) >= 0:
            text = text[:place]
    held = max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
        default=0,
    )
    return text[: len(text) - held]


def _logprobs(model: RACM3, done: Completion, said: str) -> LogProbs:
    """What the generator, given the prompt, gave each token of the texts that are said; in the engine's thread."""
    content: list[TokenLogProb] = []
    left = len(said)
    for answer in done.answers:
        if answer.modality == "image" or not answer.spans or not answer.spans[0]:
            continue
        (values,) = model.engine.score([answer.prompts[0].ids], [answer.spans[0]])
        for id_, value in zip(answer.spans[0], values.tolist(), strict=True):
            token = model.text.decode([id_ - model.markup.vocabulary.text_start])
            if left <= 0:
                break
            left -= len(token)
            content.append(TokenLogProb(token=token, logprob=value, bytes=list(token.encode())))
    return LogProbs(content=content)


def _words(part: Part) -> str:
    assert isinstance(part, Text)
    return part.text


def _joined(texts: Sequence[str]) -> str:
    return "\n".join(texts)


def _image_part(image: Image) -> ImagePart:
    return ImagePart(image_url=ImageUrl(url=f"data:image/png;base64,{base64_png(image.pil)}"))
