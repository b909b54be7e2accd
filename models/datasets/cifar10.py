"""CIFAR-10, from either of its two common file layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torchvision import datasets

from models.datasets._images import ImageDataset
from models.datasets.base import (
    DOWNLOAD_REMEDY,
    DatasetError,
    DatasetInfo,
    RawPart,
    not_fetched,
    not_found,
)
from models.datasets.parquet_images import ParquetImages


@dataclass(frozen=True, kw_only=True)
class Cifar10(ImageDataset):
    """CIFAR-10: 50,000 + 10,000 color 32×32 pictures in ten classes.

    Reads torchvision's `cifar-10-batches-py` (checksums verified). If that folder is missing, reads Parquet files in Hugging
    Face's image layout from a folder `cifar10`. The pixels of such a copy may differ (JPEG); the recorded `dataset_sha256`
    shows it.
    """

    source: ClassVar[str] = "Krizhevsky 2009"
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)
    published: ClassVar[DatasetInfo | None] = DatasetInfo(
        n_train=50_000, n_test=10_000, shape=(3, 32, 32), num_classes=10, mean=mean, std=std
    )

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        if (data_dir / "cifar10").is_dir() and not (data_dir / "cifar-10-batches-py").is_dir():
            copy = ParquetImages(folder="cifar10")
            train, test = copy.find(data_dir)
            highest = max(train.labels.max(), test.labels.max())
            if highest > 9:
                raise DatasetError(f"{data_dir / 'cifar10'} has the label {highest}; CIFAR-10's are 0 to 9.")
            return copy.raw_part(train, np.arange(10)), copy.raw_part(test, np.arange(10))
        return self._read(data_dir, True, download), self._read(data_dir, False, download)

    def _read(self, data_dir: Path, train: bool, download: bool) -> RawPart:
        try:
            part = datasets.CIFAR10(str(data_dir), train=train, download=download)
        except (RuntimeError, OSError) as error:
            folder = data_dir / "cifar-10-batches-py"
            if download:
                raise not_fetched("cifar10", folder, error) from error
            if folder.is_dir():
                raise DatasetError(
                    f"The files in {folder.absolute()} are not CIFAR-10's: {error} Replace them."
                ) from error
            raise not_found("cifar10", folder, f"(Nor is there {data_dir / 'cifar10'}.) {DOWNLOAD_REMEDY}") from error
        images = part.data
        return RawPart(
            labels=np.asarray(part.targets, dtype=np.int64),
            read=lambda index: np.ascontiguousarray(images[index].transpose(0, 3, 1, 2)),
        )
