"""The gate and the card: limits at the worse end of intervals, missing evidence, exit codes, and where each number stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from analysis_fixture import Rows, write_tables
from cohort_fixture import with_cohorts
from typer.testing import CliRunner

from analysis.load import load
from analysis.measure.targets import measure
from analysis.release.card import card_of
from analysis.release.facts import Place, places_of
from analysis.release.gate import Decision, Limit, decide
from analysis.statistics.estimates import of_spreads
from attacks.cohort.summary import separation
from sweeper.auditing.attack import THRESHOLD_NAMES
from sweeper.cli.app import app

DEFENSES = ("baseline", "dp_eps2", "l2")


def places(rows: Rows, folder: Path, defense: str, attack: str | None = None) -> list[Place]:
    results = load(write_tables(folder, rows))
    return places_of(results, measure(results), defense, attack)


def decided(rows: Rows, folder: Path, defense: str, *limits: Limit, least_seeds: int = 8) -> Decision:
    return decide(places(rows, folder, defense), limits, least_seeds)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def worst(found: list[Place], name: str) -> float:
    """The largest upper end over all places and attacks."""
    return max(high for place in found for seen in place.seen if (high := seen.facts[name].high) is not None)


def test_a_limit_on_a_leak_holds_only_at_the_upper_end(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    found = places(rows, tmp_path, "dp_eps2")
    high = worst(found, "auc")
    mean = max(seen.facts["auc"].value for place in found for seen in place.seen)
    assert mean < high
    for limit, verdict in ((high + 0.001, "pass"), ((mean + high) / 2, "fail"), (mean - 0.01, "fail")):
        assert decide(found, [Limit(name="auc", value=limit)], 8).verdict == verdict
    rate = worst(found, "tpr@1%")
    assert decide(found, [Limit(name="tpr@1%", value=rate)], 8).verdict == "pass"
    assert decide(found, [Limit(name="tpr@1%", value=rate - 1e-6)], 8).verdict == "fail"
    # Calibrated and pooled rates are both recorded; the one that shows more is judged
    assert {seen.facts["tpr@1%"].source.rpartition(", ")[2] for place in found for seen in place.seen} == {
        "calibrated_tpr_at_fpr_0.01"
    }


def test_a_limit_on_accuracy_holds_only_at_the_lower_end(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for place in places(rows, tmp_path, "l2"):
        accuracy = place.facts["test_accuracy"]
        assert accuracy.low is not None
        for value, verdict in ((accuracy.low - 1e-6, "pass"), ((accuracy.low + accuracy.value) / 2, "fail")):
            assert decide([place], [Limit(name="test_accuracy", value=value, is_least=True)], 8).verdict == verdict


def test_an_epsilon_is_the_largest_of_the_seeds_and_none_is_a_failure(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    private = [row for row in rows["trials"] if row["defense"] == "dp_eps2"]
    private[0]["epsilon_spent"] = 2.5
    limit = Limit(name="epsilon", value=2.5)
    assert decided(rows, tmp_path, "dp_eps2", limit).verdict == "pass"
    assert decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon", value=2.4)).verdict == "fail"
    found = decided(rows, tmp_path, "l2", Limit(name="epsilon", value=1e6))
    assert found.verdict == "fail"
    assert "no formal guarantee" in found.checks[0].reason
    assert decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon_with_search", value=99.0)).verdict == "fail"
    for row in private:
        row |= {"epsilon_with_search": 7.0, "epsilon_trained_anew": 8.0}
        row |= {"search_id": "s", "search_runs": 4, "search_law": "fixed", "epsilon_shown": "run"}
    found = decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon", value=2.5))
    assert found.verdict == "pass"
    assert "of a model trained anew with its settings, at δ = 1e-05 is 8" in found.checks[0].reason
    for row in private:
        row["epsilon_shown"] = "search"
    assert decided(rows, tmp_path, "dp_eps2", limit).verdict == "fail"
    assert decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon", value=8.0)).verdict == "pass"
    # The targets were trained after the search, so the search's own ε does not cover them
    assert decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon_with_search", value=7.5)).verdict == "fail"
    assert decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon_with_search", value=8.0)).verdict == "pass"


def test_a_weaker_attack_is_no_substitute_for_the_primary_one(tmp_path: Path) -> None:
    rows = with_cohorts(n=20, attacks=["ratio"])
    found = decided(rows, tmp_path, "dp_eps2", Limit(name="auc", value=1.0))
    assert found.verdict == "not enough evidence"
    assert any("lira/online_log_odds, the primary attack for 8 seeds, did not run" in each for each in found.missing)


def test_a_smaller_cohort_than_there_are_seeds_is_not_enough(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["cohorts"]:
        row["n_targets"] = 5
    found = decided(rows, tmp_path, "dp_eps2", Limit(name="auc", value=1.0))
    assert found.verdict == "not enough evidence"
    assert any("attacked 5 of 8 models" in each for each in found.missing)


def test_failed_targets_and_datasets_are_missing_evidence(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    example = next(row for row in rows["trials"] if row["defense"] == "dp_eps2")
    failed = {"status": "failed", "error": "out of memory", "seed": 99}
    rows["trials"].append(example | failed | {"target_id": "0" * 16})
    rows["trials"].append(example | failed | {"target_id": "1" * 16, "dataset": "svhn"})
    folder = write_tables(tmp_path, rows)
    result = command("gate", folder, "--defense", "dp_eps2", "--max", "auc=1")
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert "1 of 9 targets have failed" in text
    assert "no target on svhn" in text


def test_a_delta_that_protects_nobody_is_no_evidence(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["trials"]:
        if row["defense"] == "dp_eps2":
            row["delta"] = 0.1
    found = decided(rows, tmp_path, "dp_eps2", Limit(name="epsilon", value=100.0))
    assert found.verdict == "not enough evidence"
    assert any("is not below 1/n" in each for each in found.missing)


@pytest.mark.parametrize(
    ("options", "least_seeds", "missing"),
    [
        ({}, 9, "8 seeds finished, and 9 are asked for"),
        ({"broken": ["dp_eps2"]}, 8, "does not stand"),
        ({"attacks": []}, 8, "did not run"),
        ({"failed": ["dp_eps2"]}, 8, "did not run"),
    ],
)
def test_without_evidence_nothing_passes(
    tmp_path: Path, options: dict[str, Any], least_seeds: int, missing: str
) -> None:
    rows = with_cohorts(n=20, **options)
    found = decided(rows, tmp_path, "dp_eps2", Limit(name="auc", value=1.0), least_seeds=least_seeds)
    assert found.verdict == "not enough evidence"
    assert any(missing in each for each in found.missing), found.missing


def test_a_quantity_that_was_not_measured_is_no_evidence(tmp_path: Path) -> None:
    found = decided(with_cohorts(n=20), tmp_path, "dp_eps2", Limit(name="tpr@0.1%", value=1.0))
    assert found.verdict == "not enough evidence"
    assert "too few examples" in found.checks[0].reason


def test_attacks_that_adapt_to_a_defense_are_judged_too_and_must_have_run(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["trials"]:
        row["adaptive_attacks"] = ["ratio/offline"]
    found = places(rows, tmp_path, "l2")
    assert {(seen.attack, seen.score_name, seen.why) for seen in found[0].seen} == {
        ("lira", "online_log_odds", "primary"),
        ("ratio", "offline", "adaptive"),
    }
    for row in rows["trials"]:
        row["adaptive_attacks"] = ["label_only/label_only_ratio"]
    decision = decided(rows, tmp_path, "l2", Limit(name="auc", value=1.0))
    assert decision.verdict == "not enough evidence"
    assert any(
        "label_only/label_only_ratio, the attack that adapts to this defense" in each for each in decision.missing
    )


def test_a_failed_limit_decides_even_if_other_evidence_is_missing(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    limits = (Limit(name="auc", value=0.5), Limit(name="tpr@0.1%", value=1.0))
    assert decided(rows, tmp_path, "baseline", *limits).verdict == "fail"


def test_an_attack_of_choice_is_judged_by_all_its_scores(tmp_path: Path) -> None:
    found = places(with_cohorts(n=20), tmp_path, "l2", "ratio")
    assert {(seen.attack, seen.score_name) for place in found for seen in place.seen} == {
        ("ratio", "online"),
        ("ratio", "offline"),
    }


def test_exit_codes_and_json_of_the_command(tmp_path: Path) -> None:
    folder = write_tables(tmp_path, with_cohorts(n=20))
    given = ("gate", folder, "--defense", "dp_eps2")
    passed = command(*given, "--max", "auc=0.9", "--min", "test_accuracy=0.01", "--json")
    assert passed.exit_code == 0, passed.output
    decision = json.loads(passed.stdout)
    assert decision["verdict"] == "pass"
    assert {check["limit"]["name"] for check in decision["checks"]} == {"auc", "test_accuracy"}
    assert all(check["measured"]["source"] for check in decision["checks"])
    failed = command(*given, "--max", "auc=0.4")
    assert failed.exit_code == 1
    assert "FAIL" in failed.output
    unknown = command(*given, "--max", "tpr@0.1%=0.5")
    assert unknown.exit_code == 2
    assert "NOT ENOUGH EVIDENCE" in unknown.output
    for arguments, problem in (
        (["gate", folder, "--max", "auc=0.5"], "Name the defense"),
        (["gate", folder, "--defense", "dp_eps3", "--max", "auc=0.5"], "Did you mean 'dp_eps2'"),
        ([*given], "no limits"),
        ([*given, "--max", "auc"], "Write NAME=VALUE"),
        ([*given, "--max", "auc=much"], "must be a number"),
        ([*given, "--max", "test_accuracy=0.5"], "Unknown quantity"),
        ([*given, "--max", "auc=0.6", "--attack", "shokri"], "Unknown attack"),
        ([*given, "--max", "auc=0.6", "--dataset", "svhn"], "Unknown dataset"),
        (["gate", tmp_path / "nothing", "--defense", "l2", "--max", "auc=0.5"], "nothing"),
        (["card", folder, "--defense", "l2", "--to", tmp_path / "card.pdf"], "must end in"),
    ):
        result = command(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert problem in " ".join(result.output.split()), result.output
        assert "Traceback" not in result.output


def audit_file(tmp_path: Path, shift: float, attacks: Sequence[str] = THRESHOLD_NAMES) -> Path:
    rng = np.random.default_rng(0)
    n = 800
    is_member = np.arange(n) < n // 2
    logits = rng.standard_normal((n, 3))
    logits[is_member, 0] += shift
    table = pa.table(
        {
            "example_id": np.arange(n),
            "is_member": is_member,
            "label": np.zeros(n, dtype=np.int64),
            "logits": [row.tolist() for row in logits],
        }
    )
    pq.write_table(table, tmp_path / "outputs.parquet")
    metrics = tmp_path / "metrics.parquet"
    chosen = [argument for name in attacks for argument in ("--attack", name)]
    result = command("audit", tmp_path / "outputs.parquet", *chosen, "--out", metrics)
    assert result.exit_code == 0, result.output
    return metrics


def test_the_gate_judges_an_audit_of_any_model(tmp_path: Path) -> None:
    metrics = audit_file(tmp_path, 2.0)
    found = pd.read_parquet(metrics).set_index("attack")
    auc = found.loc["loss"]
    assert command("gate", metrics, "--max", f"auc={found['auc_high'].max() + 0.001}").exit_code == 0
    assert command("gate", metrics, "--max", f"auc={auc['auc']}").exit_code == 1
    entropy = found.loc["entropy", "auc_high"]
    for limit, code in ((entropy + 0.001, 0), (entropy - 0.001, 1)):
        result = command("gate", metrics, "--max", f"auc={limit}", "--attack", "entropy")
        assert result.exit_code == code
        assert "have no references and no null" in " ".join(result.output.split())
    for arguments, problem in (
        (["--max", "epsilon=8"], "does not measure the quantity 'epsilon'"),
        (["--max", "auc=0.6", "--defense", "l2"], "leave out --defense"),
        (["--max", "auc=0.6", "--attack", "lira"], "Unknown attack"),
        (["--max", "auc=0.6", "--min-seeds", "8"], "leave out --min-seeds"),
        (["--max", "epsilon_lower_bound=0.5"], "a small one shows nothing"),
    ):
        result = command("gate", metrics, *arguments)
        assert result.exit_code == 2
        assert problem in " ".join(result.output.split())
    assert command("gate", metrics, "--max", "tpr@0.1%=0.9").exit_code == 2  # too few non-members
    assert command("gate", tmp_path / "outputs.parquet", "--max", "auc=0.6").exit_code == 2


def test_an_audit_by_a_weak_attack_alone_passes_nothing(tmp_path: Path) -> None:
    metrics = audit_file(tmp_path, 2.0, ["entropy"])
    result = command("gate", metrics, "--max", "auc=0.99")
    assert result.exit_code == 2
    assert "attack 'loss' did not run" in result.output
    assert command("gate", metrics, "--max", "auc=0.99", "--attack", "entropy").exit_code == 0  # asked for
    assert command("gate", metrics, "--max", "auc=0.1").exit_code == 1


def test_every_number_of_a_card_stands_where_the_card_says(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["trials"]:
        row["split_label"] = row["split"]
    folder = write_tables(tmp_path, rows)
    results = load(folder)
    measured = measure(results)
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("trials", "cohorts")}
    n_checked = 0
    for defense in DEFENSES:
        for place in places_of(results, measured, defense):
            for fact in (*place.facts.values(), *(fact for seen in place.seen for fact in seen.facts.values())):
                table, _, where = fact.source.partition(".parquet: ")
                *conditions, column = where.split(", ")
                chosen = tables[table]
                for condition in conditions:
                    name, _, value = condition.partition(" = ")
                    chosen = chosen[chosen[name].astype(str) == value]
                assert len(chosen) == (place.n_seeds if fact.name == "test_accuracy" else 1)
                assert chosen[column].mean() == pytest.approx(fact.value)
                n_checked += 1
    assert n_checked >= 12


def test_the_interval_of_an_exposure_covers_it() -> None:
    rng, covered = np.random.default_rng(0), []
    is_member = np.repeat([[True], [False]], 8, axis=0).repeat(2000, axis=1)
    for true in (0.0, 1.0, 3.0):
        found = separation(is_member, rng.standard_normal(is_member.shape) + true * is_member)
        low, high = np.array([of_spreads(each, 8, 8) for each in found]).T
        covered.append(np.mean((low <= true) & (true <= high)))
    assert min(covered) > 0.92, covered


def test_the_card_says_what_it_knows_and_what_was_not_tried(tmp_path: Path) -> None:
    rows = with_cohorts(n=20)
    for row in rows["trials"]:
        row["no_guarantee_reason"] = None if row["epsilon_spent"] is not None else "it <b>has</b> | none"
    folder = write_tables(tmp_path, rows)
    page = tmp_path / "card.html"
    result = command("card", folder, "--defense", "l2", "--to", page)
    assert result.exit_code == 0, result.output
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;has&lt;/b&gt;" in html and "<b>has" not in html
    assert not re.search(r"(src|href)=|https?://", html)
    for words in (
        "Who attacks",
        "What is proved",
        "Most exposed records",
        "What was not tried",
        "Null, the AUC",
        "Canaries:",
    ):
        assert words in html
    markdown = command("card", folder, "--defense", "dp_eps2").stdout
    assert "| Proved ε of one run, at δ = 1e-05 |" in markdown
    assert "How the settings were chosen is not recorded" in markdown
    for line in markdown.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, line
    assert command("card", folder, "--defense", "l2", "--to", tmp_path / "card.json").exit_code == 0
    made = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    results = load(folder)
    measured = measure(results)
    again = card_of(results, measured, "l2", places_of(results, measured, "l2"))
    assert made == json.loads(json.dumps(again.as_json()))
    assert [place["place"] for place in made["places"]] == [place.label for place in places_of(results, measured, "l2")]


def test_a_score_that_is_turned_around_passes_nothing(tmp_path: Path) -> None:
    member = np.arange(400) < 200
    score = np.random.default_rng(0).normal(size=400) - 3 * member
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"is_member": member, "score": score}), path)
    metrics = tmp_path / "metrics.parquet"
    assert command("audit", path, "--out", metrics).exit_code == 0
    result = command("gate", metrics, "--max", "auc=0.55", "--max", "tpr@10%=0.5")
    assert result.exit_code == 2
    assert "the direction of its score is wrong" in " ".join(result.output.split())
    rows = with_cohorts(n=20, leak={"baseline": 1.0, "dp_eps2": -1.0, "l2": 0.9})
    assert decided(rows, tmp_path / "cohort", "dp_eps2", Limit(name="auc", value=0.55)).verdict == "not enough evidence"
    # Chance alone is not taken for a reversed score
    rows = with_cohorts(n=20, leak={"baseline": 1.0, "dp_eps2": 0.0, "l2": 0.9})
    assert decided(rows, tmp_path / "null", "dp_eps2", Limit(name="auc", value=0.65)).verdict == "pass"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "How the settings were chosen is not recorded"),
        (
            {"search_basis": "an attack's results choose the run, and no guarantee covers these"},
            "Nothing covers the search",
        ),
        (
            {"search_basis": "composition of all 4 runs", "epsilon_trained_anew": 9.0},
            "is computed by composition of all 4 runs",
        ),
    ],
)
def test_the_card_says_what_covers_the_choice_of_settings(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    rows = with_cohorts(n=20)
    for row in rows["trials"]:
        if row["defense"] == "dp_eps2" and columns:
            row |= {
                "search_id": "s",
                "search_runs": 4,
                "search_law": "fixed",
                "search_objective": "validation accuracy",
            }
            row |= {"n_validation": 50, **columns}
    results = load(write_tables(tmp_path, rows))
    measured = measure(results)
    text = card_of(results, measured, "dp_eps2", places_of(results, measured, "dp_eps2")).as_markdown()
    assert words in text
    assert ("a search of 4 runs by validation accuracy, on 50 validation examples" in text) == bool(columns)
