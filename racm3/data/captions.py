"""What people call the fields and the files that hold a picture's name and its captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from racm3.data.item import MAX_LINE_BYTES, Item, content, json_object, name_of, pair, texts
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


@dataclass(frozen=True)
class Captions:
    """The captions of a picture, each once, and why others of them cannot be read."""

    texts: tuple[Text, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Iterable[Any]) -> Captions:
        """The texts in files, in bytes or given as such."""
        found: dict[Text, None] = {}
        problems = []
        for value in values:
            try:
                found.update(dict.fromkeys(texts(value)))
            except (SourceError, OSError) as error:
                what = name_of(value) if isinstance(value, Path) else "a caption"
                problems.append(f"{what} is left out: {error}")
        return cls(tuple(found), tuple(problems))

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __add__(self, others: Captions) -> Captions:
        together = dict.fromkeys((*self.texts, *others.texts))
        return Captions(tuple(together), (*self.problems, *others.problems))

    def item(
        self, item_id: str, pictures: Iterable[Path | bytes | None], metadata: dict[str, Any], origin: str
    ) -> Item:
        """Pictures with these captions: the document has the first, the metadata have all if they are several.

        Raises SourceError if no caption can be read but there are some, or if there is neither a picture nor a text.
        """
        if self.problems and not self.texts:
            raise SourceError("; ".join(self.problems))
        document = pair(self.texts[0] if self.texts else None, *pictures)
        if len(self.texts) > 1:
            metadata = {**metadata, "captions": [caption.text for caption in self.texts]}
        return Item(item_id, document, metadata, origin, self.problems)


def take_captions(record: dict[str, Any]) -> Captions:
    """The captions that a record holds, a string or a list of them; their field is taken out of it."""
    field = field_of((name for name, value in record.items() if value is not None), TEXT_FIELDS)
    value = record.pop(field) if field is not None else None
    return Captions.of(value if isinstance(value, list) else [value])


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


def told_beside(files: Sequence[Path], records: Sequence[dict[str, Any]]) -> tuple[Captions, dict[str, Any]]:
    """The captions and the metadata of the texts among ``files`` and of the ``records`` of the others.

    Where there is a text, the fields of the records are all metadata.
    """
    captions = Captions.of(file for file in files if not is_json(file))
    metadata: dict[str, Any] = {}
    for record in records:
        rest = dict(record)
        if not captions:
            captions += take_captions(rest)
        metadata = {**rest, **metadata}
    return captions, metadata
