"""Writes everything a reader gets: tables as CSV and LaTeX, figures as PNG and SVG, and one HTML page.

The page is whole in itself: images are inlined, styles too, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from analysis import naming
from analysis.figures.style import DPI, FigureFile
from analysis.figures.write import is_ours, write_figures
from analysis.load import Results, load
from analysis.measure.measurements import Measurements, measure
from analysis.measure.recipes import recipe_table, unequal
from analysis.report.findings import Finding, about_the_runs, summarize
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.claims import judge_factors
from analysis.studies.lin2020.findings import summarize_factors
from analysis.studies.lin2020.study import FactorStudy, factor_study
from analysis.studies.lin2020.tables import factor_sheets
from analysis.studies.lomurno2022 import numbers as paper
from analysis.studies.lomurno2022.claims import judge
from analysis.tables import output as table_output
from analysis.tables import sheets, tables

_STALE_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial or an attack that failed: what it was, the last line of its error, and all of it."""

    kind: str
    what: str
    last_line: str
    error: str


def write_report(
    results_dir: Path, out_dir: Path | None = None, copy: Callable[[str, Path], None] = lambda name, path: None
) -> Path:
    """Writes the report of `results_dir` under `out_dir` (default: its folder `report`); the page's path.

    It is made apart and then takes its place file by file, the page last: whoever reads meanwhile, or makes the same report,
    meets whole files. `copy` is called with the name below `out_dir` and the path of each.

    Raises:
        ResultsError: the results cannot be read.
    """
    results = load(Path(results_dir))
    out = Path(out_dir) if out_dir is not None else results.directory / "report"
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".making-*"):  # by a process that was killed
        with contextlib.suppress(FileNotFoundError):  # of one that has ended just now
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as name:
        made = Path(name)
        page = _make(results, made)
        files = [path for path in sorted(made.rglob("*")) if path.is_file() and path != page]
        places = [path.relative_to(made) for path in (*files, page)]
        for place in places:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            (made / place).replace(out / place)
    written = {place.name for place in places}
    for stale in (out / "figures").glob("*"):  # of a report with other datasets or splits
        if is_ours(stale.name) and stale.name not in written:
            stale.unlink(missing_ok=True)
    for place in places:
        copy(place.as_posix(), out / place)
    return out / page.name


def _make(results: Results, out: Path) -> Path:
    """Writes all files under `out`, the page's path."""
    measured = measure(results)
    study = factor_study(results, measured)
    made = (
        []
        if study is not None and study.pure
        else [
            tables.accuracy_table(measured),
            tables.time_table(measured),
            tables.membership_table(measured),
            tables.inversion_table(measured),
        ]
    )
    of_factors = [] if study is None else factor_sheets(study)
    summary = tables.summary_table(measured)
    recipes = recipe_table(measured)
    sweep = "-".join(_sweeps(results)) or "sweep"
    for table in made:
        _write(out / "tables" / f"{table.name}.csv", table_output.table_csv(table))
        _write(out / "tables" / f"{table.name}.tex", table_output.table_latex(table, sweep))
    _write(out / "tables" / "table5.csv", table_output.summary_csv(summary))
    _write(out / "tables" / "table5.tex", table_output.summary_latex(summary, sweep))
    for sheet in [*of_factors, recipes]:
        _write(out / "tables" / f"{sheet.name}.csv", sheets.sheet_csv(sheet))
        _write(out / "tables" / f"{sheet.name}.tex", sheets.sheet_latex(sheet, sweep))
    figures = write_figures(results, measured, out / "figures", study)
    page = _environment().get_template("report.html.jinja").render(
        title=_title(results),
        subtitle=_subtitle(results, measured),
        findings=_findings(results, measured, study),
        claims=judge(measured),
        is_paper_sweep=paper.SWEEP in set(results.trials["sweep"]),
        datasets=[naming.display(dataset) for dataset in measured.datasets],
        citation=paper.CITATION,
        factor_claims=[] if study is None else judge_factors(study),
        factor_citation=lin2020.CITATION,
        is_factor_sweep=lin2020.SWEEP in set(results.trials["sweep"]),
        sheets=of_factors,
        recipes=recipes,
        unequal=_unequal(measured),
        tables=made,
        summary=summary,
        summary_title=table_output.SUMMARY_TITLE if made else table_output.SUMMARY_TITLE.split(". ", 1)[1],
        long_summary=study is not None,
        figures=[(figure, *_inlined(figure)) for figure in figures],
        failures=_failures(results),
        provenance=_provenance(results.trials, study),
        data=_data(results.trials),
    )  # fmt: skip
    return _write(out / "report.html", page)


