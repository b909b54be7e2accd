"""What a training plan and the defenses can change: the loss, the data, the optimizer, the way of training, the answers."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from private_reference import SMALL, batch, distance, generator
from scipy import stats
from torch import nn
from torch.nn import functional
from training_fixture import CNN, Linear, fit_on, numbered, spelled, weights

from models.answers import answer_of, loss_and_accuracy, predict
from models.architectures.logistic_regression import LogisticRegression
from models.augmentation import CropAndFlip, Mixing
from models.datasets.breast_cancer import BreastCancer
from models.datasets.digits import Digits
from models.defenses.augmentation import Augmentation
from models.defenses.base import Defense
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.early_stopping import EarlyStopping
from models.defenses.l2 import L2
from models.defenses.label_smoothing import LabelSmoothing
from models.defenses.majority_of import MajorityOf
from models.defenses.mixup import Mixup
from models.defenses.noise_then_clip import NoiseThenClipDefense
from models.defenses.temperature import Temperature
from models.defenses.weight_decay import WeightDecay
from models.gradient import PlainGradient
from models.losses import CrossEntropy, Loss
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise
from models.seeds import Stream, torch_generator, torch_seed
from models.train import Recipe, Training, build_model, make_plan
from sweeper.results import checkpoints

WHOLE = {"epochs": 6, "batch_size": 240, "learning_rate": 0.2}
"""Full batches: nothing about the batches is random."""


@pytest.fixture(scope="module")
def digits():
    return Digits(max_train_examples=240, max_test_examples=60).load(None)


def initial(data, architecture=CNN):
    return build_model(architecture, (), data.info, torch_seed(3, Stream.INIT))


def followed(data, optimizer_of, loss_of, schedule_of=None, steps=6, after=lambda model: None):
    """PyTorch's own optimizer on full batches, as a reference."""
    model = initial(data)
    optimizer = optimizer_of(model.parameters())
    schedule = schedule_of(optimizer) if schedule_of else None
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model(data.inputs[:240]), data.labels[:240]).backward()
        after(model)
        optimizer.step()
        if schedule:
            schedule.step()
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def sgd(**settings):
    return lambda parameters: torch.optim.SGD(parameters, lr=0.2, **settings)


# The optimizer's settings


@pytest.mark.parametrize(
    ("settings", "optimizer_of", "schedule_of"),
    [
        ({"schedule": "cosine"}, sgd(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6)),
        ({"schedule": "steps"}, sgd(), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 5])),
        ({"momentum": 0.9, "nesterov": True}, sgd(momentum=0.9, nesterov=True), None),
        ({"weight_decay": 0.05}, sgd(weight_decay=0.05), None),
        (
            {"optimizer": "adam", "schedule": "cosine", "weight_decay": 0.05},
            lambda parameters: torch.optim.Adam(parameters, lr=0.2, weight_decay=0.05),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
        ),
    ],
)
def test_settings_of_the_training_are_pytorchs_own(digits, settings, optimizer_of, schedule_of):
    ours = fit_on(digits, **WHOLE | settings)
    reference = followed(digits, optimizer_of, functional.cross_entropy, schedule_of)
    assert not torch.allclose(weights(ours), weights(fit_on(digits, **WHOLE)), atol=1e-3)
    torch.testing.assert_close(weights(ours), reference, rtol=2e-3, atol=2e-4)


def test_a_batchs_gradient_is_clipped_as_pytorch_does(digits):
    ours = fit_on(digits, clip_grad_norm=0.05, **WHOLE)
    reference = followed(
        digits,
        sgd(),
        functional.cross_entropy,
        after=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05),
    )
    torch.testing.assert_close(weights(ours), reference, rtol=1e-4, atol=1e-6)


def test_weight_decay_as_a_defense_adds_to_that_of_the_training_and_to_l2(digits):
    ours = fit_on(digits, WeightDecay(weight=0.03), L2(weight=0.1), weight_decay=0.02, **WHOLE)

    def penalized(model):
        for name, value in model.named_parameters():
            value.grad += 0.05 * value.detach() + (0.2 * value.detach() if name == "stages.prediction.0.weight" else 0)

    torch.testing.assert_close(
        weights(ours), followed(digits, sgd(), functional.cross_entropy, after=penalized), rtol=1e-3, atol=1e-5
    )


