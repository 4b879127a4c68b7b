"""Answers: what the API gives, in OpenAI's shapes where there is one, and ours beside it: ``sources``, ``racm3``,
``attribution``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from racm3.serve.shapes import ImagePart, TextPart, shape_of
from racm3.settings import USUAL


class Source(BaseModel):
    """A document that an answer was made from. ``score``: cosine with the query."""

    id: str
    score: float
    caption: str | None
    image: str | None
    origin: str = Field(serialization_alias="from")


class Attribution(BaseModel):
    """What a generated part drew on each source: ``gains`` in nats, a row a cell of ``grid`` or a word."""

    grid: tuple[int, int] | None = None
    cells: list[int] = []
    words: list[str] | None = None
    gains: list[list[float]]
    shares: list[float]
    overlay: str | None = Field(default=None, description="A PNG, base64: picture and sources, side by side")


class Used(shape_of(USUAL, "UsedSettings", BaseModel)):  # type: ignore[misc]
    """What reproduces an answer: as ``racm3`` of a request, it gives the same one while the memory is the same."""

    context_aware: float
    guidance: float
    temperature: float
    retrieve: bool


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class ImageUsage(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails


class Drawn(BaseModel):
    b64_json: str | None
    url: str | None = None
    score: float
    attribution: Attribution | None


class Images(BaseModel):
    created: int
    data: list[Drawn]
    size: str
    output_format: Literal["png", "jpeg", "webp"] = "png"
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    usage: ImageUsage
    sources: list[Source]
    racm3: Used


class TextUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    images: list[ImagePart]


class TokenLogProb(BaseModel):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class LogProbs(BaseModel):
    content: list[TokenLogProb]
    refusal: None = None


class Choice(BaseModel):
    index: int
    logprobs: LogProbs | None = None
    finish_reason: Literal["stop", "length"]
    message: Said
    parts: list[TextPart | ImagePart] = Field(description="What was generated, in order")
    attribution: list[Attribution] | None
    score: float


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: TextUsage
    sources: list[Source]
    racm3: Used
    warnings: list[str] = Field(description="What of the request was left out")


class Vector(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class VectorUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Vectors(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Vector]
    usage: VectorUsage


class Label(BaseModel):
    label: str
    probability: float


class Classified(BaseModel):
    index: int
    labels: list[Label]


class Classifications(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Classified]


class Remembered(BaseModel):
    """A document of the memory."""

    id: str
    object: Literal["memory.document"] = "memory.document"
    text: str | None
    image: str | None
    metadata: dict[str, Any]
    origin: str = Field(serialization_alias="from")


class Found(Remembered):
    score: float = Field(description="Of the cosine and the words; 1 is the best there can be")
    cosine: float | None = Field(description="Of the vectors of query and document")
    words: float | None = Field(description="The share of the query's words that the text holds; null without words")


class Page(BaseModel):
    object: Literal["list"] = "list"
    data: list[Remembered]
    total: int
    offset: int
    has_more: bool


class Results(BaseModel):
    object: Literal["list"] = "list"
    data: list[Found]


class Deleted(BaseModel):
    id: str
    object: Literal["memory.document.deleted"] = "memory.document.deleted"
    deleted: Literal[True] = True


class ModelFacts(BaseModel):
    image_size_px: int
    grid: tuple[int, int]
    context_tokens: int
    documents: int | None = Field(description="In the memory; null without one")
    limits: dict[str, float]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["racm3"] = "racm3"
    racm3: ModelFacts


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    status: Literal["ok", "ready", "not ready"]


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every error has this shape."""

    error: Problem
