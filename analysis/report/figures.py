"""All figures of a report, as PNG and SVG: those of every sweep, and those of the studies."""

from __future__ import annotations

from pathlib import Path

from analysis import studies
from analysis.figures import style
from analysis.figures.roc import roc_curves
from analysis.figures.style import FigureFile
from analysis.figures.tradeoff import pareto
from analysis.load import Results
from analysis.measure.targets import Measurements
from analysis.studies.base import Chapter

_MOST_LABELS = 12
"""The most defenses that can be distinguished in one panel."""


def is_ours(name: str) -> bool:
    """Whether a file of that name is a figure of this report or of an earlier one."""
    begins = ("pareto", "roc", *(beginning for study in studies.found() for beginning in study.figure_names))
    return name.startswith(begins) and name.endswith((".png", ".svg"))


def write_figures(
    results: Results, measured: Measurements, directory: Path, chapters: list[Chapter]
) -> list[FigureFile]:
    """Writes every figure under `directory`, in the order of the report. A figure that cannot be made says why.

    The general figures are left out if one chapter covers all results and has more defenses than one panel can show.
    """
    with style.style():
        of_studies = [figure for chapter in chapters for figure in chapter.draw(directory)]
        if any(chapter.covers_all for chapter in chapters) and len(measured.defenses) > _MOST_LABELS:
            return of_studies
        return [*pareto(measured, directory), *roc_curves(results, measured, directory), *of_studies]
