"""Attacks on cohorts: equal to references written from the papers, free of bias, independent of order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from cohorts import Model, random_cohort
from scipy.special import expit, log_ndtr
from scipy.stats import norm, rankdata

from attacks.base import AttackError
from attacks.cohort.attack import CohortAttack, CohortScores
from attacks.comparisons.base import TargetLabel
from attacks.comparisons.lira import Lira
from attacks.comparisons.ratio import Ratio
from attacks.metrics import auc

Floats = npt.NDArray[np.float64]


def by_name(results: list[CohortScores]) -> dict[str, CohortScores]:
    return {each.name: each for each in results}


def run(attack: CohortAttack, models: list[Model], seed: int = 0) -> dict[str, CohortScores]:
    return by_name(attack.run(models, np.random.default_rng(seed)))


def phi(models: list[Model], signal: str) -> Floats:
    """The signal of every example (models, examples, queries), as the paper writes it."""
    found = []
    for model in models:
        z = np.asarray(model.known.logits[:], dtype=np.float64)
        rows = np.arange(len(z))
        own = z[rows, :, model.known.label]
        z = z.copy()
        z[rows, :, model.known.label] = -np.inf
        found.append(own - (np.log(np.exp(z).sum(-1)) if signal == "log_odds" else z.max(-1)))
    return np.stack(found)


def sides(values: Floats, inside: npt.NDArray[np.bool_]) -> tuple[Floats, ...]:
    """Counts, means and squared residuals of IN and OUT references; a missing mean is filled by the mean gap."""
    weight = inside[:, :, None].astype(float)
    found = []
    for here in (weight, 1 - weight):
        count = here.sum(0)
        mean = (here * values).sum(0) / np.maximum(count, 1)
        found.append((count, mean, (here * (values - mean) ** 2).sum(0)))
    (n_in, mean_in, in_squares), (n_out, mean_out, out_squares) = found
    both = (n_in > 0) & (n_out > 0)
    gap = (np.where(both, mean_in - mean_out, 0)).sum(0) / both.sum(0)
    filled_in, filled_out = np.where(n_in > 0, mean_in, mean_out + gap), np.where(n_out > 0, mean_out, mean_in - gap)
    return n_in, filled_in, in_squares, n_out, filled_out, out_squares


def lira(x: Floats, values: Floats, inside: npt.NDArray[np.bool_], spread: str) -> tuple[Floats, Floats]:
    n_in, mean_in, in_squares, n_out, mean_out, out_squares = sides(values, inside)
    pooled, variances = [], []
    for count, squares in ((n_in, in_squares), (n_out, out_squares)):
        freedom = np.maximum(count - 1, 0)
        pooled.append(squares.sum(0) / freedom.sum(0))
        if spread == "pooled":
            variances.append(np.broadcast_to(pooled[-1], squares.shape))
        elif spread == "per_example":
            variances.append(np.where(freedom > 0, squares / np.maximum(freedom, 1), pooled[-1]))
        else:
            variances.append((4 * pooled[-1] + squares) / (4 + freedom))
    offline = log_ndtr((x - mean_out) / np.sqrt(variances[1])).mean(1)
    if spread == "shrunk":
        freedom = np.maximum(n_in - 1, 0) + np.maximum(n_out - 1, 0)
        factor = (4 + in_squares / pooled[0] + out_squares / pooled[1]) / (4 + freedom)
        variances = [pooled[0] * factor, pooled[1] * factor]
        mean_in, mean_out = shrunk_means(n_in, mean_in, n_out, mean_out, variances, pooled)
    online = norm.logpdf(x, mean_in, np.sqrt(variances[0])) - norm.logpdf(x, mean_out, np.sqrt(variances[1]))
    return online.mean(1), offline


def shrunk_means(
    n_in: Floats, mean_in: Floats, n_out: Floats, mean_out: Floats, variances: list[Floats], pooled: list[Floats]
) -> tuple[Floats, Floats]:
    """The most likely means of both sides given those observed, if the gaps of all examples are Gaussian."""
    means = np.empty((2, *mean_in.shape))
    both = ((n_in > 0) & (n_out > 0))[:, 0]
    for query in range(mean_in.shape[1]):
        gaps = (mean_in - mean_out)[both, query]
        usual = gaps.mean()
        true = gaps.var() - (pooled[0][query] / n_in[both] + pooled[1][query] / n_out[both]).mean()
        for i in range(len(mean_in)):
            weight_in, weight_out = n_in[i, 0] / variances[0][i, query], n_out[i, 0] / variances[1][i, query]
            weighted = weight_in * mean_in[i, query] + weight_out * mean_out[i, query]
            if true > 0:  # the normal equations of two observed means and the gap
                normal = np.diag([weight_in, weight_out]) + np.array([[1, -1], [-1, 1]]) / true
                right = [weight_in * mean_in[i, query] + usual / true, weight_out * mean_out[i, query] - usual / true]
                means[:, i, query] = np.linalg.solve(normal, right)
            else:
                out = (weighted - weight_in * usual) / (weight_in + weight_out)
                means[:, i, query] = out + usual, out
    return means[0], means[1]


def test_the_unaugmented_score_is_that_of_the_first_query_alone() -> None:
    models = random_cohort(6, 300, np.random.default_rng(3), leak=1.0, n_queries=3)
    found = run(Lira(), models)
    alone = [
        replace(each, known=replace(each.known, logits=np.asarray(each.known.logits[:])[:, :1])) for each in models
    ]
    single = run(Lira(), alone)
    for signal in ("log_odds", "hinge"):
        unaugmented = found[f"online_{signal}_unaugmented"].scores.score
        np.testing.assert_allclose(unaugmented, single[f"online_{signal}"].scores.score, rtol=1e-9)
        assert not np.allclose(unaugmented, found[f"online_{signal}"].scores.score)
    assert not any(name.endswith("_unaugmented") for name in single)


def references(target: int, n_models: int, pairs: bool) -> list[int]:
    return [each for each in range(n_models) if each != target and not (pairs and each == target ^ 1)]


CASES = [(4, False), (5, False), (8, True), (9, False)]


@pytest.mark.parametrize("spread", ["shrunk", "per_example", "pooled"])
@pytest.mark.parametrize(("n_models", "pairs"), CASES)
def test_lira_equals_a_reference_written_from_the_paper(n_models: int, pairs: bool, spread: str) -> None:
    models = random_cohort(n_models, 300, np.random.default_rng(n_models), leak=1.0, pairs=pairs, n_queries=2)
    found = run(Lira(spread=spread), models)  # type: ignore[arg-type]
    member = np.stack([model.known.is_member[:300] for model in models])
    for signal in ("log_odds", "hinge"):
        values = phi(models, signal)[:, :300]
        for target in range(n_models):
            others = references(target, n_models, pairs)
            online, offline = lira(values[target], values[others], member[others], spread)
            for mode, expected in (("online", online), ("offline", offline)):
                score = found[f"{mode}_{signal}"].scores.score[target]
                assert np.abs(score - expected).max() <= 1e-9 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(("n_models", "pairs"), CASES)
def test_the_ratio_equals_a_reference_written_from_the_paper(n_models: int, pairs: bool) -> None:
    models = random_cohort(n_models, 300, np.random.default_rng(n_models), leak=1.0, pairs=pairs, n_queries=2)
    found = run(Ratio(), models)
    member = np.stack([model.known.is_member[:300] for model in models])
    p = expit(phi(models, "log_odds"))
    for target in range(n_models):
        others = references(target, n_models, pairs)
        _, mean_in, _, _, mean_out, _ = sides(p[others][:, :300], member[others])
        mean_in, mean_out = np.clip(mean_in, 0, 1), np.clip(mean_out, 0, 1)
        for mode, mean, z in (
            ("online", (mean_in + mean_out) / 2, p[others][:, 300:].mean(0)),
            ("offline", (1.3 * mean_out + 0.7) / 2, (1.3 * p[others][:, 300:].mean(0) + 0.7) / 2),
        ):
            ratio = np.log(p[target, :300] / mean).mean(1)
            assert np.abs(found[mode].scores.score[target] - ratio).max() <= 1e-9
            population = np.log(p[target, 300:] / z).mean(1)
            share = (ratio[:, None] > population).mean(1)
            assert np.abs(found[f"rmia_{mode}"].scores.score[target] - share).max() <= 1e-9


def test_rmia_ranks_a_target_s_examples_as_the_ratio_does_up_to_ties() -> None:
    models = random_cohort(8, 400, np.random.default_rng(0), leak=1.0, n_others=2000)
    found = run(Ratio(), models)
    for mode in ("online", "offline"):
        for ratio, share in zip(found[mode].scores.score, found[f"rmia_{mode}"].scores.score, strict=True):
            in_order = share[np.argsort(ratio)]
            assert (np.diff(in_order) >= 0).all()
            assert len(np.unique(share)) > 200


def test_a_confidence_that_rounds_to_one_keeps_its_rank() -> None:
    models = random_cohort(6, 200, np.random.default_rng(1))
    for model in models:
        model.known.logits[:, 0][np.arange(240), model.known.label] += np.linspace(60, 90, 240)  # type: ignore[index]
    found = run(Ratio(), models)
    assert len(np.unique(found["online"].scores.score[0])) == 200


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"pairs": True}], ids=["coins", "coin_pairs"])
@pytest.mark.parametrize("n_models", [4, 8, 16])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Lira, ("online_log_odds", "offline_log_odds", "online_hinge", "offline_hinge")),
        (lambda: Lira(spread="per_example"), ("online_log_odds",)),
        (lambda: Lira(spread="pooled"), ("online_log_odds",)),
        (Ratio, ("online", "offline", "rmia_online", "rmia_offline")),
    ],
    ids=["shrunk", "per_example", "pooled", "ratio"],
)
def test_models_that_leak_nothing_have_an_auc_of_one_half(
    make: Callable[[], CohortAttack], names: tuple[str, ...], n_models: int, how: dict[str, bool]
) -> None:
    repetitions = 96 // n_models  # a standard error of about .002
    found: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        rng = np.random.default_rng([n_models, repetition])
        results = run(make(), random_cohort(n_models, 1000, rng, **how), repetition)  # type: ignore[arg-type]
        for name in names:
            for scores in (results[name].scores, results[name].null):
                found[name] += [auc(member, one) for member, one in zip(scores.is_member, scores.score, strict=True)]
    for name, aucs in found.items():
        assert abs(np.mean(aucs) - 0.5) < 0.01, name


def test_a_balanced_design_would_show_a_leak_where_there_is_none() -> None:
    """Why members are drawn by coins: with each example in exactly half of the models, IN references are counted."""
    aucs: dict[str, list[float]] = {"per_example": [], "pooled": []}
    for repetition in range(10):
        models = random_cohort(4, 1000, np.random.default_rng(repetition), halves=True)
        for spread, found in aucs.items():
            result = run(Lira(spread=spread), models, repetition)["online_log_odds"].scores  # type: ignore[arg-type]
            found += [auc(member, score) for member, score in zip(result.is_member, result.score, strict=True)]
    assert np.mean(aucs["per_example"]) > 0.6
    assert np.mean(aucs["pooled"]) < 0.45


@pytest.mark.parametrize("attack", [Lira(), Ratio()], ids=["lira", "ratio"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_leak_is_found_and_its_null_is_not(attack: CohortAttack, pairs: bool) -> None:
    models = random_cohort(12, 800, np.random.default_rng(3), leak=1.5, pairs=pairs)
    for result in attack.run(models, np.random.default_rng(0)):
        found = [auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)]
        null = [auc(m, s) for m, s in zip(result.null.is_member, result.null.score, strict=True)]
        assert np.mean(found) > 0.6
        assert abs(np.mean(null) - 0.5) < 0.03


@pytest.mark.parametrize("attack", [Lira(), Ratio()], ids=["lira", "ratio"])
def test_the_order_of_the_seeds_changes_nothing(attack: CohortAttack) -> None:
    models = random_cohort(7, 200, np.random.default_rng(5), leak=1.0, n_queries=2)
    shuffled = [models[index] for index in (3, 1, 6, 0, 2, 5, 4)]
    for one, other in zip(
        attack.run(models, np.random.default_rng(1)), attack.run(shuffled, np.random.default_rng(1)), strict=True
    ):
        assert np.array_equal(one.scores.score, other.scores.score)
        assert np.array_equal(one.null.score, other.null.score)
        for ours, theirs in zip(one.audits, other.audits, strict=True):
            assert np.array_equal(ours.score, theirs.score)


@pytest.mark.parametrize("attack", [Lira(), Ratio()], ids=["lira", "ratio"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_target_s_own_membership_does_not_enter_its_scores(attack: CohortAttack, pairs: bool) -> None:
    models = random_cohort(6, 100, np.random.default_rng(6), leak=1.0, pairs=pairs)
    before = attack.run(models, np.random.default_rng(1))
    for model in models[: 2 if pairs else 1]:  # a pair keeps complementary coins
        flipped = ~model.known.is_member[:100]
        model.known.is_member[:100] = flipped
    for one, other in zip(before, attack.run(models, np.random.default_rng(1)), strict=True):
        assert np.array_equal(one.scores.score[0], other.scores.score[0])
        if not one.name.startswith("rmia"):  # shares of a few examples may stay as they are
            assert not np.array_equal(one.scores.score[3], other.scores.score[3])


@pytest.mark.parametrize("pairs", [False, True])
def test_references_of_an_audit_are_not_its_targets(pairs: bool) -> None:
    models = random_cohort(8, 100, np.random.default_rng(7), leak=1.0, pairs=pairs)
    result = Lira().run(models, np.random.default_rng(0))[0]
    for half in result.audits:
        units = set(result.unit[half.targets].tolist())
        assert len(units) == len(half.targets)  # one model of a pair, for both toss the same coins
        assert (half.n_references == len(models) - sum(unit in units for unit in result.unit.tolist())).all()


def test_what_cannot_be_a_cohort_is_refused_in_words() -> None:
    models = random_cohort(4, 100, np.random.default_rng(8))
    models[1].known.is_member[:] = models[0].known.is_member
    with pytest.raises(AttackError, match="same members"):
        Lira().run(models, np.random.default_rng(0))
    models = random_cohort(4, 100, np.random.default_rng(8))
    models[2].known.logits[5] = np.nan  # type: ignore[index]
    with pytest.raises(AttackError, match="seed 2 are not all finite"):
        Ratio().run(models, np.random.default_rng(0))
    for split in ("official", "half", "quarters"):
        refusal = Lira().refusal(split)
        assert refusal is not None
        assert "independent coins" in refusal
        assert "coin_pairs" in refusal
    assert Lira().refusal("coins") is None
    with pytest.raises(ValueError, match="at least 4"):
        Lira(min_seeds=3)
    with pytest.raises(ValueError, match=r"Unknown signal 'hinges'\. Did you mean 'hinge'"):
        Lira(signals=("hinges",))
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite number above 0"):
            Lira(prior_weight=weight)


def test_a_cohort_is_the_seeds_of_one_cell() -> None:
    def label(target_id: str, cell: str, seed: int, split: str = "coins") -> TargetLabel:
        return TargetLabel(
            target_id=target_id, twin_id=None, cell_id=cell, seed=seed, split=split, queries=1, is_private=False
        )

    labels = [label(f"a{seed}", "a", seed) for seed in (2, 0, 3, 1, 9)]
    labels += [label(f"b{seed}", "b", seed) for seed in range(3)]
    labels += [label(f"c{seed}", "c", seed, "half") for seed in range(6)]
    assert list(Lira().groups(labels)) == [("a0", "a1", "a2", "a3", "a9")]
    assert list(Ratio(min_seeds=6).groups(labels)) == []


def test_a_higher_score_of_rmia_s_form_is_a_larger_share() -> None:
    models = random_cohort(5, 100, np.random.default_rng(9), leak=2.0)
    found = run(Ratio(gamma=2.0), models)
    for name in ("rmia_online", "rmia_offline"):
        score = found[name].scores.score
        assert score.min() >= 0
        assert score.max() <= 1
        correlation = np.corrcoef(rankdata(score[0]), rankdata(found[name.removeprefix("rmia_")].scores.score[0]))[0, 1]
        assert correlation > 0.9


def test_four_complementary_seeds_have_one_reference_a_side_and_no_spread_but_of_their_gaps() -> None:
    rng = np.random.default_rng(0)
    models = random_cohort(4, 2000, rng, leak=2.0, pairs=True)
    for name, result in run(Lira(), models).items():
        assert np.abs(result.scores.score).max() < 1e4
        aucs = [auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)]
        assert np.mean(aucs) > 0.75, name


def test_rmia_s_form_needs_examples_outside_the_pool() -> None:
    models = random_cohort(5, 50, np.random.default_rng(0), n_others=0)
    assert list(run(Ratio(), models)) == ["online", "offline"]
    with pytest.raises(AttackError, match="examples that no model was trained on"):
        run(Ratio(form="privacy_meter"), models)
