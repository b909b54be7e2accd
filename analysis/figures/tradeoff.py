"""Accuracy against the risk from attackers: a point per defense, and the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import naming
from analysis.figures.style import FigureFile, Look, legend_below, looks, new_figure, save, say
from analysis.measure.leak import Rate, low_rate
from analysis.measure.targets import Measurements, Setting
from analysis.measure.tradeoff import front, risk
from analysis.statistics.estimates import Estimate

_ROWS_PER_FIGURE = 4
_FRONT = "#b0b0b0"
_EDGE: Any = {"markeredgecolor": "#222222", "markeredgewidth": 0.6}
_MIN_SPAN = 0.02  # minimum range of an axis, so that a difference of a thousandth does not look large


def handle(look: Look) -> Line2D:
    """A defense's entry in a legend of points."""
    return Line2D([], [], color=look.color, marker=look.marker, linestyle="none", markersize=7, **_EDGE)


def error_bars(axes: Axes, x: Estimate, y: Estimate, color: str) -> None:
    """Whiskers at a point, if it has intervals."""
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.mean, y.mean], color=color, linewidth=1.1, zorder=2)
    if y.low is not None and y.high is not None:
        axes.plot([x.mean, x.mean], [y.low, y.high], color=color, linewidth=1.1, zorder=2)


def pareto(measured: Measurements, directory: Path) -> list[FigureFile]:
    """Accuracy against risk, a row of panels per dataset: honest AUC, and TPR at a low FPR."""
    title = "Privacy–utility trade-off"
    if not measured.settings or measured.frame["auc"].isna().all():
        why = "No membership attack has a finished best_of row."
        return [FigureFile(name="pareto", title=title, caption="", png=None, missing=why)]
    made = []
    for setting in measured.settings:
        datasets = measured.datasets_of(setting)
        chunks = [datasets[i : i + _ROWS_PER_FIGURE] for i in range(0, len(datasets), _ROWS_PER_FIGURE)]
        for number, chunk in enumerate(chunks):
            name = "pareto" if len(measured.settings) == 1 else f"pareto_{setting.file_name}"
            name += f"_{number + 1}" if len(chunks) > 1 else ""
            made.append(_pareto_figure(measured, setting, chunk, name, title, directory))
    return made


def _pareto_figure(
    measured: Measurements, setting: Setting, datasets: list[str], name: str, title: str, directory: Path
) -> FigureFile:
    figure = new_figure(9.2, 0.8 + 3.3 * len(datasets))
    panels = figure.subplots(len(datasets), 2, squeeze=False, sharey="row")
    styles = looks(measured)
    shown: set[str] = set()
    for row, dataset in zip(panels, datasets, strict=True):
        rate = low_rate(measured, setting, dataset)
        row[0].set_title(naming.plot_text(dataset))
        row[0].set_ylabel("Test accuracy (fraction)")
        auc_name = measured.auc_name(setting, dataset)
        label = f"{auc_name[0].upper()}{auc_name[1:]}  (← lower is better)"
        shown |= _pareto_panel(row[0], measured, setting, dataset, "auc", label, 0.5, styles)
        if rate is None:
            say(row[1], "No TPR: fewer than 100 non-members")
            continue
        label = f"{rate.words}  (← lower is better)"
        shown |= _pareto_panel(row[1], measured, setting, dataset, rate, label, rate.fpr, styles)
    handles: dict[str, Any] = {defense: handle(look) for defense, look in styles.items() if defense in shown}
    handles["Pareto front"] = Line2D([], [], color=_FRONT, linewidth=2.4)
    handles["Guessing"] = Line2D([], [], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    legend_below(figure, handles, columns=5)
    where = f", {setting.label}" if setting.label else ""
    caption = (
        "Upper left is best. Whiskers are 95 % intervals over seeds, and for the AUC over seeds and examples (over "
        "examples if there is one seed). They do not show which defenses can be told apart: the summary compares targets of "
        "one seed in pairs. The line joins the defenses that no other beats on both axes, by their means; a value "
        "below guessing is noise, and counts as guessing."
    )
    return FigureFile(name=name, title=title + where, caption=caption, png=save(figure, directory, name))


def _pareto_panel(
    axes: Axes,
    measured: Measurements,
    setting: Setting,
    dataset: str,
    column: str | Rate,
    label: str,
    chance: float,
    styles: dict[str, Look],
) -> set[str]:
    axes.axvline(chance, color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    corners: list[tuple[float, float]] = []
    shown = set()
    best = front(measured, setting, dataset, column, chance)
    for defense in measured.defenses:
        x = risk(measured, setting, dataset, defense, column)
        y = measured.estimate(setting, dataset, defense, "test_accuracy")
        if x is None or y is None:
            continue
        look = styles[defense]
        shown.add(defense)
        error_bars(axes, x, y, look.color)
        axes.plot(x.mean, y.mean, look.marker, color=look.color, markersize=8, zorder=4, **_EDGE)
        if defense in best:
            corners.append((max(x.mean, chance), y.mean))
    corners.sort()
    if len(corners) > 1:
        axes.step(*zip(*corners, strict=True), where="post", color=_FRONT, linewidth=2.4, zorder=1.5)
    axes.set_xlabel(label)
    axes.margins(0.08)
    for low, high, widen in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
        middle, half = (low + high) / 2, max(high - low, _MIN_SPAN) / 2
        # Room for the markers at 0 and 1
        widen(max(middle - half, -0.02), min(middle + half, 1.02))
    return shown
