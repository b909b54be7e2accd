"""SELENA: which members its sub-models see, whose answers the student learns, and what resumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_plans import Edits, FurtherEachEpoch
from torch.nn import functional
from training_fixture import CNN, Linear, fit_on, numbered, spelled, weights

from models.answers import answer_of, loss_and_accuracy, predict
from models.datasets.digits import Digits
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.early_stopping import EarlyStopping
from models.defenses.majority_of import MajorityOf
from models.defenses.mixup import Mixup
from models.defenses.relaxloss import Relaxloss
from models.defenses.selena import Selena
from models.gradient import PlainGradient
from models.losses import CrossEntropy, Loss
from models.train import Recipe, Training, build_model, make_plan
from sweeper.results import checkpoints

SMALL = Selena(models=5, left_out=2)


@pytest.fixture(scope="module")
def digits():
    return Digits(max_train_examples=240, max_test_examples=60).load(None)


@pytest.fixture
def fits(monkeypatch):
    """The members, the part and the soft labels of every model that is fitted, with what is trained."""
    calls, fit = [], Recipe.fit

    def noted(self, members=None, part=None, soft_labels=None):
        trained = fit(self, members, part, soft_labels)
        calls.append((self.members if members is None else members, part, soft_labels, trained))
        return trained

    monkeypatch.setattr(Recipe, "fit", noted)
    return calls


@pytest.mark.parametrize(("models", "left_out"), [(5, 2), (4, 1), (3, 2), (25, 10)])
def test_each_member_is_in_all_sub_models_but_those_that_it_is_left_out_of(fits, monkeypatch, models, left_out):
    data, seen = numbered(90), []
    start, step = PlainGradient.__init__, PlainGradient.step
    monkeypatch.setattr(
        PlainGradient, "__init__", lambda self, *each, **more: (seen.append([]), start(self, *each, **more))[1]
    )
    monkeypatch.setattr(
        PlainGradient,
        "step",
        lambda self, inputs, *rest: (seen[-1].extend(spelled(inputs)), step(self, inputs, *rest))[1],
    )
    target = fit_on(data, Selena(models=models, left_out=left_out), architecture=Linear(), epochs=1, batch_size=4)
    *sub_models, student = seen
    assert len(sub_models) == models
    times = np.bincount(np.concatenate(sub_models), minlength=90)
    assert (times == models - left_out).all()
    assert sorted(student) == list(range(90))
    assert [part for _, part, _, _ in fits] == [*range(models), None]
    assert target.steps == target.history[-1].step == sum(-(-len(each) // 4) for each in seen)
    sizes = [len(each) for each in sub_models]
    assert abs(np.mean(sizes) - 90 * (1 - left_out / models)) < 1e-9
    assert len({frozenset(each) for each in sub_models}) == models


def test_soft_labels_are_the_mean_probabilities_of_the_sub_models_that_did_not_see_the_member(digits, fits):
    fit_on(digits, SMALL, Dropout(rate=0.2), batch_size=60)
    *sub_models, (members, _, soft_labels, _) = fits
    with torch.no_grad():
        answers = torch.stack([each.model(digits.inputs[:240]).softmax(1) for *_, each in sub_models])
    is_out = torch.stack([~torch.isin(torch.arange(240), torch.from_numpy(each)) for each, *_ in sub_models])
    assert (is_out.sum(0) == 2).all()
    assert np.array_equal(members, np.arange(240))
    torch.testing.assert_close(soft_labels, (answers * is_out[..., None]).sum(0) / 2)
    torch.testing.assert_close(soft_labels.sum(1), torch.ones(240))


def test_a_members_own_label_is_in_no_way_in_its_soft_label_nor_in_the_students_loss(digits, fits):
    fit_on(digits, SMALL, batch_size=60)
    labels = digits.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    fit_on(replace(digits, labels=labels), SMALL, batch_size=60)
    (_, _, before, _), (_, _, after, _) = (each for each in fits if each[1] is None)
    assert torch.equal(before[7], after[7])
    others = np.delete(np.arange(240), 7)
    assert not torch.equal(before[others], after[others])


def test_the_student_is_the_targets_own_training_on_soft_labels(digits):
    """One-hot soft labels are labels; and full batches follow PyTorch's own soft cross-entropy."""

    class Hard(Edits):
        def train(self, recipe):
            return recipe.fit(soft_labels=functional.one_hot(recipe.data.labels[:240], 10).float())

    settings = {"epochs": 3, "batch_size": 60, "learning_rate": 0.2}
    hard, plain = fit_on(digits, Hard(changes=()), **settings), fit_on(digits, **settings)
    torch.testing.assert_close(weights(hard), weights(plain), rtol=1e-4, atol=1e-5)
    assert [each.train_accuracy for each in hard.history] == [each.train_accuracy for each in plain.history]
    structure = build_model(CNN, (SMALL,), digits.info, 0)
    structure.load_state_dict(fit_on(digits, SMALL, batch_size=60, epochs=1).model.state_dict())


