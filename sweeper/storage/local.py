"""Files in a local folder, written under a temporary name in the same folder and then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sweeper.storage.files import Entry, Problem, system_problem
from sweeper.storage.location import is_file_name, is_temporary

_CHUNK_BYTES = 32 * 2**20
_NO_FILE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""Errors for a path that leads to no file: it is missing, leads to a folder, or is a loop of links."""


class LocalFiles:
    """The files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            raise _not_found(path) from None

    def write(self, name: str, content: bytes | Path) -> None:
        _write(self.folder / name, content, replace_file)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; returns whether it was written."""
        return _write(self.folder / name, content, _link)

    def delete(self, name: str) -> None:
        try:
            (self.folder / name).unlink()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise

    def move(self, name: str, to: str) -> bool:
        if self.size(name) is None:
            raise _not_found(self.folder / name)
        target = self.folder / to
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / name, target)
        return False

    def size(self, name: str) -> int | None:
        # A folder without access permission is an error, not a missing file.
        try:
            status = (self.folder / name).stat()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def entries(self, folder: str, temporary: bool) -> dict[str, Entry]:
        entries = {}
        try:
            with os.scandir(self.folder / folder) as scan:
                for each in scan:
                    if not is_file_name(each.name) or (temporary and not is_temporary(each.name)):
                        continue  # skip before looking at the file, which is the slow part
                    try:
                        if each.is_file():
                            status = each.stat()
                            entries[each.name] = Entry(status.st_size, _time(status.st_mtime))
                    except OSError as error:  # deleted or renamed since, or a link to itself
                        if error.errno not in _NO_FILE:
                            raise
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return entries

    def make_folder(self, folder: str) -> None:
        (self.folder / folder).mkdir(parents=True, exist_ok=True)

    def problem(self, error: OSError) -> Problem:
        return system_problem(error)


def replace_file(temporary: Path, target: Path) -> bool:
    """Rename a file onto another file, or onto a folder, which is kept under a new name."""
    try:
        temporary.replace(target)
    except IsADirectoryError:
        # Nothing here creates a folder of that name, so it is damage: keep it for its owner under another name.
        target.replace(target.with_name(f"{target.name[:200]}.folder-{secrets.token_hex(4)}"))
        temporary.replace(target)
    return True


def _write(target: Path, content: bytes | Path, publish: Callable[[Path, Path], bool]) -> bool:
    """Write a temporary file in the target's folder, then `publish` it as the target. Returns whether it was published."""
    prefix = f".{target.name[:40]}."
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".tmp")
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        return publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, target: Path) -> bool:
    """Give the file its name, unless the name is taken."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        # NFS can report this although it did link, if its first reply was lost.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: claim the name, then fill it.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        temporary.replace(target)
    return True


def _not_found(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _time(seconds: float) -> datetime:
    """A file's time. Some file systems have times outside Python's range of years."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), 2.0**37), UTC)
