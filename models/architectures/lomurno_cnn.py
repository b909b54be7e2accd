"""The target network of Lomurno & Matteucci 2022."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class LomurnoCnn(Architecture):
    """CNN: three 3×3 convolutions with ReLU, each followed by 2×2 max pooling; a dense layer; the prediction layer.

    The paper gives the order of the layers (Figure 1 and the captions of Figure 5 and Table 4), but the figure with their
    sizes is lost. We chose, as defaults: convolutions of 3×3, stride 1, same padding, with 32, 64 and 128 filters; 2×2
    pooling; a dense layer of 128. Initialization follows Keras (Glorot uniform, zero biases), because the paper used
    TensorFlow.
    """

    filters: tuple[int, int, int] = (32, 64, 128)
    dense_units: int = 128

    source: ClassVar[str] = "Lomurno & Matteucci 2022, Figure 1"

    def __post_init__(self) -> None:
        if min(*self.filters, self.dense_units) < 1:
            raise ValueError(f"filters {self.filters} and dense_units {self.dense_units} must be at least 1")

    def build(self, info: DatasetInfo) -> StagedModel:
        channels, height, width = info.image_shape
        if min(height, width) < 8:
            raise ValueError(f"lomurno_cnn pools three times and needs images of at least 8x8, got {width}x{height}")
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for number, filters in enumerate(self.filters, start=1):
            stages[f"conv{number}"] = nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU())
            stages[f"maxpool{number}"] = nn.Sequential(nn.MaxPool2d(2))
            channels = filters
        features = channels * (height // 8) * (width // 8)
        stages["dense"] = nn.Sequential(nn.Flatten(), nn.Linear(features, self.dense_units), nn.ReLU())
        stages["prediction"] = nn.Sequential(nn.Linear(self.dense_units, info.num_classes))
        model = StagedModel(normalize(info), stages)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        return model
