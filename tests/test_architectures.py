"""Architectures: every one trains and can be cut, and each matches its paper's description."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from attacks.inversion.layer_decoder import build_decoder
from models.architectures.lin_cnn import LinCnn
from models.architectures.lin_lstm import LinLstm
from models.architectures.resnet18 import ResNet18
from models.architectures.resnet20 import ResNet20
from models.architectures.small_wrn import SmallWrn
from models.architectures.wrn import Wrn
from models.datasets.base import DatasetInfo, Examples
from models.defenses.dp_sgd import DpSgd
from models.seeds import Stream, torch_seed
from models.train import Recipe, Training, build_model
from sweeper.sweep import components

CHEAP = {
    "lomurno_cnn": {"filters": [4, 4, 4], "dense_units": 8},
    "lin_cnn": {"filters": [4, 6], "dense_units": 8},
    "lin_lstm": {"units": 8},
    "resnet18": {"width": 8, "groups": 4},
    "small_wrn": {"channels": 8, "groups": 4},
    "wrn": {"depth": 10, "width": 1, "groups": 4},
}
FOUND = sorted(components.names("architecture"))


def cheap(name):
    return components.build("architecture", {"name": name, **CHEAP.get(name, {})}, "here")


def info_of(shape, num_classes=10):
    channels = shape[0]
    return DatasetInfo(
        n_train=48, n_test=16, shape=shape, num_classes=num_classes, mean=(0.4,) * channels, std=(0.3,) * channels
    )


def images_of(shape, count=3):
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def shapes_of(architecture, shape):
    """The stages' names and what comes out of each for one image."""
    model = build_model(architecture, (), info_of(shape), 0).eval()
    images = images_of(shape)
    with torch.no_grad():
        values = {cut: model.activations(images, cut) for cut in model.stage_names}
        assert torch.equal(values["prediction"], model(images))
    assert {len(value) for value in values.values()} == {3}
    return {cut: tuple(value.shape[1:]) for cut, value in values.items()}


def count_of(architecture, shape):
    return sum(value.numel() for value in build_model(architecture, (), info_of(shape), 0).parameters())


def recipe_of(architecture):
    """A short training on images that can be learned."""
    images = images_of((3, 16, 17), 64)
    info, labels = info_of((3, 16, 17), num_classes=2), torch.arange(64) % 2
    images[labels == 1] //= 4
    return Recipe(
        architecture=architecture,
        defenses=(),
        training=Training(epochs=8, batch_size=12, learning_rate=0.05),
        data=Examples(inputs=images, labels=labels, example_id=np.arange(64), info=info, sha256=""),
        members=np.arange(48),
        test=np.arange(48, 64),
        seed=3,
        target_id="a target",
    )


# Every architecture that is found


@pytest.mark.parametrize("name", FOUND)
def test_it_trains_every_one_of_its_parameters(name):
    recipe = recipe_of(cheap(name))
    target, info = recipe.train(), recipe.data.info
    assert target.history[-1].train_loss < 0.9 * target.history[0].train_loss
    start = build_model(cheap(name), (), info, torch_seed(3, Stream.INIT)).state_dict()
    for key, _ in target.model.named_parameters():
        assert not torch.equal(target.model.state_dict()[key], start[key]), key


@pytest.mark.parametrize("name", FOUND)
def test_every_cut_is_a_sequence_of_layers_that_a_decoder_can_start_from(name):
    shape = (3, 19, 16)
    model = build_model(cheap(name), (), info_of(shape), 0).eval()
    assert all(type(stage) is nn.Sequential for stage in model.stages)  # defenses put layers between
    with torch.no_grad():
        for cut in model.stage_names:
            values = model.activations(images_of(shape), cut)
            assert build_decoder(tuple(values.shape[1:]), shape, 3)(values).shape == (3, *shape)


@pytest.mark.parametrize("name", FOUND)
def test_no_example_touches_another_in_training(name):
    model = build_model(cheap(name), (), info_of((1, 16, 16)), 0).train()
    images = (images_of((1, 16, 16), 4) / 255).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (gradient,) = torch.autograd.grad(model(images)[1].square().sum(), images)
    assert gradient[1].any()
    assert not gradient[[0, 2, 3]].any()


