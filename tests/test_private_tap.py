"""Per-example gradients of whole graphs of layers: shared, branching, frozen, unknown; and what is refused."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from private_reference import (
    FORMS,
    SMALL,
    Calls,
    check,
    forced,
    frozen,
    generator,
    made,
    normal,
    one_by_one,
    private_gradient,
    record,
    relu,
    sequential,
)
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from models.private.tap import Tap

# Parameters that are used more than once: the norm is that of the sum

SHARED = {
    "linear twice": (
        lambda: Calls(lambda m, v: m.fc(torch.tanh(m.fc(v))), fc=nn.Linear(4, 4)),
        (4,),
    ),
    "linear on sequences twice": (
        lambda: Calls(lambda m, v: m.fc(torch.tanh(m.fc(v))), fc=nn.Linear(4, 4)),
        (3, 4),
    ),
    "linear on both": (
        lambda: Calls(lambda m, v: m.fc(torch.tanh(m.fc(v))).sum(1) + m.fc(v[:, 0]), fc=nn.Linear(4, 4)),
        (3, 4),
    ),
    "convolution twice": (
        lambda: Calls(lambda m, v: m.conv(torch.tanh(m.conv(v))), conv=nn.Conv2d(2, 2, 3, padding=1)),
        (2, 6, 5),
    ),
    "norm twice": (
        lambda: Calls(lambda m, v: m.norm(torch.tanh(m.norm(v))), norm=nn.GroupNorm(2, 4)),
        (4, 3, 3),
    ),
    "lstm twice": (
        lambda: Calls(lambda m, v: m.lstm(m.lstm(v)[0])[0], lstm=nn.LSTM(4, 4, batch_first=True)),
        (3, 4),
    ),
    "once only is used": (
        lambda: Calls(lambda m, v: m.fc(torch.tanh(m.fc(v))) + 0 * m.fc(v).detach(), fc=nn.Linear(4, 4)),
        (4,),
    ),
    "called but unused": (
        lambda: Calls(lambda m, v: [m.fc(v), m.out(v)][1], fc=nn.Linear(4, 4), out=nn.Linear(4, 2)),
        (4,),
    ),
    "fallback twice": (
        lambda: Calls(lambda m, v: m.act(m.fc(m.act(v))), fc=nn.Linear(4, 4), act=nn.PReLU(4)),
        (4,),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHARED)
def test_a_layer_called_twice(name, form):
    build, shape = SHARED[name]
    with forced(**FORMS[form]):
        check(made(build), normal(5, *shape), each=one_by_one, opacus=False)


def tied_language_model():
    model = Calls(
        lambda m, v: m.out(torch.tanh(m.hidden(m.embed(v)))),
        embed=nn.Embedding(6, 4),
        hidden=nn.Linear(4, 4),
        out=nn.Linear(4, 6),  # its bias is its own
    )
    model.out.weight = model.embed.weight
    return model


@pytest.mark.parametrize("form", FORMS)
def test_parameters_tied_between_layers(form):
    tokens = torch.randint(6, (5, 7), generator=generator())
    with forced(**FORMS[form]):
        check(made(tied_language_model), tokens, opacus=False)


# In-place changes, branches, what is unused and what is frozen


class Scale(nn.Module):
    """Unknown: a parameter and a layer of its own; its output is a view."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(4, 4)

    def forward(self, value):
        return self.inner(value * self.scale).transpose(1, -1)


def residual():
    def function(m, v):
        v = m.first(v)
        v = v + m.norm(m.conv(v))  # the gradient is shared between the branches
        v = torch.relu_(v)
        return m.last(v) + m.shortcut(v)

    conv = partial(nn.Conv2d, 3, 3, 3, padding=1)
    return Calls(function, first=conv(), norm=nn.GroupNorm(1, 3), conv=conv(), last=conv(), shortcut=nn.Conv2d(3, 3, 1))


