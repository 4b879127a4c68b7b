"""Api: what the routes have in common. A request of the API becomes documents, its completions become an answer."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar, TypeVarTuple
from urllib.parse import quote

import anyio.to_thread
import numpy as np
import PIL.Image
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from racm3.attribution import PartAttribution
from racm3.completion import BY_HAND, Completion, Request
from racm3.document import Document, Hole, Image, Modality, Text
from racm3.errors import ConfigError, InputError, MemoryStoreError, PromptTooLongError
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.serve import picture_input as pictures
from racm3.serve.answers import Attribution, Source, Used
from racm3.serve.call import Late, call
from racm3.serve.engine_thread import Busy, EngineThread, Happening, Place
from racm3.serve.fair import Gate
from racm3.serve.files import Files
from racm3.serve.guard import ApiError, error_body, too_many
from racm3.serve.limits import Limits
from racm3.serve.shapes import TEXT, Options
from racm3.settings import USUAL, Settings
from racm3.util.config import RENAMED, from_dict, to_dict

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Policy = Callable[[Literal["request", "answer", "memory"], Document], str | None]
"""Looks at every document that is asked, answered or remembered: None lets it pass, a text is why it may not."""

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "With stream: server-sent events, whose data is JSON, but for a last [DONE] of chats",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
                    "required": ["data"],
                }
            }
        },
    }
}

LIGHT, HEAVY = 2, 1
"""What is worked on beside the engine at once (ours): of what is quick, and of what takes long, as large pictures do,
which take 12 bytes a pixel meanwhile."""
HEAVY_COST = pictures.AS_IT_IS_PIXELS
"""From where on, in pixels, it takes long."""
FETCHES = 8
"""Pictures that are fetched from elsewhere at once."""
TYPES = frozenset({"str", "int", "float", "bool", "none"})
CHARACTER = 20
"""What a character costs to tokenize, in pixels to decode (ours, measured)."""


class Api:
    """One model, its memory and the threads that own them, as the routes see them."""

    def __init__(
        self, model: RACM3, names: Sequence[str], limits: Limits, fetch_from: Collection[str], policy: Policy | None
    ) -> None:
        self.model, self.limits, self.policy = model, limits, policy
        self.names, self.name = names, names[0]  # the others are aliases
        self.fetch_from = frozenset(fetch_from)
        self.engine_thread = EngineThread(model, limits.queue)
        self.created = int(time.time())
        self.files = Files()
        self._light, self._heavy, self._fetches = Gate(LIGHT), Gate(HEAVY), Gate(FETCHES)

    @property
    def memory(self) -> Memory:
        """For use in the memory thread."""
        if self.model.memory is None:
            raise ApiError(404, "this server runs without a memory", "no_memory")
        return self.model.memory

    async def documents(self) -> int | None:
        """How many the memory holds."""
        memory = self.model.memory
        return None if memory is None else await self.aside(len, memory)

    # Requests --------------------------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        """Raises ApiError if a request names another model."""
        if name is not None and name not in self.names:
            names = ", ".join(map(repr, self.names))
            raise ApiError(404, f"there is no model {name!r}; this server has {names}", "model_not_found", "model")

    async def aside(self, work: Callable[[*Ts], T], *given: *Ts, cost: float = 1.0) -> T:
        """What ``work`` makes of ``given``, in another thread, when it is the client's turn. ``cost``: in pixels that
        are decoded, or what takes as long."""
        gate = self._light if cost <= HEAVY_COST else self._heavy
        async with gate.place(call().client, cost):
            return await anyio.to_thread.run_sync(work, *given)

    async def embed(self, document: Document) -> np.ndarray:
        """The vector (1, D) of a document, or of a query."""
        return await self.aside(self.model.encoder.embed, [document], cost=HEAVY_COST)

    async def pictures(self, urls: Sequence[tuple[str, str]], *, whole: bool = False) -> list[Image]:
        """The pictures of (URL, name of the field): what a model looks at of them, or ``whole``."""
        self.check_count(len(urls), urls[0][1] if urls else None)
        return await self.opened([(await self._data(url, what), what) for url, what in urls], whole=whole)

    async def _data(self, url: str, what: str) -> bytes:
        with _naming(what):
            if pictures.is_data(url):
                return await self.aside(pictures.data_of, url, what, cost=len(url))
            async with self._fetches.place(call().client, 1):
                limits = self.limits
                return await anyio.to_thread.run_sync(pictures.fetch, url, limits.body_bytes, self.fetch_from, what)

    def check_count(self, count: int, param: str | None, most: int | None = None) -> None:
        """Raises ApiError if a request has more pictures than are read."""
        most = self.limits.pictures if most is None else most
        if count > most:
            raise ApiError(400, f"{count} pictures were given; at most {most} are read", None, param)

    async def opened(self, given: Sequence[tuple[bytes, str]], *, whole: bool = False) -> list[Image]:
        """``pictures`` of (encoded bytes, name of the field)."""
        sizes = await self.pixels_of(given)
        shown = []
        for (data, what), pixels in zip(given, sizes, strict=True):
            with _naming(what):
                shown.append(await self.aside(partial(pictures.opened, data, what, whole=whole), cost=pixels))
        return shown

    async def pixels_of(self, given: Sequence[tuple[bytes, str]]) -> list[int]:
        """How large pictures are. Raises ApiError if one, or all together, are too large; none is decoded for that."""
        sizes = []
        for data, what in given:
            with _naming(what):
                sizes.append(await self.aside(pictures.pixels_of, data, self.limits.pixels, what))
        if sum(sizes) > self.limits.all_pixels:
            raise ApiError(
                400,
                f"the pictures of the request have {sum(sizes):,} pixels together; at most "
                f"{self.limits.all_pixels:,} are read: scale them down",
                None,
                given[0][1],
            )
        return sizes

    def check_fits(self, document: Document, param: str | None) -> None:
        """Raises ApiError if the parts of a document alone exceed the context: told before anything is embedded."""
        context, text = self.model.generator.config.context_tokens, self.model.text
        shown = sum(not isinstance(part, Text) and part != Hole("text") for part in document.parts)
        tokens = shown * self.model.markup.codes_per_image
        words = [part.text for part in document.parts if isinstance(part, Text)]
        if tokens <= context and sum(map(len, words)) <= context * text.longest_token:
            tokens += sum(len(text.encode(one)) for one in words)
        else:  # longer than any that fits: it need not be tokenized to be counted
            tokens += sum(map(len, words)) // text.longest_token
        if tokens > context:
            raise too_long(
                f"what was given takes {tokens} tokens or more, which exceed the generator's context", param, context
            )

    def check_policy(self, stage: Literal["request", "answer", "memory"], document: Document) -> None:
        """Raises ApiError if the policy gives a reason to refuse the document."""
        reason = self.policy(stage, document) if self.policy is not None else None
        if reason is not None:
            raise ApiError(400, reason, "content_policy_violation")

    async def happenings(
        self,
        request: Request,
        options: Options,
        *,
        n: int = 1,
        show: bool = False,
        param: str | None = None,
    ) -> AsyncIterator[Happening]:
        """What there is to show as it comes, at last the ``n`` completions, each with a seed one above that before it.

        Partial answers are shown only if there is no policy that would have to see the whole first. ``param``: the
        field that has the words.
        """
        own = call()
        own.shorten(options.timeout_s)
        words = sum(len(part.text) for part in request.document.parts if isinstance(part, Text))
        await self.aside(self.check_fits, request.document, param, cost=words * CHARACTER)
        for document in [request.document, *(request.retrieved or ())]:
            await self.aside(self.check_policy, "request", document)
        settings = request.settings
        pending = self.engine_thread.submit(
            [replace(request, settings=replace(settings, seed=settings.seed + i)) for i in range(n)],
            timeout_s=own.timeout_s,
            until=own.until,
            client=own.client,
            show=show and self.policy is None,
            attribution=options.attribution,
        )
        try:
            async for event in pending.events():
                if isinstance(event, list):
                    for done in event:
                        await self.aside(self.check_policy, "answer", done.document)
                    own.prompt_tokens += sum(self.prompt_tokens(event))
                    own.new_tokens += new_tokens(event)
                yield event
        except PromptTooLongError as error:
            raise too_long(str(error), param) from None
        finally:
            pending.cancelled = True

    async def completions(self, request: Request, options: Options, n: int, param: str | None) -> list[Completion]:
        """The completions of a request."""
        async for event in self.happenings(request, options, n=n, param=param):
            if isinstance(event, list):
                return event
        raise AssertionError("a stream ends with its completions")

    # Answers ---------------------------------------------------------------------------------------------------------

    def sources(self, done: Completion) -> list[Source]:
        """The documents that were read, as answers name them."""
        return [
            Source(
                id=hit.id,
                score=hit.score,
                caption=hit.document.text,
                image=image_path(hit.id) if hit.document.images and hit.origin != BY_HAND else None,
                origin=hit.origin,
            )
            for hit in done.sources
        ]

    def attributions(self, done: Completion, options: Options) -> list[Attribution] | None:
        """One a generated part, in their order."""
        if not options.attribution:
            return None
        return [self._attribution(part) for part in sorted(done.attribution, key=lambda part: part.part)]

    def _attribution(self, part: PartAttribution) -> Attribution:
        gains = np.array([own for _, own in part.words]) if part.words else part.attribution.gains
        drawn = np.maximum(gains, 0).sum(axis=0)
        return Attribution(
            grid=None if part.words else self.model.image.grid,
            cells=list(part.cells),
            words=[word for word, _ in part.words] if part.words else None,
            gains=gains.round(4).tolist(),
            shares=(drawn / max(drawn.sum(), 1e-9)).round(4).tolist(),
            overlay=None if part.overlay is None else base64_png(part.overlay),
        )

    def used(self, settings: Settings, options: Options, temperature: float) -> Used:
        """All settings that reproduce an answer."""
        return Used(
            **to_dict(settings) | {"k": options.k},
            context_aware=settings.image.context_aware,
            guidance=settings.image.guidance,
            temperature=temperature,
            retrieve=options.retrieve,
        )

    def prompt_tokens(self, done: Sequence[Completion]) -> tuple[int, int]:
        """(text, picture) tokens of all prompts. What is neither, such as <doc>, counts as text."""
        ids = [prompt.ids for one in done for answer in one.answers for prompt in answer.prompts]
        pictures = sum(self.model.markup.vocabulary.is_image(id_) for own in ids for id_ in own)
        return sum(map(len, ids)) - pictures, pictures


def settings_of(options: Options, temperature_of: Modality = "image") -> Settings:
    """The settings that options ask for. One given for a modality goes before one for all that is generated."""
    table = options.model_dump(include=set(to_dict(USUAL)))
    both: tuple[Modality, ...] = ("image", "text")
    for name, modalities in (("context_aware", both), ("guidance", ("image",)), ("temperature", (temperature_of,))):
        value = getattr(options, name)
        for modality in modalities if value is not None else ():
            if name not in getattr(options, modality).model_fields_set:
                table[modality][name] = value
    return from_dict(Settings, table | {"k": options.k if options.retrieve else 0, "seed": options.seed or 0})


def image_path(item_id: str) -> str:
    """Where the API gives the first picture of a document."""
    return f"{call().root_path}/v1/memory/images/{quote(item_id, safe='')}"


def base64_png(picture: PIL.Image.Image) -> str:
    """A picture as the base64 of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def new_tokens(done: Sequence[Completion]) -> int:
    """How many were drawn."""
    return sum(answer.steps for one in done for answer in one.answers)


