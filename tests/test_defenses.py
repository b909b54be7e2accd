"""Architectures and defenses: the staged network, what each defense edits, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from models.architectures.lomurno_cnn import LomurnoCnn
from models.datasets.base import DatasetInfo
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.l2 import L2
from models.defenses.none import NoDefense
from models.plan import TrainingPlan
from models.private.accounting import epsilon
from models.private.rules import ClipThenNoise
from models.train import Training, build_model, make_plan

CUTS = ("conv1", "maxpool1", "conv2", "maxpool2", "conv3", "maxpool3", "dense", "prediction")
SMALL = LomurnoCnn(filters=(4, 5, 6), dense_units=7)


def info_of(shape, num_classes=10):
    channels = shape[0]
    return DatasetInfo(
        n_train=1, n_test=1, shape=shape, num_classes=num_classes, mean=(0.4,) * channels, std=(0.3,) * channels
    )


def small_model(*defenses, seed=0):
    return build_model(SMALL, defenses, info_of((1, 8, 8)), seed)


def plan_of(*defenses, n_train=1000, **training):
    return make_plan(Training(**{"epochs": 2, "batch_size": 50} | training), defenses, small_model(*defenses), n_train)


def images_of(shape, count=3):
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# The architecture


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 9, 15)])
def test_every_cut_has_its_name_and_shape_and_the_last_is_the_output(shape):
    model = build_model(SMALL, (), info_of(shape, num_classes=3), 0).eval()
    images = images_of(shape)
    _, height, width = shape
    expected = {"dense": (7,), "prediction": (3,)}
    for number, filters in enumerate((4, 5, 6)):
        expected[f"conv{number + 1}"] = (filters, height >> number, width >> number)
        expected[f"maxpool{number + 1}"] = (filters, height >> (number + 1), width >> (number + 1))
    assert model.stage_names == CUTS
    with torch.no_grad():
        for cut in CUTS:
            assert tuple(model.activations(images, cut).shape) == (3, *expected[cut])
        assert torch.equal(model.activations(images, "prediction"), model(images))
        assert (model.activations(images, "dense") >= 0).all()
        assert (model(images) < 0).any()  # logits: nothing comes after the prediction


def test_activations_are_those_of_eval_mode_under_dropout_too():
    model = small_model(Dropout(rate=0.5)).eval()
    images = images_of((1, 8, 8), 20)
    with torch.no_grad():
        for cut in CUTS:
            assert torch.equal(model.activations(images, cut), model.activations(images, cut))
            assert torch.equal(model.activations(images, cut), small_model().eval().activations(images, cut))
        assert torch.equal(model.activations(images, "prediction"), model(images))


def test_an_unknown_cut_is_named_with_those_there_are():
    with pytest.raises(KeyError, match="no cut point 'conv9'; there are conv1, maxpool1"):
        small_model().activations(images_of((1, 8, 8)), "conv9")


@pytest.mark.parametrize("shape", [(1, 7, 8), (3, 32, 7), (1, 1, 1), (1, 4, 4)])
def test_images_too_small_to_pool_three_times_are_refused(shape):
    with pytest.raises(ValueError, match=f"at least 8x8, got {shape[2]}x{shape[1]}"):
        SMALL.build(info_of(shape))


@pytest.mark.parametrize("sizes", [{"filters": (0, 4, 4)}, {"filters": (4, 4, -1)}, {"dense_units": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        LomurnoCnn(**sizes)


def test_bytes_and_floats_of_the_same_image_give_the_same_logits_and_normalization_is_inside():
    model = small_model().eval()
    images = images_of((1, 8, 8), 5)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images.double().div(255).float()))
        torch.testing.assert_close(model.normalize(images), (images.float() / 255 - 0.4) / 0.3)


def test_initialization_is_that_of_keras_and_depends_on_its_seed_alone():
    model = build_model(LomurnoCnn(), (), info_of((3, 32, 32)), 5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            area = module.weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            limit = (6 / (area * (module.weight.shape[0] + module.weight.shape[1]))) ** 0.5
            assert (module.bias == 0).all()
            assert float(module.weight.detach().abs().max()) <= limit * (1 + 1e-6)
            assert float(module.weight.detach().abs().max()) > 0.97 * limit
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again, other = (build_model(LomurnoCnn(), (), info_of((3, 32, 32)), seed) for seed in (5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(model.stages.conv1[0].weight, other.stages.conv1[0].weight)


# Dropout


def test_dropout_is_after_each_convolution_and_around_the_first_dense_layer_and_nowhere_else():
    model = small_model(Dropout(rate=0.3))
    layers = {name: [type(layer).__name__ for layer in stage] for name, stage in model.stages.named_children()}
    assert layers == {
        "conv1": ["Conv2d", "ReLU", "Dropout"],
        "maxpool1": ["MaxPool2d"],
        "conv2": ["Conv2d", "ReLU", "Dropout"],
        "maxpool2": ["MaxPool2d"],
        "conv3": ["Conv2d", "ReLU", "Dropout"],
        "maxpool3": ["MaxPool2d"],
        "dense": ["Flatten", "Dropout", "Linear", "ReLU", "Dropout"],
        "prediction": ["Linear"],
    }
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.3}


def test_dropout_leaves_the_initial_weights_and_acts_in_training_only():
    plain, dropped = small_model(), small_model(Dropout(rate=0.5))
    for mine, theirs in zip(dropped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    images = images_of((1, 8, 8))
    with torch.random.fork_rng(), torch.no_grad():
        assert not torch.equal(dropped.train()(images), plain(images))
        assert torch.equal(small_model(Dropout(rate=0.0)).train()(images), plain(images))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_a_dropout_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"rate is {rate}; it must be at least 0 and below 1"):
        Dropout(rate=rate)


# L2


@pytest.mark.parametrize("defenses", [(), (Dropout(),)])
def test_l2_is_on_the_prediction_weights_alone(defenses):
    model = small_model(*defenses)
    plan = plan_of(*defenses, L2(weight=0.03))
    assert plan.weight_decay == {"stages.prediction.0.weight": 0.03}
    assert dict(model.named_parameters())["stages.prediction.0.weight"].shape == (10, 7)
    assert (plan.rule, plan.accounting, plan.sampling) == (None, None, "shuffled")


@pytest.mark.parametrize("weight", [-1e-9, float("inf"), float("nan")])
def test_an_l2_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=f"weight is {weight}; it must be zero or more"):
        L2(weight=weight)


# DP-SGD


def test_dp_sgd_turns_the_plan_to_poisson_with_a_rule_and_accounting_that_agree():
    plan = plan_of(DpSgd(noise_multiplier=1.3, max_grad_norm=0.7, delta=1e-6, accountant="rdp"))
    assert plan.sampling == "poisson"
    assert plan.rule == ClipThenNoise(max_grad_norm=0.7, noise_scale=1.3)
    assert float(plan.rule.noise_std(torch.tensor([0.7]))) == pytest.approx(1.3 * 0.7)
    assert plan.accounting.sample_rate == plan.sample_rate == 50 / 1000
    assert (plan.accounting.noise_multiplier, plan.accounting.max_grad_norm) == (1.3, 0.7)
    assert plan.accounting.epsilon_target is None
    guarantee = plan.accounting.guarantee(plan.steps)
    assert (guarantee.delta, guarantee.accountant) == (1e-6, "rdp")
    assert guarantee.epsilon == epsilon(1.3, 0.05, 40, 1e-6, "rdp")


@pytest.mark.parametrize("target", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(("n_train", "batch_size", "epochs"), [(1000, 50, 2), (901, 64, 3)])
def test_dp_sgd_given_an_epsilon_spends_at_most_it_over_the_planned_steps(target, n_train, batch_size, epochs):
    defense = DpSgd(epsilon=target, accountant="rdp")
    plan = plan_of(defense, n_train=n_train, batch_size=batch_size, epochs=epochs)
    assert plan.steps == epochs * n_train // batch_size
    assert 0.999 * target <= plan.accounting.guarantee(plan.steps).epsilon <= target
    assert plan.accounting.epsilon_target == target
    assert plan.rule.noise_scale == plan.accounting.noise_multiplier


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of epsilon and noise_multiplier"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "give exactly one of epsilon and noise_multiplier"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be above 0 and finite"),
        ({"epsilon": -3.0}, "epsilon is -3.0; it must be above 0"),
        ({"epsilon": float("inf")}, "epsilon is inf; it must be above 0 and finite"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0.0; it must be above 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1.0"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta is 0.0; it must be above 0 and below 1"),
        ({"epsilon": 1.0, "delta": 1.0}, "delta is 1.0"),
        ({"epsilon": 1.0, "delta": -1e-5}, "delta is -1e-05"),
        ({"epsilon": 1.0, "max_grad_norm": 0.0}, "max_grad_norm is 0.0; it must be above 0"),
        ({"epsilon": 1.0, "max_grad_norm": float("inf")}, "max_grad_norm is inf"),
        ({"epsilon": 1.0, "accountant": "gdp"}, "accountant is 'gdp'; allowed: prv, rdp"),
    ],
)
def test_dp_sgd_refuses_parameters_out_of_range_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        DpSgd(**arguments)


# Together


def test_two_private_mechanisms_in_one_list_are_refused():
    one, other = DpSgd(noise_multiplier=1.0, accountant="rdp"), DpSgd(noise_multiplier=2.0, accountant="rdp")
    with pytest.raises(ValueError, match="two private mechanisms"):
        plan_of(one, L2(), other)


def test_defenses_compose_in_every_order():
    parts = (L2(weight=0.1), Dropout(rate=0.4), DpSgd(noise_multiplier=1.5, accountant="rdp"), NoDefense())
    plans = [plan_of(*order) for order in itertools.permutations(parts)]
    assert all(plan == plans[0] for plan in plans)
    assert plans[0].weight_decay == {"stages.prediction.0.weight": 0.1}
    assert plans[0].rule is not None


def test_later_defenses_see_what_earlier_ones_did():
    assert plan_of(L2(weight=0.25), L2(weight=0.5)).weight_decay == {"stages.prediction.0.weight": 0.75}
    model = small_model(Dropout(rate=0.1), Dropout(rate=0.2))
    assert [layer.p for layer in model.stages.conv1 if isinstance(layer, nn.Dropout)] == [0.1, 0.2]


def test_no_defense_changes_nothing_and_promises_nothing():
    assert plan_of(NoDefense()) == plan_of()
    assert plan_of().accounting is None
    assert plan_of().no_guarantee_reason
    for mine, theirs in zip(small_model(NoDefense()).parameters(), small_model().parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("defense", [NoDefense(), L2(), Dropout(), DpSgd(epsilon=1.0)])
def test_defenses_are_frozen(defense):
    name = next((field.name for field in dataclasses.fields(defense)), "anything")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(defense, name, 3.0)


# Steps


@pytest.mark.parametrize("n_train", [50, 99, 1000, 60_000])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
@pytest.mark.parametrize("epochs", [1, 3, 30, 100])
def test_steps_are_whole_and_lose_none(n_train, batch_size, epochs):
    plan = TrainingPlan(n_train=n_train, epochs=epochs, batch_size=batch_size)
    assert plan.steps == epochs * int(np.ceil(n_train / batch_size))
    private = dataclasses.replace(plan, sampling="poisson")
    assert private.steps == epochs * n_train // batch_size
    for each in (plan, private):
        until = [each.steps_until(epoch) for epoch in range(epochs + 1)]
        assert until[0] == 0
        assert until[-1] == each.steps
        assert all(isinstance(count, int) for count in until)
        assert (np.diff(until) > 0).all()


def test_the_hundred_epochs_that_a_float_would_make_one_step_short():
    plan = TrainingPlan(n_train=60_000, epochs=100, batch_size=200, sampling="poisson")
    assert plan.steps == 30_000
    assert int(100 / (200 / 60_000)) == 29_999  # what Opacus's own conversion of epochs takes
