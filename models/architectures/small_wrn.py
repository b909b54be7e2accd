"""A wide ResNet that two CPU cores can train many times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architectures._wide_resnet import Norm, check_groups, wide_resnet
from models.architectures.base import Architecture, StagedModel
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class SmallWrn(Architecture):
    """A small wide ResNet: the blocks and initialization of `wrn`, one block in each of three layers.

    The stem has stride 2, so that a 32×32 image is 16×16 in the first layer. The layers have 1, 2 and 4 times `channels` filters.
    """

    channels: int = 16
    norm: Norm = "group"
    groups: int = 8

    source: ClassVar[str] = "wrn (Zagoruyko & Komodakis 2016; De et al. 2022), made smaller"

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; it must be at least 1")
        check_groups(self.groups, (self.channels, 2 * self.channels, 4 * self.channels))

    def build(self, info: DatasetInfo) -> StagedModel:
        channels = (self.channels, 2 * self.channels, 4 * self.channels)
        return wide_resnet(
            info, stem=self.channels, channels=channels, blocks=1, norm=self.norm, groups=self.groups, stem_stride=2
        )