@contextmanager
def _naming(param: str) -> Iterator[None]:
    """What is wrong with a picture meanwhile is wrong with this field."""
    try:
        yield
    except InputError as error:
        raise ApiError(400, str(error), "invalid_image", param) from None


# Server-sent events -------------------------------------------------------------------------------------------------


def event(data: BaseModel | dict[str, Any] | str, name: str | None = None) -> bytes:
    """One event."""
    if isinstance(data, BaseModel):
        data = data.model_dump(by_alias=True)
    text = data if isinstance(data, str) else json.dumps(data)
    return f"{f'event: {name}' + chr(10) if name else ''}data: {text}\n\n".encode()


def comment(place: Place) -> bytes:
    """How many are ahead, as a comment between the events: what reads them as the standard says passes it over."""
    return f": {place.ahead} ahead\n\n".encode()


async def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response of events. What fails before the first one is a plain error; later, it is the last event."""
    first = await anext(events)

    async def body() -> AsyncIterator[bytes]:
        try:
            yield first
            async for one in events:
                yield one
        except Exception as error:
            problem = as_api_error(error)
            yield event(error_body(problem.status_code, problem.detail, problem.code, problem.param), "error")
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # a generator: what is under way is given up

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


# Errors -------------------------------------------------------------------------------------------------------------


def too_long(message: str, param: str | None, context: int | None = None) -> ApiError:
    """What is said of more words and pictures than the model reads."""
    told = f" of {context}; shorten the text, or give fewer pictures" if context else ""
    return ApiError(400, f"{message}{told}", "context_length_exceeded", param)


def as_api_error(error: Exception) -> ApiError:
    """Any error as the API tells it. What is no fault of the client's tells nothing of the server."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case ValidationError():
            return ApiError(400, *first_problem(error.errors()))
        case Busy():
            return too_many(str(error), error.retry_after_s, "queue_full")
        case Late():
            return ApiError(408, str(error), "deadline_exceeded")
        case InputError() | ConfigError():
            return ApiError(400, str(error))
        case MemoryStoreError():
            return ApiError(409, str(error), "memory_conflict")
    return ApiError(500, "the server failed; its log says why", "server_error")


