"""What the first screen says: how many seeds would tell, the table of arms, and a user's own names and looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_fixture import write_tables
from cohort_fixture import with_cohorts
from typer.testing import CliRunner

import analysis.report.write as report_module
from analysis import naming
from analysis.figures.style import looks
from analysis.load import load
from analysis.measure.answer import Preference
from analysis.measure.roc import roc
from analysis.measure.summary import summaries
from analysis.measure.targets import GUESSING, Measurements, measure
from analysis.presentation import MARKERS, PresentationError, applied, read_presentation
from analysis.report.figures import Figures
from analysis.report.markers import MARKERS as PATHS
from analysis.report.panels import Panel, as_json, panels
from analysis.statistics.estimates import estimate, seeds_and_examples, sign
from analysis.statistics.power import MOST_SEEDS, POWER, seeds_to_tell
from sweeper.cli.app import app

# How many seeds would tell


@pytest.mark.parametrize("effect", [0.4, 0.8, 2.0])
def test_so_many_seeds_tell_four_times_in_five(effect: float) -> None:
    rng = np.random.default_rng(0)
    pilot = estimate((lambda values: effect + (values - values.mean()) / values.std(ddof=1))(rng.standard_normal(12)))
    needed = seeds_to_tell(pilot)
    assert needed is not None

    def power(seeds: int) -> float:
        return float(np.mean([sign(estimate(effect + rng.standard_normal(seeds))) == 1 for _ in range(3000)]))

    assert power(needed) > POWER - 0.03
    assert power(needed - 1) < POWER + 0.03


def test_what_seeds_share_is_not_reduced_by_more_of_them() -> None:
    values = np.array([0.03, 0.05, 0.02, 0.04])
    apart = seeds_and_examples(values, 1e-4 * np.eye(4))
    together = seeds_and_examples(values, 1e-4 * (0.5 * np.eye(4) + 0.5))
    assert apart.shared == 0
    assert together.shared == pytest.approx(5e-5)
    more, most = seeds_to_tell(apart), seeds_to_tell(together)
    assert more is not None and most is not None
    assert more <= most
    hopeless = seeds_and_examples(values, 1e-2 * (0.01 * np.eye(4) + 0.99))
    assert seeds_to_tell(hopeless) is None, f"not even {MOST_SEEDS} seeds"


def test_a_stricter_verdict_and_a_smaller_difference_take_more_seeds() -> None:
    values = np.random.default_rng(1).standard_normal(8) + 1
    pilot = estimate(values)
    assert (seeds_to_tell(pilot, 0.999) or 0) > (seeds_to_tell(pilot, 0.95) or 0)
    assert (seeds_to_tell(estimate(values - 0.6)) or MOST_SEEDS) > (seeds_to_tell(pilot) or 0)
    for nothing in (None, estimate([0.1]), estimate([0.1, 0.1]), estimate([-1.0, 1.0])):
        assert seeds_to_tell(nothing) is None


# The table of arms


def made(rows: Any, folder: Path) -> tuple[Measurements, list[Panel], dict[str, Any]]:
    results = load(write_tables(folder, rows))
    measured = measure(results)
    found = panels(measured, summaries(measured), looks(measured), Preference())
    return measured, found, json.loads(json.dumps(as_json(found, roc(results, measured)), allow_nan=False))


def test_arms_are_sorted_by_leak_and_have_verdicts_and_what_would_tell(tmp_path: Path) -> None:
    measured, (panel,), data = made(with_cohorts(defenses=("baseline", "dp_eps2", "dp_eps8", "l2"), n=60), tmp_path)
    aucs = [max(GUESSING, arm.summary.auc.mean) for arm in panel.arms if arm.summary.auc]
    assert aucs == sorted(aucs)
    kinds = {arm.key: arm.verdict_kind for arm in panel.arms}
    assert kinds["baseline"] == "reference"
    assert kinds["dp_eps2"] == "less"
    assert kinds["l2"] == "untold"
    told = {arm.key: arm.would_tell for arm in panel.arms}
    assert "more seed" in told["l2"] or "1,000" in told["l2"]
    assert not told["dp_eps2"]
    assert {arm.key: arm.family for arm in panel.arms} == {
        "baseline": "undefended", "dp_eps2": "guaranteed", "dp_eps8": "guaranteed", "l2": "heuristic",
    }  # fmt: skip
    for arm in panel.arms:
        assert arm.auc_bar is not None and arm.auc_bar.low is not None and arm.auc_bar.high is not None
        assert 0 < arm.auc_bar.low <= arm.auc_bar.mark <= arm.auc_bar.high < 100
    assert len(measured.rows()) == 1
    (shown,) = data["panels"]
    for arm in shown["arms"]:
        estimate_of_arm = measured.estimate(*measured.rows()[0], arm["key"], "auc")
        assert estimate_of_arm is not None
        assert arm["values"]["auc"] == pytest.approx(
            [estimate_of_arm.mean, estimate_of_arm.low, estimate_of_arm.high], rel=1e-4
        )
        assert len(arm["seeds"]) == 8
        curve = np.array(shown["roc"]["tpr"][arm["key"]])
        assert (np.diff(curve) >= 0).all() and curve[-1] == 1
    assert shown["roc"]["fpr"][-1] == 1


def test_an_attack_that_is_broken_has_no_numbers_and_comes_last(tmp_path: Path) -> None:
    _, (panel,), data = made(with_cohorts(n=30, broken=("dp_eps2",)), tmp_path)
    assert panel.arms[-1].key == "dp_eps2"
    assert panel.arms[-1].verdict == "attack broken"
    assert panel.arms[-1].auc_bar is None
    [broken] = [arm for arm in data["panels"][0]["arms"] if arm["key"] == "dp_eps2"]
    assert set(broken["values"]) <= {"accuracy", "time", "bound"}


# A user's own names and looks

STYLE = """
arms:
  dp_eps2: {name: "DP-SGD, ε = 2", color: "#123456", marker: s}
  l2: {name: Weight decay}
