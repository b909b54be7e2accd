"""The study of canaries: what it takes as each defense's leak, its factors over DP, and its verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_fixture import Rows, make_rows, write_tables

from analysis.load import load
from analysis.measure.targets import measure
from analysis.statistics.estimates import Estimate, Ratio
from analysis.studies.aerni2024 import STUDY
from analysis.studies.aerni2024.cells import Protocol, protocol, ratio
from analysis.studies.aerni2024.claims import judge
from analysis.studies.aerni2024.tables import epsilon_text, tables
from analysis.studies.base import chapters
from sweeper.results.schema import SCHEMAS

# Defense: accuracy, ε, adaptive attacks, and the TPR of each attack by kind of canaries
ARMS: dict[str, tuple[float, float | None, list[str], dict[str, dict[str, float]]]] = {
    "undefended": (0.96, None, [], {"clean": {"log": 0.05, "hinge": 0.06}, "mislabeled": {"log": 0.98, "hinge": 0.97}}),
    "hamp": (
        0.90,
        None,
        ["label_only/label_only_ratio"],
        {"clean": {"log": 0.004, "labels": 0.006}, "mislabeled": {"log": 0.02, "hinge": 0.03, "labels": 0.30}},
    ),
    "dropout": (0.92, None, [], {"clean": {"log": 0.02}, "mislabeled": {"log": 0.6, "hinge": 0.5, "labels": 0.9}}),
    "dp_high": (0.93, 1e8, [], {"clean": {"log": 0.005}, "mislabeled": {"log": 0.05}}),
    "dp_medium": (0.90, 9e3, [], {"clean": {"log": 0.002}, "mislabeled": {"log": 0.02}}),
}
NAMES = {
    "log": ("lira", "online_log_odds"),
    "hinge": ("lira", "online_hinge"),
    "labels": ("label_only", "label_only_ratio"),
}


def made(
    arms: dict[str, Any] = ARMS, kinds: dict[str, list[str]] | None = None, nulls: dict[Any, float] | None = None
) -> Rows:
    """Results of eight seeds. `kinds` are the kinds of canaries that a defense declares; `nulls` the AUCs of nulls."""
    names = sorted({kind for *_, tprs in arms.values() for kind in tprs})
    rows = make_rows(
        defenses=list(arms), seeds=range(8), parts=dict.fromkeys(names, "coin_pairs"), n=4, sweep="aerni2024_small"
    )
    for row in rows["trials"]:
        accuracy, epsilon, adaptive, _ = arms[row["defense"]]
        row |= {"split_label": row["part"], "canary_kind": row["part"], "n_canaries": 500, "n_members": 250}
        row |= {
            "test_accuracy": accuracy + 0.001 * (row["seed"] - 3.5),
            "epsilon_spent": epsilon,
            "adaptive_attacks": adaptive,
            "config": json.dumps(
                {"defenses": [{"name": "none" if name == "undefended" else name} for name in [row["defense"]]]}
            ),
        }
        row |= {"worst_canaries": (kinds or {}).get(row["defense"], ["mislabeled"]), "rdp": None}
    for defense, (*_, tprs) in arms.items():
        for kind, found in tprs.items():
            members = [row["target_id"] for row in rows["trials"] if (row["defense"], row["part"]) == (defense, kind)]
            for attack in {NAMES[name][0] for name in found}:
                rows["comparisons"].append(
                    dict.fromkeys(SCHEMAS["comparisons"].names)
                    | {
                        "comparison_id": f"{attack}-{defense}-{kind}",
                        "comparison": attack,
                        "members": members,
                        "status": "finished",
                    }
                    | {"config": json.dumps({"name": attack, "spread": "shrunk"})}
                )
            for name, tpr in found.items():
                attack, score = NAMES[name]
                null = (nulls or {}).get((defense, kind, name), 0.503)
                rows["cohorts"].append(
                    dict.fromkeys(SCHEMAS["cohorts"].names)
                    | {
                        "comparison_id": f"{attack}-{defense}-{kind}",
                        "attack": attack,
                        "score_name": score,
                        "is_first": True,
                    }
                    | {"n_targets": 8, "n_units": 4, "n_examples": 500, "auc": 0.6, "auc_low": 0.58, "auc_high": 0.62}
                    | {"epsilon_lower_bound": 3.0, "audit_delta": 1e-5}
                    | {"null_auc": null, "null_auc_low": null - 0.02, "null_auc_high": null + 0.02}
                    | interval("pooled_tpr_at_fpr_0.001", tpr)
                    | interval("pooled_tpr_at_fpr_0.01", min(1.0, 2 * tpr))
                )
    return rows


def interval(column: str, value: float) -> dict[str, float]:
    return {column: value, f"{column}_low": 0.8 * value, f"{column}_high": min(1.0, 1.25 * value)}


def found_in(tmp_path: Path, rows: Rows) -> Protocol:
    results = load(write_tables(tmp_path / "results", rows))
    found = protocol(results, measure(results))
    assert found is not None
    return found


def test_the_leak_is_the_highest_of_the_attacks_and_kinds_that_were_fixed(tmp_path: Path) -> None:
    found = found_in(tmp_path, made())
    hamp, dropout = (found.arms["digits", name] for name in ("hamp", "dropout"))
    assert found.fpr == 0.001
    assert hamp.base is not None
    assert (hamp.base.tpr.mean, hamp.base.attack) == (0.004, "lira/online_log_odds")
    assert hamp.worst is not None
    assert (hamp.worst.tpr.mean, hamp.worst.attack, hamp.worst.kind) == (
        0.30,
        "label_only/label_only_ratio",
        "mislabeled",
    )
    assert hamp.n_tried == 3
    # An attack that was not fixed for a defense is not taken, however much it finds
    assert dropout.worst is not None
    assert (dropout.worst.tpr.mean, dropout.worst.attack) == (0.6, "lira/online_log_odds")
    assert dropout.n_tried == 2


def test_only_the_kinds_that_a_defense_declares_are_taken(tmp_path: Path) -> None:
    arms = dict(ARMS)
    arms["selena"] = (
        0.93,
        None,
        [],
        {"clean": {"log": 0.01}, "mislabeled": {"log": 0.9}, "duplicate_mislabeled": {"log": 0.4}},
    )
    found = found_in(tmp_path, made(arms, kinds={"selena": ["duplicate_mislabeled"]}))
    worst = found.arms["digits", "selena"].worst
    assert worst is not None
    assert (worst.kind, worst.tpr.mean) == ("duplicate_mislabeled", 0.4)


def test_a_defense_stands_beside_the_least_accurate_dp_arm_that_is_as_accurate(tmp_path: Path) -> None:
    found = found_in(tmp_path, made())
    nearest = {name: found.nearest_private(found.arms["digits", name]) for name in ARMS}
    names = {name: None if arm is None else arm.defense for name, arm in nearest.items()}
    assert names == {
        "undefended": None,
        "hamp": "dp_medium",
        "dropout": "dp_high",
        "dp_high": None,
        "dp_medium": None,
    }
    factor = found.factor(found.arms["digits", "hamp"])
    assert factor is not None
    assert factor.mean == pytest.approx(15)
    # Each rate's interval is ± log 1.25, taken as independent
    half = math.hypot(math.log(1.25), math.log(1.25))
    assert (factor.low, factor.high) == (pytest.approx(15 / math.exp(half)), pytest.approx(15 * math.exp(half)))


def test_an_attack_whose_null_is_off_is_not_used_and_the_table_says_so(tmp_path: Path) -> None:
    found = found_in(tmp_path, made(nulls={("hamp", "mislabeled", "labels"): 0.7}))
    worst = found.arms["digits", "hamp"].worst
    assert worst is not None
    assert (worst.attack, worst.tpr.mean) == ("lira/online_hinge", 0.03)
    _, audits, means, nulls = tables(found)
    assert "of which 1 is shown to differ" in nulls.caption
    cells = {row[0]: row[1] for row in means.rows}
    assert cells["LiRA (log-odds, references with and without the example)"] == len(ARMS) * 2
    (undefended,) = {row[-1] for row in audits.rows if row[1].value == "undefended"}  # type: ignore[union-attr]
    assert not undefended  # nothing is proved
    off = [row for row in nulls.rows if row[-1] == "no"]
    assert [(row[1].value, row[3]) for row in off] == [("hamp", "label_only/label_only_ratio")]  # type: ignore[union-attr]


def test_nulls_that_are_all_a_little_off_are_seen_over_all_cells(tmp_path: Path) -> None:
    nulls = {(name, kind, "log"): 0.51 + 0.001 * (name == "hamp") for name in ARMS for kind in ("clean", "mislabeled")}
    _, _, means, each = tables(found_in(tmp_path, made(nulls=nulls)))
    assert not [row for row in each.rows if row[-1] == "no"]
    assert means.rows[0][-1] == "no"


def test_a_bound_above_the_proved_epsilon_is_named(tmp_path: Path) -> None:
    arms = {
        "dp_eps2": (0.9, 2.0, [], {"mislabeled": {"log": 0.01}}),
        "dp_eps8": (0.9, 8.0, [], {"mislabeled": {"log": 0.01}}),
    }
    _, audits, *_ = tables(found_in(tmp_path, made(arms)))
    assert {row[1].value: row[-1] for row in audits.rows} == {"dp_eps2": "no", "dp_eps8": "yes"}  # type: ignore[union-attr]


def test_the_claims_are_judged_by_these_numbers(tmp_path: Path) -> None:
    verdicts = [claim.verdict for claim in judge(found_in(tmp_path, made()))]
    assert verdicts == ["held", "undecided", "did not hold", "held", "held"]
    arms = dict(ARMS)
    arms["dropout"] = (0.92, None, [], {"clean": {"log": 0.05}, "mislabeled": {"log": 0.05}})
    claims = judge(found_in(tmp_path / "other", made(arms)))
    assert [claim.verdict for claim in claims] == ["held", "undecided", "held", "undecided", "held"]


def nearest_to_hamp(tmp_path: Path, **dp: tuple[float, float]) -> tuple[str | None, Protocol]:
    """The DP arm beside HAMP, of accuracy .9 and leak .3; each DP arm's accuracy and leak are given."""
    arms = {"hamp": ARMS["hamp"]} | {
        name: (accuracy, 8.0, [], {"mislabeled": {"log": leak}}) for name, (accuracy, leak) in dp.items()
    }
    found = found_in(tmp_path, made(arms))
    arm = found.nearest_private(found.arms["digits", "hamp"])
    return (None if arm is None else arm.defense), found


