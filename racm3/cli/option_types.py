"""How the values of options are read, and what help texts call them. Paths are expanded: shells leave --out=~/a.png."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

C = TypeVar("C")
PATHS = ConstructorRegistry()


@PATHS.primitive_rule
def _path(asked: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    return _expanded(Path) if asked.type is Path else None


def _expanded(kind: Callable[[str], C]) -> PrimitiveConstructorSpec[C]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda given: kind(os.path.expanduser(given[0])),
        is_instance=lambda value: isinstance(value, (str, Path)),
        str_from_instance=lambda value: [str(value)],
    )


def _several(metavar: str) -> object:
    return arg(metavar=f"[{metavar} ...]")


FolderArgument = Positional[Annotated[Path, arg(metavar="FOLDER")]]
FileArgument = Positional[Annotated[Path, arg(metavar="FILE")]]
DataArgument = Positional[Annotated[Path, arg(metavar="DATA", help="In any layout of docs/formats.md.")]]
DataArguments = Positional[
    Annotated[tuple[str, ...], arg(metavar="[DATA ...]", help="Documents in any layout of docs/formats.md.")]
]
PictureArgument = Positional[
    Annotated[Path, arg(metavar="PICTURE", help="Of any size: the middle square of it is looked at.")]
]
TextArgument = Positional[Annotated[str, arg(metavar="TEXT")]]
Folder = Annotated[Path, arg(metavar="FOLDER")]
File = Annotated[Path, arg(metavar="FILE")]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER")]
OptionalFile = Annotated[Path | None, arg(metavar="FILE")]
OptionalText = Annotated[str | None, arg(metavar="TEXT")]
OptionalNumber = Annotated[float | None, arg(metavar="NUMBER")]
Models = Annotated[
    str,
    _expanded(str),
    arg(metavar="FOLDER", help="A folder of models, or scenes, the shipped ones of the built-in world."),
]
Boxes = Annotated[tuple[tuple[int, int, int, int], ...], _several("LEFT TOP WIDTH HEIGHT")]
WordsArgument = Positional[Annotated[tuple[str, ...], arg(metavar="[WORD ...]", help="What to look for.")]]
IdArgument = Positional[Annotated[str, arg(metavar="ID", help="Of a document; racm3 memory search prints it.")]]
Ids = Positional[Annotated[tuple[str, ...], _several("ID")]]
Overrides = Annotated[tuple[str, ...], _several("KEY=VALUE")]
