"""Location-30: places that people visited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.datasets._npz import NpzDataset
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Location30(NpzDataset):
    """Location-30: 5,010 people, which of 446 places each visited, 30 types of people; in location30.npz.

    Features are zeros and ones and are taken as they are. A fixed seed draws a test part of 1,002, stratified by class.
    """

    source: ClassVar[str] = "Shokri et al. 2017, from Foursquare (Yang et al. 2016)"
    published: ClassVar[DatasetInfo] = DatasetInfo(n_train=4_008, n_test=1_002, shape=(446,), num_classes=30)
