"""Several augmentations of each example: gradients are averaged before they are clipped, and count as one example's."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from private_reference import (
    CONVOLUTION_FORMS,
    FORMS,
    SMALL,
    Calls,
    distance,
    forced,
    frozen,
    generator,
    made,
    normal,
)
from torch import nn
from torch.nn.functional import cross_entropy
from training_fixture import fit_on, numbered, weights

from models.architectures.lin_cnn import LinCnn
from models.architectures.lin_lstm import LinLstm
from models.architectures.logistic_regression import LogisticRegression
from models.architectures.lomurno_cnn import LomurnoCnn
from models.architectures.mlp import Mlp
from models.architectures.resnet18 import ResNet18
from models.augmentation import CropAndFlip, views_of
from models.datasets.base import DatasetInfo
from models.datasets.digits import Digits
from models.defenses.augmentation import Augmentation
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.mixup import Mixup
from models.defenses.noise_then_clip import NoiseThenClipDefense
from models.defenses.noised_quantile import NoisedQuantileDefense
from models.defenses.quantile_clipping import QuantileClippingDefense
from models.gradient import PlainGradient
from models.performance import Performance
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise, NoisedQuantile, NoiseThenClip, QuantileClipping
from models.private.tap import Tap
from models.train import Training
from sweeper.results import checkpoints
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from tests.test_private_layers import GEOMETRIES, convolution
from tests.test_private_rerouted import attention, recurrent

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return Digits(max_train_examples=240, max_test_examples=60).load(None)


# Layers, in every form


def one_by_one(model, value, coefficients):
    """Each example's gradients (n, *shape) of Σ coefficients · outputs over its views, by one ordinary backward pass each."""
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    each = []
    for views, factors in zip(value, coefficients, strict=True):
        loss = (model(views) * factors).sum()
        each.append(torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True))
    return dict(zip(parameters, map(torch.stack, zip(*each, strict=True)), strict=True))


def check(model, value, forms=None, tolerance=1e-10):
    """Norms, weighted sums and the gradients themselves of examples whose views are `value` (n, views, ...), in float64."""
    model = deepcopy(model).double()
    value = value.double() if value.is_floating_point() else value
    count, views = value.shape[:2]
    with torch.no_grad():
        coefficients = normal(*model(value.flatten(0, 1)).shape, seed=5).double().unflatten(0, (count, views))
    expected = one_by_one(deepcopy(model), value, coefficients)
    squares = sum(each.flatten(1).square().sum(1) for each in expected.values())
    factors = torch.linspace(0.2, 1.3, count, dtype=torch.float64)
    for choices in forms or [None]:
        tap = Tap(model)
        with forced(**choices) if choices else nullcontext():
            with tap.recording(count, views) as recording:
                (model(value.flatten(0, 1)) * coefficients.flatten(0, 1)).sum().backward()
            norms, sums, samples = recording.squares(count, CPU), recording.weighted_sums(factors), recording.samples()
            by_layer = recording.layer_squares(count, CPU)
        tap.close()
        torch.testing.assert_close(norms.sqrt(), squares.sqrt(), rtol=tolerance, atol=0)
        torch.testing.assert_close(by_layer.sum(1).double(), squares, rtol=1e-5, atol=0)
        for name, parameter in model.named_parameters():
            if name in expected and parameter in sums:
                weighted = (factors @ expected[name].flatten(1)).view_as(parameter)
                assert distance(sums[parameter], weighted) < tolerance, (name, choices)
                assert distance(samples[parameter], expected[name]) < tolerance, (name, choices)
            elif name in expected:
                assert not expected[name].any()


def lstm(**more):
    first = more.get("batch_first", True)

    def function(m, v):
        outputs = m.layer(v if first else v.transpose(0, 1))[0]
        return outputs if first else outputs.transpose(0, 1)

    return made(lambda: Calls(function, layer=nn.LSTM(4, 3, **{"batch_first": True} | more)))


