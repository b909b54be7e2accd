"""The HTML page. It is self-contained: images and styles are inlined, and nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from vl_convert import javascript_bundle

from analysis import naming
from analysis.figures.style import DPI, FigureFile, looks
from analysis.load import Results
from analysis.measure.answer import Preference
from analysis.measure.recipes import unequal
from analysis.measure.roc import Curves
from analysis.measure.summary import summaries
from analysis.measure.targets import Measurements
from analysis.report.answer import QUESTION, rule_sentence
from analysis.report.exposed import exposed
from analysis.report.figures import Figures
from analysis.report.findings import Finding, about_the_attacks, about_the_runs, summarize
from analysis.report.glossary import COHORT_TERMS
from analysis.report.markers import MARKERS
from analysis.report.panels import as_json, bound_text, ends_text, mean_text, panels
from analysis.report.runs import data_table, failures, provenance
from analysis.studies.base import Chapter, Study
from analysis.tables.as_html import rows_html, table_html
from analysis.tables.model import Table

_COLORS = 128


def page_html(
    results: Results,
    measured: Measurements,
    chapters: list[tuple[Study, Chapter]],
    tables: list[Table],
    figures: Figures,
    curves: Mapping[tuple[str, str], Curves],
    preference: Preference,
) -> str:
    """The page of a report: the answer, the chapters of the studies, `tables` of any sweep, figures and provenance."""
    shown = panels(measured, summaries(measured), looks(measured), preference)
    keys = {(panel.setting, panel.dataset): panel.key for panel in shown}
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=_title(results),
            subtitle=_subtitle(results, measured),
            question=QUESTION,
            rule=rule_sentence(preference),
            panels=shown,
            panel_keys=keys,
            pictures={keys[place]: _inlined(figure)[0] for place, figure in figures.tradeoffs.items()},
            data_json=as_json(shown, curves),
            vega=_vega(),
            findings=_findings(results, measured, [chapter for _, chapter in chapters]),
            chapters=[(study, chapter, study.is_own(results)) for study, chapter in chapters],
            datasets=[naming.display(dataset) for dataset in measured.datasets],
            unequal=_unequal(measured),
            tables=tables,
            exposed=exposed(results, measured),
            cohort_terms=COHORT_TERMS if measured.primaries else (),
            figures=[
                (figure, *_inlined(figure))
                for figure in (*(one for one in figures.general if one.missing), *figures.of_studies)
            ],
            failures=failures(results),
            provenance=provenance(results.trials),
            data=data_table(results.trials),
        )
    )


@cache
def _vega() -> Markup:
    """Vega and its parts, below their licenses, as one script without imports that sets `window.vegaEmbed`."""
    licenses = (Path(__file__).parent / "templates" / "vega_licenses.txt").read_text(encoding="utf-8")
    bundle = javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return Markup(f"/*! {licenses}*/\n{bundle}")


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
    environment.globals.update(
        table_html=table_html,
        rows_html=rows_html,
        mean_text=mean_text,
        ends_text=ends_text,
        bound_text=bound_text,
        markers=MARKERS,
    )
    return environment


def _unequal(measured: Measurements) -> list[str]:
    """Which compared defenses were trained by different recipes, and how the recipes differ."""
    labels: dict[str, list[str]] = {}
    for row in measured.rows():
        labels.setdefault(unequal(measured, *row), []).append(measured.row_label(*row))
    return [f"{naming.listing(rows)}: {words}" for words, rows in labels.items() if words]


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
    """The PNG in base64, and the width in CSS pixels that gives all figures the same text size.

    Figures have few colors, so a palette makes the page several times smaller.
    """
    if figure.png is None:
        return "", 0
    with Image.open(figure.png) as image:
        width = round(image.width / DPI * 110)
        small = io.BytesIO()
        few = image.convert("RGB").quantize(_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii"), width
