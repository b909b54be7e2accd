"""The mechanisms other than DP-SGD: noise before clipping, quantiles, and their guarantees."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from opacus.optimizers.adaclipoptimizer import AdaClipDPOptimizer
from private_reference import SMALL, batch, distance, generator, made, rerun
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from models.architectures.lomurno_cnn import LomurnoCnn
from models.datasets.digits import Digits
from models.defenses.clip_then_noise import ClipThenNoiseDefense
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.noise_then_clip import NoiseThenClipDefense
from models.defenses.noised_quantile import NoisedQuantileDefense
from models.defenses.quantile_clipping import QuantileClippingDefense
from models.gradient import PlainGradient
from models.performance import Performance, Replay
from models.private.gradients import PrivateGradient
from models.private.noise import standard_normal
from models.private.rules import ClipThenNoise, NoisedQuantile, NoiseThenClip, QuantileClipping
from models.train import LEARNING_RATES, Recipe, Training, build_model, make_plan

CPU = torch.device("cpu")
MECHANISMS = {
    "clip_then_noise": ClipThenNoiseDefense(noise_scale=0.5, accountant="rdp"),
    "noise_then_clip": NoiseThenClipDefense(noise_scale=0.01),
    "quantile_clipping": QuantileClippingDefense(),
    "quantile_clipping_per_layer": QuantileClippingDefense(layers="per_layer"),
    "noised_quantile": NoisedQuantileDefense(noise_multiplier=0.5, accountant="rdp"),
}


def by_hand(model, images, labels):
    """Each example's gradient, by parameter: a list of (examples, *shape)."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return [torch.stack(each) for each in zip(*rows, strict=True)]


def flat(samples):
    return torch.cat([each.flatten(1) for each in samples], dim=1)


def gradient_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def stepped(model, rule, count=12, seed=0, expected=1.0, **performance):
    private = PrivateGradient(model, rule, expected, generator(seed), performance=Performance(**performance))
    private.step(*batch(count))
    private.close()
    return gradient_of(model), private.clip_norms


# Noise before clipping


@pytest.mark.parametrize("form", ["literal", "two_scalar"])
@pytest.mark.parametrize("name", SMALL)
def test_noise_before_clipping_without_noise_is_clipping(name, form):
    model = SMALL[name]()
    clipped, _ = stepped(model, ClipThenNoise(max_grad_norm=0.3, noise_scale=0.0))
    ours, _ = stepped(model, NoiseThenClip(max_grad_norm=0.3, noise_scale=0.0, form=form))
    assert distance(ours, clipped) < 1e-6


def literal_sums(gradients, std, clip, draws, rng):
    """Σ over examples of clipped noised gradients, (draws, P), in float64 and without any of our code."""
    sums = np.zeros((draws, gradients.shape[1]))
    for gradient in gradients:
        noised = gradient + std * rng.standard_normal((draws, len(gradient)))
        norms = np.linalg.norm(noised, axis=1, keepdims=True)
        sums += noised * np.minimum(1, clip / norms)
    return sums


def two_scalar_sums(gradients, std, clip, draws, seed):
    """As many draws of what `PrivateGradient` makes of the rule's weights and variances."""
    rule = NoiseThenClip(max_grad_norm=clip, noise_scale=std, noise_unit="absolute", form="two_scalar")
    values, random = torch.from_numpy(gradients).float(), generator(seed)
    count, dimension = values.shape
    norms = values.norm(dim=1, keepdim=True).repeat(draws, 1)
    weights, variances = rule.weigh(norms, torch.tensor([clip]), rule.draw(draws * count, dimension, random, CPU))
    std_of_sum = variances.view(draws, count).sum(1).sqrt()
    noise = torch.empty(draws, dimension).normal_(generator=random)
    sums = weights.view(draws, count) @ values + std_of_sum[:, None] * noise
    return sums.double().numpy()


