"""What people call the fields and the files that hold a picture's name and its captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from racm3.data.item import MAX_LINE_BYTES, content, json_object, texts
from racm3.document import Text
from racm3.errors import SourceError

PICTURE_FIELDS = (
    *("file_name", "filename", "filepath", "file_path", "image", "image_path", "image_name", "image_file", "img"),
    *("img_path", "picture", "path", "file"),
)
"""Of a list: the first that is there names the picture."""
TEXT_FIELDS = (
    *("text", "caption", "captions", "txt", "prompt", "description", "title", "sentence", "sentences", "comment"),
)
"""The first that is there holds the caption or a list of captions; the others are metadata."""
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".apng", ".dib", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpx"),
    *(".jpf", ".jxl", ".tga", ".vda", ".icb", ".vst", ".dds", ".psd", ".psb", ".ico", ".cur", ".icns", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".pfm", ".qoi", ".pcx", ".dcx", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".xbm", ".xpm", ".msp"),
    *(".pxr", ".gbr", ".ftc", ".ftu", ".blp", ".fli", ".flc", ".eps", ".svg", ".xcf", ".exr", ".hdr"),
)
"""A file of such a name is a picture, and is said to be broken or not to be read where it cannot be."""
TEXT_SUFFIXES = (".txt", ".caption")
JSON_SUFFIX = ".json"


def field_of(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of ``wanted`` that is among ``names``, as it is written there."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.strip().lower(), name)
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def take_captions(record: dict[str, Any]) -> list[Text]:
    """The captions that a record holds, each once; their field is taken out of it.

    Raises SourceError if they are neither a string nor a list of strings.
    """
    field = field_of((name for name, value in record.items() if value is not None), TEXT_FIELDS)
    value = record.pop(field) if field is not None else None
    return distinct(value if isinstance(value, list) else [value])


def distinct(values: Iterable[Any]) -> list[Text]:
    """The texts among ``values``, in order, each once."""
    return list(dict.fromkeys(text for value in values for text in texts(value)))


def with_all(metadata: dict[str, Any], captions: Sequence[Text]) -> dict[str, Any]:
    """The metadata of a picture with several captions, of which its document has the first."""
    return {**metadata, "captions": [caption.text for caption in captions]} if len(captions) > 1 else metadata


def beside(picture: Path, exists: Callable[[Path], bool] = os.path.lexists) -> list[Path]:
    """The files beside a picture that tell about it: photo.txt, .caption, .json, or photo.jpg.txt and so on."""
    stem, name = str(picture.with_suffix("")), str(picture)
    endings = [ending for suffix in (*TEXT_SUFFIXES, JSON_SUFFIX) for ending in (suffix, suffix.upper())]
    places = dict.fromkeys(Path(start + ending) for ending in endings for start in (stem, name))
    return [place for place in places if place != picture and exists(place)]


def is_json(file: Path) -> bool:
    """Whether a file beside a picture is a .json of its metadata."""
    return file.suffix.lower() == JSON_SUFFIX


def read_record(file: Path) -> dict[str, Any]:
    """The object in a .json beside a picture. Raises SourceError if there is none."""
    try:
        return json_object(content(file, MAX_LINE_BYTES))
    except OSError as error:
        raise SourceError(str(error)) from None


def told_beside(files: Sequence[Path], records: Sequence[dict[str, Any]]) -> tuple[list[Text], dict[str, Any]]:
    """The captions and the metadata of the texts among ``files`` and of the ``records`` of the others.

    Where there is a text, the fields of the records are all metadata.
    """
    captions = distinct(file for file in files if not is_json(file))
    metadata: dict[str, Any] = {}
    for record in records:
        rest = dict(record)
        if not captions:
            captions = take_captions(rest)
        metadata = {**rest, **metadata}
    return captions, metadata
