"""The recurrent target network of Lin et al. 2020."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


class RowLstm(nn.Module):
    """An LSTM that reads images (n, channels, height, width) one row per step, from the top; returns (n, units)."""

    def __init__(self, row_features: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(row_features, units, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.transpose(1, 2).flatten(2)
        outputs: Tensor = self.lstm(rows)[0]
        return outputs[:, -1]


@dataclass(frozen=True, kw_only=True)
class LinLstm(Architecture):
    """LSTM: one layer of 128 units over the rows of an image; a dense layer maps its last output to the classes.

    The rows are not a cut point, because they are the image itself. The paper does not state the initialization; ours is
    PyTorch's default, with two bias vectors per gate and no offset of the forget gate's bias.

    The paper first reduces every image to 28 rows of 28 gray pixels; here this is an option of the dataset (`grayscale`,
    `crop`). Each step takes one row: channels × width values.
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
        return StagedModel(normalize(info), stages)
