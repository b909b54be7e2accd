"""A node's folder for one launch, shared by its trials and its driver, and removed when the launch ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_FOLDER = re.compile(r"sweeper-[0-9a-f]{16}")
_KEPT_UNUSED_S = 600.0


def node_folder(launch_id: str) -> Path:
    """This node's folder of a launch, created if missing, readable only by its owner.

    Raises:
        OSError: it cannot be created, or belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"sweeper-{launch_id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[Path]:
    """Keep other launches from clearing the folder while the block runs. Yields the folder."""
    with (folder / "in-use").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder


def clear_unused() -> None:
    """Delete this user's folders on this node that ended launches left behind.

    A living launch that has run nothing here for minutes may lose its folder too, and creates it again.
    """
    for folder in Path(tempfile.gettempdir()).glob("sweeper-*"):
        with contextlib.suppress(OSError):
            if not _FOLDER.fullmatch(folder.name) or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if time.time() - folder.stat().st_mtime < _KEPT_UNUSED_S:
                continue
            with (folder / "in-use").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
