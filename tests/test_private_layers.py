"""Per-example gradients of every kind of layer, in every form: equal to references, never below the true norm."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_reference import (
    CONVOLUTION_FORMS,
    FORMS,
    TOLERANCES,
    Calls,
    agrees,
    by_func,
    check,
    check_forms,
    forced,
    frozen,
    generator,
    made,
    normal,
    one_by_one,
    record,
    watched,
)
from torch import nn

from models.private import layers
from models.private.lstm import PrivateLSTM

# Linear


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (70, 4), (3, 5, 4), (0, 4)], ids=str)
@pytest.mark.parametrize("kept", ["weight and bias", "weight", "bias", "no bias"])
@pytest.mark.parametrize("count", [1, 6])
def test_linear_layers_on_rows_sequences_and_grids(shape, kept, count):
    layer = made(lambda: nn.Linear(4, 3, bias=kept != "no bias"))
    if kept in ("weight", "bias"):
        frozen(layer, *({"weight", "bias"} - {kept}))
    if 0 in shape:
        with torch.no_grad():
            coefficients = layer(torch.empty(count, *shape))
        assert not record(layer, torch.empty(count, *shape), coefficients).squares(count, torch.device("cpu")).any()
        return
    check(layer, normal(count, *shape), opacus=kept != "bias")  # Opacus (1.6) takes the weight to be there


@pytest.mark.parametrize("shape", [(1, 4), (9, 4), (3, 5, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_linear_layers_in_every_form(shape, bias, dtype):
    check_forms(made(lambda: nn.Linear(4, 3, bias=bias)), normal(5, *shape), FORMS, dtype)


@pytest.mark.parametrize(("positions", "form"), [(2, "gram"), (200, "kept")])
def test_few_positions_take_the_gram_form_and_many_do_not(positions, form):
    with watched() as ran:
        check(made(lambda: nn.Linear(20, 30)), normal(3, positions, 20))
    assert set(ran) == {form}


# Convolutions

GEOMETRIES = {
    "plain": ((4, 6, 3), {}, (7, 8)),
    "padding": ((4, 6, 3), {"padding": 1}, (6, 5)),
    "padding unlike": ((3, 4, 3), {"padding": (2, 0)}, (5, 6)),
    "padding larger than the kernel": ((2, 3, 2), {"padding": 3}, (3, 4)),
    "stride": ((4, 6, 3), {"stride": 2, "padding": 1}, (9, 9)),
    "stride unlike": ((2, 4, (3, 2)), {"stride": (1, 3)}, (5, 9)),
    "stride leaves pixels over": ((3, 4, 3), {"stride": 3}, (8, 7)),
    "stride skips pixels": ((3, 4, 2), {"stride": 3}, (9, 10)),
    "dilation": ((3, 4, 3), {"dilation": (2, 1), "padding": 1}, (8, 7)),
    "dilation and stride": ((3, 4, 3), {"dilation": 2, "stride": 2, "padding": 2}, (9, 8)),
    "groups": ((4, 6, 3), {"groups": 2, "padding": 1}, (6, 5)),
    "depthwise": ((4, 8, 3), {"groups": 4, "stride": 2}, (7, 7)),
    "pointwise": ((5, 6, 1), {}, (4, 5)),
    "pointwise with stride": ((5, 6, 1), {"stride": 2}, (5, 6)),
    "kernel not square": ((4, 3, (1, 4)), {"padding": (0, 2)}, (3, 9)),
    "kernel as large as the image": ((4, 6, (4, 5)), {}, (4, 5)),
    "one channel": ((1, 5, 5), {}, (9, 9)),
    "many channels": ((40, 16, 3), {"padding": 1}, (3, 3)),
    "one row": ((3, 4, (1, 3)), {}, (1, 8)),
    "valid": ((3, 4, 3), {"padding": "valid"}, (5, 5)),
    "same": ((3, 4, 3), {"padding": "same"}, (5, 6)),
    "same, longer on one side": ((3, 4, (2, 4)), {"padding": "same"}, (5, 6)),
    "same and dilation": ((3, 4, (2, 3)), {"padding": "same", "dilation": (3, 2)}, (6, 7)),
    "reflect": ((3, 4, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (5, 6)),
    "circular": ((3, 4, 3), {"padding": 1, "padding_mode": "circular", "stride": 2}, (6, 7)),
    "replicate": ((3, 4, 3), {"padding": (2, 1), "padding_mode": "replicate"}, (4, 5)),
    "same and circular": ((2, 4, (2, 3)), {"padding": "same", "padding_mode": "circular", "groups": 2}, (5, 6)),
}
UNKNOWN_TO_OPACUS = {name for name, (_, more, _) in GEOMETRIES.items() if "padding_mode" in more}
"""Geometries whose gradients Opacus (1.6) gets wrong: it pads with zeros, whatever the mode."""


def convolution(name, bias=True):
    sizes, more, image = GEOMETRIES[name]
    return made(lambda: nn.Conv2d(*sizes, bias=bias, **more)), normal(4, sizes[0], *image, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_in_every_form(name):
    for bias in (True, False):
        layer, images = convolution(name, bias)
        check(layer, images, opacus=name not in UNKNOWN_TO_OPACUS)
        forms = CONVOLUTION_FORMS if bias else {k: v for k, v in CONVOLUTION_FORMS.items() if "block" not in v}
        check_forms(layer, images, forms)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding", "stride leaves pixels over", "groups", "same and dilation", "circular"])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("image_format", [torch.contiguous_format, torch.channels_last, "moved"], ids=str)
def test_convolutions_read_any_layout_of_memory(name, weight_format, image_format):
    layer, images = convolution(name)
    # Two of them, so that the gradient of the first one's output comes from a convolution, too
    model = nn.Sequential(layer, made(lambda: nn.Conv2d(layer.out_channels, 5, 2), seed=1))
    expected_of = deepcopy(model)
    model.to(memory_format=weight_format)
    if image_format == "moved":
        images = images.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    else:
        images = images.contiguous(memory_format=image_format)
    forms = {key: CONVOLUTION_FORMS[key] for key in CONVOLUTION_FORMS if "blocks" in key}
    check_forms(model, images, forms, reference=expected_of)
    check_forms(model, images, forms, torch.float32, reference=expected_of)


@pytest.mark.parametrize("name", ["plain", "stride leaves pixels over", "groups", "same"])
@pytest.mark.parametrize("left", ["weight", "bias"])
def test_convolutions_with_a_frozen_parameter(name, left):
    layer, images = convolution(name)
    frozen(layer, *({"weight", "bias"} - {left}))
    check(layer, images, opacus=False)


def test_convolutions_of_a_single_example_and_of_images_that_are_all_the_same_memory():
    for name in GEOMETRIES:
        layer, images = convolution(name)
        check(layer, images[:1], opacus=False, dtypes=[torch.float64])
        check(layer, images[:1].expand(3, -1, -1, -1), opacus=False, dtypes=[torch.float64])


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "side", "form"),
    [(64, 64, 3, 4, "gram"), (8, 8, 3, 12, "kept"), (1, 6, 5, 16, "kept"), (250, 250, 5, 16, "discarded")],
)
def test_the_shapes_decide_on_the_form(channels, filters, kernel, side, form):
    layer = made(lambda: nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False))
    images, coefficients = normal(2, channels, side, side), normal(2, filters, side, side, seed=1)
    with watched() as ran:
        recording = record(layer, images, coefficients)
    assert {"gram", "kept", "discarded"} & set(ran) == {form}
    each = by_func(deepcopy(layer).double(), images.double(), coefficients.double())
    agrees(layer, recording, each, 1e-5)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_convolutions_of_any_geometry(data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = data.draw(st.integers(1, 3))
    kernel, dilation, padding = pair(1, 4), pair(1, 3), pair(0, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    image = [low + more for low, more in zip(least, pair(0, 5), strict=True)]
    channels, filters = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    settings_of = {"stride": pair(1, 4), "padding": padding, "dilation": dilation, "groups": groups}
    layer = made(lambda: nn.Conv2d(channels, filters, kernel, **settings_of))
    images = normal(data.draw(st.integers(1, 4)), channels, *image, seed=data.draw(st.integers(0, 9)))
    form = data.draw(st.sampled_from(sorted(CONVOLUTION_FORMS)))
    check_forms(layer, images, {form: CONVOLUTION_FORMS[form]})


TRANSPOSED = {
    "plain": ((4, 3, 3), {}),
    "stride": ((4, 3, 3), {"stride": 2}),
    "padding": ((4, 3, 3), {"stride": 2, "padding": 1}),
    "kernel not square": ((2, 3, (2, 4)), {"stride": (1, 3), "padding": (1, 0)}),
    "output_padding": ((4, 3, 3), {"stride": 2, "output_padding": 1}),
    "output_padding less than padding": ((4, 3, 3), {"stride": 2, "padding": 2, "output_padding": 1}),
    "output_padding like padding": ((4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "output_padding more than padding": ((2, 3, 3), {"stride": 3, "padding": 1, "output_padding": 2}),
    "output_padding of one side": ((2, 3, 3), {"stride": 2, "padding": 1, "output_padding": (0, 1)}),
    "output_padding of a stride": ((2, 3, 3), {"stride": 2, "dilation": 3, "output_padding": 2}),
    "output_padding of a stride, padding": ((2, 3, 3), {"stride": 1, "dilation": 3, "padding": 3, "output_padding": 2}),
    "dilation": ((2, 3, 3), {"dilation": (2, 3), "padding": 2}),
    "groups": ((4, 6, 3), {"groups": 2, "stride": 2, "padding": 1}),
    "depthwise": ((4, 4, 3), {"groups": 4, "dilation": 2}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_in_every_form(name):
    sizes, more = TRANSPOSED[name]
    layer = made(lambda: nn.ConvTranspose2d(*sizes, **more))
    images = normal(3, sizes[0], 4, 5)
    check(layer, images)
    check_forms(layer, images.to(memory_format=torch.channels_last), CONVOLUTION_FORMS)
    check(made(lambda: nn.ConvTranspose2d(*sizes, bias=False, **more)), images, opacus=False)
    check(frozen(layer, "weight"), images, opacus=False)


# Norms and embeddings


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (partial(nn.GroupNorm, 2, 6), (6,)),
        (partial(nn.GroupNorm, 3, 6), (6, 4, 5)),
        (partial(nn.GroupNorm, 6, 6), (6, 7)),
        (partial(nn.GroupNorm, 1, 6, eps=0.1), (6, 3, 3)),
        (partial(nn.LayerNorm, 6), (6,)),
        (partial(nn.LayerNorm, 6), (5, 6)),
        (partial(nn.LayerNorm, (4, 6)), (4, 6)),
        (partial(nn.LayerNorm, (4, 6), eps=0.1), (2, 3, 4, 6)),
        (partial(nn.LayerNorm, 6, bias=False), (3, 6)),
    ],
)
def test_norms_with_scale_and_shift(build, shape):
    layer = made(build)
    for count in (1, 5):
        check(layer, normal(count, *shape), opacus="bias=False" not in repr(build) and layer.bias is not None)
    for name in [name for name, _ in layer.named_parameters()][:2]:
        if layer.bias is not None:
            check(frozen(deepcopy(layer), name), normal(5, *shape), opacus=False)
    if len(shape) == 3:
        check(layer, normal(5, *shape).to(memory_format=torch.channels_last), opacus=False)


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("shape", [(), (1,), (9,), (3, 4)], ids=str)
@pytest.mark.parametrize("block", [2**20, 10])
def test_embeddings_with_repeated_and_padding_tokens(padding_idx, shape, block, monkeypatch):
    monkeypatch.setattr(layers, "_BLOCK_FLOATS", {"cpu": block, "cuda": block})
    layer = made(lambda: nn.Embedding(5, 3, padding_idx=padding_idx))
    for count in (1, 6):
        tokens = torch.randint(4 if count == 1 else 5, (count, *shape), generator=generator(3))
        check(layer, tokens, opacus=padding_idx is None)  # Opacus (1.6) gives padding tokens a gradient


@pytest.mark.parametrize("more", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_embeddings_that_mix_examples_are_refused(more):
    layer = nn.Embedding(5, 3, **more)
    with pytest.raises(ValueError, match="scale_grad_by_freq and max_norm mix examples"):
        record(layer, torch.ones(4, 2, dtype=torch.long), torch.ones(4, 2, 3))


# LSTMs


def outputs_of(what, batch_first):
    """From an LSTM's results, one tensor with examples first."""

    def read(outputs, state):
        outputs = outputs if batch_first else outputs.transpose(0, 1)
        every = {"all": outputs, "last": outputs[:, -1]}
        every |= {"h_n": state[0].transpose(0, 1), "c_n": state[1].transpose(0, 1)}
        chosen = every.values() if what == "everything" else [every[what]]
        return torch.cat([value.flatten(1) for value in chosen], 1)

    return read


