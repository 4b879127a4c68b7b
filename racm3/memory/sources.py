"""Where documents come from: a user's data, read as it lies on disk.

`read` recognises by looking:

    a folder of pictures      each with a caption in a .txt file of the same name, or none
    metadata.jsonl            one object a line: "file_name", "text", anything else (Hugging Face imagefolder)
    COCO captions JSON        the .json itself, or a folder that holds captions.json
    WebDataset shards         one .tar (plain or gzipped), a folder of them, or a glob: .png/.jpg/.webp + .txt + .json

Every format is a generator of drafts (what lies on disk, undecoded); one place turns drafts into items, so that a
broken item is treated alike everywhere. Text stands before the picture in every document.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import tarfile
import urllib.parse
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from racm3.document import Document, Image, Part, Text
from racm3.errors import InputError, SourceError

__all__ = ["Item", "Skipped", "read", "write_coco", "write_webdataset"]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SHARDS = (".tar", ".tar.gz", ".tgz")
ALLOWED = (
    "a folder of pictures (with .txt captions or none), a metadata.jsonl, a COCO captions .json, "
    "or WebDataset shards (.tar, a folder or a glob of them)"
)
COCO_FIELDS = frozenset({"id", "file_name", "width", "height"})
ITEM_ID = "item_id"
"""The field that carries an item's id through formats that restrict their own keys."""
WARNINGS = 5
"""Skipped items that are logged one by one; the rest are only counted (ours: a broken folder must not flood a log)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A document as a memory keeps it: with an id unique in its source, metadata, and where it came from."""

    id: str
    document: Document
    metadata: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Skipped:
    """A broken item that was left out: where it is, and why."""

    origin: str
    reason: str


@dataclass(frozen=True)
class _Draft:
    """An item as it lies on disk. ``problem`` is set where the format itself is already broken."""

    id: str
    origin: str
    image: Path | bytes | None = None
    text: Path | bytes | str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read(path: str | Path, *, strict: bool = False, skipped: list[Skipped] | None = None) -> Iterator[Item]:
    """The items of a data folder or file, in a stable order, decoded one by one as they are asked for.

    A broken item is skipped, counted and logged (and appended to ``skipped`` if a list is given); with ``strict`` it
    raises SourceError instead. Raises SourceError at once if ``path`` is missing or nothing here recognises it.
    """
    return _items(_recognise(path)(), str(path), strict, skipped)


def _recognise(path: str | Path) -> Callable[[], Iterator[_Draft]]:
    """The reader for ``path``, bound to it."""
    given = Path(path)
    if given.is_dir():
        if (given / "metadata.jsonl").is_file():
            return lambda: _metadata_jsonl(given / "metadata.jsonl")
        if (given / "captions.json").is_file():
            return lambda: _coco(given / "captions.json")
        if shards := sorted(file for file in given.iterdir() if file.name.endswith(SHARDS)):
            return lambda: _webdataset(shards)
        if pictures := _pictures(given):
            return lambda: _folder(given, pictures)
        raise SourceError(f"the folder {given} holds no data that is recognised; allowed: {ALLOWED}")
    if given.is_file():
        if given.name.endswith(SHARDS):
            return lambda: _webdataset([given])
        if given.suffix == ".jsonl":
            return lambda: _metadata_jsonl(given)
        if given.suffix == ".json":
            return lambda: _coco(given)
        raise SourceError(f"{given} is not a kind of data that is recognised; allowed: {ALLOWED}")
    if glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path)))
        if matches and all(match.name.endswith(SHARDS) for match in matches):
            return lambda: _webdataset(matches)
        found = f"matches {matches[0]}, which is no shard" if matches else "matches nothing"
        raise SourceError(f"the pattern {path} {found}; a pattern names WebDataset shards, as in data/*.tar")
    raise SourceError(f"there is no {path}; check the path. Allowed: {ALLOWED}")


