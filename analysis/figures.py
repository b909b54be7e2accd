"""All figures of a report, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from analysis import style
from analysis.figure_inversion import mse_by_layer, reconstructions
from analysis.figure_roc import roc_curves
from analysis.figure_tradeoff import pareto, summary_scatter
from analysis.load import Results
from analysis.measurements import Measurements
from analysis.style import FigureFile


def write_figures(results: Results, measured: Measurements, directory: Path) -> list[FigureFile]:
    """Writes every figure under `directory`, in the order of the report; one that cannot be made says why."""
    for name in ("pareto", "roc", "figure4", "figure5", "figure6"):
        for stale in directory.glob(f"{name}*"):  # of a report with other datasets or splits
            if stale.suffix in (".png", ".svg"):
                stale.unlink()
    with style.style():
        return [
            *pareto(measured, directory),
            *roc_curves(results, measured, directory),
            mse_by_layer(measured, directory),
            *reconstructions(measured, directory),
            summary_scatter(measured, directory),
        ]
