"""How often the second paper's verdicts are wrong, by simulation; and which rows count as repetitions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factor_fixture import make_factor_rows, write_factor_tables
from scipy import stats

from analysis.claims import ABOVE_ZERO, Claim, Vote, decide
from analysis.load import load
from analysis.measure.targets import measure
from analysis.statistics.blocks import adjusted, p_value
from analysis.statistics.estimates import estimate
from analysis.studies.lin2020.claims import _only, judge_factors
from analysis.studies.lin2020.factors.frame import FactorStudy, factor_study, over_seeds
from analysis.studies.lin2020.factors.levels import FACTORS
from analysis.studies.lin2020.influences import ALL, Analysis, analyze, contrasts, tpvd_correlations
from sweeper.results.gather import gather
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

LEVELS: dict[str, tuple[Any, ...]] = {
    "dataset": ("mnist", "svhn"),
    "model": ("lin_cnn", "lin_lstm"),
    "optimizer": ("sgd", "adam"),
    "noise": (0.1, 0.5),
    "clip": (0.8, 1.4),
    "sequence": ("CA", "AC"),
}


def simulated(
    rng: np.random.Generator,
    effects: Mapping[str, float],
    *,
    factors: tuple[str, ...] = FACTORS,
    n_seeds: int = 3,
    deviation: float = 1.0,
) -> FactorStudy:
    """A balanced grid in which each factor's second level adds its effect; factors that are not named have one level."""
    levels = [LEVELS[name] if name in factors else LEVELS[name][:1] for name in FACTORS]
    rows = pd.DataFrame([(*setting, seed) for setting in product(*levels) for seed in range(n_seeds)])
    rows.columns = pd.Index([*FACTORS, "seed"])
    mean = sum(effect * (rows[name] == LEVELS[name][1]) for name, effect in effects.items())
    # A seed's difficulty is shared by all of its rows
    rows["accuracy"] = mean + rng.normal(0, deviation, len(rows)) + rng.normal(0, 1, n_seeds)[rows["seed"]]
    rows["setting"] = [str(row) for row in rows[["noise", "clip", "sequence"]].itertuples(index=False, name=None)]
    rows = rows.assign(kind=rows["sequence"], distinct_clip=rows["clip"], learning_rate=0.1)
    for name in ("train_accuracy", "loss", "tpvd", "tpvd_other_init", "auc", "tpr", "epsilon_lower_bound"):
        rows[name] = rows["accuracy"]
    return FactorStudy(frame=rows, grid=rows, compared=rows, history=rows[:0], cells=(), note="")


# --- what the verdicts rest on ---------------------------------------------------------------------


def test_the_p_value_and_the_adjusted_interval_are_students() -> None:
    values = [0.31, 0.12, 0.44, 0.25]
    found = estimate(values)
    assert found is not None
    expected = stats.ttest_1samp(values, 0)
    assert p_value(found) == pytest.approx(expected.pvalue)
    wide = adjusted(found, 7)
    interval = expected.confidence_interval(1 - 0.05 / 7)
    assert (wide.low, wide.high) == pytest.approx((interval.low, interval.high))
    assert adjusted(found, 1) == found


def test_seeds_that_do_not_differ_say_nothing() -> None:
    alike = estimate([0.25, 0.25, 0.25])
    assert alike is not None
    assert p_value(alike) is None
    assert adjusted(alike, 1).half_width is None
    assert p_value(estimate([0.25])) is None
    assert p_value(None) is None


# --- verdicts on the side of a number --------------------------------------------------------------


def side_verdict(rng: np.random.Generator, means: list[float], n_seeds: int) -> str:
    """The verdict that all means lie above zero, from seeds with a deviation of one."""
    found = [estimate(rng.normal(mean, 1, n_seeds)) for mean in means]
    votes = [Vote(judged=one, claimed=ABOVE_ZERO, words="") for one in found if one is not None]
    return decide("", votes).verdict


def test_a_true_claim_of_many_votes_is_rarely_said_not_to_hold() -> None:
    """Eighteen differences of zero: judged singly at 95 %, a third of all such claims would be refuted."""
    rng = np.random.default_rng(1)
    verdicts = [side_verdict(rng, [0.0] * 18, 3) for _ in range(1000)]
    assert verdicts.count("did not hold") / 1000 < 0.05
    assert verdicts.count("held") == 0
    one_by_one = [
        any(
            (one := estimate(rng.normal(0, 1, 3))) is not None and one.high is not None and one.high < 0
            for _ in range(18)
        )
        for _ in range(300)
    ]
    assert np.mean(one_by_one) > 0.25