def test_accuracies_within_half_a_point_are_equal_and_dominated_dp_arms_are_not_taken(tmp_path: Path) -> None:
    assert nearest_to_hamp(tmp_path / "a", dp_a=(0.897, 0.02), dp_b=(0.93, 0.05))[0] == "dp_a"
    assert nearest_to_hamp(tmp_path / "b", dp_a=(0.905, 0.2), dp_b=(0.91, 0.02))[0] == "dp_b"


def test_a_dp_arm_that_is_a_little_less_accurate_stands_in_and_the_table_says_by_how_much(tmp_path: Path) -> None:
    name, found = nearest_to_hamp(tmp_path / "a", dp_a=(0.885, 0.02), dp_b=(0.85, 0.01))
    assert name == "dp_a"
    (row,) = (row for row in tables(found)[0].rows if row[1].value == "hamp")  # type: ignore[union-attr]
    assert "−0.015" in str(row[10])
    assert nearest_to_hamp(tmp_path / "b", dp_a=(0.87, 0.02))[0] is None


def test_an_arm_that_was_not_attacked_is_in_the_table_and_leaves_the_claim_undecided(tmp_path: Path) -> None:
    arms = dict(ARMS) | {"relaxloss": (0.9, None, [], {"clean": {"log": 0.01}})}
    found = found_in(tmp_path, made(arms))
    (row,) = (row for row in tables(found)[0].rows if row[1].value == "relaxloss")  # type: ignore[union-attr]
    assert "not attacked on its worst canaries" in row
    claim = judge(found)[0]
    assert claim.verdict == "undecided"
    assert "? digits, RelaxLoss: not attacked on its worst canaries" in claim.evidence


