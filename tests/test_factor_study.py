"""The analysis of a factor study: cells equal those computed by hand, claims follow the data, the report is whole."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_fixture import Rows, make_rows, write_tables
from factor_fixture import make_factor_rows, write_factor_tables
from scipy import stats

from analysis.claims import Claim
from analysis.figures import style
from analysis.load import load
from analysis.measure.shared_examples import Correlations
from analysis.measure.targets import measure
from analysis.report.write import write_report
from analysis.statistics.estimates import Estimate, estimate, sign
from analysis.studies.lin2020.claims import judge_factors, track_words
from analysis.studies.lin2020.factors.frame import FactorStudy, factor_study
from analysis.studies.lin2020.factors.pairs import mean_over_seeds, paired
from analysis.studies.lin2020.figures import training_setting
from analysis.studies.lin2020.findings import summarize_factors
from analysis.studies.lin2020.influences import _Group, _leaks, analyze, leak, p_phrase, tpvd_correlations
from analysis.studies.lin2020.tables import factor_tables
from analysis.studies.lin2020.tables.training import LOSS_LEVEL, epochs_to_loss
from analysis.tables.as_csv import table_csv
from analysis.tables.as_latex import table_latex
from analysis.tables.model import Column, Entry, Label, Mean, Number, Table
from analysis.tables.text import shown

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"datasets": ("mnist", "svhn"), "models": ("lin_cnn",), "n": 3}


@pytest.fixture(scope="module", autouse=True)
def small_figures() -> Iterator[None]:
    """Figures of few pixels: drawing is most of the time that a report takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of both sequences, a ladder and quantile rules, with a label that tries to break out."""
    rows = make_factor_rows(datasets=("mnist", "<script>alert(1)</script>"), models=("lin_cnn",), n=3)
    rows["trials"][0].update(optimizer="<b>adam</b>")
    return write_report(write_factor_tables(tmp_path_factory.mktemp("factors"), rows))


def study_of(rows: Rows, directory: Path) -> FactorStudy:
    results = load(write_factor_tables(directory, rows))
    study = factor_study(results, measure(results))
    assert study is not None
    return study


def sheet(study: FactorStudy, name: str) -> Table:
    return next(one for one in factor_tables(study) if one.name == name)


def row_of(table: Table, *words: str) -> tuple[Entry, ...]:
    return next(row for row in table.rows if tuple(map(shown, row[: len(words)])) == words)


def entry(table: Table, column: str, *words: str) -> Entry:
    place = [one.key for one in table.columns].index(column)
    return row_of(table, *words)[place]


def mean(table: Table, column: str, *words: str) -> Mean:
    found = entry(table, column, *words)
    assert isinstance(found, Mean)
    return found


def trials(rows: Rows, start: str) -> list[dict[str, Any]]:
    return [row for row in rows["trials"] if row["target_id"].startswith(start)]


def verdicts(study: FactorStudy) -> dict[str, Claim]:
    return {claim.text: claim for claim in judge_factors(study)}


# --- which trials -----------------------------------------------------------------------------


def test_the_grid_is_balanced_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    study = study_of(make_factor_rows(n=3), tmp_path)
    counts = study.grid.groupby(["dataset", "model", "optimizer", "noise", "clip", "sequence"]).size()
    assert len(counts) == 3 * 2 * 2 * 2 * 2 * 2
    assert set(counts) == {3}
    assert set(study.grid["clip"]) == {0.8, 1.4}
    assert "Left out, because not every combination was trained with it: clip 20, clip 5 and clip 0.04" in study.note
    assert "288 finished trials" in study.note
    assert "under CA times the clip norm, on the sum over a batch; under AC in absolute units" in study.note


def test_a_dataset_with_a_slice_of_the_grid_is_compared_but_not_analyzed(tmp_path: Path) -> None:
    rows = make_factor_rows(n=3, ladder=False, quantiles=False)
    rows["trials"] = [
        row
        for row in rows["trials"]
        if row["dataset"] != "cifar10" or row["defense"] in ("none", "ac_0.1_0.8", "ca_0.1_0.8")
    ]
    study = study_of(rows, tmp_path)
    assert set(study.grid["dataset"]) == {"mnist", "svhn"}
    assert "dataset CIFAR-10" in study.note
    assert set(study.compared["dataset"]) == {"mnist", "svhn", "cifar10"}
    assert {row[0] for row in sheet(study, "lin_table4").rows} == {"—", "0.1"}


def test_one_combination_that_failed_does_not_take_a_level_away(tmp_path: Path) -> None:
    rows = make_factor_rows(n=3, ladder=False, quantiles=False)
    rows["trials"] = [r for r in rows["trials"] if not r["target_id"].startswith("svhn-lin_lstm-sgd-ac_0.5_1.4-")]
    study = study_of(rows, tmp_path)
    assert set(study.grid["dataset"]) == {"mnist", "cifar10", "svhn"}
    assert "1 of the 96 combinations did not finish or were not trained." in study.note


def test_optimizers_are_settings_so_that_none_is_averaged_or_superseded(tmp_path: Path) -> None:
    results = load(write_factor_tables(tmp_path, make_factor_rows(**SMALL)))
    measured = measure(results)
    assert measured.superseded == 0
    assert [setting.label for setting in measured.settings] == ["Adam", "SGD"]
    assert [setting.optimizer for setting in measured.settings] == ["adam", "sgd"]
    assert len(measured.of(measured.settings[0], "mnist", "ca_0.1_0.8")) == 3


def test_an_optimizer_of_its_own_is_part_of_a_defenses_recipe(tmp_path: Path) -> None:
    rows = make_rows(defenses=("none", "dp"), n=3)
    for row in rows["trials"]:
        row["optimizer"] = "sgd" if row["defense"] == "dp" else "adam"
    measured = measure(load(write_tables(tmp_path, rows)))
    (setting,) = measured.settings
    assert (setting.label, setting.optimizer) == ("", "")


def test_other_results_are_no_factor_study(tmp_path: Path) -> None:
    results = load(write_tables(tmp_path / "first", make_rows(n=3)))
    assert factor_study(results, measure(results)) is None
    assert results.history.empty
    assert results.tpvd.empty
    rows = make_factor_rows(**SMALL)
    rows["trials"] = [row for row in rows["trials"] if row["defense"] in ("none", "ca_0.1_0.8")]
    results = load(write_factor_tables(tmp_path / "one", rows))
    assert factor_study(results, measure(results)) is None


def test_a_ladder_in_the_only_cell_does_not_cost_a_factor_its_levels(tmp_path: Path) -> None:
    rows = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), n=3)
    grid = study_of(rows, tmp_path).grid
    assert (set(grid["noise"]), set(grid["clip"])) == ({0.1, 0.5}, {0.8, 1.4})


# --- tables -----------------------------------------------------------------------------------


def test_training_tables_are_means_over_seeds_with_the_papers_numbers(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL)
    for row, value in zip(trials(rows, "mnist-lin_cnn-adam-ac_0.5_0.8-"), (0.90, 0.92, 0.97), strict=True):
        row.update(test_accuracy=value, train_accuracy=value + 0.01, train_loss=2 * value)
    table = sheet(study_of(rows, tmp_path), "lin_table3")
    found = mean(table, "lin_cnn_adam", "0.5", "0.8", "AC", "Test accuracy")
    assert found.ours is not None
    assert found.ours.mean == pytest.approx(0.93)
    assert found.ours.half_width == pytest.approx(
        stats.t.ppf(0.975, 2) * np.std([0.90, 0.92, 0.97], ddof=1) / np.sqrt(3)
    )
    assert found.paper == pytest.approx(0.9136)  # Lin et al. 2020, Section 5.1
    loss = mean(table, "lin_cnn_adam", "0.5", "0.8", "AC", "Training loss").ours
    assert loss is not None
    assert loss.mean == pytest.approx(1.86)
    assert mean(table, "lin_cnn_sgd", "0.5", "0.8", "AC", "Test accuracy").paper is None
    assert mean(table, "lin_cnn_adam", "—", "—", "Normal", "Test accuracy").ours is not None
    assert table.caption.startswith("The paper concluded")


def test_distortion_and_ladder_have_the_tpvd_table(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL)
    for row in rows["tpvd"]:
        if row["target_id"].startswith("mnist-lin_cnn-adam-ca_0.5_5-"):
            row["tpvd"] = 7.0 + int(row["target_id"][-1])
    study = study_of(rows, tmp_path)
    found = mean(sheet(study, "lin_table12"), "tpvd_ca", "MNIST", "CNN", "Adam", "0.5", "5")
    assert found.ours is not None
    assert found.ours.mean == 8.0
    ladder = sheet(study, "lin_table12")
    assert [row[4] for row in ladder.rows] == ["0.04", "0.8", "1.4", "5", "20"]
    assert mean(ladder, "tpvd_ac", "MNIST", "CNN", "Adam", "0.5", "0.8").paper == 2.1489  # Lin et al. 2020, Section 5.1
    assert mean(sheet(study, "lin_table6"), "lin_cnn_adam", "MNIST", "0.5", "0.8", "CA", "TPVD").paper == 2.3202


def test_a_number_of_the_paper_without_a_noise_scale_stands_at_no_noise_scale(tmp_path: Path) -> None:
    study = study_of(make_factor_rows(**SMALL), tmp_path)
    ladder = sheet(study, "lin_table12")
    at_small = ("MNIST", "CNN", "Adam", "0.5", "0.04")
    assert [mean(ladder, f"{what}_ac", *at_small).paper for what in ("accuracy", "tpvd")] == [None, None]
    assert mean(ladder, "accuracy_ac", "MNIST", "CNN", "Adam", "0.5", "0.8").paper == pytest.approx(0.9136)
    assert mean(sheet(study, "lin_table7"), "tpvd", "MNIST", "CNN", "Adam", "AC", "0.04").paper == 1.5095


def test_quantile_rules_stand_beside_fixed_clip_norms(tmp_path: Path) -> None:
    table = sheet(study_of(make_factor_rows(**SMALL), tmp_path), "lin_table7")
    methods = [row[3:6] for row in table.rows if row[0] == Label(value="mnist")]
    assert methods == [
        ("Normal", "—", "—"),
        ("CA", "0.04", "0.5"),
        ("CA", "1.4", "0.1"),
        ("CA", "1.4", "0.5"),
        ("AC", "0.04", "0.5"),
        ("AC", "1.4", "0.1"),
        ("AC", "1.4", "0.5"),
        ("Quantile, flat", "—", "—"),
        ("Quantile, per layer", "—", "—"),
        ("Noised quantile", "—", "0.5"),
    ]
    at_small = mean(table, "accuracy", "MNIST", "CNN", "Adam", "AC", "0.04")
    assert at_small.paper == pytest.approx(0.8443)  # Lin et al. 2020, Section 5.3


def test_gains_are_paired_by_seed_and_averaged_within_it(tmp_path: Path) -> None:
    rows = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), noises=(0.1,), n=3)
    # Two clip norms, seeds 0 to 2: gains of 1, 3 and 5 points at one, 3, 5 and 7 at the other: 2, 4, 6 by seed.
    for clip, extra in ((0.8, 0.0), (1.4, 0.02)):
        for seed in range(3):
            for sequence, gain in (("ca", 0.0), ("ac", 0.01 + 0.02 * seed + extra)):
                row = trials(rows, f"mnist-lin_cnn-adam-{sequence}_0.1_{clip}-{seed}")[0]
                row.update(test_accuracy=0.5 + gain, train_loss=2.0 if sequence == "ca" else 1.5)
    rows["trials"] = [row for row in rows["trials"] if row["max_grad_norm"] in (None, 0.8, 1.4)]
    found = row_of(sheet(study_of(rows, tmp_path), "lin_gains"), "MNIST", "CNN")
    accuracy, training, loss = found[3], found[4], found[5]
    assert isinstance(accuracy, Mean)
    assert isinstance(training, Mean)
    assert isinstance(loss, Mean)
    assert training.paper == accuracy.paper
    assert training.ours != accuracy.ours
    assert accuracy.ours is not None
    assert loss.ours is not None
    assert (accuracy.ours.mean, accuracy.ours.n, accuracy.paper) == (pytest.approx(4.0), 3, 3.0)
    assert (loss.ours.mean, loss.paper) == (pytest.approx(25.0), 18.0)  # the abstract of Lin et al. 2020
    assert found[2] == 6


def test_a_seed_without_every_combination_does_not_enter_an_average(tmp_path: Path) -> None:
    rows = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), n=3)
    rows["trials"] = [row for row in rows["trials"] if row["target_id"] != "mnist-lin_cnn-adam-ac_0.1_0.8-1"]
    study = study_of(rows, tmp_path)
    found = mean_over_seeds(paired(study.compared, "accuracy"))
    assert found is not None
    assert found.n == 2


def test_factor_tests_are_scipys_on_the_settings_of_the_grid(tmp_path: Path) -> None:
    study = study_of(make_factor_rows(**SMALL), tmp_path)
    grid = study.grid
    found = analyze(study, "accuracy")
    factors = ["dataset", "model", "optimizer", "noise", "clip", "sequence"]
    settings = grid.groupby(factors)["accuracy"].mean().reset_index()  # seeds are not separate units
    sides = [settings.loc[settings["sequence"] == one, "accuracy"] for one in ("AC", "CA")]
    sequence = found.influence("sequence")
    assert sequence.u is not None
    expected = stats.mannwhitneyu(*sides, alternative="two-sided")
    assert (sequence.u.statistic, sequence.u.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert sequence.h.statistic == pytest.approx(stats.kruskal(*sides).statistic)
    groups = [rows["accuracy"] for _, rows in settings.groupby("dataset")]
    assert found.influence("dataset").h.p_value == pytest.approx(stats.kruskal(*groups).pvalue)
    # Matched differences, averaged within a seed, then Student's t over seeds
    wide = grid.pivot(index=[*factors[:-1], "seed"], columns="sequence", values="accuracy")
    by_seed = (wide["AC"] - wide["CA"]).groupby("seed").mean()
    (contrast,) = sequence.contrasts
    assert contrast.difference is not None
    assert (contrast.difference.mean, contrast.difference.n) == (pytest.approx(by_seed.mean()), 3)
    assert sequence.p_value == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    normal = next(one for one in found.normality if (one.factor, one.level) == ("noise", "0.5"))
    assert normal.test.statistic == pytest.approx(
        stats.shapiro(settings.loc[settings["noise"] == 0.5, "accuracy"]).statistic
    )
    assert found.influence("model").h.note == found.influence("model").note == "one level only"
    table = sheet(study, "lin_table10")
    assert shown(entry(table, "h", "model")) == "one level only"
    assert entry(table, "n", "sequence") == len(settings)
    assert entry(table, "answer", "sequence") == sequence.conclusion
    assert row_of(sheet(study, "lin_table8"), "noise", "0.5")[3] == len(settings) // 2


def test_constant_accuracy_is_said_and_never_printed_as_nan(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL)
    for row in rows["trials"]:
        row["test_accuracy"] = 0.1
    study = study_of(rows, tmp_path)
    text = "".join(table_csv(one) + table_latex(one, "mine") for one in factor_tables(study))
    assert "nan" not in text.lower()
    assert shown(entry(sheet(study, "lin_table8"), "statistic", "noise", "0.1")) == "all values are the same"
    assert (
        verdicts(study)["Of the factors, only dataset and sequence matter for accuracy, on test examples."].verdict
        == "undecided"
    )


def test_epochs_to_a_loss_count_who_never_reached_it(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL)
    losses = {0: (2.0, 1.1, 0.9, 0.9), 1: (2.0, 1.5, 1.3, LOSS_LEVEL), 2: (2.0, 1.9, 1.8, 1.7)}
    for row in rows["history"]:
        if row["target_id"].startswith("mnist-lin_cnn-adam-ca_0.1_0.8-"):
            row["train_loss"] = losses[int(row["target_id"][-1])][row["epoch"] - 1]
        if row["target_id"].startswith("mnist-lin_cnn-adam-ca_0.1_1.4-"):
            row["train_loss"] = 2.3
    study = study_of(rows, tmp_path)
    table = sheet(study, "lin_convergence")
    found = mean(table, "lin_cnn_adam", "MNIST", "0.1", "0.8", "CA")
    assert found.ours is not None
    assert (found.ours.mean, found.ours.n, found.note) == (3.0, 2, "2 of 3 seeds")  # epochs 2 and 4
    never = mean(table, "lin_cnn_adam", "MNIST", "0.1", "1.4", "CA")
    assert (never.ours, shown(never)) == (None, "not reached (0 of 3)")
    assert abs(LOSS_LEVEL - 1.1513) < 1e-4
    assert set(epochs_to_loss(study.history)["value"].dropna()) <= {1.0, 2.0, 3.0, 4.0}


# --- TPVD and leakage -------------------------------------------------------------------------


def test_tpvd_is_correlated_with_the_fixed_score_and_the_honest_auc(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL)
    for row in rows["attacks"]:
        if row["attack"] == "threshold" and row["score_name"] == "entropy":
            row["epsilon_lower_bound"] = 99.0  # a score that was not fixed beforehand
    study = study_of(rows, tmp_path)
    assert study.frame["epsilon_lower_bound"].max() < 99
    known = study.frame[study.frame["tpvd"].notna()]
    known = known.groupby(["dataset", "model", "optimizer", "defense"])[
        ["tpvd", "auc", "tpr", "epsilon_lower_bound"]
    ].mean()
    for measure_name in ("auc", "tpr", "epsilon_lower_bound"):
        expected = stats.spearmanr(known["tpvd"], known[measure_name])
        found = next(one for one in tpvd_correlations(study) if one.measure == measure_name)
        assert (found.test.statistic, found.test.p_value) == pytest.approx((expected.statistic, expected.pvalue))
        assert found.test.n == len(known)


def test_the_answer_on_tpvd_turns_with_the_data(tmp_path: Path) -> None:
    within = "Within a dataset, model and optimizer that leak, a larger TPVD goes with a lower honest AUC."
    across = "Across datasets, models and optimizers, a larger TPVD goes with a lower honest AUC."
    study = study_of(make_factor_rows(**SMALL, quantiles=False), tmp_path / "a")
    assert verdicts(study)[within].verdict == verdicts(study)[across].verdict == "held"
    assert "optimizer that leaks: yes" in track_words(study)[0]
    assert "Across them: yes" in track_words(study)[0]
    rows = make_factor_rows(**SMALL, quantiles=False)
    distances = {row["target_id"]: row["tpvd"] for row in rows["tpvd"]}
    best = [row for row in rows["attacks"] if row["attack"] == "best_of"]
    for row in best:
        if row["target_id"] in distances:
            row["auc"] = 0.5 + 0.05 * distances[row["target_id"]]
    study = study_of(rows, tmp_path / "b")
    assert verdicts(study)[within].verdict == verdicts(study)[across].verdict == "did not hold"
    assert "optimizer that leaks: no" in track_words(study)[0]
    # A dataset without a leak has no vote; it is named with the range of its TPVD
    for row in best:
        if row["target_id"].startswith("svhn"):
            row.update(auc=0.49 + 0.01 * int(row["target_id"][-1]), auc_low=0.47, auc_high=0.53)
    study = study_of(rows, tmp_path / "c")
    assert all("MNIST" in words for words in verdicts(study)[within].evidence)
    assert "No leak is shown, whatever the TPVD, in SVHN, CNN" in track_words(study)[1]
    for row in best:
        row.update(auc=0.49 + 0.01 * int(row["target_id"][-1]), auc_low=0.47, auc_high=0.53)
    study = study_of(rows, tmp_path / "d")
    assert verdicts(study)[within].evidence == ("Not measured here.",)
    assert verdicts(study)[across].verdict == "undecided"
    assert "no leak is shown that TPVD could track" in track_words(study)[0]
    rows["tpvd"] = []
    study = study_of(rows, tmp_path / "e")
    assert verdicts(study)[across].evidence == ("Not measured here.",)
    assert "this was not measured" in track_words(study)[0]


def test_a_leak_is_shown_over_seeds_and_not_over_targets_that_share_members(tmp_path: Path) -> None:
    """All targets of one seed separate its members slightly by chance: many intervals above 0.5, and no leak."""
    rows = make_factor_rows(**SMALL)
    best = [row for row in rows["attacks"] if row["attack"] == "best_of"]
    for row in best:
        auc = {"0": 0.53, "1": 0.49, "2": 0.49}[row["target_id"][-1]]
        row.update(auc=auc, auc_low=auc - 0.02, auc_high=auc + 0.02)
    study = study_of(rows, tmp_path)
    frame = study.frame
    found = leak(study, frame)
    assert (found.above, found.known, found.shown) == (len(frame) // 3, len(frame), False)
    frame["auc"] = 0.55 + 0.002 * frame["seed"]
    assert leak(study, frame).shown is True
    assert leak(study, frame[frame["seed"] == 0]).shown is None
    assert leak(study, frame[:0]).shown is None


def test_seeds_that_happen_to_agree_show_no_leak_that_their_examples_do_not(tmp_path: Path) -> None:
    """AUCs of .53 and a little in every seed, each with an interval of ±.06 over examples: over seeds alone, a leak."""
    rows = make_factor_rows(**SMALL)
    for row in rows["attacks"]:
        if row["attack"] == "best_of":
            auc = 0.53 + 0.0005 * int(row["target_id"][-1])
            row.update(auc=auc, auc_low=auc - 0.06, auc_high=auc + 0.06)
    rows["scores"] = []  # so that seeds are taken to share their examples
    study = study_of(rows, tmp_path)
    over_seeds_alone = estimate(study.frame.groupby("seed")["auc"].mean())
    assert over_seeds_alone is not None
    assert (over_seeds_alone.low or 0) > 0.528
    found = leak(study, study.frame[study.frame["dataset"] == "mnist"])
    assert found.shown is False
    assert found.p_value == pytest.approx(stats.norm.sf(0.0305 / (0.06 / stats.norm.ppf(0.975))), rel=0.02)


def test_a_study_without_leaks_rarely_shows_one_in_any_of_its_cells() -> None:
    """Twelve cells of three seeds that share half of the chance of examples: judged singly, many studies show a leak."""
    rng = np.random.default_rng(22)
    places = [(f"data{cell}", seed, arm) for cell in range(12) for seed in range(3) for arm in range(4)]
    base = pd.DataFrame(places, columns=["dataset", "seed", "arm"]).assign(model="m", optimizer="o", panel="p")
    base["target_id"] = [f"{a}-{b}-{c}" for a, b, c in places]
    base = base.assign(attacked_members=800, attacked_non_members=800, kind="CA", setting=base["arm"].astype(str))
    same_seed = np.equal.outer(base["seed"][:12].to_numpy(), base["seed"][:12].to_numpy())
    correlation = 0.2 + 0.6 * same_seed + 0.2 * np.eye(12)
    frames = {
        ("p", f"data{cell}"): pd.DataFrame(correlation, *[base["target_id"][12 * cell : 12 * cell + 12]] * 2)
        for cell in range(12)
    }
    cells = tuple((f"data{cell}", "m", "o") for cell in range(12))
    factor = np.linalg.cholesky(correlation)
    alone, together = [], []
    for _ in range(60):
        luck = (rng.standard_normal((12, 12)) @ factor.T).ravel()
        rows = base.assign(auc=0.5 + 0.0153 * luck)
        rows = rows.assign(auc_low=rows["auc"] - 0.03, auc_high=rows["auc"] + 0.03)
        study = FactorStudy(
            frame=rows, grid=rows, compared=rows, history=rows[:0], cells=cells, note="",
            correlations=Correlations(frames=frames),
        )  # fmt: skip
        groups = [_Group(words="", rows=study.at(cell), ranked=False, cell=cell) for cell in cells]
        alone.append(any(sign(estimate(one.rows.groupby("seed")["auc"].mean()), 0.5) == 1 for one in groups))
        together.append(any(one.shown for one in _leaks(study, groups)))
    assert np.mean(alone) > 0.3
    assert np.mean(together) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


# --- claims -----------------------------------------------------------------------------------


def test_claims_turn_with_the_data(tmp_path: Path) -> None:
    study = study_of(make_factor_rows(**SMALL), tmp_path / "a")
    found = verdicts(study)
    held = [
        "Noise first (AC) is more accurate than clipping first (CA), on test examples.",
        "Noise first (AC) is more accurate than clipping first (CA), on training examples.",
        "AC reaches a lower training loss than CA.",
        "AC changes the weights less than CA (lower TPVD).",
        "TPVD grows with the clip norm under both sequences.",
        "Beyond a clip norm of 10, accuracy falls under both sequences, on test examples.",
        "At clip norm 0.04, AC is more accurate than quantile clipping, on test examples.",
    ]
    assert {text: found[text].verdict for text in held} == dict.fromkeys(held, "held")
    rows = make_factor_rows(**SMALL)
    swapped = {"clip_then_noise": "noise_then_clip", "noise_then_clip": "clip_then_noise"}
    for row in rows["trials"]:
        row["mechanism"] = swapped.get(row["mechanism"], row["mechanism"])
        if row["clipping"] in ("quantile", "quantile_per_layer"):
            row["test_accuracy"] = 0.99 + 0.001 * row["seed"]
        if row["max_grad_norm"] == 20.0:
            row["test_accuracy"] = 0.95 + 0.001 * row["seed"]
    for row in rows["tpvd"]:
        if "_20-" in row["target_id"] or "_5-" in row["target_id"]:
            row["tpvd"] /= 100
    turned = verdicts(study_of(rows, tmp_path / "b"))
    changed = [text for text in held if turned[text].verdict == "did not hold"]
    assert changed == [text for text in held if not text.startswith("TPVD grows")]
    assert turned["TPVD grows with the clip norm under both sequences."].verdict != "held"


def test_with_one_seed_no_comparison_can_be_told(tmp_path: Path) -> None:
    found = verdicts(study_of(make_factor_rows(**SMALL, seeds=(0,)), tmp_path))
    for text, claim in found.items():
        if "accura" in text and "normally" not in text:
            assert claim.verdict == "undecided", text


def test_training_and_test_accuracy_are_judged_apart(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL, ladder=False, quantiles=False)
    for row in rows["trials"]:
        if row["mechanism"] == "noise_then_clip":
            row["train_accuracy"] -= 0.3
    found = verdicts(study_of(rows, tmp_path))
    text = "Noise first (AC) is more accurate than clipping first (CA), on {} examples."
    assert found[text.format("test")].verdict == "held"
    assert found[text.format("training")].verdict == "did not hold"


def test_tpvd_stands_beside_that_of_another_initialization(tmp_path: Path) -> None:
    study = study_of(make_factor_rows(**SMALL), tmp_path)
    ladder = sheet(study, "lin_table12")
    place = ("MNIST", "CNN", "Adam", "0.5", "0.8")
    ours, other = mean(ladder, "tpvd_ca", *place), mean(ladder, "tpvd_other_init_ca", *place)
    assert ours.ours is not None
    assert other.ours is not None
    assert other.ours.mean == pytest.approx(1.4 + 0.1 * ours.ours.mean)
    assert ours.paper == other.paper == 2.3202
    (words,) = [
        sentence
        for finding in summarize_factors(study)
        for sentence in finding.sentences
        if "two independent initializations are about 1.41 apart" in sentence
    ]
    assert "TPVD is 1." in words


# --- figures and the report -------------------------------------------------------------------


def test_the_training_figure_takes_the_papers_setting_or_the_nearest(tmp_path: Path) -> None:
    study = study_of(make_factor_rows(**SMALL), tmp_path / "a")
    assert training_setting(study, "mnist") == (("mnist", "lin_cnn", "adam"), 0.5, 1.4)
    assert training_setting(study, "svhn") == (("svhn", "lin_cnn", "adam"), 0.1, 1.4)
    assert training_setting(study, "cifar10") is None
    study = study_of(make_factor_rows(**SMALL, clips=(0.1, 1.0), ladder=False), tmp_path / "b")
    assert training_setting(study, "mnist") == (("mnist", "lin_cnn", "adam"), 0.5, 1.0)


def test_the_report_has_every_table_and_figure_of_the_second_paper(report: Path) -> None:
    tables = {path.name for path in (report.parent / "tables").iterdir()}
    wanted = [f"lin_table{number}" for number in range(3, 13)]
    wanted += ["lin_table8_train", "lin_table10_train"]
    wanted += ["lin_convergence", "lin_gains", "lin_tpvd_leakage"]
    assert {f"{name}.{ending}" for name in wanted for ending in ("csv", "tex")} <= tables
    figures = {path.stem for path in (report.parent / "figures").glob("*.png")}
    assert {"lin_figure1", "lin_figure4", "lin_figure5", "lin_tradeoff", "lin_tpvd_leakage"} <= figures
    assert figures == {path.stem for path in (report.parent / "figures").glob("*.svg")}


def test_a_pure_factor_study_leaves_the_first_papers_tables_out(report: Path) -> None:
    names = {path.stem for path in report.parent.rglob("*.*")}
    assert not names & {"table1", "table2", "table3", "table4", "figure4", "figure5", "figure6", "roc"}
    assert "summary" in names
    page = report.read_text(encoding="utf-8")
    assert "Lomurno" not in page
    assert "Lin, Bao, Li, Si &amp; Chu (2020)" in page
    assert "Each defense: its guarantee" in page
    with (report.parent / "tables" / "summary.csv").open(encoding="utf-8") as file:
        assert {row["optimizer"] for row in csv.DictReader(file)} == {"sgd", "adam", "<b>adam</b>"}


def test_the_page_escapes_labels_and_prints_no_nan(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r">\s*(nan|None|NaT|inf)\b", page)
    targets = re.findall(r"""<[^>]*\s(?:src|href)\s*=\s*["']?([^"'\s>]{1,40})""", page)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)


def test_both_papers_stand_in_one_report_where_both_were_run(tmp_path: Path) -> None:
    rows = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), n=3, quantiles=False)
    first = make_rows(datasets=("mnist",), defenses=("baseline", "dp_eps2"), seeds=(0, 1), n=3)
    for name, own in first.items():
        rows[name] = [*rows[name], *own]
    page = write_report(write_factor_tables(tmp_path, rows)).read_text(encoding="utf-8")
    assert "Lomurno" in page
    assert "What Lomurno &amp; Matteucci (2022) claimed, and what held here" in page
    assert "What Lin et al. (2020) claimed, and what held here" in page
    assert (tmp_path / "report" / "tables" / "table1.csv").is_file()
    assert (tmp_path / "report" / "tables" / "lin_table3.csv").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no history", "No accuracy and loss by epoch were recorded for both sequences"),
        ("no tpvd", "No target has both a TPVD and a finished membership attack"),
        ("no attacks", "No membership attack has a finished best_of row"),
        ("no tables", "No loss by epoch was recorded"),
        ("one sequence", "No trial with noise first has a matching trial"),
        ("quantiles only", "so there is nothing to show"),
        ("one trial of each", "one level only"),
        ("diverged", "0.100"),
        ("all failed", "No trial has a noise scale"),
        ("other dataset", "Training results on letters"),
    ],
)
def test_what_is_missing_is_said_and_breaks_nothing(tmp_path: Path, change: str, words: str) -> None:
    dataset = "letters" if change == "other dataset" else "mnist"
    rows = make_factor_rows(
        datasets=(dataset,),
        models=("lin_cnn",),
        optimizers=("adam",),
        seeds=(0,) if change == "one trial of each" else (0, 1),
        clips=(0.8,) if change == "one trial of each" else (0.8, 1.4),
        n=3,
    )
    directory = tmp_path
    if change == "no history":
        rows["history"] = []
    elif change == "no tpvd":
        rows["tpvd"] = []
    elif change == "no attacks":
        rows["attacks"], rows["scores"] = [], []
    elif change == "one sequence":
        rows["trials"] = [row for row in rows["trials"] if row["mechanism"] != "noise_then_clip"]
    elif change == "quantiles only":
        rows["trials"] = [row for row in rows["trials"] if row["max_grad_norm"] is None]
    elif change == "diverged":
        for row in rows["trials"]:
            if row["mechanism"] == "clip_then_noise":
                row.update(train_loss=float("nan"), test_loss=float("inf"), test_accuracy=0.1)
    elif change == "all failed":
        for row in rows["trials"]:
            row.update(status="failed", error="RuntimeError: out of memory", test_accuracy=None, train_loss=None)
    write_factor_tables(directory, rows)
    if change == "no tables":
        (directory / "history.parquet").unlink()
        (directory / "tpvd.parquet").unlink()
    page = write_report(directory).read_text(encoding="utf-8")
    assert words in page
    assert not re.search(r">\s*(nan|None|NaT|inf)\b", page)
    for path in (directory / "report" / "tables").glob("*.csv"):
        assert not re.search(r"(^|,)(nan|None|inf)(,|$)", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_findings_say_what_is_guaranteed_by_mechanism(tmp_path: Path) -> None:
    rows = make_factor_rows(**SMALL)
    found = {one.heading: one.sentences for one in summarize_factors(study_of(rows, tmp_path / "a"))}
    assert "CA: ε from 6 to 30 at δ = 1e-5, for one run." in found["What is guaranteed"]
    assert "AC: no formal guarantee: noise is added before clipping." in found["What is guaranteed"]
    assert not any("audited lower bound above" in words for words in found["What is guaranteed"])
    for row in rows["attacks"]:
        if row["target_id"] == "mnist-lin_cnn-adam-ca_0.5_0.8-0" and row["score_name"] == "loss":
            row["epsilon_lower_bound"] = 7.5
    found = {one.heading: one.sentences for one in summarize_factors(study_of(rows, tmp_path / "b"))}
    assert any(words.startswith("1 target has an audited lower bound above") for words in found["What is guaranteed"])


def test_csv_is_tidy_and_in_full_precision(tmp_path: Path) -> None:
    ours = Estimate(mean=1 / 3, low=0.25, high=0.5, n=3)
    table = Table(
        name="t",
        title="Table 1. A & B",
        caption="They said.",
        columns=(
            Column(key="who", name="Who", kind="label"),
            Column(key="x", name="X", kind="mean"),
            Column(key="p", name="p"),
            Column(key="hidden", csv_only=True),
        ),
        rows=(
            ("a_b", Mean(ours=ours, paper=0.5, note="2 of 3"), Number(value=1e-9, text="< 0.001"), 7),
            (Label(value="mnist"), Mean(ours=None), Number(value=None, text="too few"), 8),
        ),
    )
    rows = list(csv.reader(table_csv(table).splitlines()))
    parts = ("mean", "low", "high", "n_seeds", "paper", "difference", "note")
    assert rows[0] == ["who", *(f"x_{part}" for part in parts), "p", "hidden"]
    assert rows[1] == ["a_b", str(1 / 3), "0.25", "0.5", "3", "0.5", str(1 / 3 - 0.5), "2 of 3", "1e-09", "7"]
    assert rows[2] == ["mnist", "", "", "", "0", "", "", "", "", "8"]
    text = table_latex(table, "mine")
    assert r"a\_b & 0.333~$\pm$~0.125 & \textless{} 0.001 \\" in text
    assert r" & paper 0.500 &  \\" + "\n" + r" & $\Delta$ $-$0.167 &  \\" + "\n" + r" & 2 of 3 &  \\" in text
    assert r"A \& B. They said." in text
    assert "\\begin{tabular}{lrr}" in text
    assert (p_phrase(0.0001), p_phrase(0.0312)) == ("p < 0.001", "p = 0.031")