def test_the_averaged_weights_are_the_exponential_moving_average_of_those_after_each_step(digits):
    average, step = None, 0

    def note(model):
        nonlocal average, step
        current = torch.cat([value.detach().flatten() for value in model.state_dict().values()])
        if average is None:
            average = current.clone()
        elif step:
            decay = min(0.8, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * current
        step += 1

    plain = followed(digits, sgd(), functional.cross_entropy, steps=7, after=note)  # notes the weights before each step
    ours = fit_on(digits, ema_decay=0.8, evaluate_every=6, **WHOLE)
    torch.testing.assert_close(weights(ours), average, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(weights(ours), plain, atol=1e-3)
    loss, _ = loss_and_accuracy(*predict(answer_of(ours.model), digits, np.arange(240, 300)))
    assert ours.history[-1].test_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True}, "nesterov is true, but momentum is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be zero or more"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm is 0.0; it must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be above 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


# Losses


@pytest.mark.parametrize("smoothing", [-0.3, 0.0, 0.1, 0.9])
def test_smoothed_cross_entropy_is_pytorchs(smoothing):
    logits, labels = 4 * torch.randn(50, 7, generator=generator(1)), torch.arange(50) % 7
    ours = CrossEntropy(label_smoothing=smoothing)(logits, labels, 1)
    target = torch.full((50, 7), smoothing / 7)
    target[torch.arange(50), labels] += 1 - smoothing
    torch.testing.assert_close(ours, functional.cross_entropy(logits, target, reduction="none"), rtol=1e-5, atol=1e-5)


def test_label_smoothing_trains_on_its_loss(digits):
    ours = fit_on(digits, LabelSmoothing(smoothing=0.3), **WHOLE)
    smoothed = followed(
        digits, sgd(), lambda logits, labels: functional.cross_entropy(logits, labels, label_smoothing=0.3)
    )
    torch.testing.assert_close(weights(ours), smoothed, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class FurtherEachEpoch(Loss):
    """The distance of the loss from a level that falls with the epoch."""

    def __call__(self, logits, labels, epoch):
        return (functional.cross_entropy(logits, labels, reduction="none") - 3 / epoch).abs()


@pytest.mark.parametrize("epoch", [1, 4])
@pytest.mark.parametrize("name", SMALL)
def test_private_gradients_are_of_any_loss_per_example(name, epoch):
    model, (inputs, labels) = SMALL[name](), batch(12)
    private = PrivateGradient(
        model, ClipThenNoise(max_grad_norm=0.1, noise_scale=0.0), 1.0, generator(), loss=FurtherEachEpoch()
    )
    private.start_epoch(epoch)
    private.step(inputs, labels)
    private.close()
    ours = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    expected = torch.zeros_like(ours)
    for each, label in zip(inputs, labels, strict=True):
        loss = FurtherEachEpoch()(model(each[None]), label[None], epoch).sum()
        single = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
        expected += single * min(1.0, 0.1 / float(single.norm()))
    assert distance(ours, expected) < 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda losses: losses - losses.mean(), "mixes examples"),
        (lambda losses: losses.mean(), "one value for each"),
    ],
)
def test_a_loss_that_mixes_examples_has_no_private_gradient(wrong, message):
    class Mixed(Loss):
        def __call__(self, logits, labels, epoch):
            return wrong(functional.cross_entropy(logits, labels, reduction="none"))

    private = PrivateGradient(
        next(iter(SMALL.values()))(),
        ClipThenNoise(max_grad_norm=1.0, noise_scale=1.0),
        1.0,
        generator(),
        loss=Mixed(),
    )
    with pytest.raises(ValueError, match=message):
        private.step(*batch(12))


def test_the_loss_of_an_epoch_is_that_epochs(digits):
    class Epochs(Loss):
        seen: ClassVar[list[int]] = []

        def __call__(self, logits, labels, epoch):
            self.seen.append(epoch)
            return functional.cross_entropy(logits, labels, reduction="none")

    class Watched(Defense):
        def edit_training(self, plan, model):
            return replace(plan, loss=Epochs())

    fit_on(digits, Watched(), epochs=3, batch_size=120)
    assert Epochs.seen == [1, 1, 2, 2, 3, 3]