GEOMETRIES = {
    "noise outweighs gradients": (0.03, 0.02),
    "noise as large as gradients": (1.0, 0.03),
    "gradients outweigh noise": (10.0, 0.03),
    "norms lie about the clip norm": (1.0, 2**0.5),
    "long norms lie about the clip norm": (5.0, 26**0.5),
    "nothing is clipped": (0.2, 1e4),
}
"""Length of the gradients, and the clip norm, in lengths √P of the noise."""


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1_000, 10_000])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_two_scalars_and_the_literal_form_agree_in_distribution(name, dimension):
    length, clip = (each * math.sqrt(dimension) for each in GEOMETRIES[name])
    rng = np.random.default_rng([dimension, len(name)])
    draws, count = 1_500, 5
    # Gradients point alike, as those of one batch do
    gradients = rng.standard_normal(dimension) + rng.standard_normal((count, dimension))
    spread = (1.0, 1.0) if "about the clip norm" in name else (0.5, 1.5)
    gradients *= length * rng.uniform(*spread, (count, 1)) / np.linalg.norm(gradients, axis=1, keepdims=True)
    ours = two_scalar_sums(gradients, 1.0, clip, draws, seed=dimension)
    theirs = literal_sums(gradients, 1.0, clip, draws, rng)

    directions = rng.standard_normal((dimension, 8))
    directions /= np.linalg.norm(directions, axis=0)
    p_values = [
        stats.ks_2samp(one, other).pvalue
        for one, other in zip((ours @ directions).T, (theirs @ directions).T, strict=True)
    ]
    assert min(p_values) > 1e-4  # eight tests: 0.1 % of correct forms fail here, and the seed is fixed

    # Means, along the gradients' own mean, where it is largest
    along = gradients.mean(0) / np.linalg.norm(gradients.mean(0))
    one, other = ours @ along, theirs @ along
    error = math.hypot(stats.sem(one), stats.sem(other))
    assert abs(one.mean() - other.mean()) < 4 * error
    # Variance of all coordinates together: an average of draws · P squares
    assert ours.var(axis=0).mean() == pytest.approx(theirs.var(axis=0).mean(), rel=2 / math.sqrt(dimension))
    if name in ("noise outweighs gradients", "nothing is clipped"):
        assert one.var() == pytest.approx(other.var(), rel=0.15)
        assert stats.ks_2samp(one, other).pvalue > 1e-3


def test_the_error_of_two_scalars_is_along_the_gradient_alone_and_as_stated():
    """One example whose gradient outweighs the noise: clipping removes the noise along it; two scalars do not."""
    dimension, draws, rng = 2_000, 4_000, np.random.default_rng(0)
    direction = np.zeros((1, dimension))
    direction[0, 0] = 200.0
    ours = two_scalar_sums(direction, 1.0, 1.0, draws, seed=1)
    theirs = literal_sums(direction, 1.0, 1.0, draws, rng)
    squared_length = 200.0**2 + dimension
    too_much = (1 - (dimension / squared_length) ** 2) / squared_length
    assert ours[:, 0].var() - theirs[:, 0].var() == pytest.approx(too_much, rel=0.1)
    assert theirs[:, 1:].var() == pytest.approx(ours[:, 1:].var(), rel=0.01)


@pytest.mark.parametrize("name", ["cnn", "lstm"])
def test_the_literal_form_of_a_step_is_what_its_words_say(name):
    """Noise of a generator in the same state, added by hand to gradients by hand."""
    model = SMALL[name]()
    rule = NoiseThenClip(max_grad_norm=0.3, noise_scale=0.02, noise_unit="absolute", form="literal")
    ours, _ = stepped(model, rule, seed=5)
    random, images_and_labels = generator(5), batch(12)
    samples = flat(by_hand(deepcopy(model), *images_and_labels))
    samples = samples + 0.02 * torch.stack([standard_normal([samples.shape[1]], random, CPU) for _ in range(12)])
    norms = samples.norm(dim=1, keepdim=True)
    assert (norms > 0.3).any()
    assert distance(ours, (samples * (0.3 / norms).clamp(max=1)).sum(0)) < 1e-5


