"""References for per-example gradients, a check against them, and small models."""

from __future__ import annotations

import math
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import pytest
import torch
from opacus import GradSampleModule
from torch import nn
from torch.func import functional_call, grad, vmap

from models.performance import Performance
from models.private import layers
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise
from models.private.tap import Tap

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def made(build, seed=0):
    """A module with weights from its own seed, and scales and shifts that are neither one nor zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.uniform_(0.5, 1.5)
    return module


class Calls(nn.Module):
    """Modules, and a function of them and of the input that is the model's forward."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, value):
        return self.function(self, value)


def named(parameters):
    return {name: parameter for name, parameter in parameters if parameter.requires_grad}


# Two references


def by_func(model, value, coefficients):
    """torch.func: gradients (n, *shape) of Σ coefficients · outputs for each example on its own, by parameter name."""
    trained = {name: parameter.detach() for name, parameter in named(model.named_parameters()).items()}

    def loss(parameters, example, factor):
        return (functional_call(model, parameters, (example[None],)) * factor[None]).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))(trained, value, coefficients)


@torch.enable_grad()
def one_by_one(model, value, coefficients):
    """The same from one ordinary backward pass per example, where torch.func does not work: LSTMs, checkpoints."""
    parameters = named(model.named_parameters())
    each = []
    for example, factor in zip(value, coefficients, strict=True):
        loss = (model(example[None]) * factor[None]).sum()
        each.append(torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True))
    return dict(zip(parameters, map(torch.stack, zip(*each, strict=True)), strict=True))


def by_opacus(model, value, coefficients):
    """Opacus's hooks, in the contiguous memory that its convolutions assume."""
    wrapped = GradSampleModule(deepcopy(model).to(memory_format=torch.contiguous_format), loss_reduction="sum")
    (wrapped(value.contiguous()) * coefficients.contiguous()).sum().backward()
    return {name: parameter.grad_sample for name, parameter in named(wrapped._module.named_parameters()).items()}


# Ours


@torch.enable_grad()
def record(model, value, coefficients):
    tap = Tap(model)
    with tap.recording(len(value)) as recording:
        (model(value) * coefficients).sum().backward()
    tap.close()
    return recording


def distance(ours, expected):
    return float(((ours - expected).norm() / expected.norm().clamp(min=1e-30)).detach())


def clipping(squares):
    """Weights that clip about half of the examples, and leave the last one out."""
    norms = squares.sqrt()
    weights = norms.median() / norms.clamp(min=norms.median())
    weights[-1] = 0 if len(weights) > 1 else 0.7
    return weights


@torch.no_grad()
def agrees(model, recording, expected, tolerance):
    """Norms and weighted sums of a recording, against gradients for each example in float64."""
    squares = sum(value.flatten(1).square().sum(1) for value in expected.values())
    ours = recording.squares(len(squares), torch.device("cpu")).double()
    torch.testing.assert_close(ours.sqrt(), squares.sqrt(), rtol=tolerance, atol=0)
    weights = clipping(squares)
    parameters = named(model.named_parameters())
    sums = recording.weighted_sums(weights.to(next(iter(parameters.values())).dtype))
    assert sums.keys() <= set(parameters.values())
    for name, parameter in parameters.items():
        reference = (weights @ expected[name].flatten(1)).view_as(parameter)
        if parameter in sums:
            assert sums[parameter].shape == parameter.shape
            assert distance(sums[parameter].double(), reference) < tolerance, name
        else:
            assert not reference.any(), name


def check(model, value, *, each=by_func, opacus=True, dtypes=TOLERANCES, reference=None):
    """Ours in both precisions equal torch.func's (or others' that give `each`), and Opacus's where that knows the model."""
    precise = value.double() if value.is_floating_point() else value
    truth = deepcopy(reference or model).double()
    with torch.no_grad():
        coefficients = normal(*truth(precise).shape, seed=5).double()
    expected = each(truth, precise, coefficients)
    if opacus:
        for name, samples in by_opacus(truth, precise, coefficients).items():
            assert distance(samples, expected[name]) < 1e-10, name
    for dtype in dtypes:
        copied = deepcopy(model).to(dtype)
        ours = value.to(dtype) if value.is_floating_point() else value
        agrees(copied, record(copied, ours, coefficients.to(dtype)), expected, TOLERANCES[dtype])


# Every form on every geometry, whichever form the shapes would select


@contextmanager
def watched():
    """Returns a list of everything that runs from here on."""
    ran = []

    def spied(name, function):
        def spy(*args, **kwargs):
            keeps = name == "products" and kwargs.get("keep", args[-1])
            ran.append("kept" if keeps else "discarded" if name == "products" else name)
            return function(*args, **kwargs)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_diagonal_sum", spied("image", layers._diagonal_sum))
        patch.setattr(layers._Convolution, "_patches", spied("patches", layers._Convolution._patches))
        patch.setattr(layers._Positions, "_gram_squares", spied("gram", layers._Positions._gram_squares))
        patch.setattr(layers._Positions, "_products", spied("products", layers._Positions._products))
        yield ran