# Augmentation and mixtures


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9)])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_an_augmented_image_is_a_crop_of_the_padded_one_and_all_are_equally_likely(shape, padding):
    image = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.uint8).reshape(shape)
    _, height, width = shape
    around = functional.pad(image, (padding,) * 4)
    crops = [
        around[:, down : down + height, right : right + width]
        for down in range(2 * padding + 1)
        for right in range(2 * padding + 1)
    ]
    possible = {each.numpy().tobytes(): 0 for crop in crops for each in (crop, crop.flip(-1))}
    many = CropAndFlip(padding=padding)(image.expand(3000, *shape), generator(2))
    assert many.dtype == torch.uint8
    assert many.shape == (3000, *shape)
    found = Counter(each.numpy().tobytes() for each in many)
    assert set(found) == set(possible)
    assert stats.chisquare(list(found.values())).pvalue > 1e-4
    unflipped = CropAndFlip(padding=padding, flip=False)(image.expand(300, *shape), generator(2))
    assert {each.numpy().tobytes() for each in unflipped} <= {crop.numpy().tobytes() for crop in crops}


def test_augmentation_is_drawn_anew_for_each_example_and_batch_and_is_no_one_elses(digits, monkeypatch):
    seen = []
    step = PlainGradient.step
    monkeypatch.setattr(
        PlainGradient, "step", lambda self, inputs, *rest: (seen.append(inputs.clone()), step(self, inputs, *rest))[1]
    )
    plain = fit_on(digits, epochs=2, batch_size=240)
    ours = fit_on(digits, Augmentation(padding=2), epochs=2, batch_size=240)
    again = fit_on(digits, augmentation="crop_flip", epochs=2, batch_size=240)
    batches = [each.flatten(1).double().sum(1).sort().values for each in seen]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(weights(ours), weights(fit_on(digits, Augmentation(padding=2), epochs=2, batch_size=240)))
    assert not torch.equal(weights(ours), weights(plain))
    assert not torch.equal(weights(ours), weights(again))  # pads 4