@pytest.mark.slow
def test_a_false_claim_is_rarely_said_to_hold_and_a_true_one_often() -> None:
    rng = np.random.default_rng(2)
    one_is_zero = [side_verdict(rng, [20.0] * 17 + [0.0], 3) for _ in range(1000)]
    assert one_is_zero.count("held") / 1000 < 0.05
    # Gains of 3 to 10 points where seeds differ by half a point, as on MNIST with the CNN and Adam
    assert np.mean([side_verdict(rng, [16.0] * 18, 3) == "held" for _ in range(300)]) > 0.8
    assert np.mean([side_verdict(rng, [6.0] * 18, 5) == "held" for _ in range(300)]) > 0.9
    assert np.mean([side_verdict(rng, [20.0] * 17 + [-30.0], 3) == "did not hold" for _ in range(300)]) > 0.8


def verdict_on_gains(directory: Path, gains: tuple[float, ...]) -> Claim:
    """The claim on the abstract's average gains, if AC gains these points in each seed on MNIST; the paper has 3."""
    made = make_factor_rows(
        datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), n=3, ladder=False, quantiles=False
    )
    for row in made["trials"]:
        gain = gains[row["seed"]] if row["mechanism"] == "noise_then_clip" else 0.0
        row["test_accuracy"] = 0.5 + gain / 100
    results = load(write_factor_tables(directory, made))
    study = factor_study(results, measure(results))
    assert study is not None
    text = "On average, AC gains at least as much accuracy over CA as the abstract says, on test examples."
    return next(claim for claim in judge_factors(study) if claim.text == text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((-15.0, -5.0, 5.0), "undecided"),  # −5 ± 25: it contains the paper's number, and most of what is below it
        ((4.0, 4.2, 4.1), "held"),
        ((2.8, 3.0, 3.4), "undecided"),
        ((1.0, 1.1, 0.9), "did not hold"),
    ],
)
def test_an_interval_must_lie_on_the_claimed_side_of_the_papers_number(
    tmp_path: Path, gains: tuple[float, ...], verdict: str
) -> None:
    claim = verdict_on_gains(tmp_path, gains)
    assert claim.verdict == verdict
    assert "paper +3" in claim.evidence[0]


# --- which factors matter --------------------------------------------------------------------------

GRIDS = {
    96: (("dataset", "model", "noise", "clip", "sequence"), 3),
    32: (("dataset", "noise", "sequence"), 4),
}


@pytest.mark.slow
@pytest.mark.parametrize(("n_trials", "least"), [(96, 0.55), (32, 0.3)])
def test_an_effect_of_one_deviation_is_found_beside_a_dataset_of_three(n_trials: int, least: float) -> None:
    """Unpaired tests with Holm over eleven find it in 38 % of grids of 96 trials, and in one of 200 grids of 32."""
    factors, n_seeds = GRIDS[n_trials]
    rng = np.random.default_rng(n_trials)
    found = []
    for _ in range(50):
        study = simulated(rng, {"dataset": 3.0, "noise": 1.0}, factors=factors, n_seeds=n_seeds)
        assert len(study.grid) == n_trials
        (noise,) = contrasts(study, "noise", "accuracy")
        p = p_value(noise.difference)
        found.append(p is not None and p < 0.05)
    assert np.mean(found) > least


@pytest.mark.slow
def test_a_factor_without_effect_is_found_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(80):
        study = simulated(rng, {"dataset": 3.0}, factors=("dataset", "noise", "sequence"), n_seeds=4)
        (noise,) = contrasts(study, "noise", "accuracy")
        p = p_value(noise.difference)
        found.append(p is not None and p < 0.05)
    assert np.mean(found) < 0.13  # 5 % and three standard errors


def only(analysis: Analysis) -> Claim:
    return _only(analysis, ("dataset", "sequence"), "accuracy", "")


def test_an_effect_that_is_not_significant_is_no_effect_that_does_not_matter() -> None:
    """An effect of one deviation, beyond the margin: whatever the test finds, no vote says that it does not matter."""
    rng = np.random.default_rng(6)
    for n_trials, (factors, n_seeds) in GRIDS.items():
        for _ in range(3):
            effects = {"dataset": 0.15, "noise": 0.05, "sequence": 0.1}
            study = simulated(rng, effects, factors=factors, n_seeds=n_seeds, deviation=0.05)
            found = analyze(study, "accuracy").influence("noise")
            assert found.answer in ("matters", "undecided"), n_trials


