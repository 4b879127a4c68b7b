"""Verbs that answer requests; and ``serve``, which answers those of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tyro.conf import arg

import racm3
from racm3.cli.option_blocks import Drawing, Filling, Retrieving
from racm3.cli.option_types import (
    File,
    Folder,
    Models,
    OptionalFile,
    OptionalFolder,
    OptionalText,
    Overrides,
    PictureArgument,
    TextArgument,
)
from racm3.cli.verb import Verb
from racm3.errors import InputError
from racm3.util.files import check_pictures_out

if TYPE_CHECKING:
    from racm3.pipeline import Completion

LAST_PORT = 65535


class Demo(Verb, name="demo"):
    """Draw, caption and infill pictures of the built-in world, and write a page and a contact sheet to look at.

    Needs no network; made to take less than three minutes on two cores.
    """

    out: Folder = Path("out/demo")  # For memory, index.html and sheet.png; those of an earlier demo are replaced.
    models: Models = "scenes"
    seed: int = 0  # Of the answers. The requests are the first of the built-in world, whatever the seed.

    def run(self) -> None:
        from racm3.demo import SAMPLES, demo

        made = demo(self.out, self.models, settings=racm3.Settings(samples=SAMPLES, seed=self.seed))
        for row in made.rows:
            print("\n".join(row.lines))
        print(f"\nwrote the memory to {made.memory}, a contact sheet to {made.sheet}, the page to {made.page}")


class Generate(Drawing, Retrieving, name="generate"):
    """Draw the picture that a text describes, and print the documents that it was drawn from."""

    text: TextArgument  # What to draw.

    def run(self) -> None:
        request, settings = racm3.Document.of(self.text, racm3.Hole("image")), self.settings()
        check_pictures_out(self.out, self.overlay)
        done = self.model().complete([request], settings)[0]
        print_sources(done)
        self.save(done)


class Caption(Retrieving, name="caption"):
    """Print a caption for a picture, below the documents that it was written from.

    One sample is the most probable caption; several are drawn, at temperature 1 unless another one is given.
    """

    kind: ClassVar[Literal["image", "text"]] = "text"

    picture: PictureArgument

    def run(self) -> None:
        image, settings = racm3.Image.open(self.picture), self.settings()
        done = self.model().caption(image, settings)
        print_sources(done)
        print(done.document.text)


class Infill(Filling, Retrieving, name="infill"):
    """Hide a region of a picture and fill it in, and print the documents that it was filled from."""

    def run(self) -> None:
        hidden, settings = self.hidden(), self.settings()
        check_pictures_out(self.out, self.overlay)
        done = self.model().infill(hidden, self.text, settings)
        print_sources(done)
        self.save(done)


class Edit(Filling, name="edit"):
    """Hide a region of a picture and fill it in after another picture, which is read as if it had been retrieved."""

    control: File  # The picture of what the region is to become.

    def run(self) -> None:
        hidden, control, settings = self.hidden(), racm3.Image.open(self.control), self.settings()
        check_pictures_out(self.out, self.overlay)
        self.save(racm3.RACM3.from_pretrained(self.models).edit(hidden, control, self.text, settings))


class Classify(Verb, name="classify"):
    """Say which label a picture fits best, by one example or more of each, and print how probable each is."""

    picture: PictureArgument
    # Pictures with their labels, any words; equally many of each label.
    example: Annotated[tuple[str, ...], arg(metavar="[LABEL=PICTURE ...]")]
    # What is predicted: the picture behind an example of each label, or the label behind examples of two.
    by: Literal["picture", "label"] = "picture"
    models: Models = "scenes"

    def run(self) -> None:
        shown: dict[str, list[racm3.Image]] = {}
        for one in self.example:
            label, _, path = one.rpartition("=")
            if not label.strip():
                raise InputError(f"the example {one!r} has no label; give LABEL=PICTURE, such as fox=out/fox.png")
            shown.setdefault(label, []).append(racm3.Image.open(path))
        image = racm3.Image.open(self.picture)
        (found,) = racm3.RACM3.from_pretrained(self.models).classify([image], shown, self.by)
        for label, probability in found.items():
            print(f"{probability:.3f}  {label}")


class Serve(Verb, name="serve"):
    """Serve the model and a memory over HTTP, in OpenAI's shapes, with a page: docs/serve.md says how."""

    models: Models = "scenes"
    # The memory to retrieve from and to change; by default the built-in world's, made at the first start.
    memory: OptionalFolder = None
    host: str = "127.0.0.1"  # Where to listen. Others can reach every address but loopback: then a token is wanted.
    port: int = 8000  # Where to listen; 0 for any that is free.
    # Who may do what: lines 'read TOKEN' or 'write TOKEN'. Without it, everybody may do all.
    token_file: OptionalFile = None
    # Hosts whose pictures may be given by their https URL; none by default.
    fetch_from: Annotated[tuple[str, ...], arg(metavar="[HOST ...]")] = ()
    policy: OptionalText = None  # A function that checks every request and answer, as MODULE:FUNCTION.
    # What the API calls the model, and further names that it answers to, such as gpt-image-1 dall-e-3.
    served_model_name: Annotated[tuple[str, ...], arg(metavar="[NAME ...]")] = ()
    # Other origins whose pages may ask, such as https://example.org.
    cors_origin: Annotated[tuple[str, ...], arg(metavar="[ORIGIN ...]")] = ()
    root_path: str = ""  # Where a proxy puts the server, such as /racm3, if not at its root.
    access_log: Literal["none", "text", "json"] = "none"  # A line to stderr for each request, without bodies or tokens.
    # Limits of racm3.serve.limits.Limits that replace the usual ones, such as queue=100 timeout_s=20.
    set: Overrides = ()

    def run(self) -> None:
        if not 0 <= self.port <= LAST_PORT:
            raise InputError(f"--port is {self.port}; give 1 to {LAST_PORT}, or 0 for any that is free")
        from racm3.serve import run
        from racm3.serve.limits import LIMITS
        from racm3.util.config import override

        run.serve(
            self.models,
            self.memory,
            self.host,
            self.port,
            token_file=self.token_file,
            limits=override(LIMITS, self.set),
            fetch_from=self.fetch_from,
            policy=self.policy,
            names=self.served_model_name,
            origins=self.cors_origin,
            root_path=self.root_path,
            access_log=self.access_log,
        )


def print_sources(done: Completion) -> None:
    """A line for each document that was read."""
    from racm3.demo import source_line

    for hit in done.sources:
        print(f"source  {source_line(hit)}")
