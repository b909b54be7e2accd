"""The label-only attack: equal to scikit-learn's regressions, free of bias, independent of order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from cohorts import Model, random_cohort
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from attacks.cohort.attack import CohortScores
from attacks.cohort.logistic import leave_out_fits
from attacks.comparisons.label_only import LabelOnly
from attacks.metrics import auc

pytestmark = pytest.mark.slow

PAIRS = pytest.mark.parametrize("pairs", [False, True], ids=["coins", "coin_pairs"])


def run(models: list[Model], seed: int = 0, regularization: float = 1.0) -> list[CohortScores]:
    return LabelOnly(inverse_regularization=regularization).run(models, np.random.default_rng(seed))


def right_bits(models: list[Model], n_pool: int) -> npt.NDArray[np.bool_]:
    """Which queries are answered rightly (models, pool, queries)."""
    return np.stack([(np.asarray(m.known.logits[:]).argmax(2) == m.known.label[:, None])[:n_pool] for m in models])


@PAIRS
@pytest.mark.parametrize(("n_models", "n_queries", "c"), [(4, 18, 1.0), (9, 6, 1.0), (24, 18, 1.0), (12, 4, 0.1)])
def test_it_equals_scikit_learn_s_regressions(n_models: int, n_queries: int, c: float, pairs: bool) -> None:
    rng = np.random.default_rng(n_models)
    models = random_cohort(n_models, 20, rng, leak=2.0, pairs=pairs, n_queries=n_queries)
    bits, member = right_bits(models, 20), np.stack([model.known.is_member[:20] for model in models])
    ratio, fitted = run(models, regularization=c)
    for target in range(n_models):
        others = [each for each in range(n_models) if each != target and not (pairs and each == target ^ 1)]
        for example in range(20):
            n_in = member[others, example].sum()
            expected = prior = 0.0
            if 0 < n_in < len(others):
                model = LogisticRegression(C=c, tol=1e-10, solver="newton-cholesky")
                model.fit(bits[others, example], member[others, example])
                expected = model.decision_function(bits[target, example][None])[0]
                prior = np.log(n_in / (len(others) - n_in))
            assert fitted.scores.score[target, example] == pytest.approx(expected, abs=1e-3)
            assert ratio.scores.score[target, example] == pytest.approx(expected - prior, abs=1e-3)


@pytest.mark.parametrize("ridge", [1e-6, 1e-4, 1.0, 1e5])
@pytest.mark.parametrize("n_useless", [0, 3])
def test_fits_converge_even_if_the_bits_are_the_membership(n_useless: int, ridge: float) -> None:
    """With little regularization, whole steps of Newton's would overshoot."""
    rng = np.random.default_rng(0)
    member = rng.random((50, 40)) < 0.1
    bits = np.concatenate([member[..., None], rng.random((50, 40, n_useless)) < 0.5], axis=2)
    kept = ~np.eye(40, dtype=bool)
    fits = leave_out_fits(bits, member, kept, ridge)
    log_odds = fits[..., :-1] @ bits.swapaxes(1, 2) + fits[..., -1:]
    residual = (expit(log_odds) - member[:, None, :]) * kept
    has_both = (member @ kept > 0) & (~member @ kept > 0)
    assert has_both.mean() > 0.9
    assert np.abs(residual @ bits + ridge * fits[..., :-1])[has_both].max() < 2e-5
    assert np.abs(residual.sum(axis=2))[has_both].max() < 2e-5
    assert (fits[~has_both] == 0).all()


def test_bits_that_tell_nothing_leave_the_references_counts() -> None:
    models = random_cohort(9, 50, np.random.default_rng(1))
    for model in models:
        model.known.logits[np.arange(90), :, model.known.label] = 99  # type: ignore[index]
    member = np.stack([model.known.is_member[:50] for model in models])
    n_in = member.sum(axis=0) - member
    with np.errstate(divide="ignore"):
        counts = np.log(n_in / (8 - n_in))
    ratio, fitted = run(models)
    np.testing.assert_allclose(fitted.scores.score, np.where(np.isfinite(counts), counts, 0), atol=1e-12)
    np.testing.assert_allclose(ratio.scores.score, 0, atol=1e-12)


def test_a_tie_for_the_highest_logit_counts_as_wrong() -> None:
    models = random_cohort(8, 60, np.random.default_rng(2), n_queries=3)
    for model in models:
        model.known.logits[:] = 0  # type: ignore[index]
    ties = run(models)
    for model in models:
        model.known.logits[np.arange(100), :, model.known.label] = -1  # type: ignore[index]
    for one, other in zip(ties, run(models), strict=True):
        assert np.array_equal(one.scores.score, other.scores.score)


@PAIRS
@pytest.mark.parametrize("n_models", [4, 8, 16])
def test_models_that_leak_nothing_have_an_auc_of_one_half(n_models: int, pairs: bool) -> None:
    found: dict[str, list[float]] = {}
    for repetition in range(96 // n_models):  # a standard error of about .002
        rng = np.random.default_rng([n_models, repetition])
        for result in run(random_cohort(n_models, 1000, rng, pairs=pairs, n_queries=4), repetition):
            for scores in (result.scores, result.null):
                aucs = [auc(member, one) for member, one in zip(scores.is_member, scores.score, strict=True)]
                found.setdefault(result.name, []).extend(aucs)
    for name, aucs in found.items():
        assert abs(np.mean(aucs) - 0.5) < 0.01, name


@PAIRS
def test_a_leak_is_found_and_its_null_is_not(pairs: bool) -> None:
    models = random_cohort(12, 800, np.random.default_rng(3), leak=2.0, pairs=pairs, n_queries=6)
    for result in run(models):
        assert np.mean([auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)]) > 0.6
        null = [auc(m, s) for m, s in zip(result.null.is_member, result.null.score, strict=True)]
        assert abs(np.mean(null) - 0.5) < 0.03


def test_the_order_of_the_seeds_changes_nothing() -> None:
    models = random_cohort(7, 200, np.random.default_rng(5), leak=1.0, n_queries=3)
    shuffled = [models[index] for index in (3, 1, 6, 0, 2, 5, 4)]
    for one, other in zip(run(models), run(shuffled), strict=True):
        for ours, theirs in zip(
            (one.scores, one.null, *one.audits), (other.scores, other.null, *other.audits), strict=True
        ):
            assert np.array_equal(ours.score, theirs.score)


@PAIRS
def test_a_target_s_own_membership_does_not_enter_its_scores(pairs: bool) -> None:
    """Not by a bit: many scores tie, and a tie that the solver's error breaks would tell members."""
    models = random_cohort(6, 100, np.random.default_rng(6), leak=1.0, pairs=pairs, n_queries=3)
    before = run(models)
    for model in models[: 2 if pairs else 1]:  # a pair keeps complementary coins
        model.known.is_member[:100] = ~model.known.is_member[:100]
    for one, other in zip(before, run(models), strict=True):
        assert np.array_equal(one.scores.score[0], other.scores.score[0])
        assert not np.array_equal(one.scores.score[3], other.scores.score[3])


@pytest.mark.parametrize("c", [0.0, -1.0, float("inf"), float("nan")])
def test_a_regularization_that_cannot_be_is_refused(c: float) -> None:
    with pytest.raises(ValueError, match="finite number above 0"):
        LabelOnly(inverse_regularization=c)
