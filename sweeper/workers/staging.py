"""Datasets, read and decoded once per node into a file that every trial on the node maps.

A trial starts in a fresh process, so without this each would decode its dataset again. A node that lacks a dataset gets
this one file from the launching machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.datasets.base import Dataset, DatasetInfo, Examples
from sweeper.sweep import components
from sweeper.sweep.identity import identity


def staged_name(dataset: Dataset) -> str:
    """The dataset's file name in a node's folder."""
    return f"{identity(components.configuration('dataset', dataset))}.safetensors"


def stage(dataset: Dataset, data: Examples, folder: Path) -> None:
    """Put a loaded dataset into the folder, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / staged_name(dataset)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    tensors = {"inputs": data.inputs, "labels": data.labels, "example_id": torch.from_numpy(data.example_id)}
    try:
        save_file(tensors, name, metadata={"info": json.dumps(asdict(data.info)), "sha256": data.sha256})
        Path(name).replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def load_staged(dataset: Dataset, folder: Path) -> Examples | None:
    """The dataset in the folder, memory-mapped without reading it; None if it is not there."""
    path = folder / staged_name(dataset)
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        info = json.loads(metadata["info"])
        return Examples(
            inputs=file.get_tensor("inputs"),
            labels=file.get_tensor("labels"),
            example_id=file.get_tensor("example_id").numpy(),
            info=DatasetInfo(**info | {name: tuple(info[name]) for name in ("shape", "mean", "std", "notes")}),
            sha256=metadata["sha256"],
        )
