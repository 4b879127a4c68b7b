"""``/v1/images``: words or a picture to a picture, and a hidden region to what words or another picture say."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import PIL.Image
from fastapi import APIRouter, Path, Query
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from racm3 import tasks
from racm3.completion import Completion, Partial, Request
from racm3.document import Document, Hole, Image
from racm3.serve import picture_input as pictures
from racm3.serve.answers import Drawn, Images, ImageUsage, TokenDetails
from racm3.serve.api import STREAM, Api, comment, event, new_tokens, settings_of, streamed
from racm3.serve.call import call
from racm3.serve.engine_thread import Place
from racm3.serve.guard import ApiError
from racm3.serve.shapes import Drawing, Edit, Generation, Signed, Variation
from racm3.settings import Settings

SMALLEST_PX, LARGEST_PX = 16, 1024
MOST_FIELDS, MOST_FILES, MOST_FIELD_BYTES = 40, 3, 1 << 16
NESTED = re.compile(r"racm3(\[\w+\])+")
"""How a form spells what is nested: racm3[image][top_p]."""


def _fields_of(shape: type[Drawing]) -> dict[str, Any]:
    """The fields of a form beside its files."""
    properties = shape.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    return properties | {"racm3": {"$ref": "#/components/schemas/Options"}}


def _form(shape: type[Drawing], files: dict[str, Any], needed: dict[str, Any]) -> dict[str, Any]:
    """The body of a route that takes a form: its ``files``, and the fields of ``shape``."""
    properties = files | _fields_of(shape)
    schema = {"type": "object", "additionalProperties": False, **needed, "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


EDIT_BODY = _form(
    Edit,
    {
        "image": {"type": "string", "format": "binary", "description": "The picture to edit"},
        "image[]": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "maxItems": 2,
            "description": "Instead of image: it, and the picture that controls the edit",
        },
        "mask": {
            "type": "string",
            "format": "binary",
            "description": "Transparent, or white if nothing of it is transparent, where the picture "
            "is to change; by default where the picture itself is transparent",
        },
    },
    {"anyOf": [{"required": ["image"]}, {"required": ["image[]"]}]},
)
VARIATION_BODY = _form(Variation, {"image": {"type": "string", "format": "binary"}}, {"required": ["image"]})


def routes(api: Api) -> APIRouter:
    """The routes of pictures."""
    router = APIRouter(prefix="/v1/images", tags=["pictures"])

    @router.post("/generations", response_model=Images, responses=STREAM)
    async def generate(http: HttpRequest, asked: Generation) -> Any:
        """Draw a picture for a caption."""
        return await answer(http, tasks.generate_image(asked.prompt), asked, "image_generation")

    @router.post("/edits", response_model=Images, responses=STREAM, openapi_extra=EDIT_BODY)
    async def edit(http: HttpRequest) -> Any:
        """Fill the hidden region of a picture, after words, after a second picture, or after what is around it."""
        fields, files = await form_of(http)
        given = Edit.model_validate(fields, strict=False)
        call().shorten(given.racm3.timeout_s)
        shown = files.pop("image", []) + files.pop("image[]", [])
        masks = files.pop("mask", [])
        if files or not 1 <= len(shown) <= 2 or len(masks) > 1:
            raise ApiError(
                400, "files are: image, once or twice (the second controls the edit), and mask", None, "image"
            )
        named = [*((data, f"image[{i}]" if i else "image") for i, data in enumerate(shown))]
        sizes = await api.pixels_of([*named, *((data, "mask") for data in masks)])
        mask = masks[0] if masks else None
        hidden = await api.aside(pictures.with_mask, shown[0], mask, cost=sizes[0] + sum(sizes[len(shown) :]))
        control = await api.opened(named[1:])
        asked = tasks.edit(hidden, control[0], given.prompt) if control else tasks.infill(hidden, given.prompt)
        return await answer(http, asked, given, "image_edit")

    @router.post("/variations", response_model=Images, openapi_extra=VARIATION_BODY)
    async def vary(http: HttpRequest) -> Any:
        """Draw pictures after a picture, which is read as if it had been retrieved."""
        fields, files = await form_of(http)
        given = Variation.model_validate(fields, strict=False)
        call().shorten(given.racm3.timeout_s)
        shown = files.pop("image", [])
        if files or len(shown) != 1 or given.stream:
            raise ApiError(400, "the one file of a variation is its image; there is no stream of it", None, "image")
        (image,) = await api.opened([(shown[0], "image")])
        asked = Request(Document.of(Hole("image")), retrieved=[Document.of(image)])
        return await answer(http, asked, given, "image_variation")

    @router.get(
        "/files/{name}",
        response_class=Response,
        responses={200: {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}}},
    )
    async def file(name: Annotated[str, Path(max_length=64)], asked: Annotated[Signed, Query()]) -> Response:
        """A picture that was asked for as a URL, as long as its address holds."""
        data, kind = api.files.get(name, asked.until, asked.signature)
        return Response(data, media_type=f"image/{kind}", headers={"Cache-Control": "no-store"})

    async def answer(http: HttpRequest, request: Request, fields: Drawing, kind: str) -> Images | Response:
        """``kind``: the name of its events."""
        api.check_model(fields.model)
        size_px = _size_px(fields.size or "auto", api.model.image.image_size_px)
        request = replace(request, settings=settings_of(fields.racm3))
        if fields.stream:
            if fields.n not in (None, 1) or fields.racm3.samples != 1:
                raise ApiError(400, "a stream shows one picture; leave out n and samples, or stream", None, "stream")
            if fields.response_format == "url":
                raise ApiError(400, "a stream holds its pictures; leave out response_format", None, "response_format")
            return await streamed(events(request, fields, kind, size_px))
        done = await api.completions(request, fields.racm3, fields.n or 1, "prompt")
        return await api.aside(made, done, fields, request.settings, size_px, str(http.base_url))

    async def events(request: Request, fields: Drawing, kind: str, size_px: int) -> AsyncIterator[bytes]:
        index = 0
        most = 64 if fields.partial_images is None else fields.partial_images
        facts: dict[str, Any] = {"size": f"{size_px}x{size_px}", "output_format": fields.output_format or "png"}
        facts |= {"quality": "auto", "background": "opaque"}
        async for happening in api.happenings(request, fields.racm3, show=most > 0, param="prompt"):
            facts["created_at"] = int(time.time())
            if isinstance(happening, Place):
                yield comment(happening)
            elif isinstance(happening, list):
                whole = await api.aside(made, happening, fields, request.settings, size_px, "")
                told = whole.data[0].model_dump(exclude={"url"})
                told |= whole.model_dump(include={"usage", "racm3", "sources"}, by_alias=True)
                yield event({"type": f"{kind}.completed"} | told | facts, f"{kind}.completed")
            elif index < most:
                picture = await api.aside(shown, happening, fields, size_px)
                told = {"type": f"{kind}.partial_image", "b64_json": picture, "partial_image_index": index}
                yield event(told | facts, f"{kind}.partial_image")
                index += 1

    def shown(partial: Partial, fields: Drawing, size_px: int) -> str:
        assert isinstance(partial.content, Image)
        return base64.b64encode(_encoded(partial.content, fields, size_px)).decode()

    def made(done: Sequence[Completion], fields: Drawing, settings: Settings, size_px: int, base_url: str) -> Images:
        data = []
        for one in done:
            told = api.attributions(one, fields.racm3)
            assert isinstance(one.answer, Image)
            encoded = _encoded(one.answer, fields, size_px)
            by_url = fields.response_format == "url"
            data.append(
                Drawn(
                    b64_json=None if by_url else base64.b64encode(encoded).decode(),
                    url=base_url + api.files.put(encoded, fields.output_format or "png") if by_url else None,
                    score=one.score,
                    attribution=told[-1] if told else None,
                )
            )
        text, image = api.prompt_tokens(done)
        new = new_tokens(done)
        return Images(
            created=int(time.time()),
            data=data,
            size=f"{size_px}x{size_px}",
            output_format=fields.output_format or "png",
            usage=ImageUsage(
                input_tokens=text + image,
                output_tokens=new,
                total_tokens=text + image + new,
                input_tokens_details=TokenDetails(text_tokens=text, image_tokens=image),
            ),
            sources=api.sources(done[0]),
            racm3=api.used(settings, fields.racm3, settings.image.temperature),
        )

    return router


async def form_of(http: HttpRequest) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The fields of a form, and its files. A field is given once; ``racm3`` as JSON, or field by field."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, f"the body is a form (multipart/form-data), not {kind or 'nothing'!r}")
    try:
        form: FormData = await http.form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
    except ApiError:
        raise
    except Exception as error:  # what parsers raise at a damaged form is of every kind
        detail = getattr(error, "detail", None) or "it cannot be read"
        raise ApiError(400, f"the form is broken: {detail}") from None
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(await value.read())
                continue
            *outer, key = re.findall(r"\w+", name) if NESTED.fullmatch(name) else [name]
            where: Any = fields
            for one in outer:
                where = where.setdefault(one, {}) if isinstance(where, dict) else None
            if not isinstance(where, dict) or key in where:
                raise ApiError(400, f"the field {name} is given twice", None, name)
            where[key] = _json(name, value) if name in ("racm3", "metadata") else value
    finally:
        await form.close()
    return fields, files


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, f"{name} is no JSON", None, name) from None


def _size_px(size: str, usual_px: int) -> int:
    if size == "auto":
        return usual_px
    width, height = (int(side) for side in size.split("x"))
    if width != height or not SMALLEST_PX <= width <= LARGEST_PX:
        raise ApiError(
            400, f"size is {size}; pictures are squares of {SMALLEST_PX} to {LARGEST_PX} px, or auto", None, "size"
        )
    return width


def _encoded(picture: Image, fields: Drawing, size_px: int) -> bytes:
    """A picture in the size and format that were asked for."""
    pil, buffer, kind = picture.pil, io.BytesIO(), fields.output_format or "png"
    if pil.width != size_px:
        pil = pil.resize((size_px, size_px), PIL.Image.Resampling.LANCZOS)
    quality = (
        {} if kind == "png" else {"quality": 100 if fields.output_compression is None else fields.output_compression}
    )
    pil.save(buffer, kind, **quality)
    return buffer.getvalue()
