"""The report leads with the strongest valid attack: one for all compared defenses, fixed by the number of seeds."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_fixture import Rows, area, make_rows, write_tables
from cohort_fixture import LEAK, SCORES, add_cohort, with_cohorts
from factor_fixture import make_factor_rows, write_factor_tables
from PIL import Image
from scipy.special import stdtrit

import analysis.report.exposed as exposed_module
from analysis import studies
from analysis.load import Results, load, read_scores
from analysis.measure.answer import Preference, PreferenceError, answer
from analysis.measure.attacks import PAPERS_MAXIMUM, attacks_on_cells
from analysis.measure.leak import low_rate, tpr
from analysis.measure.primary import RULES, is_sound
from analysis.measure.summary import summaries
from analysis.measure.targets import Measurements, measure
from analysis.measure.tradeoff import front
from analysis.measure.verdicts import against_the_baseline, beats_guessing
from analysis.report import write as report_module
from analysis.report.answer import QUESTION, answer_sentences, answered_rows
from analysis.report.exposed import MOST_EXAMPLES, exposed
from analysis.report.figures import Figures
from analysis.report.findings import about_the_attacks, summarize
from analysis.report.strength import strength
from analysis.report.write import write_report
from analysis.statistics.estimates import auc_influence, sign
from analysis.studies.base import chapters
from analysis.studies.lomurno2022.claims import judge
from analysis.tables.as_csv import table_csv
from analysis.tables.as_latex import table_latex
from analysis.tables.attacks import attack_table
from analysis.tables.summary import BROKEN, summary_table

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of the time that a report takes."""
    monkeypatch.setattr(report_module, "write_figures", lambda *_: Figures(tradeoffs={}, general=(), of_studies=()))


def made(rows: Rows, directory: Path) -> tuple[Results, Measurements]:
    results = load(write_tables(directory, rows))
    return results, measure(results)


def recorded(rows: Rows, attack: str, score: str) -> dict[str, float]:
    """The AUC of each target under one score."""
    return {
        row["target_id"]: row["auc"]
        for row in rows["attacks"]
        if row["attack"] == attack and row["score_name"] == score and row["status"] == "finished"
    }


def judges(measured: Measurements) -> set[str | None]:
    return {None if (found := measured.primary(*row)) is None else found.attack for row in measured.rows()}


def words(results: Results, measured: Measurements) -> str:
    return " ".join(strength(results, measured))


def answered(measured: Measurements, **preference: float) -> str:
    """The answers for all settings and datasets as one text."""
    found = [answer_sentences(measured, *row, Preference(**preference)) for row in answered_rows(measured)]
    return " ".join(part for one in found for part in (one.verdict, *one.details))


# --- which attack judges ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "attack"), [(3, None), (4, "ratio"), (7, "ratio"), (8, "lira"), (9, "lira")], ids=lambda value: str(value)
)
def test_the_number_of_seeds_alone_decides_which_attack_judges(tmp_path: Path, seeds: int, attack: str | None) -> None:
    rows = with_cohorts(seeds=seeds, n=20)
    _, measured = made(rows, tmp_path)
    assert judges(measured) == {attack}
    expected = (
        {row["target_id"]: row["auc"] for row in rows["attacks"] if row["attack"] == "best_of"}
        if attack is None
        else recorded(rows, attack, SCORES[attack][0])
    )
    assert dict(zip(measured.frame["target_id"], measured.frame["auc"], strict=True)) == pytest.approx(expected)


