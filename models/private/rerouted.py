"""GRU, plain RNN and multi-head attention with visible matrix products, which PyTorch hides inside a single call.

Each function computes its layer by plain operations on the same parameters. Every product with a weight goes through
`affine`, which records the product's input and, in the backward pass, the gradient of its output.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.private.layers import LayerGradients, Steps, kept

Affine = Callable[..., Tensor]
"""Takes a value (n, T, features), the name of a weight, the name of a bias or None, and the third of the rows of an input
projection (0, 1, 2) or None."""


class Products:
    """The matrix products of one call of a layer, each with its inputs and output gradients."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = dict(module.named_parameters())
        self._pieces: dict[tuple[str, str | None, int | None], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def affine(self, value: Tensor, weight: str, bias: str | None, third: int | None = None) -> Tensor:
        """value · weightᵀ + bias, recorded. `third` selects rows if queries, keys and values share a parameter."""
        pieces = self._pieces[weight, bias, third]
        matrix, shift = self._rows(weight, third), self._rows(bias, third) if bias else None
        result: Tensor = _Affine.apply(value, matrix, shift, lambda *piece: pieces.append(piece))
        return result

    def _rows(self, name: str, third: int | None) -> Tensor:
        parameter = self._parameters[name]
        return parameter if third is None or not name.startswith("in_proj") else parameter.chunk(3)[third]

    def gradients(
        self, wanted: dict[str, nn.Parameter], count: int
    ) -> list[tuple[dict[str, nn.Parameter], LayerGradients]]:
        """Each parameter's gradients over all its products; call after the backward pass. Unreached products count as 0.

        If there are more rows than `count` examples, consecutive rows belong to one example.
        """
        by_name: dict[str, list[LayerGradients]] = defaultdict(list)
        for (weight, bias, third), pieces in self._pieces.items():
            rows, features = self._rows(weight, third).shape
            if not pieces:
                zeros = self._parameters[weight].new_zeros
                pieces = [(zeros(count, 1, features), zeros(count, 1, rows))]
            value, grad = (_wide(torch.cat(parts, 1)) for parts in zip(*pieces, strict=True))
            value, grad = (each.reshape(count, -1, each.shape[2]) for each in (value, grad))
            if weight in wanted:
                by_name[weight].append(Steps({weight: value}, grad, []).gradients())
            if bias is not None and bias in wanted:
                by_name[bias].append(kept({bias: grad.sum(1)}))
        return [({name: wanted[name]}, _stacked(parts)) for name, parts in by_name.items()]


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _stacked(parts: list[LayerGradients]) -> LayerGradients:
    """Stack the gradients of a parameter's blocks of rows into the parameter's gradients."""
    if len(parts) == 1:
        return parts[0]

    def joined(each: list[dict[str, Tensor]], dim: int) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in each], dim) for name in each[0]}

    return LayerGradients(
        squares=torch.stack([part.squares for part in parts]).sum(0),
        weighted_sum=lambda weights: joined([part.weighted_sum(weights) for part in parts], 0),
        each=lambda: joined([part.each() for part in parts], 1),
        bytes=sum(part.bytes for part in parts),
    )


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, record: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(value, weight)
        ctx.record = record
        return nn.functional.linear(value, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        value, weight = ctx.saved_tensors
        ctx.record(value, grad)
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None


def recurrent(layer: nn.GRU | nn.RNN, affine: Affine, value: Any, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`nn.GRU` and `nn.RNN`, by the equations in PyTorch's documentation."""
    if not isinstance(value, Tensor) or value.dim() != 3:
        raise ValueError("takes a tensor of three dimensions here, not a packed sequence or a single example")
    steps = value if layer.batch_first else value.transpose(0, 1)
    directions = 2 if layer.bidirectional else 1
    if state is None:
        state = steps.new_zeros(layer.num_layers * directions, len(steps), layer.hidden_size)
    last = []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"l{number}" + ("_reverse" if direction else "")
            names = [f"bias_{kind}_{suffix}" if layer.bias else None for kind in ("ih", "hh")]
            inputs = affine(steps, f"weight_ih_{suffix}", names[0])
            hidden, each = state[number * directions + direction], []
            order = range(inputs.shape[1])
            for step in reversed(order) if direction else order:
                recurred = affine(hidden[:, None], f"weight_hh_{suffix}", names[1])[:, 0]
                hidden = _next_hidden(layer, inputs[:, step], recurred, hidden)
                each.append(hidden)
            last.append(hidden)
            outputs.append(torch.stack(each[::-1] if direction else each, 1))
        steps = torch.cat(outputs, 2)
        if layer.dropout and layer.training and number < layer.num_layers - 1:
            steps = nn.functional.dropout(steps, layer.dropout)
    return (steps if layer.batch_first else steps.transpose(0, 1)), torch.stack(last)


def _next_hidden(layer: nn.GRU | nn.RNN, entered: Tensor, recurred: Tensor, hidden: Tensor) -> Tensor:
    if isinstance(layer, nn.RNN):
        total = entered + recurred
        return total.relu() if layer.nonlinearity == "relu" else total.tanh()
    (reset, update, new), (reset_, update_, new_) = entered.chunk(3, 1), recurred.chunk(3, 1)
    keep = (update + update_).sigmoid()
    return (1 - keep) * (new + (reset + reset_).sigmoid() * new_).tanh() + keep * hidden


def attention(
    layer: nn.MultiheadAttention,
    affine: Affine,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention`. `is_causal` is ignored: in PyTorch it is only a hint, and `attn_mask` has the information."""
    if query.dim() != 3:
        raise ValueError("takes tensors of three dimensions here, not a single example")
    if layer.bias_k is not None or layer.add_zero_attn:
        raise ValueError("has add_bias_kv or add_zero_attn, which have no per-example gradients here; leave them out")
    triple = [each if layer.batch_first else each.transpose(0, 1) for each in (query, key, value)]
    bias = "in_proj_bias" if layer.in_proj_bias is not None else None
    heads = []
    for third, each in enumerate(triple):
        if layer._qkv_same_embed_dim:
            projected = affine(each, "in_proj_weight", bias, third)
        else:
            projected = affine(each, f"{'qkv'[third]}_proj_weight", bias, third)
        heads.append(projected.unflatten(2, (layer.num_heads, layer.head_dim)).transpose(1, 2))
    scores = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(layer.head_dim)
    if attn_mask is not None:
        attn_mask = _additive(attn_mask, scores)
        scores = scores + (attn_mask if attn_mask.dim() == 2 else attn_mask.view(scores.shape))
    if key_padding_mask is not None:
        scores = scores + _additive(key_padding_mask, scores)[:, None, None]
    weights = nn.functional.dropout(scores.softmax(3), layer.dropout, layer.training)
    mixed = (weights @ heads[2]).transpose(1, 2).flatten(2)
    result = affine(mixed, "out_proj.weight", "out_proj.bias" if layer.out_proj.bias is not None else None)
    shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
    return (result if layer.batch_first else result.transpose(0, 1)), shown


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


REROUTED: dict[type[nn.Module], Callable[..., Any]] = {
    nn.GRU: cast("Callable[..., Any]", recurrent),
    nn.RNN: cast("Callable[..., Any]", recurrent),
    nn.MultiheadAttention: attention,
}
"""Looked up by exact type, because a subclass may compute something else."""