def test_defenses_are_known_by_what_they_are_not_by_their_labels(tmp_path: Path) -> None:
    arms = {f"my_{name}": arm for name, arm in ARMS.items()}
    rows = made(arms)
    for row in rows["trials"]:
        name = row["defense"].removeprefix("my_")
        row["config"] = json.dumps({"defenses": [{"name": "none" if name == "undefended" else name}]})
    verdicts = [claim.verdict for claim in judge(found_in(tmp_path, rows))]
    assert verdicts == ["held", "undecided", "did not hold", "held", "held"]


def test_all_arms_are_of_one_architecture_and_the_table_says_so(tmp_path: Path) -> None:
    rows = made()
    more = made()
    for row in more["trials"]:
        row |= {"target_id": "other-" + row["target_id"], "architecture": "other", "test_accuracy": 0.5}
    # One seed of the first architecture failed
    failed = next(row["target_id"] for row in rows["trials"] if (row["defense"], row["part"]) == ("hamp", "mislabeled"))
    rows["trials"] = [row for row in rows["trials"] if row["target_id"] != failed]
    for row in more["comparisons"]:
        row |= {
            "comparison_id": "other-" + row["comparison_id"],
            "members": [f"other-{member}" for member in row["members"]],
        }
    for row in more["cohorts"]:
        row["comparison_id"] = "other-" + row["comparison_id"]
    for table in ("trials", "comparisons", "cohorts"):
        rows[table] += [row for row in more[table] if table == "trials" or "dp_" not in row["comparison_id"]]
    found = found_in(tmp_path, rows)
    accuracies = [arm.accuracy for arm in found.of("digits")]
    assert all(accuracy is not None and accuracy.mean > 0.8 for accuracy in accuracies)
    assert len(accuracies) == len(ARMS)
    assert found.left_out == ("digits",)
    assert any("others are not in it" in note for note in tables(found)[0].notes)