def test_the_claim_that_only_two_factors_matter_can_hold_and_can_fail() -> None:
    rng = np.random.default_rng(7)
    effects = {"dataset": 0.3, "sequence": 0.1}
    quiet = analyze(simulated(rng, effects, deviation=0.004), "accuracy")
    assert only(quiet).verdict == "held"
    assert quiet.influence("clip").answer == "does not matter"
    noise = analyze(simulated(rng, {**effects, "noise": -0.159}, deviation=0.004), "accuracy")
    assert only(noise).verdict == "did not hold"
    assert noise.influence("noise").answer == "matters"
    loud = analyze(simulated(rng, effects, deviation=0.1), "accuracy")
    assert only(loud).verdict == "undecided"
    # Sequence is named, but shown to have no effect
    idle = analyze(simulated(rng, {"dataset": 0.3}, deviation=0.002), "accuracy")
    assert only(idle).verdict == "did not hold"


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "matters"), [(0.015, False), (0.02, False), (0.035, True)])
def test_an_effect_matters_only_where_it_is_shown_to_exceed_the_margin(effect: float, matters: bool) -> None:
    """Effects below and at the margin of .02 that every test finds: a test of zero would say that they matter."""
    rng = np.random.default_rng(20)
    effects = {"dataset": 0.3, "sequence": 0.1, "noise": effect}
    analyses = [
        analyze(
            simulated(rng, effects, factors=("dataset", "noise", "sequence"), n_seeds=4, deviation=0.004), "accuracy"
        )
        for _ in range(40)
    ]
    found = [analysis.influence("noise") for analysis in analyses]
    assert np.mean([(one.p_holm or 0.0) < 0.05 for one in found]) > 0.9
    says_so = np.mean([one.answer == "matters" for one in found])
    refuted = np.mean([only(analysis).verdict == "did not hold" for analysis in analyses])
    if matters:
        assert min(says_so, refuted) > 0.5
        return
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    assert max(says_so, refuted) < limit
    assert np.mean([one.answer == "does not matter" for one in found]) < (1 if effect < 0.02 else limit)
    unsized = [one for one in found if one.answer == "undecided"]
    assert unsized
    assert unsized[0].conclusion == "undecided: there is an effect, but it is not shown to exceed the margin"


def test_the_p_value_of_a_margin_is_below_a_level_where_the_interval_lies_beyond_the_margin() -> None:
    rng = np.random.default_rng(21)
    beyond = 0
    for _ in range(400):
        found = estimate(rng.normal(0.04, 0.02, 4))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        p = p_value(found, 0.02)
        assert p is not None
        is_beyond = found.low > 0.02 or found.high < -0.02
        assert (p < 0.05) == is_beyond
        beyond += is_beyond
    assert 40 < beyond < 360
    at_margin = [p_value(estimate(rng.normal(0.02, 0.02, 4)), 0.02) for _ in range(2000)]
    assert np.mean([p is not None and p < 0.05 for p in at_margin]) < 0.05


def test_effects_that_cancel_on_average_do_not_make_a_factor_irrelevant() -> None:
    rng = np.random.default_rng(8)
    study = simulated(rng, {"dataset": 0.3}, deviation=0.002)
    grid = study.grid
    grid["accuracy"] += 0.1 * np.where(grid["model"] == "lin_cnn", 1, -1) * (grid["noise"] == 0.5)
    found = analyze(study, "accuracy").influence("noise")
    assert found.answer == "undecided"
    assert "with model" in next(words for words in only(analyze(study, "accuracy")).evidence if "noise" in words)


def test_with_one_seed_no_factor_is_judged() -> None:
    study = simulated(np.random.default_rng(9), {"dataset": 3.0}, n_seeds=1)
    analysis = analyze(study, "accuracy")
    assert {one.answer for one in analysis.influences} == {"undecided"}
    assert "fewer than 2 seeds" in analysis.influence("noise").note
    assert only(analysis).verdict == "undecided"