@pytest.mark.slow
def test_steps_in_both_forms_have_the_same_mean_and_spread():
    """Over many steps of a real model, by projections on its mean gradient and on a random direction."""
    model = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10)))
    images, labels = torch.rand(6, 1, 8, 8, generator=generator(1)), torch.arange(6)
    samples = flat(by_hand(deepcopy(model), images, labels))
    clip = float(
        (samples.norm(dim=1).square().median() + samples.shape[1] * 0.02**2).sqrt()
    )  # half of them are clipped
    sums = {}
    for form in ("literal", "two_scalar"):
        rule = NoiseThenClip(max_grad_norm=clip, noise_scale=0.02, noise_unit="absolute", form=form)
        private = PrivateGradient(model, rule, 6.0, generator(3))
        rows = []
        for _ in range(1_500):
            private.step(images, labels)
            rows.append(gradient_of(model))
        sums[form] = torch.stack(rows).double().numpy()
        private.close()
    mean = sums["literal"].mean(0)
    random = np.random.default_rng(0).standard_normal(len(mean))
    for direction in (mean, random):
        one, other = (sums[form] @ (direction / np.linalg.norm(direction)) for form in sums)
        assert abs(one.mean() - other.mean()) < 4 * math.hypot(stats.sem(one), stats.sem(other))
        if direction is random:
            assert stats.ks_2samp(one, other).pvalue > 1e-3


def test_small_models_take_the_literal_form_by_themselves():
    rule = NoiseThenClip(max_grad_norm=0.5, noise_scale=0.4)
    assert rule.example_noise_std(999) == 0.2
    assert rule.example_noise_std(1000) is None
    assert replace(rule, form="literal").example_noise_std(10**7) == 0.2
    assert replace(rule, form="two_scalar").example_noise_std(10) is None


@pytest.mark.slow
def test_the_mean_along_a_gradient_has_no_bias_wherever_the_clip_norm_lies():
    """By scalars alone, of which there can be millions: N and the part along the gradient, literally and by the rule."""
    draws = 2_000_000
    for dimension in (1_000, 100_000):
        for length in (0.3, 1.0, 3.0):
            scale = length * math.sqrt(dimension)
            for share in (0.7, 1.0, 1.01, 1.3):
                clip = share * math.sqrt(scale**2 + dimension)
                rule = NoiseThenClip(max_grad_norm=clip, noise_scale=1.0, noise_unit="absolute")
                random = rule.draw(draws, dimension, generator(dimension), CPU).double()
                radial = scale + random[:, 0]
                norm = (radial**2 + random[:, 1]).sqrt()
                literal = radial * (clip / norm).clamp(max=1)
                weights, _ = rule.weigh(torch.full((draws, 1), scale), torch.tensor([clip]), random.float())
                bias = float((weights[:, 0].double() * scale - literal).mean())
                # Of noise of standard deviation 1: 4 standard errors, and O(1/P) of the length
                assert abs(bias) < 4 / math.sqrt(draws) + 3 * scale / dimension


@pytest.mark.slow
@pytest.mark.parametrize("form", ["literal", "two_scalar"])
def test_noise_before_clipping_leaves_no_example_more_than_the_clip_norm(form):
    model = SMALL["cnn"]()
    rule = NoiseThenClip(max_grad_norm=0.3, noise_scale=5.0, noise_unit="absolute", form=form)
    for seed in range(20):
        ours, _ = stepped(model, rule, count=1, seed=seed)
        # Exactly so in the literal form; by two scalars up to the spread of a vector's length
        assert float(ours.norm()) < 0.3 * (1 + (1e-5 if form == "literal" else 0.2))


