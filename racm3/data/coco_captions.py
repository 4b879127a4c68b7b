"""COCO captions: one JSON of images and annotations beside the pictures. An item an image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from racm3.data.captions import Captions
from racm3.data.item import ITEM_ID, Draft, Item, Skipped, broken, inside, name_of
from racm3.data.listed import listed
from racm3.data.writing import file_name, text_and_picture, unique
from racm3.errors import SourceError

FIELDS = frozenset({"id", "file_name", "width", "height"})
MAX_BYTES = 500_000_000
"""Largest file (ours): five times COCO's own; it is one JSON value, read as a whole into some 3 GB."""


def read_coco(file: Path, root: Path) -> Iterator[Draft | Skipped]:
    """One item an image, with its first caption; all are in metadata["captions"].

    A JSON list of objects is read as the lines of a .jsonl are. Raises SourceError if it is neither.
    """
    if file.stat().st_size > MAX_BYTES:
        raise SourceError(f"{name_of(file)} is larger than {MAX_BYTES:,} bytes; write it as a metadata.jsonl instead")
    try:
        data = json.loads(file.read_bytes(), parse_constant=lambda _: None)
        if isinstance(data, list) and data and all(isinstance(record, dict) for record in data):
            yield from listed(lambda: ((i, partial(dict, record)) for i, record in enumerate(data)), file, root)
            return
        images, captions = list(data["images"]), defaultdict[Any, list[Any]](list)
        for annotation in data["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        keyed = [(image["id"], image) for image in images]
        records = [(image, captions.get(key, [])) for key, image in keyed]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{name_of(file)} is not COCO captions JSON ({type(error).__name__}: {error}); it holds "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
        ) from None
    for number, (image, found) in enumerate(records):
        item_id = str(image.get(ITEM_ID, image["id"]))
        try:
            path = _picture(image.get("file_name"), file)
        except (SourceError, OSError) as error:
            yield Draft(f"{name_of(file)}#images[{number}]", partial(broken, str(error)), item_id)
        else:
            yield Draft(name_of(path), partial(_item, image, found, path), item_id, files=(name_of(path),))
    if lost := set(captions) - {image["id"] for image in images}:
        reason = f"{len(lost)} images, such as {min(map(str, lost))}, have captions but are not listed"
        yield Draft(f"{name_of(file)}#annotations", partial(broken, reason))


def _picture(name: object, file: Path) -> Path:
    near = file.parent
    # Beside the file, in images/ beside it or beside its folder, or as COCO itself: annotations/captions_X.json, X/.
    roots = (near, near / "images", near.parent / "images", near.parent / file.stem.removeprefix("captions_"))
    places = [inside(folder, name) for folder in roots]
    return next((place for place in places if place.is_file()), places[0])


def _item(image: dict[str, Any], captions: list[Any], path: Path) -> Item:
    extra = {key: value for key, value in image.items() if key not in FIELDS and key != ITEM_ID}
    found = Captions.of(captions)
    metadata = {**extra, "captions": [caption.text for caption in found.texts]}
    return found.item(str(image.get(ITEM_ID, image["id"])), [path], metadata, name_of(path))


def write_coco(items: Iterable[Item], folder: str | Path) -> Path:
    """Write items, a text and a picture or a picture each, as ``folder``/images/*.png and captions.json (returned).

    The captions are the document's text, then the others of metadata["captions"]; other metadata stand on the image's
    record. Raises SourceError if an item is anything else, or shares its id with another.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(unique(items), start=1):
        text, picture = text_and_picture(item)
        if picture is None:
            raise SourceError(f"item {item.id!r} has no picture; COCO needs one, write_webdataset does not")
        if clash := (FIELDS | {ITEM_ID}) & item.metadata.keys():
            raise SourceError(f"item {item.id!r} has metadata {sorted(clash)}, names that COCO keeps; rename them")
        height, width = picture.pixels.shape[:2]
        name = file_name(item.id) + ".png"
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
