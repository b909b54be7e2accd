"""Base class of datasets: examples of any shape with labels, training examples first, then test examples."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]


class DatasetError(ValueError):
    """The dataset is missing or unreadable. The message names the folder and a remedy."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a dataset that a model and a plan need: sizes, the shape of one example, classes.

    `shape` is (channels, height, width) for images, and (features,) for rows of a table. `mean` and `std` normalize images in
    [0, 1], per channel; a table has none, because its features are standardized when it is read. `notes` are sentences for
    users: what is changed when their own files are read. Only `describe` sets them.
    """

    n_train: int
    n_test: int
    shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_images(self) -> bool:
        return len(self.shape) == 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width).

        Raises:
            ValueError: the examples are rows of a table.
        """
        if not self.is_images:
            raise ValueError(
                f"this architecture needs images, and the examples are rows of {self.shape[0]} features; set architectures to "
                "[mlp] or [logistic_regression]"
            )
        channels, height, width = self.shape
        return channels, height, width


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """A loaded dataset.

    `inputs` are images (n, channels, height, width) uint8, or rows of a table (n, features) float32, as `info.shape` says.
    They and `labels` (n,) int64 hold the `n_train` training examples, then the test examples. `example_id` (n,) is each
    example's index in the complete dataset. `sha256` is the hash of the bytes of `inputs` and `labels`.

    Raises:
        DatasetError: the type or shape of `inputs` or `labels` is not as declared.
    """

    inputs: Tensor
    labels: Tensor
    example_id: IntArray
    info: DatasetInfo
    sha256: str

    def __post_init__(self) -> None:
        shape = (self.info.n_train + self.info.n_test, *self.info.shape)
        dtype = torch.uint8 if self.info.is_images else torch.float32
        for name, found, kind, size in (
            ("inputs", self.inputs, dtype, shape),
            ("labels", self.labels, torch.int64, shape[:1]),
        ):
            if found.dtype != kind or tuple(found.shape) != size:
                raise DatasetError(
                    f"The dataset's {name} are {found.dtype} of shape {tuple(found.shape)}, but it declares {kind} of shape {size}."
                )

    def to(self, device: torch.device) -> Examples:
        """The same data on `device`."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class RawPart:
    """The training or test part before it is prepared. `read` gives the inputs at an ascending index."""

    labels: IntArray
    read: Callable[[IntArray], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Base of all datasets: a frozen dataclass that finds and reads examples. See `ImageDataset` and `TableDataset`.

    If a part has more than `max_train_examples` or `max_test_examples` examples, a fixed random subset is kept, the same
    for every trial. `subset_seed` selects another subset.
    """

    max_train_examples: int | None = None
    max_test_examples: int | None = None
    subset_seed: int = 0

    source: ClassVar[str]
    revision: ClassVar[int] = 1
    """Raised when the same configuration would give other examples."""
    published: ClassVar[DatasetInfo | None] = None

    def __post_init__(self) -> None:
        for name in ("max_train_examples", "max_test_examples"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} is {value}; it must be at least 2, or null for all examples")
        if self.subset_seed < 0:
            raise ValueError(f"subset_seed is {self.subset_seed}; it must be at least 0")

    @abstractmethod
    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        """The training and the test part under `data_dir`. If `download` is true, missing files are fetched first.

        Raises:
            DatasetError: no usable data were found, or the download failed.
        """

    @abstractmethod
    def info_of(self, train: RawPart, test: RawPart) -> DatasetInfo:
        """Facts about the two whole parts, before any limit or transform."""

    @abstractmethod
    def combined(self, train: RawPart, test: RawPart, *indexes: IntArray) -> tuple[npt.NDArray[Any], DatasetInfo]:
        """The inputs of both parts at their indexes, ready for a model, and the facts about them.

        Raises:
            DatasetError: the parts do not fit together, or do not have the declared type.
        """

    def transformed(self, info: DatasetInfo) -> DatasetInfo:
        """`info` of the inputs as read, updated for what `combined` changes."""
        return info

    def describe(self, data_dir: Path) -> DatasetInfo:
        """The dataset as a trial would see it. A published dataset is described without looking for its files.

        Raises:
            DatasetError: an unpublished dataset was not found, or its examples cannot be transformed as the fields say.
        """
        info = self.raw_info(data_dir)
        return replace(
            self.transformed(info),
            n_train=_limited(info.n_train, self.max_train_examples),
            n_test=_limited(info.n_test, self.max_test_examples),
        )

    def raw_info(self, data_dir: Path) -> DatasetInfo:
        """The whole dataset before any limit or transform.

        Raises:
            DatasetError: an unpublished dataset was not found.
        """
        return self.published or self.info_of(*self.open(data_dir, download=False))

    def load(self, data_dir: Path, *, download: bool = False) -> Examples:
        """Read, limit, transform and hash the dataset.

        Raises:
            DatasetError: no usable data were found, the examples cannot be transformed as the fields say, or they are not of the
                declared type and shape.
        """
        train, test = self.open(data_dir, download)
        train_index = kept(len(train.labels), self.max_train_examples, self.subset_seed)
        test_index = kept(len(test.labels), self.max_test_examples, self.subset_seed)
        refuse_one_class(train.labels[train_index], len(train.labels), self.name)
        inputs, info = self.combined(train, test, train_index, test_index)
        labels = np.concatenate([train.labels[train_index], test.labels[test_index]]).astype(np.int64)
        return Examples(
            inputs=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            example_id=np.concatenate([train_index, len(train.labels) + test_index]),
            info=info,
            sha256=_digest(inputs, labels),
        )

    @property
    def name(self) -> str:
        """The name that users type."""
        return type(self).__module__.rpartition(".")[2]