@contextmanager
def forced(*, gram, keep=False, of_image=None, short_rows=None, block=2**20):
    """Force a form. Returns a list of what is run, for checks."""
    start = layers._Convolution.__init__

    def chosen(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self._gram_of_image = self._gram_of_image if of_image is None else of_image

    with pytest.MonkeyPatch.context() as patch, watched() as ran:
        patch.setattr(layers, "_GRAM_ADVANTAGE", math.inf if gram else 0)
        patch.setattr(layers, "_KEEP_FACTOR", math.inf if keep else 0)
        patch.setattr(layers, "_BLOCK_FLOATS", {"cpu": block, "cuda": block})
        if short_rows is not None:
            patch.setattr(layers, "_SHORT_ROW", 10**9 if short_rows else 0)
        patch.setattr(layers._Convolution, "__init__", chosen)
        yield ran


FORMS = {
    "gram": {"gram": True},
    "kept": {"gram": False, "keep": True},
    "discarded": {"gram": False},
    "gram in blocks": {"gram": True, "block": 50},
    "kept in blocks": {"gram": False, "keep": True, "block": 50},
    "discarded in blocks": {"gram": False, "block": 50},
}
CONVOLUTION_FORMS = {
    f"{form}, {kind}": {**choices, **more}
    for form, choices in FORMS.items()
    for kind, more in (
        {"of the image": {"of_image": True}, "of patches": {"of_image": False}}
        if choices["gram"]
        else {"short rows": {"short_rows": True}, "long rows": {"short_rows": False}}
    ).items()
}


@torch.no_grad()
def check_forms(model, value, forms, dtype=torch.float64, *, each=by_func, reference=None):
    """Every form gives the norms, the weighted sums and, for shared parameters, the gradients themselves."""
    model, value = deepcopy(model).to(dtype), value.to(dtype)
    truth = deepcopy(reference or model).double()
    coefficients = normal(*truth(value.double()).shape, seed=6).double()
    expected = each(truth, value.double(), coefficients)
    convolves = any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in model.modules())
    for name, choices in forms.items():
        with forced(**choices) as ran:
            recording = record(model, value, coefficients.to(dtype))
            taken = "gram" if choices["gram"] else "kept" if choices.get("keep") else "discarded"
            assert {"gram", "kept", "discarded"} & set(ran) == {taken}, name
            if convolves and "of_image" in choices:
                assert {"image", "patches"} & set(ran) == {"image" if choices["of_image"] else "patches"}, name
            if convolves and "short_rows" in choices:
                assert ("patches" in ran) == choices["short_rows"], name
            agrees(model, recording, expected, TOLERANCES[dtype])
            for parameters, gradients in recording.gradients:
                for key, samples in gradients.each().items():
                    (full,) = (n for n, p in model.named_parameters() if p is parameters[key])
                    assert distance(samples.double(), expected[full]) < TOLERANCES[dtype], (name, key)


# Models


def frozen(model, *names):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model


def sequential(*modules):
    return lambda: nn.Sequential(*(build() for build in modules))


def relu():
    return nn.ReLU(inplace=True)


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2), relu(), nn.Conv2d(6, 8, 2, padding="same"), nn.Flatten(), nn.Linear(72, 3)
    )


def small_residual():
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), relu(), nn.Conv2d(4, 4, 1))
    return Calls(
        lambda m, v: m.out((m.stem(v) + m.body(m.stem(v))).mean((2, 3))),
        stem=nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4)),
        body=body,
        out=nn.Linear(4, 3),
    )


def small_lstm():
    return Calls(
        lambda m, v: m.out(m.lstm(v.transpose(1, 2).flatten(2))[0][:, -1]),
        lstm=nn.LSTM(16, 5, num_layers=2, batch_first=True),
        out=nn.Linear(5, 3),
    )


def small_text():
    """Images' values as tokens, so that all models take the same."""
    return Calls(
        lambda m, v: m.out(m.norm(torch.tanh(m.fc(m.embed((v.flatten(1)[:, :9] * 3).long() % 7)))).mean(1)),
        embed=nn.Embedding(7, 4),
        fc=nn.Linear(4, 4),
        norm=nn.LayerNorm(4),
        out=nn.Linear(4, 3),
    )


SMALL = {
    name: partial(made, build)
    for name, build in {"cnn": small_cnn, "residual": small_residual, "lstm": small_lstm, "text": small_text}.items()
}


def batch(count, seed=0):
    return normal(count, 2, 8, 8, seed=seed), torch.randint(3, (count,), generator=generator(seed + 1))


def private_gradient(model, *, clip=1.0, noise=0.0, expected=1.0, seed=0, precision="fp32", **performance):
    return PrivateGradient(
        model,
        ClipThenNoise(max_grad_norm=clip, noise_scale=noise),
        expected,
        generator(seed),
        precision=precision,
        performance=Performance(**performance),
    )


def rerun(function, inputs):
    """What a CUDA graph does, without one: the same work on the same memory, without running the caller's code again."""
    outputs = tuple(output.clone() for output in function(*inputs))

    def run():
        for kept, output in zip(outputs, function(*inputs), strict=True):
            kept.copy_(output)

    return outputs, run