def test_private_gradients_are_of_augmented_images(digits):
    arguments = {"epochs": 2, "batch_size": 60}
    private = DpSgd(noise_multiplier=1e-6, max_grad_norm=1e4, accountant="rdp")
    plain, changed = fit_on(digits, private, **arguments), fit_on(digits, private, Augmentation(), **arguments)
    assert not torch.allclose(weights(plain), weights(changed), atol=1e-4)
    assert changed.guarantee == plain.guarantee


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_shares_of_mixtures_are_betas(alpha):
    numbers, inputs, labels = generator(5), torch.zeros(3, 2), torch.arange(3)
    shares = [float(Mixing(alpha=alpha)(inputs, labels, numbers)[2]) for _ in range(600)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_mixture_is_of_two_inputs_and_of_their_losses(kind):
    inputs = torch.randint(256, (6, 1, 8, 8), generator=generator(1)).to(kind)
    labels = torch.arange(6)
    mixed, others, share = Mixing(alpha=1.0)(inputs, labels, generator(3))
    values = inputs.float() / 255 if kind == torch.uint8 else inputs
    torch.testing.assert_close(mixed, share * values + (1 - share) * values[others])
    assert sorted(others.tolist()) == list(range(6))


def test_mixup_follows_the_gradient_of_the_mixed_loss(digits):
    ours = fit_on(digits, Mixup(alpha=0.7), **WHOLE | {"epochs": 1})
    model = initial(digits)
    numbers = torch_generator(3, Stream.AUGMENTATION)
    order = torch.randperm(240, generator=torch_generator(3, Stream.SAMPLING))
    inputs, labels = digits.inputs[order], digits.labels[order]
    mixed, others, share = Mixing(alpha=0.7)(inputs, labels, numbers)
    logits = model(mixed)
    loss = share * functional.cross_entropy(logits, labels) + (1 - share) * functional.cross_entropy(logits, others)
    loss.backward()
    with torch.no_grad():
        for value in model.parameters():
            value -= 0.2 * value.grad
    reference = torch.cat([value.flatten() for value in model.state_dict().values()])
    torch.testing.assert_close(weights(ours), reference, rtol=1e-4, atol=1e-6)


# Early stopping


def test_early_stopping_keeps_the_epoch_with_the_least_loss_on_members_that_it_never_trains_on(digits, monkeypatch):
    data, batches = numbered(80), []
    step = PlainGradient.step
    monkeypatch.setattr(
        PlainGradient,
        "step",
        lambda self, inputs, *rest: (batches.extend(spelled(inputs)), step(self, inputs, *rest))[1],
    )
    target = fit_on(data, EarlyStopping(held_out=0.25, patience=3), architecture=Linear(), epochs=50, batch_size=20)
    held_out = np.setdiff1d(np.arange(80), batches)
    assert len(held_out) == 20
    assert target.plan.n_train == 60
    losses = [record.held_out_loss for record in target.history]
    best = int(np.argmin(losses))
    assert len(losses) == min(50, best + 1 + 3)
    loss, _ = loss_and_accuracy(*predict(answer_of(target.model), data, held_out))
    assert loss == pytest.approx(losses[best], rel=1e-5)
    assert target.steps == 3 * len(losses)


def test_early_stopping_stops_where_nothing_is_gained(digits):
    noise = np.random.default_rng(0).integers(10, size=300)
    data = replace(digits, labels=torch.from_numpy(noise))
    target = fit_on(data, EarlyStopping(held_out=0.3, patience=2), epochs=60, batch_size=20, learning_rate=0.2)
    assert len(target.history) < 60


# All of it, killed and resumed


@pytest.mark.parametrize(
    "defenses",
    [
        (Augmentation(), Mixup(), EarlyStopping(patience=9), Dropout(rate=0.3)),
        (LabelSmoothing(), Augmentation(), DpSgd(noise_multiplier=1.0, accountant="rdp")),
    ],
    ids=["plain", "private"],
)
def test_a_training_with_everything_resumes_to_the_same_weights(digits, defenses):
    settings = {
        "epochs": 5,
        "batch_size": 60,
        "ema_decay": 0.9,
        "momentum": 0.9,
        "nesterov": True,
        "schedule": "cosine",
    }
    taken, cpu = [], torch.device("cpu")
    whole = fit_on(
        digits, *defenses, on_checkpoint=lambda each: taken.append(checkpoints.to_bytes(each, {})), **settings
    )
    for content in (taken[0], taken[2]):
        resumed = fit_on(digits, *defenses, resume=checkpoints.from_bytes(content, {}, cpu), **settings)
        assert torch.equal(weights(whole), weights(resumed))
        assert [each.held_out_loss for each in whole.history] == [each.held_out_loss for each in resumed.history]


# Models of several models


def test_an_ensemble_answers_by_the_votes_of_models_that_share_no_member(digits, monkeypatch):
    batches = []
    start, step = PlainGradient.__init__, PlainGradient.step

    def init(self, *arguments, **more):
        batches.append(set())
        start(self, *arguments, **more)

    def observed(self, inputs, *rest):
        batches[-1] |= {each.numpy().tobytes() for each in inputs}
        return step(self, inputs, *rest)

    monkeypatch.setattr(PlainGradient, "__init__", init)
    monkeypatch.setattr(PlainGradient, "step", observed)
    target = fit_on(digits, MajorityOf(models=3), Dropout(rate=0.1), epochs=4, batch_size=20)
    everyone = {each.numpy().tobytes() for each in digits.inputs[:240]}
    assert sum(map(len, batches)) == len(everyone)
    assert set().union(*batches) == everyone
    votes = target.model.stages.votes
    with torch.no_grad():
        decisions = torch.stack([model(digits.inputs).argmax(1) for model in votes.models])
        shares = target.model(digits.inputs).exp()
    assert len({tuple(row.tolist()) for row in decisions}) == 3
    expected = (functional.one_hot(decisions, 10).sum(0) + 0.1) / 4
    torch.testing.assert_close(shares, expected.float())
    torch.testing.assert_close(shares.sum(1), torch.ones(300))
    assert [record.epoch for record in target.history] == list(range(1, 13))
    assert target.steps == target.history[-1].step == 3 * 4 * 4
    rebuilt = build_model(CNN, (Dropout(rate=0.1), MajorityOf(models=3)), digits.info, 0)
    rebuilt.load_state_dict(target.model.state_dict())
    assert torch.equal(rebuilt.eval()(digits.inputs), target.model(digits.inputs))
    again = fit_on(digits, MajorityOf(models=3), Dropout(rate=0.1), epochs=4, batch_size=20)
    assert torch.equal(weights(target), weights(again))


def test_an_interrupted_ensemble_trains_only_what_is_missing(digits, monkeypatch):
    settings, taken = {"epochs": 3, "batch_size": 20}, []
    defenses = (MajorityOf(models=3), Dropout(rate=0.2))
    whole = fit_on(
        digits, *defenses, on_checkpoint=lambda each: taken.append(checkpoints.to_bytes(each, {})), **settings
    )
    assert len(taken) == 9
    for number, content in enumerate(taken):
        steps = []
        step = PlainGradient.step
        with monkeypatch.context() as patched:
            patched.setattr(
                PlainGradient, "step", lambda *each, steps=steps, step=step: (steps.append(1), step(*each))[1]
            )
            resumed = fit_on(
                digits, *defenses, resume=checkpoints.from_bytes(content, {}, torch.device("cpu")), **settings
            )
        assert torch.equal(weights(whole), weights(resumed))
        assert len(steps) == whole.steps - whole.history[number].step
        assert [each.train_loss for each in whole.history] == [each.train_loss for each in resumed.history]
        assert whole.steps == resumed.steps


# What cannot be combined


class TrainsOtherwise(Defense):
    def train(self, recipe):
        return recipe.fit()


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        ((Mixup(), DpSgd(epsilon=8.0)), "mixup mixes examples"),
        ((DpSgd(epsilon=8.0), Mixup()), "mixup mixes examples"),
        ((NoiseThenClipDefense(noise_scale=0.1), Mixup()), "mixup mixes examples"),
        ((EarlyStopping(), DpSgd(epsilon=8.0)), "ε does not cover that"),
        ((DpSgd(epsilon=8.0), EarlyStopping()), "ε does not cover that"),
        ((Mixup(alpha=1.0), Mixup(alpha=0.2)), "two defenses mix examples"),
        ((Augmentation(), Augmentation(padding=0)), "only one can change the images"),
        ((Augmentation(padding=8),), "padding is 8 pixels, and images are 8x8; it must be at most 7"),
        ((MajorityOf(models=2), DpSgd(epsilon=8.0)), "majority_of trains in a way of its own"),
        ((MajorityOf(models=2), TrainsOtherwise()), "majority_of and test_plans both train in their own way"),
        ((MajorityOf(models=20),), "only 12 training examples"),
        ((EarlyStopping(held_out=0.95),), "only 12 training examples"),
    ],
)
def test_what_cannot_be_combined_is_refused(digits, defenses, message):
    with pytest.raises(ValueError, match=message):
        fit_on(digits, *defenses)