def test_holm_is_over_the_factors_each_of_which_has_one_test() -> None:
    study = simulated(
        np.random.default_rng(10), {"dataset": 3.0, "noise": 0.4}, factors=("dataset", "noise", "sequence")
    )
    found = {one.factor: one for one in analyze(study, "accuracy").influences}
    known = sorted((one.p_value, name) for name, one in found.items() if one.p_value is not None)
    assert [name for _, name in known] != []
    assert len(known) == 3
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (3 - rank) * p))
        assert found[name].p_holm == pytest.approx(largest)


# --- rows that are one run -------------------------------------------------------------------------

TWINS = """
name: one_run
datasets: [{name: digits, max_train_examples: 240, max_test_examples: 60}]
splits: [coins]
optimizers: [adam]
defenses:
  none: none
  ca: {name: clip_then_noise, noise_scale: 0.0, grid: {max_grad_norm: [0.2, 0.3]}}
  ac: {name: noise_then_clip, noise_scale: 0.5, grid: {max_grad_norm: [0.02, 1.0]}}
training: {epochs: 2, batch_size: 25, sampling: poisson, paired_batches: true}
seeds: [3]
attacks: [threshold]
"""


@pytest.mark.slow
def test_clip_norms_that_all_gradients_exceed_are_one_run_under_adam(tmp_path: Path) -> None:
    """Really trained. Noise is left out, because each target has its own; weights need not agree to the bit."""
    path = tmp_path / "one_run.yaml"
    path.write_text(TWINS, encoding="utf-8")
    sweep = load_sweep(str(path))
    store = Store(tmp_path / "out")
    store.prepare()
    store.write_sweep(sweep, expand(sweep))
    for trial in expand(sweep):
        run_trial(trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True))
    gather(store)
    results = load(store.storage.root)
    study = factor_study(results, measure(results))
    assert study is not None
    rows = study.frame[study.frame["clip"].notna()].set_index(["kind", "clip"])
    ca, ac = rows.loc["CA"], rows.loc["AC"]
    assert ca["distinct_clip"].nunique() == 1
    assert ac["distinct_clip"].nunique() == 2
    trials = results.trials[results.trials["mechanism"] == "clip_then_noise"]
    assert trials["test_accuracy"].nunique() == 1
    assert ca["clipped"].eq(1).all()


def test_clip_norms_that_all_gradients_exceed_are_one_training_whatever_noise_each_run_drew(tmp_path: Path) -> None:
    made = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), n=3, ladder=False, quantiles=False)
    for row in made["trials"]:
        row["noise_unit"] = row["noise_unit"] and "clip_norm"
    for row in made["history"]:
        row["clipped_fraction"] = row["clip_norm"] and 1.0
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    frame = study.frame[study.frame["clip"].notna()]
    one = (frame["optimizer"] == "adam") & (frame["kind"] == "CA")  # AC's noise is in clip norms on each gradient
    assert set(frame.loc[one, "distinct_clip"]) == {0.8}
    assert (frame.loc[~one, "distinct_clip"] == frame.loc[~one, "clip"]).all()
    for row in made["history"]:
        row["clipped_fraction"] = row["clip_norm"] and 0.99 if row["epoch"] == 1 else row["clipped_fraction"]
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    assert (study.frame["distinct_clip"].dropna() == study.frame["clip"].dropna()).all()


