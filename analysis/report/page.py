"""The HTML page. It is self-contained: images and styles are inlined, and nothing is fetched."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from analysis import naming
from analysis.figures.style import DPI, FigureFile
from analysis.load import Results
from analysis.measure.recipes import unequal
from analysis.measure.targets import Measurements
from analysis.report.answer import QUESTION, answer_paragraphs
from analysis.report.exposed import exposed
from analysis.report.findings import Finding, about_the_attacks, about_the_runs, summarize
from analysis.report.glossary import COHORT_TERMS
from analysis.report.runs import data_table, failures, provenance
from analysis.studies.base import Chapter, Study
from analysis.tables.as_html import rows_html, table_html
from analysis.tables.model import Table


def page_html(
    results: Results,
    measured: Measurements,
    chapters: list[tuple[Study, Chapter]],
    tables: list[Table],
    figures: list[FigureFile],
) -> str:
    """The page of a report: its summary, the chapters of the studies, `tables` of any sweep, figures and provenance."""
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=_title(results),
            subtitle=_subtitle(results, measured),
            question=QUESTION,
            answer=answer_paragraphs(measured),
            findings=_findings(results, measured, [chapter for _, chapter in chapters]),
            chapters=[(study, chapter, study.is_own(results)) for study, chapter in chapters],
            datasets=[naming.display(dataset) for dataset in measured.datasets],
            unequal=_unequal(measured),
            tables=tables,
            exposed=exposed(results, measured),
            cohort_terms=COHORT_TERMS if measured.primaries else (),
            figures=[(figure, *_inlined(figure)) for figure in figures],
            failures=failures(results),
            provenance=provenance(results.trials),
            data=data_table(results.trials),
        )
    )


def sweep_names(results: Results) -> list[str]:
    """The names of the sweeps that gave the results."""
    return [str(name) for name in results.trials["sweep"].dropna().unique()]


def _findings(results: Results, measured: Measurements, chapters: list[Chapter]) -> list[Finding]:
    of_studies = [finding for chapter in chapters for finding in chapter.findings]
    # If a chapter covers all results, findings by dataset would repeat it.
    general = [] if any(chapter.covers_all for chapter in chapters) else summarize(results, measured)
    return [*general, *about_the_attacks(results, measured), *of_studies, *about_the_runs(results, measured)]


def _environment() -> Environment:
    # Labels and error texts come from users' files, so everything is escaped.
    environment = Environment(
        loader=PackageLoader("analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(table_html=table_html, rows_html=rows_html)
    return environment


def _unequal(measured: Measurements) -> list[str]:
    """Which compared defenses were trained by different recipes, and how the recipes differ."""
    rows = [(measured.row_label(*row), unequal(measured, *row)) for row in measured.rows()]
    return [f"{label}: {words}" for label, words in rows if words]


def _title(results: Results) -> str:
    sweeps = sweep_names(results)
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
    """The PNG in base64, and the width in CSS pixels that gives all figures the same text size."""
    if figure.png is None:
        return "", 0
    with Image.open(figure.png) as image:
        width = round(image.width / DPI * 110)
    return base64.b64encode(figure.png.read_bytes()).decode("ascii"), width
