"""Private gradients: equal to per-example gradients clipped by hand, bounded in sensitivity, honestly noised."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from models.architectures.lomurno_cnn import LomurnoCnn
from models.datasets.base import DatasetInfo
from models.performance import Performance
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise, clip_factors

SHAPE, CLASSES = (1, 8, 8), 4
INFO = DatasetInfo(n_train=1, n_test=1, shape=SHAPE, num_classes=CLASSES, mean=(0.4,), std=(0.3,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cnn(dropout=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = LomurnoCnn(filters=(3, 4, 5), dense_units=6).build(INFO)
    if dropout:
        model.stages.conv2.append(nn.Dropout(0.5))
        model.stages.dense.append(nn.Dropout(0.5))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # the masks are off, and the rest trains: Opacus's hooks are idle in eval mode
    return model


def group_norm():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)
        )


MODELS = {"cnn": cnn, "group_norm": group_norm, "dropout_in_eval": lambda: cnn(dropout=True)}


def batch(count, seed=0):
    images = torch.rand(count, *SHAPE, generator=generator(seed))
    return images, torch.randint(CLASSES, (count,), generator=generator(seed + 1))


def per_example_gradients(model, images, labels):
    """The independent reference: torch.func, one gradient per example, as (examples, all parameters)."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, image, label):
        logits = functional_call(model, (parameters, buffers), (image[None],))
        return cross_entropy(logits, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    return torch.cat([each[name].flatten(1) for name in parameters], 1)


def step_of(model, images, labels, *, clip=1.0, noise=0.0, expected=1.0, seed=0, chunk=512):
    """The gradient of one private step as one vector, with the loss and the number right."""
    rule = ClipThenNoise(max_grad_norm=clip, noise_scale=noise)
    private = PrivateGradient(model, rule, expected, generator(seed), performance=Performance(chunk_size=chunk))
    loss, right = private.step(images, labels)
    private.close()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), loss, right


def relative_error(ours, reference):
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7, 33])
@pytest.mark.parametrize("name", MODELS)
def test_without_noise_it_is_the_sum_of_gradients_clipped_by_hand(name, count):
    model = MODELS[name]()
    images, labels = batch(count)
    gradients = per_example_gradients(model, images, labels)
    norms = gradients.norm(dim=1)
    # Clip norms below, among and above the norms: all are clipped, some are, none is.
    for clip in (0.1 * float(norms.min()), float(norms.median()), 10 * float(norms.max())):
        clipped = gradients * torch.clamp(clip / norms, max=1)[:, None]
        ours, loss, right = step_of(model, images, labels, clip=clip)
        assert relative_error(ours, clipped.sum(0)) < 1e-5
        with torch.no_grad():
            logits = model(images)
        assert float(loss) == pytest.approx(float(cross_entropy(logits, labels, reduction="sum")), rel=1e-5)
        assert int(right) == int((logits.argmax(1) == labels).sum())


