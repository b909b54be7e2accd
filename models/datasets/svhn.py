"""Street View House Numbers, cropped digits."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision import datasets

from models.datasets._images import ImageArray, ImageDataset
from models.datasets.base import (
    DOWNLOAD_REMEDY,
    DatasetError,
    DatasetInfo,
    IntArray,
    RawPart,
    not_fetched,
    not_found,
)

DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError, OSError)
"""Exceptions that SciPy's reader raises on a damaged file, besides its own error and those of zlib and struct."""


@dataclass(frozen=True, kw_only=True)
class Svhn(ImageDataset):
    """SVHN: 73,257 + 26,032 color 32×32 house-number digits (`train_32x32.mat`, `test_32x32.mat`).

    torchvision downloads the files and verifies them; existing files are read without a check. `extra` appends the 531,131
    easier digits of `extra_32x32.mat` (1.3 GB) to the training examples.
    """

    extra: bool = False

    source: ClassVar[str] = "Netzer, Wang, Coates, Bissacco, Wu & Ng 2011"
    mean: ClassVar[tuple[float, ...]] = (0.4377, 0.4438, 0.4728)
    std: ClassVar[tuple[float, ...]] = (0.1980, 0.2010, 0.1970)

    def raw_info(self, data_dir: Path) -> DatasetInfo:
        """Read from the files if all exist; otherwise as published."""
        parts = ("train", "extra", "test") if self.extra else ("train", "test")
        if all((data_dir / f"{part}_32x32.mat").is_file() for part in parts):
            return super().raw_info(data_dir)
        n_train = 73_257 + (531_131 if self.extra else 0)
        return DatasetInfo(
            n_train=n_train, n_test=26_032, shape=(3, 32, 32), num_classes=10, mean=self.mean, std=self.std
        )

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        train = self._read(data_dir, "train", download)
        if self.extra:
            train = _joined(train, self._read(data_dir, "extra", download))
        return train, self._read(data_dir, "test", download)

    def _read(self, data_dir: Path, part: str, download: bool) -> RawPart:
        path = data_dir / f"{part}_32x32.mat"
        if not path.is_file():
            if not download:
                without = " Or set extra to false." if part == "extra" else ""
                raise not_found("svhn", path, DOWNLOAD_REMEDY + without)
            try:
                datasets.SVHN(str(data_dir), split=part, download=True)
            except (RuntimeError, OSError) as error:
                raise not_fetched("svhn", path, error) from error
        try:
            content = loadmat(path)
            images = content["X"].transpose(3, 2, 0, 1)
            labels = content["y"].astype(np.int64).ravel() % 10  # the file labels zero as 10
            if images.dtype != np.uint8 or len(images) != len(labels):
                raise ValueError(f"it holds {len(images)} images of {images.dtype} and {len(labels)} labels")
            if images.shape[1:] != (3, 32, 32):
                raise ValueError(f"its images (channels, height, width) are {images.shape[1:]}, not (3, 32, 32)")
        except (*DAMAGE, MatReadError, zlib.error, struct.error) as error:
            raise DatasetError(f"{path.absolute()} is not an SVHN file: {error}. Replace it.") from error
        return RawPart(labels=labels, read=lambda index: np.ascontiguousarray(images[index]))


def _joined(first: RawPart, second: RawPart) -> RawPart:
    """One part with the examples of `first`, then those of `second`; no images are copied."""
    n_first = len(first.labels)

    def read(index: IntArray) -> ImageArray:
        in_second = index >= n_first
        images = np.empty((len(index), 3, 32, 32), dtype=np.uint8)
        images[~in_second] = first.read(index[~in_second])
        images[in_second] = second.read(index[in_second] - n_first)
        return images

    return RawPart(labels=np.concatenate([first.labels, second.labels]), read=read)
