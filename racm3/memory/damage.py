"""Damage: how what Lance raises is told apart, into files that are damaged and files that cannot be read just now.

Only what is damaged may be moved aside or given up. A file that this user may not read, too many open files, a full
disk or a bucket that does not answer say nothing about what is stored.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from racm3.errors import InputError, MemoryStoreError

__all__ = ["UNREADABLE", "faults_told", "is_fault", "no_panic", "readable", "told", "unreadable"]

UNREADABLE = (OSError, ValueError)
"""What Lance and Arrow raise for files that are missing, damaged or not to be read."""
ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
NETWORK = re.compile(
    r"generic s3|http|tim(?:ed? ?|e-?)out|connect|dns|credential|access ?denied|unauthorized|forbidden"
    r"|permission denied|too many open files|no space left|out of memory|cannot allocate",
    re.IGNORECASE,
)
"""What errors without a number say when it is not the stored bytes that are wrong."""


def is_fault(error: BaseException | None) -> bool:
    """Whether an error tells of the system or the network, and not of the bytes that are stored."""
    if number := ERROR_NUMBER.search(str(error)):
        return int(number[1]) != errno.ENOENT
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno != errno.ENOENT
    return NETWORK.search(str(error)) is not None


@contextmanager
def no_panic() -> Iterator[None]:
    """Turn what Lance's Rust side raises about some damaged files, which is no Exception, into an OSError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"damaged: {error}") from error


def unreadable(what: object, error: BaseException | None) -> MemoryStoreError:
    """The error for a memory that cannot be read just now."""
    return MemoryStoreError(
        f"the memory {what} cannot be read: {told(error)}; nothing was changed: mend that (permissions, open files, "
        "the disk, the network), and try again"
    )


@contextmanager
def readable(what: object) -> Iterator[None]:
    """Raises MemoryStoreError instead of what Lance says of what cannot be read."""
    try:
        with no_panic():
            yield
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        if is_fault(error):
            raise unreadable(what, error) from error
        raise MemoryStoreError(
            f"the memory {what} cannot be read: {told(error)}; run `racm3 memory check` on it"
        ) from error


@contextmanager
def faults_told(what: object) -> Iterator[None]:
    """Raises MemoryStoreError instead of what the system says to a writer: a full disk, a file it may not write."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise MemoryStoreError(
            f"the memory {what} could not be changed: {told(error)}; what was acknowledged before is there: mend that "
            "(space on the disk, permissions), and give the same command again"
        ) from error


def told(error: BaseException | None) -> str:
    """An error in one line, without where in Lance's source it was raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^(?:LanceError\(IO\): )?(?:Execution error: |External error: )*", "", text)
    return re.sub(r",? *(?:rust/|/\S*\.cargo/|/\S+/)\S+\.rs:\d+(?::\d+)?", "", text)[:500]
