"""RelaxLoss, HAMP, MemGuard and prediction purification: what each must do, and what it must never do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from training_fixture import CNN, fit_on

from models.answers import answer_of
from models.datasets.digits import Digits
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.hamp import Hamp, _HighEntropy, random_inputs, top_probability
from models.defenses.memguard import Memguard, _Misleading
from models.defenses.prediction_purification import PredictionPurification
from models.defenses.relaxloss import Relaxloss, _Relaxed
from models.hashing import hashed, uniforms
from models.losses import check_loss
from models.train import Recipe, Training, build_model


def logits_of(count=64, classes=5, scale=3.0, seed=0):
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def gradient_of(loss, logits, labels, epoch):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, labels, epoch).mean(), logits)[0]


# RelaxLoss


@pytest.mark.parametrize("epoch", [1, 2])
def test_relaxloss_is_cross_entropy_while_the_batch_is_above_its_target(epoch: int) -> None:
    logits, labels = logits_of(), torch.arange(64) % 5
    loss = _Relaxed(target_loss=float(cross_entropy(logits, labels)) - 0.1)
    torch.testing.assert_close(loss(logits, labels, epoch), cross_entropy(logits, labels, reduction="none"))


def test_below_its_target_relaxloss_ascends_in_the_first_epoch() -> None:
    logits, labels = logits_of(), torch.arange(64) % 5
    loss = _Relaxed(target_loss=float(cross_entropy(logits, labels)) + 0.1)
    descent = gradient_of(lambda z, y, _: cross_entropy(z, y, reduction="none"), logits, labels, 1)
    torch.testing.assert_close(gradient_of(loss, logits, labels, 1), -descent)
    torch.testing.assert_close(gradient_of(loss, logits, labels, 3), -descent)


def test_below_its_target_relaxloss_flattens_in_the_second_epoch() -> None:
    """The gradient is p − soft: 0 for the true class, whose probability the soft label keeps; the others are evened out."""
    logits, labels = logits_of(), torch.arange(64) % 5
    loss = _Relaxed(target_loss=float(cross_entropy(logits, labels)) + 0.1)
    answer = logits.softmax(1)
    own = answer[torch.arange(64), labels]
    soft = ((1 - own) / 4)[:, None].expand(64, 5).clone()
    soft[torch.arange(64), labels] = own
    torch.testing.assert_close(64 * gradient_of(loss, logits, labels, 2), answer - soft)


@pytest.mark.slow
def test_relaxloss_holds_the_loss_of_members_near_its_target() -> None:
    data = Digits(max_train_examples=400).load(None)  # type: ignore[arg-type]
    members = {}
    for target, defenses in ((0.0, ()), (0.5, (Relaxloss(target_loss=0.5),))):
        model = fit_on(data, *defenses, epochs=40, learning_rate=0.2).model
        with torch.no_grad():
            members[target] = float(cross_entropy(model(data.inputs[:400]), data.labels[:400]))
    assert members[0.0] < 0.4
    assert members[0.5] == pytest.approx(0.5, abs=0.05)


def test_relaxloss_is_refused_beside_a_private_mechanism() -> None:
    with pytest.raises(ValueError, match="mixes examples"):
        check_loss(_Relaxed(target_loss=100.0), 5, 1)  # where none of its random examples shows it


# HAMP


@pytest.mark.parametrize(("share", "classes"), [(0.95, 10), (0.5, 100), (0.8, 2)])
def test_the_soft_label_has_the_entropy_that_is_asked_for(share: float, classes: int) -> None:
    top = top_probability(share, classes)
    soft = np.full(classes, (1 - top) / (classes - 1))
    soft[0] = top
    assert -(soft * np.log(soft)).sum() == pytest.approx(share * np.log(classes))
    assert top > soft[1]


def test_hamps_loss_is_the_divergence_summed_over_classes_minus_the_entropy() -> None:
    logits, labels = logits_of(8), torch.arange(8) % 5
    top, answer = top_probability(0.8, 5), logits.softmax(1)
    soft = torch.full((8, 5), (1 - top) / 4)
    soft[torch.arange(8), labels] = top
    expected = nn.functional.kl_div(answer.log(), soft, reduction="none").sum(1) + 0.3 * (answer * answer.log()).sum(1)
    torch.testing.assert_close(_HighEntropy(entropy_share=0.8, entropy_weight=0.3)(logits, labels, 1), expected)
    check_loss(_HighEntropy(entropy_share=0.8, entropy_weight=0.3), 5, 1)


class Fixed:
    """Answers that are known: the logits that a table has for each input, or random ones for others."""

    def __init__(self, inputs: torch.Tensor, logits: torch.Tensor) -> None:
        self.inputs, self.logits = inputs, logits

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.shape == self.inputs.shape and torch.equal(inputs, self.inputs):
            return self.logits
        numbers = uniforms(hashed(inputs, self.logits.shape[1]))
        return (numbers * 4).round().float()  # many ties


@pytest.mark.parametrize("ties", [False, True])
def test_hamps_answers_keep_the_whole_order_and_nothing_else(ties: bool) -> None:
    inputs = torch.randint(256, (200, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    logits = logits_of(200, 7).round() if ties else logits_of(200, 7)
    hidden = Hamp().edit_answers(Fixed(inputs, logits))(inputs)
    order = logits.argsort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(hidden.argsort(dim=1, descending=True, stable=True), order)
    assert (hidden.gather(1, order).diff(dim=1) < 0).all()
    torch.testing.assert_close(hidden.argmax(1), logits.argmax(1))
    # Another model with the same order of classes answers the same
    other = Hamp().edit_answers(Fixed(inputs, 10 * logits - 3))(inputs)
    torch.testing.assert_close(hidden, other)


def test_random_inputs_follow_from_the_query_alone() -> None:
    for inputs in (
        torch.randint(256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
        torch.randn(50, 9, generator=torch.Generator().manual_seed(1)),
    ):
        together = random_inputs(inputs)
        assert together.dtype == inputs.dtype
        assert together.shape == inputs.shape
        torch.testing.assert_close(torch.cat([random_inputs(one) for one in inputs.split(7)]), together)
        changed = inputs.clone()
        changed[:, ..., 0] = changed[:, ..., 0] + 1
        assert not (random_inputs(changed) == together).flatten(1).all(1).any()


def test_a_row_of_bits_is_answered_with_the_values_of_random_bits() -> None:
    bits = torch.randint(2, (200, 50), generator=torch.Generator().manual_seed(1)).float()
    random = random_inputs(bits)
    assert set(random.unique().tolist()) == {0.0, 1.0}
    assert abs(float(random.mean()) - 0.5) < 5 * 0.5 / np.sqrt(random.numel())
    mixed = torch.cat([bits[:1], bits[:1] + 0.1])
    torch.testing.assert_close(random_inputs(mixed)[:1], random[:1])
    assert len(random_inputs(mixed)[1].unique()) == 50


def test_hashed_numbers_are_uniform() -> None:
    numbers = uniforms(hashed(torch.arange(4000, dtype=torch.float32)[:, None], 5))
    assert numbers.mean(0).sub(0.5).abs().max() < 5 / np.sqrt(12 * 4000)
    counts = torch.histc(numbers.flatten(), 20, 0, 1)
    assert (counts - 1000).abs().max() < 5 * np.sqrt(1000)
    correlation = np.corrcoef(numbers.T.numpy()) - np.eye(5)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


# MemGuard and purification


def recipe_of(*defenses, n=300, epochs=30, **more):
    data = Digits(max_train_examples=500, max_test_examples=100).load(None)  # type: ignore[arg-type]
    return Recipe(
        architecture=CNN,
        defenses=defenses,
        training=Training(epochs=epochs, batch_size=32, learning_rate=0.2),
        data=data,
        members=np.arange(n),
        test=np.arange(500, 600),
        reference=np.arange(n, 500),
        seed=3,
        target_id="a target",
        **more,
    )


@pytest.fixture(scope="module")
def guarded():
    recipe = recipe_of(Memguard(hidden=(32,), epochs=40))
    return recipe, recipe.train(), replace(recipe, defenses=()).train()


def test_memguard_changes_answers_but_no_decision(guarded) -> None:
    recipe, target, plain = guarded
    inputs = recipe.data.inputs
    own, masked = answer_of(plain.model)(inputs), answer_of(target.model)(inputs)
    assert torch.isfinite(masked).all()
    torch.testing.assert_close(masked.argmax(1), own.argmax(1))
    assert (masked.softmax(1) - own.softmax(1)).abs().sum(1).max() > 0.01
    # All answers have one form, so that it does not tell which were changed
    torch.testing.assert_close(masked.logsumexp(1), torch.zeros(len(masked)))
    # The activations below the mask are those of the plain network
    torch.testing.assert_close(target.model.activations(inputs[:5], "prediction"), own[:5])


def test_memguard_moves_the_surrogate_to_the_other_side(guarded) -> None:
    recipe, target, plain = guarded
    mask = target.model.stages[-1]
    assert isinstance(mask, _Misleading)
    own = answer_of(plain.model)(recipe.data.inputs)
    with torch.no_grad():
        before, after = (mask.log_odds(each.softmax(1)) for each in (own, mask.masked(own)))
    changed = (mask.masked(own).softmax(1) - own.softmax(1)).abs().sum(1) > 1e-6
    assert (torch.sign(before) != torch.sign(after))[changed].all()


def test_memguard_leaves_answers_whose_noise_would_make_the_surrogate_surer() -> None:
    mask = _Misleading(5, Memguard(budget=10.0, hidden=(8,)))
    logits = logits_of(300, 5)
    with torch.no_grad():
        # A surrogate that takes a half of the answers for members', and is never sure
        mask.surrogate[-1].bias -= mask.log_odds(logits.softmax(1)).median()
        own, masked = logits.softmax(1), mask.masked(logits).softmax(1)
        sure = [(mask.log_odds(each).sigmoid() - 0.5).abs() for each in (own, masked)]
    changed = (own - masked).abs().sum(1) > 1e-6
    assert changed.any()
    assert (sure[1] < sure[0])[changed].all()


@pytest.mark.slow
def test_memguards_answer_does_not_depend_on_the_batch_and_is_repeatable(guarded) -> None:
    recipe, target, _ = guarded
    answer, inputs = answer_of(target.model), recipe.data.inputs[:60]
    together = answer(inputs)
    torch.testing.assert_close(together, answer(inputs), rtol=0, atol=0)
    apart = torch.cat([answer(part) for part in inputs.split(7)])
    torch.testing.assert_close(apart.softmax(1), together.softmax(1), rtol=0, atol=1e-3)


def test_without_a_budget_memguard_changes_nothing() -> None:
    logits = logits_of(50, 10)
    mask = _Misleading(10, Memguard(budget=0.0, hidden=(4,)))
    torch.testing.assert_close(mask.masked(logits), logits.log_softmax(1))


@pytest.mark.parametrize("defense", [Memguard(hidden=(8,), epochs=2, steps=10), PredictionPurification(epochs=5)])
def test_a_masked_model_is_saved_and_loaded_whole(defense) -> None:
    recipe = recipe_of(Dropout(), defense, epochs=2)
    target = recipe.train()
    again = build_model(recipe.architecture, recipe.defenses, recipe.data.info, 7)
    again.load_state_dict(target.model.state_dict())
    answers = [answer_of(model)(recipe.data.inputs) for model in (target.model, again)]
    torch.testing.assert_close(*answers, rtol=0, atol=0)
    torch.testing.assert_close(answer_of(recipe.train().model)(recipe.data.inputs), answers[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match="needs reference examples, on which no target is trained or evaluated"):
        replace(recipe, reference=np.empty(0, dtype=np.int64)).train()
    with pytest.raises(ValueError, match="trains in a way of its own"):
        replace(recipe, defenses=(defense, DpSgd(noise_multiplier=1.0, accountant="rdp"))).train()


@pytest.mark.slow
def test_purified_answers_are_near_the_true_ones_and_read_no_member() -> None:
    recipe = recipe_of(PredictionPurification())
    target, plain = recipe.train(), replace(recipe, defenses=()).train()
    own, purified = (answer_of(each.model)(recipe.data.inputs) for each in (plain, target))
    assert (own.argmax(1) == purified.argmax(1)).float().mean() > 0.9
    assert (own.softmax(1) - purified.softmax(1)).abs().sum(1).mean() < 0.3
    # Other answers to members give the same autoencoder
    defense = PredictionPurification(epochs=3)
    learned = []
    for members in (own[recipe.members], torch.zeros(3, 10)):
        torch.manual_seed(0)
        mask = defense._mask(10)
        defense._learn(mask, members, own[recipe.reference], torch.Generator().manual_seed(0))
        learned.append(mask.masked(own))
    torch.testing.assert_close(*learned, rtol=0, atol=0)