def test_an_example_of_zero_gradient_is_noised_and_clipped_too():
    rule = NoiseThenClip(max_grad_norm=1.0, noise_scale=2.0, form="two_scalar")
    weights, variances = rule.weigh(torch.zeros(50, 1), torch.ones(1), rule.draw(50, 5_000, generator(0), CPU))
    assert torch.isfinite(weights).all()
    assert variances.mul(5_000).numpy() == pytest.approx(1.0)  # clipped to a norm of one, all of it noise


# Without noise or without clipping


@pytest.mark.parametrize("rule", [ClipThenNoise, NoiseThenClip])
def test_an_endless_clip_norm_without_noise_is_sgd(rule):
    model = SMALL["cnn"]()
    ours, _ = stepped(model, rule(max_grad_norm=1e9, noise_scale=0.0), expected=12.0)
    PlainGradient(model).step(*batch(12))
    assert distance(ours, gradient_of(model)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["poisson", "shuffled"])
@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_a_training_so_clipped_ends_where_its_undefended_twin_does(optimizer, sampling):
    """They share initialization, batches (also the last, shorter one) and dropout masks, as long as nothing is padded."""
    data = Digits(max_train_examples=200).load(None)
    rates = {"sgd": 0.1, "adadelta": 1.0}
    training = Training(
        epochs=2, batch_size=30, optimizer=optimizer, learning_rate=rates.get(optimizer, 0.003), sampling=sampling
    )
    weights = []
    for defense in ((), (NoiseThenClipDefense(max_grad_norm=1e9, noise_scale=0.0),)):
        target = Recipe(
            architecture=LomurnoCnn(), defenses=(Dropout(rate=0.2), *defense), training=training, data=data,
            members=np.arange(200), test=np.arange(200, 300), seed=3, target_id="a target",
        ).train()  # fmt: skip
        weights.append(torch.cat([value.flatten() for value in target.model.parameters()]))
    if optimizer == "sgd":
        assert distance(weights[1], weights[0]) < 1e-5
    else:  # adaptive ones turn rounding of tiny gradients into whole steps
        assert distance(weights[1], weights[0]) < 2e-2


# Quantiles


def test_the_quantile_is_numpys_whatever_is_padded():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 8, 31):
        norms = rng.lognormal(size=(count, 3)).astype(np.float32)
        padded = torch.from_numpy(np.concatenate([norms, np.zeros((4, 3), np.float32)]))
        is_real = torch.arange(count + 4) < count
        for quantile in (0.0, 0.1, 0.5, 0.77, 1.0):
            ours = QuantileClipping(noise_scale=0.0, quantile=quantile).batch_clip_norms(padded, is_real)
            assert ours.numpy() == pytest.approx(np.quantile(norms, quantile, axis=0), rel=1e-5)


def test_the_quantile_of_hand_made_norms():
    norms = torch.tensor([[4.0], [1.0], [3.0], [2.0]])
    is_real = torch.ones(4, dtype=torch.bool)
    rule = QuantileClipping(noise_scale=0.0)
    assert float(rule.batch_clip_norms(norms, is_real)) == 2.5
    assert float(rule.batch_clip_norms(norms[:3], is_real[:3])) == 3.0
    weights, _ = rule.weigh(norms, torch.tensor([2.5]), torch.empty(4, 0))
    assert weights[:, 0].tolist() == pytest.approx([0.625, 1.0, 2.5 / 3, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["flat", "per_layer"])
@pytest.mark.parametrize(
    "more", [{}, {"chunk_size": 5}, {"chunk_size": 5, "pad_to": 4}], ids=["whole", "chunks", "padded"]
)
@pytest.mark.parametrize("name", ["cnn", "lstm", "residual"])
def test_a_step_of_quantile_clipping_is_that_by_hand(name, more, layers):
    model = SMALL[name]()
    ours, clip_norms = stepped(model, QuantileClipping(noise_scale=0.0, layers=layers), **more)
    owners: dict[int, list[int]] = {}
    position = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(module), []).append(position[id(parameter)])
    groups = list(owners.values()) if layers == "per_layer" else [list(position.values())]
    samples, expected = by_hand(deepcopy(model), *batch(12)), {}
    for group in groups:
        norms = flat([samples[number] for number in group]).norm(dim=1)
        clip = norms.quantile(0.5)
        for number in group:
            weights = torch.where(norms <= clip, 1.0, clip / norms)
            expected[number] = torch.tensordot(weights, samples[number], dims=1).flatten()
    assert len(clip_norms) == len(groups)
    assert distance(ours, torch.cat([expected[number] for number in sorted(expected)])) < 1e-5