def test_one_configuration_of_an_attack_serves_all_cells(tmp_path: Path) -> None:
    rows = made()
    for table in ("comparisons", "cohorts"):
        # Of the other configuration, identifiers sort first in some cells and last in others
        for index, row in enumerate([row for row in rows[table] if row["comparison_id"].startswith("lira")]):
            other = dict(row) | {"comparison_id": f"{'a' if index % 2 else 'z'}-{row['comparison_id']}"}
            if table == "comparisons":
                other["config"] = json.dumps({"name": "lira", "spread": "per_example"})
            elif "clean" in row["comparison_id"]:
                other |= interval("pooled_tpr_at_fpr_0.001", 0.9)
            else:
                other |= interval("pooled_tpr_at_fpr_0.001", 0.8)
            rows[table].append(other)
    ids = {row["comparison_id"] for row in rows["comparisons"]}
    rows["cohorts"] = [row for row in rows["cohorts"] if row["comparison_id"] in ids]
    found = found_in(tmp_path, rows)
    tprs = {arm.base.tpr.mean for arm in found.arms.values() if arm.base is not None}
    assert tprs == {0.9} or 0.9 not in tprs


def test_one_cell_with_too_few_targets_for_a_low_fpr_does_not_change_the_others(tmp_path: Path) -> None:
    rows = made()
    for row in rows["cohorts"]:
        if row["comparison_id"] == "lira-dp_medium-clean":
            row |= dict.fromkeys([f"pooled_tpr_at_fpr_0.001{end}" for end in ("", "_low", "_high")])
    found = found_in(tmp_path, rows)
    assert found.fpr == 0.001
    assert found.arms["digits", "dp_medium"].base is None


def test_rates_at_a_percent_are_taken_where_lower_ones_cannot_be_told(tmp_path: Path) -> None:
    rows = made()
    for row in rows["cohorts"]:
        row |= dict.fromkeys([f"pooled_tpr_at_fpr_0.001{end}" for end in ("", "_low", "_high")])
    found = found_in(tmp_path, rows)
    assert found.fpr == 0.01
    worst = found.arms["digits", "hamp"].worst
    assert worst is not None
    assert worst.tpr.mean == 0.6


def test_results_without_canaries_have_no_such_chapter(tmp_path: Path) -> None:
    results = load(write_tables(tmp_path, make_rows(seeds=(0,), n=4)))
    assert STUDY.chapter(results, measure(results)) is None


def test_the_chapter_covers_the_studys_own_sweep_although_another_study_lists_its_labels(tmp_path: Path) -> None:
    results = load(write_tables(tmp_path, made()))
    assert [study.sweep for study, _ in chapters(results, measure(results))] == ["aerni2024"]


def test_an_epsilon_that_says_nothing_is_printed_as_what_it_is() -> None:
    assert [epsilon_text(each) for each in (None, 2.0, 7.9996, 212_345_678.0)] == ["—", "2", "8", "2.1 × 10⁸"]


def test_the_interval_of_a_ratio_covers_the_true_one() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        rates = []
        for truth in (0.3, 0.05):
            sample = rng.random((400,)) < truth
            mean, error = sample.mean(), math.sqrt(truth * (1 - truth) / 400)
            rates.append(Estimate(mean=mean, low=mean - 1.96 * error, high=mean + 1.96 * error, n=16))
        one = ratio(*rates, 0.001)
        assert one is not None
        assert one.low is not None
        assert one.high is not None
        covered += one.low < 6 < one.high
    assert covered >= 375
    guess = Estimate(mean=0.0, low=0.0, high=0.002, n=16)
    floored = ratio(rates[0], guess, 0.001)
    assert floored is not None
    assert floored.mean == pytest.approx(rates[0].mean / 0.001)
    widened = Ratio.of_logarithm(0.0, 0.1, 8).at(0.99)
    assert widened.low == pytest.approx(1 / widened.high)  # type: ignore[operator]
