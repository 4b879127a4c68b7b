"""Where documents come from: a user's data, read as it lies on disk; docs/formats.md shows every layout."""

from racm3.data.coco_captions import write_coco
from racm3.data.item import Item, Protected, Skipped
from racm3.data.listed import writing_documents
from racm3.data.reading import Source, read, recognise
from racm3.data.webdataset import write_webdataset

__all__ = [
    "Item",
    "Protected",
    "Skipped",
    "Source",
    "read",
    "recognise",
    "write_coco",
    "write_webdataset",
    "writing_documents",
]
