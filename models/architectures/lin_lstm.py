"""The recurrent target network of Lin et al. 2020."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from models.architectures.base import Architecture, Normalize, StagedModel
from models.datasets.base import DatasetInfo


class RowLstm(nn.Module):
    """Reads images (n, channels, height, width) a row per step, from the top; gives the last output (n, units)."""

    def __init__(self, row_features: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(row_features, units, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.transpose(1, 2).flatten(2)
        outputs: Tensor = self.lstm(rows)[0]
        return outputs[:, -1]


@dataclass(frozen=True, kw_only=True)
class LinLstm(Architecture):
    """One LSTM of 128 units over the rows of an image, its last output to the classes by a dense layer.

    The rows themselves are no cut point: they are the image. The paper does not say how weights start; ours start
    as PyTorch has them, without an offset of the forget gate's bias, and with PyTorch's two bias vectors per gate.

    The paper reduces every image to 28 rows of 28 gray pixels first, which is a dataset's own choice here (`grayscale`,
    `crop`); this takes images as they are, with a row's channels × width values in each step.
    """

    units: int = 128

    source: ClassVar[str] = "Lin, Bao, Li, Si & Chu 2020, section 4.3.2"

    def __post_init__(self) -> None:
        if self.units < 1:
            raise ValueError(f"units is {self.units}; it must be at least 1")

    def build(self, info: DatasetInfo) -> StagedModel:
        channels, _, width = info.image_shape
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["lstm"] = nn.Sequential(RowLstm(channels * width, self.units))
        stages["prediction"] = nn.Sequential(nn.Linear(self.units, info.num_classes))
        return StagedModel(Normalize(info.mean, info.std), stages)
