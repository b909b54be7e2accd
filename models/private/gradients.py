"""Per-example gradients turned into one private gradient."""

from __future__ import annotations

import warnings

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.private.rules import Rule

# Images need no gradient, so Opacus's hook on the first layer fires as intended.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


class PrivateGradient:
    """Computes Σᵢ weightᵢ · gᵢ + noise, over the expected batch size, into the parameters' `.grad`.

    Per-example gradients come from Opacus's hooks. A batch is worked through in chunks of `chunk_size`
    examples, so memory does not grow with it; noise is drawn once per step, whatever the chunks, from
    `noise_generator` alone. An empty batch is a step of noise only.

    The model's parameters are put in contiguous memory: Opacus (1.6) unfolds a convolution's input by strides that
    assume it, and reads other pixels, and other examples, where channels are innermost.

    Raises:
        ValueError: the model has a layer that mixes examples, such as BatchNorm; use GroupNorm.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        expected_batch_size: float,
        noise_generator: torch.Generator,
        chunk_size: int = 512,
    ) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"layer '{name}' is {type(module).__name__}, which mixes examples; use GroupNorm instead"
                )
        for parameter in model.parameters():  # `Module.to` leaves tensors of one channel as they are
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self._hooked = GradSampleModule(model, loss_reduction="sum")
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._rule = rule
        self._expected_batch_size = expected_batch_size
        self._noise_generator = noise_generator
        self._chunk_size = chunk_size

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set every `.grad` from a batch; gives the summed loss and the number right, both 0-d tensors."""
        device = self._parameters[0].device
        loss_sum, n_right = torch.zeros((), device=device), torch.zeros((), device=device)
        sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        for chunk_images, chunk_labels in zip(
            images.split(self._chunk_size), labels.split(self._chunk_size), strict=True
        ):
            if len(chunk_labels) == 0:
                continue
            logits = self._hooked(chunk_images.clone(memory_format=torch.contiguous_format))
            loss = cross_entropy(logits, chunk_labels, reduction="sum")
            loss.backward()
            self._add_weighted(sums)
            loss_sum += loss.detach()
            n_right += (logits.detach().argmax(1) == chunk_labels).sum()
        for parameter, weighted_sum in zip(self._parameters, sums, strict=True):
            noise = torch.empty_like(weighted_sum).normal_(generator=self._noise_generator)
            parameter.grad = weighted_sum.add_(noise, alpha=self._rule.noise_std).div_(self._expected_batch_size)
        return loss_sum, n_right

    def _add_weighted(self, sums: list[Tensor]) -> None:
        samples: list[Tensor] = [parameter.grad_sample for parameter in self._parameters]  # type: ignore[attr-defined]
        squares = torch.stack([sample.flatten(1).pow(2).sum(1) for sample in samples])
        weights = self._rule.weights(squares.sum(0).sqrt())
        for weighted_sum, sample in zip(sums, samples, strict=True):
            weighted_sum.add_((weights @ sample.flatten(1)).view_as(weighted_sum))
        for parameter in self._parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None

    def close(self) -> None:
        """Take the hooks off the model again."""
        self._hooked.to_standard_module()
