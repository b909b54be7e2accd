"""The ordinary gradient of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.companion import Companion
from models.losses import CrossEntropy, Loss, as_rows, for_each_view, mean_of_views
from models.performance import Performance, Precision, Replay, forward


class PlainGradient:
    """The ordinary gradient of a batch: the mean, or the sum divided by `expected_batch_size` if that is given.

    With several `views`, inputs are (n, views, ...), and an example's loss is the mean over its views. A `companion` adds its penalty
    to the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        expected_batch_size: float | None = None,
        *,
        loss: Loss | None = None,
        views: int = 1,
        companion: Companion | None = None,
        precision: Precision = "fp32",
        performance: Performance | None = None,
    ) -> None:
        self._model = model
        self._expected_batch_size = expected_batch_size
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._loss = loss or CrossEntropy()
        self._views = views
        self._companion = companion
        self._epoch = 1
        self._precision = precision
        # Poisson batches have too many sizes to capture each; only private gradients pad them.
        self._replays = expected_batch_size is None and (performance or Performance()).replays_on(
            self._parameters[0].device
        )
        self._run = Replay(self._gradients) if self._replays else self._gradients

    def start_epoch(self, epoch: int) -> None:
        """The loss of the next steps is that of this epoch, from 1."""
        if self._replays and self._loss.uses_epoch and epoch != self._epoch:
            self._run = Replay(self._gradients)
        self._epoch = epoch

    def step(self, inputs: Tensor, labels: Tensor, *mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Set every `.grad` from a batch. Returns the summed loss and the number of right answers, both 0-d tensors.

        Labels are classes (n,), or soft labels (n, classes) of floating point, of which the most probable class is right. If the
        inputs are mixtures, `mixed` has the labels of the other examples and the share of the first ones (0-d).
        """
        if not len(labels):  # a Poisson sample may be empty, and some layers refuse empty input
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
            return torch.zeros((), device=inputs.device), torch.zeros((), device=inputs.device)
        loss_sum, n_right, *gradients = self._run(inputs, labels, *mixed)
        for parameter, value in zip(self._parameters, gradients, strict=True):
            parameter.grad = value
        return loss_sum, n_right

    def _gradients(self, inputs: Tensor, labels: Tensor, *mixed: Tensor) -> tuple[Tensor, ...]:
        logits = forward(self._model, as_rows(inputs, self._views), self._precision)
        loss_sum = self._losses(logits, labels).sum()
        if mixed:
            others, share = mixed
            loss_sum = share * loss_sum + (1 - share) * self._losses(logits, others).sum()
        loss = loss_sum / (self._expected_batch_size or len(labels))
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        right = labels.argmax(1) if labels.is_floating_point() else labels
        is_right = logits.detach().argmax(1) == for_each_view(right, self._views)
        return loss_sum.detach(), mean_of_views(is_right.float(), self._views).sum(), *gradients

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = for_each_view(labels, self._views)
        if labels.is_floating_point():
            losses = self._loss.soft(logits, labels, self._epoch)
        else:
            losses = self._loss(logits, labels, self._epoch)
            if self._companion is not None:
                losses = losses + self._companion.penalty(logits, labels)
        return mean_of_views(losses, self._views)