def with_repeats(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """CA under Adam at clip norm 1.4 repeats the run at 0.8."""
    rng = np.random.default_rng(11)
    kept: dict[str, np.ndarray[Any, Any]] = {}
    for row in rows["tpvd"]:
        key = row["target_id"].replace("_1.4-", "_0.8-") if "-adam-ca_" in row["target_id"] else row["target_id"]
        sketch = kept.setdefault(key, rng.normal(size=256))
        row["displacement_sketch"] = list(sketch * (1 + 0.003 * rng.normal(size=256)))
    return rows


def test_a_run_that_was_made_twice_counts_once(tmp_path: Path) -> None:
    made = with_repeats(
        make_factor_rows(datasets=("mnist", "svhn"), models=("lin_cnn",), n=3, ladder=False, quantiles=False)
    )
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    settings = over_seeds(study.grid)
    # 2 datasets, 2 optimizers, 2 noise scales, 2 clip norms, 2 sequences: of 8 pairs of CA under Adam 4 are one run
    assert len(settings) == 32 - 4
    assert "12 of these trials repeat the training of a smaller clip norm" in study.note
    assert "CA on MNIST, CNN, Adam" in study.note
    analysis = analyze(study, "accuracy")
    assert analysis.influence("sequence").h.n == 28
    (clip,) = analysis.influence("clip").contrasts
    assert clip.n_combinations == 16 - 4
    (sequence,) = analysis.influence("sequence").contrasts
    assert sequence.n_combinations == 16


def test_runs_that_hardly_leave_their_initialization_are_not_taken_for_one(tmp_path: Path) -> None:
    """SGD's steps are as long as the clip norm: only the distances from the twin, which moved far, are equal."""
    made = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), n=3, ladder=False, quantiles=False)
    for row in made["trials"]:
        row["noise_unit"] = row["noise_unit"] and "clip_norm"
    rng = np.random.default_rng(12)
    way = rng.normal(size=256)
    for row in made["tpvd"]:
        row["displacement_sketch"] = list(way * (1 + 0.003 * rng.normal(size=256)))
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    frame = study.frame[study.frame["clip"].notna()]
    of_sgd = frame["optimizer"] == "sgd"
    assert (frame.loc[of_sgd, "distinct_clip"] == frame.loc[of_sgd, "clip"]).all()
    assert set(frame.loc[~of_sgd, "distinct_clip"]) == {0.8}
    (clip,) = analyze(study, "accuracy").influence("clip").contrasts
    assert clip.n_combinations == 4


def test_aucs_below_one_half_are_not_ranked_where_tpvd_is_set_against_leakage(tmp_path: Path) -> None:
    made = make_factor_rows(
        datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), n=3, ladder=False, quantiles=False
    )
    distance = {row["target_id"]: row["tpvd"] for row in made["tpvd"]}
    for row in made["attacks"]:
        if row["attack"] == "best_of":
            auc = 0.49 - 0.05 * distance.get(row["target_id"], 0.0)
            row.update(auc=auc, auc_low=auc - 0.03, auc_high=auc + 0.03)
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    found = [one.test for one in tpvd_correlations(study) if one.measure == "auc" and one.group == ALL]
    assert [(test.p_value, test.note) for test in found] == [(None, "all values are the same")]


def test_where_all_clip_norms_are_one_run_nothing_is_said_of_the_clip_norm(tmp_path: Path) -> None:
    made = make_factor_rows(
        datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), n=3, ladder=False, quantiles=False
    )
    for row in made["tpvd"]:
        row["displacement_sketch"] = [1.0] * 256
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    found = analyze(study, "accuracy").influence("clip")
    assert found.answer == "undecided"
    assert found.note == "no combination has different runs at two levels"


# --- what the claims keep of the paper -------------------------------------------------------------


@pytest.mark.slow
def test_the_papers_own_exceptions_to_non_normality_are_kept(tmp_path: Path) -> None:
    made = make_factor_rows(models=("lin_cnn",), n=3, ladder=False, quantiles=False, seeds=(0,))
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    claims = {claim.text: claim for claim in judge_factors(study)}
    rule = next(claim for text, claim in claims.items() if "not normally distributed, except" in text)
    exception = claims["On these exceptions they are normally distributed."]
    named = ["test accuracy, dataset CIFAR-10", "training accuracy, dataset CIFAR-10"]
    named += ["the final training loss, dataset CIFAR-10", "the final training loss, dataset SVHN"]
    assert [words.split(":")[0][2:] for words in exception.evidence] == named
    assert not [words for words in rule.evidence if words.split(":")[0][2:] in named]
    assert any("test accuracy, dataset SVHN" in words for words in rule.evidence)
    assert exception.verdict != "held"


@pytest.mark.slow
def test_verdicts_between_arms_say_that_they_share_an_untuned_learning_rate(tmp_path: Path) -> None:
    made = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), n=3, seeds=(0, 1))
    results = load(write_factor_tables(tmp_path, made))
    study = factor_study(results, measure(results))
    assert study is not None
    claims = judge_factors(study)
    between_arms = [claim for claim in claims if "TPVD" not in claim.text and "normally" not in claim.text]
    assert len(between_arms) == 13
    for claim in between_arms:
        assert claim.evidence[-1].startswith(
            "All arms share one learning rate (Adam 0.001, SGD 0.1), tuned for none"
        ), claim
    quantile = next(claim for claim in claims if "quantile clipping, on test" in claim.text)
    assert any(words.startswith("Clipping first at that clip norm: MNIST") for words in quantile.evidence)
