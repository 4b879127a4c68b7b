"""One line: text from data as it is fit to be printed."""

from __future__ import annotations

import unicodedata

__all__ = ["one_line"]

SEPARATORS = ("Cc", "Cf", "Zl", "Zp")
"""Unicode's categories of what moves the cursor or turns the direction of writing: controls, format characters, ends of
lines and of paragraphs."""


def one_line(text: str) -> str:
    """The text with its newlines, tabs, direction marks and their like written as escapes.

    >>> one_line("a fox\\n\\u202exof")
    'a fox\\\\n\\\\u202exof'
    """
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in SEPARATORS else one for one in text
    )
