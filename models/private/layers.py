"""Norms and weighted sums of per-example gradients, from one call of a layer.

Let a layer's weight gradient be Σₜ gₜ uₜᵀ over T positions (the steps of a sequence, the pixels of a convolution), with g
the gradient of its output and u its input at a position. There are three ways to compute the norm:

- T = 1: ‖g‖² ‖u‖², in closed form.
- The product itself, for each example. It is kept for the weighted sum, unless it is much larger than the layer's input
  and output; in that case only its norm is kept.
- The Gram form ⟨G Gᵀ, U Uᵀ⟩, with T × T numbers instead of the weight's size; used if there are few positions.

Sources: Goodfellow 2015 (closed form); Li, Tramèr, Liang & Hashimoto 2022 and Bu, Wang, Zha & Karypis 2023 (Gram form with
a single backward pass). Ours: the Gram matrix of a convolution's patches is summed from shifted blocks of the image's own
Gram matrix, without laying out patches; and its rounding error is bounded, see `gram_squares`.

A bias is a weight whose input is one.

An example may have several views, in consecutive rows: its gradient is then the sum over them. The views' positions are as if
one after the other, T counts all of them, and the Gram form has the products between views.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK_FLOATS = {"cpu": 2**20, "cuda": 2**26}
"""Size of intermediate results, which are computed in blocks of examples. On CPU, 4 MiB stay in a core's cache."""

_GRAM_ADVANTAGE = 30
"""The Gram form is used if it costs fewer multiply-adds per weight than this. The product form has about this much overhead
per weight: each product is written, read for its norm and read for the weighted sum; see docs/performance.md."""

_GRAM_LENGTH = 4096
"""The longest vectors for which the Gram form is used, unless there is only one position. Products of much longer vectors
have more rounding error than `gram_squares` allows for: eight times as much at 16,384, if the vectors are parallel."""

_SHORT_ROW = 32
"""If a kernel row has fewer columns of a patch than this, products by kernel rows are slower than by whole patches."""

_KEEP_FACTOR = 8
"""Per-example products are kept if they are at most this many times as large as the layer's input and output."""


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """The per-example gradients of one call's parameters, in the cheapest form.

    `squares` are the squared norms (n,). `weighted_sum` maps weights (n,) to Σᵢ weightᵢ gᵢ by parameter name. `each` returns
    the gradients themselves (n, *shape), for parameters that are used more than once. `bytes` is the memory kept.
    """

    squares: Tensor
    weighted_sum: Callable[[Tensor], dict[str, Tensor]]
    each: Callable[[], dict[str, Tensor]]
    bytes: int = 0


Sampler = Callable[[Any, Tensor, Tensor, frozenset[str], int], LayerGradients]
"""Takes a layer, its input, the gradient of its output (both with examples first, in float32 or wider), the names of the
wanted parameters, and the number of views, which are consecutive rows of input and gradient."""


def join(parts: Sequence[LayerGradients]) -> LayerGradients:
    """Merge the gradients of several groups of one layer's parameters."""
    if len(parts) == 1:
        return parts[0]
    return LayerGradients(
        squares=torch.stack([part.squares for part in parts]).sum(0),
        weighted_sum=lambda weights: {k: v for part in parts for k, v in part.weighted_sum(weights).items()},
        each=lambda: {k: v for part in parts for k, v in part.each().items()},
        bytes=sum(part.bytes for part in parts),
    )


def kept(each: dict[str, Tensor]) -> LayerGradients:
    """Per-example gradients that are already computed."""
    return LayerGradients(
        squares=torch.stack([_squares(sample) for sample in each.values()]).sum(0),
        weighted_sum=lambda weights: {
            name: (weights @ sample.flatten(1)).view(sample.shape[1:]) for name, sample in each.items()
        },
        each=lambda: each,
        bytes=sum(sample.numel() * sample.element_size() for sample in each.values()),
    )


def over_views(samples: Tensor, views: int) -> Tensor:
    """The sums (n, ...) over each example's views, of values (n · views, ...)."""
    return samples if views == 1 else samples.unflatten(0, (-1, views)).sum(1)


def _squares(samples: Tensor) -> Tensor:
    """Squared norms of (n, ...)."""
    norms: Tensor = torch.linalg.vector_norm(samples.flatten(1), dim=1)
    return norms.square()


