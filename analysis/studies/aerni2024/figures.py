"""Test accuracy against what leaks of the worst canaries, with differential privacy as the frontier.

Source: Aerni, Zhang & Tramèr 2024, their first figure. Deviation: the leak of the usual evaluation is drawn beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import naming
from analysis.figures.style import FigureFile, Look, legend_below, looks, new_figure, save, say
from analysis.figures.tradeoff import error_bars, handle
from analysis.measure.targets import Measurements
from analysis.studies.aerni2024.cells import Arm, Protocol, beats
from analysis.studies.aerni2024.tables import percent

NAME = "aerni_frontier"
_FRONTIER = "#7fb5d9"
_LEFT = 0.4
"""Where the axis begins, in FPRs."""


def figures(found: Protocol, measured: Measurements, directory: Path) -> list[FigureFile]:
    """The figure of all datasets, a row of two panels each: evaluated as before, and as here."""
    title = "Accuracy against what leaks of the worst canaries"
    datasets = [dataset for dataset in found.datasets if found.of(dataset)]
    if not datasets:
        return [
            FigureFile(name=NAME, title=title, caption="", png=None, missing="No arm was attacked on canaries yet.")
        ]
    styles = looks(measured)
    figure = new_figure(9.2, 1.2 + 3.4 * len(datasets))
    panels = figure.subplots(len(datasets), 2, squeeze=False, sharex=True, sharey="row")
    shown: set[str] = set()
    for row, dataset in zip(panels, datasets, strict=True):
        arms = found.of(dataset)
        row[0].set_ylabel("Test accuracy (fraction)")
        row[0].set_title(f"{naming.plot_text(dataset)}: LiRA, clean canaries")
        row[1].set_title("Attacks fixed for the defense, worst canaries")
        shown |= _panel(row[0], [arm for arm in arms if arm.base is not None], styles, found.fpr, worst=False)
        shown |= _panel(row[1], arms, styles, found.fpr, worst=True)
    handles: dict[str, Any] = {label: handle(look) for label, look in styles.items() if label in shown}
    handles["DP frontier"] = Line2D([], [], color=_FRONTIER, linewidth=2.4)
    handles["Guessing"] = Line2D([], [], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    legend_below(figure, handles, columns=5)
    caption = (
        f"Upper left is best. TPR at {percent(found.fpr)} FPR over all targets of a cell together, on a logarithmic axis; whiskers are "
        "95 % intervals. Left, as defenses were evaluated before; right, also by the attacks that adapt to the defense, if there are "
        "any, and on the canaries that expose it most. The line joins the arms with a proved ε, however large, that no other such arm "
        "beats on both axes."
    )
    return [FigureFile(name=NAME, title=title, caption=caption, png=save(figure, directory, NAME))]


def _panel(axes: Axes, arms: list[Arm], styles: dict[str, Look], fpr: float, worst: bool) -> set[str]:
    axes.set_xscale("log")
    axes.set_xlim(_LEFT * fpr, 1.3)
    axes.set_xlabel(f"TPR at {percent(fpr)} FPR  (← lower is better)")
    if not arms:
        say(axes, "Not measured")
        return set()
    axes.axvline(fpr, color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    private: list[tuple[float, float]] = []
    for arm in arms:
        leak, accuracy = (arm.worst, arm.accuracy) if worst else (arm.base, arm.base_accuracy)
        if leak is None or accuracy is None:
            continue
        look = styles[arm.defense]
        x = max(leak.tpr.mean, _LEFT * fpr)
        error_bars(axes, leak.tpr, accuracy, look.color)
        edge: Any = {"markeredgecolor": "#222222", "markeredgewidth": 0.6}
        axes.plot(x, accuracy.mean, look.marker, color=look.color, markersize=8, zorder=4, **edge)
        if arm.is_private:
            private.append((max(leak.tpr.mean, fpr), accuracy.mean))
    corners = sorted(one for one in private if not any(beats(other, one) for other in private))
    if len(corners) > 1:
        axes.step(*zip(*corners, strict=True), where="post", color=_FRONTIER, linewidth=2.4, zorder=1.5)
    return {arm.defense for arm in arms}
