"""Limits: what a request, a client, and all of them together may take. shapes.py has those of fields."""

from __future__ import annotations

from dataclasses import dataclass

from racm3.util.options import check_ranges, documented, option, options_of

__all__ = ["LIMITS", "Limits", "limits_table"]


@documented
@dataclass(frozen=True)
class Limits:
    """The limits of a server. Raises ConfigError if a value is out of range."""

    body_bytes: int = option(20_000_000, "Bytes of a request.", least=1)
    body_s: float = option(30.0, "Seconds in which a request's body has to come.", above=0)
    head_s: float = option(10.0, "Seconds in which a request's head has to come.", above=0)
    keep_alive_s: float = option(75.0, "Seconds that a connection without a request is kept.", above=0)
    connections: int = option(
        500, "Connections at once. Beyond, the one that has waited longest without a request is closed.", least=1
    )
    held_bytes: int = option(500_000_000, "Bytes of all bodies at once, half-sent ones included.", least=1)
    pixels: int = option(16_000_000, "Pixels of a picture.", least=1)
    all_pixels: int = option(64_000_000, "Pixels of all pictures of a request together.", least=1)
    pictures: int = option(64, "Pictures of a request.", least=0)
    requests_a_minute: int = option(
        1200, "Requests a minute of a client, which is a token or else an address; 0: any number.", least=0
    )
    queue: int = option(256, "Requests that wait for the model. Beyond, they are refused.", least=1)
    timeout_s: float = option(60.0, "Seconds that a request may take once its body is there.", above=0)

    def __post_init__(self) -> None:
        check_ranges(self, "limits")


LIMITS = Limits()


def limits_table() -> str:
    """The limits as a table in Markdown."""
    rows = [f"| `{name}` | {value:,} | {about.help} |" for name, value, about in options_of(LIMITS)]
    return "\n".join(["| limit | usual | |", "|---|---|---|", *rows])