@pytest.mark.parametrize("model_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_memory_changes_nothing(model_format, images_format, channels):
    """Opacus 1.6 mixes pixels, and examples, where a convolution's input is channels-last."""
    info = replace(INFO, shape=(channels, 8, 8), mean=(0.4,) * channels, std=(0.3,) * channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = LomurnoCnn(filters=(3, 4, 5), dense_units=6).build(info)
    images = torch.rand(9, channels, 8, 8, generator=generator())
    labels = torch.randint(CLASSES, (9,), generator=generator(1))
    gradients = per_example_gradients(model, images, labels)
    clip = float(gradients.norm(dim=1).median())
    clipped = (gradients * torch.clamp(clip / gradients.norm(dim=1), max=1)[:, None]).sum(0)
    model.to(memory_format=model_format)
    ours, _, _ = step_of(model, images.to(memory_format=images_format), labels, clip=clip)
    assert relative_error(ours, clipped) < 1e-5


def test_a_clip_norm_that_nothing_reaches_gives_the_ordinary_gradient_exactly_weighted():
    model = cnn()
    images, labels = batch(20)
    ours, _, _ = step_of(model, images, labels, clip=1e6, expected=20)
    model.zero_grad()
    cross_entropy(model(images), labels).backward()
    ordinary = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert relative_error(ours, ordinary) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 8, 16, 23, 512])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_size_of_the_chunks_changes_nothing(chunk, noise):
    images, labels = batch(23)
    whole, whole_loss, whole_right = step_of(cnn(), images, labels, clip=0.5, noise=noise, chunk=1000)
    ours, loss, right = step_of(cnn(), images, labels, clip=0.5, noise=noise, chunk=chunk)
    # With noise this also says that it is drawn once per step: another draw per chunk would be far off.
    assert relative_error(ours, whole) < 1e-5
    assert float(loss) == pytest.approx(float(whole_loss), rel=1e-5)
    assert int(right) == int(whole_right)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1e-3, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_no_example_contributes_more_than_the_clip_norm(clip, scale):
    model = cnn()
    with torch.no_grad():
        model.stages.prediction[0].weight.mul_(scale)
    images, labels = batch(12)
    for i in range(len(labels)):
        alone, _, _ = step_of(model, images[i : i + 1], labels[i : i + 1], clip=clip)
        assert float(alone.norm()) <= clip * (1 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.05, 0.7])
def test_removing_one_example_moves_the_sum_by_at_most_the_clip_norm(clip):
    model = cnn()
    images, labels = batch(10)
    whole, _, _ = step_of(model, images, labels, clip=clip)
    moved = []
    for i in range(len(labels)):
        kept = torch.arange(len(labels)) != i
        without, _, _ = step_of(model, images[kept], labels[kept], clip=clip)
        moved.append(float((whole - without).norm()))
    assert max(moved) <= clip * (1 + 1e-4)
    assert max(moved) > 0.5 * clip  # the bound is not idle


def test_an_example_without_gradient_is_no_division_by_zero():
    norms = torch.tensor([0.0, 1e-30, 0.1, 0.3, 0.6, 30.0])
    expected = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.01])
    torch.testing.assert_close(clip_factors(norms, torch.tensor(0.3)), expected)
    assert (clip_factors(norms, torch.tensor(0.3))[:4] == 1).all()
    assert (clip_factors(norms, torch.tensor(0.3)) * norms <= 0.3 * (1 + 1e-6)).all()


# Noise


def test_an_empty_batch_is_a_step_of_noise_alone():
    """Its standard deviation is noise · clip / expected batch; false alarm 1e-6 by the chi-square of n draws."""
    noise, clip, expected = 1.7, 0.4, 25
    images, labels = batch(0)
    drawn, loss, right = step_of(wide(), images, labels, noise=noise, clip=clip, expected=expected, seed=5)
    assert float(loss) == float(right) == 0
    assert_normal(drawn.double().numpy(), noise * clip / expected)


