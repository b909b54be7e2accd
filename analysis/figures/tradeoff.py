"""Accuracy against leak: a mark with its name per defense, and the frontier of those with a proved ε."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from analysis import naming
from analysis.figures.style import DIRECT_LABEL, INK, FigureFile, Look, looks, new_figure, save, say
from analysis.measure.leak import Rate, low_rate
from analysis.measure.targets import GUESSING, Measurements, Setting
from analysis.measure.tradeoff import pareto_front, risk
from analysis.statistics.estimates import Estimate

_FRONTIER = "#7fb5d9"
_EDGE: Any = {"markeredgecolor": "white", "markeredgewidth": 0.6}
_HALO = [patheffects.withStroke(linewidth=2, foreground="white")]
_MIN_SPAN = 0.02  # minimum range of an axis, so that a difference of a thousandth does not look large
_DECADES = 8.0
"""Rates that reach this many times guessing get a logarithmic axis."""


def panel_height(n_arms: int) -> float:
    """The height of a panel in inches: the names of many arms need more room."""
    return 3.6 + 0.17 * max(0, n_arms - 10)


def tradeoff(measured: Measurements, setting: Setting, dataset: str, directory: Path) -> FigureFile:
    """Test accuracy against the attack's AUC, and against its TPR at a low FPR."""
    name = naming.file_name("_".join(("tradeoff", *([setting.file_name] if setting.label else []), dataset)))
    if not measured.attacked(setting, dataset):
        why = "No membership attack has a finished best_of row."
        return FigureFile(name=name, title="Privacy–utility trade-off", caption="", png=None, missing=why)
    figure = new_figure(9.2, 0.3 + panel_height(len(measured.attacked(setting, dataset))))
    left, right = figure.subplots(1, 2, sharey=True)
    label = measured.row_label(setting, dataset)
    left.set_title(label.replace("$", r"\$"))
    left.set_ylabel("Test accuracy")
    styles = looks(measured)
    draw_tradeoff(left, *_points(measured, setting, dataset, "auc"), styles, measured.guaranteed, GUESSING)
    auc_name = measured.auc_name(setting, dataset)
    left.set_xlabel(f"{auc_name[0].upper()}{auc_name[1:]}  (← lower is better)")
    rate = low_rate(measured, setting, dataset)
    if rate is None:
        say(right, "No TPR: fewer than 100 non-members")
    else:
        draw_tradeoff(right, *_points(measured, setting, dataset, rate), styles, measured.guaranteed, rate.fpr)
        right.set_xlabel(f"{rate.words}  (← lower is better)")
    caption = (
        "Upper left is best. Lines are 95 % intervals; they do not show which defenses can be told apart, because targets of one "
        "seed are compared in pairs. The blue line joins the defenses with a proved ε that no other such defense beats on both axes. "
        "The dotted line is guessing."
    )
    png = save(figure, directory, name)
    return FigureFile(name=name, title=f"Privacy–utility trade-off: {label}", caption=caption, png=png)


Points = Mapping[str, Estimate]


def _points(measured: Measurements, setting: Setting, dataset: str, column: str | Rate) -> tuple[Points, Points]:
    """The leak and the accuracy of each defense that has both."""
    leak, accuracy = {}, {}
    for defense in measured.defenses:
        x = risk(measured, setting, dataset, defense, column)
        y = measured.estimate(setting, dataset, defense, "test_accuracy")
        if x is not None and y is not None:
            leak[defense], accuracy[defense] = x, y
    return leak, accuracy


def draw_tradeoff(
    axes: Axes,
    leak: Points,
    accuracy: Points,
    styles: Mapping[str, Look],
    guaranteed: Iterable[str],
    guessing: float,
    is_log: bool | None = None,
) -> None:
    """Draws one panel, with the name of each mark, which `save` moves beside it.

    `guaranteed` are the defenses with a proved ε. By default the axis of the leak is logarithmic if rates spread over decades.
    """
    if not leak:
        say(axes, "Not measured")
        return
    if is_log is None:
        is_log = guessing <= 0.01 and max(one.mean for one in leak.values()) > _DECADES * guessing
    least = 0.4 * guessing if is_log else -math.inf  # where a logarithmic axis ends, which cannot show zero
    axes.axvline(guessing, color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    private = {label: (accuracy[label].mean, max(leak[label].mean, guessing)) for label in leak if label in guaranteed}
    corners = [(max(leak[label].mean, least), accuracy[label].mean) for label in pareto_front(private)]
    if len(corners) > 1:
        axes.step(*zip(*corners, strict=True), where="post", color=_FRONTIER, linewidth=2.2, zorder=1.5)
    for label, x in leak.items():
        y, look = accuracy[label], styles[label]
        mean = max(x.mean, least)
        error_bars(axes, x, y, look.color, least)
        axes.plot(mean, y.mean, look.marker, color=look.color, markersize=7.5, zorder=4, clip_on=False, **_EDGE)
        axes.text(
            mean, y.mean, naming.plot_text(label), fontsize=8, color=INK, zorder=5, gid=DIRECT_LABEL, path_effects=_HALO
        )
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _widen(axes, is_log, least)


def error_bars(axes: Axes, x: Estimate, y: Estimate, color: str, least: float = -math.inf) -> None:
    """Intervals at a point, if it has them, thinner than any mark; x-values below `least` are drawn there."""
    line: Any = {"color": color, "linewidth": 0.8, "alpha": 0.55, "zorder": 2, "solid_capstyle": "butt"}
    if x.low is not None and x.high is not None:
        axes.plot([max(x.low, least), max(x.high, least)], [y.mean, y.mean], **line)
    if y.low is not None and y.high is not None:
        axes.plot([max(x.mean, least)] * 2, [y.low, y.high], **line)


def _widen(axes: Axes, is_log: bool, least: float) -> None:
    """Fits both axes to the data, with room for marks and names."""
    axes.margins(x=0.1, y=0.12)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(high - low, _MIN_SPAN) / 2
    axes.set_ylim(max(middle - half, -0.02), min(middle + half, 1.02))
    low, high = axes.get_xlim()
    if is_log:
        axes.set_xlim(max(low, 0.9 * least), min(high, 1.4))
        return
    middle, half = (low + high) / 2, max(high - low, _MIN_SPAN) / 2
    axes.set_xlim(max(middle - half, -0.02), min(middle + half, 1.02))
