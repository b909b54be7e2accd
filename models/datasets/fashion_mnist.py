"""Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchvision import datasets

from models.datasets.base import DatasetInfo
from models.datasets.mnist import Mnist


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Mnist):
    """Fashion-MNIST: 60,000 + 10,000 gray 28×28 pictures of clothing, in torchvision's file layout."""

    source: ClassVar[str] = "Xiao, Rasul & Vollgraf 2017"
    mean: ClassVar[tuple[float, ...]] = (0.2860,)
    std: ClassVar[tuple[float, ...]] = (0.3530,)
    published: ClassVar[DatasetInfo | None] = DatasetInfo(
        n_train=60_000, n_test=10_000, shape=(1, 28, 28), num_classes=10, mean=mean, std=std
    )
    reader: ClassVar[type[datasets.MNIST]] = datasets.FashionMNIST
