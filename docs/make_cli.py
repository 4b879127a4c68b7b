"""Print the help of every command as one Markdown page: ``python docs/make_cli.py > docs/cli.md``, or ``make docs``."""

from __future__ import annotations

import contextlib
import io
import os

from racm3.cli import main
from racm3.cli.command_line import VERBS

WIDTH = "100"  # characters a line


def help_of(command: list[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    os.environ["COLUMNS"] = WIDTH
    print("# The command line\n\nWritten by `make docs` from the commands' own help.")
    for command in ([], *map(str.split, VERBS)):
        print(f"\n## {' '.join(['racm3', *command])}\n\n```text\n{help_of(command)}\n```")
