"""Dropout between the weighted layers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.architectures.base import StagedModel
from models.defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class Dropout(Defense):
    """Dropout after each convolution and its activation, and before and after the first dense layer.

    Masks come from PyTorch's global generator, which the training loop seeds from the trial's dropout stream. No
    guarantee.
    """

    rate: float = 0.2

    source: ClassVar[str] = "Lomurno & Matteucci 2022, section 4; Srivastava et al. 2014"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}; it must be at least 0 and below 1")

    def edit_model(self, model: StagedModel) -> StagedModel:
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        dense_seen = False
        for name, stage in model.stages.named_children():
            layers = list(stage.children())
            if any(isinstance(layer, nn.Conv2d) for layer in layers):
                layers.append(nn.Dropout(self.rate))
            linear = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), None)
            if linear is not None and not dense_seen:
                dense_seen = True
                layers.insert(linear, nn.Dropout(self.rate))
                if name != model.stage_names[-1]:
                    layers.append(nn.Dropout(self.rate))
            stages[name] = nn.Sequential(*layers)
        return StagedModel(model.normalize, stages)
