"""Wide ResNet for small images, as differentially private training uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architectures._wide_resnet import Norm, check_groups, wide_resnet
from models.architectures.base import Architecture, StagedModel
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Wrn(Architecture):
    """Wide ResNet of `depth` layers that is `width` times as wide as a ResNet: WRN-16-4 by default.

    A stem of 16 filters, three layers of (depth − 4)/6 blocks with 16, 32 and 64 times `width` filters, global average pooling,
    outputs. ReLU comes before each norm, shortcuts that change the shape have a norm, and convolutions have biases. Weights are drawn
    from a normal distribution of standard deviation 1/√fan_in, cut at two of these.

    `norm`: `group` with `groups` groups (the stem's 16 channels take 16 at most), or `batch`, which mixes examples, so that a private
    mechanism refuses it. The defense `dropout` acts between the stages, not inside the blocks.

    Source: Zagoruyko & Komodakis 2016; De et al. 2022, in the form in which Aerni, Zhang & Tramèr 2024 train it privately. Deviations:
    De et al. standardize the weights of convolutions, too; with `batch`, the initialization and the order are still those of private
    training.
    """

    depth: int = 16
    width: int = 4
    norm: Norm = "group"
    groups: int = 16

    source: ClassVar[str] = "Zagoruyko & Komodakis 2016; De et al. 2022"

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth is {self.depth}; it must be 4 more than a multiple of 6: 10, 16, 22, 28, 40")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")
        check_groups(self.groups, (16, 16 * self.width, 32 * self.width, 64 * self.width))

    def build(self, info: DatasetInfo) -> StagedModel:
        return wide_resnet(
            info,
            stem=16,
            channels=(16 * self.width, 32 * self.width, 64 * self.width),
            blocks=(self.depth - 4) // 6,
            norm=self.norm,
            groups=self.groups,
        )
