"""The attack of Shokri et al.: free of bias, independent of order, and learned from the references alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from cohorts import random_cohort
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from attacks.comparisons.shokri import Shokri
from attacks.metrics import auc

pytestmark = pytest.mark.slow

PAIRS = pytest.mark.parametrize("pairs", [False, True], ids=["coins", "coin_pairs"])
SMALL = Shokri(epochs=5, max_examples_per_class=300)
BOTH = pytest.mark.parametrize("attack", [SMALL, Shokri(attack_model="logistic")], ids=["network", "logistic"])


@PAIRS
def test_it_equals_a_regression_per_class_on_the_references_rows(pairs: bool) -> None:
    models = random_cohort(6, 200, np.random.default_rng(0), leak=2.0, pairs=pairs, n_queries=2)
    (found,) = Shokri(attack_model="logistic").run(models, np.random.default_rng(0))
    log_p = np.stack([log_softmax(np.asarray(model.known.logits[:200])[:, 0], axis=1) for model in models])
    member = np.stack([model.known.is_member[:200] for model in models])
    for target in range(6):
        others = [each for each in range(6) if each != target and not (pairs and each == target ^ 1)]
        for label in range(4):
            of_class = np.flatnonzero(found.label == label)
            x, y = log_p[np.ix_(others, of_class)].reshape(-1, 4), member[np.ix_(others, of_class)].ravel()
            scaler = StandardScaler().fit(x)
            model = LogisticRegression(tol=1e-8).fit(scaler.transform(x), y)
            expected = model.decision_function(scaler.transform(log_p[target, of_class]))
            np.testing.assert_allclose(found.scores.score[target, of_class], expected, atol=1e-2)


@PAIRS
@pytest.mark.parametrize("n_models", [4, 8, 16])
@BOTH
def test_models_that_leak_nothing_have_an_auc_of_one_half(attack: Shokri, n_models: int, pairs: bool) -> None:
    aucs: list[float] = []
    for repetition in range(96 // n_models):  # a standard error of about .002
        rng = np.random.default_rng([n_models, repetition])
        models = random_cohort(n_models, 1000, rng, pairs=pairs, n_classes=2)
        (result,) = attack.run(models, np.random.default_rng(repetition))
        for scores in (result.scores, result.null):
            aucs += [auc(member, one) for member, one in zip(scores.is_member, scores.score, strict=True)]
    assert abs(np.mean(aucs) - 0.5) < 0.01


@PAIRS
@pytest.mark.parametrize("attack_model", ["network", "logistic"])
def test_a_leak_is_found_and_its_null_is_not(attack_model: Literal["network", "logistic"], pairs: bool) -> None:
    models = random_cohort(8, 800, np.random.default_rng(3), leak=2.0, pairs=pairs)
    (result,) = Shokri(attack_model=attack_model, epochs=20).run(models, np.random.default_rng(0))
    assert np.mean([auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)]) > 0.6
    null = [auc(m, s) for m, s in zip(result.null.is_member, result.null.score, strict=True)]
    assert abs(np.mean(null) - 0.5) < 0.03


@BOTH
def test_the_order_of_the_seeds_changes_nothing(attack: Shokri) -> None:
    models = random_cohort(7, 200, np.random.default_rng(5), leak=1.0)
    shuffled = [models[index] for index in (3, 1, 6, 0, 2, 5, 4)]
    (one,), (other,) = (attack.run(each, np.random.default_rng(1)) for each in (models, shuffled))
    for ours, theirs in zip(
        (one.scores, one.null, *one.audits), (other.scores, other.null, *other.audits), strict=True
    ):
        assert np.array_equal(ours.score, theirs.score)


@BOTH
@PAIRS
def test_a_target_s_own_membership_does_not_enter_its_scores(attack: Shokri, pairs: bool) -> None:
    models = random_cohort(6, 100, np.random.default_rng(6), leak=1.0, pairs=pairs)
    for model in models[2:]:  # a class of non-members only, but for what is flipped
        model.known.is_member[:100] &= model.known.label[:100] != 0
    (before,) = attack.run(models, np.random.default_rng(1))
    for model in models[: 2 if pairs else 1]:  # a pair keeps complementary coins
        model.known.is_member[:100] = ~model.known.is_member[:100]
    (after,) = attack.run(models, np.random.default_rng(1))
    assert np.array_equal(before.scores.score[0], after.scores.score[0])
    assert not np.array_equal(before.scores.score[3], after.scores.score[3])


def test_a_class_of_non_members_only_is_scored_zero() -> None:
    models = random_cohort(5, 100, np.random.default_rng(7))
    for model in models:
        model.known.is_member[:100] &= model.known.label[:100] != 2
    (result,) = SMALL.run(models, np.random.default_rng(0))
    assert (result.scores.score[:, result.label == 2] == 0).all()
    assert (result.scores.score[:, result.label != 2] != 0).any()


def test_a_confident_model_s_scores_are_finite() -> None:
    models = random_cohort(5, 200, np.random.default_rng(8), leak=1.0)
    for model in models:
        model.known.logits[:] *= 1000  # type: ignore[index]
    (result,) = SMALL.run(models, np.random.default_rng(0))
    assert np.isfinite(result.scores.score).all()
    assert np.abs(result.scores.score).max() < 28


@pytest.mark.parametrize("field", ["epochs", "max_examples_per_class"])
def test_a_field_that_cannot_be_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least"):
        Shokri(**{field: 0})  # type: ignore[arg-type]