def test_two_passes_draw_dropout_once():
    """If the batch has more than one chunk, the second pass must draw the masks of the first."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(2 * 8 * 8, 5))
    images, labels = batch(12)
    images = torch.rand(12, 2, 8, 8, generator=generator(3))
    rule = QuantileClipping(noise_scale=0.0)
    for more in ({"chunk_size": 4}, {"chunk_size": 1}):
        private = PrivateGradient(model, rule, 1.0, generator(), performance=Performance(**more))
        private.step(images, labels)  # the first step tries out
        torch.manual_seed(0)
        private.step(images, labels)
        ends_at = torch.rand(1)
        torch.manual_seed(0)
        masked = [model[1](images[at].flatten(1)) for at in private._chunks(12)]
        assert torch.equal(torch.rand(1), ends_at)
        inputs = torch.cat(masked)
        logits = model[2](inputs)
        error = logits.softmax(1) - nn.functional.one_hot(labels, 5)
        expected = error.norm(dim=1) * (inputs.square().sum(1) + 1).sqrt()
        assert float(private.clip_norms) == pytest.approx(float(expected.detach().quantile(0.5)), rel=1e-5)


def test_the_noise_of_quantile_clipping_follows_the_clip_norm():
    model = SMALL["cnn"]()
    for layers in ("flat", "per_layer"):
        bare, clip_norms = stepped(model, QuantileClipping(noise_scale=0.0, layers=layers))
        noised, _ = stepped(model, QuantileClipping(noise_scale=2.0, layers=layers))
        assert float((noised - bare).std()) == pytest.approx(2.0 * float(clip_norms.norm()), rel=0.15)
        fixed, _ = stepped(model, QuantileClipping(noise_scale=2.0, layers=layers, noise_unit="absolute"))
        assert float((fixed - bare).std()) == pytest.approx(2.0, rel=0.15)


def test_an_empty_batch_keeps_the_last_quantile_and_is_noise_alone():
    model = SMALL["cnn"]()
    private = PrivateGradient(model, QuantileClipping(noise_scale=1.0), 1.0, generator())
    private.step(*batch(0))
    assert float(private.clip_norms) == 0 and float(gradient_of(model).abs().max()) == 0
    private.step(*batch(9))
    last = float(private.clip_norms)
    private.step(*batch(0))
    assert float(private.clip_norms) == last > 0
    assert float(gradient_of(model).std()) == pytest.approx(last, rel=0.15)


# The noised quantile


def test_the_clip_norm_moves_as_its_authors_say():
    rule = NoisedQuantile(noise_scale=1.0, initial=0.5, quantile=0.7, learning_rate=0.2, count_noise_std=1e-9)
    moved = rule.next_clip_norms(torch.tensor([0.5]), 10, torch.tensor(4.0), 20.0, generator())
    # b = ½ + (4 − 5) / 20 = 0.45
    assert float(moved) == pytest.approx(0.5 * math.exp(-0.2 * (0.45 - 0.7)))
    noised = [
        float(
            replace(rule, count_noise_std=3.0).next_clip_norms(
                torch.tensor([0.5]), 10, torch.tensor(4.0), 20.0, generator(i)
            )
        )
        for i in range(2000)
    ]
    assert np.log(noised).std() == pytest.approx(0.2 * 3 / 20, rel=0.05)


def test_the_sum_is_noised_by_the_clip_norm_it_was_clipped_to():
    """Not by the next one, which the count has moved already."""
    model = SMALL["cnn"]()
    rule = NoisedQuantile(noise_scale=2.0, initial=0.1, quantile=0.5, learning_rate=3.0, count_noise_std=0.1)
    noised, moved = stepped(model, rule, expected=12.0)
    bare, _ = stepped(model, replace(rule, noise_scale=0.0), expected=12.0)
    assert float(moved) > 0.15
    assert float((noised - bare).std()) == pytest.approx(2.0 * 0.1 / 12, rel=0.1)


def test_one_example_moves_the_count_by_a_half_at_most():
    rule = NoisedQuantile(noise_scale=1.0, initial=1.0, quantile=0.5, learning_rate=1.0, count_noise_std=1e-9)
    for within in (0.0, 1.0):  # of the example that comes in
        before = rule.next_clip_norms(torch.ones(1), 10, torch.tensor(6.0), 10.0, generator())
        after = rule.next_clip_norms(torch.ones(1), 11, torch.tensor(6.0 + within), 10.0, generator())
        assert abs(math.log(float(after) / float(before))) == pytest.approx(0.5 / 10, rel=1e-4)


def test_the_clip_norm_finds_the_quantile():
    model = SMALL["cnn"]()
    rule = NoisedQuantile(noise_scale=0.0, initial=1e-3, quantile=0.5, learning_rate=0.2, count_noise_std=0.5)
    private = PrivateGradient(model, rule, 40.0, generator(1))
    images, labels = batch(40)
    for _ in range(200):
        private.step(images, labels)
    norms = flat(by_hand(deepcopy(model), images, labels)).norm(dim=1)
    assert float(norms.quantile(0.4)) < float(private.clip_norms) < float(norms.quantile(0.6))


def test_the_accounting_equals_opacus_adaclip():
    """Same ε by the same multiplier, and the same noise on the sum, read off from Opacus's optimizer itself."""
    multiplier, sample_rate, steps = 1.1, 128 / 6000, 300
    model = nn.Linear(4, 1)
    optimizer = AdaClipDPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0), noise_multiplier=multiplier, target_unclipped_quantile=0.5,
        clipbound_learning_rate=0.2, max_clipbound=1e9, min_clipbound=1e-9, unclipped_num_std=0.7, max_grad_norm=1.0,
        expected_batch_size=1,
    )  # fmt: skip
    accountant = RDPAccountant()
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=sample_rate))
    noise = []
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad_sample = torch.zeros(2, *parameter.shape)
        optimizer.max_grad_norm = torch.tensor(1.0)
        optimizer.step()
        noise += [value for parameter in model.parameters() for value in parameter.grad.flatten().tolist()]
        optimizer.zero_grad()
    defense = NoisedQuantileDefense(noise_multiplier=multiplier, count_noise_std=0.7, accountant="rdp")
    plan = plan_of(defense, n_train=6000, batch_size=128)
    assert plan.accounting.guarantee(steps).epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert np.std(noise) == pytest.approx(plan.rule.noise_scale, rel=0.06)
    assert plan.rule.noise_scale > 1.5 * multiplier
    unsaid = plan_of(replace(defense, count_noise_std=None), n_train=6000, batch_size=128)
    assert unsaid.rule.count_noise_std == 6.4