def test_augmentation_of_a_table_is_refused():
    table = BreastCancer().load(None)
    with pytest.raises(ValueError, match="augmentation by CropAndFlip needs images, and the examples are rows of 30"):
        fit_on(table, Augmentation(), architecture=LogisticRegression())


# Answers


def test_temperature_divides_answers_and_changes_no_weight(digits):
    plain, scaled = fit_on(digits), fit_on(digits, Temperature(temperature=5.0))
    assert torch.equal(weights(plain), weights(scaled))
    index = np.arange(300)
    own, labels = predict(answer_of(plain.model), digits, index)
    edited, _ = predict(answer_of(scaled.model, (Dropout(), Temperature(temperature=5.0))), digits, index)
    torch.testing.assert_close(edited, own / 5)
    assert loss_and_accuracy(edited, labels)[1] == loss_and_accuracy(own, labels)[1]


def test_answers_are_edited_in_the_order_of_the_defenses(digits):
    class Plus(Defense):
        def edit_answers(self, answer):
            return lambda inputs: answer(inputs) + 1

    model = deepcopy(initial(digits))
    logits = model.eval()(digits.inputs[:5]).detach()
    answer = answer_of(model, (Plus(), Temperature(temperature=2.0)))
    torch.testing.assert_close(answer(digits.inputs[:5]), (logits + 1) / 2)


