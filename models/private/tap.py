"""Records the inputs and output gradients of a model's layers, from which per-example gradients are computed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from models.private.layers import SAMPLERS, LayerGradients, Sampler, Steps, kept, over_views
from models.private.lstm import PrivateLSTM, lstm
from models.private.rerouted import REROUTED, Products

logger = logging.getLogger(__name__)

_REMEDIES: dict[type[nn.Module], str] = {
    nn.EmbeddingBag: "Use nn.Embedding, and sum or average over an example's own tokens",
    nn.GRUCell: "Use nn.GRU",
    nn.RNNCell: "Use nn.RNN",
    nn.LSTMCell: "Use nn.LSTM",
    nn.Bilinear: "Use nn.Linear of the inputs, or of their outer product",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """A module with trainable parameters that is handled as one layer."""

    name: str
    module: nn.Module
    wanted: dict[str, nn.Parameter]
    sampler: Sampler | None

    @property
    def title(self) -> str:
        return f"layer '{self.name}' ({type(self.module).__name__})"


@dataclass(eq=False)
class Recording:
    """The per-example gradients recorded so far in one backward pass.

    `layer_of` maps each parameter to its layer's number; a parameter shared by several layers belongs to the first. `bytes`
    is approximately the memory used: each layer's input, output and output gradient, and the per-example gradients kept.
    """

    layer_of: dict[nn.Parameter, int] = field(default_factory=dict)
    gradients: list[tuple[dict[str, nn.Parameter], LayerGradients]] = field(default_factory=list)
    shared: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    calls: Counter[nn.Parameter] = field(default_factory=Counter)
    added: Counter[nn.Parameter] = field(default_factory=Counter)
    bytes: int = 0

    def add(self, parameters: dict[str, nn.Parameter], gradients: LayerGradients) -> None:
        self.bytes += gradients.bytes
        self.added.update(parameters.values())
        for name, parameter in parameters.items():
            repeated = self.added[parameter] > 1 and parameter not in self.shared
            if repeated or self.added[parameter] > self.calls[parameter]:
                raise ValueError(
                    f"gradients of a layer's '{name}' arrived before all of its calls had been made; do not differentiate "
                    "inside the model, and use no checkpoints with use_reentrant"
                )
        if all(self.calls[parameter] == 1 for parameter in parameters.values()):
            self.gradients.append((parameters, gradients))
            return
        # If a parameter is used more than once, its gradient is a sum, and the parts' norms do not give the sum's norm.
        for name, samples in gradients.each().items():
            parameter = parameters[name]
            self.shared[parameter] = self.shared[parameter] + samples if parameter in self.shared else samples

    def finish(self) -> None:
        """Call after the backward pass: merges all uses of each parameter that was used more than once."""
        by_layer: dict[int, dict[str, nn.Parameter]] = {}
        for number, parameter in enumerate(self.shared):
            by_layer.setdefault(self.layer_of[parameter], {})[str(number)] = parameter
        for names in by_layer.values():
            samples = {name: self.shared[parameter] for name, parameter in names.items()}
            self.gradients.append((names, kept(samples)))

    def squares(self, count: int, device: torch.device) -> Tensor:
        """Squared norms over all parameters, (n,)."""
        if not self.gradients:
            return torch.zeros(count, device=device)
        return torch.stack([gradients.squares for _, gradients in self.gradients]).sum(0)

    def layer_squares(self, count: int, device: torch.device) -> Tensor:
        """Squared norms over each layer's parameters, (n, layers)."""
        squares = torch.zeros(max(self.layer_of.values()) + 1, count, device=device)
        for parameters, gradients in self.gradients:
            squares[self._layer(parameters)] += gradients.squares
        return squares.T

    def weighted_sums(self, weights: Tensor) -> dict[nn.Parameter, Tensor]:
        """Σᵢ weightᵢ gᵢ of every parameter that was used; weights (n,) or (n, layers)."""
        sums = {}
        with torch.no_grad(), full_precision(weights.device):
            for parameters, gradients in self.gradients:
                own = weights if weights.dim() == 1 else weights[:, self._layer(parameters)].contiguous()
                for name, total in gradients.weighted_sum(own).items():
                    sums[parameters[name]] = total
        return sums

    def samples(self) -> dict[nn.Parameter, Tensor]:
        """The per-example gradients (n, *shape) of every parameter that was used."""
        with torch.no_grad(), full_precision(next(iter(self.layer_of)).device):
            return {
                parameters[name]: sample
                for parameters, gradients in self.gradients
                for name, sample in gradients.each().items()
            }

    def _layer(self, parameters: dict[str, nn.Parameter]) -> int:
        return self.layer_of[next(iter(parameters.values()))]