def text(**more):
    return made(lambda: Calls(lambda m, v: m.embed((v * 3).long() % 7), embed=nn.Embedding(7, 4, **more)))


def twice():
    """A layer that is used twice, so that its gradient is a sum over calls and views."""
    return made(lambda: Calls(lambda m, v: m.layer(torch.tanh(m.layer(v))), layer=nn.Conv2d(3, 3, 3, padding=1)))


LAYERS = {
    "linear": (lambda: made(lambda: nn.Linear(4, 3)), (4,)),
    "linear without bias": (lambda: made(lambda: nn.Linear(4, 3, bias=False)), (4,)),
    "only the bias of linear": (lambda: frozen(made(lambda: nn.Linear(4, 3)), "weight"), (4,)),
    "linear on a sequence": (lambda: made(lambda: nn.Linear(4, 3)), (5, 4)),
    "linear on a grid": (lambda: made(lambda: nn.Linear(4, 3)), (2, 3, 4)),
    "group norm": (lambda: made(lambda: nn.GroupNorm(2, 4)), (4, 5, 3)),
    "layer norm": (lambda: made(lambda: nn.LayerNorm(4)), (4,)),
    "layer norm on a sequence": (lambda: made(lambda: nn.LayerNorm(4)), (5, 4)),
    "embedding": (text, (6,)),
    "embedding with padding": (lambda: text(padding_idx=2), (6,)),
    "transposed convolution": (
        lambda: made(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)),
        (4, 5, 3),
    ),
    "transposed convolution in groups": (lambda: made(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2)), (4, 5, 3)),
    "only the bias of a convolution": (lambda: frozen(made(lambda: nn.Conv2d(4, 3, 3)), "weight"), (4, 5, 3)),
    "used twice": (twice, (3, 5, 4)),
    "by opacus: convolution of a sequence": (lambda: made(lambda: nn.Conv1d(4, 3, 3)), (4, 7)),
    "by opacus: instance norm": (lambda: made(lambda: nn.InstanceNorm2d(4, affine=True)), (4, 5, 3)),
    "by opacus: slopes": (lambda: made(lambda: nn.PReLU(4)), (4, 5)),
    "lstm": (lstm, (5, 4)),
    "lstm of layers in two directions": (lambda: lstm(num_layers=2, bidirectional=True, batch_first=False), (5, 4)),
    "only the biases of lstm": (lambda: frozen(lstm(), "layer.weight_ih_l0", "layer.weight_hh_l0"), (5, 4)),
    "lstm without bias": (lambda: lstm(bias=False), (5, 4)),
    "gru": (lambda: recurrent("GRU", num_layers=2, bidirectional=True), (5, 4)),
    "gru, time first": (lambda: recurrent("GRU", batch_first=False), (5, 4)),
    "rnn": (lambda: recurrent("tanh"), (5, 4)),
    "attention": (attention, (5, 4)),
    "attention, time first": (lambda: attention(batch_first=False), (5, 4)),
    "attention across": (lambda: attention("cross", kdim=3, vdim=4), (5, 4)),
}


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_an_examples_gradient_is_the_sum_over_its_views_whatever_the_layer(name, views):
    build, shape = LAYERS[name]
    check(build(), normal(3, views, *shape))
    check(build(), normal(1, views, *shape))


