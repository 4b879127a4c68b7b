"""racm3: a retrieval-augmented multimodal language model.

    >>> from racm3 import Document, Hole
    >>> request = Document.of("a fox in the snow", Hole("image"))

``RACM3.complete`` fills its holes. The names below are imported when first used: ``import racm3`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from racm3.document import Document as Document
    from racm3.document import Hole as Hole
    from racm3.document import Image as Image
    from racm3.document import Text as Text

__version__ = "0.1.0"
__all__ = ["RACM3", "Document", "Hole", "Image", "Memory", "Text", "__version__"]

_ROOMS = {
    "RACM3": "racm3.pipeline",
    "Document": "racm3.document",
    "Hole": "racm3.document",
    "Image": "racm3.document",
    "Memory": "racm3.memory.memory",
    "Text": "racm3.document",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'racm3' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
