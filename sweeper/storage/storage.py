"""A results folder's files, on a local disk or in an object store. Each is written whole or not at all.

A location is a folder, `s3://bucket/path` or `gs://bucket/path`. An S3 location takes options in its query, such as
`s3://bucket/path?endpoint_override=minio:9000&scheme=http`. Credentials come from the usual AWS_* variables, files and
roles, or are part of the URI (`s3://key:secret@bucket`); no message repeats them.

A remote store connects on first use, and its threads do not survive a fork. So a process that forks must not have used
a remote `Storage` before.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sweeper.errors import UserError, sentence
from sweeper.storage.files import OTHER_PLACE, Entry, Files, Problem, StorageError
from sweeper.storage.local import LocalFiles
from sweeper.storage.location import check_name, is_temporary, parse
from sweeper.storage.remote import RemoteFiles

_Result = TypeVar("_Result")

PATIENCE_S = 60.0
"""Seconds for which an operation is retried while the store returns transient errors."""
PREPARE_PATIENCE_S = 10.0
"""The same for `prepare`, where a person waits."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 8.0
_STALE = timedelta(days=1)


class Storage:
    """The files below one location.

    Names of files are relative POSIX paths. Absolute paths, `..`, `.`, empty segments, backslashes and NUL raise a
    `ValueError`. A name that starts with a dot and ends in `.tmp` is temporary and appears in no listing.

    Every method raises `StorageError` if the store is unreachable, refuses or is full, and `FileNotFoundError` only if its
    docstring says so. Transient errors (5xx, throttling, timeouts, cut connections, a stale NFS handle) are retried for
    `PATIENCE_S` seconds, with growing random pauses.

    Raises:
        UserError: a scheme or an option of the URI is unknown, or the URI names no bucket.
    """

    def __init__(self, location: str | Path) -> None:
        place = parse(str(location))
        if isinstance(place, Path):
            self._local: LocalFiles | None = LocalFiles(place)
            self._files: Files = self._local
            self.uri, self.location = str(place.absolute()), str(place)
        else:
            self._local, self._files = None, RemoteFiles(place)
            self.uri, self.location = place.uri, place.shown
        self._patience_s: float | None = None

    def __repr__(self) -> str:
        return f"Storage({self.location!r})"

    def __str__(self) -> str:
        return self.location

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.uri,)

    @property
    def is_local(self) -> bool:
        return self._local is not None

    @property
    def root(self) -> Path:
        """The folder of a local store.

        Raises:
            UserError: the store is remote.
        """
        if self._local is None:
            raise UserError(f"{self.location} is not a folder on this machine. Name a local folder for this.")
        return self._local.folder

    def read(self, name: str) -> bytes:
        """The whole content, from one version of the file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        check_name(name)
        return self._attempt("read", name, lambda: self._files.read(name))

    def write(self, name: str, content: bytes | Path) -> None:
        """Write or replace a file with these bytes, or with a copy of this local file.

        Readers see the old file or the whole new one; if the write fails, the old one. After a failed upload, an object store
        can keep hidden parts until the bucket's rule for incomplete uploads removes them.

        Raises:
            FileNotFoundError: the local file to copy does not exist.
        """
        check_name(name)
        self._attempt("written", name, lambda: self._files.write(name, content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists. Returns whether it was written.

        On a local disk, exactly one of several concurrent calls succeeds. In an object store this checks and then writes: two
        calls at almost the same time can both succeed, and the later content stays. Use it to save work, not as a lock that
        must hold.
        """
        check_name(name)
        if self._local is not None:
            return self._attempt("written", name, partial(self._local.create, name, content))
        if self.exists(name):
            return False
        self.write(name, content)
        return True

    def delete(self, name: str) -> None:
        """Delete a file; a missing file counts as deleted."""
        check_name(name)
        self._attempt("deleted", name, lambda: self._files.delete(name))

    def move(self, name: str, to: str) -> None:
        """Rename a file, replacing any file at `to`. In an object store this copies, up to 5 GB, and then deletes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        check_name(name)
        check_name(to)
        if self._attempt("moved", name, lambda: self._files.move(name, to)):
            self.delete(name)

    def exists(self, name: str) -> bool:
        """Whether there is a file with that name."""
        return self._size(name) is not None

    def has_content(self, name: str) -> bool:
        """Whether there is a non-empty file with that name."""
        return bool(self._size(name))

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """The files directly in a folder, by name, in one listing; empty if there is no such folder. `""` is the root.

        Files are left out if their names are not text or if no method accepts them.
        """
        return {name: entry for name, entry in self._entries(folder).items() if not is_temporary(name)}

    def prepare(self, folders: Sequence[str]) -> None:
        """Create the folders, remove temporary files that are a day old or older, and test writing, reading and deleting.

        Raises:
            StorageError: one of these failed.
        """
        for folder in folders:
            check_name(folder)
        folders = ("", *folders)
        probe = f".probe-{secrets.token_hex(8)}.tmp"
        self._patience_s = PREPARE_PATIENCE_S
        try:
            if self._local is not None:
                for folder in folders:
                    self._attempt("written", folder, partial(self._local.make_folder, folder))
            self.write(probe, b"probe")
            now = self._entries()[probe].modified  # the store's clock may differ from ours
            if self.read(probe) != b"probe":
                raise StorageError(f"{self.location} does not return what was written. {OTHER_PLACE}")
            self.delete(probe)
            # Uploads to an object store have no temporary names. Only probes do, and those are at the root.
            for folder in folders if self.is_local else ("",):
                for name, entry in self._entries(folder, temporary=True).items():
                    if now - entry.modified > _STALE:
                        self.delete(f"{folder}/{name}" if folder else name)
        except (FileNotFoundError, KeyError):
            raise StorageError(
                f"{self.location} does not show what was just written there. Does something else delete its files, "
                f"or does its listing lag behind? {OTHER_PLACE}"
            ) from None
        finally:
            self._patience_s = None

    def _size(self, name: str) -> int | None:
        check_name(name)
        return self._attempt("read", name, lambda: self._files.size(name))

    def _entries(self, folder: str = "", temporary: bool = False) -> dict[str, Entry]:
        """All files of a folder, or only the temporary ones. On a local disk the latter skips looking at the others."""
        if folder:
            check_name(folder)
        return self._attempt("listed", folder, lambda: self._files.entries(folder, temporary))

    def _attempt(self, doing: str, name: str, work: Callable[[], _Result]) -> _Result:
        """Call `work`, retry after transient errors, and return its result. `doing` completes "cannot be …"."""
        patience_s = PATIENCE_S if self._patience_s is None else self._patience_s
        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                problem = self._files.problem(error)
                tried_s = time.monotonic() - started
                if not problem.passes or tried_s + pause_s > patience_s:
                    raise self._error(doing, name, problem, tried_s) from None
            time.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _error(self, doing: str, name: str, problem: Problem, tried_s: float) -> StorageError:
        base, mark, query = (self.location, "", "") if self.is_local else self.location.partition("?")
        where = f"{base.rstrip('/')}/{name}{mark}{query}" if name else self.location
        tried = f" (retried for {tried_s:.0f} s)" if problem.passes else ""
        text = f"{where} cannot be {doing}: {sentence(problem.reason.rstrip('. ') + tried)} {problem.advice}"
        return StorageError(f"{text} {problem.detail}".rstrip())
