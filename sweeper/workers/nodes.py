"""A node's own folder for one launch, which its trials and its driver share and the end of the launch clears."""

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
    """This node's folder of a launch, made where it is missing, readable by its owner alone.

    Raises:
        OSError: it cannot be made, or is another user's.
    """
    folder = Path(tempfile.gettempdir()) / f"sweeper-{launch_id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[Path]:
    """Keep the folder from being cleared by other launches while the block runs; gives the folder."""
    with (folder / "in-use").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder


def clear_unused() -> None:
    """Delete the folders of launches that ended without doing so, on this node and of this user.

    A launch that lives and has run nothing here for minutes may lose its folder too, and makes it again.
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