GRAPHS = {
    "in place after linear": (sequential(partial(nn.Linear, 4, 5), relu, partial(nn.Linear, 5, 5), relu), (4,)),
    "in place after linear on sequences": (
        sequential(partial(nn.Linear, 4, 5), relu, partial(nn.Linear, 5, 5, bias=False), relu),
        (3, 4),
    ),
    "in place after convolutions": (
        sequential(partial(nn.Conv2d, 2, 3, 3), relu, partial(nn.Conv2d, 3, 4, 3), partial(nn.GroupNorm, 2, 4), relu),
        (2, 8, 7),
    ),
    "in place after a view": (sequential(partial(nn.Linear, 4, 4), Scale, relu, partial(nn.Linear, 4, 2)), (4, 4)),
    "in place after a view at first": (sequential(Scale, relu, partial(nn.Linear, 4, 2)), (4, 4)),
    "residual": (residual, (3, 5, 5)),
    "straight through": (
        lambda: Calls(lambda m, v: v + m.fc(v) + m.fc2(v).detach(), fc=nn.Linear(4, 4), fc2=nn.Linear(4, 4)),
        (4,),
    ),
    "without gradients": (
        lambda: Calls(lambda m, v: m.out(without_gradients(m.fc, v)), fc=nn.Linear(4, 4), out=nn.Linear(4, 3)),
        (4,),
    ),
    "checkpoint": (
        lambda: Calls(
            lambda m, v: m.out(checkpoint(lambda w: m.fc(torch.tanh(m.fc(w))), m.start(v), use_reentrant=False)),
            start=nn.Linear(4, 4),
            fc=nn.Linear(4, 4),
            out=nn.Linear(4, 3),
        ),
        (4,),
    ),
}


def without_gradients(layer, value):
    with torch.no_grad():
        return layer(value)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_layers(name):
    build, shape = GRAPHS[name]
    model = made(build)
    value = normal(5, *shape)
    before = value.clone()
    check(model, value, each=one_by_one, opacus=False)
    assert torch.equal(value, before)


@pytest.mark.parametrize(
    "names", [["0"], ["0", "2"], ["2"], ["0.weight", "2.bias"], ["2", "4"], ["0", "2", "3.weight"]], ids=str
)
def test_frozen_layers(names):
    model = made(
        sequential(
            partial(nn.Conv2d, 2, 3, 3), relu, partial(nn.Conv2d, 3, 4, 3), partial(nn.GroupNorm, 2, 4), nn.Flatten
        )
    )
    model.append(made(lambda: nn.Linear(4 * 4 * 3, 5)))
    frozen(model, *(n for n, _ in model.named_parameters() if n in names or n.split(".")[0] in names))
    check(model, normal(4, 2, 8, 7), opacus=False)


def test_what_hooks_of_the_model_change_is_taken_into_account():
    model = made(sequential(partial(nn.Linear, 4, 5), nn.Tanh, partial(nn.Linear, 5, 3)))
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model[0].register_forward_hook(lambda module, args, output: 3 * output)
    check(model, normal(5, 4), opacus=False)

    def function(model, value):
        hidden = model.fc(value)
        hidden.register_hook(lambda gradient: 5 * gradient)
        return model.out(torch.tanh(hidden))

    value, factors = normal(5, 4), normal(5, 3, seed=1)
    model = made(lambda: Calls(function, fc=nn.Linear(4, 5), out=nn.Linear(5, 3)))
    recording = record(model, value, factors)
    (model(value) * factors).sum().backward()
    for parameter, total in recording.weighted_sums(torch.ones(5)).items():
        torch.testing.assert_close(total, parameter.grad)


# Layers unknown to us


class Noted(nn.Linear):
    def forward(self, value):
        return 2 * super().forward(value)


