"""ROC curves of the membership attack, on logarithmic axes that show low false positive rates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from analysis import naming
from analysis.figures.style import FigureFile, legend_below, looks, new_figure, save, say
from analysis.measure.roc import Curves
from analysis.measure.targets import Measurements, Setting

_PANELS_PER_FIGURE = 6


_OF_PRIMARY = (
    "The upper left is the attacker’s. Mean over seeds of the TPR at each FPR, for the attack that judges each dataset, over all "
    "examples of each target. The axes end at one false alarm among the non-members: nothing was measured below it, and near it a "
    "curve rests on a handful of examples."
)


def roc_curves(curves: Mapping[tuple[str, str], Curves], measured: Measurements, directory: Path) -> list[FigureFile]:
    """One panel per dataset, one curve per defense: the mean over seeds of TPR at each FPR.

    The score is the one that best_of selected for each target, on all of the target's examples. Half of these examples
    were used to select it, so the curve is slightly optimistic. The axes end at 1/n_non_members; nothing was measured below.
    """
    title = "ROC curves of the primary attack" if measured.primaries else "ROC curves of the best membership score"
    if not curves:
        why = "No scores of a finished best_of selection were recorded."
        return [FigureFile(name="roc", title=title, caption="", png=None, missing=why)]
    made = []
    for setting in measured.settings:
        datasets = measured.datasets_of(setting)
        chunks = [datasets[i : i + _PANELS_PER_FIGURE] for i in range(0, len(datasets), _PANELS_PER_FIGURE)]
        for number, chunk in enumerate(chunks):
            name = "roc" if len(measured.settings) == 1 else f"roc_{setting.file_name}"
            name += f"_{number + 1}" if len(chunks) > 1 else ""
            made.append(_figure(measured, curves, setting, chunk, name, title, directory))
    return made


def _figure(
    measured: Measurements,
    curves: Mapping[tuple[str, str], Curves],
    setting: Setting,
    datasets: list[str],
    name: str,
    title: str,
    directory: Path,
) -> FigureFile:
    columns = min(3, len(datasets))
    rows = -(-len(datasets) // columns)
    figure = new_figure(9.4 if columns > 1 else 5.4, 0.9 + rows * (3.5 if columns > 1 else 4.3))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = looks(measured)
    handles: dict[str, Any] = {}
    for axes in panels[len(datasets) :]:
        axes.set_axis_off()
    for axes, dataset in zip(panels, datasets, strict=False):
        axes.set_title(naming.plot_text(dataset))
        found = curves.get((setting.key, dataset))
        if found is None:
            say(axes, "No scores")
            continue
        grid, lowest = found.grid, found.grid[0]
        axes.plot([lowest, 1], [lowest, 1], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
        for defense, mean in found.by_defense.items():
            look = styles[defense]
            drawn = np.maximum(mean, lowest / 2)  # a logarithmic axis cannot show zero
            axes.plot(grid, drawn, color=look.color, linestyle=look.dashes, linewidth=1.7)
            entry = Line2D([], [], color=look.color, linestyle=look.dashes, linewidth=1.7)
            handles.setdefault(defense, entry)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(lowest, 1)
        axes.set_ylim(lowest, 1.05)
        axes.set_xlabel("False positive rate")
        axes.set_ylabel("True positive rate")
    handles["Guessing"] = Line2D([], [], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    legend_below(figure, handles, columns=4 if len(datasets) > 1 else 3)
    where = f", {setting.label}" if setting.label else ""
    caption = (
        _OF_PRIMARY
        if measured.primaries
        else (
            "Curves nearer the upper left are stronger attacks. Mean over seeds of the TPR at each FPR, for the score "
            "selected per target, over all its examples (half of them were used to select it, so it is slightly "
            "optimistic). The axes end at one false alarm among the non-members: nothing was measured below it, "
            "and near it a curve rests on a handful of examples."
        )
    )
    return FigureFile(name=name, title=title + where, caption=caption, png=save(figure, directory, name))
