"""``/v1/memory``: documents of the memory, added, read, searched and deleted. The very next request sees a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from racm3.data import Item
from racm3.data.item import checked
from racm3.data.reading import AT
from racm3.document import Document, Image, Part, Text
from racm3.memory.memory import Memory
from racm3.memory.metadata_filter import Facts, Where
from racm3.memory.metadata_filter import where as fulfilling
from racm3.memory.rows import content_hash
from racm3.retriever.ingest import remember_kinds
from racm3.retriever.retriever import Hit, searcher
from racm3.serve.answers import Deleted, Found, Page, Remembered, Results
from racm3.serve.api import HEAVY_COST, Api, image_path
from racm3.serve.guard import ApiError
from racm3.serve.image_routes import form_of
from racm3.serve.shapes import ID, Changed, NewDocument, Pages, Search, Which

ORIGIN = "api"
METADATA_CHARS = 20_000
"""As JSON (ours): a page of facts."""
MOST_SIFTED = 50_000
"""Documents of which all facts are read to sift and sort them (ours): a second."""
SIFTING = 2 << 20
"""What that costs, in pixels to decode."""

ItemId = Annotated[str, Path(min_length=1, max_length=1024, description="Percent-encoded")]

NEW_FORM: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "pattern": ID},
        "text": {"type": "string"},
        "image": {"type": "string", "format": "binary"},
        "metadata": {"type": "object"},
    },
}
NEW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": NewDocument.model_json_schema(ref_template="#/components/schemas/{model}")},
            "multipart/form-data": {"schema": NEW_FORM},
        },
    }
}


def may_write(request: Request) -> None:
    """Raises ApiError if the request's token may not change the memory."""
    if request.scope["racm3.scope"] != "write":
        raise ApiError(403, "this token may not change the memory; one of scope write may", "insufficient_scope")


