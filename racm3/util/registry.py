"""Registry: things that are chosen by name, ours and those that other packages add.

    STRATEGIES: Registry[Strategy] = Registry("retrieval strategy")

    @STRATEGIES.register("random")
    class Random: ...

A name with a colon, ``module:attribute``, is imported when it is asked for and needs no registration.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Generic, TypeVar

from racm3.errors import ConfigError, unknown

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """What may be chosen of one ``kind``, which error messages name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that makes ``name`` known. Raises ConfigError if the name is taken or has a colon."""
        if ":" in name or name in self._known:
            raise ConfigError(f"a {self.kind} cannot be called {name!r}: the name is taken, or has a colon in it")

        def add(value: T) -> T:
            self._known[name] = value
            return value

        return add

    def names(self) -> tuple[str, ...]:
        """The registered names, in the order of their registration."""
        return tuple(self._known)

    def get(self, name: str) -> T:
        """What ``name`` stands for. Raises ConfigError, which names the nearest, if there is no such thing."""
        module, colon, attribute = name.partition(":")
        if colon:
            try:
                found: T = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise ConfigError(f"{self.kind} {name!r} cannot be imported: {error}; give MODULE:NAME") from error
            return found
        if name not in self._known:
            raise ConfigError(unknown(self.kind, name, self._known))
        return self._known[name]