def lstm_model(kind, what="everything", *, batch_first=True, starts=False, **more):
    """An LSTM of 4 features and 3 units; with initial states that are layers' outputs, if it `starts`."""
    sizes = {"num_layers": more.get("num_layers", 1) * (2 if more.get("bidirectional") else 1)}
    read = outputs_of(what, batch_first)

    def function(model, value):
        steps = value if batch_first else value.transpose(0, 1)
        if not starts:
            return read(*model.lstm(steps))
        states = model.start(value[:, 0]).view(len(value), 2, sizes["num_layers"], 3).permute(1, 2, 0, 3)
        return read(*model.lstm(steps, (states[0], states[1])))

    starting = {"start": nn.Linear(4, 2 * 3 * sizes["num_layers"])} if starts else {}
    return Calls(function, lstm=kind(4, 3, batch_first=batch_first, **more), **starting)


LSTMS = [
    {},
    {"bias": False},
    {"batch_first": False},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": False},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"starts": True},
    {"starts": True, "num_layers": 2, "bidirectional": True, "batch_first": False},
]


def with_states_of(model, kind, *args, **more):
    other = lstm_model(kind, *args, **more)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("more", LSTMS, ids=str)
def test_lstms_with_every_use_of_what_they_give(more):
    for what in ("all", "last", "h_n", "c_n", "everything"):
        reference = made(lambda w=what: lstm_model(nn.LSTM, w, **more))
        private = with_states_of(reference, PrivateLSTM, what, **more)
        check(private, normal(3, 5, 4), each=one_by_one, opacus=False, reference=reference)
        check(reference, normal(3, 5, 4), each=one_by_one, opacus=False, dtypes=[torch.float32])


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("count", [1, 4])
def test_lstms_on_short_and_long_sequences_in_every_form(steps, count):
    reference = made(lambda: lstm_model(nn.LSTM, num_layers=2))
    check_forms(reference, normal(count, steps, 4), FORMS, each=one_by_one)
    check_forms(reference, normal(count, steps, 4), FORMS, torch.float32, each=one_by_one)


