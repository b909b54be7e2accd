"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """w̄ ← d w̄ + (1 − d) w after each step, with d = min(decay, (1 + t) / (10 + t)) at step t, from 1.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`, as in De et al. 2022.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}
        """The average of each parameter."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self._model.named_parameters():
            self.values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their average."""
        for name, value in self._model.named_parameters():
            kept = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(kept)

    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's `values`."""
        self.values = {name: value.clone() for name, value in values.items()}


@contextmanager
def averaged(average: WeightAverage | None) -> Iterator[None]:
    """The model has its averaged weights in the body of the `with`, if there are any."""
    if average is None:
        yield
        return
    average.swap()
    try:
        yield
    finally:
        average.swap()
