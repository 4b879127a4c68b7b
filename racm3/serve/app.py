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

from fastapi import APIRouter, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from racm3 import __version__
from racm3.errors import RACM3Error
from racm3.pipeline import RACM3
from racm3.serve import chat_routes, image_routes, memory_routes
from racm3.serve.api import Api, Policy, as_api_error, first_problem
from racm3.serve.engine_thread import Busy, Gone, Late
from racm3.serve.guard import LIMITS, ApiError, Guard, Limits, Metrics, Tokens, error_body
from racm3.serve.shapes import Error, Model, ModelFacts, Models, Status

PAGE = Path(__file__).with_name("page")
STYLE_FILE = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">')
SCRIPT_FILE = re.compile(r'<script([^>]*) src="(\w+\.js(?:on)?)"></script>')
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "What was wrong, and what to do"},
    "5XX": {"model": Error, "description": "A fault of the server's"},
}


def create_app(
    model: RACM3,
    name: str = "racm3",
    *,
    limits: Limits = LIMITS,
    tokens: Tokens | None = None,
    hosts: Collection[str] = (),
    fetch_from: Collection[str] = (),
    policy: Policy | None = None,
) -> FastAPI:
    """The API over ``model`` and its memory, which the app owns from its start to its end.

    ``name``: of the model, in the API. ``tokens``: who may do what; None lets everybody do all. ``hosts``: the names in
    the Host header that are answered, empty for any. ``fetch_from``: the hosts whose pictures may be given by https
    URL; none by default. ``policy``: see ``api.Policy``.
    """
    api = Api(model, name, limits, fetch_from, policy)
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
    app.add_middleware(Guard, limits=limits, tokens=tokens, hosts=frozenset(hosts), metrics=metrics)
    for kind in (Exception, HTTPException, RequestValidationError, ValidationError, RACM3Error, Busy, Late, Gone):
        app.add_exception_handler(kind, _told)
    protected = [Security(HTTPBearer(auto_error=False, description="If the server was started with tokens"))]
    for routes in (image_routes.routes, chat_routes.routes, memory_routes.routes, _models):
        app.include_router(routes(api), dependencies=protected)
    app.include_router(_system(api, metrics))
    return app


async def _told(request: Request, error: Exception) -> Response:
    """Any error as an answer."""
    if isinstance(error, RequestValidationError):
        problem = ApiError(400, *first_problem(error.errors()))
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            problem = ApiError(415, f"the body is application/json, not {kind or 'nothing'!r}")
    else:
        problem = as_api_error(error)
    body = error_body(problem.status_code, problem.detail, problem.code, problem.param)
    return JSONResponse(body, problem.status_code, problem.headers)


def _models(api: Api) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"])

    async def the_model() -> Model:
        facts = ModelFacts(
            image_size_px=api.model.image.image_size_px,
            grid=api.model.image.grid,
            context_tokens=api.model.generator.config.context_tokens,
            documents=await api.documents(),
            limits=asdict(api.limits),
        )
        return Model(id=api.name, created=api.created, racm3=facts)

    @router.get("", response_model=Models)
    async def models() -> Any:
        return Models(data=[await the_model()])

    @router.get("/{name:path}", response_model=Model)
    async def model(name: str) -> Any:
        api.check_model(name)
        return await the_model()

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