# ε is that of the steps that are taken


@dataclass(frozen=True, kw_only=True)
class Edits(Defense):
    """Replaces fields of the plan."""

    changes: tuple

    def edit_training(self, plan, model):
        return replace(plan, **dict(self.changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 64},
        {"n_train": 120},
        {"sampling": "shuffled"},
        {"rule": ClipThenNoise(max_grad_norm=1.0, noise_scale=0.1)},
        {"rule": None},
    ],
    ids=["batch", "fewer", "shuffled", "other rule", "no rule"],
)
def test_a_defense_after_the_mechanism_cannot_change_what_epsilon_was_computed_for(digits, changes):
    private, edits = DpSgd(noise_multiplier=1.0, accountant="rdp"), Edits(changes=tuple(changes.items()))
    with pytest.raises(ValueError, match="list that defense before the mechanism"):
        fit_on(digits, private, edits)
    if "batch_size" in changes:
        target = fit_on(digits, edits, private, epochs=1)
        assert target.guarantee.epsilon == fit_on(digits, edits, private, epochs=1).guarantee.epsilon


def test_a_plan_for_other_examples_than_there_are_is_refused(digits):
    with pytest.raises(ValueError, match="n_train of the plan is 120, but there are 240 examples"):
        fit_on(digits, Edits(changes=(("n_train", 120),)))


def test_epsilon_may_change_with_the_number_of_steps_alone(digits):
    private = DpSgd(noise_multiplier=1.0, accountant="rdp")
    longer = fit_on(digits, private, Edits(changes=(("epochs", 4),)), epochs=2)
    assert longer.guarantee == fit_on(digits, private, epochs=4).guarantee


class Fused(DpSgd):
    """A mechanism with a training of its own, which no accounting knows."""

    def train(self, recipe):
        return recipe.fit()


def test_a_mechanism_cannot_train_in_its_own_way(digits):
    with pytest.raises(ValueError, match="test_plans is a private mechanism with a `train` of its own"):
        fit_on(digits, Fused(epsilon=8.0))


def test_a_rule_that_any_defense_brings_is_refused_beside_an_ensemble(digits):
    rule = Edits(changes=(("rule", ClipThenNoise(max_grad_norm=1.0, noise_scale=1.0)),))
    with pytest.raises(ValueError, match="majority_of trains in a way of its own"):
        fit_on(digits, MajorityOf(models=2), rule)


def per_example(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda losses, epoch: losses - (losses.mean() if epoch > 1 else 0),
        lambda losses, epoch: losses + losses.mean() - losses.mean().detach(),
        lambda losses, epoch: losses + losses.roll(1),
    ],
    ids=["later", "gradient alone", "neighbor"],
)
@pytest.mark.parametrize("batch_size", [2, 60])
def test_no_epsilon_is_stated_for_a_loss_that_mixes_examples(digits, wrong, batch_size):
    class Mixes(Loss):
        def __call__(self, logits, labels, epoch):
            return wrong(per_example(logits, labels), epoch)

    loss, private = Edits(changes=(("loss", Mixes()),)), DpSgd(noise_multiplier=1.0, accountant="rdp")
    with pytest.raises(ValueError, match="mixes examples"):
        fit_on(digits, loss, private, epochs=2, batch_size=batch_size)


def test_a_loss_that_mixes_examples_in_a_late_epoch_is_refused_there(digits):
    class Late(Loss):
        def __call__(self, logits, labels, epoch):
            losses = per_example(logits, labels)
            return losses + losses.mean() if epoch == 3 else losses

    loss, private = Edits(changes=(("loss", Late()),)), DpSgd(noise_multiplier=1.0, accountant="rdp")
    with pytest.raises(ValueError, match="mixes examples in epoch 3"):
        fit_on(digits, loss, private, epochs=4, batch_size=60)


def test_no_epsilon_is_stated_for_an_augmentation_that_mixes_examples(digits):
    class Blends(CropAndFlip):
        def __call__(self, inputs, generator):
            return torch.maximum(inputs, inputs.flip(0))

    blends, private = Edits(changes=(("augmentation", Blends()),)), DpSgd(noise_multiplier=1.0, accountant="rdp")
    fit_on(digits, blends, epochs=1)
    with pytest.raises(ValueError, match="augmentation Blends mixes examples"):
        fit_on(digits, blends, private)


