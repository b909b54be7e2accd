"""ResNet-20 for small images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import relu

from models.architectures._wide_resnet import Norm, norm_layer
from models.architectures.base import Architecture, StagedModel, normalize
from models.datasets.base import DatasetInfo


class ThinBlock(nn.Module):
    """Two 3×3 convolutions added to a shortcut, which is a 1×1 convolution if the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            norm_layer(norm, channels_out, 16),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            norm_layer(norm, channels_out, 16),
        )
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))
            self.shortcut.append(norm_layer(norm, channels_out, 16))

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.residual(images) + self.shortcut(images))


@dataclass(frozen=True, kw_only=True)
class ResNet20(Architecture):
    """ResNet-20 of the CIFAR-10 experiments: a stem, three layers of three blocks with 16, 32 and 64 filters, pooling, outputs.

    `norm`: `group`, of 16 groups, or `batch`, which mixes examples, so that a private mechanism refuses it. The defense `dropout` acts
    between the stages, not inside the blocks.

    Source: He, Zhang, Ren & Sun 2016, section 4.2, with normal weights by fan-out (He et al. 2015). Deviations: GroupNorm by default;
    where the shape changes, the shortcut is a 1×1 convolution (their option B), not padding.
    """

    norm: Norm = "group"

    source: ClassVar[str] = "He, Zhang, Ren & Sun 2016, section 4.2"

    def build(self, info: DatasetInfo) -> StagedModel:
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stem = nn.Conv2d(info.image_shape[0], 16, 3, padding=1, bias=False)
        stages["stem"] = nn.Sequential(stem, norm_layer(self.norm, 16, 16), nn.ReLU())
        before = 16
        for number, width in enumerate((16, 32, 64), start=1):
            stride = 1 if number == 1 else 2
            blocks = [ThinBlock(before, width, stride, self.norm)]
            blocks += [ThinBlock(width, width, 1, self.norm) for _ in range(2)]
            stages[f"layer{number}"] = nn.Sequential(*blocks)
            before = width
        stages["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        stages["prediction"] = nn.Sequential(nn.Linear(before, info.num_classes))
        model = StagedModel(normalize(info), stages)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return model