@pytest.mark.parametrize(
    "names",
    [
        ["weight_ih_l0"],
        ["weight_hh_l0", "bias_hh_l1"],
        ["weight_ih_l1", "weight_hh_l1"],
        ["bias_ih_l0", "bias_hh_l0"],
        ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"],
        ["weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"],
    ],
    ids=str,
)
def test_lstms_with_frozen_parameters(names):
    model = made(lambda: lstm_model(nn.LSTM, num_layers=2))
    behind = Calls(lambda self, value: self.rest(self.first(value)), first=made(lambda: nn.Linear(4, 4)), rest=model)
    for whole, prefix in ((model, "lstm."), (behind, "rest.lstm.")):
        check(frozen(whole, *(prefix + name for name in names)), normal(3, 5, 4), each=one_by_one, opacus=False)


def test_lstms_take_their_arguments_by_name():
    def function(model, value):
        state = value.new_ones(1, len(value), 3)
        return model.lstm(input=value, hx=(state, state))[0]

    check(
        Calls(function, lstm=made(lambda: nn.LSTM(4, 3, batch_first=True))),
        normal(3, 5, 4),
        each=one_by_one,
        opacus=False,
    )


@pytest.mark.parametrize("more", LSTMS, ids=str)
@pytest.mark.parametrize("steps", [1, 6])
def test_private_lstm_is_nn_lstm(more, steps):
    """Outputs, states, and the gradients of inputs, states and weights."""
    more = dict(more)
    starts = more.pop("starts", False)
    reference = made(lambda: nn.LSTM(4, 3, **more)).double()
    private = PrivateLSTM(4, 3, **more).double()
    private.load_state_dict(reference.state_dict())
    shape = (2, steps, 4) if reference.batch_first else (steps, 2, 4)
    number = reference.num_layers * (2 if reference.bidirectional else 1)
    found = []
    for layer in (reference, private):
        value = normal(*shape).double().requires_grad_()
        state = [normal(number, 2, 3, seed=seed).double().requires_grad_() for seed in (1, 2)] if starts else []
        outputs, (hidden, cell) = layer(value, tuple(state)) if starts else layer(value)
        results = [outputs, hidden, cell]
        loss = sum((result * normal(*result.shape, seed=7)).sum() for result in results)
        wanted = [value, *state, *layer.parameters()]
        found.append([*results, *torch.autograd.grad(loss, wanted)])
    for theirs, ours in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_states_of_private_lstm_and_nn_lstm_load_into_each_other_unchanged():
    more = {"num_layers": 2, "bidirectional": True}
    private, plain = PrivateLSTM(4, 3, **more), nn.LSTM(4, 3, **more)
    there, back = nn.LSTM(4, 3, **more), PrivateLSTM(4, 3, **more)
    there.load_state_dict(private.state_dict())
    back.load_state_dict(plain.state_dict())
    for one, other in ((private, there), (plain, back)):
        assert list(one.state_dict()) == list(other.state_dict())
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "value", "message"),
    [
        (PrivateLSTM(4, 3, proj_size=2), torch.ones(2, 5, 4), "proj_size is 2"),
        (PrivateLSTM(4, 3), torch.ones(5, 4), "three dimensions"),
        (PrivateLSTM(4, 3), nn.utils.rnn.pack_sequence([torch.ones(5, 4)]), "not a packed sequence"),
    ],
    ids=["proj_size", "unbatched", "packed"],
)
def test_private_lstm_says_what_it_does_not_do(layer, value, message):
    with pytest.raises(ValueError, match=message):
        layer(value)