def test_no_result_of_an_attack_changes_which_one_judges(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["attacks"]:
        if row["attack"] == "lira":
            row.update(auc=0.5, auc_low=0.45, auc_high=0.55)
        elif row["attack"] in ("best_of", "ratio"):
            row.update(auc=0.99, auc_low=0.98, auc_high=1.0)
    _, measured = made(rows, tmp_path)
    assert judges(measured) == {"lira"}
    assert set(measured.frame["auc"]) == {0.5}


def test_the_defense_with_the_fewest_seeds_decides_for_all_that_are_compared(tmp_path: Path) -> None:
    rows = with_cohorts(n=20, seeds=8)
    rows["comparisons"], rows["cohorts"], rows["exposure"] = [], [], []
    rows["attacks"] = [row for row in rows["attacks"] if row["attack"] not in SCORES]
    for attack in SCORES:
        add_cohort(rows, attack, seeds={"l2": 6})
    results, measured = made(rows, tmp_path)
    assert judges(measured) == {"ratio"}
    # Two targets of L2 are in no cohort, and have no number of another attack.
    assert measured.frame["auc"].isna().sum() == 2
    assert "2 finished targets are in no finished comparison and have no AUC" in words(results, measured)


def test_a_weaker_defense_is_named_with_the_way_out(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    dropped = [f"main-digits-l2-{seed}" for seed in (6, 7)]
    for table in ("trials", "attacks", "scores"):
        rows[table] = [row for row in rows[table] if row["target_id"] not in dropped]
    rows["comparisons"], rows["cohorts"], rows["exposure"] = [], [], []
    rows["attacks"] = [row for row in rows["attacks"] if row["attack"] not in SCORES]
    for attack in SCORES:
        add_cohort(rows, attack)
    results, measured = made(rows, tmp_path)
    assert judges(measured) == {"ratio"}
    text = words(results, measured)
    assert "Only L2 (6) has fewer than the 8 finished seeds that LiRA needs." in text
    assert "the weaker rule holds for all of them" in text
    assert "--set seeds=[0,1,2,3,4,5,6,7]" in text


def test_the_advice_keeps_the_seeds_that_are_there(tmp_path: Path) -> None:
    results, measured = made(make_rows(defenses=("baseline", "l2"), seeds=(10, 13), parts={"main": "coins"}), tmp_path)
    assert "--set seeds=[10,13,14,15,16,17,18,19]" in words(results, measured)


def test_lira_judges_only_with_the_spread_that_was_fixed(tmp_path: Path) -> None:
    rows = with_cohorts(n=20, attacks=("ratio",))
    add_cohort(rows, "lira", config={"spread": "per_example"})
    results, measured = made(rows, tmp_path / "other")
    assert judges(measured) == {"ratio"}
    assert "not in one configuration for all defenses with spread “shrunk”" in words(results, measured)
    add_cohort(rows, "lira", mark="2")
    assert judges(made(rows, tmp_path / "both")[1]) == {"lira"}
    for row in rows["comparisons"]:
        row["config"] = "not JSON" if row["comparison"] == "lira" else row["config"]
    assert judges(made(rows, tmp_path / "unreadable")[1]) == {"ratio"}


def test_seeds_that_were_added_make_a_larger_cohort_that_replaces_the_smaller_one(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"), seeds=range(9), parts={"main": "coins"}, n=20)
    add_cohort(rows, "lira", seeds={"baseline": 8, "l2": 8}, mark="z", leak={})
    add_cohort(rows, "lira", mark="a", leak={})
    results, measured = made(rows, tmp_path)
    ids = {key[1] for key in measured.frame["score_key"]}
    assert ids == {"liraa-digits-baseline-9", "liraa-digits-l2-9"}
    assert measured.frame["auc"].notna().all()
    table = attacks_on_cells(results, measured)
    assert sum(one.attack == "lira" for one in table) == 2 * len(SCORES["lira"])


def test_comparisons_that_failed_or_were_not_asked_for_are_named(tmp_path: Path) -> None:
    rows = with_cohorts(n=20, failed=("l2",))
    results, measured = made(rows, tmp_path / "failed")
    assert judges(measured) == {None}
    assert "LiRA on L2 and RMIA’s ratio on L2 failed here" in words(results, measured)
    results, measured = made(make_rows(seeds=range(8), parts={"main": "coins"}, n=20), tmp_path / "none")
    assert "with “lira” and “ratio” among its comparisons" in words(results, measured)
    unfinished = replace(results, planned=len(results.trials) + 3)
    assert "3 planned trials have not run yet" in words(unfinished, measured)


@pytest.mark.parametrize("split", ["official", "half", "quarters"])
def test_a_split_without_coins_is_told_how_to_allow_a_stronger_attack(tmp_path: Path, split: str) -> None:
    results, measured = made(make_rows(parts={"main": split}, n=20), tmp_path)
    assert "--set splits=[coins]" in words(results, measured)
    assert "its low AUC is no privacy" in words(results, measured)


@pytest.mark.parametrize("seeds", [2, 6])
def test_too_few_seeds_are_counted(tmp_path: Path, seeds: int) -> None:
    rows = (
        with_cohorts(n=20, seeds=seeds) if seeds >= 4 else make_rows(seeds=range(seeds), parts={"main": "coins"}, n=20)
    )
    results, measured = made(rows, tmp_path)
    assert f"there are {seeds}: give the sweep at least 8 seeds, --set seeds=[0,1,2,3,4,5,6,7]" in words(
        results, measured
    )


def test_every_report_says_which_attack_judges(tmp_path: Path) -> None:
    for number, rows in enumerate((with_cohorts(n=20), make_rows(n=20), {name: [] for name in make_rows(n=5)})):
        (finding,) = about_the_attacks(*made(rows, tmp_path / str(number)))
        assert finding.sentences


# --- verdicts -----------------------------------------------------------------------------------


def test_verdicts_follow_the_primary_attack_and_not_best_of(tmp_path: Path) -> None:
    rows = with_cohorts(n=200)
    for row in rows["attacks"]:  # best_of sees the opposite
        if row["attack"] == "best_of":
            leaks = "-l2-" in row["target_id"]
            row.update(auc=0.9 if leaks else 0.5, auc_low=0.85 if leaks else 0.45, auc_high=0.95 if leaks else 0.55)
    _, measured = made(rows, tmp_path)
    (setting,) = measured.settings
    p_values = {place[2]: p for place, p in beats_guessing(measured).items()}
    assert p_values["baseline"] is not None and p_values["baseline"] < 0.001
    assert p_values["dp_eps2"] is not None and p_values["dp_eps2"] > 0.05
    changes = against_the_baseline(measured, setting, "digits", "auc")
    assert (sign(changes["dp_eps2"]), sign(changes["l2"])) == (-1, 0)
    assert front(measured, setting, "digits", "auc")[0] == "dp_eps2"
    assert "AUC of LiRA" in answered(measured)


def test_intervals_use_the_scores_of_the_primary_attack(tmp_path: Path) -> None:
    results, measured = made(with_cohorts(n=40), tmp_path)
    wanted = dict.fromkeys(measured.frame["score_key"], 80.0)
    scores = {key[0]: one for key, one in read_scores(results, wanted)}
    assert set(scores) == set(measured.frame["target_id"])
    for row in measured.frame.itertuples():
        one = scores[row.target_id]
        assert row.auc == pytest.approx(area(one.score[one.is_member], one.score[~one.is_member]))
    first, second = measured.frame["target_id"].iloc[:2]
    influence = [auc_influence(scores[each].is_member, scores[each].score) for each in (first, second)]
    expected = influence[0] @ influence[1] / np.sqrt((influence[0] ** 2).sum() * (influence[1] ** 2).sum())
    (setting,) = measured.settings
    found = measured.correlations.between((setting.key, "digits"), [first, second], ["a", "b"])
    assert found[0, 1] == pytest.approx(expected, abs=1e-5)


def test_papers_claims_keep_their_attack(tmp_path: Path) -> None:
    rows = with_cohorts(defenses=("baseline", "dp_eps2", "dp_eps8", "l2"), n=40)
    results, measured = made(rows, tmp_path / "with")
    for table in ("comparisons", "cohorts", "exposure"):
        rows[table] = []
    rows["attacks"] = [row for row in rows["attacks"] if row["attack"] not in SCORES]
    _, without = made(rows, tmp_path / "without")
    assert judge(measured.on_single_targets) == judge(without)
    chapter = next(chapter for study, chapter in chapters(results, measured) if "Lomurno" in study.title)
    assert chapter.claims == tuple(judge(without))


def test_the_general_finding_of_a_factor_study_follows_the_primary_attack(tmp_path: Path) -> None:
    rows = make_factor_rows(
        datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), noises=(0.5,), seeds=(0,), ladder=False, n=20
    )
    names = {trial["defense"] for trial in rows["trials"]}
    for trial in rows["trials"]:
        trial["split"] = "coins"
    seeds = len({trial["seed"] for trial in rows["trials"]})
    for row in list(rows["trials"]):  # a cohort needs four seeds
        rows["trials"] += [
            row | {"seed": row["seed"] + seeds * k, "target_id": f"{row['target_id']}-{k}"} for k in (1, 2, 3)
        ]
    _add_each_cell(rows, names)
    results = load(write_factor_tables(tmp_path, rows))
    measured = measure(results)
    assert judges(measured) == {"ratio"}
    study = next(study for study in studies.found() if "Lin" in study.title)
    chapter = study.chapter(results, measured)
    plain = study.chapter(results, measured.on_single_targets)
    assert chapter is not None and plain is not None

    def guessing(which: Any) -> str:
        return next(" ".join(one.sentences) for one in which.findings if "guessing" in one.heading)

    assert guessing(chapter) != guessing(plain)
    assert chapter.claims == plain.claims


def _add_each_cell(rows: Rows, defenses: set[str]) -> None:
    """The ratio attack on each dataset, architecture, optimizer and defense."""
    keys = {(row["dataset"], row["architecture"], row["optimizer"]) for row in rows["trials"]}
    for number, key in enumerate(sorted(keys, key=str)):
        here = [row for row in rows["trials"] if (row["dataset"], row["architecture"], row["optimizer"]) == key]
        part: Rows = {name: [] for name in rows} | {"trials": here}
        add_cohort(part, "ratio", mark=str(number), leak=dict.fromkeys(defenses, 1.0))
        for name in ("comparisons", "cohorts", "attacks", "scores"):
            rows[name] += part[name]


# --- the null -----------------------------------------------------------------------------------


def test_no_verdict_is_drawn_where_the_null_is_broken(tmp_path: Path) -> None:
    rows = with_cohorts(n=100, broken=("dp_eps2",))
    results, measured = made(rows, tmp_path)
    (setting,) = measured.settings
    place = (setting, "digits", "dp_eps2")
    assert measured.estimate(*place, "auc") is None
    assert measured.p_guessing(*place) is None
    assert measured.risk_difference(*place, "baseline") is None
    rate = low_rate(measured, setting, "digits")
    assert rate is not None
    assert tpr(measured, *place, rate) is None
    assert "dp_eps2" not in front(measured, setting, "digits", "auc")
    assert measured.estimate(setting, "digits", "l2", "auc") is not None
    text = " ".join(" ".join(one.sentences) for one in summarize(results, measured))
    assert "The attack is broken against DP ε=2 (0.560 [0.540, 0.580])" in text
    summary = {row.defense: row for row in summaries(measured)}
    assert [label for label, row in summary.items() if row.is_broken] == ["dp_eps2"]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert BROKEN in page
    assert "No verdict is drawn there" in page


@pytest.mark.parametrize("broken", [("baseline",), ("baseline", "dp_eps2", "l2")], ids=["baseline", "all"])
def test_a_broken_baseline_leaves_no_answer(tmp_path: Path, broken: tuple[str, ...]) -> None:
    rows = with_cohorts(n=20, broken=broken)
    _, measured = made(rows, tmp_path)
    assert "There is no answer yet" in answered(measured)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The attack is broken against" in page
    assert not re.search(r">\s*(nan|None|NaT|inf)\b", page)


# --- what is reported of a leak -----------------------------------------------------------------


def test_the_rate_is_the_lowest_that_all_defenses_have(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    _, measured = made(rows, tmp_path / "pooled")
    (setting,) = measured.settings
    rate = low_rate(measured, setting, "digits")
    assert rate is not None
    assert (rate.fpr, rate.pooled) == (0.01, True)
    found = tpr(measured, setting, "digits", "baseline", rate)
    row = next(row for row in rows["cohorts"] if row["comparison_id"] == "lira-digits-baseline-8" and row["is_first"])
    assert found is not None
    assert (found.mean, found.low, found.high) == tuple(
        row[f"pooled_tpr_at_fpr_0.01{end}"] for end in ("", "_low", "_high")
    )
    heading = next(column.name for column in summary_table(measured).columns if column.key == "tpr")
    assert heading == "TPR at 1 % FPR (pooled)"
    for each in rows["attacks"]:
        each["tpr_at_fpr_0.001"] = 0.004
    _, measured = made(rows, tmp_path / "own")
    assert next(column.name for column in summary_table(measured).columns if column.key == "tpr") == "TPR at 0.1 % FPR"
    for each in rows["attacks"]:
        each["tpr_at_fpr_0.001"] = None
    for each in rows["cohorts"]:
        each.update({name: None for name in each if "calibrated" in name or "pooled" in name})
    _, measured = made(rows, tmp_path / "neither")
    last = low_rate(measured, measured.settings[0], "digits")
    assert last is not None
    assert (last.fpr, last.pooled) == (0.1, False)


def test_a_proved_epsilon_stands_beside_what_the_attack_shows(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["cohorts"]:
        row["epsilon_lower_bound"] = 0.5
    results, measured = made(rows, tmp_path / "below")
    summary = {row.defense: row for row in summaries(measured)}
    assert summary["dp_eps2"].bound_ratio == pytest.approx(1.987 / 0.5)
    assert (summary["l2"].epsilon_lower_bound, summary["l2"].bound_ratio) == (0.5, None)

    def guarantees(results: Results, measured: Measurements) -> str:
        return next(" ".join(one.sentences) for one in summarize(results, measured) if "guaranteed" in one.heading)

    assert (
        "ε = 1.99 is proved, and LiRA over all seeds shows at least 0.50; the proof is 3.97 times that"
        in guarantees(results, measured)
    )
    for value, text in ((0.0, "shows no ε above 0"), (3.0, "the proof or the attack is wrong")):
        for row in rows["cohorts"]:
            row["epsilon_lower_bound"] = value
        assert text in guarantees(*made(rows, tmp_path / str(value)))


def test_results_without_cohorts_have_the_columns_they_had(tmp_path: Path) -> None:
    _, measured = made(make_rows(n=20), tmp_path)
    keys = [column.key for column in summary_table(measured).columns]
    assert "epsilon_lower_bound" not in keys
    assert "null_auc" not in keys
    assert measured.on_single_targets is measured
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert QUESTION in page
    assert "<dt>Primary attack</dt>" not in page
    assert 'id="exposed"' not in page


# --- all attacks --------------------------------------------------------------------------------


def test_every_attack_has_one_row_per_defense_and_score(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    rows["attacks"].append(
        next(row for row in rows["attacks"] if row["attack"] == "threshold")
        | {"attack": "blind_mi", "attack_id": "blind", "score_name": "decision", "auc": None, "balanced_accuracy": 0.61}
        | {"decided_tpr": 0.7, "decided_fpr": 0.48}
    )
    results, measured = made(rows, tmp_path)
    found = attacks_on_cells(results, measured)
    keys = [(one.defense, one.attack, one.score_name) for one in found]
    assert len(set(keys)) == len(keys) == 3 * (4 + 2 + 2 + 2) + 1
    by_key = dict(zip(keys, found, strict=True))
    for attack, scores in SCORES.items():
        for score in scores:
            own = recorded(rows, attack, score)
            mean = np.mean([auc for target, auc in own.items() if "-l2-" in target])
            one = by_key["l2", attack, score]
            assert one.auc is not None
            assert one.auc.mean == pytest.approx(mean)
            assert (one.n_references, one.is_primary) == (6, (attack, score) == ("lira", "online_log_odds"))
    best = by_key["l2", "best_of", ""]
    maximum = by_key["l2", PAPERS_MAXIMUM, ""]
    assert best.auc is not None and maximum.auc is not None
    assert best.auc.mean < maximum.auc.mean
    blind = by_key["baseline", "blind_mi", "decision"]
    assert blind.auc is None
    assert blind.balanced_accuracy is not None and blind.balanced_accuracy.mean == 0.61
    assert blind.tpr is not None
    assert (blind.tpr.mean, blind.fpr) == (0.7, 0.48)
    table = attack_table(results, measured)
    assert "Paper’s maximum" in table_latex(table, "demo")
    assert len(table_csv(table).splitlines()) == len(found) + 1


def test_one_attack_in_two_configurations_has_two_rows(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    add_cohort(rows, "lira", mark="2", config={"spread": "pooled"})
    found = [one for one in attacks_on_cells(*made(rows, tmp_path)) if one.defense == "l2" and one.attack == "lira"]
    assert len({one.score_name for one in found}) == len(found) == 4
    assert sum(one.is_primary for one in found) == 1


def add_strongest(rows: Rows, leak: dict[str, float], broken: tuple[str, ...] = ()) -> None:
    """The best of all attacks, as recorded: each target's row names what was chosen for it."""
    add_cohort(rows, "ratio", mark="s", leak=leak, broken=broken)
    for table, key in (("comparisons", "comparison"), ("cohorts", "attack"), ("attacks", "attack")):
        own = [
            row for row in rows[table] if str(row.get("comparison_id") or row.get("attack_id")).startswith("ratios-")
        ]
        rows[table] = [row for row in rows[table] if row not in own] + [
            row | {key: "strongest"} for row in own if row.get("score_name", "online") == "online"
        ]
    for place, row in enumerate(row for row in rows["attacks"] if row["attack"] == "strongest"):
        row |= {"score_name": ("lira/online_hinge", "ratio/offline")[place % 2], "n_references": None}
    for row in rows["cohorts"]:
        row["score_name"] = "selected" if row["attack"] == "strongest" else row["score_name"]


def test_the_best_of_all_attacks_has_one_row_for_each_defense(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    add_strongest(rows, LEAK)
    found = [one for one in attacks_on_cells(*made(rows, tmp_path)) if one.attack == "strongest"]
    assert [(one.defense, one.score_name, one.auc.n) for one in found if one.auc] == [
        (defense, "selected", 8) for defense in ("baseline", "dp_eps2", "l2")
    ]


def test_the_report_says_against_which_defenses_the_best_of_all_attacks_sees_more(tmp_path: Path) -> None:
    said = "The best of all attacks, chosen for each target on other examples than it is measured on, "
    assert "best of all attacks" not in words(*made(with_cohorts(), tmp_path / "none"))
    rows = with_cohorts()
    add_strongest(rows, LEAK)
    assert f"{said}is not shown to see more." in words(*made(rows, tmp_path / "same"))
    rows = with_cohorts()
    add_strongest(rows, {**LEAK, "dp_eps2": 2.0})
    text = words(*made(rows, tmp_path / "more"))
    assert re.search(f"{said}sees more: a mean AUC of 0\\.9.. instead of 0\\.5.. against DP ε=2\\. The verdicts", text)
    rows = with_cohorts()
    add_strongest(rows, {**LEAK, "dp_eps2": 2.0}, broken=("dp_eps2",))
    for row in rows["cohorts"]:
        if row["attack"] == "strongest" and row["null_auc"] == 0.56:
            row |= {"null_auc_low": 0.55, "null_auc_high": 0.57}
    assert "sees more" not in words(*made(rows, tmp_path / "broken")), "its null is off"


# --- exposed examples ---------------------------------------------------------------------------


def test_the_most_exposed_examples_are_shown_as_pictures_with_a_text(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    results, measured = made(rows, tmp_path)
    (found,) = exposed(results, measured)
    assert [arm.defense for arm in found.arms] == ["Baseline", "DP ε=2", "L2"]
    assert found.table is None
    here = [row for row in rows["exposure"] if row["comparison_id"] == "lira-digits-baseline-8"]
    most = sorted(here, key=lambda row: -row["exposure"])[:MOST_EXAMPLES]
    pictures = found.arms[0].pictures
    assert [re.findall(r"Example (\d+)", one.description) for one in pictures] == [
        [str(row["example_id"])] for row in most
    ]
    assert "found at 1 % FPR in a share of 0.25 [0.01, 0.81]" in pictures[0].description
    assert "% of the true positives." in found.arms[0].sentence
    page = write_report(tmp_path).read_text(encoding="utf-8")
    alts = re.findall(r'<img alt="(Example \d+ of class \d[^"]+)"', page)
    assert len(alts) == 3 * MOST_EXAMPLES


def test_many_or_large_pictures_do_not_make_the_page_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(large, "PNG")
    rows = with_cohorts(n=20)
    for row in rows["exposure"]:
        row["image_png"] = large.getvalue()
    results, measured = made(rows, tmp_path)
    (found,) = exposed(results, measured)
    for arm in found.arms:
        assert len(arm.pictures) == MOST_EXAMPLES
        for picture in arm.pictures:
            with Image.open(io.BytesIO(base64.b64decode(picture.png))) as image:
                assert image.size == (64, 64)
    monkeypatch.setattr(exposed_module, "_MOST_PICTURES", 15)
    (found,) = exposed(results, measured)
    assert {len(arm.pictures) for arm in found.arms} == {15 // len(found.arms)}


def test_examples_without_images_are_rows(tmp_path: Path) -> None:
    results, measured = made(with_cohorts(n=20, images=False, broken=("l2",)), tmp_path)
    (found,) = exposed(results, measured)
    assert found.table is not None
    assert all(not arm.pictures for arm in found.arms)
    assert [arm.defense for arm in found.arms] == ["Baseline", "DP ε=2"]
    assert len(found.table.rows) == 2 * MOST_EXAMPLES
    assert "0.25 [0.01, 0.81]" in write_report(tmp_path).read_text(encoding="utf-8")


# --- the answer ---------------------------------------------------------------------------------


def set_accuracy(rows: Rows, defense: str, mean: float) -> None:
    for row in rows["trials"]:
        if row["defense"] == defense:
            row["test_accuracy"] = mean + 0.001 * (row["seed"] * (ord(defense[0]) + len(defense)) % 7)


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        (
            {"dp_eps2": 0.80, "dp_eps8": 0.962},
            "DP ε=8 leaks least of the 3 arms within 2 points of the best accuracy.",
        ),
        (
            {"dp_eps2": 0.966, "dp_eps8": 0.90},
            "DP ε=2 leaks least of the 3 arms within 2 points of the best accuracy.",
        ),
        (
            {"dp_eps2": 0.80, "dp_eps8": 0.90},
            "of the 2 arms within 2 points of the best accuracy, but it is not shown to leak less than the undefended model.",
        ),
    ],
)
def test_the_answer_names_the_defense_and_its_price(tmp_path: Path, accuracies: dict[str, float], verdict: str) -> None:
    leak = LEAK | {"dp_eps8": 0.6}
    rows = with_cohorts(defenses=("baseline", "dp_eps2", "dp_eps8", "l2"), n=200, leak=leak)
    for defense, accuracy in ({"baseline": 0.97} | accuracies).items():
        set_accuracy(rows, defense, accuracy)
    _, measured = made(rows, tmp_path)
    found = answer(measured, measured.settings[0], "digits")
    assert set(found.lower) == {"dp_eps2", "dp_eps8"}
    text = answered(measured)
    assert verdict in text
    assert "times the training time" in text
    assert ("no formal guarantee" in text) == (found.best == "l2")
    assert ("At any price, DP ε=2 leaks least" in text) == (found.best != "dp_eps2")
    assert answered(measured, within=20).startswith("DP ε=2 leaks least of the 4 arms within 20 points")
    assert answered(measured, weight=0.0).startswith("By this rule, no defense is chosen") == (
        max(measured.frame.groupby("defense")["test_accuracy"].mean().to_dict().items(), key=lambda one: one[1])[0]
        == "baseline"
    )
    assert answered(measured, weight=50.0).startswith("DP ε=2 is best at a weight of 50")


def test_rivals_by_weight_are_those_whose_trade_off_is_not_shown_to_be_worse(tmp_path: Path) -> None:
    rows = with_cohorts(defenses=("baseline", "dp_eps2", "l2"), n=200, leak=LEAK | {"l2": 0.8})
    for defense, accuracy in {"baseline": 0.97, "dp_eps2": 0.97, "l2": 0.60}.items():
        set_accuracy(rows, defense, accuracy)
    _, measured = made(rows, tmp_path)
    found = answer(measured, measured.settings[0], "digits", Preference(weight=1.0))
    assert found.best == "dp_eps2"
    assert found.eligible == ("baseline", "dp_eps2", "l2")
    assert "l2" not in found.rivals, "it loses 37 points of accuracy"
    # Without any weight on privacy, two arms of nearly equal accuracy cannot be told apart.
    assert set(answer(measured, measured.settings[0], "digits", Preference(weight=0.0)).rivals) < {
        "baseline",
        "dp_eps2",
    }


@pytest.mark.parametrize(
    "wrong", [{"within": -1.0}, {"weight": -0.1}, {"weight": float("nan")}, {"within": float("inf")}]
)
def test_a_preference_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PreferenceError, match="it must be a number of at least 0"):
        Preference(**wrong)


def test_the_answer_says_what_would_tell(tmp_path: Path) -> None:
    rows = with_cohorts(n=100, leak={"baseline": 0.8, "dp_eps2": 0.79, "l2": 0.8})
    text = answered(made(rows, tmp_path / "alike")[1], within=50)
    assert "not shown to leak less" in text or "no defense is chosen" in text
    assert "What would tell:" in text or "May be as good" in text
    rows = with_cohorts(n=60, leak={"baseline": 0.0, "dp_eps2": 0.0, "l2": 0.0})
    text = answered(made(rows, tmp_path / "nothing")[1])
    assert "no leak of the undefended model is shown that a defense could reduce" in text
    assert "What would tell: a stronger attack" in text
    text = answered(made(make_rows(seeds=(0,), n=400), tmp_path / "one seed")[1])
    assert "What would tell: more seeds: one shows no variation between runs" in text


@pytest.mark.parametrize(
    ("defenses", "text"),
    [
        (("l2", "dp_eps2"), "the risk of no undefended model is known"),
        (("baseline",), "the risk of one arm alone is known"),
    ],
)
def test_without_a_baseline_or_a_defense_little_is_said(tmp_path: Path, defenses: tuple[str, ...], text: str) -> None:
    assert text in answered(made(with_cohorts(defenses=defenses, n=20), tmp_path)[1])


def test_the_rules_are_ordered_from_the_strongest_down() -> None:
    assert [rule.least_seeds for rule in RULES] == sorted((rule.least_seeds for rule in RULES), reverse=True)


def test_the_first_paragraph_leads_with_the_setting_that_was_attacked_most_strongly(tmp_path: Path) -> None:
    rows = make_rows(defenses=("baseline", "l2"), seeds=range(8), parts={"a": "official", "b": "coins"}, n=20)
    of_coins = [row for row in rows["trials"] if row["split"] == "coins"]
    part: Rows = {name: [] for name in rows} | {"trials": of_coins}
    add_cohort(part, "lira", leak={})
    for name in ("comparisons", "cohorts", "attacks", "scores", "exposure"):
        rows[name] += part[name]
    results, measured = made(rows, tmp_path)
    assert judges(measured) == {None, "lira"}
    assert [measured.row_label(*row) for row in answered_rows(measured)] == ["digits (coins split)"]
    text = words(results, measured)
    assert "LiRA" in text
    assert "--set splits=[coins]" in text
    caption = summary_table(measured).caption
    assert "digits (coins split): the attack is LiRA" in caption
    assert "digits (official split): the attack is the best of the attacks on one target" in caption


def test_sound_attacks_are_called_broken_in_one_report_of_a_hundred() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(2000):
        nulls = 0.5 + 0.01 * rng.normal(size=(7, 8))
        half = stdtrit(7, 0.975) * nulls.std(axis=1, ddof=1) / np.sqrt(8)
        rows = [
            {"n_units": 8, "null_auc": mean, "null_auc_low": mean - width, "null_auc_high": mean + width}
            for mean, width in zip(nulls.mean(axis=1), half, strict=True)
        ]
        alarms += not all(is_sound(row, len(rows)) for row in rows)
    assert 8 <= alarms <= 36  # 20 are expected
