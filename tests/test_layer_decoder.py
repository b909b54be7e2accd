"""The inversion attack: better than its controls if the layer is informative, with members and non-members kept apart."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import mse_loss

from attacks.base import AttackError, AttackTarget, InputSet, Membership, ModelOutputs, WhiteBox
from attacks.inversion.layer_decoder import LayerDecoder, build_decoder
from models.architectures.lomurno_cnn import LomurnoCnn
from models.datasets.digits import Digits
from models.splits import SPLITS
from models.train import Recipe, Training, build_model
from sweeper.results.store import Store
from sweeper.trial.attack import _white_box
from sweeper.trial.context import TrialContext

CNN = LomurnoCnn(filters=(8, 8, 8), dense_units=16)
QUICK = LayerDecoder(epochs=2, batch_size=32, width=4, untrained_control=False)


@pytest.fixture(scope="module")
def digits():
    return Digits(max_train_examples=800, max_test_examples=120).load(None)


@pytest.fixture(scope="module")
def white_box(digits):
    """A briefly trained target on 200 members; 400 images for the attacker, 200 non-members, 120 test images."""
    members = np.arange(200)
    test = np.arange(800, 920)
    target = Recipe(
        architecture=CNN,
        defenses=(),
        training=Training(epochs=5, batch_size=20),
        data=digits,
        members=members,
        test=test,
        seed=0,
        target_id="a target",
    ).train()
    untrained = build_model(CNN, (), digits.info, 77).eval()

    def images(index):
        return InputSet(example_id=digits.example_id[index], inputs=digits.inputs[torch.from_numpy(index)])

    return WhiteBox(
        cut_points=target.model.stage_names,
        activations=target.model.activations,
        untrained_activations=untrained.activations,
        attacker=images(np.arange(400, 800)),
        members=images(members),
        non_members=images(np.arange(200, 400)),
        test=images(test),
    )


def run(attack, white_box, seed=0):
    outputs = ModelOutputs(example_id=np.arange(2), label=np.zeros(2, dtype=np.int64), values=np.zeros((2, 10)))
    population = Membership(outputs=outputs, is_member=np.array([True, False]))
    return attack.run(AttackTarget(population=population, white_box=white_box), np.random.default_rng(seed))


def only(white_box, *cuts):
    """The same white box with only these `cuts`; the prediction stays last if it is one of them."""
    return replace(white_box, cut_points=cuts)


@pytest.fixture(scope="module")
def results(white_box):
    attack = LayerDecoder(epochs=12, batch_size=32, width=12, learning_rate=5e-3)
    return {each.layer: each for each in run(attack, only(white_box, "conv1", "maxpool2", "dense", "prediction"))}


@pytest.mark.slow
def test_early_layers_give_the_image_away_and_late_ones_less(results):
    constant = results["conv1"].mse_constant
    assert results["conv1"].mse_test < 0.15 * constant
    assert results["maxpool2"].mse_test < 0.7 * constant
    assert results["conv1"].mse_test < results["maxpool2"].mse_test < results["prediction"].mse_test
    assert results["prediction"].mse_test < 1.2 * constant
    for each in results.values():
        # Members and non-members come from one pool: early layers treat them alike.
        assert each.mse_members == pytest.approx(each.mse_non_members, rel=0.3)


@pytest.mark.slow
def test_controls_and_sizes_are_there(results, white_box):
    attacker, test = white_box.attacker.inputs / 255, white_box.test.inputs / 255
    constant = float(((test - attacker.mean(0)) ** 2).double().mean())
    for number, each in enumerate(results.values(), start=1):
        assert each.layer_index == number
        assert each.mse_constant == pytest.approx(constant, rel=1e-5)
        assert 0 < each.mse_untrained < 1.5 * constant
        assert each.mse_untrained != each.mse_test
        assert (each.n_attacker, each.n_members, each.n_non_members, each.n_test) == (400, 200, 200, 120)
    assert results["conv1"].mse_untrained < 0.3 * constant  # an untrained convolution inverts as well


@pytest.mark.slow
def test_kept_examples_are_images_of_the_test_set_with_their_own_error(results, white_box):
    for each in results.values():
        assert len(each.examples) == 3
        for kept in each.examples:
            position = white_box.test.example_id.tolist().index(kept.example_id)
            np.testing.assert_array_equal(kept.original, white_box.test.inputs[position].numpy())
            assert kept.reconstruction.dtype == np.uint8
            assert kept.reconstruction.shape == (1, 8, 8)
            difference = (kept.original.astype(float) - kept.reconstruction) / 255
            assert kept.mse == pytest.approx(float((difference**2).mean()), abs=2e-3)
            buffer = io.BytesIO()
            Image.fromarray(kept.reconstruction[0]).save(buffer, "PNG")
            np.testing.assert_array_equal(np.asarray(Image.open(buffer)), kept.reconstruction[0])


def test_randomness_comes_from_rng_alone(white_box):
    box = only(white_box, "maxpool1", "prediction")
    attack = replace(QUICK, max_attacker_examples=100, max_evaluated_examples=50)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = run(attack, box)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = run(attack, box), run(attack, box, seed=1)

    def errors(found):
        return [(each.mse_members, each.mse_non_members, each.mse_test, each.examples[0].mse) for each in found]

    assert errors(first) == errors(again)
    assert errors(first) != errors(other)


def test_limits_cut_each_set_to_its_own_size(white_box):
    attack = replace(QUICK, epochs=1, max_attacker_examples=90, max_evaluated_examples=150)
    (found,) = run(attack, only(white_box, "dense"))
    assert (found.n_attacker, found.n_members, found.n_non_members, found.n_test) == (90, 150, 150, 120)


def test_the_decoder_learns_from_the_attackers_images_and_no_others(white_box):
    box = only(white_box, "maxpool1")
    members = replace(white_box.members, inputs=255 - white_box.members.inputs)
    attacker = replace(white_box.attacker, inputs=255 - white_box.attacker.inputs)
    (base,), (inverted,), (retrained,) = (
        run(QUICK, each) for each in (box, replace(box, members=members), replace(box, attacker=attacker))
    )
    assert inverted.mse_members != base.mse_members
    assert (inverted.mse_non_members, inverted.mse_test) == (base.mse_non_members, base.mse_test)
    assert retrained.mse_test != base.mse_test


@pytest.mark.parametrize("split", SPLITS)
def test_the_attackers_images_are_disjoint_from_all_that_is_reported_on_and_trained_on(split, digits):
    parts = SPLITS[split](800, 120, 3)
    trial = SimpleNamespace(split=split, seed=3, architecture=CNN, defenses=())
    context = TrialContext(data_dir=Path(), store=Store("nowhere"), device=torch.device("cpu"))
    box = _white_box(trial, digits, parts, context, lambda: None)
    sets = {
        name: set(getattr(box, name).example_id.tolist()) for name in ("attacker", "members", "non_members", "test")
    }
    assert all(sets.values())
    for one, other in combinations(sets, 2):
        if {one, other} == {"non_members", "test"} and split == "official":
            assert sets[one] == sets[other]  # the papers' protocol has one set for both
        else:
            assert not sets[one] & sets[other]
    assert sets["members"] == set(digits.example_id[parts.members].tolist())
    assert box.cut_points == ("conv1", "maxpool1", "conv2", "maxpool2", "conv3", "maxpool3", "dense", "prediction")


# The last layer


def test_the_prediction_is_seen_as_a_posterior_or_its_logarithm(white_box):
    """Neither sees a constant added to all logits; saturated logits are flat as a posterior but not as a logarithm."""
    box = only(white_box, "prediction")

    def shifted(images, cut):
        return white_box.activations(images, cut) + 4

    def saturated(images, cut):  # all but the largest vanish from the posterior
        return 1e4 * white_box.activations(images, cut)

    def one_hot(images, cut):
        logits = white_box.activations(images, cut)
        return torch.where(logits == logits.amax(1, keepdim=True), 1e4, 0.0)

    def error(activations, seen):
        (found,) = run(replace(QUICK, prediction_input=seen), replace(box, activations=activations))
        return found.mse_test

    for seen in ("posterior", "log_posterior"):
        assert error(shifted, seen) == pytest.approx(error(white_box.activations, seen), rel=1e-3)
    assert error(white_box.activations, "posterior") != error(white_box.activations, "log_posterior")
    assert error(saturated, "posterior") == pytest.approx(error(one_hot, "posterior"), rel=1e-6)
    assert error(saturated, "log_posterior") != pytest.approx(error(one_hot, "log_posterior"), rel=1e-3)


# What is refused


def test_it_refuses_without_the_targets_inside_or_with_an_empty_set(white_box):
    with pytest.raises(AttackError, match="needs the target's activations"):
        run(QUICK, None)
    for name in ("attacker", "members", "non_members", "test"):
        part = getattr(white_box, name)
        empty = InputSet(example_id=part.example_id[:0], inputs=part.inputs[:0])
        with pytest.raises(AttackError, match="one of them is empty"):
            run(QUICK, replace(white_box, **{name: empty}))


@pytest.mark.parametrize("kept", [0, 1, 500])
def test_no_more_examples_are_kept_than_asked_for_or_there_are(kept, white_box):
    (found,) = run(replace(QUICK, epochs=1, kept_examples=kept), only(white_box, "dense"))
    assert len(found.examples) == min(kept, 120)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"width": 0}, "width is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"max_attacker_examples": 0}, "max_attacker_examples is 0"),
        ({"max_evaluated_examples": 0}, "max_evaluated_examples is 0"),
        ({"kept_examples": -1}, "kept_examples is -1; it must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"prediction_input": "logits"}, "prediction_input is 'logits'; allowed: posterior, log_posterior"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changed)


# The decoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (32, 32), (30, 30), (17, 23), (9, 64), (33, 8)])
def test_the_decoder_gives_the_images_exact_size_from_every_cut(channels, height, width):
    info = replace(Digits.published, shape=(channels, height, width), mean=(0.5,) * channels, std=(0.5,) * channels)
    model = LomurnoCnn(filters=(2, 3, 4), dense_units=5).build(info).eval()
    images = torch.zeros(2, channels, height, width, dtype=torch.uint8)
    with torch.no_grad():
        for cut in model.stage_names:
            values = model.activations(images, cut)
            rebuilt = build_decoder(tuple(values.shape[1:]), (channels, height, width), 3)(values)
            assert tuple(rebuilt.shape) == (2, channels, height, width)
            assert 0 <= float(rebuilt.min()) <= float(rebuilt.max()) <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20), (2, 1)])
def test_the_decoder_from_a_flat_layer_ends_for_images_one_pixel_high(height, width):
    rebuilt = build_decoder((5,), (1, height, width), 2)(torch.zeros(3, 5))
    assert tuple(rebuilt.shape) == (3, 1, height, width)


def test_a_decoder_can_be_fitted_to_a_constant():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = build_decoder((4,), (1, 8, 8), 4)
    wanted = torch.full((16, 1, 8, 8), 0.2)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(60):
        loss = mse_loss(decoder(torch.ones(16, 4)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3
