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
    from racm3.errors import RACM3Error as RACM3Error
    from racm3.generator.sampling import Sampling as Sampling
    from racm3.memory.memory import Memory as Memory
    from racm3.pipeline import RACM3 as RACM3
    from racm3.settings import Settings as Settings

__version__ = "0.1.0"

_HOMES = {
    "RACM3": "racm3.pipeline",
    "Document": "racm3.document",
    "Hole": "racm3.document",
    "Image": "racm3.document",
    "Memory": "racm3.memory.memory",
    "RACM3Error": "racm3.errors",
    "Sampling": "racm3.generator.sampling",
    "Settings": "racm3.settings",
    "Text": "racm3.document",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'racm3' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