def _items(drafts: Iterator[_Draft], name: str, strict: bool, skipped: list[Skipped] | None) -> Iterator[Item]:
    read_items = broken = 0
    for draft in drafts:
        try:
            item = _item(draft)
        except (InputError, OSError) as error:
            if strict:
                raise SourceError(f"{draft.origin} is broken: {error}; mend it, or read with strict=False") from error
            broken += 1
            if skipped is not None:
                skipped.append(Skipped(draft.origin, str(error)))
            if broken <= WARNINGS:
                log.warning("skipped %s: %s", draft.origin, error)
        else:
            read_items += 1
            yield item
    if broken:
        log.warning("%s: %d items read, %d broken ones skipped", name, read_items, broken)


def _item(draft: _Draft) -> Item:
    if draft.problem:
        raise SourceError(draft.problem)
    text = draft.text.read_bytes() if isinstance(draft.text, Path) else draft.text
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"its caption is not UTF-8 text ({error})") from None
    parts: list[Part] = []
    if text is not None and text.strip():
        parts.append(Text(text.strip()))
    if draft.image is not None:
        parts.append(Image.open(draft.image))
    if not parts:
        raise SourceError("it has neither a picture nor a caption")
    return Item(draft.id, Document(tuple(parts)), draft.metadata, draft.origin)


# Readers ---------------------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> list[Path]:
    found = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sorted(file for file in found if file.suffix.lower() in PICTURES and not file.name.startswith("."))


def _folder(folder: Path, pictures: list[Path]) -> Iterator[_Draft]:
    """Pictures anywhere below ``folder``; the id is the path inside it."""
    for picture in pictures:
        caption = picture.with_suffix(".txt")
        text = caption if caption.is_file() else None
        yield _Draft(picture.relative_to(folder).as_posix(), str(picture), image=picture, text=text)


def _metadata_jsonl(file: Path) -> Iterator[_Draft]:
    """``{"file_name": "a/b.png", "text": "...", ...}`` a line; the id is the file name."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            origin = f"{file}:{number}"
            if not line.strip():
                continue
            record, problem = _object(line)
            name, text = record.pop("file_name", None), record.pop("text", None)
            if problem is None and not isinstance(name, str):
                problem = f'"file_name" is a path relative to {file.name}, but {name!r} was given'
            if problem is None and not isinstance(text, str | None):
                problem = f'"text" is a string, but {text!r} was given'
            if problem:
                yield _Draft(str(number), origin, problem=problem)
            else:
                picture = file.parent / str(name)
                yield _Draft(str(name), str(picture), image=picture, text=text, metadata=record)


def _coco(file: Path) -> Iterator[_Draft]:
    """One item an image, with its first caption; all are in metadata["captions"]. Raises SourceError if not COCO."""
    try:
        data = json.loads(file.read_bytes())
        images, captions = data["images"], defaultdict[Any, list[str]](list)
        for annotation in data["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        records = [(str(image.get(ITEM_ID, image["id"])), image["file_name"], image) for image in images]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{file} is not COCO captions JSON ({type(error).__name__}: {error}); it holds "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
        ) from None
    near = file.parent
    # Beside the file, in images/ beside it or beside its folder, or as COCO itself: annotations/captions_X.json, X/.
    roots = (near, near / "images", near.parent / "images", near.parent / file.stem.removeprefix("captions_"))
    for item_id, name, image in records:
        texts = captions[image["id"]]
        extra = {key: value for key, value in image.items() if key not in COCO_FIELDS and key != ITEM_ID}
        picture = next((root / name for root in roots if (root / name).is_file()), roots[0] / name)
        metadata = {**extra, "captions": texts}
        yield _Draft(item_id, str(picture), image=picture, text=texts[0] if texts else None, metadata=metadata)


def _webdataset(shards: list[Path]) -> Iterator[_Draft]:
    """Samples of one or more shards. A damaged shard yields what stands before the damage, then one broken item."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for shard in shards:
        try:
            with shard.open("rb") as stream:
                for sample in group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}])):
                    yield _sample(shard, sample)
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
            yield _Draft(shard.name, str(shard), problem=f"the shard is damaged: {type(error).__name__}: {error}")


