"""Verb: a command as a dataclass. Its fields are its options, the comment at a field is its help, its docstring that of
the command; ``run`` does it, and gives the exit status if that is not 0.

    class Search(Verb, name="memory search"): ...

A verb imports what takes time when it runs, so that ``racm3 --help`` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, dataclass_transform

__all__ = ["Verb"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Verb:
    """Base of all verbs, and of the blocks of options that they share, which have no name."""

    known: ClassVar[dict[str, type[Verb]]] = {}

    def __init_subclass__(cls, name: str | None = None) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        if name is not None:
            Verb.known[name] = cls

    def run(self) -> int | None:
        """Do what the command says; the exit status, or None for 0."""
        raise NotImplementedError
