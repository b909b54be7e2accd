"""A network of dense layers, for tables and images."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Mlp(Architecture):
    """MLP: dense layers of the given widths, each followed by its activation, and the prediction layer.

    The default is the network that studies of membership inference train on Purchase-100: 1024, 512, 256 and 128 units with
    tanh. Images are flattened. Initialization is PyTorch's default.
    """

    widths: tuple[int, ...] = (1024, 512, 256, 128)
    activation: Literal["tanh", "relu"] = "tanh"

    source: ClassVar[str] = "Nasr, Shokri & Houmansadr 2018, public code for Purchase-100"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"widths are {list(self.widths)}; give at least one, each at least 1 (logistic_regression has none)"
            )

    def build(self, info: DatasetInfo) -> StagedModel:
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        features = math.prod(info.shape)
        for number, width in enumerate(self.widths, start=1):
            activation = nn.Tanh() if self.activation == "tanh" else nn.ReLU()
            flat = [nn.Flatten()] if number == 1 and info.is_images else []
            stages[f"dense{number}"] = nn.Sequential(*flat, nn.Linear(features, width), activation)
            features = width
        stages["prediction"] = nn.Sequential(nn.Linear(features, info.num_classes))
        return StagedModel(normalize(info), stages)