@pytest.mark.parametrize("kind", [nn.LSTM, PrivateLSTM])
def test_second_derivatives_of_private_lstm_are_no_wrong_number(kind):
    layer = made(lambda: kind(4, 3)).double()
    value = normal(5, 2, 4).double().requires_grad_()
    try:
        (first,) = torch.autograd.grad(layer(value)[0].square().sum(), value, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), value)
    except RuntimeError:
        assert kind is PrivateLSTM
    else:
        step = 1e-6 * normal(5, 2, 4, seed=1).double()
        sides = []
        for moved in (value + step, value - step):
            moved = moved.detach().requires_grad_()
            (by_value,) = torch.autograd.grad(layer(moved)[0].square().sum(), moved)
            sides.append(float(by_value.square().sum()))
        assert float((second * step).sum()) == pytest.approx((sides[0] - sides[1]) / 2, rel=1e-4)


# The Gram form where positions nearly cancel


def without_mean(value, dims):
    return value - value.mean(dims, keepdim=True)


CANCELLING = {
    "convolution": (partial(nn.Conv2d, 3, 4, 3, padding=1), (3, 8, 8), (2, 3)),
    "convolution without padding": (partial(nn.Conv2d, 3, 4, 3, bias=False), (3, 9, 8), (2, 3)),
    "grouped": (partial(nn.Conv2d, 4, 4, 3, groups=2), (4, 9, 8), (2, 3)),
    "pointwise": (partial(nn.Conv2d, 8, 4, 1), (8, 9, 8), (2, 3)),
    "linear": (partial(nn.Linear, 30, 20), (50, 30), (1,)),
    "linear without bias": (partial(nn.Linear, 30, 20, bias=False), (300, 30), (1,)),
    "long": (partial(nn.Linear, 500, 400), (20, 500), (1,)),
}
GRAM_FORMS = {name: form for name, form in CONVOLUTION_FORMS.items() if form["gram"] and "block" not in form}


