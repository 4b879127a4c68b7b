"""Progress: what is being done, how much of it is done, and how long the rest takes, on stderr.

    with progress() as report:
        report("documents", 512, 2_000)

On a terminal each thing done has a bar; elsewhere, as in a log, a line now and then, and one at its end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Report", "counted", "progress", "telling"]

T = TypeVar("T")
Report = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and how much there is, or None if nobody knows."""

LINE_EVERY_S = 30.0


@contextmanager
def progress() -> Iterator[Report]:
    """Shows what it is told until the context ends. What an earlier run had done counts as done, not as speed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        lines = _Lines()
        yield lines
        lines.end()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(separator=" of "))
    rate, left = TextColumn("{task.fields[rate]}"), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(*columns, rate, left, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, completed=done, rate="")
            speed = bars.tasks[bars.task_ids.index(tasks[what])].speed
            bars.update(tasks[what], completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield report


@contextmanager
def telling(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """The progress of one thing, which is told how much of it is done."""
    with progress() as report:
        yield lambda done: report(what, done, total)


def counted(values: Iterable[T], what: str, report: Report, total: int | None = None) -> Iterator[T]:
    """``values``; each is told when the next one is asked for, so when the work on it is done."""
    for done, value in enumerate(values, start=1):
        yield value
        report(what, done, total)


class _Lines:
    """A line for each thing done at its end, and every ``LINE_EVERY_S`` seconds until then."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, float]] = {}
        self._unsaid: dict[str, str] = {}
        self._said_at = time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        first, since = self._first.setdefault(what, (done, now))
        rate = (done - first) / (now - since) if now > since else 0.0
        told = f"{what}: {done:,}{'' if total is None else f' of {total:,}'}{f', {rate:,.0f}/s' if rate else ''}"
        if rate and total is not None and done < total:
            told += f", {(total - done) / rate / 60:.0f} min left"
        self._unsaid[what] = told
        if done == total or now - self._said_at > LINE_EVERY_S:
            self._said_at = now
            print(self._unsaid.pop(what), file=sys.stderr)

    def end(self) -> None:
        for line in self._unsaid.values():
            print(line, file=sys.stderr)
