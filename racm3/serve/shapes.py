"""Shapes: the requests of the API, OpenAI's where there is one. What is not in them is an error. Ours is ``racm3``,
how to complete."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from racm3.settings import USUAL
from racm3.util.options import options_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_TEXT_CHARS = 10_000
MAX_SEED = 2**53
"""What JavaScript can write."""
TEXT = r"\S"
ID = r"^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}$"
SIZE = r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$"

Name = Annotated[str, Field(pattern=r"^[^:]+$", max_length=64)]
"""Of something registered: what a request names is not imported."""

Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS, pattern=TEXT)]
Picture = Annotated[str, Field(pattern=r"^[A-Za-z]+:", description="A data URL: data:image/png;base64,...")]
Size = Annotated[
    str, Field(pattern=SIZE, description='"auto", as the model draws, or "NxN", scaled, N from 16 to 1024')
]
User = Annotated[str, Field(max_length=256, description="For the client's own records; not looked at.")]


Nothing = Annotated[list[Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Shape(BaseModel):
    """A request: every field as declared, and no other."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


SEED = next(about for name, _, about in options_of(USUAL) if name == "seed")

MOST: dict[str, float] = {"k": 8, "contexts": 8, "samples": 16, "max_text_tokens": 1024}
MOST |= {"temperature": 10, "context_aware": 20, "guidance": 20}
"""What one request may ask of a server, where ``Settings`` allows more (ours)."""


def shape_of(options: DataclassInstance, name: str, base: type[BaseModel]) -> Any:
    """A shape with a field for each option of a dataclass, whose values are the defaults."""
    hints, fields = get_type_hints(type(options)), dict[str, Any]()
    for field in dataclasses.fields(options):
        value, about = getattr(options, field.name), field.metadata["option"]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = shape_of(value, f"{field.name.capitalize()}{type(value).__name__}", Shape)
            fields[field.name] = (inner, Field(default_factory=inner, description=about.help))
            continue
        kind, most = hints[field.name], MOST.get(field.name, about.most)
        if kind == dict[str, float]:
            kind, most = dict[Name, float], None
        elif most is None:
            most = MAX_SEED
        limits = {"ge": about.least, "gt": about.above, "le": most}
        fields[field.name] = (kind, Field(default=value, description=about.help, **limits))
    return create_model(name, __base__=base, **fields)


class Asked(Shape):
    """What a request may ask for beside ``Settings``: the same option of all that is generated at once, and more."""

    context_aware: float | None = Field(
        default=None, ge=0, le=MOST["context_aware"], description="That of pictures and texts"
    )
    guidance: float | None = Field(default=None, ge=0, le=MOST["guidance"], description="That of pictures")
    temperature: float | None = Field(
        default=None, ge=0, le=MOST["temperature"], description="That of pictures; in a chat, that of texts"
    )
    retrieve: bool = Field(default=True, description="False: without the memory")
    attribution: bool = Field(default=False, description="Tell what was drawn from which source, and where in it")
    timeout_s: float | None = Field(default=None, gt=0, description="At most the server's own limit")


class Options(shape_of(USUAL, "SettingsOptions", Asked)):  # type: ignore[misc]
    """How to complete: every option of ``racm3.Settings``, and those for all that is generated at once."""

    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description=SEED.help)


NO_CHOICE = "There is one way here, and this is its name; another value is an error."
UNREAD = "For the client's own records; not looked at."
Note = Annotated[str, Field(max_length=512, description=UNREAD)]
Notes = Annotated[dict[Annotated[str, Field(max_length=64)], Note], Field(max_length=16, description=UNREAD)]


class Drawing(Shape):
    """What requests for pictures have in common."""

    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=10, description="1 by default; each has a seed of its own")
    size: Size | None = None
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description='"b64_json" by default; "url": a signed address that holds for ten minutes'
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(default=None, description='"png" by default')
    output_compression: int | None = Field(default=None, ge=0, le=100, description="Of jpeg and webp; 100 by default")
    quality: Literal["auto", "standard"] | None = Field(default=None, description=NO_CHOICE)
    style: Literal["natural"] | None = Field(default=None, description=NO_CHOICE)
    background: Literal["auto", "opaque"] | None = Field(default=None, description=NO_CHOICE)
    moderation: Literal["auto", "low"] | None = Field(default=None, description="What --policy does; no other")
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=64, description="At most so many; all rows by default")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="As racm3.seed")
    user: User | None = None
    racm3: Options = Field(default_factory=Options)

    @model_validator(mode="after")
    def _one_seed(self) -> Drawing:
        own = self.racm3.seed
        if None not in (self.seed, own) and self.seed != own:
            raise ValueError(f"seed is given twice, as {self.seed} and {own}; give one")
        if self.seed is not None:
            self.racm3.seed = self.seed
        if self.output_compression not in (None, 100) and self.output_format in (None, "png"):
            raise ValueError("output_compression is that of jpeg and webp; a png loses nothing: leave it out")
        return self


