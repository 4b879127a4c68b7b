"""Api: what the routes have in common. A request of the API becomes documents, its completions become an answer."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, TypeVar, TypeVarTuple
from urllib.parse import quote

import anyio
import anyio.to_thread
import numpy as np
import PIL.Image
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from racm3.attribution import PartAttribution
from racm3.completion import BY_HAND, Completion, Partial, Request
from racm3.document import Document, Image, Modality
from racm3.errors import ConfigError, InputError, MemoryStoreError
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.serve import picture_input as pictures
from racm3.serve.engine_thread import Busy, EngineThread, Gone, Late
from racm3.serve.guard import ApiError, Limits, error_body, too_many
from racm3.serve.shapes import Attribution, Options, Source, Used
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

DECODERS = 2
"""Pictures that are decoded or encoded at once (ours): each may take 12 bytes a pixel meanwhile."""


class Api:
    """One model, its memory and the threads that own them, as the routes see them."""

    def __init__(
        self, model: RACM3, name: str, limits: Limits, fetch_from: Collection[str], policy: Policy | None
    ) -> None:
        self.model, self.name, self.limits, self.policy = model, name, limits, policy
        self.fetch_from = frozenset(fetch_from)
        self.engine_thread = EngineThread(model, limits.queue)
        self.created = int(time.time())

    @property
    def memory(self) -> Memory:
        """For use in the memory thread."""
        if self.model.memory is None:
            raise ApiError(404, "this server runs without a memory", "no_memory")
        return self.model.memory

    async def documents(self) -> int | None:
        """How many the memory holds."""
        memory = self.model.memory
        return None if memory is None else await self.engine_thread.memory_thread.call(lambda: len(memory))

    # Requests --------------------------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        """Raises ApiError if a request names another model."""
        if name not in (None, self.name):
            raise ApiError(
                404, f"there is no model {name!r}; this server has {self.name!r}", "model_not_found", "model"
            )

    @cached_property
    def _decoders(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(DECODERS)

    async def aside(self, work: Callable[[*Ts], T], *given: *Ts) -> T:
        """What ``work`` makes of ``given``, in another thread: coding pictures takes long, and few may at once."""
        return await anyio.to_thread.run_sync(work, *given, limiter=self._decoders)

    async def pictures(self, urls: Sequence[tuple[str, str]]) -> list[Image]:
        """The pictures of (URL, name of the field)."""
        if len(urls) > self.limits.pictures:
            raise ApiError(400, f"{len(urls)} pictures were given; at most {self.limits.pictures} are read")
        limits, hosts = self.limits, self.fetch_from
        return [
            await self.aside(pictures.from_url, url, limits.pixels, limits.body_bytes, hosts, what)
            for url, what in urls
        ]

    def check_policy(self, stage: Literal["request", "answer", "memory"], document: Document) -> None:
        """Raises ApiError if the policy gives a reason to refuse the document."""
        reason = self.policy(stage, document) if self.policy is not None else None
        if reason is not None:
            raise ApiError(400, reason, "content_policy_violation")

    async def partials(
        self,
        http: HttpRequest,
        request: Request,
        options: Options,
        *,
        n: int = 1,
        show: bool = False,
    ) -> AsyncIterator[Partial | list[Completion]]:
        """What there is to show as it comes, at last the ``n`` completions, each with a seed one above that before it.

        Partial answers are shown only if there is no policy that would have to see the whole first.
        """
        for document in [request.document, *(request.retrieved or ())]:
            await self.aside(self.check_policy, "request", document)
        settings = request.settings
        requests = [replace(request, settings=replace(settings, seed=settings.seed + i)) for i in range(n)]
        timeout_s = min(options.timeout_s or self.limits.timeout_s, self.limits.timeout_s)
        pending = self.engine_thread.submit(
            requests, timeout_s=timeout_s, show=show and self.policy is None, attribution=options.attribution
        )
        watch = asyncio.create_task(_watch(http, pending.cancel))
        try:
            async for event in pending.partials():
                if isinstance(event, list):
                    for done in event:
                        await self.aside(self.check_policy, "answer", done.document)
                yield event
        finally:
            pending.cancelled = True
            watch.cancel()

    async def completions(
        self,
        http: HttpRequest,
        request: Request,
        options: Options,
        n: int,
    ) -> list[Completion]:
        """The completions of a request; it is cancelled if its client goes away."""
        async for event in self.partials(http, request, options, n=n):
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
    return f"/v1/memory/images/{quote(item_id, safe='')}"


def base64_png(picture: PIL.Image.Image) -> str:
    """A picture as the base64 of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def _watch(http: HttpRequest, gone: Callable[[], None]) -> None:
    """Wait until the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    gone()


# Server-sent events -------------------------------------------------------------------------------------------------


def event(data: BaseModel | dict[str, Any] | str, name: str | None = None) -> bytes:
    """One event."""
    if isinstance(data, BaseModel):
        data = data.model_dump(by_alias=True)
    text = data if isinstance(data, str) else json.dumps(data)
    return f"{f'event: {name}' + chr(10) if name else ''}data: {text}\n\n".encode()


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
        case Gone():
            return ApiError(499, str(error))
        case InputError() | ConfigError():
            return ApiError(400, str(error))
        case MemoryStoreError():
            return ApiError(409, str(error), "memory_conflict")
    return ApiError(500, "the server failed; its log says why", "server_error")


def first_problem(errors: Sequence[Any]) -> tuple[str, str | None, str | None]:
    """(message, code, field) of what pydantic found; a field that there is not says most."""
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", None, None
    if first["type"] == "extra_forbidden" and where.rpartition(".")[2] in RENAMED:
        new = RENAMED[where.rpartition(".")[2]]
        return f"the field {where!r} is called {new!r} now; give that", "unknown_field", where
    if first["type"] == "extra_forbidden":
        return f"there is no field {where!r} here; /openapi.json lists them", "unknown_field", where
    return f"{where}: {first['msg']}" if where else first["msg"], None, where or None