def _digest(*arrays: npt.NDArray[Any]) -> str:
    """The hash of the arrays' bytes, one after the other. Copies none that is contiguous: a table may fill half of the memory."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _limited(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def kept(count: int, limit: int | None, subset_seed: int) -> IntArray:
    """Indices of the examples to keep, ascending: all, or a fixed random subset if there are more than `limit`.

    They do not depend on the trial's seed.
    """
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng([count, limit, subset_seed]).permutation(count)[:limit]).astype(np.int64)


def refuse_one_class(labels: IntArray, n_all: int, name: str) -> None:
    """Raise `DatasetError` if all training examples are of one class. `n_all` is their number before any limit."""
    if len(labels) and (labels == labels[0]).all():
        remedy = "Give examples of two classes or more."
        if len(labels) < n_all:
            remedy = "Raise max_train_examples, or draw others with subset_seed."
        raise DatasetError(
            f"Dataset '{name}': the {len(labels)} training examples are all of one class, so there is nothing to "
            f"classify. {remedy}"
        )


def not_found(name: str, searched: Path, remedy: str) -> DatasetError:
    """The error for a dataset that was not found."""
    return DatasetError(f"Dataset '{name}' was not found: searched {searched.absolute()}. {remedy}")


def not_fetched(name: str, searched: Path, error: Exception) -> DatasetError:
    """The error for a download that failed."""
    reason = " ".join(str(error).split())
    return DatasetError(
        f"Dataset '{name}' could not be downloaded to {searched.absolute()}: {reason}. Check the network, or name the "
        "folder that holds it with --data DIR."
    )


DOWNLOAD_REMEDY = "Name the folder that holds it with --data DIR, or let `sweeper launch --download` fetch it."


def inside(data_dir: Path, path: str, field: str = "folder") -> Path:
    """`data_dir/path`, if that is inside `data_dir`. `field` is the path's name in messages.

    Raises:
        ValueError: the path is absolute or contains "..".
    """
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise ValueError(f"{field} is {path!r}; it must be a path below the folder given by --data")
    return data_dir / path


def class_labels(labels: npt.NDArray[Any], name: str) -> IntArray:
    """Labels as int64.

    Raises:
        DatasetError: labels are missing, not integers, negative or beyond int64.
    """
    if labels.size == 0:
        raise DatasetError(f"A part of dataset '{name}' is empty; it needs at least one example.")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= 2**63:
        raise DatasetError(
            f"Labels of dataset '{name}' must be whole numbers from 0, without nulls; got {labels.dtype}."
        )
    return labels.astype(np.int64)
