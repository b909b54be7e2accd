"""Verdicts of the report: each follows from the evidence, and errs no more often than it says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from analysis_fixture import LAYERS, Rows, area, make_rows, write_tables
from scipy import stats

from analysis.claims import BELOW_ZERO, Claim, Vote, decide
from analysis.load import load
from analysis.measure import inversion, verdicts
from analysis.measure.inversion import judged_changes
from analysis.measure.shared_examples import Correlations
from analysis.measure.summary import summaries
from analysis.measure.targets import Measurements, _panel, measure
from analysis.measure.tradeoff import front
from analysis.naming import latex_label
from analysis.report import write as report_module
from analysis.report.figures import Figures
from analysis.report.findings import about_the_runs, summarize
from analysis.report.write import write_report
from analysis.statistics.estimates import auc_influence, estimate, p_above, seeds_and_examples, sign
from analysis.statistics.tests import holm
from analysis.studies.lomurno2022.claims import judge
from analysis.studies.lomurno2022.findings import summarize_inversion
from analysis.studies.lomurno2022.tables import ONE_SEED, UNSUPPORTED, inversion_table, paper_tables
from analysis.tables.model import Mean
from analysis.tables.recipes import recipe_table
from analysis.tables.text import estimate_text, shown
from attacks.metrics import membership_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of the time that a report takes, and nothing here looks at figures."""
    monkeypatch.setattr(report_module, "write_figures", lambda *_: Figures(tradeoffs={}, general=(), of_studies=()))


def measured_from(rows: Rows, directory: Path) -> Measurements:
    return measure(load(write_tables(directory, rows)))


def sentences(rows: Rows, directory: Path, heading: str) -> str:
    results = load(write_tables(directory, rows))
    measured = measure(results)
    found = [*summarize(results, measured), summarize_inversion(measured), *about_the_runs(results, measured)]
    return next(" ".join(one.sentences) for one in found if one.heading == heading)


def set_auc(rows: Rows, defense: str, values: Sequence[float], half: float = 0.05, dataset: str = "digits") -> None:
    """The honest AUC of each seed of a defense, with an interval over examples of ± `half`."""
    for row in rows["attacks"]:
        _, data, label, seed = row["target_id"].split("-")
        if row["attack"] == "best_of" and (data, label) == (dataset, defense):
            value = values[int(seed)]
            row.update(auc=value, auc_low=value - half, auc_high=value + half, n_members=1000, n_non_members=1000)


def set_accuracy(rows: Rows, defense: str, values: Sequence[float]) -> None:
    for row in rows["trials"]:
        if row["defense"] == defense:
            row["test_accuracy"] = values[row["seed"]]


# --- intervals over seeds and examples ----------------------------------------------------------


