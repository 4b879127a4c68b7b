"""Print the help of every command as one Markdown page: ``python docs/make_cli.py > docs/cli.md``, or ``make docs``."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from racm3.cli import VERBS, Verbs, main

WIDTH = "100"  # characters a line


def commands(verbs: Verbs) -> Iterator[list[str]]:
    """The words of every command, in order: ["doctor"], ["scenes", "make"], ..."""
    for name, verb in verbs.items():
        yield from [[name]] if callable(verb) else ([name, *words] for words in commands(verb))


def help_of(command: list[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    os.environ["COLUMNS"] = WIDTH
    print("# The command line\n\nWritten by `make docs` from the commands' own help.")
    for command in ([], *commands(VERBS)):
        print(f"\n## {' '.join(['racm3', *command])}\n\n```text\n{help_of(command)}\n```")
