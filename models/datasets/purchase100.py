"""Purchase-100: what customers bought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.datasets._npz import NpzDataset
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Purchase100(NpzDataset):
    """Purchase-100: 197,324 customers, which of 600 products each bought, 100 styles of shopping; in purchase100.npz.

    Features are zeros and ones and are taken as they are. A fixed seed draws a test part of 39,465, stratified by class.
    """

    source: ClassVar[str] = "Shokri et al. 2017, from Kaggle's Acquire Valued Shoppers"
    published: ClassVar[DatasetInfo] = DatasetInfo(n_train=157_859, n_test=39_465, shape=(600,), num_classes=100)
