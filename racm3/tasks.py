"""Tasks: what can be asked for, by name. A task makes a ``Request`` of plain inputs, and says which part is the answer.

    @TASKS.register("colours")
    def colours(image: Image) -> Request:
        return Request(Document.of("the colours are", Hole("text"), image), answer=1)

    model.run("colours", picture).answer

A name with a colon, ``module:function``, needs no registration. Classification writes nothing, so it is no such task:
``classification.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from racm3.completion import Request
from racm3.document import Document, Hole, Image, Text, is_open
from racm3.errors import DocumentError
from racm3.util.registry import Registry

__all__ = ["TASKS", "Task", "caption", "edit", "generate_image", "infill"]

Task = Callable[..., Request]

TASKS: Registry[Task] = Registry("task")


@TASKS.register("generate-image")
def generate_image(caption: str) -> Request:
    """Caption -> image."""
    return Request(Document.of(caption, Hole("image")))


@TASKS.register("caption")
def caption(image: Image) -> Request:
    """Image -> caption: the text is infilled before the picture."""
    return Request(Document.of(Hole("text"), image))


@TASKS.register("infill")
def infill(part: Image | Text, text: str | None = None) -> Request:
    """Fill what is hidden of a picture (its mask) or of a text; the words ``text`` before it guide, if given."""
    if not is_open(part):
        raise DocumentError(
            "infill needs a part that hides something: an image with a mask, such as image.hiding((0, 0, 32, 32)), "
            "or Text(text, hidden=(start, end))"
        )
    return Request(Document.of(*([] if text is None else [text]), part))


@TASKS.register("edit")
def edit(image: Image, control: Image | Document, text: str | None = None) -> Request:
    """Fill the hidden region of ``image`` after ``control``, a picture or a document with one, which is read as if it
    had been retrieved: what it shows is what the region becomes."""
    shown = control if isinstance(control, Document) else Document.of(control)
    return Request(infill(image, text).document, retrieved=[shown])
