"""MNIST and, by subclass, the datasets that share its files' layout."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torchvision import datasets

from models.datasets.base import DOWNLOAD_REMEDY, Dataset, DatasetError, DatasetInfo, RawPart, not_found


@dataclass(frozen=True, kw_only=True)
class Mnist(Dataset):
    """MNIST: 60,000 + 10,000 gray 28×28 handwritten digits, read as torchvision lays them out."""

    source: ClassVar[str] = "LeCun, Bottou, Bengio & Haffner 1998"
    mean: ClassVar[tuple[float, ...]] = (0.1307,)
    std: ClassVar[tuple[float, ...]] = (0.3081,)
    published: ClassVar[DatasetInfo | None] = DatasetInfo(
        n_train=60_000, n_test=10_000, image_shape=(1, 28, 28), num_classes=10, mean=mean, std=std
    )
    reader: ClassVar[type[datasets.MNIST]] = datasets.MNIST

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        name = self.reader.__name__
        folder = data_dir / name / "raw"
        return self._read(data_dir, folder, True, download), self._read(data_dir, folder, False, download)

    def _read(self, data_dir: Path, folder: Path, train: bool, download: bool) -> RawPart:
        try:
            part = self.reader(str(data_dir), train=train, download=download)
        except RuntimeError as error:
            raise not_found(type(self).__name__, folder, DOWNLOAD_REMEDY) from error
        except (ValueError, EOFError, gzip.BadGzipFile, OSError, AssertionError) as error:
            raise DatasetError(f"The files in {folder.absolute()} cannot be read: {error}. Replace them.") from error
        images = part.data.numpy()
        return RawPart(labels=part.targets.numpy().astype(np.int64), read=lambda index: images[index][:, None])
