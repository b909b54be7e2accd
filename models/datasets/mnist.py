"""MNIST, and the base of datasets with its file layout."""

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


@dataclass(frozen=True, kw_only=True)
class Mnist(ImageDataset):
    """MNIST: 60,000 + 10,000 gray 28×28 handwritten digits, in torchvision's file layout."""

    source: ClassVar[str] = "LeCun, Bottou, Bengio & Haffner 1998"
    mean: ClassVar[tuple[float, ...]] = (0.1307,)
    std: ClassVar[tuple[float, ...]] = (0.3081,)
    published: ClassVar[DatasetInfo | None] = DatasetInfo(
        n_train=60_000, n_test=10_000, shape=(1, 28, 28), num_classes=10, mean=mean, std=std
    )
    reader: ClassVar[type[datasets.MNIST]] = datasets.MNIST

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        folder = data_dir / self.reader.__name__ / "raw"
        return self._read(data_dir, folder, True, download), self._read(data_dir, folder, False, download)

    def _read(self, data_dir: Path, folder: Path, train: bool, download: bool) -> RawPart:
        try:
            part = self.reader(str(data_dir), train=train, download=download)
        except (RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError, AssertionError) as error:
            if len(list(folder.glob("*-ubyte"))) == len(self.reader.resources):
                raise DatasetError(
                    f"The files in {folder.absolute()} cannot be read: {error}. Replace them."
                ) from error
            name = type(self).__module__.rpartition(".")[2]  # as users type it
            if download:
                raise not_fetched(name, folder, error) from error
            raise not_found(name, folder, DOWNLOAD_REMEDY) from error
        images, labels = part.data.numpy(), part.targets.numpy().astype(np.int64)
        if len(images) != len(labels):
            raise DatasetError(
                f"{folder.absolute()} has {len(images)} images but {len(labels)} labels. Replace the files."
            )
        return RawPart(labels=labels, read=lambda index: images[index][:, None])