@pytest.mark.slow
@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4, 1e-7, 0.0])
def test_norms_of_gram_form_are_never_below_the_truth(name, form, noise):
    build, shape, dims = CANCELLING[name]
    layer = made(build)
    value = 1 + noise * normal(40, *shape, seed=3)
    with torch.no_grad():
        coefficients = without_mean(normal(*layer(value).shape, seed=4), dims)
    with forced(**GRAM_FORMS[form]):
        ours = record(layer, value, coefficients).squares(40, torch.device("cpu")).double()
    expected = by_func(deepcopy(layer).double(), value.double(), coefficients.double())
    truth = sum(samples.flatten(1).square().sum(1) for samples in expected.values())
    assert (ours.sqrt() >= truth.sqrt() * (1 - 1e-4)).all()
    # What is added stays what rounding could have taken: a few units in the last place of (Σ ‖gₜ‖ ‖uₜ‖)².
    by_position = coefficients.norm(dim=-1 if len(shape) == 2 else 1).flatten(1).sum(1)
    patch = (layer.weight[0].numel() * getattr(layer, "groups", 1)) * float(value.abs().max()) ** 2 + 1
    largest = by_position.double().square() * patch
    assert (ours - truth <= 8 * torch.finfo(torch.float32).eps * largest + 1e-4 * truth).all()


