"""App: the API put together. ``create_app`` makes an ASGI app of a model; ``run.serve`` runs it.

app = create_app(RACM3.from_pretrained("scenes", memory="out/memory"))
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from racm3 import __version__
from racm3.errors import RACM3Error
from racm3.pipeline import RACM3
from racm3.serve import chat_routes, image_routes, memory_routes
from racm3.serve.answers import Error, Model, ModelFacts, Models, Status, Vector, Vectors, VectorUsage
from racm3.serve.api import Api, Policy, as_api_error, first_problem
from racm3.serve.call import Late, call
from racm3.serve.engine_thread import Busy
from racm3.serve.guard import ApiError, Guard, Metrics, Tokens, error_body
from racm3.serve.limits import LIMITS, Limits
from racm3.serve.shapes import Embedding

PAGE = Path(__file__).with_name("page")
STYLE_FILE = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">')
SCRIPT_FILE = re.compile(r'<script([^>]*) src="(\w+\.js(?:on)?)"></script>')
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
EMBEDDING = 1 << 18
"""What the vector of a text costs, in pixels to decode (ours)."""
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "What was wrong, and what to do"},
    "5XX": {"model": Error, "description": "A fault of the server's"},
}


def create_app(
    model: RACM3,
    *names: str,
    limits: Limits = LIMITS,
    tokens: Tokens | None = None,
    hosts: Collection[str] = (),
    fetch_from: Collection[str] = (),
    policy: Policy | None = None,
    origins: Collection[str] = (),
) -> FastAPI:
    """The API over ``model`` and its memory, which the app owns from its start to its end.

    ``names``: of the model, in the API, and its aliases; "racm3" if there is none. ``tokens``: who may do what; None
    lets everybody do all. ``hosts``: the names in the Host header that are answered, empty for any. ``fetch_from``: the
    hosts whose pictures may be given by https URL; none by default. ``policy``: see ``api.Policy``. ``origins``: whose
    pages may ask, beside the server's own.
    """
    api = Api(model, names or ("racm3",), limits, fetch_from, policy)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        api.engine_thread.start()
        yield
        await asyncio.to_thread(api.engine_thread.stop)

    app = FastAPI(
        title="racm3",
        version=__version__,
        description="Retrieval-augmented pictures and words: OpenAI's shapes, and the sources of every answer.",
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
    )
    app.add_middleware(
        Guard, limits=limits, tokens=tokens, hosts=frozenset(hosts), origins=frozenset(origins), metrics=metrics
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*origins],
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    for kind in (Exception, HTTPException, RequestValidationError, ValidationError, RACM3Error, Busy, Late):
        app.add_exception_handler(kind, _told)
    protected = [Security(HTTPBearer(auto_error=False, description="If the server was started with tokens"))]
    for routes in (image_routes.routes, chat_routes.routes, memory_routes.routes, _models, _embeddings):
        app.include_router(routes(api), dependencies=protected)
    app.include_router(_system(api, metrics))
    app.state.engine_thread = api.engine_thread
    return app


async def _told(request: Request, error: Exception) -> Response:
    """Any error as an answer."""
    if isinstance(error, RequestValidationError):
        problem = ApiError(400, *first_problem(error.errors(), error.body))
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            problem = ApiError(415, f"the body is application/json, not {kind or 'nothing'!r}")
    else:
        problem = as_api_error(error)
    body = error_body(problem.status_code, problem.detail, problem.code, problem.param)
    return JSONResponse(body, problem.status_code, problem.headers)


def _models(api: Api) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"])

    async def the_model(name: str) -> Model:
        facts = ModelFacts(
            image_size_px=api.model.image.image_size_px,
            grid=api.model.image.grid,
            context_tokens=api.model.generator.config.context_tokens,
            documents=await api.documents(),
            limits=asdict(api.limits),
        )
        return Model(id=name, created=api.created, racm3=facts)

    @router.get("", response_model=Models)
    async def models() -> Any:
        return Models(data=[await the_model(name) for name in api.names])

    @router.get("/{name:path}", response_model=Model)
    async def model(name: str) -> Any:
        api.check_model(name)
        return await the_model(name)

    return router


def _embeddings(api: Api) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["embeddings"])

    @router.post("/embeddings", response_model=Vectors)
    async def embed(asked: Embedding) -> Any:
        """Vectors of texts, of unit norm: those by which the memory is searched."""
        api.check_model(asked.model)
        encoder, texts = api.model.encoder, [asked.input] if isinstance(asked.input, str) else asked.input
        if asked.dimensions not in (None, encoder.dimension):
            told = f"dimensions is {asked.dimensions}; the encoder's vectors have {encoder.dimension}"
            raise ApiError(400, told, None, "dimensions")

        def embedded() -> tuple[np.ndarray, int]:
            read = sum(encoder.text_inputs([text])["input_ids"].numel() for text in texts)
            return encoder.embed_texts(texts), read

        vectors, read = await api.aside(embedded, cost=EMBEDDING * len(texts))
        as_text = asked.encoding_format == "base64"
        data = [
            Vector(index=i, embedding=base64.b64encode(row.tobytes()).decode() if as_text else row.tolist())
            for i, row in enumerate(vectors)
        ]
        call().prompt_tokens += read
        return Vectors(model=api.name, data=data, usage=VectorUsage(prompt_tokens=read, total_tokens=read))

    return router


def _system(api: Api, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["system"])
    registry = metrics.registry
    for name, about, value in (
        ("racm3_waiting", "Requests that wait for the model.", lambda: api.engine_thread.waiting),
        ("racm3_running", "Requests that share the model's steps.", lambda: api.engine_thread.running),
        ("racm3_steps", "Steps of the model so far.", lambda: api.engine_thread.steps),
    ):
        Gauge(name, about, registry=registry).set_function(value)
    documents = Gauge("racm3_documents", "In the memory.", registry=registry)

    @router.get("/health", response_model=Status)
    async def health() -> Any:
        """Whether the process answers."""
        return Status(status="ok")

    @router.get("/ready", response_model=Status, responses={503: {"model": Status}})
    async def ready() -> Any:
        """Whether it takes requests: not before the model is loaded, and not once it is to end."""
        if api.engine_thread.alive:
            return Status(status="ready")
        return JSONResponse({"status": "not ready"}, 503)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        """For Prometheus."""
        if (count := await api.documents()) is not None:
            documents.set(count)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    if PAGE.exists():
        text = page_text()
        headers = {
            "Content-Security-Policy": _policy(text),
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

        @router.get("/", include_in_schema=False)
        async def page() -> HTMLResponse:
            return HTMLResponse(text, headers=headers)

    return router


def page_text(folder: Path = PAGE) -> str:
    """The page as one document: the files that ``index.html`` names, put where it names them.

    None of them holds ``</script``, which would end it.
    """

    def file(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    text = STYLE_FILE.sub(lambda found: f"<style>\n{file(found[1])}</style>", file("index.html"))
    return SCRIPT_FILE.sub(lambda found: f"<script{found[1]}>\n{file(found[2])}</script>", text)


def _policy(page: str) -> str:
    """What the page may do: run its own scripts, told by their hashes, and talk to this server."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in SCRIPT.findall(page)]
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
