"""All figures of a report, as PNG and SVG: those of the first paper, of a factor study, or of both."""

from __future__ import annotations

from pathlib import Path

from analysis.figures import style
from analysis.figures.inversion import mse_by_layer, reconstructions
from analysis.figures.roc import roc_curves
from analysis.figures.style import FigureFile
from analysis.figures.tradeoff import pareto, summary_scatter
from analysis.load import Results
from analysis.measure.measurements import Measurements
from analysis.studies.lin2020.figures import factor_figures
from analysis.studies.lin2020.study import FactorStudy

# More labels than that cannot be told apart in one panel.
_MOST_LABELS = 12


def is_ours(name: str) -> bool:
    """Whether a file of that name is a figure of a report, of this one or another."""
    return name.startswith(("pareto", "roc", "figure4", "figure5", "figure6", "lin_")) and name.endswith(
        (".png", ".svg")
    )


def write_figures(
    results: Results, measured: Measurements, directory: Path, study: FactorStudy | None = None
) -> list[FigureFile]:
    """Writes every figure under `directory`, in the order of the report; one that cannot be made says why.

    A factor study alone has nothing for the first paper's Figures 4–6, and most often too many defenses for
    one panel: then trade-off and ROC curves are left out as well.
    """
    with style.style():
        of_factors = factor_figures(study, directory) if study is not None else []
        general: list[FigureFile] = []
        if study is None or not study.pure or len(measured.defenses) <= _MOST_LABELS:
            general = [*pareto(measured, directory), *roc_curves(results, measured, directory)]
        if study is not None and study.pure:
            return [*of_factors, *general]
        return [
            *of_factors,
            *general,
            mse_by_layer(measured, directory),
            *reconstructions(results, measured, directory),
            summary_scatter(measured, directory),
        ]
