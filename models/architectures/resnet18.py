"""ResNet-18 for small images, with GroupNorm."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import relu

from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


class BasicBlock(nn.Module):
    """Two 3×3 convolutions added to a shortcut. If the shape changes, the shortcut is a 1×1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.GroupNorm(groups, channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.GroupNorm(groups, channels_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))
            self.shortcut.append(nn.GroupNorm(groups, channels_out))

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.residual(images) + self.shortcut(images))


@dataclass(frozen=True, kw_only=True)
class ResNet18(Architecture):
    """ResNet-18: a stem, four layers of two basic blocks, global average pooling, outputs.

    Deviations: GroupNorm (Wu & He 2018) replaces BatchNorm, because BatchNorm mixes the examples of a batch and leaves no
    per-example gradients. GroupNorm is used with and without a private mechanism, so all arms of a comparison train the
    same network. The stem is a 3×3 convolution of stride 1 without pooling, as is usual for small images, instead of 7×7
    with stride 2 and pooling. Convolutions are initialized as in He et al. 2015 (normal, by fan-out), the rest as PyTorch
    does by default.

    The stem and the first layer have `width` filters. Each later layer has twice the filters of the layer before, and half
    the height and width. Every GroupNorm has `groups` groups. The defense `dropout` acts after the stem and before the
    prediction layer, not inside the blocks.
    """

    width: int = 64
    groups: int = 32

    source: ClassVar[str] = "He, Zhang, Ren & Sun 2016, Table 1; Wu & He 2018"

    def __post_init__(self) -> None:
        for name in ("width", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.groups:
            raise ValueError(f"groups is {self.groups}; it must divide width, which is {self.width}")

    def build(self, info: DatasetInfo) -> StagedModel:
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["stem"] = nn.Sequential(
            nn.Conv2d(info.image_shape[0], self.width, 3, padding=1, bias=False),
            nn.GroupNorm(self.groups, self.width),
            nn.ReLU(),
        )
        channels = self.width
        for number in range(1, 5):
            channels_out, stride = (channels, 1) if number == 1 else (2 * channels, 2)
            stages[f"layer{number}"] = nn.Sequential(
                BasicBlock(channels, channels_out, stride, self.groups),
                BasicBlock(channels_out, channels_out, 1, self.groups),
            )
            channels = channels_out
        stages["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        stages["prediction"] = nn.Sequential(nn.Linear(channels, info.num_classes))
        model = StagedModel(normalize(info), stages)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return model
