"""Writes everything a reader gets: tables as CSV and LaTeX, figures as PNG and SVG, and one HTML page."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from analysis.load import Results, load
from analysis.measure.answer import Preference
from analysis.measure.roc import roc
from analysis.measure.targets import measure
from analysis.presentation import Presentation, applied
from analysis.report.figures import is_ours, write_figures
from analysis.report.page import page_html, sweep_names
from analysis.studies.base import chapters
from analysis.tables.as_csv import table_csv
from analysis.tables.as_latex import table_latex
from analysis.tables.attacks import attack_table
from analysis.tables.recipes import recipe_table
from analysis.tables.searches import search_table
from analysis.tables.summary import summary_table

_STALE_S = 86400.0


def write_report(
    results_dir: Path,
    out_dir: Path | None = None,
    copy: Callable[[str, Path], None] = lambda name, path: None,
    preference: Preference | None = None,
    presentation: Presentation | None = None,
) -> Path:
    """Writes the report of `results_dir` under `out_dir` (default: its folder `report`) only. Returns the page's path.

    The `preference` says which defense is the best, the `presentation` how arms are named, ordered and drawn.

    The report is made in a temporary folder and then moved file by file, the page last. Readers, and other processes that
    make the same report, therefore see only complete files. `copy` is called with each file's name below `out_dir` and path.

    Raises:
        ResultsError: the results cannot be read.
    """
    results = load(Path(results_dir))
    out = Path(out_dir) if out_dir is not None else results.directory / "report"
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".making-*"):  # left by a process that was killed
        with contextlib.suppress(FileNotFoundError):  # the process may have just ended
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as name:
        made = Path(name)
        with applied(presentation or Presentation()):
            page = _make(results, made, preference or Preference())
        files = [path for path in sorted(made.rglob("*")) if path.is_file() and path != page]
        places = [path.relative_to(made) for path in (*files, page)]
        for place in places:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            (made / place).replace(out / place)
    written = {place.name for place in places}
    for stale in (out / "figures").glob("*"):  # left by an earlier report on other datasets or splits
        if is_ours(stale.name) and stale.name not in written:
            stale.unlink(missing_ok=True)
    for place in places:
        copy(place.as_posix(), out / place)
    return out / page.name


def _make(results: Results, out: Path, preference: Preference) -> Path:
    """Writes all files under `out`. Returns the page's path."""
    measured = measure(results)
    made = chapters(results, measured)
    general = [summary_table(measured), attack_table(results, measured), recipe_table(measured)]
    if len(results.search_runs):
        general.append(search_table(results))
    sweep = "-".join(sweep_names(results)) or "sweep"
    for table in [*(table for _, chapter in made for table in chapter.tables), *general]:
        _write(out / "tables" / f"{table.name}.csv", table_csv(table))
        _write(out / "tables" / f"{table.name}.tex", table_latex(table, sweep))
    curves = roc(results, measured)
    figures = write_figures(measured, curves, out / "figures", [chapter for _, chapter in made])
    page = page_html(results, measured, made, general, figures, curves, preference)
    return _write(out / "report.html", page)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
