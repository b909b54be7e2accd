"""Base classes of architectures. Each builds a network of named stages, which model inversion uses as cut points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from models.datasets.base import DatasetInfo


class Normalize(nn.Module):
    """Converts uint8 images to floats in [0, 1], then subtracts `mean` and divides by `std` per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        return (scaled - self.mean) / self.std


def normalize(info: DatasetInfo) -> nn.Module:
    """The first step of a model: images are normalized, and rows of a table are taken as they are."""
    return Normalize(info.mean, info.std) if info.is_images else nn.Identity()


class StagedModel(nn.Module):
    """A classifier as a sequence of named stages. Each name is a cut point; the last stage returns the logits.

    Takes images (n, channels, height, width), uint8 or float in [0, 1], or rows of a table (n, features). Returns logits (n,
    classes).
    """

    num_classes: int = 0
    """Number of classes; `build_model` sets it before defenses edit the model."""

    def __init__(self, normalize: nn.Module, stages: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.normalize = normalize
        self.stages = nn.Sequential(stages)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.stages.named_children())

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.stages(self.normalize(inputs))
        return logits

    def activations(self, inputs: Tensor, cut: str) -> Tensor:
        """The output of the stage `cut`; in train mode, dropout is applied."""
        value = self.normalize(inputs)
        for name, stage in self.stages.named_children():
            value = stage(value)
            if name == cut:
                return cast(Tensor, value)
        raise KeyError(f"no cut point '{cut}'; there are {', '.join(self.stage_names)}")


@dataclass(frozen=True, kw_only=True)
class Architecture(ABC):
    """Base of all architectures: a frozen dataclass of sizes that builds a `StagedModel`."""

    source: ClassVar[str]
    revision: ClassVar[int] = 1
    """Raised when the same configuration would build another network."""

    @abstractmethod
    def build(self, info: DatasetInfo) -> StagedModel:
        """A newly initialized model for a dataset, on CPU; draws from PyTorch's global generator.

        Raises:
            ValueError: the dataset's images are too small for this architecture, or it needs images and the dataset is a table.
        """