def test_runs_on_other_data_share_no_noise_even_under_one_identity(digits):
    """At a huge noise, weights are noise alone, so equal noise would give nearly equal weights."""
    private = DpSgd(noise_multiplier=100.0, accountant="rdp")
    edited = replace(digits, inputs=digits.inputs.clone(), sha256="other")
    edited.inputs[0] = 255 - edited.inputs[0]
    ours, theirs = (weights(fit_on(data, private, epochs=1)) for data in (digits, edited))
    start = torch.cat([value.flatten() for value in initial(digits).state_dict().values()])
    assert (ours - theirs).norm() > (ours - start).norm()  # √2 times, if both are independent


# Defenses that are listed twice, and numbers that leave nothing


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        ((EarlyStopping(held_out=0.3), EarlyStopping(held_out=0.5)), "early stopping is listed twice"),
        ((LabelSmoothing(), LabelSmoothing(smoothing=0.3)), "two defenses replace the loss"),
        ((EarlyStopping(held_out=0.999),), "no member is left to train on"),
        ((EarlyStopping(held_out=0.999), DpSgd(epsilon=8.0)), "no member is left to train on"),
        ((MajorityOf(models=500),), "no member is left to train on"),
        ((Edits(changes=(("weight_decay", {"stages.typo.weight": 0.1}),)),), "stages.typo.weight"),
    ],
)
def test_defenses_that_leave_nothing_or_overwrite_each_other_are_refused(digits, defenses, message):
    with pytest.raises(ValueError, match=message):
        fit_on(digits, *defenses)


def test_a_batch_that_is_too_large_is_named_before_any_noise_is_computed(digits):
    with pytest.raises(ValueError, match="batch_size is 241 but the target has only 240 training examples"):
        fit_on(digits, DpSgd(epsilon=2.0), batch_size=241)


def test_the_parts_of_an_ensemble_are_cut_before_members_are_held_out():
    data = numbered(30)
    defenses = (EarlyStopping(held_out=0.1), MajorityOf(models=5))
    plan = make_plan(Training(epochs=1, batch_size=4), defenses, initial(data, Linear()), 30)
    assert (plan.n_train, plan.n_models) == (5, 5)
    with pytest.raises(ValueError, match="only 5 training examples"):
        make_plan(Training(epochs=1, batch_size=6), defenses, initial(data, Linear()), 30)
    target = fit_on(data, *defenses, architecture=Linear(), epochs=1, batch_size=4)
    assert target.steps == plan.steps * plan.n_models


class ThenAPart(Defense):
    """Trains once by the recipe itself, and once as a part."""

    def train(self, recipe):
        recipe.fit()
        return recipe.fit(members=recipe.members[:120], part=4)


def test_a_training_of_a_model_and_a_part_resumes_where_it_was(digits):
    taken, settings = [], {"epochs": 3, "batch_size": 40}
    whole = fit_on(
        digits, ThenAPart(), on_checkpoint=lambda each: taken.append(checkpoints.to_bytes(each, {})), **settings
    )
    assert len(taken) == 6
    for content in taken:
        resumed = fit_on(
            digits, ThenAPart(), resume=checkpoints.from_bytes(content, {}, torch.device("cpu")), **settings
        )
        assert torch.equal(weights(whole), weights(resumed))


def test_a_recipe_can_be_trained_twice_but_a_part_only_once(digits):
    class Twice(Defense):
        def train(self, recipe):
            recipe.fit(part=0)
            return recipe.fit(part=0)

    with pytest.raises(ValueError, match="part 0 is trained already"):
        fit_on(digits, Twice(), epochs=1)
    recipe = Recipe(
        architecture=Linear(),
        defenses=(MajorityOf(models=2),),
        training=Training(epochs=1, batch_size=20),
        data=digits,
        members=np.arange(240),
        test=np.arange(240, 300),
        seed=1,
        target_id="a target",
    )
    assert torch.equal(weights(recipe.train()), weights(recipe.train()))
