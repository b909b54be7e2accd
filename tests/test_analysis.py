"""The analysis: numbers equal those computed by hand, and nothing that is missing breaks the report."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from analysis_fixture import DEFENSES, LAYERS, Rows, area, fail_trial, make_rows, write_tables
from scipy import stats

from analysis.figures import roc as figure_roc
from analysis.figures import style
from analysis.load import Results, ResultsError, Scores, load, read_scores
from analysis.measure.answer import Preference
from analysis.measure.inversion import layers
from analysis.measure.roc import roc, true_positive_rate
from analysis.measure.summary import summaries
from analysis.measure.targets import Measurements, measure
from analysis.measure.tradeoff import pareto_front
from analysis.naming import file_name, latex, scientific
from analysis.report import write as report_module
from analysis.report.runs import failures
from analysis.report.write import write_report
from analysis.statistics.estimates import estimate, sign
from analysis.studies.lomurno2022.claims import judge
from analysis.studies.lomurno2022.tables import accuracy_table, inversion_table, membership_table, time_table
from analysis.tables.model import Mean, Table
from analysis.tables.text import number


def measured_from(rows: Rows, directory: Path) -> Measurements:
    return measure(load(write_tables(directory, rows)))


def values(table: Table, key: str) -> list[object]:
    """What the CSV has in a column of labels or numbers."""
    place = [column.key for column in table.columns].index(key)
    return [getattr(row[place], "value", row[place]) for row in table.rows]


def cell(table: Table, label: str, column: str, quantity: str) -> Mean:
    """The mean of a column in the row of this dataset or layer, and quantity."""
    labels = values(table, "layer" if table.name == "table4" else "dataset")
    row = table.rows[list(zip(labels, values(table, "quantity"), strict=True)).index((label, quantity))]
    found = row[[column.key for column in table.columns].index(column)]
    assert isinstance(found, Mean)
    return found


def trial(rows: Rows, target: str) -> dict[str, object]:
    return next(row for row in rows["trials"] if row["target_id"] == target)


@pytest.fixture(scope="module", autouse=True)
def small_figures() -> Iterator[None]:
    """Figures of few pixels: drawing is most of the time that a report takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two datasets, a failed trial, a failed attack, and labels that try to break out."""
    rows = make_rows(datasets=("mnist", "<script>alert(1)</script>"), defenses=("baseline", "dp_eps2", "l2", "a$b&_"))
    fail_trial(rows, "main-mnist-l2-1", "Traceback\nValueError: <img src=x> went wrong")
    rows["attacks"][0].update(status="failed", error="MemoryError: attack died", auc=None, advantage=None)
    return write_report(write_tables(tmp_path_factory.mktemp("results"), rows))


# --- statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_interval_is_scipys_t_interval(n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n)
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found is not None
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), n)


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    one = estimate([0.3, None, float("nan")])
    assert one is not None
    assert (one.mean, one.low, one.high, one.n) == (0.3, None, None, 1)
    assert estimate([None, float("nan")]) is None
    assert sign(one) is None


def test_an_interval_lies_above_below_or_around_a_reference() -> None:
    low, high, wide = estimate([0.0, 0.1]), estimate([9.0, 9.1]), estimate([-50.0, 50.0])
    assert (sign(high), sign(wide), sign(low, 5.0)) == (1, 0, -1)


def test_pareto_front_holds_exactly_the_points_that_none_dominates() -> None:
    rng = np.random.default_rng(1)
    for size in range(1, 12):
        # Coarse values, so that ties happen.
        points = {str(i): (float(u), float(r)) for i, (u, r) in enumerate(rng.integers(0, 5, (size, 2)))}
        front = pareto_front(points)

        def dominates(a: str, b: str, points: dict[str, tuple[float, float]] = points) -> bool:
            (ua, ra), (ub, rb) = points[a], points[b]
            return ua >= ub and ra <= rb and (ua > ub or ra < rb)

        for name in points:
            assert (name in front) == (not any(dominates(other, name) for other in points))
        assert [points[name][1] for name in front] == sorted(points[name][1] for name in front)


# --- tables -----------------------------------------------------------------------------------


def test_accuracy_is_the_mean_over_seeds_with_the_papers_number_beside_it(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",))
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        trial(rows, f"main-mnist-dp_eps2-{seed}")["test_accuracy"] = accuracy
    found = cell(accuracy_table(measured_from(rows, tmp_path)), "mnist", "dp_eps2", "test_accuracy")
    assert found.ours is not None
    half = stats.t.ppf(0.975, 2) * np.std([0.90, 0.92, 0.97], ddof=1) / np.sqrt(3)
    assert found.ours.mean == pytest.approx(0.93)
    assert (found.ours.low, found.ours.high) == (pytest.approx(0.93 - half), 1.0)  # no accuracy lies above 1
    assert found.paper == 0.942  # Lomurno & Matteucci 2022, Table 1
    assert found.difference == pytest.approx(0.93 - 0.942)


def test_time_ratio_is_paired_by_seed(tmp_path: Path) -> None:
    rows = make_rows(datasets=("cifar10",))
    for seed, (baseline, private) in enumerate([(1.0, 10.0), (2.0, 40.0), (4.0, 120.0)]):
        trial(rows, f"main-cifar10-baseline-{seed}")["train_time_s"] = baseline
        trial(rows, f"main-cifar10-dp_eps2-{seed}")["train_time_s"] = private
    found = cell(time_table(measured_from(rows, tmp_path)), "cifar10", "dp_eps2", "time_ratio")
    assert found.ours is not None
    assert found.ours.mean == pytest.approx(20.0)  # of 10, 20 and 30
    assert found.paper == pytest.approx(3029.8 / 73.3)


def test_mse_change_is_averaged_over_datasets_within_a_seed(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist", "cifar10"), defenses=("baseline", "l2"), seeds=(0, 1))
    wanted = {"mnist": (0.1, 0.2), "cifar10": (0.5, 0.25)}  # baseline, l2: +100 % and −50 %
    for row in rows["reconstructions"]:
        _, dataset, defense, seed = row["target_id"].split("-")
        row["mse_test"] = wanted[dataset][defense == "l2"] * (1 + int(seed) * (defense == "l2"))
    # seed 0: (+100 − 50)/2 = 25; seed 1, the defended errors doubled: (+300 + 0)/2 = 150
    found = cell(inversion_table(measured_from(rows, tmp_path)), "prediction", "l2", "mse_change")
    assert found.ours is not None
    assert found.ours.mean == pytest.approx((25 + 150) / 2)
    assert (found.ours.n, found.paper) == (2, 73.8)


def test_a_seed_without_every_dataset_does_not_enter_the_average(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist", "cifar10"), defenses=("baseline", "l2"))
    fail_trial(rows, "main-cifar10-l2-1")
    found = cell(inversion_table(measured_from(rows, tmp_path)), "conv1", "l2", "mse_change")
    assert found.ours is not None
    assert found.ours.n == 2


def test_membership_takes_the_best_of_row_with_the_most_candidates(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",), seeds=(0,))
    best = next(row for row in rows["attacks"] if row["attack"] == "best_of" and row["target_id"] == "main-mnist-l2-0")
    later = best | {"attack_id": "later", "auc": 0.7, "paper_protocol_auc": 0.8}
    later["candidates"] = [*best["candidates"], "shadow/shadow"]
    rows["attacks"].insert(0, later)
    table = membership_table(measured_from(rows, tmp_path))
    honest, papers = (cell(table, "mnist", "l2", name) for name in ("auc", "paper_protocol_auc"))
    assert honest.ours is not None
    assert papers.ours is not None
    assert (honest.ours.mean, papers.ours.mean, papers.paper, honest.paper) == (0.7, 0.8, 0.567, None)
    # One seed: the attack's own interval over examples, and said to be that.
    assert (honest.ours.over, honest.ours.low) == ("examples", best["auc_low"])


@pytest.mark.slow
def test_attacks_without_an_auc_change_no_result(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",), n=20)
    before = measured_from(rows, tmp_path / "before")
    for row in [row for row in rows["attacks"] if row["attack"] == "best_of"]:
        unranked = row | dict.fromkeys(("auc", "auc_low", "auc_high", "advantage", "tpr_at_fpr_0.1"))
        unranked |= dict.fromkeys(("candidates", "paper_protocol_auc", "paper_protocol_score"))
        decided = {"decided_tpr": 0.9, "decided_fpr": 0.5, "balanced_accuracy": 0.7}
        rows["attacks"].insert(0, unranked | {"attack": "blind_mi", "attack_id": "a", "score_name": "diff_w"} | decided)
        rows["attacks"].insert(
            0, unranked | {"attack": "tail", "attack_id": "b", "score_name": None, "tnr_at_fnr_0.1": 0.2}
        )
    after = measured_from(rows, tmp_path / "after")
    pd.testing.assert_frame_equal(after.frame, before.frame)
    page = write_report(tmp_path / "after").read_text(encoding="utf-8")
    assert not re.search(r">\s*(nan|None|NaT|inf)\b", page)


def test_the_papers_tables_use_the_official_split_where_there_is_one(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",), parts={"quarters": "quarters", "tables": "official"})
    measured = measured_from(rows, tmp_path)
    assert set(values(accuracy_table(measured), "split")) == {"official"}
    assert {row.setting.split for row in summaries(measured)} == {"official", "quarters"}


def test_parts_that_repeat_labels_are_kept_apart_and_reruns_superseded(tmp_path: Path) -> None:
    rows = make_rows(parts={"short": "half", "long": "half"}, defenses=("baseline", "l2"))
    measured = measured_from(rows, tmp_path / "parts")
    assert (len(measured.settings), len(measured.frame), measured.superseded) == (2, 12, 0)
    rows = make_rows(defenses=("baseline", "l2"))
    newer = trial(rows, "main-digits-l2-0") | {"target_id": "newer", "test_accuracy": 0.123}
    newer["started_at"] = newer["started_at"].replace(year=2026)  # type: ignore[attr-defined]
    rows["trials"].insert(0, newer)
    measured = measured_from(rows, tmp_path / "rerun")
    assert measured.superseded == 1
    assert 0.123 in set(measured.frame["test_accuracy"])


def test_tpr_falls_back_to_the_smallest_rate_that_all_have(tmp_path: Path) -> None:
    rows = make_rows()
    assert {row.fpr for row in summaries(measured_from(rows, tmp_path / "a"))} == {0.1}
    for row in rows["attacks"]:
        row["tpr_at_fpr_0.01"] = 0.02 if row["attack"] == "best_of" else None
    summary = summaries(measured_from(rows, tmp_path / "b"))
    assert {row.fpr for row in summary} == {0.01}
    assert summary[0].tpr is not None
    assert summary[0].tpr.mean == pytest.approx(0.02)


def test_summary_says_what_is_guaranteed_and_what_is_not(tmp_path: Path) -> None:
    summary = {row.defense: row for row in summaries(measured_from(make_rows(), tmp_path))}
    assert summary["dp_eps2"].epsilon_spent == pytest.approx(1.987)
    assert summary["dp_eps2"].guarantee.startswith("ε = 1.99, δ = 1e-5 (PRV accountant, Poisson batches")
    assert summary["l2"].guarantee == "no formal guarantee: no noise is added to the gradients"


def test_csv_holds_full_precision_and_latex_is_escaped(report: Path) -> None:
    with (report.parent / "tables" / "table1.csv").open(encoding="utf-8") as file:
        found = {row["dataset"]: row for row in csv.DictReader(file)}
    row = found["mnist"]
    assert row["l2_n_seeds"] == "2"  # the third failed
    assert float(row["l2_difference"]) == float(row["l2_mean"]) - float(row["l2_paper"])
    assert len(row["l2_mean"]) > 10
    text = (report.parent / "tables" / "table1.tex").read_text(encoding="utf-8")
    assert r"a\$b\&\_" in text
    assert r"\toprule" in text


def test_numbers_are_shown_with_true_signs() -> None:
    assert number(-0.04, 1, signed=True) == "0.0"
    assert number(-1.26, 1, signed=True) == "−1.3"
    assert number(None, 1) == "—"
    assert (scientific(1e-5), scientific(1.8e-4)) == ("1e-5", "1.8e-4")
    assert latex("50 % & ε") == r"50 \% \& $\varepsilon$"
    assert file_name("a/b") != file_name("a b")
    assert "/" not in file_name("../x")


# --- scores and curves ------------------------------------------------------------------------


def test_roc_is_the_largest_tpr_at_most_at_each_fpr() -> None:
    rng = np.random.default_rng(3)
    member = rng.random(80) < 0.5
    score = np.round(rng.standard_normal(80) + member, 1)  # rounded, so that ties happen
    grid = np.linspace(0.02, 1, 30)
    found = true_positive_rate(Scores(example_id=np.arange(80), is_member=member, score=score), grid)
    thresholds = [*np.unique(score), np.inf]
    rates = [((score[member] >= t).mean(), (score[~member] >= t).mean()) for t in thresholds]
    expected = [max(tpr for tpr, fpr in rates if fpr <= limit + 1e-12) for limit in grid]
    assert found == pytest.approx(expected)


def test_the_scores_of_the_selected_candidate_give_its_auc(tmp_path: Path) -> None:
    results = load(write_tables(tmp_path, make_rows(seeds=(0,))))
    frame = measure(results).frame
    scores = dict(read_scores(results, dict.fromkeys(frame["score_key"], 1e9)))
    assert len(scores) == len(DEFENSES)
    at_once = dict(read_scores(results, {key: len(known.score) for key, known in scores.items()}))
    assert all((at_once[key].score == known.score).all() for key, known in scores.items())
    for row in frame.itertuples():
        known = scores[row.score_key]
        expected = area(known.score[known.is_member], known.score[~known.is_member])
        assert row.paper_protocol_auc == pytest.approx(expected)


@pytest.mark.parametrize("n_non_members", [None, 1])
def test_roc_curves_are_drawn_where_non_members_are_uncounted_or_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_non_members: int | None
) -> None:
    rows = make_rows(seeds=(0,), datasets=("mnist",))
    for row in rows["trials"]:
        row["n_non_members"] = n_non_members
    results = load(write_tables(tmp_path, rows))
    drawn = []
    monkeypatch.setattr(figure_roc, "save", lambda figure, directory, name: drawn.append(figure.axes[0]))
    measured = measure(results)
    figure_roc.roc_curves(roc(results, measured), measured, tmp_path)
    curves = drawn[0].lines[1:]  # after that of guessing
    assert len(curves) == len(DEFENSES)
    assert all(np.ptp(curve.get_xdata()) > 0 for curve in curves)


# --- the report -------------------------------------------------------------------------------


def test_report_escapes_labels_and_fetches_nothing(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 3, "the data, Vega, and ours"
    page = page[: page.index("<script")] + page[page.rindex("</script>") :]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x>" not in page
    targets = re.findall(r"""<[^>]*\s(?:src|href)\s*=\s*["']?([^"'\s>]{1,40})""", page)
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not re.search(r"<(link|script|iframe|object)\b|@import|url\(", page)


def test_report_lists_every_failure(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "ValueError: &lt;img src=x&gt; went wrong" in page
    assert "MemoryError: attack died" in page
    assert "23 of 24 trials finished, 1 failed" in page
    assert "2 failed; none enters any number above." in page


@pytest.mark.slow
def test_a_comparison_that_failed_is_a_failure(tmp_path: Path) -> None:
    rows = make_rows()
    first = rows["trials"][0]["target_id"]
    row: dict[str, Any] = {"comparison": "tpvd", "members": [first, "0" * 16]}
    rows["comparisons"] = [
        row | {"comparison_id": "1" * 16, "status": "finished", "error": None},
        row | {"comparison_id": "2" * 16, "status": "failed", "error": "ValueError: of two models"},
    ]
    (failure,) = [each for each in failures(load(write_tables(tmp_path, rows))) if each.kind == "comparison"]
    assert failure.what.startswith("tpvd of ") and ", seed" in failure.what
    assert failure.last_line == "ValueError: of two models"
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "1 of 2 comparisons of targets finished." in page
    assert "Comparison: tpvd of" in page


def test_figures_are_written_as_png_svg_and_pdf(report: Path) -> None:
    names = {path.stem for path in (report.parent / "figures").glob("*.png")}
    assert {"tradeoff_mnist", "roc", "figure4", "figure5_mnist", "figure6"} <= names
    for ending in ("svg", "pdf"):
        assert names == {path.stem for path in (report.parent / "figures").glob(f"*.{ending}")}


def test_summary_is_computed_from_the_numbers(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    # Three Gaussian mechanisms of ρ = 0.05, at the best order between 2 and 63.
    epsilon = min(
        0.15 * a + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in map(float, range(2, 64))
    )
    assert (
        "MNIST: 3 private runs in these tables; the 3 finished runs share neither noise nor batches; releasing all of them "
        f"spends ε = {epsilon:.1f} at δ = 1e-5 (RDP)" in page
    )
    assert "Baseline, L2 and a$b&amp;_: no formal guarantee: no noise is added to the gradients." in page


def test_claims_follow_the_numbers(tmp_path: Path) -> None:
    rows = make_rows(datasets=("mnist",))
    for row in rows["reconstructions"]:
        row.update(mse_constant=1.0, mse_untrained=1.0)  # every decoder works
    verdicts = {claim.text: claim.verdict for claim in judge(measured_from(rows, tmp_path / "a"))}
    assert verdicts["L2 raises the reconstruction MSE at the prediction layer."] == "held"
    assert verdicts["Differential privacy at ε = 2 slows training 41 to 50 times."] == "did not hold"
    for row in rows["trials"]:
        if row["defense"].startswith("dp"):
            row["test_accuracy"] = 0.999
    claims = judge(measured_from(rows, tmp_path / "b"))
    assert claims[0].verdict == "did not hold"
    assert claims[0].evidence
    alone = judge(measured_from(make_rows(datasets=("mnist",), seeds=(0,)), tmp_path / "c"))
    assert {claim.verdict for claim in alone} == {"undecided"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no reconstructions", "No reconstructions were recorded"),
        ("no attacks", "No membership attack has a finished best_of row"),
        ("no trials", "No trial finished"),
        ("all failed", "No trial finished"),
        ("no scores", "No scores of a finished best_of selection were recorded"),
        ("no baseline", "What it gains is unknown"),
        ("one seed", "One seed gives no interval"),
        ("one defense", "no formal guarantee"),
        ("no examples", "No example images were recorded"),
        ("null metrics", "No membership attack has a finished best_of row"),
    ],
)
def test_what_is_missing_is_said_and_breaks_nothing(tmp_path: Path, change: str, words: str) -> None:
    seeds = (0,) if change == "one seed" else (0, 1)
    defenses = {"no baseline": ("l2", "dp_eps2"), "one defense": ("my_defense",)}.get(change, ("baseline", "dp_eps2"))
    rows = make_rows(defenses=defenses, seeds=seeds, n=20)
    if change == "no reconstructions":
        rows["reconstructions"] = []
    elif change == "no attacks":
        rows["attacks"], rows["scores"] = [], []
    elif change == "no trials":
        rows = {name: [] for name in rows}
    elif change == "all failed":
        for row in list(rows["trials"]):
            fail_trial(rows, row["target_id"])
    elif change == "no scores":
        rows["scores"] = []
    elif change == "no examples":
        for row in rows["reconstructions"]:
            row["examples"] = None
    elif change == "null metrics":
        for row in rows["attacks"]:
            row.update(status="failed", auc=None, paper_protocol_auc=None, candidates=None, score_name=None)
    page = write_report(write_tables(tmp_path, rows)).read_text(encoding="utf-8")
    assert words in page
    assert not re.search(r">\s*(nan|None|NaT|inf)\b", page)


@pytest.mark.slow
def test_a_report_takes_its_place_when_it_is_whole_and_nothing_else_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tables(tmp_path / "results", make_rows(seeds=(0,), n=5))
    out = tmp_path / "mine"
    (out / "figures").mkdir(parents=True)
    (out / "secret.txt").write_text("not a part of it")
    (out / "report.html").write_text("an older report")
    (out / "figures" / "pareto_gone.png").write_text("of a dataset that is no more")
    (out / "figures" / "mine.png").write_text("not a part of it")
    make = report_module._make

    def make_twice(results: Results, folder: Path, preference: Preference) -> Path:
        page = make(results, folder, preference)
        assert (out / "report.html").read_text() == "an older report", "until the new one is made"
        monkeypatch.setattr(report_module, "_make", make)
        write_report(directory, out)  # another process does the same meanwhile
        return page

    monkeypatch.setattr(report_module, "_make", make_twice)
    copied: dict[str, bytes] = {}
    page = write_report(directory, out, lambda name, path: copied.update({name: path.read_bytes()}))
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert set(written) - set(copied) == {"secret.txt", "figures/mine.png"}
    assert {name: written[name] for name in copied} == copied
    assert list(copied)[-1] == "report.html" and page == out / "report.html"
    assert not list(out.glob(".*"))


def test_a_flipped_bit_in_a_table_that_was_passed_on_is_noticed(tmp_path: Path) -> None:
    directory = write_tables(tmp_path, make_rows(seeds=(0,), n=5))
    path = directory / "trials.parquet"
    rows = pq.read_table(path)
    pq.write_table(
        rows, path, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    place = content.index(b"finished")
    content[place] ^= 2
    path.write_bytes(bytes(content))
    with pytest.raises(ResultsError, match="damaged"):
        load(directory)


def test_layers_keep_the_order_of_the_network(tmp_path: Path) -> None:
    measured = measured_from(make_rows(seeds=(0,)), tmp_path)
    assert layers(measured, measured.settings[0]) == list(LAYERS)


# --- bad input --------------------------------------------------------------------------------


def test_a_missing_damaged_or_foreign_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no results folder"):
        load(tmp_path / "nowhere")
    directory = write_tables(tmp_path, make_rows(seeds=(0,), n=5))
    path = directory / "attacks.parquet"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ResultsError, match=r"no table 'attacks'.*attacks\.parquet is not there"):
        load(directory)
    for damaged in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ResultsError, match=r"attacks\.parquet cannot be read as Parquet") as caught:
            load(directory)
        assert "\n" not in str(caught.value)
    pq.write_table(pq.read_table(directory / "trials.parquet"), path)
    with pytest.raises(ResultsError, match="lacks the columns"):
        load(directory)
    path.write_bytes(whole)
    table = pq.read_table(directory / "trials.parquet")
    text = pa.array(["0.9"] * len(table))
    pq.write_table(
        table.set_column(table.schema.get_field_index("test_accuracy"), "test_accuracy", text),
        directory / "trials.parquet",
    )
    with pytest.raises(ResultsError, match=r"'test_accuracy' holds string, not number"):
        load(directory)


def test_the_command_says_what_is_wrong_in_one_paragraph(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "There is no results folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_analysis_imports_neither_torch_nor_ray_nor_the_rest_of_the_project() -> None:
    code = (
        "import sys, analysis.report.write, analysis.__main__; "
        "bad = {'torch', 'ray', 'opacus', 'sklearn', 'sweeper', 'models', 'attacks', 'matplotlib.pyplot'}; "
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_labels_stand_in_an_order_that_rows_do_not_change(tmp_path: Path) -> None:
    rows = make_rows(defenses=("eps10", "eps2", "l2", "none", "baseline_2"), seeds=(0,), n=5)
    first = measured_from(rows, tmp_path / "a")
    rows["trials"].reverse()
    second = measured_from(rows, tmp_path / "b")
    assert first.defenses == second.defenses == ("l2", "none", "baseline_2", "eps2", "eps10")
    assert first.baseline == "none"
