"""An LSTM that exposes the gradients of its gates, from which the per-example gradients of its weights follow.

`nn.LSTM` hides them inside its kernels. This LSTM runs on the same parameters. The input projections of all steps are one
product; only the recurrence runs step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Record = Callable[[str, Tensor, Tensor, Tensor], None]
"""Takes, for one layer and direction: the suffix of its parameters' names, its input (T, n, features), the hidden state
before each step (T, n, units), and the gradient of the gates before activation (T, n, 4 · units)."""


class PrivateLSTM(nn.LSTM):
    """`nn.LSTM` in plain PyTorch operations: same parameters, names and arguments; same results up to rounding.

    Its state can be loaded into an `nn.LSTM` and vice versa. `PrivateGradient` also runs an `nn.LSTM` by these operations,
    so models need not use this class.

    Raises:
        ValueError: the input is a packed sequence or has no batch dimension, or `proj_size` is set.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> Any:  # type: ignore[override]
        return lstm(self, input, hx)


def lstm(
    layer: nn.LSTM, value: Any, state: tuple[Tensor, Tensor] | None = None, *, record: Record | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The output of `layer` for `value`. With `record`, the backward pass calls it with the factors of the gradients.

    With `record`, parameters get no ordinary gradient.
    """
    if not isinstance(value, Tensor) or value.dim() != 3:
        raise ValueError("an LSTM takes a tensor of three dimensions here, not a packed sequence or a single example")
    if layer.proj_size:
        raise ValueError(f"proj_size is {layer.proj_size}; per-example gradients need 0")
    with torch.autocast(value.device.type, enabled=False):  # the recurrence runs in the parameters' precision
        return _lstm(layer, value.to(cast(Tensor, layer.weight_hh_l0).dtype), state, record)


def _lstm(
    layer: nn.LSTM, value: Tensor, state: tuple[Tensor, Tensor] | None, record: Record | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    directions = 2 if layer.bidirectional else 1
    steps = value.transpose(0, 1) if layer.batch_first else value
    if state is None:
        zeros = steps.new_zeros(layer.num_layers * directions, steps.shape[1], layer.hidden_size)
        state = zeros, zeros
    last_hidden, last_cell = [], []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            index = number * directions + direction
            suffix = f"l{number}" + ("_reverse" if direction else "")
            parameters = [getattr(layer, f"weight_{kind}_{suffix}") for kind in ("ih", "hh")]
            parameters += [getattr(layer, f"bias_{kind}_{suffix}") if layer.bias else None for kind in ("ih", "hh")]
            hidden, cell = _Recurrence.apply(
                steps.flip(0) if direction else steps, *parameters, state[0][index], state[1][index], suffix, record
            )
            last_hidden.append(hidden[-1])
            last_cell.append(cell)
            outputs.append(hidden.flip(0) if direction else hidden)
        steps = torch.cat(outputs, 2) if directions == 2 else outputs[0]
        if layer.dropout and layer.training and number < layer.num_layers - 1:
            steps = nn.functional.dropout(steps, layer.dropout)
    result = steps.transpose(0, 1) if layer.batch_first else steps
    return result, (torch.stack(last_hidden), torch.stack(last_cell))


class _Recurrence(torch.autograd.Function):
    """One layer in one direction: returns hidden states (T, n, units) and the last cell state (n, units).

    Equations as documented for PyTorch's `nn.LSTM`, with gates in its order: input, forget, cell, output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        steps: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        first_hidden: Tensor,
        first_cell: Tensor,
        suffix: str,
        record: Record | None,
    ) -> tuple[Tensor, Tensor]:
        count, batch, features = steps.shape
        units = weight_hh.shape[1]
        flat = steps.reshape(count * batch, features)
        if bias_ih is None or bias_hh is None:
            gates = torch.mm(flat, weight_ih.t())
        else:
            gates = torch.addmm(bias_ih + bias_hh, flat, weight_ih.t())
        gates = gates.view(count, batch, 4 * units)
        hidden, cell = gates.new_empty(count + 1, batch, units), gates.new_empty(count + 1, batch, units)
        hidden[0], cell[0] = first_hidden, first_cell
        squashed = gates.new_empty(count, batch, units)
        recurrent = weight_hh.t()
        in_steps = zip(gates.unbind(0), hidden.unbind(0), hidden[1:].unbind(0), strict=False)
        for (gate, before, after), old, new, out in zip(
            in_steps, cell.unbind(0), cell[1:].unbind(0), squashed.unbind(0), strict=False
        ):
            gate.addmm_(before, recurrent)
            enter, forget, candidate, leave = gate.chunk(4, 1)
            gate[:, : 2 * units].sigmoid_()
            candidate.tanh_()
            leave.sigmoid_()
            torch.mul(forget, old, out=new).addcmul_(enter, candidate)
            torch.tanh(new, out=out)
            torch.mul(leave, out, out=after)
        ctx.save_for_backward(steps, weight_ih, weight_hh, gates, hidden, cell, squashed)
        ctx.has_bias, ctx.suffix, ctx.record = bias_ih is not None, suffix, record
        return hidden[1:], cell[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, grad_last_cell: Tensor) -> Any:
        steps, weight_ih, weight_hh, gates, hidden, cell, squashed = ctx.saved_tensors
        count, batch, units = squashed.shape
        enter, forget, candidate, leave = gates.chunk(4, 2)
        # For all steps at once: the derivatives of the cell by the first three gates, of the hidden state by the last
        # gate, and of the hidden state by the cell.
        grads = torch.empty_like(gates)
        to_enter, to_forget, to_candidate, to_leave = grads.chunk(4, 2)
        torch.mul(enter, candidate, out=to_enter)
        torch.addcmul(enter, to_enter, candidate, value=-1, out=to_candidate)
        to_enter.addcmul_(to_enter, enter, value=-1)
        torch.mul(forget, cell[:-1], out=to_forget)
        to_forget.addcmul_(to_forget, forget, value=-1)
        torch.mul(leave, squashed, out=to_leave)
        to_cell = torch.addcmul(leave, to_leave, squashed, value=-1)
        to_leave.addcmul_(to_leave, leave, value=-1)

        later: Tensor | None = None  # the gates' gradients at the next time step
        grad_cell = grad_last_cell
        for out, grad, cell_by_hidden, keep in zip(
            reversed(grad_hidden.unbind(0)),
            reversed(grads.unbind(0)),
            reversed(to_cell.unbind(0)),
            reversed(forget.unbind(0)),
            strict=True,
        ):
            grad_out = out if later is None else torch.addmm(out, later, weight_hh)
            grad_cell = torch.addcmul(grad_cell, grad_out, cell_by_hidden)
            by_gate = grad.view(batch, 4, units)
            by_gate[:, :3].mul_(grad_cell[:, None])
            by_gate[:, 3].mul_(grad_out)
            grad_cell = grad_cell.mul_(keep)
            later = grad
        assert later is not None

        flat = grads.view(count * batch, 4 * units)
        grad_steps = (flat @ weight_ih).view_as(steps) if ctx.needs_input_grad[0] else None
        grad_first = later @ weight_hh if ctx.needs_input_grad[5] else None
        by_weight: list[Tensor | None] = [None] * 4
        if ctx.record is not None:
            ctx.record(ctx.suffix, steps, hidden[:-1], grads)
        elif any(ctx.needs_input_grad[1:5]):
            bias = flat.sum(0) if ctx.has_bias else None
            inputs = steps.reshape(count * batch, -1), hidden[:-1].reshape(count * batch, units)
            by_weight = [flat.t() @ inputs[0], flat.t() @ inputs[1], bias, bias]
        return grad_steps, *by_weight, grad_first, grad_cell, None, None
