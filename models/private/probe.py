"""Detects models that mix the examples of a batch, before private training.

A layer's class reveals BatchNorm, but not `h - h.mean(0)`. Therefore the model is run. Its output and gradient for an
example must not depend on the other examples, and its output must be the same for the example alone as in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.private.tap import Tap

_DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
)

_TOLERANCE = 1e-3
"""Relative to the largest value. Rounding in another order differs by much less, mixing examples by much more."""


def check_examples_apart(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model that mixes examples. It is tried on `inputs` (n, ...), n ≥ 2: on three of them and on all.

    Copies are run, so the model's state and the generators do not change. In train mode, compared runs use the same dropout
    masks. A model with other random operations is not compared with its outputs for single examples.

    Raises:
        ValueError: an example's output or gradient depends on the others, or the model keeps state from them; or see
            `Tap`.
    """
    few = min(3, len(inputs))
    something_else, far_larger = _replacements(inputs.flip(0))
    _check_apart(model, inputs[:few], [something_else[:few], far_larger[:few]][: 1 if few < len(inputs) else 2])
    if few < len(inputs):
        _check_apart(model, inputs, [far_larger])


def _check_apart(model: nn.Module, inputs: Tensor, replacements: Sequence[Tensor]) -> None:
    with _same_generators(inputs.device):
        first = _Run(model, inputs)
        for others in replacements:
            second = _Run(model, torch.cat([inputs[:1], others[1:]]))
            where = first.first_difference(second)
            if not _close(first.outputs[:1], second.outputs[:1]):
                raise ValueError(
                    f"the model mixes examples: its output for one depends on the others in the batch{where}. {_REMEDY}"
                )
            for name, gradients in first.gradients.items():
                if not _close(gradients[:1], second.gradients[name][:1], scale=gradients):
                    raise ValueError(
                        f"the model mixes examples: the gradient of '{name}' for one depends on the others in the batch{where}. "
                        f"{_REMEDY}"
                    )
            if not _close(first.later, second.later):
                raise ValueError(f"the model keeps its input: its next output depends on it. {_REMEDY}")
        _check_one_by_one(model, inputs)


def _replacements(others: Tensor) -> tuple[Tensor, Tensor]:
    """Two replacements of the other examples: different values, and values so large that a small share is visible."""
    if others.is_floating_point():
        return 0.7 - 3 * others, 1000 * others
    return (255 - others, 255 - others) if others.dtype == torch.uint8 else (others, others)


_REMEDY = (
    "Private gradients need an output for each example that depends on that example alone; take means and sums over an "
    "example's own dimensions"
)


class _Run:
    """Outputs, per-example gradients and layer outputs of one batch; `later` is the model's output after it, for zeros."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        copy = deepcopy(model)
        tap = Tap(copy)
        self.layers: list[tuple[str, Tensor]] = []
        handles = [
            module.register_forward_hook(self._noting(f"'{name}' ({type(module).__name__})", len(inputs)))
            for name, module in copy.named_modules()
            if name
        ]
        torch.manual_seed(0)
        with torch.enable_grad(), tap.recording(len(inputs)) as recording:
            outputs = copy(inputs)
            for handle in handles:
                handle.remove()
            # A loss that is not linear, so its gradient depends on the outputs, and not symmetric in an example's outputs
            weights = torch.linspace(0.5, 1.5, outputs[0].numel(), device=outputs.device).view_as(outputs[0])
            (outputs * weights + outputs.square() / 2).sum().backward()
        names = {parameter: name for name, parameter in copy.named_parameters()}
        self.outputs = outputs.detach()
        self.gradients = {names[parameter]: each for parameter, each in recording.samples().items()}
        tap.close()
        torch.manual_seed(0)
        with torch.no_grad():
            self.later = copy(torch.zeros_like(inputs[:2]))

    def _noting(self, title: str, count: int) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() and output.shape[0] == count:
                self.layers.append((title, output.detach().clone()))

        return note

    def first_difference(self, other: _Run) -> str:
        for (title, ours), (_, theirs) in zip(self.layers, other.layers, strict=False):
            if not _close(ours[:1], theirs[:1]):
                return f"; the first that differs is the output of layer {title}"
        return ""


def _check_one_by_one(model: nn.Module, inputs: Tensor) -> None:
    copy = deepcopy(model)
    with torch.no_grad(), _WithoutDropout():
        together, again = copy(inputs), copy(inputs)
        if not _close(together, again):  # the model has other random operations
            return
        alone = torch.cat([copy(each[None]) for each in inputs])
    if alone.shape != together.shape or not _close(together, alone):
        raise ValueError(f"the model mixes examples: its output for one alone differs from that in a batch. {_REMEDY}")


class _WithoutDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def _close(first: Tensor, second: Tensor, scale: Tensor | None = None) -> bool:
    size = float((first if scale is None else scale).detach().nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(first, second, rtol=0, atol=_TOLERANCE * size, equal_nan=True)


@contextmanager
def _same_generators(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