def wide():
    """A model of 52,004 parameters, for the statistics of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 750), nn.ReLU(), nn.Linear(750, CLASSES))


def assert_normal(drawn, std):
    """Mean, variance and shape of independent N(0, std²) draws, each with a false-alarm rate of 1e-6."""
    count = len(drawn)
    mean_z = abs(drawn.mean()) / (std / math.sqrt(count))
    assert mean_z < stats.norm.isf(5e-7)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], count)
    assert low < (drawn**2).sum() / std**2 < high
    assert stats.kstest(drawn / std, "norm").pvalue > 1e-6


@pytest.mark.parametrize(("noise", "clip", "expected", "count"), [(0.5, 2.0, 8.0, 11), (4.0, 0.1, 32.0, 20)])
def test_noise_on_top_of_a_batch_has_the_stated_standard_deviation(noise, clip, expected, count):
    images, labels = batch(count)
    bare, _, _ = step_of(wide(), images, labels, clip=clip, expected=expected)
    noised, _, _ = step_of(wide(), images, labels, clip=clip, expected=expected, noise=noise, seed=3)
    assert_normal((noised - bare).double().numpy(), noise * clip / expected)


def test_noise_differs_from_step_to_step_and_is_uncorrelated():
    model = wide()
    private = PrivateGradient(model, ClipThenNoise(max_grad_norm=1.0, noise_scale=1.0), 1.0, generator(7))
    draws = []
    for _ in range(2):
        private.step(*batch(0))
        draws.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double().numpy())
    private.close()
    # Under independence the correlation of n pairs is N(0, 1/n): false alarm 1e-6.
    assert abs(np.corrcoef(*draws)[0, 1]) * math.sqrt(len(draws[0])) < stats.norm.isf(5e-7)


def test_noise_of_one_parameter_says_nothing_about_that_of_another():
    """Parameters of the same shape, and the same parameter a step later, each drawn anew; false alarm 1e-6 in all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(14)
        model = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, CLASSES))
    private = PrivateGradient(model, ClipThenNoise(max_grad_norm=1.0, noise_scale=1.0), 1.0, generator(7))
    draws = []
    for _ in range(2):
        private.step(*batch(0))
        draws += [layer.weight.grad.flatten().double().numpy() for layer in list(model)[1:4]]
    private.close()
    correlations = np.corrcoef(draws)[np.triu_indices(6, k=1)]
    # Under independence each of the 15 is N(0, 1/n).
    assert abs(correlations).max() * math.sqrt(len(draws[0])) < stats.norm.isf(5e-7 / 15)


def test_noise_comes_from_the_generator_that_was_passed_and_from_nowhere_else():
    images, labels = batch(6)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _, _ = step_of(cnn(), images, labels, noise=1.0, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, _, _ = step_of(cnn(), images, labels, noise=1.0, seed=3)
    assert torch.equal(first, second)
    other, _, _ = step_of(cnn(), images, labels, noise=1.0, seed=4)
    assert not torch.equal(first, other)


def test_without_noise_in_the_rule_nothing_random_is_added():
    images, labels = batch(6)
    first, _, _ = step_of(cnn(), images, labels, noise=0.0, seed=3)
    second, _, _ = step_of(cnn(), images, labels, noise=0.0, seed=4)
    assert torch.equal(first, second)


@pytest.mark.parametrize("drawn", [3, 10, 17])
def test_the_sum_is_divided_by_the_expected_batch_size_and_not_by_the_drawn_one(drawn):
    model = cnn()
    images, labels = batch(drawn)
    undivided, _, _ = step_of(model, images, labels, expected=1.0)
    divided, _, _ = step_of(model, images, labels, expected=10.0)
    torch.testing.assert_close(divided, undivided / 10)


# What is refused, and what is left behind


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.SyncBatchNorm(3)],
    ids=lambda layer: type(layer).__name__,
)
def test_batch_norm_is_refused_with_advice(layer):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), layer, nn.Flatten(), nn.Linear(108, CLASSES))
    with pytest.raises(ValueError, match=r"layer '1' is \w*BatchNorm.*use GroupNorm instead"):
        PrivateGradient(model, ClipThenNoise(max_grad_norm=1.0, noise_scale=1.0), 1.0, generator())


def test_several_steps_do_not_pile_up_and_closing_leaves_an_ordinary_model():
    model = cnn()
    private = PrivateGradient(model, ClipThenNoise(max_grad_norm=1.0, noise_scale=0.0), 1.0, generator())
    images, labels = batch(9)
    private.step(*batch(5, seed=9))
    private.step(images, labels)
    again = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    private.close()
    fresh, _, _ = step_of(cnn(), images, labels)
    assert relative_error(again, fresh) < 1e-6
    assert set(model.state_dict()) == set(cnn().state_dict())
    assert not any(getattr(parameter, "grad_sample", None) is not None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