def _blocks(count: int, floats_per_example: int, device: torch.device) -> Iterator[slice]:
    rows = max(1, _BLOCK_FLOATS.get(device.type, _BLOCK_FLOATS["cuda"]) // max(1, floats_per_example))
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


# Layers with matrix products: T positions, each with an input and an output gradient


class _Positions(ABC):
    """A layer call as T positions per example. Each group of a convolution counts as an example of its own.

    `positions` is T. They come in `parts` of equal size, whose products are added: the views, if they are not in one block of
    memory. `inputs` is the length of uₜ without its ones; `ones` is the number of ones, one for each bias; `outputs` is the length
    of gₜ. For one example, `size` is the number of values in the layer's input and output, `input_gram_cost` the
    multiply-adds of `input_gram`, and `input_gram_floats` the temporary values that it needs.
    """

    count: int
    groups: int
    positions: int
    parts: int
    inputs: int
    ones: int
    outputs: int
    size: int
    input_gram_cost: int
    input_gram_floats: int
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def grads(self, rows: slice) -> Tensor:
        """G of some examples, (rows · groups, outputs, T)."""

    @abstractmethod
    def columns(self, rows: slice) -> list[Tensor]:
        """U of some examples, (rows · groups, parts, T / parts, inputs + ones), as one or more blocks of columns."""

    @abstractmethod
    def input_gram(self, rows: slice) -> Tensor:
        """U Uᵀ of some examples without the ones, (rows · groups, T, T); the caller may overwrite it."""

    @abstractmethod
    def product(self, weights: Tensor) -> dict[str, Tensor]:
        """Σᵢ weightᵢ Gᵢ Uᵢ, computed as an ordinary summed gradient, by parameter name."""

    @abstractmethod
    def split(self, products: list[Tensor]) -> dict[str, Tensor]:
        """Gradients (k, *shape) by name, from products G U (k, groups · outputs, columns), one per block of columns."""

    def gradients(self) -> LayerGradients:
        """Norms and weighted sums in the cheapest form. The choice depends on shapes only."""
        weights_size = self.groups * self.outputs * (self.inputs + self.ones)
        gram_cost = self.input_gram_cost + self.groups * self.outputs * self.positions**2
        short = self.positions == 1 or max(self.inputs, self.outputs) <= _GRAM_LENGTH
        if short and gram_cost < _GRAM_ADVANTAGE * weights_size:
            return LayerGradients(squares=self._gram_squares(), weighted_sum=self.product, each=self._each)
        keep = weights_size <= _KEEP_FACTOR * self.size
        squares, products = self._products(keep)
        if not keep:
            return LayerGradients(squares=squares, weighted_sum=self.product, each=self._each)

        def weighted_sum(weights: Tensor) -> dict[str, Tensor]:
            sums = [(weights @ block.flatten(1)).view(1, *block.shape[1:]) for block in products]
            return {name: value[0] for name, value in self.split(sums).items()}

        kept_bytes = weights_size * self.count * squares.element_size()
        return LayerGradients(
            squares=squares, weighted_sum=weighted_sum, each=lambda: self.split(products), bytes=kept_bytes
        )

    def _each(self) -> dict[str, Tensor]:
        return self.split(self._products(keep=True)[1])

    def _products(self, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Squared norms of the products G U; if `keep`, also the products, (n, groups · outputs, columns) per block."""
        squares = torch.zeros(self.count, device=self.device, dtype=self.dtype)
        widths = [block.shape[3] for block in self.columns(slice(0, 0))]
        products = [squares.new_empty(self.count if keep else 0, self.groups, self.outputs, width) for width in widths]
        for rows in _blocks(self.count, self.groups * self.positions * (self.inputs + self.ones), self.device):
            grads = self.grads(rows).unflatten(2, (self.parts, self.positions // self.parts))
            for columns, block in zip(self.columns(rows), products, strict=True):
                out = block[rows].flatten(0, 1) if keep else None
                product = torch.bmm(grads[:, :, 0], columns[:, 0], out=out)
                for part in range(1, self.parts):
                    product.baddbmm_(grads[:, :, part], columns[:, part])
                squares[rows] += _squares(product.view(-1, self.groups * self.outputs * columns.shape[3]))
        return squares, [block.flatten(1, 2) for block in products]

    def _gram_squares(self) -> Tensor:
        squares = torch.empty(self.count, device=self.device, dtype=self.dtype)
        for rows in _blocks(self.count, self.input_gram_floats, self.device):
            grads = self.grads(rows)
            input_gram = self.input_gram(rows).add_(self.ones)
            block = gram_squares(torch.bmm(grads.transpose(1, 2), grads), input_gram)
            squares[rows] = block.view(-1, self.groups).sum(1)
        return squares


def gram_squares(grad_gram: Tensor, input_gram: Tensor) -> Tensor:
    """⟨G Gᵀ, U Uᵀ⟩ (k,) for each pair of matrices (k, T, T), never far below the true value.

    If positions nearly cancel, the terms and the rounding error are large relative to the sum. A norm that is too small
    would break the bound on an example's contribution. By Cauchy–Schwarz, the absolute terms sum to at most
    (Σₜ ‖gₜ‖ ‖uₜ‖)². If the rounding error of that could matter, it is added to the result.
    """
    squares = (grad_gram * input_gram).sum((1, 2))
    diagonals = grad_gram.diagonal(dim1=1, dim2=2) * input_gram.diagonal(dim1=1, dim2=2)
    rounding = 2 * torch.finfo(squares.dtype).eps * diagonals.clamp(min=0).sqrt().sum(1).square()
    return torch.where(rounding > 2e-4 * squares, squares.clamp(min=0) + rounding, squares)


class Steps(_Positions):
    """A linear layer applied to the steps of a sequence, or a recurrent layer given the gradients of its gates.

    `inputs`, by name of the weight, and `grad` are (n, T, features), or (T, n, features) if `time_major`. All `biases` have
    the same gradient.
    """

    groups = 1
    parts = 1

    def __init__(
        self, inputs: dict[str, Tensor], grad: Tensor, biases: Sequence[str], *, time_major: bool = False
    ) -> None:
        self._inputs, self._grad, self._biases, self._time_major = inputs, grad, biases, time_major
        self.positions, self.count = grad.shape[:2] if time_major else (grad.shape[1], grad.shape[0])
        self.inputs, self.outputs = sum(value.shape[2] for value in inputs.values()), grad.shape[2]
        self.ones = len(biases)
        self.size = self.positions * (self.inputs + self.outputs)
        self.input_gram_cost = self.positions**2 * self.inputs
        self.input_gram_floats = 2 * self.positions**2 + self.size
        self.device, self.dtype = grad.device, grad.dtype

    def _rows(self, value: Tensor, rows: slice) -> Tensor:
        return value[:, rows].transpose(0, 1) if self._time_major else value[rows]

    def grads(self, rows: slice) -> Tensor:
        return self._rows(self._grad, rows).transpose(1, 2)

    def columns(self, rows: slice) -> list[Tensor]:
        blocks = [self._rows(value, rows)[:, None] for value in self._inputs.values()]
        return [*blocks, blocks[0].new_ones(*blocks[0].shape[:3], self.ones)] if self.ones else blocks

    def input_gram(self, rows: slice) -> Tensor:
        parts = [self._rows(value, rows) for value in self._inputs.values()]
        gram = torch.bmm(parts[0], parts[0].transpose(1, 2))
        for part in parts[1:]:
            gram.baddbmm_(part, part.transpose(1, 2))
        return gram

    def product(self, weights: Tensor) -> dict[str, Tensor]:
        weighted = self._grad * weights.view((1, -1, 1) if self._time_major else (-1, 1, 1))
        weighted = weighted.reshape(-1, self.outputs)
        sums = {name: weighted.t() @ value.reshape(-1, value.shape[2]) for name, value in self._inputs.items()}
        if self._biases:
            sums |= dict.fromkeys(self._biases, weighted.sum(0))
        return sums

    def split(self, products: list[Tensor]) -> dict[str, Tensor]:
        by_weight = dict(zip(self._inputs, products, strict=False))
        return by_weight | {name: products[-1][:, :, number] for number, name in enumerate(self._biases)}


class _Convolution(_Positions):
    """A convolution of a zero-padded image (n, channels, height, width); `grad` is (n, filters, out height, out width).

    n is the number of examples times their `views`. Any memory layout is accepted. A transposed convolution is one with image
    and gradient swapped and its bias handled separately.
    """

    def __init__(
        self,
        image: Tensor,
        grad: Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        bias: bool,
        padding: tuple[int, int],
        views: int,
    ) -> None:
        self._kernel, self._stride, self._dilation, self._grad = kernel, stride, dilation, grad
        self._unpadded, self._padding = image, padding
        image = functional.pad(image, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else image
        rows, filters, *self._out = grad.shape
        self.count, self._views = rows // views, views
        # Cut off rows and columns that the stride does not reach.
        spans = [
            (out - 1) * s + d * (k - 1) + 1 for out, s, d, k in zip(self._out, stride, dilation, kernel, strict=True)
        ]
        self._image = image[:, :, : spans[0], : spans[1]]
        self.groups, self.ones = groups, int(bias)
        self._channels, self.outputs = image.shape[1] // groups, filters // groups
        self.positions, self.inputs = views * self._out[0] * self._out[1], self._channels * kernel[0] * kernel[1]
        self.size = views * (image[:1].numel() + grad[:1].numel())
        self._short_rows = self._channels * kernel[1] < _SHORT_ROW
        self.parts = 1 if self._short_rows else views
        self.device, self.dtype = grad.device, grad.dtype
        # U Uᵀ from the patches or from the image's own Gram matrix; an addition in memory costs as much as ten multiply-adds.
        pixels, laid_out = views * spans[0] * spans[1], self.positions * (self.inputs + self.ones)
        from_patches = groups * (self.positions**2 * self.inputs + 10 * laid_out)
        sums = kernel[0] * (views * self._out[0] * spans[1]) ** 2 + kernel[1] * self.positions**2
        from_image = groups * (pixels**2 * self._channels + 10 * sums)
        self._gram_of_image = from_image < from_patches
        self.input_gram_cost = min(from_image, from_patches)
        self.input_gram_floats = groups * (2 * pixels**2 if self._gram_of_image else laid_out + self.positions**2)

    def _of(self, rows: slice, value: Tensor) -> Tensor:
        """The rows of `value` that are views of some examples."""
        return value[rows.start * self._views : rows.stop * self._views]

    def grads(self, rows: slice) -> Tensor:
        grad = self._of(rows, self._grad)
        by_view = grad.view(-1, self._views, self.groups, self.outputs, *grad.shape[2:]).movedim(1, 3)
        return by_view.reshape(-1, self.outputs, self.positions)

    def columns(self, rows: slice) -> list[Tensor]:
        """One block for each kernel row, each a shifted view of one layout; a single block if kernel rows are short.

        The ones are the last column of the first block.
        """
        image = self._of(rows, self._image)
        if self._short_rows:
            return [self._patches(image)[:, None]]
        (n, c, h, w), stride, dilation, views = image.stride(), self._stride, self._dilation, self._views
        row = (self._kernel[1], self._channels)
        height, width = image.shape[2], self._out[1]
        laid_out = image.new_empty(len(image) // views, self.groups, views, height, width, row[0] * row[1] + self.ones)
        shape = (*laid_out.shape[:5], *row)
        strides = (views * n, self._channels * c, n, h, stride[1] * w, dilation[1] * w, c)
        laid_out[..., : row[0] * row[1]].unflatten(-1, row).copy_(image.as_strided(shape, strides))
        laid_out[..., row[0] * row[1] :].fill_(1)
        blocks = []
        for offset in range(self._kernel[0]):
            first = offset * dilation[0]
            moved = laid_out[:, :, :, first : first + (self._out[0] - 1) * stride[0] + 1 : stride[0]]
            block = moved.reshape(-1, views, self.positions // views, laid_out.shape[-1])
            blocks.append(block if offset == 0 else block[..., : row[0] * row[1]])
        return blocks

    def _patches(self, image: Tensor) -> Tensor:
        """All patches, with values in the weight's order and positions contiguous in memory."""
        image, views = image.contiguous(), self._views
        (n, c, h, w), (s0, s1), (d0, d1) = image.stride(), self._stride, self._dilation
        laid_out = image.new_empty(len(image) // views, self.groups, self.inputs + self.ones, views, *self._out)
        patch = (self._channels, *self._kernel)
        strides = (views * n, self._channels * c, c, d0 * h, d1 * w, n, s0 * h, s1 * w)
        view = image.as_strided((*laid_out.shape[:2], *patch, views, *self._out), strides)
        laid_out[:, :, : self.inputs].unflatten(2, patch).copy_(view)
        laid_out[:, :, self.inputs :].fill_(1)
        return laid_out.view(-1, self.inputs + self.ones, self.positions).transpose(1, 2)

    def input_gram(self, rows: slice) -> Tensor:
        image = self._of(rows, self._image)
        if not self._gram_of_image:
            patches = self._patches(image)[:, :, : self.inputs]
            return torch.bmm(patches, patches.transpose(1, 2))
        height, width = image.shape[2:]
        by_view = image.unflatten(1, (self.groups, self._channels)).unflatten(0, (-1, self._views)).movedim(1, 3)
        pixels = by_view.reshape(-1, self._channels, self._views * height * width)
        gram = torch.bmm(pixels.transpose(1, 2), pixels)
        gram = gram.view(-1, self._views, height, width, self._views, height, width)
        # ⟨uₜ, uₛ⟩ is the sum over the kernel's offsets of ⟨pixel at t + offset, pixel at s + offset⟩: first over the
        # kernel's rows, then over its columns.
        columns = _diagonal_sum(gram, (2, 5), self._kernel[0], self._out[0], self._stride[0], self._dilation[0])
        both = _diagonal_sum(columns, (3, 6), self._kernel[1], self._out[1], self._stride[1], self._dilation[1])
        return both.view(-1, self.positions, self.positions)

    def product(self, weights: Tensor) -> dict[str, Tensor]:
        shape = (self.groups * self.outputs, self._channels, *self._kernel)
        _, weight, bias = torch.ops.aten.convolution_backward(
            self._grad * weights[:, None].expand(-1, self._views).reshape(-1, 1, 1, 1),
            self._unpadded,
            self._image.new_empty(shape),
            [shape[0]],
            self._stride,
            self._padding,
            self._dilation,
            False,
            (0, 0),
            self.groups,
            (False, True, bool(self.ones)),
        )
        return {"weight": weight} | ({"bias": bias} if self.ones else {})

    def split(self, products: list[Tensor]) -> dict[str, Tensor]:
        bias = {"bias": products[0][..., -1]} if self.ones else {}
        shape = (*products[0].shape[:2], self._channels, *self._kernel)
        if self._short_rows:
            return {"weight": products[0][..., : self.inputs].reshape(shape)} | bias
        width = self.inputs // self._kernel[0]
        by_row = torch.stack([block[..., :width] for block in products], 2)
        return {"weight": by_row.unflatten(3, (self._kernel[1], self._channels)).movedim(4, 2)} | bias


def _diagonal_sum(gram: Tensor, dims: tuple[int, int], kernel: int, out: int, stride: int, dilation: int) -> Tensor:
    """Σ over a kernel's offsets of the blocks of `gram` shifted by the offset in both `dims`, as a new contiguous tensor."""

    def moved(offset: int) -> Tensor:
        index = [slice(None)] * gram.dim()
        for dim in dims:
            index[dim] = slice(offset * dilation, offset * dilation + (out - 1) * stride + 1, stride)
        return gram[tuple(index)]

    total = moved(0).clone(memory_format=torch.contiguous_format)
    for offset in range(1, kernel):
        total += moved(offset)
    return total


# One sampler per kind of layer


def _linear(layer: nn.Linear, value: Tensor, grad: Tensor, wanted: frozenset[str], views: int) -> LayerGradients:
    count = len(grad) // views
    if "weight" not in wanted:
        return kept({"bias": grad.reshape(count, -1, grad.shape[-1]).sum(1)})
    if value.dim() > 2 or views > 1:
        return Steps(
            {"weight": value.reshape(count, -1, value.shape[-1])},
            grad.reshape(count, -1, grad.shape[-1]),
            ["bias"] if "bias" in wanted else [],
        ).gradients()
    has_bias = "bias" in wanted

    def weighted_sum(weights: Tensor) -> dict[str, Tensor]:
        weighted = grad * weights[:, None]
        return {"weight": weighted.t() @ value} | ({"bias": weighted.sum(0)} if has_bias else {})

    return LayerGradients(
        squares=_squares(grad) * (_squares(value) + has_bias),
        weighted_sum=weighted_sum,
        each=lambda: {"weight": grad[:, :, None] * value[:, None]} | ({"bias": grad} if has_bias else {}),
    )


def _conv2d(layer: nn.Conv2d, value: Tensor, grad: Tensor, wanted: frozenset[str], views: int) -> LayerGradients:
    if "weight" not in wanted:
        return kept({"bias": over_views(grad.sum((2, 3)), views)})
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        sides: list[int] = layer._reversed_padding_repeated_twice
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        value, padding = functional.pad(value, sides, mode=mode), (0, 0)
    else:
        padding = _pair(layer.padding)
    geometry = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
    return _Convolution(value, grad, *geometry, layer.groups, "bias" in wanted, padding, views).gradients()


def _conv_transpose2d(
    layer: nn.ConvTranspose2d, value: Tensor, grad: Tensor, wanted: frozenset[str], views: int
) -> LayerGradients:
    parts = [kept({"bias": over_views(grad.sum((2, 3)), views)})] if "bias" in wanted else []
    if "weight" in wanted:
        geometry = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
        padding = _pair(cast("tuple[int, int]", layer.padding))
        # A convolution from the output back to the input must end at the kernel's last step. With output_padding the
        # output ends later, so that side needs less padding, or has values left over.
        ends = [
            (side - 1) * stride + dilation * (kernel - 1) + 1 - pad
            for side, kernel, stride, dilation, pad in zip(value.shape[2:], *geometry, padding, strict=True)
        ]
        missing = ends[0] - grad.shape[2], ends[1] - grad.shape[3]
        if missing != padding:
            grad = functional.pad(grad, (padding[1], missing[1], padding[0], missing[0]))
            padding = 0, 0
        parts.append(_Convolution(grad, value, *geometry, layer.groups, False, padding, views).gradients())
    return join(parts)


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return value[0], value[1]


def _group_norm(layer: nn.GroupNorm, value: Tensor, grad: Tensor, wanted: frozenset[str], views: int) -> LayerGradients:
    scales, shifts = grad.new_empty(grad.shape[:2]), grad.new_empty(grad.shape[:2])
    for rows in _blocks(len(grad), 3 * grad[:1].numel(), grad.device):
        normalized = functional.group_norm(value[rows], layer.num_groups, eps=layer.eps)
        scales[rows] = (grad[rows] * normalized).reshape(*normalized.shape[:2], -1).sum(2)
        shifts[rows] = grad[rows].reshape(*normalized.shape[:2], -1).sum(2)
    samples = (("weight", scales), ("bias", shifts))
    return kept({name: over_views(each, views) for name, each in samples if name in wanted})


def _layer_norm(layer: nn.LayerNorm, value: Tensor, grad: Tensor, wanted: frozenset[str], views: int) -> LayerGradients:
    shape = layer.normalized_shape
    normalized = functional.layer_norm(value, shape, eps=layer.eps)
    rows = (len(grad) // views, -1, *shape)
    return kept(
        ({"weight": (grad * normalized).reshape(rows).sum(1)} if "weight" in wanted else {})
        | ({"bias": grad.reshape(rows).sum(1)} if "bias" in wanted else {})
    )


def _embedding(layer: nn.Embedding, value: Tensor, grad: Tensor, wanted: frozenset[str], views: int) -> LayerGradients:
    if layer.scale_grad_by_freq or layer.max_norm is not None:
        raise ValueError("scale_grad_by_freq and max_norm mix examples; leave them out")
    tokens = value.reshape(len(value) // views, -1)
    grads = grad.reshape(*tokens.shape, layer.embedding_dim)
    if layer.padding_idx is not None:
        grads = grads * (tokens != layer.padding_idx)[..., None]
    squares = grads.new_empty(len(tokens))
    for rows in _blocks(len(tokens), 2 * tokens.shape[1] ** 2, grads.device):
        # Two positions update the same row of the weight if their tokens are equal.
        same = (tokens[rows, :, None] == tokens[rows, None, :]).to(grads.dtype)
        squares[rows] = gram_squares(torch.bmm(grads[rows], grads[rows].transpose(1, 2)), same)

    def weighted_sum(weights: Tensor) -> dict[str, Tensor]:
        total = grads.new_zeros(layer.num_embeddings, layer.embedding_dim)
        return {"weight": total.index_add_(0, tokens.flatten(), (grads * weights[:, None, None]).flatten(0, 1))}

    def each() -> dict[str, Tensor]:
        samples = grads.new_zeros(len(tokens), layer.num_embeddings, layer.embedding_dim)
        return {"weight": samples.scatter_add_(1, tokens[..., None].expand_as(grads), grads)}

    return LayerGradients(squares=squares, weighted_sum=weighted_sum, each=each)


SAMPLERS: dict[type[nn.Module], Sampler] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
"""Looked up by exact type, because a subclass may compute something else."""
