"""What a trained model answers, after the defenses that edit answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.datasets.base import Examples, IntArray

if TYPE_CHECKING:
    from models.defenses.base import Defense

EVALUATION_BATCH = 1000

Answer = Callable[[Tensor], Tensor]
"""Takes inputs (n, …) and returns logits (n, classes), without gradients."""


def answer_of(model: nn.Module, defenses: Sequence[Defense] = ()) -> Answer:
    """How the model answers in eval mode, as edited by the defenses in order."""

    def own(inputs: Tensor) -> Tensor:
        was_training = model.training
        model.eval()
        with torch.no_grad():
            logits: Tensor = model(inputs)
        model.train(was_training)
        return logits

    answer: Answer = own
    for defense in defenses:
        answer = defense.edit_answers(answer)
    return answer


def predict(
    answer: Answer, data: Examples, index: IntArray, query: Callable[[Tensor], Tensor] = lambda inputs: inputs
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and labels (n,) of the examples at `index`, on CPU; `query` changes the inputs."""
    positions = torch.from_numpy(index).to(data.inputs.device)
    parts = [answer(query(data.inputs[part])) for part in positions.split(EVALUATION_BATCH)]
    logits = torch.cat(parts).cpu() if parts else torch.empty(0, data.info.num_classes)
    return logits, data.labels[positions].cpu()


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the fraction of right answers."""
    return float(cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())