def test_a_count_that_costs_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match=r"count_noise_std is 0\.4; it must be above half of the noise multiplier, 1"):
        plan_of(NoisedQuantileDefense(noise_multiplier=1.0), n_train=100, batch_size=8)


# Chunks, padding and replay


RULES = {
    "two scalars": NoiseThenClip(max_grad_norm=0.3, noise_scale=0.02, form="two_scalar"),
    "literal": NoiseThenClip(max_grad_norm=0.3, noise_scale=0.02, form="literal"),
    "quantile": QuantileClipping(noise_scale=0.1),
    "quantile per layer": QuantileClipping(noise_scale=0.1, layers="per_layer"),
    "noised quantile": NoisedQuantile(
        noise_scale=0.1, initial=0.2, quantile=0.5, learning_rate=0.5, count_noise_std=1.0
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_chunks_and_padding_change_no_rules_numbers(rule):
    model = SMALL["cnn"]()
    whole, clip_norms = stepped(model, rule)
    for more in ({"chunk_size": 5}, {"chunk_size": 1}, {"pad_to": 8}, {"chunk_size": 5, "pad_to": 4}):
        ours, moved = stepped(model, rule, **more)
        assert distance(ours, whole) < 1e-5
        assert moved.numpy() == pytest.approx(clip_norms.numpy(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_replayed_steps_equal_eager_ones_under_every_rule(rule, chunk_size):
    """A stand-in for a captured graph: the same work on the same memory, with values read again."""
    model = SMALL["cnn"]()
    performance = Performance(pad_to=8, chunk_size=chunk_size)
    eager, replayed = (
        PrivateGradient(each, rule, 10.0, generator(2), performance=performance) for each in (model, deepcopy(model))
    )
    for name in ("chunk", "whole", "norms"):
        function = getattr(replayed, f"_run_{name}")
        if function != replayed._literal_chunk:
            setattr(replayed, f"_run_{name}", Replay(function, capture=rerun))
    for number, count in enumerate((9, 16, 3, 0, 16, 9, 20)):
        images, labels = batch(count, seed=number)
        for private in (eager, replayed):
            private.step(images, labels)
        for ours, theirs in zip(replayed._parameters, eager._parameters, strict=True):
            assert distance(ours.grad, theirs.grad) < 1e-5
        assert replayed.clip_norms.numpy() == pytest.approx(eager.clip_norms.numpy(), rel=1e-5)


def test_a_layer_whose_parameters_are_all_another_ones_is_no_group():
    shared = nn.Linear(6, 6)
    tied = nn.Linear(6, 6)
    tied.weight, tied.bias = shared.weight, shared.bias
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), shared, nn.Tanh(), tied, nn.Linear(6, 5))
    private = PrivateGradient(model, QuantileClipping(noise_scale=0.0, layers="per_layer"), 1.0, generator())
    for _ in range(2):
        private.step(torch.rand(7, 2, 4, 4, generator=generator(1)), torch.arange(7) % 5)
        assert len(private.clip_norms) == 3
        assert (private.clip_norms > 0).all()


# What is claimed


def plan_of(*defenses, n_train=1000, **training):
    training = Training(**({"epochs": 2, "batch_size": 50} | training))
    info = Digits().describe(None)
    return make_plan(training, defenses, build_model(LomurnoCnn(), defenses, info, 0), n_train)


def test_clipping_before_noise_has_the_guarantee_of_dp_sgd():
    theirs = plan_of(DpSgd(noise_multiplier=0.8, max_grad_norm=0.5, accountant="rdp"))
    relative = plan_of(ClipThenNoiseDefense(noise_scale=0.8, max_grad_norm=0.5, accountant="rdp"))
    absolute = plan_of(
        ClipThenNoiseDefense(noise_scale=0.4, max_grad_norm=0.5, noise_unit="absolute", accountant="rdp")
    )
    clip_norm = torch.tensor([0.5])
    for plan in (relative, absolute):
        assert plan.sampling == "poisson"
        assert plan.accounting == theirs.accounting
        assert float(plan.rule.noise_std(clip_norm)) == pytest.approx(float(theirs.rule.noise_std(clip_norm)))


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (NoiseThenClipDefense(), "noise was added to each gradient before clipping"),
        (QuantileClippingDefense(), "a quantile of the batch's own norms, which was not noised"),
        (QuantileClippingDefense(layers="per_layer"), "a quantile of the batch's own norms"),
        (ClipThenNoiseDefense(noise_scale=0.0), "no noise was added"),
    ],
)
def test_what_proves_nothing_says_why(defense, words):
    plan = plan_of(defense)
    assert plan.rule is not None and plan.accounting is None
    assert words in plan.no_guarantee_reason