class Given(nn.Module):
    """Gives its parameter, whatever the input: a view of it."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.ones(3, 4))

    def forward(self, value):
        return self.query.expand(len(value), -1, -1)


UNKNOWN = {
    "Conv1d": (partial(nn.Conv1d, 4, 6, 3, padding=1, stride=2, groups=2), (4, 9)),
    "Conv1d, same": (partial(nn.Conv1d, 4, 6, 4, padding="same"), (4, 9)),
    "Conv1d, circular": (partial(nn.Conv1d, 4, 6, 3, padding=1, padding_mode="circular"), (4, 9)),
    "Conv3d": (partial(nn.Conv3d, 2, 4, (2, 3, 1), stride=(1, 2, 1), dilation=(2, 1, 1)), (2, 5, 6, 3)),
    "Conv3d, replicate": (partial(nn.Conv3d, 2, 4, 3, padding=1, padding_mode="replicate"), (2, 4, 3, 3)),
    "PReLU": (partial(nn.PReLU, 4), (4, 3)),
    "InstanceNorm2d": (partial(nn.InstanceNorm2d, 4, affine=True), (4, 3, 5)),
    "RMSNorm": (partial(nn.RMSNorm, (2, 4)), (3, 2, 4)),
    "Scale": (Scale, (4, 4)),
    "Noted": (partial(Noted, 4, 3), (2, 4)),
    "Given": (Given, (4,)),
    "ParametrizedLinear": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_layers_fall_back_with_one_line_that_names_them(name, caplog):
    build, shape = UNKNOWN[name]
    # Behind a known layer, and in another layout of memory, as in a network
    model = made(
        lambda: Calls(lambda m, v: m.unknown(m.known(v)), known=nn.Linear(shape[-1], shape[-1]), unknown=build())
    )
    value = normal(5, *shape)
    with caplog.at_level(logging.INFO, logger="models.private"):
        Tap(model).close()
    (line,) = caplog.records
    assert f"layer 'unknown' ({name.split(',')[0]})" in line.getMessage()
    assert "known'" in line.getMessage()
    assert "'known'" not in line.getMessage()
    check(model, value, opacus=False)
    alone = made(build)
    check(alone, value.movedim(1, -1).contiguous().movedim(-1, 1), opacus=False)
    check(alone, value[:1].expand_as(value), opacus=False)


def test_known_layers_leave_nothing_in_the_log(caplog):
    with caplog.at_level(logging.INFO, logger="models.private"):
        for model in (SMALL["cnn"](), SMALL["residual"](), SMALL["lstm"](), SMALL["text"](), tied_language_model()):
            Tap(model).close()
    assert not caplog.records


def test_the_fallback_computes_what_the_layer_computes_now():
    class Mode(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.factor = 3.0

        def forward(self, value):
            return value * self.scale.square() * (self.factor if self.training else 1)

    model, value, factors = nn.Sequential(Mode()), normal(3, 4), normal(3, 4, seed=1)
    tap = Tap(model)

    def squares():
        with tap.recording(3) as recording:
            (model(value) * factors).sum().backward()
        return recording.squares(3, torch.device("cpu"))

    expected = (2 * value * factors).square().sum(1)
    torch.testing.assert_close(squares(), 9 * expected)
    model[0].factor = 5.0
    torch.testing.assert_close(squares(), 25 * expected)
    model.eval()
    torch.testing.assert_close(squares(), expected)
    tap.close()


# What is refused: always a ValueError, never a wrong number


def head(width, model, reads=None):
    def function(m, v):
        found = m.unknown(v) if reads is None else reads(m.unknown, v)
        return m.out(found.flatten(1))

    return Calls(function, unknown=model, out=nn.Linear(width, 3))


def shared_inside():
    model = nn.Sequential(Scale(), nn.Flatten(), nn.Linear(16, 4))
    model.append(model[0].inner)
    return model


def tied_biases():
    lstm = nn.LSTM(4, 3, batch_first=True)
    lstm.bias_hh_l0 = lstm.bias_ih_l0
    return lstm


def with_new_forward():
    layer = nn.Linear(16, 3)
    layer.forward = lambda value: 2 * linear(value, layer.weight, layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def differentiates(model, value):
    value = value.flatten(1).clone().requires_grad_()
    (by_value,) = torch.autograd.grad(torch.tanh(model.fc(value)).sum(), value, create_graph=True)
    return model.out(by_value)


REFUSED = {
    "GRUCell": (lambda: head(3, nn.GRUCell(4, 3), lambda m, v: m(v[:, 0])), "has no per-example gradients. Use nn.GRU"),
    "Bilinear": (
        lambda: head(12, nn.Bilinear(4, 4, 3), lambda m, v: m(v, v)),
        "has no per-example gradients. Use nn.Linear",
    ),
    "random numbers in the fallback": (
        lambda: head(16, nn.Sequential(Dropped())),
        r"layer 'unknown.0' \(Dropped\) has no per-example gradients",
    ),
    "keeps statistics": (lambda: head(16, nn.InstanceNorm1d(4, track_running_stats=True)), "track_running_stats"),
    "trained BatchNorm in eval mode": (lambda: head(16, nn.BatchNorm1d(4)).eval(), "has buffers.*Freeze it"),
    "spectral norm": (
        lambda: nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(16, 3))),
        "Remove the parametrization",
    ),
    "weight used outside": (
        lambda: head(12, nn.Linear(4, 3), lambda m, v: linear(v, m.weight)),
        "'weight' of layer 'unknown' .* is used outside of that layer's own call",
    ),
    "weight used inside and outside": (
        lambda: head(12, nn.Linear(4, 3), lambda m, v: m(v) + linear(v, m.weight)),
        "is used outside of that layer's own call",
    ),
    "forward called": (lambda: head(12, nn.Linear(4, 3), lambda m, v: m.forward(v)), "is used outside of"),
    "input changed": (
        lambda: head(12, nn.Linear(4, 3), lambda m, v: (w := v + 1, m(w), w.mul_(2))[1]),
        "input of layer 'unknown' .* was changed in place",
    ),
    "steps first": (
        lambda: head(12, nn.Linear(4, 3), lambda m, v: m(v.transpose(0, 1)).transpose(0, 1)),
        "layer 'unknown' .* first dimension is 4, not the 3 examples",
    ),
    "steps first in an LSTM": (
        lambda: head(12, nn.LSTM(4, 3), lambda m, v: m(v)[0]),
        "layer 'unknown' .* first dimension is 4, not the 3 examples",
    ),
    "examples flattened": (
        lambda: head(12, nn.Linear(4, 3), lambda m, v: m(v.flatten(0, 1)).unflatten(0, v.shape[:2])),
        "first dimension is 12, not the 3 examples",
    ),
    "one row for all examples": (
        lambda: head(16, nn.Embedding(4, 4), lambda m, v: v + m(torch.arange(4))),
        "first dimension is 4, not the 3 examples",
    ),
    "an output without examples": (
        lambda: head(16, Broadcast(), lambda m, v: v + m(v)),
        "first dimension is 1, not the 3 examples",
    ),
    "a module inside and beside another": (shared_inside, "share a module"),
    "one parameter, two names": (lambda: head(12, tied_biases(), lambda m, v: m(v)[0]), "under two names"),
    "forward replaced": (with_new_forward, "was replaced; write a separate class"),
    "differentiated inside": (
        lambda: Calls(differentiates, fc=nn.Linear(16, 4), out=nn.Linear(16, 3)),
        "do not differentiate inside",
    ),
    "reentrant checkpoint around a shared layer": (
        lambda: Calls(
            lambda m, v: m.fc(checkpoint(lambda w: torch.tanh(m.fc(w)), m.start(v), use_reentrant=True)).flatten(1),
            start=nn.Linear(4, 4),
            fc=nn.Linear(4, 4),
        ),
        "use_reentrant",
    ),
}


class Dropped(Scale):
    def forward(self, value):
        return nn.functional.dropout(super().forward(value))


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.ones(1, 4, 4))

    def forward(self, value):
        return self.position * 1


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
def test_what_has_no_gradients_per_example_is_refused(name):
    build, message = REFUSED[name]
    model = made(build)
    value, labels = normal(5, 4, 4), torch.arange(5) % 3
    with pytest.raises(ValueError, match=message):
        private_gradient(model).step(value, labels)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules() if name != "spectral norm"
    )


@pytest.mark.parametrize("steps", [4, 8])
def test_as_many_steps_as_examples_are_not_taken_for_examples(steps):
    """A batch of as many examples as its first dimension has steps would look right; others of another size do not."""
    model = made(lambda: head(4 * steps, nn.Embedding(steps, 4), lambda m, v: v + m(torch.arange(steps))))
    with pytest.raises(ValueError, match=f"first dimension is {steps}, not the"):
        private_gradient(model).step(normal(30, steps, 4), torch.arange(30) % 3)


NORMALIZED = {
    "affine": lambda: nn.BatchNorm2d(3),
    "frozen": lambda: nn.BatchNorm2d(3).requires_grad_(False),
    "plain": lambda: nn.BatchNorm2d(3, affine=False),
}


def with_batch_norm(name):
    return made(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), NORMALIZED[name](), nn.Flatten(), nn.Linear(3 * 4 * 3, 3)))


@pytest.mark.parametrize("name", NORMALIZED)
def test_batch_norm_in_training_mode_is_refused(name):
    with pytest.raises(ValueError, match="layer '1' is BatchNorm2d, which mixes examples; use GroupNorm instead"):
        Tap(with_batch_norm(name))


@pytest.mark.parametrize("name", ["frozen", "plain"])
def test_frozen_statistics_are_allowed_until_they_thaw(name):
    model = with_batch_norm(name).eval()
    model[1].running_mean.normal_(generator=generator())
    model[1].running_var.uniform_(0.5, 2, generator=generator())
    images = normal(4, 2, 6, 5)
    check(model, images, opacus=False)
    private = private_gradient(model)
    private.step(images, torch.zeros(4, dtype=torch.long))
    model.train()
    with pytest.raises(ValueError, match="layer '1' is BatchNorm2d, which mixes examples"):
        private.step(images, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("change", ["frozen", "released", "replaced"])
def test_parameters_frozen_released_or_replaced_later_are_refused(change):
    """One released later would get its ordinary gradient, neither clipped nor noised."""
    model = made(sequential(partial(nn.Linear, 4, 4), partial(nn.Linear, 4, 3)))
    model[0].requires_grad_(change != "released")
    private = private_gradient(model)
    if change == "replaced":
        model[0] = nn.Linear(4, 4)
    else:
        model[0].requires_grad_(change == "released")
    with pytest.raises(ValueError, match="frozen, released or replaced"):
        private.step(normal(5, 4), torch.zeros(5, dtype=torch.long))
