"""The command line: a module a group of verbs, ``command_line.py`` the map of them.

This file imports nothing that takes time, so that Ctrl-C is answered in one line from the first moment on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default the process's own, and return its exit status."""
    try:
        from racm3.cli.command_line import run

        return run(arguments)
    except KeyboardInterrupt as interrupt:
        print(f"error: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