@pytest.mark.parametrize("name", FOUND)
def test_initial_weights_depend_on_their_seed_alone(name):
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    one, again, other = (build_model(cheap(name), (), info_of((1, 16, 16)), seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", FOUND)
def test_bytes_and_floats_of_the_same_image_give_the_same_logits(name):
    model = build_model(cheap(name), (), info_of((3, 16, 16)), 0).eval()
    images = images_of((3, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images.double().div(255).float()))


# lin_cnn


@pytest.mark.parametrize(
    ("shape", "sides"), [((1, 28, 28), (24, 12, 8, 4)), ((3, 32, 32), (28, 14, 10, 5)), ((1, 16, 16), (12, 6, 2, 1))]
)
def test_lin_cnn_has_the_papers_layers(shape, sides):
    first, pooled, second, last = ((side, side) for side in sides)
    assert shapes_of(LinCnn(), shape) == {
        "conv1": (32, *first),
        "maxpool1": (32, *pooled),
        "conv2": (64, *second),
        "maxpool2": (64, *last),
        "dense": (1024,),
        "prediction": (10,),
    }


def test_lin_cnn_has_as_many_parameters_as_computed_by_hand():
    assert count_of(LinCnn(), (1, 28, 28)) == 832 + 51_264 + 1_049_600 + 10_250
    assert count_of(LinCnn(), (3, 32, 32)) == 2_432 + 51_264 + 1_639_424 + 10_250


def test_lin_cnn_rectifies_after_convolutions_and_the_dense_layer_and_nowhere_else():
    model = build_model(LinCnn(filters=(3, 4), dense_units=5), (), info_of((3, 17, 20)), 0).eval()
    images = images_of((3, 17, 20))
    parameters = list(model.parameters())
    with torch.no_grad():
        value = model.normalize(images)
        for weight, bias in (parameters[:2], parameters[2:4]):
            value = F.max_pool2d(F.conv2d(value, weight, bias).clamp(min=0), 2)
        value = F.linear(value.flatten(1), *parameters[4:6]).clamp(min=0)
        torch.testing.assert_close(model(images), F.linear(value, *parameters[6:]))


def test_lin_cnn_drops_dense_units_at_its_rate_in_training_only():
    images = images_of((1, 28, 28), 20)
    model = build_model(LinCnn(dropout_rate=0.3), (), info_of((1, 28, 28)), 0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        kept = model.eval().activations(images, "dense")
        dropped = model.train().activations(images, "dense")
        active = kept > 0
        rate = float((dropped[active] == 0).float().mean())
        # About 10,000 units are active: five standard deviations of the rate.
        assert rate == pytest.approx(0.3, abs=5 * (0.21 / int(active.sum())) ** 0.5)
        survived = dropped > 0
        torch.testing.assert_close(dropped[survived], kept[survived] / 0.7)
        without = build_model(LinCnn(dropout_rate=0.0), (), info_of((1, 28, 28)), 0)
        assert torch.equal(without.train()(images), model.eval()(images))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 15, 28), (1, 28, 15), (1, 1, 1)])
def test_lin_cnn_refuses_images_too_small(shape):
    with pytest.raises(ValueError, match=f"at least 16x16, got {shape[2]}x{shape[1]}"):
        LinCnn().build(info_of(shape))


# lin_lstm


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 1, 5)])
def test_lin_lstm_has_the_papers_layers(shape):
    assert shapes_of(LinLstm(), shape) == {"lstm": (128,), "prediction": (10,)}


def test_lin_lstm_has_as_many_parameters_as_computed_by_hand():
    """Four gates, each with weights of the input and of the state and, in PyTorch, two biases; then the outputs."""
    assert count_of(LinLstm(), (1, 28, 28)) == 4 * 128 * (28 + 128 + 2) + 1_290
    assert count_of(LinLstm(units=7), (3, 32, 30)) == 4 * 7 * (90 + 7 + 2) + 80


def test_lin_lstm_reads_the_rows_from_the_top_and_gives_the_last_state():
    model = build_model(LinLstm(units=6), (), info_of((3, 5, 4)), 0).eval()
    images = images_of((3, 5, 4))
    cell = nn.LSTMCell(12, 6)
    cell.load_state_dict({key[:-3]: value for key, value in model.stages.lstm[0].lstm.state_dict().items()})
    with torch.no_grad():
        normalized, state = model.normalize(images), (torch.zeros(3, 6), torch.zeros(3, 6))
        for row in range(5):
            state = cell(torch.cat([normalized[:, channel, row] for channel in range(3)], 1), state)
        torch.testing.assert_close(model.activations(images, "lstm"), state[0])
        torch.testing.assert_close(model(images), model.stages.prediction(state[0]))


