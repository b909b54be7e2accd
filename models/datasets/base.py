"""Base class of datasets: uint8 images and labels, training examples first, then test examples."""

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
from PIL import Image
from torch import Tensor

IntArray = npt.NDArray[np.int64]
ImageArray = npt.NDArray[np.uint8]

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a gray value, in 1/65536: ITU-R 601 in the fixed-point form of Pillow's convert("L")."""

_BLOCK = 1000
"""Number of images that are transformed at a time, to keep temporary memory small."""


class DatasetError(ValueError):
    """The dataset is missing or unreadable. The message names the folder and a remedy."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a dataset that a model and a plan need: sizes, image shape (channels, height, width), classes.

    `notes` are sentences for users: what is changed when their own files are read. Only `describe` sets them.
    """

    n_train: int
    n_test: int
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A loaded dataset.

    `images` (n, channels, height, width) uint8 and `labels` (n,) int64 hold the `n_train` training examples, then the
    test examples. `example_id` (n,) is each example's index in the complete dataset. `info.mean` and `info.std`, per
    channel, normalize inputs in [0, 1]. `sha256` is the hash of the bytes of `images` and `labels`.
    """

    images: Tensor
    labels: Tensor
    example_id: IntArray
    info: DatasetInfo
    sha256: str

    def to(self, device: torch.device) -> ImageData:
        """The same data on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class RawPart:
    """The training or test part before decoding. `read` decodes the images at an ascending index."""

    labels: IntArray
    read: Callable[[IntArray], ImageArray]


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Base of all datasets: a frozen dataclass that finds, reads and normalizes images.

    If a part has more than `max_train_examples` or `max_test_examples` examples, a fixed random subset is kept, the same
    for every trial. `subset_seed` selects another subset.

    Images are transformed after reading, in this order. `grayscale` converts color (RGB) to ITU-R 601 luma, bit for bit as
    Pillow's convert("L"); gray images are unchanged. `crop` keeps the central square with sides of that many pixels; if an
    odd number is cut off, one more row or column is removed at the bottom or right. `resize` scales any shape to a square
    with sides of that many pixels, by Pillow's bilinear filter with antialiasing.

    The normalization constants are fixed and never computed from a trial's training examples. For public datasets they are
    the published values of the whole training set; ε does not cover this choice. For a gray version, the mean is the luma
    of the channel means (exact, because luma is linear). The standard deviation is the mean of the channels' standard
    deviations: a choice, because the true value depends on the channels' covariance. Cropping and resizing do not change
    the constants.
    """

    max_train_examples: int | None = None
    max_test_examples: int | None = None
    subset_seed: int = 0
    grayscale: bool = False
    crop: int | None = None
    resize: int | None = None

    source: ClassVar[str]
    published: ClassVar[DatasetInfo | None] = None
    mean: ClassVar[tuple[float, ...]] = (0.5,)
    std: ClassVar[tuple[float, ...]] = (0.25,)

    def __post_init__(self) -> None:
        for name in ("max_train_examples", "max_test_examples"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} is {value}; it must be at least 2, or null for all examples")
        if self.subset_seed < 0:
            raise ValueError(f"subset_seed is {self.subset_seed}; it must be at least 0")
        for name in ("crop", "resize"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1 pixel, or null to leave images as they are")

    @abstractmethod
    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        """The training and the test part under `data_dir`. If `download` is true, missing files are fetched first.

        Raises:
            DatasetError: no usable data were found, or the download failed.
        """

    def describe(self, data_dir: Path) -> DatasetInfo:
        """The dataset as a trial would see it. A published dataset is described without looking for its files.

        Raises:
            DatasetError: an unpublished dataset was not found, or the images cannot be transformed as the fields say.
        """
        info = self.raw_info(data_dir)
        return replace(
            self._transformed(info),
            n_train=_limited(info.n_train, self.max_train_examples),
            n_test=_limited(info.n_test, self.max_test_examples),
        )

    def raw_info(self, data_dir: Path) -> DatasetInfo:
        """The whole dataset before any limit or transform.

        Raises:
            DatasetError: an unpublished dataset was not found.
        """
        if self.published is not None:
            return self.published
        train, test = self.open(data_dir, download=False)
        first = train.read(np.zeros(1, dtype=np.int64))
        return self._info(len(train.labels), len(test.labels), first.shape[1:], train.labels, test.labels)

    def load(self, data_dir: Path, *, download: bool = False) -> ImageData:
        """Read, limit, transform and hash the dataset.

        Raises:
            DatasetError: no usable data were found, or the images cannot be transformed as the fields say.
        """
        train, test = self.open(data_dir, download)
        train_index = kept(len(train.labels), self.max_train_examples, self.subset_seed)
        test_index = kept(len(test.labels), self.max_test_examples, self.subset_seed)
        refuse_one_class(train.labels[train_index], len(train.labels), type(self).__module__.rpartition(".")[2])
        parts = train.read(train_index), test.read(test_index)
        if parts[0].shape[2:] != parts[1].shape[2:]:
            raise DatasetError(
                f"Images (channels, height, width) are {parts[0].shape[1:]} in train but {parts[1].shape[1:]} in test. "
                "Set `size` in the dataset to resize all."
            )
        shape = max(part.shape[1:] for part in parts)
        if {1, shape[0]} < {part.shape[1] for part in parts}:
            raise DatasetError(f"Images have {parts[0].shape[1]} channels in train but {parts[1].shape[1]} in test.")
        info = self._transformed(self._info(len(train_index), len(test_index), shape, train.labels, test.labels))
        images = np.empty((info.n_train + info.n_test, *info.image_shape), dtype=np.uint8)
        for first, part in zip((0, info.n_train), parts, strict=True):
            for start in range(0, len(part), _BLOCK):
                block = np.broadcast_to(part[start : start + _BLOCK], (len(part[start : start + _BLOCK]), *shape))
                images[first + start : first + start + len(block)] = self._transform(block)
        labels = np.concatenate([train.labels[train_index], test.labels[test_index]]).astype(np.int64)
        return ImageData(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(labels),
            example_id=np.concatenate([train_index, len(train.labels) + test_index]),
            info=info,
            sha256=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        )

    def _transform(self, images: ImageArray) -> ImageArray:
        """Images (n, channels, height, width) after `grayscale`, `crop` and `resize`."""
        if self.grayscale and images.shape[1] == 3:
            weighted = images * np.array(LUMA, dtype=np.uint32)[:, None, None]
            luma = (weighted.sum(axis=1, keepdims=True, dtype=np.uint32) + 2**15) >> 16
            images = luma.astype(np.uint8)
        if self.crop is not None:
            top, left = ((size - self.crop) // 2 for size in images.shape[2:])
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        if self.resize is not None and images.shape[2:] != (self.resize, self.resize):
            size = (self.resize, self.resize)
            planes = [
                np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
                for plane in images.reshape(-1, *images.shape[2:])
            ]
            images = np.stack(planes).reshape(*images.shape[:2], *size)
        return images

    def _transformed(self, info: DatasetInfo) -> DatasetInfo:
        """`info` of the images as read, updated for `grayscale`, `crop` and `resize`."""
        channels, height, width = info.image_shape
        mean, std = info.mean, info.std
        name = type(self).__module__.rpartition(".")[2]  # as users type it
        if self.grayscale and channels != 1:
            if channels != 3:
                raise DatasetError(
                    f"Dataset '{name}': grayscale needs images of 3 channels (RGB), or of 1; these have {channels}."
                )
            channels = 1
            mean = (sum(weight * value for weight, value in zip(LUMA, mean, strict=True)) / sum(LUMA),)
            std = (sum(std) / len(std),)
        if self.crop is not None:
            if self.crop > min(height, width):
                raise DatasetError(
                    f"Dataset '{name}': crop is {self.crop}, but its images are {height} pixels high and {width} wide. "
                    f"Set crop to {min(height, width)} or less, or leave it out."
                )
            height = width = self.crop
        if self.resize is not None:
            height = width = self.resize
        return replace(info, image_shape=(channels, height, width), mean=mean, std=std)

    def _info(
        self, n_train: int, n_test: int, shape: tuple[int, ...], train_labels: IntArray, test_labels: IntArray
    ) -> DatasetInfo:
        channels, height, width = shape
        return DatasetInfo(
            n_train=n_train,
            n_test=n_test,
            image_shape=(channels, height, width),
            num_classes=int(max(train_labels.max(), test_labels.max())) + 1,
            mean=self.mean if len(self.mean) == channels else self.mean[:1] * channels,
            std=self.std if len(self.std) == channels else self.std[:1] * channels,
        )


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


def inside(data_dir: Path, folder: str) -> Path:
    """`data_dir/folder`, if that is inside `data_dir`.

    Raises:
        ValueError: the folder is absolute or contains "..".
    """
    parts = PurePosixPath(folder)
    if parts.is_absolute() or ".." in parts.parts or "\0" in folder:
        raise ValueError(f"folder is {folder!r}; it must be a path below the folder given by --data")
    return data_dir / folder


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
