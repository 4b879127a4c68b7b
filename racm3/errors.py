"""Every error that racm3 raises on purpose.

    RACM3Error
    ├── InputError            what the caller gave cannot be used
    │   ├── DocumentError         a document that is empty, or whose parts do not fit together
    │   ├── ImageError            a picture that is missing, unreadable, or of the wrong kind
    │   │   └── FormatError           a picture of a format that is not read
    │   ├── SourceError           a data folder or file that no reader recognises, or that is broken
    │   └── PromptTooLongError    a prompt and its answer that exceed the generator's context
    ├── ConfigError           an unknown key or preset, or a value out of range
    ├── CheckpointError       a model folder that is missing, incomplete or damaged
    ├── CacheLimitError       a generation job that needs more memory than there is
    ├── MarkupError           token ids that break the grammar of documents
    └── MemoryStoreError      a memory that is missing, damaged or locked
        ├── DamagedDocumentError  a stored document that is not what was put in
        └── EncoderMismatchError  a memory made by another encoder than the one it is opened with

Each message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CacheLimitError",
    "CheckpointError",
    "ConfigError",
    "DamagedDocumentError",
    "DocumentError",
    "EncoderMismatchError",
    "FormatError",
    "ImageError",
    "InputError",
    "MarkupError",
    "MemoryStoreError",
    "PromptTooLongError",
    "RACM3Error",
    "SourceError",
    "unknown",
    "values",
]


class RACM3Error(Exception):
    """Base of all errors below."""


class InputError(RACM3Error, ValueError):
    """What the caller gave cannot be used."""


class DocumentError(InputError):
    """A document that is empty, or whose parts do not fit together."""


class ImageError(InputError):
    """A picture that is missing, unreadable, or of the wrong kind."""


class FormatError(ImageError):
    """A picture of a format that is not read."""


class SourceError(InputError):
    """A data folder or file that no reader recognises, or that is broken."""


class ConfigError(RACM3Error, ValueError):
    """An unknown key or preset, or a value out of range."""


class CheckpointError(RACM3Error):
    """A model folder that is missing, incomplete or damaged."""


class CacheLimitError(RACM3Error):
    """A generation job that needs more memory than there is."""


class MarkupError(RACM3Error, ValueError):
    """Token ids that break the grammar of documents."""


class MemoryStoreError(RACM3Error):
    """A memory that is missing, damaged or locked."""


class DamagedDocumentError(MemoryStoreError):
    """A stored document that is not what was put in, for the ``reason`` given."""

    def __init__(self, item_id: str, reason: str) -> None:
        super().__init__(
            f"document {item_id!r} is damaged: {reason}; `racm3 memory check --repair` removes what is damaged, then "
            "add or sync it again"
        )
        self.reason = reason


class EncoderMismatchError(MemoryStoreError):
    """A memory made by another encoder than the one it is opened with."""


class PromptTooLongError(InputError):
    """A prompt and its answer that exceed the generator's context."""


def values(config: object, *names: str) -> str:
    """The fields that a message is about: ``steps=0, threads=1``."""
    return ", ".join(f"{name}={getattr(config, name)}" for name in names)


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """The message for a name that is not one of ``allowed``: names the nearest valid choice."""
    choices = sorted(allowed)
    near = difflib.get_close_matches(given, choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {given!r}{hint} Allowed: {', '.join(choices)}."
