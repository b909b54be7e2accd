"""All figures of a report, as PNG, SVG and PDF: those of every sweep, and those of the studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis import studies
from analysis.figures import style
from analysis.figures.roc import roc_curves
from analysis.figures.style import FigureFile
from analysis.figures.tradeoff import tradeoff
from analysis.measure.roc import Curves
from analysis.measure.targets import Measurements
from analysis.studies.base import Chapter


def is_ours(name: str) -> bool:
    """Whether a file of that name is a figure of this report or of an earlier one."""
    begins = (
        "tradeoff",
        "pareto",
        "roc",
        *(beginning for study in studies.found() for beginning in study.figure_names),
    )
    return name.startswith(begins) and name.endswith((".png", ".svg", ".pdf"))


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures that were written: the trade-off of each setting's key and dataset, others of any sweep, and those of studies."""

    tradeoffs: Mapping[tuple[str, str], FigureFile]
    general: tuple[FigureFile, ...]
    of_studies: tuple[FigureFile, ...]


def write_figures(
    measured: Measurements, curves: Mapping[tuple[str, str], Curves], directory: Path, chapters: list[Chapter]
) -> Figures:
    """Writes every figure under `directory`. A figure that cannot be made says why."""
    with style.style():
        return Figures(
            tradeoffs={
                (setting.key, dataset): tradeoff(measured, setting, dataset, directory)
                for setting, dataset in measured.rows()
            },
            general=tuple(roc_curves(curves, measured, directory)),
            of_studies=tuple(figure for chapter in chapters for figure in chapter.draw(directory)),
        )
