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

from models.datasets.base import DOWNLOAD_REMEDY, Dataset, DatasetError, RawPart, not_fetched, not_found

DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError, OSError)
"""What SciPy's reader raises on a damaged file, besides its own error and those of zlib and struct."""


@dataclass(frozen=True, kw_only=True)
class Svhn(Dataset):
    """SVHN: 73,257 + 26,032 color 32×32 house-number digits (`train_32x32.mat`, `test_32x32.mat`).

    torchvision fetches the files and verifies what it fetched; files that are there already are read
    as they are.
    """

    source: ClassVar[str] = "Netzer, Wang, Coates, Bissacco, Wu & Ng 2011"
    mean: ClassVar[tuple[float, ...]] = (0.4377, 0.4438, 0.4728)
    std: ClassVar[tuple[float, ...]] = (0.1980, 0.2010, 0.1970)

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        return self._read(data_dir, "train", download), self._read(data_dir, "test", download)

    def _read(self, data_dir: Path, part: str, download: bool) -> RawPart:
        path = data_dir / f"{part}_32x32.mat"
        if not path.is_file():
            if not download:
                raise not_found("svhn", path, DOWNLOAD_REMEDY)
            try:
                datasets.SVHN(str(data_dir), split=part, download=True)
            except (RuntimeError, OSError) as error:
                raise not_fetched("svhn", path, error) from error
        try:
            content = loadmat(path)
            images = content["X"].transpose(3, 2, 0, 1)
            labels = content["y"].astype(np.int64).ravel() % 10  # the file calls zero 10
            if images.dtype != np.uint8 or len(images) != len(labels):
                raise ValueError(f"it holds {len(images)} images of {images.dtype} and {len(labels)} labels")
        except (*DAMAGE, MatReadError, zlib.error, struct.error) as error:
            raise DatasetError(f"{path.absolute()} is not an SVHN file: {error}. Replace it.") from error
        return RawPart(labels=labels, read=lambda index: np.ascontiguousarray(images[index]))
