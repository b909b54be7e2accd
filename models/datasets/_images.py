"""Base class of datasets of images, and how they transform images after reading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.datasets.base import Dataset, DatasetError, DatasetInfo, IntArray, RawPart

ImageArray = npt.NDArray[np.uint8]

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a gray value, in 1/65536: ITU-R 601 in the fixed-point form of Pillow's convert("L")."""

_BLOCK = 1000
"""Number of images that are transformed at a time, to keep temporary memory small."""


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset):
    """Base of all datasets of images: uint8, (n, channels, height, width).

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

    grayscale: bool = False
    crop: int | None = None
    resize: int | None = None

    mean: ClassVar[tuple[float, ...]] = (0.5,)
    std: ClassVar[tuple[float, ...]] = (0.25,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "resize"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1 pixel, or null to leave images as they are")

    def info_of(self, train: RawPart, test: RawPart) -> DatasetInfo:
        first = train.read(np.zeros(1, dtype=np.int64))
        return self._info(len(train.labels), len(test.labels), first.shape[1:], train.labels, test.labels)

    def combined(self, train: RawPart, test: RawPart, *indexes: IntArray) -> tuple[npt.NDArray[Any], DatasetInfo]:
        parts = [part.read(index) for part, index in zip((train, test), indexes, strict=True)]
        for part in parts:
            if part.dtype != np.uint8 or part.ndim != 4:
                raise DatasetError(
                    f"Dataset '{self.name}' returned {part.dtype} of shape {part.shape}; images must be uint8, (n, channels, height, "
                    "width). Convert them in the dataset, from 0 to 255."
                )
        if parts[0].shape[2:] != parts[1].shape[2:]:
            raise DatasetError(
                f"Images (channels, height, width) are {parts[0].shape[1:]} in train but {parts[1].shape[1:]} in test. "
                "Set `size` in the dataset to resize all."
            )
        shape = max(part.shape[1:] for part in parts)
        if {1, shape[0]} < {part.shape[1] for part in parts}:
            raise DatasetError(f"Images have {parts[0].shape[1]} channels in train but {parts[1].shape[1]} in test.")
        info = self.transformed(self._info(len(parts[0]), len(parts[1]), shape, train.labels, test.labels))
        images = np.empty((info.n_train + info.n_test, *info.shape), dtype=np.uint8)
        for first, part in zip((0, info.n_train), parts, strict=True):
            for start in range(0, len(part), _BLOCK):
                block = np.broadcast_to(part[start : start + _BLOCK], (len(part[start : start + _BLOCK]), *shape))
                images[first + start : first + start + len(block)] = self._transform(block)
        return images, info

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

    def transformed(self, info: DatasetInfo) -> DatasetInfo:
        """`info` of the images as read, updated for `grayscale`, `crop` and `resize`."""
        channels, height, width = info.image_shape
        mean, std = info.mean, info.std
        if self.grayscale and channels != 1:
            if channels != 3:
                raise DatasetError(
                    f"Dataset '{self.name}': grayscale needs images of 3 channels (RGB), or of 1; these have {channels}."
                )
            channels = 1
            mean = (sum(weight * value for weight, value in zip(LUMA, mean, strict=True)) / sum(LUMA),)
            std = (sum(std) / len(std),)
        if self.crop is not None:
            if self.crop > min(height, width):
                raise DatasetError(
                    f"Dataset '{self.name}': crop is {self.crop}, but its images are {height} pixels high and {width} wide. "
                    f"Set crop to {min(height, width)} or less, or leave it out."
                )
            height = width = self.crop
        if self.resize is not None:
            height = width = self.resize
        return replace(info, shape=(channels, height, width), mean=mean, std=std)

    def _info(
        self, n_train: int, n_test: int, shape: tuple[int, ...], train_labels: IntArray, test_labels: IntArray
    ) -> DatasetInfo:
        channels, height, width = shape
        return DatasetInfo(
            n_train=n_train,
            n_test=n_test,
            shape=(channels, height, width),
            num_classes=int(max(train_labels.max(), test_labels.max())) + 1,
            mean=self.mean if len(self.mean) == channels else self.mean[:1] * channels,
            std=self.std if len(self.std) == channels else self.std[:1] * channels,
        )