datasets: {digits: Handwritten digits}
order: [l2, dp_eps2]
"""


def test_a_file_gives_names_order_colors_and_markers(tmp_path: Path) -> None:
    path = tmp_path / "style.yaml"
    path.write_text(STYLE, encoding="utf-8")
    with applied(read_presentation(path)):
        measured, (panel,), _ = made(with_cohorts(n=20), tmp_path)
        assert measured.defenses == ("l2", "dp_eps2", "baseline")
        assert panel.label == "Handwritten digits"
        look = looks(measured)["dp_eps2"]
        assert (look.color, look.marker) == ("#123456", "s")
        assert naming.display("l2") == "Weight decay"
    assert naming.display("l2") == "L2"
    assert set(MARKERS) == set(PATHS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("arms: [a]", "arms: got ['a']; it must be a mapping"),
        ("arm: {}", "unknown key 'arm'; allowed are arms, datasets, order"),
        ("arms: {l2: {colour: red}}", "unknown key 'colour'"),
        ("arms: {l2: {color: red}}", "arms.l2.color: got 'red'; it must be a color like '#0072B2'"),
        ("arms: {l2: {marker: oo}}", "arms.l2.marker: got 'oo'; it must be one of"),
        ("arms: {l2: {name: 3}}", "arms.l2.name: got 3; it must be text"),
        ("order: l2", "order: got 'l2'; it must be a list"),
        ("a: [", "cannot be read as YAML"),
        ("- 1", "it must be a mapping"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "style.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PresentationError) as error:
        read_presentation(path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)


def test_the_command_takes_a_weight_a_margin_and_a_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "write_figures", lambda *_: Figures(tradeoffs={}, general=(), of_studies=()))
    folder = write_tables(tmp_path / "results", with_cohorts(n=20))
    style = tmp_path / "style.yaml"
    style.write_text(STYLE, encoding="utf-8")

    def command(*options: str) -> Any:
        return CliRunner().invoke(app, ["report", str(folder), "--to", str(tmp_path / "report"), *options])

    assert command("--weight", "2.5", "--style", str(style)).exit_code == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "The best defense has the highest mean accuracy − 2.5 × (AUC − 0.5)." in page
    assert "DP-SGD, ε = 2" in page and "Handwritten digits" in page
    assert command("--within", "7").exit_code == 0
    assert "within 7 points" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for options in (["--weight", "-1"], ["--within", "nan"], ["--style", str(tmp_path / "none.yaml")]):
        result = command(*options)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