@pytest.mark.parametrize("smoothing", [-0.2, 0.0, 0.3])
def test_the_loss_of_a_soft_label_is_the_mean_over_the_labels(smoothing):
    numbers = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(12, 7, generator=numbers)
    soft_labels = torch.randn(12, 7, generator=numbers).softmax(1)
    for loss in (CrossEntropy(label_smoothing=smoothing), FurtherEachEpoch()):
        each = torch.stack([loss(logits, torch.full((12,), label), 2) for label in range(7)], 1)
        torch.testing.assert_close(loss.soft(logits, soft_labels, 2), (each * soft_labels).sum(1))
    ours = CrossEntropy(label_smoothing=smoothing)
    torch.testing.assert_close(ours.soft(logits, soft_labels, 1), Loss.soft(ours, logits, soft_labels, 1))


def test_soft_labels_are_of_members_in_their_order(digits):
    class Reversed(Edits):
        def train(self, recipe):
            soft_labels = functional.one_hot(recipe.data.labels[recipe.members], 10).float()
            order = np.arange(len(recipe.members))[::-1].copy()
            return recipe.fit(members=recipe.members[order], soft_labels=soft_labels[torch.from_numpy(order)])

    class Short(Edits):
        def train(self, recipe):
            return recipe.fit(soft_labels=torch.ones(3, 10))

    settings = {"epochs": 4, "batch_size": 240, "learning_rate": 0.2}
    torch.testing.assert_close(
        weights(fit_on(digits, Reversed(changes=()), **settings)),
        weights(fit_on(digits, **settings)),
        rtol=1e-3,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"soft labels have shape \(3, 10\), but there are 240 members and 10 classes"):
        fit_on(digits, Short(changes=()))


def test_a_killed_training_resumes_to_the_same_numbers_in_a_sub_model_and_in_the_student(digits, monkeypatch):
    settings, taken, defenses = {"epochs": 2, "batch_size": 60}, [], (SMALL, Dropout(rate=0.2))
    whole = fit_on(
        digits, *defenses, on_checkpoint=lambda each: taken.append(checkpoints.to_bytes(each, {})), **settings
    )
    assert len(taken) == 12
    for number in (0, 5, 9, 10, 11):  # the last two are the student's
        steps, step = [], PlainGradient.step
        with monkeypatch.context() as patched:
            patched.setattr(
                PlainGradient, "step", lambda *each, steps=steps, step=step: (steps.append(1), step(*each))[1]
            )
            resumed = fit_on(
                digits, *defenses, resume=checkpoints.from_bytes(taken[number], {}, torch.device("cpu")), **settings
            )
        assert torch.equal(weights(whole), weights(resumed))
        assert len(steps) == whole.steps - whole.history[number].step
        assert [each.train_loss for each in whole.history] == [each.train_loss for each in resumed.history]


def test_the_plan_counts_the_steps_of_sub_models_and_student(digits):
    model = build_model(CNN, (), digits.info, 0)
    plan = make_plan(Training(epochs=3, batch_size=60), (Selena(),), model, 600)
    assert plan.total_steps == 3 * (25 * 6 + 10)
    held_out = make_plan(Training(epochs=3, batch_size=60), (EarlyStopping(held_out=0.5), Selena()), model, 600)
    assert held_out.total_steps == 3 * (25 * 3 + 5)
    assert make_plan(Training(epochs=3, batch_size=60), (MajorityOf(models=5),), model, 600).total_steps == 3 * 5 * 2
    with pytest.raises(ValueError, match="batch_size is 400 but a sub-model has only 360 training examples"):
        make_plan(Training(batch_size=400), (Selena(),), model, 600)


def test_a_sub_model_that_is_smaller_than_the_batch_is_found_before_any_is_trained(digits, fits):
    with pytest.raises(
        ValueError, match=r"batch_size is 120 but one of the sub-models has only 1\d\d training examples"
    ):
        fit_on(digits, Selena(models=5, left_out=2), members=np.arange(200), batch_size=120)
    assert not fits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": 1}, "models is 1; it must be at least 2"),
        ({"left_out": 0}, "left_out is 0; it must be from 1 to 24"),
        ({"left_out": 25}, "left_out is 25; it must be from 1 to 24"),
    ],
)
def test_impossible_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Selena(**fields)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ((DpSgd(epsilon=8.0),), "selena trains in a way of its own, and a private mechanism"),
        ((MajorityOf(models=2),), "both train in their own way"),
        ((Relaxloss(),), "Relaxed depends on the whole batch and cannot be averaged over the soft labels"),
    ],
)
def test_what_cannot_be_combined_with_selena_is_refused(digits, others, message):
    with pytest.raises(ValueError, match=message):
        fit_on(digits, SMALL, *others)


def test_mixtures_of_soft_labels_train(digits):
    target = fit_on(digits, SMALL, Mixup(), batch_size=60, epochs=1)
    assert np.isfinite(target.history[-1].train_loss)


@pytest.mark.slow
def test_it_classifies_digits_and_members_stand_out_less():
    data = Digits(max_train_examples=1000, max_test_examples=60).load(None)
    members, others = np.split(np.random.default_rng(0).permutation(1000), 2)
    settings = {"members": np.sort(members), "epochs": 40, "batch_size": 20, "learning_rate": 0.3}
    gaps = []
    for defenses in ((), (SMALL,)):
        answer = answer_of(fit_on(data, *defenses, architecture=Linear(), **settings).model)
        loss, _ = loss_and_accuracy(*predict(answer, data, members))
        other_loss, accuracy = loss_and_accuracy(*predict(answer, data, others))
        assert accuracy > 0.9
        gaps.append(other_loss - loss)
    plain, defended = gaps
    assert 0 < defended < 0.7 * plain
