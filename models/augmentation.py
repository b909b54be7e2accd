"""Random changes of training inputs, and mixtures of them. All random numbers come from a generator that is passed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn.functional import pad

from models.private.noise import uniform

_TRIED = 4
"""Number of examples that an augmentation is tried on."""


class Augmentation(ABC):
    """Base of all augmentations: changes each input by random numbers of its own."""

    needs_images: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Changed inputs of the same shape and type. If `generator` is None, numbers come from the operating system."""


@dataclass(frozen=True, kw_only=True)
class CropAndFlip(Augmentation):
    """A random crop of the image, padded by `padding` black pixels on each side, then a mirror image in half of the cases.

    Source: He, Zhang, Ren & Sun 2016, section 4.2.
    """

    padding: int = 4
    flip: bool = True

    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding}; it must be 0 pixels or more")

    def __call__(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        count, _, height, width = inputs.shape
        device = inputs.device
        # Drawn on the CPU, so that they are the same on every device
        down, right, mirror = uniform(3 * count, generator, torch.device("cpu")).view(3, count)
        around = pad(inputs, (self.padding,) * 4)
        rows = torch.arange(height) + (down * (2 * self.padding + 1)).long()[:, None]
        columns = torch.arange(width) + (right * (2 * self.padding + 1)).long()[:, None]
        if self.flip:
            columns = torch.where((mirror < 0.5)[:, None], columns.flip(1), columns)
        index = torch.arange(count, device=device)[:, None, None]
        cropped = around.movedim(1, -1)[index, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
        return cropped.movedim(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Each input of a batch is mixed with another one: s · input + (1 − s) · other, with s ~ Beta(alpha, alpha) per batch."""

    alpha: float

    def __call__(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed inputs as floats (images in [0, 1]), the others' labels (n,), and s (0-d), drawn by inversion."""
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        uniform_number = float(torch.rand((), dtype=torch.float64, generator=generator))
        share = torch.tensor(float(betaincinv(self.alpha, self.alpha, uniform_number)), device=labels.device)
        values = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        return share * values + (1 - share) * values[order], labels[order], share


def views_of(
    inputs: Tensor, augmentation: Augmentation | None, multiplicity: int, generator: torch.Generator | None
) -> Tensor:
    """The augmented inputs (n, ...) of a step; (n, multiplicity, ...), each augmented independently, for more than one."""
    if augmentation is None:
        return inputs
    if multiplicity == 1:
        return augmentation(inputs, generator)
    views: Tensor = augmentation(inputs.repeat_interleave(multiplicity, 0), generator)
    return views.view(len(inputs), multiplicity, *views.shape[1:])


def check_augmentation(augmentation: Augmentation, shape: tuple[int, ...]) -> None:
    """Check on random inputs that an augmentation changes each of them without the others.

    Raises:
        ValueError: it does not.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, _TRIED, *shape, generator=generator)
    if len(shape) == 3:
        first, second = ((255 * each).to(torch.uint8) for each in (first, second))
    state = generator.get_state()
    changed = augmentation(first, generator)
    for row in range(_TRIED):
        among_others = second.clone()
        among_others[row] = first[row]
        generator.set_state(state)
        if not torch.equal(augmentation(among_others, generator)[row], changed[row]):
            raise ValueError(
                f"augmentation {type(augmentation).__name__} mixes examples: what it makes of one depends on the others in the batch. "
                "Change each example by itself, and draw as many random numbers whatever the values are"
            )
