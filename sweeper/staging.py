"""A node's folder of one launch: each dataset read and decoded once, in a file that every trial of the node maps.

A trial starts in a fresh process, so without this each would decode its dataset again; and a node that lacks a
dataset gets this one file from the launching machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.datasets.base import Dataset, DatasetInfo, ImageData
from sweeper import components
from sweeper.spec import identity

_FOLDER = re.compile(r"sweeper-[0-9a-f]{16}")
_KEPT_UNUSED_S = 600.0


def node_folder(launch_id: str) -> Path:
    """This node's folder of a launch, made where it is missing, readable by its owner alone.

    Raises:
        OSError: it cannot be made, or is another user's.
    """
    folder = Path(tempfile.gettempdir()) / f"sweeper-{launch_id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep the folder from being cleared while the block runs, in this process or another."""
    with (folder / "in-use").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def clear_unused() -> None:
    """Delete the folders of launches that ended without doing so, on this node and of this user."""
    for folder in Path(tempfile.gettempdir()).glob("sweeper-*"):
        with contextlib.suppress(OSError):
            if not _FOLDER.fullmatch(folder.name) or folder.stat().st_uid != os.getuid():
                continue
            if time.time() - folder.stat().st_mtime < _KEPT_UNUSED_S:
                continue
            with (folder / "in-use").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def staged_path(dataset: Dataset, folder: Path) -> Path:
    """Where the folder holds the dataset, or would."""
    return folder / f"{identity(components.configuration('dataset', dataset))}.safetensors"


def stage(dataset: Dataset, data: ImageData, folder: Path) -> None:
    """Put a loaded dataset into the folder, whole or not at all."""
    path = staged_path(dataset, folder)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    tensors = {"images": data.images, "labels": data.labels, "example_id": torch.from_numpy(data.example_id)}
    try:
        save_file(tensors, name, metadata={"info": json.dumps(asdict(data.info)), "sha256": data.sha256})
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def load_staged(dataset: Dataset, folder: Path) -> ImageData | None:
    """The dataset that the folder holds, mapped and not read; None where it holds none."""
    path = staged_path(dataset, folder)
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        info = json.loads(metadata["info"])
        return ImageData(
            images=file.get_tensor("images"),
            labels=file.get_tensor("labels"),
            example_id=file.get_tensor("example_id").numpy(),
            info=DatasetInfo(
                **info
                | {"image_shape": tuple(info["image_shape"]), "mean": tuple(info["mean"]), "std": tuple(info["std"])}
            ),
            sha256=metadata["sha256"],
        )