# resnet18


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_resnet18_has_the_papers_layers(shape):
    halves = [shape[1:]]
    for _ in range(3):
        halves.append(tuple(-(-side // 2) for side in halves[-1]))
    assert shapes_of(ResNet18(), shape) == {
        "stem": (64, *halves[0]),
        "layer1": (64, *halves[0]),
        "layer2": (128, *halves[1]),
        "layer3": (256, *halves[2]),
        "layer4": (512, *halves[3]),
        "pool": (512,),
        "prediction": (10,),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_resnet18_is_torchvisions_with_a_small_stem_and_group_norm(channels):
    """The same parameters in the same order, and the same logits and gradients once the weights are copied over."""
    model = build_model(ResNet18(), (), info_of((channels, 9, 12)), 0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reference = torchvision.models.resnet18(num_classes=10, norm_layer=lambda width: nn.GroupNorm(32, width))
        reference.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        reference.maxpool = nn.Identity()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.GroupNorm):  # they all start alike
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_()
    ours = model.stages.state_dict()
    reference.load_state_dict(dict(zip(reference.state_dict(), ours.values(), strict=True)))
    images, labels = images_of((channels, 9, 12), 4), torch.arange(4)
    logits, expected = model(images), reference(model.normalize(images))
    torch.testing.assert_close(logits, expected)
    for each in (logits, expected):
        F.cross_entropy(each, labels).backward()
    for mine, theirs in zip(model.stages.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_resnet18_has_as_many_parameters_as_torchvisions_but_for_the_stem():
    reference = torchvision.models.resnet18(num_classes=10, norm_layer=lambda width: nn.GroupNorm(32, width))
    expected = sum(value.numel() for value in reference.parameters()) - 3 * 64 * 7 * 7
    assert count_of(ResNet18(), (3, 32, 32)) == expected + 3 * 64 * 3 * 3 == 11_173_962
    assert count_of(ResNet18(), (1, 28, 28)) == expected + 1 * 64 * 3 * 3


def test_resnet18_starts_as_he_et_al_propose():
    model = build_model(ResNet18(), (), info_of((3, 32, 32)), 0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            deviation = (2 / (module.out_channels * module.weight[0, 0].numel())) ** 0.5
            # Five standard deviations of a normal sample's standard deviation.
            tolerance = 5 / (2 * module.weight.numel()) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(deviation, rel=tolerance)
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == 32
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize(("width", "groups"), [(8, 8), (6, 3), (5, 1)])
def test_resnet18_of_any_width_that_its_groups_divide(width, groups):
    shapes = shapes_of(ResNet18(width=width, groups=groups), (1, 10, 10))
    assert [shapes[f"layer{number}"][0] for number in range(1, 5)] == [width, 2 * width, 4 * width, 8 * width]


# wrn, small_wrn, resnet20


def test_wrn_16_4_has_the_papers_layers_and_parameters():
    assert shapes_of(Wrn(), (3, 32, 32)) == {
        "stem": (16, 32, 32),
        "layer1": (64, 32, 32),
        "layer2": (128, 16, 16),
        "layer3": (256, 8, 8),
        "pool": (256,),
        "prediction": (10,),
    }
    convolutions = 3 * 16 * 9 + sum(
        9 * before * width + 9 * width * width + 2 * 9 * width * width + before * width
        for before, width in ((16, 64), (64, 128), (128, 256))
    )
    biases = 16 + sum(5 * width for width in (64, 128, 256))
    norms = 2 * (sum(2 * before + width + 2 * width for before, width in ((16, 64), (64, 128), (128, 256))) + 256)
    assert count_of(Wrn(), (3, 32, 32)) == convolutions + biases + norms + 256 * 10 + 10
    assert count_of(Wrn(), (3, 32, 32)) == 2_751_562  # as in the paper's code
    assert shapes_of(Wrn(depth=28, width=10), (3, 32, 32))["layer3"] == (640, 8, 8)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_small_wrn_and_resnet20_have_their_layers(shape):
    halves = [shape[1:]]
    for _ in range(3):
        halves.append(tuple(-(-side // 2) for side in halves[-1]))
    small, thin = shapes_of(SmallWrn(), shape), shapes_of(ResNet20(), shape)
    assert [small[name] for name in ("stem", "layer1", "layer2", "layer3")] == [
        (16, *halves[1]),
        (16, *halves[1]),
        (32, *halves[2]),
        (64, *halves[3]),
    ]
    assert [thin[name] for name in ("stem", "layer1", "layer2", "layer3")] == [
        (16, *halves[0]),
        (16, *halves[0]),
        (32, *halves[1]),
        (64, *halves[2]),
    ]
    plain = sum(9 * count for count in (3 * 16, 6 * 256, 512, 5 * 1024, 2048, 5 * 4096)) + 512 + 2048
    assert count_of(ResNet20(), (3, 32, 32)) == plain + 2 * (7 * 16 + 7 * 32 + 7 * 64) + 650


def test_a_wide_block_is_what_its_formula_says():
    """conv(norm(relu(conv(norm(relu(x)))))) + shortcut; one that changes the shape is a 1×1 conv(norm(relu(x)))."""
    model = build_model(Wrn(depth=10, width=2), (), info_of((3, 8, 8)), 0).eval()
    images = images_of((3, 8, 8))
    for layer, stage in (("layer1", "stem"), ("layer2", "layer1")):
        block, value = model.stages.get_submodule(layer)[0], model.activations(images, stage)
        first, second, own = block.residual[1], block.residual[4], block.shortcut[1]
        inner = block.residual[2](F.group_norm(value.relu(), 16, first.weight, first.bias))
        inner = block.residual[5](F.group_norm(inner.relu(), 16, second.weight, second.bias))
        shortcut = block.shortcut[2](F.group_norm(value.relu(), 16, own.weight, own.bias))
        torch.testing.assert_close(block(value), inner + shortcut)


def test_wrn_starts_with_truncated_normal_weights_and_no_biases():
    model = build_model(Wrn(), (), info_of((3, 32, 32)), 0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spread = module.weight[0].numel() ** -0.5
            assert (module.bias == 0).all()
            assert module.weight.abs().max() <= 2 * spread
            expected = 0.8796 * spread  # of a normal cut at two standard deviations
            tolerance = 5 / (2 * module.weight.numel()) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    "architecture", [Wrn(norm="batch", depth=10, width=1), SmallWrn(norm="batch"), ResNet20(norm="batch")]
)
def test_batch_norm_trains_and_is_refused_beside_a_private_mechanism(architecture):
    recipe = recipe_of(architecture)
    assert np.isfinite(recipe.train().history[-1].train_loss)
    with pytest.raises(ValueError, match=r"BatchNorm|batch"):
        replace(recipe, defenses=(DpSgd(noise_multiplier=1.0, accountant="rdp"),)).train()


# What is refused


@pytest.mark.parametrize(
    ("architecture", "changed", "message"),
    [
        (LinCnn(), {"filters": (0, 4)}, r"filters \(0, 4\) and dense_units 1024 must be at least 1"),
        (LinCnn(), {"dense_units": 0}, "dense_units 0 must be at least 1"),
        (LinCnn(), {"dropout_rate": 1.0}, "dropout_rate is 1.0; it must be at least 0 and below 1"),
        (LinCnn(), {"dropout_rate": -0.1}, "dropout_rate is -0.1"),
        (LinCnn(), {"dropout_rate": float("nan")}, "dropout_rate is nan"),
        (LinLstm(), {"units": 0}, "units is 0; it must be at least 1"),
        (ResNet18(), {"width": 0}, "width is 0; it must be at least 1"),
        (ResNet18(), {"groups": 0}, "groups is 0; it must be at least 1"),
        (ResNet18(), {"width": 48}, "groups is 32; it must divide width, which is 48"),
        (ResNet18(), {"width": 16}, "groups is 32; it must divide width, which is 16"),
        (Wrn(), {"depth": 17}, "depth is 17; it must be 4 more than a multiple of 6"),
        (Wrn(), {"width": 0}, "width is 0; it must be at least 1"),
        (Wrn(), {"groups": 0}, "groups is 0; it must be at least 1"),
        (Wrn(), {"groups": 24, "width": 1}, "groups is 24; it must divide 32, the channels of a layer"),
        (Wrn(), {"groups": 12}, "groups is 12; it must divide 16, the channels of a layer"),
        (SmallWrn(), {"channels": 12}, "groups is 8; it must divide 12, the channels of a layer"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(architecture, changed, message):
    with pytest.raises(ValueError, match=message):
        replace(architecture, **changed)