@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("name", CANCELLING)
def test_norms_of_gram_form_are_exact_in_ordinary_cases(name, form):
    build, shape, _ = CANCELLING[name]
    layer = made(build)
    check_forms(layer, normal(20, *shape, seed=3), {form: GRAM_FORMS[form]}, torch.float32)


@pytest.mark.parametrize("features", [4096, 65_536])
def test_norms_of_long_vectors_that_point_alike_are_never_below_the_truth(features):
    """Whatever form the shapes decide on: rounding of the Gram form grows with the vectors' length."""
    layer = made(lambda: nn.Linear(features, 4, bias=False))
    coefficients = without_mean(normal(20, 2, 4, seed=4), (1,))
    for offset in (0.1, 1):
        for noise in (0.01, 0.001):
            value = offset * (1 + noise * normal(20, 2, features, seed=3))
            ours = record(layer, value, coefficients).squares(20, torch.device("cpu")).double().sqrt()
            each = by_func(deepcopy(layer).double(), value.double(), coefficients.double())
            truth = each["weight"].flatten(1).norm(dim=1)
            terms = (coefficients.norm(dim=2) * value.norm(dim=2)).sum(1)
            assert (ours >= truth * (1 - 1e-4) - 4 * torch.finfo(torch.float32).eps * terms).all()


def test_embeddings_whose_gradients_cancel_are_never_below_the_truth():
    layer = made(lambda: nn.Embedding(3, 8))
    tokens = torch.zeros(30, 40, dtype=torch.long)
    coefficients = without_mean(normal(30, 40, 8), (1,)) + 1e-6 * normal(30, 40, 8, seed=1)
    ours = record(layer, tokens, coefficients).squares(30, torch.device("cpu")).double().sqrt()
    truth = by_func(deepcopy(layer).double(), tokens, coefficients.double())["weight"].flatten(1).norm(dim=1)
    assert (ours >= truth * (1 - 1e-4)).all()
