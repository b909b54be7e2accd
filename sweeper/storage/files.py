"""The operations that a local disk and an object store share, and how they describe an error."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from sweeper.errors import UserError


class StorageError(UserError):
    """The store is unreachable, refuses, or is full. Transient errors were retried. The text says what to do."""


@dataclass(frozen=True)
class Entry:
    """One file in a listing."""

    size: int
    """Bytes."""
    modified: datetime
    """UTC, by the store's clock; object stores round to seconds or milliseconds."""


@dataclass(frozen=True)
class Problem:
    """Why an operation failed, in words for the user."""

    reason: str
    advice: str
    detail: str = ""
    """The store's message, as a sentence."""
    passes: bool = False
    """Whether a retry can succeed."""


class Files(Protocol):
    """The files of one store. Each method tries once; `Storage` checks names, retries, and explains errors.

    Methods raise `FileNotFoundError` for a missing file, and `OSError` or `StorageError` for everything else.
    """

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes | Path) -> None: ...

    def delete(self, name: str) -> None:
        """Delete a file; a missing file is no error."""

    def move(self, name: str, to: str) -> bool:
        """Rename or copy a file, replacing any file at `to`. Returns whether it was a copy, so `name` must still be deleted."""

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if there is no such file."""

    def entries(self, folder: str, temporary: bool) -> dict[str, Entry]:
        """The files directly in a folder whose names are text without a backslash; empty if there is no such folder.

        If `temporary`, only names for which `is_temporary` holds.
        """

    def problem(self, error: OSError) -> Problem: ...


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_PASSING = {errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}
OTHER_PLACE = "Name another place with --out."
MAKE_ROOM = "Make room there, or name another place with --out; finished results there are kept."


def system_problem(error: OSError) -> Problem:
    """Describe an error of the operating system."""
    advice = OTHER_PLACE
    if error.errno in _FULL:
        advice = MAKE_ROOM
    elif error.errno in _FORBIDDEN:
        advice = "Give yourself the permission there, or name another place with --out."
    return Problem(error.strerror or str(error) or type(error).__name__, advice, passes=error.errno in _PASSING)
