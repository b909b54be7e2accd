"""Texas-100: hospital stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.datasets._npz import NpzDataset
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Texas100(NpzDataset):
    """Texas-100: 67,330 hospital stays, 6,169 facts about each, the 100 most frequent procedures; in texas100.npz.

    Features are zeros and ones and are taken as they are. A fixed seed draws a test part of 13,466, stratified by class.
    """

    source: ClassVar[str] = "Shokri et al. 2017, from the Texas Department of State Health Services"
    published: ClassVar[DatasetInfo] = DatasetInfo(n_train=53_864, n_test=13_466, shape=(6169,), num_classes=100)