@pytest.mark.parametrize(
    "name", ["linear", "linear on a sequence", "lstm", "lstm without bias", "gru", "attention", "used twice"]
)
def test_layers_in_every_form(name):
    build, shape = LAYERS[name]
    check(build(), normal(4, 3, *shape), FORMS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_in_every_form(name):
    layer, images = convolution(name)
    size = images.shape[1:]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        value = normal(12, *size, seed=2).contiguous(memory_format=memory_format).unflatten(0, (4, 3))
        check(layer, value, CONVOLUTION_FORMS.values())


@pytest.mark.parametrize("name", ["transposed convolution", "transposed convolution in groups"])
def test_transposed_convolutions_in_every_form(name):
    build, shape = LAYERS[name]
    check(build(), normal(4, 3, *shape), CONVOLUTION_FORMS.values())


@pytest.mark.parametrize("name", ["cnn", "lstm", "text"])
def test_views_that_cancel_have_a_norm_that_is_not_too_small(name):
    """Gradients of opposite sign, in float32: the Gram form's rounding error may enlarge a norm, never shrink it."""
    model = SMALL[name]()
    value = normal(6, 1, 2, 8, 8).expand(-1, 2, -1, -1, -1)
    value = value + 1e-4 * normal(6, 2, 2, 8, 8, seed=1)
    coefficients = normal(6, 1, 3, seed=2) * torch.tensor([1.0, -1.0])[:, None]
    for choices in FORMS.values():
        tap = Tap(model)
        with forced(**choices):
            with tap.recording(6, 2) as recording:
                (model(value.flatten(0, 1)) * coefficients.flatten(0, 1)).sum().backward()
            samples = recording.samples().values()
        tap.close()
        added = sum(each.double().flatten(1).square().sum(1) for each in samples).sqrt()
        assert (recording.squares(6, CPU).double().sqrt() >= (1 - 2e-4) * added).all()


# Steps


def gradients_of(model, inputs, labels):
    """(n, parameters): for each example, plain autograd of the mean cross-entropy of its views."""
    each = []
    for views, label in zip(inputs, labels, strict=True):
        loss = cross_entropy(model(views), label.expand(len(views)))
        each.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(each).double()  # float32 is too coarse for norms of millions of values


def stepped(model, rule, inputs, labels, *, expected=1.0, seed=0, **performance):
    views = inputs.shape[1]
    private = PrivateGradient(
        model, rule, expected, generator(seed), views=views, performance=Performance(**performance)
    )
    loss, right = private.step(inputs if views > 1 else inputs[:, 0], labels)
    private.close()
    return torch.cat([each.grad.flatten() for each in model.parameters()]), float(loss), float(right), private


SHAPE = (3, 16, 16)
INFO = DatasetInfo(n_train=1, n_test=1, shape=SHAPE, num_classes=5, mean=(0.5,) * 3, std=(0.3,) * 3)
ARCHITECTURES = {
    "lin_cnn": LinCnn(),
    "lin_lstm": LinLstm(),
    "lomurno_cnn": LomurnoCnn(filters=(4, 6, 8), dense_units=7),
    "resnet18": ResNet18(),
    "mlp": Mlp(),
    "logistic_regression": LogisticRegression(),
}


def architecture(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = ARCHITECTURES[name].build(INFO).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return model


def batch(count, views, shape=SHAPE, classes=5):
    return torch.rand(count, views, *shape, generator=generator(1)), torch.arange(count) % classes


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_clips_the_averaged_gradient_of_every_architecture(name):
    model = architecture(name)
    inputs, labels = batch(3, 3)
    gradients = gradients_of(deepcopy(model), inputs, labels)
    norms = gradients.norm(dim=1)
    with torch.no_grad():
        logits = model(inputs.flatten(0, 1))
    repeated = labels.repeat_interleave(3)
    for clip in (0.5 * float(norms.min()), float(norms.median()), 2 * float(norms.max())):
        rule = ClipThenNoise(max_grad_norm=clip, noise_scale=0.0)
        ours, loss, right, private = stepped(deepcopy(model), rule, inputs, labels)
        clipped = gradients * torch.clamp(clip / norms, max=1)[:, None]
        assert distance(ours, clipped.sum(0)) < 2e-5
        assert loss == pytest.approx(float(cross_entropy(logits, repeated, reduction="sum")) / 3, rel=1e-5)
        assert right == pytest.approx(float((logits.argmax(1) == repeated).sum()) / 3)
        assert abs(float(private.n_within) - float((norms <= clip).sum())) <= (clip == float(norms.median()))
    layered = stepped(model, QuantileClipping(noise_scale=0.0, quantile=0.5), inputs, labels)
    assert float(layered[3].clip_norms) == pytest.approx(float(norms.median()), rel=1e-5)


RULES = {
    "clip, then noise": ClipThenNoise(max_grad_norm=0.3, noise_scale=0.5),
    "noise, then clip": NoiseThenClip(max_grad_norm=0.3, noise_scale=0.01, form="two_scalar"),
    "literally": NoiseThenClip(max_grad_norm=0.3, noise_scale=0.01, form="literal"),
    "quantile": QuantileClipping(noise_scale=0.5, quantile=0.4),
    "quantile of each layer": QuantileClipping(noise_scale=0.5, quantile=0.4, layers="per_layer"),
    "noised quantile": NoisedQuantile(
        noise_scale=0.5, initial=0.3, quantile=0.5, learning_rate=0.2, count_noise_std=1.0
    ),
}


@pytest.mark.parametrize("performance", [{}, {"chunk_size": 4}, {"chunk_size": 3, "pad_to": 2}], ids=str)
@pytest.mark.parametrize("name", ["cnn", "lstm", "text"])
@pytest.mark.parametrize("rule", RULES)
def test_copies_as_views_change_no_rule(rule, name, performance):
    """The mean over equal views is the example's own gradient: noise, clip norms and counts are those without views."""
    model, copied = SMALL[name](), SMALL[name]()
    inputs, labels = batch(9, 1, (2, 8, 8), 3)
    with forced(gram=False, keep=True):
        one, loss, right, before = stepped(model, RULES[rule], inputs[:, 0:1], labels, expected=8.0, **performance)
        many, *others, after = stepped(
            copied, RULES[rule], inputs.expand(-1, 4, -1, -1, -1), labels, expected=8.0, **performance
        )
    assert distance(many, one) < 1e-5
    assert others == pytest.approx([loss, right], rel=1e-5)
    torch.testing.assert_close(after.clip_norms, before.clip_norms, rtol=1e-5, atol=0)
    assert float(after.n_within) == float(before.n_within)


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch_is_noise_alone(rule):
    shape = (2, 8, 8)
    one = stepped(SMALL["cnn"](), RULES[rule], *batch(0, 1, shape), expected=8.0)
    many = stepped(SMALL["cnn"](), RULES[rule], *batch(0, 4, shape), expected=8.0)
    assert torch.equal(one[0], many[0])
    assert many[1:3] == (0.0, 0.0)


@pytest.mark.slow
def test_chunks_and_padding_change_rounding_only():
    inputs, labels = batch(13, 3, (2, 8, 8), 3)
    rule = ClipThenNoise(max_grad_norm=0.3, noise_scale=0.5)
    whole, loss, right, _ = stepped(SMALL["residual"](), rule, inputs, labels)
    for performance in ({"chunk_size": 1}, {"chunk_size": 5}, {"chunk_size": 6, "pad_to": 4}, {"chunk_bytes": 1}):
        ours, *others, _ = stepped(SMALL["residual"](), rule, inputs, labels, **performance)
        assert distance(ours, whole) < 1e-5
        assert others == pytest.approx([loss, right], rel=1e-5)


@pytest.mark.parametrize("expected", [None, 6.0])
def test_the_ordinary_gradient_is_that_of_the_mean_over_views(expected):
    model = SMALL["cnn"]()
    inputs, labels = batch(7, 3, (2, 8, 8), 3)
    gradients = gradients_of(deepcopy(model), inputs, labels).sum(0) / (expected or 7)
    loss, right = PlainGradient(model, expected, views=3).step(inputs, labels)
    assert distance(torch.cat([each.grad.flatten() for each in model.parameters()]), gradients) < 1e-5
    with torch.no_grad():
        logits = model(inputs.flatten(0, 1)).unflatten(0, (7, 3))
    by_view = [cross_entropy(logits[:, view], labels, reduction="sum") for view in range(3)]
    assert float(loss) == pytest.approx(float(sum(by_view)) / 3, rel=1e-5)
    assert float(right) == pytest.approx(float((logits.argmax(2) == labels[:, None]).sum()) / 3)
    empty = PlainGradient(model, 6.0, views=3).step(*batch(0, 3, (2, 8, 8), 3))
    assert [float(each) for each in empty] == [0, 0]
    assert not any(each.grad.any() for each in model.parameters())


# Trainings


def test_views_are_independent_augmentations_of_their_own_example():
    data = numbered(40)
    images = data.inputs[torch.arange(30)]
    images[:, 0, 3, 5] = torch.arange(100, 130, dtype=torch.uint8)
    views = views_of(images, CropAndFlip(padding=3), 6, generator(3))
    assert views.shape == (30, 6, *images.shape[1:])
    assert torch.equal(views.flatten(0, 1), CropAndFlip(padding=3)(images.repeat_interleave(6, 0), generator(3)))
    assert ((views == images[:, None, :, 3:4, 5:6]).flatten(2).any(2)).float().mean() > 0.5
    differ = [not torch.equal(a, b) for each in views for a, b in pairwise(each)]
    assert sum(differ) > 0.9 * len(differ)
    assert torch.equal(views_of(images, CropAndFlip(), 1, generator(3)), CropAndFlip()(images, generator(3)))


TRAININGS = {
    "plain": (Augmentation(), Mixup(), Dropout(rate=0.3)),
    "dp_sgd": (Augmentation(), DpSgd(noise_multiplier=1.0, accountant="rdp")),
    "noise_then_clip": (Augmentation(), NoiseThenClipDefense(noise_scale=0.1)),
    "quantile": (Augmentation(), QuantileClippingDefense(noise_scale=0.1, layers="per_layer")),
    "noised_quantile": (Augmentation(), NoisedQuantileDefense(noise_multiplier=1.0, accountant="rdp")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_resumes_to_the_same_weights(digits, name):
    settings = {"epochs": 4, "batch_size": 60, "augmentation_multiplicity": 3, "members": np.arange(120)}
    taken = []
    whole = fit_on(
        digits, *TRAININGS[name], on_checkpoint=lambda each: taken.append(checkpoints.to_bytes(each, {})), **settings
    )
    resumed = fit_on(digits, *TRAININGS[name], resume=checkpoints.from_bytes(taken[1], {}, CPU), **settings)
    assert torch.equal(weights(whole), weights(resumed))
    assert [each.train_loss for each in whole.history] == [each.train_loss for each in resumed.history]
    assert not torch.equal(
        weights(whole), weights(fit_on(digits, *TRAININGS[name], **settings | {"augmentation_multiplicity": 1}))
    )


def test_poisson_batches_of_which_some_are_empty_train_and_the_guarantee_stays(digits):
    settings = {"epochs": 2, "batch_size": 1, "members": np.arange(12), "augmentation": "crop_flip"}
    defense = DpSgd(noise_multiplier=1.0, accountant="rdp")
    many = fit_on(digits, defense, augmentation_multiplicity=3, **settings)
    assert many.guarantee == fit_on(digits, defense, **settings).guarantee
    assert all(0 <= each.train_accuracy <= 1 for each in many.history)
    assert weights(many).isfinite().all()


def test_the_identity_of_a_training_without_multiplicity_is_what_it_was():
    trial = expand(load_sweep("demo"))[0]
    assert "augmentation_multiplicity" not in trial.config["training"]
    training = replace(trial.training, augmentation="crop_flip", augmentation_multiplicity=4)
    assert replace(trial, training=training).config["training"]["augmentation_multiplicity"] == 4


def test_views_without_an_augmentation_are_refused(digits):
    with pytest.raises(ValueError, match="augmentation_multiplicity is 4, but nothing augments the examples"):
        fit_on(digits, augmentation_multiplicity=4)
    with pytest.raises(ValueError, match="with a padding of 0 and no flip all views of an example would be the same"):
        fit_on(digits, Augmentation(padding=0, flip=False), augmentation_multiplicity=4)
    with pytest.raises(ValueError, match="augmentation_multiplicity is 0; it must be at least 1"):
        Training(augmentation_multiplicity=0)