def routes(api: Api) -> APIRouter:
    """The routes of the memory."""
    router, memory_thread = APIRouter(prefix="/v1/memory", tags=["memory"]), api.engine_thread.memory_thread

    @router.post(
        "/documents",
        response_model=Remembered,
        status_code=201,
        responses={200: {"model": Remembered, "description": "It was there already, just so"}},
        openapi_extra=NEW_BODY,
        dependencies=[Depends(may_write)],
    )
    async def add(request: Request) -> Any:
        """Add a document; with the answer, it is on disk. The same one again is no error, another of its id is."""
        memory = api.memory
        item = await new_item(request)
        await api.aside(api.check_policy, "memory", item.document)

        def put() -> bool:
            memory.refresh()
            if memory.known([item.id]):
                if memory.unlike([item]):
                    raise ApiError(
                        409, f"the id {item.id!r} is there with other content; delete it first", "exists", "id"
                    )
                return False
            memory.add([item], vector)
            remember_kinds(memory, [f"{AT}its API"])
            return True

        vector = await api.embed(item.document)
        added = await memory_thread.call(put)
        return JSONResponse(_remembered(item).model_dump(by_alias=True), 201 if added else 200)

    async def new_item(request: Request) -> Item:
        """The document of a request, JSON or a form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        image: Image | None = None
        if kind == "application/json":
            given = NewDocument.model_validate_json(await request.body())
            if given.image is not None:
                (image,) = await api.pictures([(given.image, "image")], whole=True)
        else:
            fields, files = await form_of(request)
            given = NewDocument.model_validate(fields, strict=False)
            shown = files.pop("image", [])
            if files or len(shown) > 1 or given.image is not None:
                raise ApiError(400, "the one file of a document is its image", None, "image")
            if shown:
                (image,) = await api.opened([(shown[0], "image")], whole=True)
        parts: list[Part] = [*([Text(given.text)] if given.text else []), *([image] if image else [])]
        if not parts:
            raise ApiError(400, "there is nothing to remember; give a text, an image or both")
        item = checked(Item(given.id or "new", Document(tuple(parts)), given.metadata, ORIGIN))
        check_metadata(given.metadata)
        return item if given.id else replace(item, id=f"doc-{await api.aside(content_hash, item, cost=_pixels(item))}")

    @router.get("/documents", response_model=Page)
    async def page(asked: Annotated[Pages, Query()]) -> Any:
        """The documents, or those that fulfil what is asked, in the order of the memory or another."""

        memory = api.memory
        chosen = bool(asked.contains or asked.modality or asked.where) or asked.sort != "added"
        fulfils = _condition(asked)

        def read() -> tuple[list[Facts], int]:
            memory.refresh()
            ids, here = list(memory.ids), slice(asked.offset, asked.offset + asked.limit)
            if not chosen:
                found = memory.facts(wanted := (ids if asked.order == "up" else ids[::-1])[here])
                return [found[item_id] for item_id in wanted if item_id in found], len(ids)
            if len(ids) > MOST_SIFTED:
                raise ApiError(400, f"more than {MOST_SIFTED:,} documents are not sifted; search among them instead")
            known = memory.facts(ids)
            facts = [known[item_id] for item_id in ids if item_id in known and fulfils(known[item_id])]
            if asked.sort != "added":
                facts.sort(
                    key=lambda one: ((one.text or "") if asked.sort == "text" else "").casefold() + "\0" + one.id
                )
            return (facts if asked.order == "up" else facts[::-1])[here], len(facts)

        facts, total = await api.aside(read, cost=SIFTING if chosen else 1.0)
        data = [_told(one) for one in facts]
        return Page(data=data, total=total, offset=asked.offset, has_more=asked.offset + asked.limit < total)

    async def one(item_id: str) -> Item:
        for item in await api.aside(known, api.memory, [item_id]):
            return item
        raise no_document(item_id)

    @router.get("/documents/{item_id:path}", response_model=Remembered)
    async def get(item_id: ItemId) -> Any:
        memory = api.memory

        def read() -> list[Facts]:
            memory.refresh()
            return list(memory.facts([item_id]).values())

        for facts in await api.aside(read):
            return _told(facts)
        raise no_document(item_id)

    @router.patch("/documents/{item_id:path}", response_model=Remembered, dependencies=[Depends(may_write)])
    async def change(item_id: ItemId, asked: Changed) -> Any:
        """Give a document another caption, other metadata, or both; the id stays, and so do its pictures."""
        if asked.text is None and asked.metadata is None:
            raise ApiError(400, "there is nothing to change; give a text, metadata or both")
        old = await one(item_id)
        document = old.document
        if asked.text is not None:
            shown = [part for part in document.parts if not isinstance(part, Text)]
            document = Document((Text(asked.text), *shown))
        check_metadata(asked.metadata or {})
        new = checked(
            replace(old, document=document, metadata=old.metadata if asked.metadata is None else asked.metadata)
        )
        await api.aside(api.check_policy, "memory", new.document)
        vector, memory = await api.embed(new.document), api.memory

        def put() -> bool:
            memory.refresh()
            if there := memory.known([item_id]) and not memory.unlike([old]):
                memory.put([new], vector)
            return bool(there)

        if not await memory_thread.call(put):
            raise ApiError(409, f"the document {item_id!r} was changed meanwhile; look at it again", "memory_conflict")
        return _remembered(new)

    @router.get(
        "/images/{item_id:path}",
        response_class=Response,
        responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def image(item_id: ItemId, asked: Annotated[Which, Query()]) -> Response:
        """The n-th picture of a document, as PNG."""
        images = (await one(item_id)).document.images
        if asked.n >= len(images):
            raise ApiError(404, f"the document has {len(images)} pictures, counted from 0", "not_found", "n")
        return Response(
            await api.aside(images[asked.n].png), media_type="image/png", headers={"Cache-Control": "no-store"}
        )

    @router.delete("/documents/{item_id:path}", response_model=Deleted, dependencies=[Depends(may_write)])
    async def delete(item_id: ItemId) -> Any:
        """Delete a document; with the answer, no request finds it any more."""
        memory = api.memory

        def remove() -> bool:
            memory.refresh()
            known = bool(memory.known([item_id]))
            if known:
                memory.remove([item_id])
            return known

        if not await memory_thread.call(remove):
            raise no_document(item_id)
        return Deleted(id=item_id)

    @router.post("/search", response_model=Results)
    async def search(asked: Search) -> Any:
        """The documents that hold the words and are nearest to them, to a picture, or to both, best first.

        Words that nothing in the memory fits find no document.
        """
        memory = api.memory
        parts: list[Part] = [Text(asked.text)] if asked.text else []
        parts += await api.pictures([(asked.image, "image")] if asked.image else [])
        if not parts:
            raise ApiError(400, "there is nothing to look for; give a text, an image or both")
        condition = fulfilling(asked.where) if asked.where else None

        def look() -> list[Hit]:
            found = searcher(memory, api.model.encoder)
            return found.retrieve([Document(tuple(parts))], asked.limit, where=condition)[0]

        hits = await api.aside(look, cost=HEAVY_COST)
        return Results(
            data=[
                Found(**_remembered(hit).model_dump(), score=hit.score, cosine=hit.cosine, words=hit.words)
                for hit in hits
            ]
        )

    return router


def known(memory: Memory, ids: Sequence[str]) -> list[Item]:
    """Those documents that are there now."""
    memory.refresh()
    return memory.get(list(memory.known(ids)))


def check_metadata(metadata: dict[str, Any]) -> None:
    """Raises ApiError if they are longer than is kept."""
    if len(str(metadata)) > METADATA_CHARS:
        raise ApiError(400, f"metadata have at most {METADATA_CHARS:,} characters", None, "metadata")


def no_document(item_id: str) -> ApiError:
    """What is said of an id that is not there."""
    return ApiError(404, f"the memory holds no document {item_id!r}", "not_found", "id")


def _condition(asked: Pages) -> Where:
    fulfils = fulfilling(asked.where)
    part = (asked.contains or "").casefold()

    def all_hold(facts: Facts) -> bool:
        has = asked.modality is None or asked.modality in facts.modalities
        return has and part in f"{facts.text or ''}\0{facts.id}".casefold() and fulfils(facts)

    return all_hold


def _pixels(item: Item) -> int:
    return sum(image.pixels.shape[0] * image.pixels.shape[1] for image in item.document.images)


def _told(facts: Facts) -> Remembered:
    """A document, of which only the facts were read."""
    image = image_path(facts.id) if "image" in facts.modalities else None
    return Remembered(id=facts.id, text=facts.text, image=image, metadata=facts.metadata, origin=facts.origin)


def _remembered(item: Item | Hit) -> Remembered:
    return Remembered(
        id=item.id,
        text=item.document.text,
        image=image_path(item.id) if item.document.images else None,
        metadata=item.metadata,
        origin=item.origin,
    )
