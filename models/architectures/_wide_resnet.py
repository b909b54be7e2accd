"""Wide residual networks as private training uses them."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from models.architectures.base import StagedModel, normalize
from models.datasets.base import DatasetInfo

Norm = Literal["group", "batch"]


class WideBlock(nn.Module):
    """Twice ReLU, norm and 3×3 convolution, added to a shortcut; the second convolution has the stride.

    If the shape changes, the shortcut is ReLU, a norm of its own and a 1×1 convolution; otherwise it is the input.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReLU(),
            norm_layer(norm, channels_in, groups),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.ReLU(),
            norm_layer(norm, channels_out, groups),
            nn.Conv2d(channels_out, channels_out, 3, stride, padding=1),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.ReLU(), norm_layer(norm, channels_in, groups), nn.Conv2d(channels_in, channels_out, 1, stride)
            )

    def forward(self, images: Tensor) -> Tensor:
        added: Tensor = self.residual(images) + self.shortcut(images)
        return added


def norm_layer(norm: Norm, channels: int, groups: int) -> nn.Module:
    """BatchNorm, or GroupNorm of `groups` groups, or of as many as there are channels if these are fewer."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(min(groups, channels), channels)


def wide_resnet(
    info: DatasetInfo,
    *,
    stem: int,
    channels: tuple[int, int, int],
    blocks: int,
    norm: Norm,
    groups: int,
    stem_stride: int = 1,
) -> StagedModel:
    """A stem of `stem` filters, three layers of `blocks` blocks, ReLU, norm, global average pooling, outputs.

    Each later layer halves height and width. Weights are drawn from a normal distribution of standard deviation 1/√fan_in, cut at two
    of these; biases are 0.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Sequential(nn.Conv2d(info.image_shape[0], stem, 3, stem_stride, padding=1))
    before = stem
    for number, width in enumerate(channels):
        layer = [
            WideBlock(width if block else before, width, 2 if number and not block else 1, norm, groups)
            for block in range(blocks)
        ]
        stages[f"layer{number + 1}"] = nn.Sequential(*layer)
        before = width
    stages["pool"] = nn.Sequential(nn.ReLU(), norm_layer(norm, before, groups), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stages["prediction"] = nn.Sequential(nn.Linear(before, info.num_classes))
    model = StagedModel(normalize(info), stages)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spread = 1 / math.sqrt(module.weight[0].numel())
            nn.init.trunc_normal_(module.weight, std=spread, a=-2 * spread, b=2 * spread)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model


def check_groups(groups: int, channels: tuple[int, ...]) -> None:
    """Refuse groups that do not divide a layer's channels.

    Raises:
        ValueError: they do not, or there is no group.
    """
    if groups < 1:
        raise ValueError(f"groups is {groups}; it must be at least 1")
    for count in channels:
        if count % min(groups, count):
            raise ValueError(f"groups is {groups}; it must divide {count}, the channels of a layer")
