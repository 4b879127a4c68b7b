"""Options: fields of a dataclass, each declared once with its default, what it is for, and what it allows.

    @documented
    @dataclass(frozen=True)
    class Sampling:
        \"\"\"How tokens are drawn.\"\"\"

        top_p: float = option(1.0, "Keep the fewest tokens of this probability together.", above=0, most=1)

        def __post_init__(self) -> None:
            check_ranges(self, "sampling")

From this come the class's documentation, its error messages, ``--set top_p=0.9`` (``config.override``) and the fields
of the API (``serve/shapes.py``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from racm3.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

__all__ = ["Option", "check_ranges", "documented", "option", "options_of"]


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field is for, and its range: ``least`` and ``most`` belong to it, ``above`` does not."""

    help: str
    least: float | None = None
    above: float | None = None
    most: float | None = None

    def allows(self, value: float) -> bool:
        """Whether a number is in range; none but finite ones are."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )

    @property
    def range(self) -> str:
        """The range in words, which fit behind "it must be"."""
        if self.least is not None:
            return f"{self.least:g} or above" if self.most is None else f"{self.least:g} to {self.most:g}"
        return f"above {self.above:g}" if self.most is None else f"above {self.above:g} and at most {self.most:g}"


def option(
    default: T, help: str, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> T:
    """A field of a dataclass with this default; a dict is copied for each instance."""
    about = {"option": Option(help, least, above, most)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=about, hash=False)
    return dataclasses.field(default=default, metadata=about)


def check_ranges(options: DataclassInstance, name: str) -> None:
    """Raises ConfigError for the first value that is out of its range; the message calls the whole ``name``."""
    for field in dataclasses.fields(options):
        about, value = field.metadata["option"], getattr(options, field.name)
        if isinstance(value, (int, float)) and not about.allows(value):
            none = ", or None" if field.default is None else ""
            raise ConfigError(f"{name}.{field.name} is {value}; it must be {about.range}{none}")


def options_of(options: DataclassInstance, above: str = "") -> Iterator[tuple[str, Any, Option]]:
    """(dotted name, value, what it is for) of every option, those of inner dataclasses as ``image.top_p``."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from options_of(value, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}", value, field.metadata["option"]


def documented(kind: type[T]) -> type[T]:
    """The class with its options listed behind its documentation."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    lines = [f"    {field.name}: {field.metadata['option'].help}" for field in fields]
    kind.__doc__ = f"{(kind.__doc__ or '').rstrip()}\n\n" + "\n".join(lines) + "\n"
    return kind
