"""Test accuracy against what leaks of the worst canaries, with differential privacy as the frontier.

Source: Aerni, Zhang & Tramèr 2024, their first figure. Deviation: the leak of the usual evaluation is drawn beside it.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from analysis import naming
from analysis.figures.style import FigureFile, Look, looks, new_figure, save
from analysis.figures.tradeoff import draw_tradeoff, panel_height
from analysis.measure.targets import Measurements
from analysis.studies.aerni2024.cells import Arm, Protocol
from analysis.studies.aerni2024.tables import percent

NAME = "aerni_frontier"


def figures(found: Protocol, measured: Measurements, directory: Path) -> list[FigureFile]:
    """The figure of all datasets, a row of two panels each: evaluated as before, and as here."""
    title = "Accuracy against what leaks of the worst canaries"
    datasets = [dataset for dataset in found.datasets if found.of(dataset)]
    if not datasets:
        return [
            FigureFile(name=NAME, title=title, caption="", png=None, missing="No arm was attacked on canaries yet.")
        ]
    styles = looks(measured)
    height = 0.1 + panel_height(max(len(found.of(dataset)) for dataset in datasets))
    figure = new_figure(9.6, 0.4 + height * len(datasets))
    panels = figure.subplots(len(datasets), 2, squeeze=False)
    for row, dataset in zip(panels, datasets, strict=True):
        arms = found.of(dataset)
        row[0].set_ylabel("Test accuracy (fraction)")
        row[0].set_title(f"{naming.plot_text(dataset)}: LiRA, clean canaries")
        row[1].set_title("Attacks fixed for the defense, worst canaries")
        _panel(row[0], [arm for arm in arms if arm.base is not None], styles, found.fpr, worst=False)
        _panel(row[1], arms, styles, found.fpr, worst=True)
    caption = (
        f"Upper left is best. TPR at {percent(found.fpr)} FPR over all targets of a cell together, on a logarithmic axis; whiskers are "
        "95 % intervals. Left, as defenses were evaluated before; right, also by the attacks that adapt to the defense, if there are "
        "any, and on the canaries that expose it most. The line joins the arms with a proved ε, however large, that no other such arm "
        "beats on both axes."
    )
    return [FigureFile(name=NAME, title=title, caption=caption, png=save(figure, directory, NAME))]


def _panel(axes: Axes, arms: list[Arm], styles: dict[str, Look], fpr: float, worst: bool) -> None:
    leak, accuracy = {}, {}
    for arm in arms:
        found, utility = (arm.worst, arm.accuracy) if worst else (arm.base, arm.base_accuracy)
        if found is not None and utility is not None:
            leak[arm.defense], accuracy[arm.defense] = found.tpr, utility
    private = [arm.defense for arm in arms if arm.is_private]
    draw_tradeoff(axes, leak, accuracy, styles, private, fpr, is_log=True)
    axes.set_xlabel(f"TPR at {percent(fpr)} FPR  (← lower is better)")
