"""Options that several verbs have, and what is done with them; each is declared once.

A verb is a dataclass: its fields are its options, the comment at a field is its help, its docstring that of the verb.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from tyro.conf import arg

import racm3
from racm3.cli.option_types import (
    Boxes,
    File,
    FolderArgument,
    Models,
    OptionalFile,
    OptionalFolder,
    OptionalNumber,
    OptionalText,
    Overrides,
    PictureArgument,
)
from racm3.cli.verb import Verb
from racm3.errors import InputError
from racm3.util.files import save_picture

if TYPE_CHECKING:
    from racm3.pipeline import Completion
    from racm3.retriever.encoder import Encoder
    from racm3.training.models import Runs

C = TypeVar("C")


def _usual(name: str) -> Any:
    """A whole number whose default is that of ``Settings``, which is looked up when the help of the verb is printed."""
    return arg(metavar="INT", help_behavior_hint=lambda _: f"(default: {getattr(racm3.Settings(), name)})")


class Answering(Verb):
    """How a request is answered."""

    kind: ClassVar[Literal["image", "text"]] = "image"

    models: Models = "scenes"
    # Make so many answers and keep the one that the encoder finds nearest to the text, or else the likeliest.
    samples: Annotated[int | None, _usual("samples")] = None
    seed: Annotated[int | None, _usual("seed")] = None  # The same one gives the same answer.
    # How much the documents that are read count; 1 is as usual. By default what racm3.Settings says.
    context_aware: OptionalNumber = None
    # 0 takes the most probable codes or words, 1 draws as the model believes. By default what Settings says.
    temperature: OptionalNumber = None
    # Whatever racm3.Settings has, such as image.top_p=.95 image.top_k=50 text.temperature=0.7 max_text_tokens=20.
    set: Overrides = ()

    def settings(self) -> racm3.Settings:
        """What ``set`` says, then the flags. Several texts are drawn at temperature 1 unless another one is given."""
        from racm3.util.config import override

        given = {f"{self.kind}.context_aware": self.context_aware, f"{self.kind}.temperature": self.temperature}
        given |= {"image.guidance": getattr(self, "guidance", None)}
        given |= {name: getattr(self, name, None) for name in ("k", "contexts", "samples", "seed")}
        flags = [f"{name}={value}" for name, value in given.items() if value is not None]
        several = ["text.temperature=1"] if self.kind == "text" and (self.samples or 1) > 1 else []
        return override(racm3.Settings(), [*several, *self.set, *flags])


class Retrieving(Answering):
    """What is read beside the request."""

    memory: OptionalFolder = None  # The memory to retrieve from; without one, nothing is retrieved.
    k: Annotated[int | None, _usual("k")] = None  # Retrieve so many documents.
    # Retrieve so many times k documents, and average the predictions from k of them at a time.
    contexts: Annotated[int | None, _usual("contexts")] = None
    # How documents are chosen: relevance-redundancy (the paper's), hybrid, coverage, mmr, random, oracle, none,
    # relevance, or MODULE:NAME. By default what racm3.RACM3 says.
    strategy: OptionalText = None

    def model(self) -> racm3.RACM3:
        """The models with their memory, which is opened first: what is wrong there is said before they are loaded."""
        if self.memory is None:
            print("no --memory was given: nothing is retrieved", file=sys.stderr)
        memory = self.memory and racm3.Memory.open(self.memory)
        return racm3.RACM3.from_pretrained(self.models, memory, strategy=self.strategy)


class Drawing(Answering):
    """Where a picture goes."""

    out: File  # Where the picture goes: a .png, .jpg or .webp file.
    guidance: OptionalNumber = None  # How much the text counts; 1 is as usual. By default what Settings says.
    overlay: OptionalFile = None  # Where to draw what the picture took from which source: a picture file as well.

    def save(self, done: Completion) -> None:
        """Write the picture of a completion, and what it drew on."""
        save_picture(done.document.images[-1].pil, self.out)
        if self.overlay is not None:
            drawn = done.attribution[-1].overlay
            if drawn is None:
                raise InputError("there is no source to draw an overlay of; give --memory, and --k above 0")
            save_picture(drawn, self.overlay)


class Filling(Drawing):
    """What is hidden of a picture."""

    picture: PictureArgument
    box: Boxes = ()  # The region to fill, as one or more boxes in px of the picture; they grow to whole codes.
    # The region as a picture instead: transparent, or else white, where it is to be filled. Without either, the region
    # is what is transparent of the picture itself.
    mask: OptionalFile = None
    text: OptionalText = None  # What the whole picture is to show.

    def hidden(self) -> racm3.Image:
        """The picture with its region hidden. Raises InputError unless one way to say which is given."""
        from racm3.masks import masked, transparent

        image = racm3.Image.open(self.picture)
        if self.box and self.mask is None:
            return image.hiding(*self.box)
        if self.box or (self.mask is None and not transparent(self.picture).any()):
            raise InputError("say what to hide: give either --box LEFT TOP WIDTH HEIGHT or --mask FILE")
        return masked(self.picture, self.mask)


class Configured(Verb):
    """Where the settings of a run come from."""

    config: OptionalFile = None  # Settings of the run as .json or .toml; what it leaves out keeps its default.
    # Settings that replace those, such as loop.steps=2000 init_from=FOLDER; run.json beside a model lists them all.
    set: Overrides = ()

    def settings(self, kind: type[C], usual: Callable[[], C]) -> C:
        """The configuration of a run: the file or else the usual one, then ``set``."""
        from racm3.util.config import load, override

        run: Any = load(kind, self.config) if self.config else usual()  # type: ignore[type-var]
        return override(run, self.set)


class Training(Configured):
    """The same for runs that have presets."""

    preset: str = "scenes"  # The run to start from, unless there is --config; racm3/presets.py lists them.

    @property
    def runs(self) -> Runs:
        from racm3.presets import preset

        return preset(self.preset)


class OfMemory(Verb):
    """Which memory."""

    folder: FolderArgument  # The memory, a folder or s3://bucket/name.

    def open(self) -> racm3.Memory:
        """The memory; raises MemoryStoreError if there is none."""
        return racm3.Memory.open(self.folder)


class Embedding(OfMemory):
    """Which memory, and by which encoder."""

    encoder: OptionalFolder = None  # The model that made the memory; by default the shipped one.

    @property
    def encoder_folder(self) -> Path:
        from racm3.model_folder import ModelFolder

        return self.encoder or ModelFolder().encoder_path

    def open_both(self) -> tuple[racm3.Memory, Encoder]:
        """The memory, first, for it may be missing; and its encoder."""
        memory, encoder = self.open(), load_encoder(self.encoder_folder)
        memory.check_encoder(encoder.fingerprint)
        return memory, encoder


def load_encoder(folder: Path) -> Encoder:
    """Open an encoder; transformers is imported only now."""
    from racm3.retriever.encoder import Encoder

    return Encoder.from_pretrained(folder)