class Tap:
    """Finds a model's layers and records the per-example gradients of a batch while the model runs.

    Ordinary parameter gradients are not computed during a recording. Layers without an implementation here fall back to
    Opacus's per-example gradients; one line in the log names them.

    Examples must be the first dimension of every layer's input and output (for an `nn.LSTM`, as `batch_first` says).

    Raises:
        ValueError: a layer mixes examples or has no per-example gradients. While recording: also if a parameter is used
            outside of its layer, or if a layer's input is changed in place before the backward pass has read it.
    """

    def __init__(self, model: nn.Module) -> None:
        _refuse_mixing(model)
        self._model = model
        self._parameters = _trainable(model)
        self._layers = list({id(layer.module): layer for layer in _layers(model)}.values())
        for layer in self._layers:
            _refuse_ambiguous(layer, self._layers)
        self._layer_of: dict[nn.Parameter, int] = {}
        for layer in self._layers:
            own = [parameter for parameter in layer.wanted.values() if parameter not in self._layer_of]
            self._layer_of.update(dict.fromkeys(own, self.n_layers))
        self.bytes_recorded = 0
        fallen_back = [
            layer.title for layer in self._layers if layer.sampler is None and not _is_rerouted(layer.module)
        ]
        if fallen_back:
            logger.info("per-example gradients by Opacus, slower than our own, for %s", ", ".join(fallen_back))

    @property
    def n_layers(self) -> int:
        """Number of layers with at least one parameter that no earlier layer has."""
        return len(set(self._layer_of.values()))

    @contextmanager
    def recording(self, count: int, views: int = 1) -> Iterator[Recording]:
        """Record one forward and backward pass of `count` examples; parameters require no gradient meanwhile.

        The pass has `views` consecutive rows for each example, and an example's gradient is the sum over its rows.
        """
        _refuse_mixing(self._model)
        if {id(parameter) for parameter in _trainable(self._model)} != {
            id(parameter) for parameter in self._parameters
        }:
            raise ValueError(
                "parameters were frozen, released or replaced after private gradients were set up; change them before"
            )
        recording = Recording(layer_of=self._layer_of)
        handles = []
        products: list[tuple[_Layer, Products]] = []
        try:
            for layer in self._layers:
                if _is_lstm(layer.module):
                    layer.module.forward = partial(self._lstm, layer, recording, count, views)
                elif _is_rerouted(layer.module):
                    layer.module.forward = partial(self._rerouted, layer, recording, count * views, products)
                else:
                    if layer.sampler is None:
                        _prepare_fallback(
                            layer.name, layer.module
                        )  # before each recording, because it works on a copy of the module
                    handles.append(layer.module.register_forward_pre_hook(partial(self._before, layer)))
                    hook = partial(self._after, layer, recording, count, views)
                    # Before any other hook, because others may change the layer's output
                    handles.append(layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
            yield recording
            self._check_bypasses()
            for layer, made in products:
                with torch.no_grad(), full_precision(next(iter(layer.wanted.values())).device):
                    for parameters, gradients in made.gradients(layer.wanted, count):
                        recording.add(parameters, gradients)
            recording.finish()
            self.bytes_recorded = recording.bytes
        finally:
            for handle in handles:
                handle.remove()
            for layer in self._layers:
                if _is_rerouted(layer.module):
                    layer.module.__dict__.pop("forward", None)
                _set_requires_grad(layer, True)

    def _before(self, layer: _Layer, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            _set_requires_grad(layer, False)

    def _after(
        self,
        layer: _Layer,
        recording: Recording,
        count: int,
        views: int,
        module: nn.Module,
        args: Any,
        kwargs: Any,
        output: Any,
    ) -> Any:
        if not torch.is_grad_enabled():
            return None
        tensors = [value for value in (*args, *kwargs.values()) if value is not None]
        if len(tensors) != 1 or not isinstance(tensors[0], Tensor) or not isinstance(output, Tensor):
            raise ValueError(
                f"{layer.title} takes or returns more than one tensor; such a layer has no per-example gradients"
            )
        value = tensors[0]
        for tensor in (value, output):
            _check_count(layer, count * views, tensor.shape[0] if tensor.dim() else 0)
        if output._is_view():
            output = output.clone()  # a view loses its hook if it is changed in place
        if not output.requires_grad:
            # The anchor is created on the output's device, because a copy from the CPU cannot be captured
            output = _Start.apply(output, torch.zeros((), device=output.device, requires_grad=True))
        _set_requires_grad(layer, True)
        recording.calls.update(layer.wanted.values())
        recording.bytes += _bytes(value, output, output)
        version = value._version

        number = output.output_nr

        def record(grads: Sequence[Tensor]) -> None:
            if value._version != version:
                raise ValueError(f"the input of {layer.title} was changed in place after the layer had used it")
            with torch.no_grad(), full_precision(value.device):
                recording.add(layer.wanted, _sample(layer, value.detach(), grads[number], views))

        # Not a hook of the tensor itself: hooks that the model adds to the tensor would run after it
        output.grad_fn.register_prehook(record)
        return output

    def _lstm(
        self, layer: _Layer, recording: Recording, count: int, views: int, input: Tensor, hx: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        module = layer.module
        assert isinstance(module, nn.LSTM)

        def record(suffix: str, steps: Tensor, hidden: Tensor, grad: Tensor) -> None:
            names = {name: parameter for name, parameter in layer.wanted.items() if name.endswith(f"_{suffix}")}
            if not names:
                return
            inputs = {f"weight_ih_{suffix}": steps, f"weight_hh_{suffix}": hidden}
            with torch.no_grad(), full_precision(grad.device):
                recording.add(names, _lstm_gradients(inputs, grad, frozenset(names), views))

        if not torch.is_grad_enabled():
            return lstm(module, input, hx)
        result = lstm(module, input, hx, record=record)
        _check_count(layer, count * views, input.shape[0 if module.batch_first else 1])
        recording.calls.update(layer.wanted.values())
        # Hidden and cell states, gates and the gates' gradients
        recording.bytes += module.num_layers * _bytes(input, *[result[0]] * 12)
        return result

    def _rerouted(
        self,
        layer: _Layer,
        recording: Recording,
        count: int,
        products: list[tuple[_Layer, Products]],
        value: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        module = layer.module
        made = Products(module)
        try:
            result = REROUTED[type(module)](module, made.affine, value, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{layer.title} {error}") from None
        _check_count(layer, count, value.shape[0 if module.batch_first else 1])
        if torch.is_grad_enabled():
            products.append((layer, made))
            recording.calls.update(layer.wanted.values())
            # Inputs, projections, their gradients and intermediate results
            recording.bytes += 12 * _bytes(value, result[0]) * getattr(module, "num_layers", 1)
        return result

    def close(self) -> None:
        """Remove the attributes that the fallback added to the model's layers."""
        for layer in self._layers:
            layer.module.__dict__.pop("ft_compute_sample_grad", None)

    def _check_bypasses(self) -> None:
        for layer in self._layers:
            for name, parameter in layer.wanted.items():
                if parameter.grad is not None:
                    raise ValueError(
                        f"'{name}' of {layer.title} is used outside of that layer's own call, where its per-example "
                        "gradients cannot be seen; call the layer instead"
                    )


class _Start(torch.autograd.Function):
    """Makes a tensor require a gradient, without a copy, if nothing before it does."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None


def _layers(module: nn.Module, name: str = "") -> Iterator[_Layer]:
    """Modules with trainable parameters of their own. An unknown module is one layer together with its submodules."""
    own = {key: value for key, value in module.named_parameters(recurse=False) if value.requires_grad}
    sampler = SAMPLERS.get(type(module))
    if type(module) in REROUTED:
        own = {key: value for key, value in module.named_parameters() if value.requires_grad}
    elif (own or is_parametrized(module)) and (
        _is_reparametrized(module) or (sampler is None and not _is_lstm(module))
    ):
        _prepare_fallback(name, module)
        own = {key: value for key, value in module.named_parameters() if value.requires_grad}
    if own:
        yield _Layer(name=name, module=module, wanted=own, sampler=sampler)
    else:
        for key, child in module.named_children():
            yield from _layers(child, f"{name}.{key}" if name else key)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _is_lstm(module: nn.Module) -> bool:
    return type(module) in (nn.LSTM, PrivateLSTM)


def _is_rerouted(module: nn.Module) -> bool:
    """Whether the module's forward is replaced during a recording."""
    return _is_lstm(module) or type(module) in REROUTED


def _set_requires_grad(layer: _Layer, required: bool) -> None:
    for parameter in layer.wanted.values():
        parameter.requires_grad_(required)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _check_count(layer: _Layer, count: int, found: int) -> None:
    if found != count:
        raise ValueError(
            f"{layer.title} takes or returns a tensor whose first dimension is {found}, not the {count} examples of the "
            "batch; keep examples in the first dimension"
        )


def _refuse_mixing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"layer '{name}' is {kind}, which mixes examples; use GroupNorm instead")
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise ValueError(
                f"layer '{name}' is {kind} with track_running_stats, which keeps statistics of examples; leave it out"
            )


def _refuse_ambiguous(layer: _Layer, others: Sequence[_Layer]) -> None:
    """Refuse a layer with a replaced forward, and layers whose parameters would be counted twice or missed."""
    inside = {id(module) for module in layer.module.modules()}
    if any("forward" in vars(module) for module in layer.module.modules()):
        raise ValueError(f"the forward of {layer.title} was replaced; write a separate class for it")
    for other in others:
        if other is not layer and id(other.module) in inside:
            raise ValueError(f"{layer.title} and {other.title} share a module, and one has parameters of its own")
    if len(list(layer.module.named_parameters(remove_duplicate=False))) > len(list(layer.module.parameters())):
        raise ValueError(f"{layer.title} holds a parameter under two names")


# Per-example gradients of a call


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes norms and sums in full float32, whatever the global settings; cuDNN allows TF32 by default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")}
    try:
        with torch.autocast(device.type, enabled=False), cudnn.flags(**flags, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _sample(layer: _Layer, value: Tensor, grad: Tensor, views: int) -> LayerGradients:
    grad = _widened(grad)
    value = _widened(value)
    if layer.sampler is not None:
        return layer.sampler(layer.module, value, grad, frozenset(layer.wanted), views)
    names = {parameter: name for name, parameter in layer.wanted.items()}
    # Opacus (1.6) unfolds a convolution's input with strides that assume contiguous memory.
    value, grad = (tensor.clone(memory_format=torch.contiguous_format) for tensor in (value, grad))
    try:
        samples = _opacus_sampler(layer.module)(layer.module, [value], grad)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"{layer.title} has no per-example gradients. {_remedy(layer.module)}") from error
    wanted = {names[parameter]: sample for parameter, sample in samples.items() if parameter in names}
    return kept({name: over_views(sample, views) for name, sample in wanted.items()})


def _widened(value: Tensor) -> Tensor:
    """`value` in float32 or wider, for norms and sums."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _is_reparametrized(module: nn.Module) -> bool:
    """Whether an old-style hook computes the layer's weight: `nn.utils.weight_norm` or `spectral_norm`."""
    return any(isinstance(hook, SpectralNorm | WeightNorm) for hook in module._forward_pre_hooks.values())


def _remedy(module: nn.Module) -> str:
    if is_parametrized(module) or _is_reparametrized(module):
        return "Remove the parametrization (weight or spectral normalization); GroupNorm normalizes activations instead"
    known = ", ".join(sorted(kind.__name__ for kind in (*SAMPLERS, *REROUTED, nn.LSTM)))
    return _REMEDIES.get(type(module), f"Freeze it, or build it from layers that have them: {known}")


def _prepare_fallback(name: str, module: nn.Module) -> None:
    title = f"layer '{name}' ({type(module).__name__})"
    if type(module) in _REMEDIES or _is_reparametrized(module):
        raise ValueError(f"{title} has no per-example gradients. {_remedy(module)}")
    if _opacus_sampler(module) is not ft_compute_per_sample_gradient:
        return
    try:
        prepare_layer(module)
    except NotImplementedError as error:
        raise ValueError(f"{title} has no per-example gradients: {error}. {_remedy(module)}") from error


def _opacus_sampler(module: nn.Module) -> Any:
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return ft_compute_per_sample_gradient  # Opacus (1.6) always pads convolutions with zeros
    return GradSampleModule.GRAD_SAMPLERS.get(type(module), ft_compute_per_sample_gradient)


def _lstm_gradients(inputs: dict[str, Tensor], grad: Tensor, wanted: frozenset[str], views: int) -> LayerGradients:
    biases = sorted(name for name in wanted if name.startswith("bias"))
    inputs = {name: value for name, value in inputs.items() if name in wanted}
    if views > 1:
        inputs = {name: _by_example(value, views) for name, value in inputs.items()}
        grad = _by_example(grad, views)
    if not inputs:
        total = grad.sum(0 if views == 1 else 1)
        return kept(dict.fromkeys(biases, total))
    return Steps(inputs, grad, biases, time_major=views == 1).gradients()


def _by_example(steps: Tensor, views: int) -> Tensor:
    """(T, n · views, features) as (n, views · T, features): the steps of all views as one sequence.

    They are copied, because products of so many steps are several times slower if each is in another place in memory.
    """
    count, rows, features = steps.shape
    return steps.transpose(0, 1).reshape(rows // views, views * count, features)