def _sample(shard: Path, sample: dict[str, Any]) -> _Draft:
    key = sample["__key__"]
    origin = f"{shard}#{key}"
    by_suffix = {"." + name.rsplit(".", 1)[-1]: value for name, value in sample.items() if not name.startswith("__")}
    record, problem = _object(by_suffix.get(".json", b"{}"))
    if problem:
        return _Draft(key, origin, problem=problem)
    image = next((value for suffix, value in by_suffix.items() if suffix in PICTURES), None)
    caption = record.get("caption")  # as img2dataset writes it, where there is no .txt
    text = by_suffix.get(".txt", caption if isinstance(caption, str) else None)
    return _Draft(str(record.pop(ITEM_ID, key)), origin, image=image, text=text, metadata=record)


def _object(data: bytes) -> tuple[dict[str, Any], str | None]:
    """The JSON object in ``data`` and no problem, or an empty one and the problem."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        return {}, f"its JSON cannot be read: {error}"
    return (value, None) if isinstance(value, dict) else ({}, f"its JSON is no object but a {type(value).__name__}")


# Writers ---------------------------------------------------------------------------------------------------------


def write_coco(items: Iterable[Item], folder: str | Path) -> Path:
    """Write items, a text and a picture or a picture each, as ``folder``/images/*.png and captions.json (returned).

    The captions are the document's text, then the others of metadata["captions"]; other metadata stand on the image's
    record. Raises SourceError if an item is anything else, or shares its id with another.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(_unique(items), start=1):
        text, picture = _pair(item)
        if picture is None:
            raise SourceError(f"item {item.id!r} has no picture; COCO needs one, write_webdataset does not")
        if clash := (COCO_FIELDS | {ITEM_ID}) & item.metadata.keys():
            raise SourceError(f"item {item.id!r} has metadata {sorted(clash)}, names that COCO keeps; rename them")
        height, width = picture.pixels.shape[:2]
        name = _file_name(item.id) + ".png"
        (folder / "images" / name).write_bytes(picture.png())
        extra = {key: value for key, value in item.metadata.items() if key != "captions"}
        record = {"id": number, "file_name": name, "width": width, "height": height, ITEM_ID: item.id}
        images.append({**record, **extra})
        captions = [text] if text else []
        for caption in captions + [other for other in item.metadata.get("captions", []) if other != text]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": caption})
    file = folder / "captions.json"
    part = folder / "captions.json.part"
    part.write_text(json.dumps({"images": images, "annotations": annotations}, ensure_ascii=False), encoding="utf-8")
    return part.replace(file)


def write_webdataset(items: Iterable[Item], folder: str | Path, items_per_shard: int = 10_000) -> list[Path]:
    """Write items as ``folder``/000000.tar, 000001.tar...: .png, .txt and .json (the metadata); returns the shards.

    Raises SourceError if an item is more than one text and then one picture, or shares its id with another.
    """
    from webdataset import ShardWriter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    pattern = str(folder).replace("%", "%%") + "/%06d.tar"
    with ShardWriter(pattern, maxcount=items_per_shard, verbose=0, post=lambda name: shards.append(Path(name))) as tar:
        for item in _unique(items):
            text, picture = _pair(item)
            metadata = json.dumps({**item.metadata, ITEM_ID: item.id}, ensure_ascii=False)
            sample: dict[str, Any] = {"__key__": _file_name(item.id), "json": metadata.encode()}
            if picture:
                sample["png"] = picture.png()
            if text:
                sample["txt"] = text
            tar.write(sample)
    return shards


def _pair(item: Item) -> tuple[str | None, Image | None]:
    """The text and the picture of an item that has no more than these, in this order."""
    text, pictures = item.document.text, item.document.images
    pair: tuple[Part, ...] = (*([Text(text)] if text else []), *pictures[:1])
    if item.document.parts != pair or any(picture.mask is not None for picture in pictures):
        given = ", ".join(type(part).__name__ for part in item.document.parts)
        raise SourceError(f"item {item.id!r} is {given}; this format keeps one text, then one picture, without holes")
    return text, pictures[0] if pictures else None


def _unique(items: Iterable[Item]) -> Iterator[Item]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise SourceError(f"two items have the id {item.id!r}; ids are unique in a source")
        seen.add(item.id)
        yield item


def _file_name(item_id: str) -> str:
    """An id as one path component without dots (WebDataset ends a key at its first dot); distinct for distinct ids."""
    return urllib.parse.quote(item_id, safe="").replace(".", "%2E")