def _findings(results: Results, measured: Measurements, study: FactorStudy | None) -> list[Finding]:
    if study is None:
        return summarize(results, measured)
    # A factor study has too many defenses for a paragraph per dataset that names them.
    others = about_the_runs(results, measured) if study.pure else summarize(results, measured)
    return [*summarize_factors(study), *others]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _environment() -> Environment:
    # Labels and error texts come from users' files: everything is escaped.
    environment = Environment(
        loader=PackageLoader("analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["display"] = naming.display
    environment.globals.update(
        ours=table_output.ours_text,
        papers=table_output.paper_text,
        difference=table_output.difference_text,
        estimate=table_output.estimate_text,
        number=table_output.number,
        p_text=table_output.p_text,
        line_details=table_output.line_details,
        shown=sheets.shown,
        below=sheets.below,
        repeats=sheets.repeats,
        visible=sheets.visible,
        zip=zip,
    )
    return environment


def _unequal(measured: Measurements) -> list[str]:
    """Where defenses that are compared were trained by different recipes, and how these differ."""
    rows = [(measured.row_label(*row), unequal(measured, *row)) for row in measured.rows()]
    return [f"{label}: {words}" for label, words in rows if words]


def _sweeps(results: Results) -> list[str]:
    return [str(name) for name in results.trials["sweep"].dropna().unique()]


def _title(results: Results) -> str:
    sweeps = _sweeps(results)
    return f"Privacy and utility: {naming.listing(sweeps)}" if sweeps else "Privacy and utility"


def _subtitle(results: Results, measured: Measurements) -> str:
    def count(number: int, word: str) -> str:
        return f"{number} {word}{'' if number == 1 else 's'}"

    seeds = results.trials["seed"].nunique()
    defenses, datasets = len(measured.defenses), len(measured.datasets)
    parts = [count(defenses, "defense"), count(datasets, "dataset"), count(seeds, "seed")]
    if len(measured.settings) > 1:
        parts.insert(2, count(len(measured.settings), "setting"))
    return f"{' × '.join(parts)}, {count(len(results.trials), 'trial')}"


def _inlined(figure: FigureFile) -> tuple[str, int]:
    """The PNG in base64, and the width in CSS pixels at which all figures have text of one size."""
    if figure.png is None:
        return "", 0
    with Image.open(figure.png) as image:
        width = round(image.width / DPI * 110)
    return base64.b64encode(figure.png.read_bytes()).decode("ascii"), width


def _failures(results: Results) -> list[Failure]:
    trials = results.trials
    names = {
        str(row.target_id): f"{naming.display(str(row.defense))} on {naming.display(str(row.dataset))}, "
        f"{row.split} split, seed {row.seed}"
        for row in trials.itertuples()
    }
    failed = [
        _failure("trial", names[str(row.target_id)], row.error)
        for row in trials[trials["status"] != "finished"].itertuples()
    ]
    attacks = results.attacks
    for row in attacks[attacks["status"] != "finished"].itertuples():
        score = "" if pd.isna(row.score_name) else f"/{row.score_name}"
        target = names.get(str(row.target_id), f"target {row.target_id}")
        failed.append(_failure("attack", f"{row.attack}{score} against {target}", row.error))
    return failed


def _failure(kind: str, what: str, error: object) -> Failure:
    text = error.strip() if isinstance(error, str) and error.strip() else "No error text was recorded."
    last = text.splitlines()[-1]
    return Failure(
        kind=kind,
        what=what,
        last_line=last if len(last) <= 200 else last[:200] + "…",
        error=text if len(text) <= 4000 else "…" + text[-4000:],
    )


_PROVENANCE = {
    "sweeper_version": "sweeper",
    "git_commit": "Commit",
    "python_version": "Python",
    "torch_version": "PyTorch",
    "opacus_version": "Opacus",
    "device": "Device",
    "machine": "Machine",
    "threads": "CPU threads",
    "architecture": "Architecture of the targets",
}


_FACTOR_PROVENANCE = {"optimizer": "Optimizer", "learning_rate": "Learning rate", "epochs": "Epochs"}


def _provenance(trials: pd.DataFrame, study: FactorStudy | None) -> list[tuple[str, str]]:
    """What the trials ran on; every value that occurs is named."""
    rows = []
    named = _PROVENANCE if study is None else {**_PROVENANCE, **_FACTOR_PROVENANCE}
    for column, name in named.items():
        known = trials[column].dropna().unique()
        values = sorted(f"{value:g}" if isinstance(value, float) else str(value) for value in known)
        if column == "git_commit" and bool(trials["git_dirty"].fillna(False).any()):
            values.append("with changes that are in no commit")
        rows.append((name, ", ".join(values) or "not recorded"))
    started = trials["started_at"].dropna()
    if len(started):
        first, last = (f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (started.min(), started.max()))
        rows.append(("Started", first if first == last else f"{first} to {last}"))
    return rows


def _data(trials: pd.DataFrame) -> list[tuple[str, ...]]:
    """Per dataset and split: label, split, SHA-256, and how many members, non-members and test examples."""
    columns = ["dataset", "split", "dataset_sha256", "n_train", "n_non_members", "n_test"]
    known = trials[trials["status"] == "finished"][columns].drop_duplicates()

    def text(value: object) -> str:
        if pd.isna(value):
            return table_output.EMPTY
        return f"{value:,.0f}" if isinstance(value, int | float) else str(value)

    return [tuple(text(value) for value in row) for row in known.itertuples(index=False)]
