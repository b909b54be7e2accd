"""scikit-learn's bundled handwritten digits: real data that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from models.datasets._images import ImageDataset
from models.datasets.base import DatasetInfo, RawPart


@dataclass(frozen=True, kw_only=True)
class Digits(ImageDataset):
    """Digits: 1,797 gray 8×8 handwritten digits, bundled with scikit-learn.

    There is no official test set, so a fixed seed draws one of 360, stratified by class. Pixel values 0–16 are scaled to
    0–255.
    """

    source: ClassVar[str] = "Alpaydin & Kaynak 1998, UCI; bundled with scikit-learn"
    mean: ClassVar[tuple[float, ...]] = (0.3053,)
    std: ClassVar[tuple[float, ...]] = (0.3761,)
    published: ClassVar[DatasetInfo | None] = DatasetInfo(
        n_train=1437, n_test=360, shape=(1, 8, 8), num_classes=10, mean=mean, std=std
    )

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = bunch.target.astype(np.int64)
        train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
        return (
            RawPart(labels=labels[train], read=lambda index: images[train[index]]),
            RawPart(labels=labels[test], read=lambda index: images[test[index]]),
        )
