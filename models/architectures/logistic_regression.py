"""Multinomial logistic regression."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class LogisticRegression(Architecture):
    """Logistic regression: one linear layer from the features to the classes' logits.

    Images are flattened. Initialization is PyTorch's default. With two classes it has two logits; the weight vector of the
    usual form is their difference, so that the same penalty holds it half as tightly.
    """

    source: ClassVar[str] = "Cox 1958"

    def build(self, info: DatasetInfo) -> StagedModel:
        layer = nn.Linear(math.prod(info.shape), info.num_classes)
        flat = [nn.Flatten()] if info.is_images else []
        stages: OrderedDict[str, nn.Module] = OrderedDict(prediction=nn.Sequential(*flat, layer))
        return StagedModel(normalize(info), stages)
