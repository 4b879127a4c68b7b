"""``/v1/images``: words to a picture, and a picture's hidden region to what words or another picture say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image
from fastapi import APIRouter
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from racm3 import tasks
from racm3.completion import Completion, Partial, Request
from racm3.document import Image
from racm3.serve import picture_input as pictures
from racm3.serve.api import STREAM, Api, base64_png, event, settings_of, streamed
from racm3.serve.guard import ApiError
from racm3.serve.shapes import Drawing, Drawn, Edit, Generation, Images, ImageUsage, TokenDetails
from racm3.settings import Settings

SMALLEST_PX, LARGEST_PX = 16, 1024
MOST_FIELDS, MOST_FILES, MOST_FIELD_BYTES = 40, 3, 1 << 16
NESTED = re.compile(r"racm3(\[\w+\])+")
"""How a form spells what is nested: racm3[image][top_p]."""

EDIT_FORM = Edit.model_json_schema(ref_template="#/components/schemas/{model}")
EDIT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "anyOf": [{"required": ["image"]}, {"required": ["image[]"]}],
                    "properties": {
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
                        **{name: field for name, field in EDIT_FORM["properties"].items() if name != "racm3"},
                        "racm3": {"$ref": "#/components/schemas/Options"},
                    },
                }
            }
        },
    }
}


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
        shown = files.pop("image", []) + files.pop("image[]", [])
        masks = files.pop("mask", [])
        if files or not 1 <= len(shown) <= 2 or len(masks) > 1:
            raise ApiError(
                400, "files are: image, once or twice (the second controls the edit), and mask", None, "image"
            )
        most = api.limits.pixels
        hidden = await api.aside(pictures.with_mask, shown[0], masks[0] if masks else None, most)
        control = [await api.aside(pictures.opened, data, most, "image[1]") for data in shown[1:]]
        asked = tasks.edit(hidden, control[0], given.prompt) if control else tasks.infill(hidden, given.prompt)
        return await answer(http, asked, given, "image_edit")

    async def answer(http: HttpRequest, request: Request, fields: Drawing, kind: str) -> Images | Response:
        """``kind``: the name of its events."""
        api.check_model(fields.model)
        size_px = _size_px(fields.size, api.model.image.image_size_px)
        request = replace(request, settings=settings_of(fields.racm3))
        if fields.stream:
            if fields.n != 1 or fields.racm3.samples != 1:
                raise ApiError(400, "a stream shows one picture; leave out n and samples, or stream", None, "stream")
            return await streamed(events(http, request, fields, kind, size_px))
        done = await api.completions(http, request, fields.racm3, fields.n)
        return await api.aside(made, done, fields, request.settings, size_px)

    async def events(
        http: HttpRequest, request: Request, fields: Drawing, kind: str, size_px: int
    ) -> AsyncIterator[bytes]:
        index = 0
        most = 64 if fields.partial_images is None else fields.partial_images
        facts = {"size": f"{size_px}x{size_px}", "output_format": "png", "quality": "auto", "background": "opaque"}
        async for partial in api.partials(http, request, fields.racm3, show=most > 0):
            facts["created_at"] = int(time.time())  # type: ignore[assignment]
            if isinstance(partial, list):
                whole = await api.aside(made, partial, fields, request.settings, size_px)
                told = whole.data[0].model_dump()
                told |= whole.model_dump(include={"usage", "racm3", "sources"}, by_alias=True)
                yield event({"type": f"{kind}.completed"} | told | facts, f"{kind}.completed")
            elif index < most:
                png = await api.aside(shown, partial, size_px)
                told = {"type": f"{kind}.partial_image", "b64_json": png, "partial_image_index": index}
                yield event(told | facts, f"{kind}.partial_image")
                index += 1

    def shown(partial: Partial, size_px: int) -> str:
        assert isinstance(partial.content, Image)
        return _png(partial.content, size_px)

    def made(done: Sequence[Completion], fields: Drawing, settings: Settings, size_px: int) -> Images:
        data = []
        for one in done:
            told = api.attributions(one, fields.racm3)
            assert isinstance(one.answer, Image)
            data.append(
                Drawn(b64_json=_png(one.answer, size_px), score=one.score, attribution=told[-1] if told else None)
            )
        text, image = api.prompt_tokens(done)
        new = sum(own.steps for one in done for own in one.answers)
        return Images(
            created=int(time.time()),
            data=data,
            size=f"{size_px}x{size_px}",
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


def _png(picture: Image, size_px: int) -> str:
    pil = picture.pil
    return base64_png(pil if pil.width == size_px else pil.resize((size_px, size_px), PIL.Image.Resampling.LANCZOS))