class Generation(Drawing):
    prompt: Words


class Edit(Drawing):
    """The fields of the form beside its files."""

    prompt: Words | None = None
    input_fidelity: Literal["high"] | None = Field(
        default=None, description="What is not hidden is kept to the pixel; another value is an error."
    )


class Variation(Drawing):
    """The fields of the form beside its file."""


class Embedding(Shape):
    model: str | None = None
    input: Words | Annotated[list[Words], Field(min_length=1, max_length=128)] = Field(
        description="Texts; what is longer than the encoder reads loses its end"
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, description="The encoder's own; another number is an error")
    user: User | None = None


class TextPart(Shape):
    type: Literal["text"] = "text"
    text: Words


class ImageUrl(Shape):
    url: Picture
    detail: Literal["auto", "low", "high"] = Field(default="auto", description="All pictures are looked at in one size")


class ImagePart(Shape):
    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


class HolePart(Shape):
    """What is to be generated, in place: ours."""

    type: Literal["hole"] = "hole"
    modality: Literal["text", "image"]


AnyPart = Annotated[TextPart | ImagePart | HolePart, Field(discriminator="type")]


class Message(Shape):
    """Also an answer of ours, as it came."""

    role: Literal["user", "assistant", "system", "developer"]
    content: (
        Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | Annotated[list[AnyPart], Field(max_length=64)] | None
    ) = None
    images: Annotated[list[ImagePart], Field(max_length=64)] | None = Field(
        default=None, description="Those of an answer, echoed back; they stand behind its content"
    )
    name: Note | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None


class StreamOptions(Shape):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(Shape):
    type: Literal["text"]


Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Chat(Shape):
    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=64)
    n: int | None = Field(default=None, ge=1, le=10)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        default=None, description="The text ends before the first of these"
    )
    logprobs: bool | None = Field(default=None, description="Tell the log-probability of each token")
    top_logprobs: Literal[0] | None = Field(default=None, description="Only those of the tokens themselves are told")
    max_tokens: int | None = Field(default=None, ge=1, le=1024)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1024)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text", "image"]], Field(max_length=2)] | None = Field(
        default=None, description="Not looked at: the holes of the document say what is made"
    )
    tools: Nothing | None = Field(default=None, description="None: there are no tools here")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="Not looked at: there are no tools here")
    store: Literal[False] | None = Field(default=None, description="Nothing is stored")
    metadata: Notes | None = None
    user: User | None = None
    racm3: Options = Field(default_factory=Options)

    @property
    def stops(self) -> list[str]:
        """Before what the text ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Classification(Shape):
    model: str | None = None
    images: list[Picture] = Field(min_length=1, max_length=16)
    examples: dict[Words, Annotated[list[Picture], Field(min_length=1, max_length=8)]] = Field(
        min_length=2, max_length=10, description="Pictures of each label, equally many"
    )


class NewDocument(Shape):
    """A document to remember: words, a picture or both."""

    id: str | None = Field(default=None, pattern=ID, description="Made of the content if there is none")
    text: Words | None = None
    image: Picture | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Search(Shape):
    text: Words | None = None
    image: Picture | None = None
    limit: int = Field(default=10, ge=1, le=100)
    where: list[Annotated[str, Field(max_length=200)]] = Field(
        default_factory=list, max_length=8, description="Conditions on the metadata, such as license=CC0 or width>=512"
    )


class Pages(Shape):
    """Which documents to list: the fields of a query."""

    model_config = ConfigDict(strict=False)

    offset: int = Field(default=0, ge=0, le=MAX_SEED)
    limit: int = Field(default=20, ge=1, le=100)
    contains: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="Only those whose text or id contains it"
    )
    modality: Literal["text", "image"] | None = Field(default=None, description="Only those that have such a part")
    where: list[Annotated[str, Field(max_length=200)]] = Field(
        default_factory=list, max_length=8, description="Conditions on the metadata, as in a search"
    )
    sort: Literal["added", "id", "text"] = "added"
    order: Literal["up", "down"] = "up"


class Changed(Shape):
    """What of a document becomes another: its caption, its facts, or both."""

    text: Words | None = None
    metadata: dict[str, Any] | None = None


class Which(Shape):
    """Which picture of a document: the field of a query."""

    model_config = ConfigDict(strict=False)

    n: int = Field(default=0, ge=0, le=MAX_SEED)


class Signed(Shape):
    """What makes the address of a picture hold: the fields of a query."""

    model_config = ConfigDict(strict=False)

    until: int = Field(ge=0, le=MAX_SEED)
    signature: str = Field(max_length=64)