def first_problem(errors: Sequence[Any], body: Any = None) -> tuple[str, str | None, str | None]:
    """(message, code, field) of what pydantic found in ``body``; a field that there is not says most, and of the ways
    in which a value can be read the one that goes deepest."""
    paths = [_path(error["loc"], body, error["type"]) for error in errors]
    unknown = [i for i, error in enumerate(errors) if error["type"] == "extra_forbidden"]
    number = unknown[0] if unknown else max(range(len(errors)), key=lambda i: (len(paths[i]), -i))
    if not unknown and len(paths[number]) == len(paths[0]):
        number = 0
    first, where = errors[number], ".".join(map(str, paths[number]))
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", None, None
    if first["type"] == "extra_forbidden" and where.rpartition(".")[2] in RENAMED:
        new = RENAMED[where.rpartition(".")[2]]
        return f"the field {where!r} is called {new!r} now; give that", "unknown_field", where
    if first["type"] == "extra_forbidden":
        return f"there is no field {where!r} here; /openapi.json lists them", "unknown_field", where
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":
        message = "a text with a visible character is wanted" if TEXT in message else f"{message}; /openapi.json has it"
    return f"{where}: {message}" if where else message, None, where or None


def _path(loc: Sequence[str | int], body: Any, kind: str) -> list[str | int]:
    """Where in what was sent a problem is: without what pydantic adds, such as the names of its types."""
    path: list[str | int] = []
    at = body
    told: Any = None
    for number, part in enumerate(loc):
        if number == 0 and part in ("body", "query", "path"):
            continue
        end = number == len(loc) - 1
        if isinstance(at, dict) and at is not told and at.get("type") == part and not end:
            told = at  # which of several types of parts it is
            continue
        last = end and kind == "missing"
        if isinstance(at, dict) and (part in at or last):
            path.append(part)
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int):
            path.append(part)
            at = at[part]
        elif body is None and (isinstance(part, int) or (part.isidentifier() and part not in TYPES)):
            path.append(part)
    return path