def draw(
    rng: np.random.Generator, repeats: int, n_seeds: int, shared: float, between: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values (repeats, n_seeds) around zero, and their covariance by examples: unit variance, correlation `shared`."""
    values = np.sqrt(shared) * rng.standard_normal((repeats, 1))
    values = values + np.sqrt(1 - shared) * rng.standard_normal((repeats, n_seeds))
    values += between * rng.standard_normal((repeats, n_seeds))
    return values, np.full((n_seeds, n_seeds), shared) + (1 - shared) * np.eye(n_seeds)


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize("shared", [0.0, 0.9])
@pytest.mark.parametrize("between", [0.0, 1.0, 6.0])
def test_the_interval_over_seeds_and_examples_errs_as_often_as_it_says(
    n_seeds: int, shared: float, between: float
) -> None:
    rng = np.random.default_rng(n_seeds)
    values, covariance = draw(rng, 4000, n_seeds, shared, between)
    missed = np.mean([sign(seeds_and_examples(one, covariance)) != 0 for one in values])
    assert missed < 0.07 + 3 * np.sqrt(0.07 * 0.93 / 4000)


def test_the_t_interval_alone_errs_often_where_seeds_share_their_examples() -> None:
    values, _ = draw(np.random.default_rng(0), 2000, 3, 0.9, 0.0)
    assert np.mean([sign(estimate(one)) != 0 for one in values]) > 0.3


@pytest.mark.parametrize("n_seeds", [2, 3, 8])
def test_without_variance_by_examples_the_interval_is_scipys_t_interval(n_seeds: int) -> None:
    values = np.random.default_rng(n_seeds).standard_normal(n_seeds)
    found = seeds_and_examples(values, np.zeros((n_seeds, n_seeds)))
    low, high = stats.t.interval(0.95, n_seeds - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert p_above(values, np.zeros((n_seeds, n_seeds)), 0.0) == pytest.approx(
        stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    )


def test_one_seed_has_the_normal_interval_over_its_examples() -> None:
    found = seeds_and_examples([0.6], [[0.02**2]])
    assert (found.low, found.high, found.over) == (
        pytest.approx(0.6 - 1.96 * 0.02, abs=1e-5),
        pytest.approx(0.6392, abs=1e-4),
        "examples",
    )


def test_influences_give_delongs_variance_and_the_covariance_of_a_bootstrap() -> None:
    rng = np.random.default_rng(5)
    member = np.arange(400) < 180
    common = rng.standard_normal(400)
    first, second = (np.round(common + member + 0.7 * rng.standard_normal(400), 1) for _ in range(2))
    influence = [auc_influence(member, score) for score in (first, second)]
    # DeLong's structural components, by counting
    wins = (first[member][:, None] > first[~member]) + 0.5 * (first[member][:, None] == first[~member])
    delong = wins.mean(axis=1).var() / 180 + wins.mean(axis=0).var() / 220
    assert (influence[0] ** 2).sum() == pytest.approx(delong)

    def areas(index: np.ndarray) -> list[float]:
        return [area(score[index][member], score[index][~member]) for score in (first, second)]

    sides = np.flatnonzero(member), np.flatnonzero(~member)
    resampled = np.array([areas(np.concatenate([rng.choice(side, len(side)) for side in sides])) for _ in range(1500)])
    assert influence[0] @ influence[1] == pytest.approx(np.cov(resampled.T)[0, 1], rel=0.15)


# --- guessing -----------------------------------------------------------------------------------


def test_three_seeds_that_happen_to_agree_do_not_show_that_guessing_is_beaten(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "dp_eps2"))
    agreeing = (0.515, 0.521, 0.527)
    set_auc(rows, "dp_eps2", agreeing)
    set_auc(rows, "baseline", (0.66, 0.70, 0.68))
    over_seeds = estimate(agreeing)
    assert (
        over_seeds is not None and over_seeds.low is not None and over_seeds.low > 0.5
    )  # the t-interval would say yes
    words = sentences(rows, tmp_path / "a", "Does the attacker beat guessing?")
    assert "yes against Baseline; not shown against DP ε=2" in words
    set_auc(rows, "baseline", (0.50, 0.51, 0.52))
    words = sentences(rows, tmp_path / "c", "Does the attacker beat guessing?")
    assert "Among 2 verdicts, the probability of even one wrong “yes” is at most 5 % (Holm)." in words


def test_a_table_of_verdicts_on_guessing_errs_at_its_stated_rate() -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(1500):
        p_values = []
        for _ in range(7):
            values, covariance = draw(rng, 1, 3, 0.5, 0.0)
            p_values.append(p_above(values[0], covariance, 0.0))
        wrong += min(p for p in holm(p_values) if p is not None) < verdicts.ERROR_RATE
    assert wrong / 1500 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("redrawn", [True, False], ids=["members redrawn per seed", "members fixed"])
def test_guessing_is_not_beaten_by_chance_on_a_pool_that_seeds_share(redrawn: bool) -> None:
    """Scores independent of membership but similar across seeds, because an example is easy or hard."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(600):
        easy = rng.standard_normal(200)
        fixed = rng.permutation(200) < 100
        influences, values = [], []
        for _ in range(3):
            member = rng.permutation(200) < 100 if redrawn else fixed
            score = easy + 0.3 * rng.standard_normal(200)
            values.append(area(score[member], score[~member]))
            influences.append(auc_influence(member, score))
        found.append(p_above(values, np.array(influences) @ np.array(influences).T, 0.5))
    assert np.mean(np.array(found) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_seeds_that_share_their_examples_count_as_less_than_seeds_that_do_not(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline",))
    set_auc(rows, "baseline", (0.56, 0.56, 0.56))
    apart = measured_from(rows, tmp_path / "apart")
    # The same score for the same example in every seed: all seeds share one seed's chance
    first = {row["example_id"]: row["score"] for row in rows["scores"] if row["target_id"].endswith("-0")}
    for row in rows["scores"]:
        row["score"] = first[row["example_id"]]
    alike = measured_from(rows, tmp_path / "alike")
    (setting,) = apart.settings
    p_apart, p_alike = (one.p_guessing(setting, "digits", "baseline") for one in (apart, alike))
    error = 0.05 / stats.norm.ppf(0.975)
    assert p_alike == pytest.approx(float(stats.norm.sf(0.06 / error)))
    assert p_apart is not None and p_apart < p_alike


def test_without_scores_seeds_are_taken_to_share_all_luck_and_defenses_none(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"))
    rows["scores"] = []
    for defense in ("baseline", "l2"):
        set_auc(rows, defense, (0.6, 0.6, 0.6))
    measured = measured_from(rows, tmp_path)
    (setting,) = measured.settings
    found = measured.estimate(setting, "digits", "l2", "auc")
    change = measured.risk_difference(setting, "digits", "l2", "baseline")
    assert found is not None and change is not None and found.error is not None
    assert found.error == pytest.approx(0.05 / stats.norm.ppf(0.975))
    assert change.error == pytest.approx(np.sqrt(2) * found.error)


@pytest.mark.parametrize("side", [2, 3, 9, 10])
def test_with_fewer_than_ten_examples_a_side_no_auc_beats_guessing(tmp_path: Path, side: int) -> None:
    """Two members above two non-members are one order of six, three above three one of twenty."""
    rows = make_rows(defenses=("baseline", "l2"), n=side)
    set_auc(rows, "baseline", (1.0, 1.0, 1.0), half=0.0)
    for row in rows["attacks"]:
        if row["attack"] == "best_of" and "baseline" in row["target_id"]:
            row.update(auc_low=0.025 ** (1 / side), n_members=side, n_non_members=side)
    measured = measured_from(rows, tmp_path / "a")
    (setting,) = measured.settings
    p = measured.p_guessing(setting, "digits", "baseline")
    change = measured.risk_difference(setting, "digits", "l2", "baseline")
    words = sentences(rows, tmp_path / "b", "Does the attacker beat guessing?")
    assert change is not None
    if side < 10:
        assert (p, change.low, sign(change), verdicts.told(change)) == (None, None, None, "too few examples to tell")
        assert "undecided against Baseline and L2 (fewer than 10 members or non-members)" in words
        claim = decide("A claim.", [Vote(words="x", judged=change, claimed=BELOW_ZERO)])
        assert (claim.verdict, claim.evidence[0][-18:]) == ("undecided", "(too few examples)")
        return
    assert p is not None
    assert p < 0.001
    assert "yes against Baseline" in words


@pytest.mark.parametrize("side", [10, 30])
def test_an_auc_of_few_examples_beats_guessing_as_rarely_as_a_table_of_many_demands(tmp_path: Path, side: int) -> None:
    """With estimated errors alone, 16 in 1000 p-values with ten examples a side are below 0.0025."""
    rng = np.random.default_rng(side)
    measured = measured_from(make_rows(defenses=("baseline",), seeds=(0,), n=side), tmp_path)
    frame = pd.concat([measured.frame] * 2000, ignore_index=True).assign(defense=[str(n) for n in range(2000)])
    drawn = [membership_metrics(np.arange(2 * side) < side, rng.standard_normal(2 * side), rng) for _ in range(2000)]
    for name in ("auc", "auc_low", "auc_high"):
        frame[name] = [getattr(one, name) for one in drawn]
    panel = _panel(frame, Correlations(frames={}), ("", ""))
    covariances = [panel.covariance([place], guessing=True) for place in range(2000)]
    found = [p_above([auc], one, 0.5) for auc, one in zip(panel.auc, covariances, strict=True) if one is not None]
    assert len(found) == 2000
    for level in (0.05, 0.0025):
        assert np.mean(np.array(found) < level) < level + 3 * np.sqrt(level * (1 - level) / 2000)


# --- an AUC below one half ----------------------------------------------------------------------


def test_an_auc_below_one_half_wins_nothing(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "dp_eps2", "l2"))
    set_auc(rows, "baseline", (0.62, 0.63, 0.61))
    set_auc(rows, "dp_eps2", (0.50, 0.51, 0.49))
    set_auc(rows, "l2", (0.41, 0.40, 0.39), half=0.01)
    set_accuracy(rows, "dp_eps2", (0.9, 0.91, 0.92))
    set_accuracy(rows, "l2", (0.8, 0.81, 0.82))
    measured = measured_from(rows, tmp_path / "a")
    (setting,) = measured.settings
    assert front(measured, setting, "digits", "auc") == ["dp_eps2", "baseline"]
    change = measured.risk_difference(setting, "digits", "l2", "dp_eps2")
    assert change is not None
    assert change.mean == pytest.approx(0.0)
    assert sign(change) == 0
    assert verdicts.may_be_lowest(measured, setting, "digits", measured.defenses) == ["dp_eps2", "l2"]


# --- differences --------------------------------------------------------------------------------


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    spread = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    rows = make_rows(defenses=("baseline", "l2"), seeds=range(5))
    set_accuracy(rows, "baseline", 0.5 + spread)
    set_accuracy(rows, "l2", 0.47 + spread + np.array([0.001, -0.001, 0.0, 0.002, -0.002]))
    measured = measured_from(rows, tmp_path)
    (setting,) = measured.settings
    estimates = [measured.estimate(setting, "digits", defense, "test_accuracy") for defense in ("baseline", "l2")]
    assert all(one is not None and one.low is not None and one.low < 0.6 and (one.high or 0) > 0.8 for one in estimates)
    change = verdicts.against_the_baseline(measured, setting, "digits", "test_accuracy")["l2"]
    assert verdicts.told(change) == "lower"


def test_bounded_quantities_have_bounded_intervals_and_few_seeds_are_said(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"), seeds=(0, 1))
    set_accuracy(rows, "l2", (0.12, 0.20))
    set_accuracy(rows, "baseline", (0.1, 0.3))
    measured = measured_from(rows, tmp_path)
    (setting,) = measured.settings
    found = measured.estimate(setting, "digits", "l2", "test_accuracy")
    assert estimate_text(found, 3) == "0.160 [0.000, 0.668]"
    change = verdicts.against_the_baseline(measured, setting, "digits", "test_accuracy")["l2"]
    assert (change.low, change.high) == (pytest.approx(-0.802, abs=0.001), pytest.approx(0.722, abs=0.001))
    assert verdicts.told(change) == "two seeds are too few to tell"
    one = verdicts.told(estimate([0.1]) or change)
    assert one == "one seed, so this may be chance"


def test_no_interval_in_any_table_leaves_what_is_possible(tmp_path: Path) -> None:
    rows = make_rows(seeds=(0, 1), datasets=("mnist", "cifar10"))
    rng = np.random.default_rng(1)
    for row in rows["trials"]:
        row.update(test_accuracy=rng.uniform(0.05, 0.95), train_time_s=rng.uniform(1, 100))
    for row in rows["attacks"]:
        if row["attack"] == "best_of":
            row.update(advantage=rng.uniform(0, 1), paper_protocol_auc=rng.uniform(0.3, 0.9))
    measured = measured_from(rows, tmp_path)
    made = paper_tables(measured)[:3]
    found = [entry.ours for table in made for row in table.rows for entry in row if isinstance(entry, Mean)]
    for row in summaries(measured):
        found += [row.accuracy, row.auc, row.tpr, row.advantage]
        assert row.time_ratio is not None and (row.time_ratio.low or 0) >= 0
    fractions = [one for one in found if one is not None and one.bounds == (0.0, 1.0)]
    assert len(fractions) > 60
    assert all(0 <= (one.low or 0) <= one.mean <= (one.high or 1) <= 1 for one in fractions)


# --- claims -------------------------------------------------------------------------------------


def verdict_of(differences: np.ndarray) -> str:
    """The verdict on a claim of as many comparisons (comparisons, seeds) that all lie below zero."""
    return decide("A claim.", [Vote(words="", judged=estimate(one), claimed=BELOW_ZERO) for one in differences]).verdict


def test_each_verdict_on_a_claim_errs_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(0)
    # No comparison differs from zero: both verdicts would be wrong
    found = [verdict_of(rng.standard_normal((12, 3))) for _ in range(1500)]
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    assert found.count("did not hold") / 1500 < limit
    assert found.count("held") / 1500 < limit
    # All but one lie far below zero, that one does not: "held" is wrong, however sure the others are
    others = np.array([-100.0] * 11 + [0.0])[:, None]
    assert [verdict_of(others + rng.standard_normal((12, 3))) for _ in range(1500)].count("held") / 1500 < limit


@pytest.mark.parametrize("comparisons", [1, 12])
def test_two_seeds_of_a_small_test_set_that_agree_by_chance_decide_nothing(comparisons: int) -> None:
    """Accuracies on 100 examples are whole percents: equal differences in two seeds give no estimate of chance."""
    rng = np.random.default_rng(1)
    draws = (rng.binomial(100, 0.9, (1500, comparisons, 2)) - rng.binomial(100, 0.9, (1500, comparisons, 2))) / 100
    found = [verdict_of(one) for one in draws]
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    assert found.count("did not hold") / 1500 < limit
    assert found.count("held") / 1500 < limit


@pytest.mark.parametrize(
    "differences",
    [(0.02, 0.02), (0.03, 0.03, 0.03), (0.9 - 0.8, 0.7 - 0.6), (0.43 - 0.41, 0.93 - 0.91)],
    ids=["two", "three", "rounded alike", "rounded"],
)
def test_seeds_that_do_not_differ_give_no_interval_and_no_verdict(differences: tuple[float, ...]) -> None:
    alike = estimate(differences)
    assert alike is not None
    assert (alike.low, alike.high, alike.at(0.5).low, sign(alike)) == (None, None, None, None)
    assert verdicts.told(alike) not in ("higher", "lower")
    claim = decide("A claim.", [Vote(words="x", judged=alike, claimed=(0.0, 1.0))])
    assert (claim.verdict, claim.evidence) == (
        "undecided",
        (f"? x: +{alike.mean:.3f} (the same in all {alike.n} seeds)",),
    )


def test_a_verdict_can_be_reached_either_way_and_shows_the_widened_intervals() -> None:
    near = np.array([-1.0, 0.0, 1.0]) * 0.01
    assert verdict_of(np.stack([near - 1, near - 2])) == "held"
    assert verdict_of(np.stack([near - 1, near + 2])) == "did not hold"
    claim = decide("A claim.", [Vote(words="x", judged=estimate(near + 1 * at), claimed=BELOW_ZERO) for at in (0, 2)])
    low, high = stats.t.interval(0.975, 2, loc=2, scale=stats.sem(near))
    assert claim.evidence[1].endswith(f"all 2 together [+{low:.3f}, +{high:.3f}]")


def _claim(rows: Rows, directory: Path, beginning: str) -> Claim:
    return next(claim for claim in judge(measured_from(rows, directory)) if claim.text.startswith(beginning))


def test_an_interval_that_merely_contains_the_papers_factor_holds_nothing(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",))
    wide = {"baseline": (1.0, 1.0, 1.0), "dp_eps2": (10.0, 45.0, 80.0)}
    for row in rows["trials"]:
        if row["defense"] in wide:
            row["train_time_s"] = wide[row["defense"]][row["seed"]]
    assert _claim(rows, tmp_path, "Differential privacy at ε = 2 slows").verdict == "undecided"


# --- inversion ----------------------------------------------------------------------------------


def set_errors(rows: Rows, constant: float, untrained: float | None) -> None:
    for row in rows["reconstructions"]:
        row.update(mse_constant=constant, mse_untrained=untrained)


@pytest.mark.parametrize(
    ("constant", "untrained"), [(1e-4, 1.0), (1.0, 1e-4), (1.0, None)], ids=["constant", "untrained", "not measured"]
)
def test_no_verdict_rests_on_a_decoder_that_does_not_beat_both_controls(
    tmp_path: Path, constant: float, untrained: float | None
) -> None:
    rows = make_rows(datasets=("mnist",))
    set_errors(rows, 1.0, 1.0)
    working = {claim.text: claim.verdict for claim in judge(measured_from(rows, tmp_path / "works"))}
    set_errors(rows, constant, untrained)
    directory = write_tables(tmp_path / "silent", rows)
    silent = {claim.text: claim for claim in judge(measure(load(directory)))}
    inversion = [text for text in silent if "reconstruction MSE" in text or "Inversion" in text]
    assert len(inversion) == 3
    assert "held" in {working[text] for text in inversion}
    assert {silent[text].verdict for text in inversion} == {"undecided"}
    assert all(
        "no decoder is shown to beat both controls" in words for text in inversion for words in silent[text].evidence
    )
    words = sentences(rows, tmp_path / "words", "Inversion under differential privacy")
    assert words.startswith("No decoder is shown to beat both controls")
    table = inversion_table(measure(load(directory)))
    means = [entry for row in table.rows for entry in row if isinstance(entry, Mean)]
    assert means
    assert all("†" in shown(entry) for entry in means)
    assert UNSUPPORTED in table.notes


def test_the_verdict_on_inversion_is_given_where_a_decoder_last_works(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",))
    set_errors(rows, 1.0, 1.0)
    for row in rows["reconstructions"]:
        if row["layer"] == "prediction":
            row["mse_constant"] = 1e-4
    words = sentences(rows, tmp_path, "Inversion under differential privacy")
    assert words.startswith(
        "At Dense, the last cut point at which a decoder is shown to beat both controls (none is at Prediction"
    )


def decoders(rng: np.random.Generator, setting: str, n_seeds: int, margin: float) -> pd.DataFrame:
    """Four defenses and eight layers whose decoders' errors lie `margin` above both controls, on average."""
    places = product(("baseline", "dp_eps2", "dp_eps4", "dp_eps8"), LAYERS, range(n_seeds))
    frame = pd.DataFrame(list(places), columns=["defense", "layer", "seed"])
    frame = frame.assign(setting=setting, dataset="mnist", mse_constant=1.0, mse_untrained=1.0)
    return frame.assign(mse_test=1 + margin + 0.02 * rng.standard_normal(len(frame)))


@pytest.mark.parametrize("n_seeds", [1, 2, 3, 5])
def test_a_table_of_decoders_that_do_not_work_rarely_says_that_one_does(tmp_path: Path, n_seeds: int) -> None:
    """With an interval for each cell alone, more than half of such tables name one; with one seed all of them."""
    rng = np.random.default_rng(n_seeds)
    measured = measured_from(make_rows(defenses=("baseline",), seeds=(0,), n=5), tmp_path)
    (setting,) = measured.settings

    def works(margin: float) -> list[bool]:
        made = replace(measured, inversion=decoders(rng, setting.key, n_seeds, margin))
        return list(inversion.decoder_works(made, setting).values())

    wrong = [any(works(0.0)) for _ in range(100)]
    assert np.mean(wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    found = works(-0.95)
    assert len(found) == 32
    assert np.mean(found) > 0.9 if n_seeds > 2 else n_seeds == 2 or not any(found)


def test_one_seed_shows_nothing_of_a_decoder(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",), seeds=(0,))
    set_errors(rows, 1.0, 1.0)
    claims = judge(measured_from(rows, tmp_path / "a"))
    of_inversion = [one for one in claims if "reconstruction MSE" in one.text or "Inversion" in one.text]
    assert all("one seed cannot show" in words for one in of_inversion for words in one.evidence)
    words = sentences(rows, tmp_path / "b", "Inversion under differential privacy")
    assert words.startswith("One seed cannot show")
    assert ONE_SEED in inversion_table(measured_from(rows, tmp_path / "c")).notes


def test_an_error_above_the_mean_images_counts_as_the_mean_images(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",), defenses=("baseline", "dp_eps2"))
    for row in rows["reconstructions"]:
        of_baseline = "baseline" in row["target_id"]
        luck = 1e-5 * int(row["target_id"][-1])  # seeds with equal values show nothing
        row.update(mse_test=0.05 + luck if of_baseline else 0.2, mse_constant=0.075, mse_untrained=0.08)
    measured = measured_from(rows, tmp_path)
    changes = judged_changes(measured, measured.settings[0])
    assert changes is not None
    assert changes.loc[changes["defense"] == "dp_eps2", "value"].to_numpy() == pytest.approx(50.0, abs=0.1)


# --- recipes, code, labels, what was measured beside --------------------------------------------


def with_config(rows: Rows, **changed: dict[str, Any]) -> None:
    """A configuration for each trial; `changed` maps a defense's label to what its training has differently."""
    for row in rows["trials"]:
        training = {"epochs": 10, "batch_size": 20, "learning_rate": 0.1, "evaluate_every": 0}
        training |= changed.get(row["defense"], {})
        row["config"] = json.dumps({"training": training, "defenses": [{"name": row["defense"], "revision": 1}]})


def test_unequal_recipes_are_said_at_the_verdict_and_stand_in_a_table(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "dp_eps2", "l2"))
    with_config(rows, dp_eps2={"evaluate_every": 5})  # changes nothing in what is trained
    assert "recipe" not in sentences(rows, tmp_path / "a", "digits")
    with_config(rows, dp_eps2={"learning_rate": 0.5, "batch_size": 60})
    words = sentences(rows, tmp_path / "b", "digits")
    assert "batch size 20 for Baseline and L2 and 60 for DP ε=2" in words
    assert "learning rate 0.1 for Baseline and L2 and 0.5 for DP ε=2" in words
    page = write_report(write_tables(tmp_path / "c", rows))
    text = page.read_text(encoding="utf-8")
    n_claim_sections = text.count("claimed, and what held here</h2>")
    assert n_claim_sections
    # The finding, and the claims of each study
    assert text.count("learning rate 0.1 for Baseline and L2 and 0.5 for DP ε=2") == 1 + n_claim_sections
    csv = (page.parent / "tables" / "recipes.csv").read_text(encoding="utf-8")
    assert csv.splitlines()[0] == "defense,where,epochs,batch_size,learning_rate,own"
    assert "DP ε=2,digits,10,60,0.5,dp_eps2" in csv


def test_recipes_that_differ_from_many_alike_are_said_once(tmp_path: Path) -> None:
    alike = ("baseline", "l2", "dropout", "mixup")
    rows = make_rows(datasets=("digits", "mnist"), defenses=(*alike, "dp_eps2"))
    with_config(rows, dp_eps2={"batch_size": 60})
    page = write_report(write_tables(tmp_path, rows)).read_text(encoding="utf-8")
    said = "recipe: MNIST and digits: batch size 60 for DP ε=2 and 20 for all others."
    assert page.count(said) == page.count("claimed, and what held here</h2>") > 0


def test_a_defense_whose_seeds_had_several_recipes_is_named(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"))
    with_config(rows)
    assert "recipes" not in sentences(rows, tmp_path / "a", "What ran")
    changed = next(row for row in rows["trials"] if row["target_id"] == "main-digits-l2-1")
    changed["config"] = changed["config"].replace('"epochs": 10', '"epochs": 20')
    words = sentences(rows, tmp_path / "b", "What ran")
    assert "Seeds of L2 on digits were trained with different recipes" in words


def test_a_trial_without_a_configuration_has_the_recipe_of_its_columns(tmp_path: Path) -> None:
    measured = measured_from(make_rows(defenses=("baseline",), seeds=(0,)), tmp_path)
    (row,) = recipe_table(measured).rows
    assert row[:4] == ("Baseline", "digits", "10", "20")


def add_column(directory: Path, table: str, name: str, values: list[Any]) -> None:
    path = directory / f"{table}.parquet"
    found = pq.read_table(path)
    if name in found.column_names:
        found = found.drop_columns([name])
    pq.write_table(found.append_column(name, pa.array(values)), path)


def test_mixed_code_is_said(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"))
    directory = write_tables(tmp_path, rows)
    for differing, said in ((False, False), (True, True)):
        hashes = ["b" if differing and row["target_id"] == "main-digits-l2-1" else "a" for row in rows["trials"]]
        add_column(directory, "trials", "component_sha256", hashes)
        results = load(directory)
        (words,) = (
            " ".join(one.sentences) for one in about_the_runs(results, measure(results)) if one.heading == "What ran"
        )
        assert ("Seeds of L2 on digits were trained with different code" in words) == said


def test_what_guessing_gives_and_the_interval_of_tpr_stand_in_the_summary(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"))
    directory = write_tables(tmp_path, rows)
    for name, value in (("advantage_null", 0.0912), ("tpr_at_fpr_0.1_low", 0.0634), ("tpr_at_fpr_0.1_high", 0.1876)):
        add_column(
            directory, "attacks", name, [value if row["attack"] == "best_of" else None for row in rows["attacks"]]
        )
    page = write_report(directory)
    text = page.read_text(encoding="utf-8")
    assert "guessing 0.091" in text
    assert "examples [0.063, 0.188]" in text
    assert "& guessing 0.091 &" in (page.parent / "tables" / "summary.tex").read_text(encoding="utf-8")


def test_latex_labels_of_two_sweeps_never_collide(tmp_path: Path) -> None:
    labels = []
    for sweep in ("mine", "my_sweep", "my sweep", "50 % {x}"):
        rows = make_rows(defenses=("baseline",), seeds=(0,), n=5, sweep=sweep)
        page = write_report(write_tables(tmp_path / str(len(labels)), rows))
        for path in (page.parent / "tables").glob("*.tex"):
            labels += re.findall(r"\\label\{(.*)\}", path.read_text(encoding="utf-8"))
    assert len(labels) >= 12
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"tab:[A-Za-z0-9._-]+", label) for label in labels)
    assert latex_label("mine", "table1") == "tab:mine-table1"


# --- what a sweep can show ----------------------------------------------------------------------


def test_the_report_begins_with_what_the_sweep_can_show(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"))
    set_auc(rows, "baseline", (0.6, 0.6, 0.6))
    set_auc(rows, "l2", (0.6, 0.6, 0.6))
    directory = write_tables(tmp_path, rows)
    (directory / "sweep.json").write_text(json.dumps({"expected": "It can show\n little.", "targets": ["a"] * 6}))
    results = load(directory)
    first, *_ = summarize(results, measure(results))
    assert first.sentences[0] == "The sweep’s file says: It can show little."
    found = re.search(r"an AUC of about (0\.\d+) to be distinguished from guessing", " ".join(first.sentences))
    assert found is not None
    # Two verdicts, four fifths of power; three seeds with independent examples
    error = 0.05 / stats.norm.ppf(0.975) / np.sqrt(3)
    assert float(found[1]) == pytest.approx(0.5 + (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error, abs=0.02)
