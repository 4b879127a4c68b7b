"""What is said when a command fails: one line on stderr, and the exit status.

1 the machine failed, or a defect of racm3   2 what was asked cannot be done   130 interrupted   141 nobody reads on
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback

from racm3.errors import RACM3Error
from racm3.util.one_line import one_line

__all__ = ["complain", "failure"]

FAILED, REFUSED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
GIVEN_WRONG = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
OF_PYTHON = re.compile(r"(\b\w+Error: )?\[Errno -?\d+\] ")
"""What Python puts before the words of the operating system."""
OF_RUST = re.compile(r"\(os error (\d+)\)")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def failure(error: BaseException) -> int:
    """Say in one line what went wrong; the exit status. Raises again what ends the process by itself, and any defect
    where RACM3_TRACEBACK is set."""
    if isinstance(error, (SystemExit, GeneratorExit)):
        raise error
    if isinstance(error, RACM3Error):
        full = isinstance(error.__cause__, OSError) and number_of(error.__cause__) in NO_SPACE
        return complain(str(error), FAILED if full else REFUSED)
    if isinstance(error, KeyboardInterrupt):
        return complain(str(error) or "interrupted", INTERRUPTED)
    if isinstance(error, ModuleNotFoundError):
        return complain(f"{error}; run racm3 doctor, which says what is missing or broken and what to do.", REFUSED)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print goes nowhere
        return PIPE_CLOSED
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return complain(f"there is not enough memory: {str(error) or 'ask for less at once'}", FAILED)
    if os.environ.get("RACM3_TRACEBACK"):
        raise error
    with tempfile.NamedTemporaryFile("w", prefix="racm3-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return complain(f"a defect of racm3: {type(error).__name__}: {error}; {file.name} says where, please report it", 1)


def _of_the_system(error: OSError) -> int:
    what = error.filename if error.filename2 is None else f"{error.filename} -> {error.filename2}"
    where = f" {what}" if what else ""
    number = number_of(error)
    if number in NO_SPACE:
        return complain(f"there is no space left to write{where}; free some, then give the same command again", FAILED)
    if number in FORBIDDEN:
        return complain(
            f"this user may not use{where} ({os.strerror(number or 0)}); change its permissions, or name another", 2
        )
    status = REFUSED if error.errno in GIVEN_WRONG else FAILED
    return complain(f"{what} cannot be used: {error.strerror}" if what else str(error), status)


def number_of(error: OSError) -> int | None:
    """The operating system's number of an error, which Lance's have in their text."""
    inside = OF_RUST.search(str(error))
    return int(inside[1]) if inside else error.errno


def complain(message: str, status: int) -> int:
    """Print an error as one line, and return the status."""
    line = one_line(" ".join(OF_PYTHON.sub("", message).split()))
    try:
        print(f"error: {line}", file=sys.stderr)
    except OSError:  # stderr is closed or full, and there is nobody left to tell
        pass
    return status