@pytest.mark.parametrize("sampling", ["shuffled", "poisson"])
def test_mechanisms_without_accounting_take_the_batches_that_the_training_asks_for(sampling):
    assert plan_of(NoiseThenClipDefense(), sampling=sampling).sampling == sampling
    assert plan_of(QuantileClippingDefense(), sampling=sampling).sampling == sampling
    assert plan_of(ClipThenNoiseDefense(accountant="rdp"), sampling=sampling).sampling == "poisson"


def test_two_mechanisms_in_one_training_are_refused():
    with pytest.raises(ValueError, match="two private mechanisms"):
        plan_of(NoiseThenClipDefense(), QuantileClippingDefense())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoiseThenClipDefense(noise_scale=-0.1), "noise_scale is -0.1; it must be zero or more"),
        (lambda: NoiseThenClipDefense(max_grad_norm=0.0), "max_grad_norm is 0.0; it must be above 0"),
        (lambda: ClipThenNoiseDefense(noise_scale=math.inf), "noise_scale is inf"),
        (lambda: ClipThenNoiseDefense(delta=1.0), "delta is 1.0"),
        (lambda: ClipThenNoiseDefense(accountant="moments"), "accountant is 'moments'; allowed: prv, rdp"),
        (lambda: QuantileClippingDefense(quantile=1.5), "quantile is 1.5; it must be from 0 to 1"),
        (lambda: NoisedQuantileDefense(), "exactly one of epsilon and noise_multiplier"),
        (lambda: NoisedQuantileDefense(epsilon=2.0, count_noise_std=0.0), "count_noise_std is 0.0"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make()


# Whole trainings


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", LEARNING_RATES)
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_optimizer_takes_every_mechanism_and_goes_on_from_a_checkpoint(name, optimizer):
    data = Digits(max_train_examples=120).load(None)
    checkpoints = []

    def train(epochs, **more):
        return Recipe(
            architecture=LomurnoCnn(filters=(4, 4, 4), dense_units=8), defenses=(MECHANISMS[name],), data=data,
            training=Training(epochs=epochs, batch_size=30, optimizer=optimizer, sampling="poisson"),
            members=np.arange(120), test=np.arange(120, 200), seed=1, target_id="a target", **more,
        ).train()  # fmt: skip

    whole = train(2, on_checkpoint=checkpoints.append)
    resumed = train(2, resume=checkpoints[0])
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [r.clip_norm for r in whole.history] == [r.clip_norm for r in resumed.history]
    assert all(record.clip_norm > 0 for record in whole.history)
    assert (whole.guarantee is not None) == (name in ("clip_then_noise", "noised_quantile"))


def test_learning_rates_default_to_the_optimizers_own():
    assert {name: Training(optimizer=name).learning_rate for name in LEARNING_RATES} == LEARNING_RATES
    assert Training(optimizer="adam") == Training(optimizer="adam", learning_rate=0.001)
    with pytest.raises(ValueError, match=r"momentum is 0\.9, but only sgd takes one, and the optimizer is adam"):
        Training(optimizer="adam", momentum=0.9)


def test_poisson_batches_of_an_undefended_training_are_averaged_over_their_expected_size():
    model = SMALL["cnn"]()
    images, labels = batch(9)
    PlainGradient(model, 18.0).step(images, labels)
    halved = gradient_of(model)
    PlainGradient(model).step(images, labels)
    assert distance(2 * halved, gradient_of(model)) < 1e-6
    PlainGradient(model, 18.0).step(*batch(0))
    assert float(gradient_of(model).abs().max()) == 0
