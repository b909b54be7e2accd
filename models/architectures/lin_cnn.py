"""The convolutional target network of Lin et al. 2020."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class LinCnn(Architecture):
    """CNN: two 5×5 convolutions (32 and 64 filters), each with 2×2 max pooling, a dense layer of 1024, dropout, outputs.

    The paper states these sizes, stride 1 for convolutions and stride 2 for pooling. It does not state padding,
    activations, dropout rate or initialization. We chose no padding (a 28×28 image becomes 64 maps of 4×4), ReLU, a rate
    of 0.5 and PyTorch's default initialization.

    The paper first converts every image to 28×28×1; here this is an option of the dataset (`grayscale`, `crop`). Images
    must be at least 16×16. Dropout is part of the network in every arm of a comparison; `dropout_rate: 0` removes it.
    """

    filters: tuple[int, int] = (32, 64)
    dense_units: int = 1024
    dropout_rate: float = 0.5

    source: ClassVar[str] = "Lin, Bao, Li, Si & Chu 2020, section 4.3.1"

    def __post_init__(self) -> None:
        if min(*self.filters, self.dense_units) < 1:
            raise ValueError(f"filters {self.filters} and dense_units {self.dense_units} must be at least 1")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; it must be at least 0 and below 1")

    def build(self, info: DatasetInfo) -> StagedModel:
        channels, height, width = info.image_shape
        if min(height, width) < 16:
            raise ValueError(
                f"lin_cnn convolves without padding and pools twice; it needs images of at least 16x16, got {width}x{height}"
            )
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for number, filters in enumerate(self.filters, start=1):
            stages[f"conv{number}"] = nn.Sequential(nn.Conv2d(channels, filters, 5), nn.ReLU())
            stages[f"maxpool{number}"] = nn.Sequential(nn.MaxPool2d(2))
            channels, height, width = filters, (height - 4) // 2, (width - 4) // 2
        stages["dense"] = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, self.dense_units),
            nn.ReLU(),
            nn.Dropout(self.dropout_rate),
        )
        stages["prediction"] = nn.Sequential(nn.Linear(self.dense_units, info.num_classes))
        return StagedModel(normalize(info), stages)
