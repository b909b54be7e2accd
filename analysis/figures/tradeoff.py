"""Figure 6 and the privacy–utility curves: what a defense costs for what it takes from attackers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D

from analysis import naming
from analysis.figures.style import FigureFile, Look, legend_below, looks, new_figure, save, say
from analysis.load import FPR_COLUMNS
from analysis.measure.measurements import (
    FRACTION,
    GUESSING,
    NOT_NEGATIVE,
    PERCENT_CHANGE,
    Measurements,
    Setting,
    against_baseline,
    average_over_datasets,
    measured_fpr,
)
from analysis.measure.tradeoff import pareto_front
from analysis.measure.verdicts import judged_changes
from analysis.statistics.estimates import Estimate
from analysis.tables.tables import layers

_ROWS_PER_FIGURE = 4
_FRONT = "#b0b0b0"
_EDGE: Any = {"markeredgecolor": "#222222", "markeredgewidth": 0.6}
_MIN_SPAN = 0.02  # of an axis: a difference of a thousandth must not look like a gulf


def handle(look: Look) -> Line2D:
    """A defense's entry in a legend of points."""
    return Line2D([], [], color=look.color, marker=look.marker, linestyle="none", markersize=7, **_EDGE)


def summary_scatter(measured: Measurements, directory: Path) -> FigureFile:
    """Figure 6: accuracy against the change of inversion MSE and of attack AUC, colored by training time.

    As in the paper, averaged over datasets, and with the papers' "best of" AUC, which counts as 0.5 below that.
    Deviations: the cut point is the last one at which a decoder is shown to beat both controls; markers tell the defenses
    apart; 95 % intervals over seeds are drawn.
    """
    name, title = "figure6", "Figure 6. Accuracy against inversion, membership inference and training time"
    settings = measured.settings
    if not settings:
        return FigureFile(name=name, title=title, caption="", png=None, missing="No trial finished.")
    if measured.baseline is None or measured.baseline not in set(measured.frame["defense"]):
        why = "No baseline finished, so there is nothing to compare with."
        return FigureFile(name=name, title=title, caption="", png=None, missing=why)
    setting = settings[0]
    frame = measured.frame[measured.frame["setting"] == setting.key]
    at_least_guessing = frame.assign(paper_protocol_auc=frame["paper_protocol_auc"].clip(lower=GUESSING))
    auc_changes = against_baseline(at_least_guessing, measured.baseline, "paper_protocol_auc", "percent")
    mse = judged_changes(measured, setting)
    # The last cut point at which a decoder is shown to beat both controls: the paper has the prediction layer
    supported = set() if mse is None else set(mse.loc[mse["defense"] != measured.baseline, "layer"])
    last = [layer for layer in layers(measured, setting) if layer in supported][-1:]

    def change(defense: str, which: str) -> Estimate | None:
        table = auc_changes if which == "auc" else mse
        if table is None:
            return None
        rows = table[table["defense"] == defense]
        if which == "mse":
            rows = rows[rows["layer"].isin(last)]
        return average_over_datasets(rows, "value", PERCENT_CHANGE)[0]

    times = {
        defense: average_over_datasets(frame[frame["defense"] == defense], "train_time_s", NOT_NEGATIVE)[0]
        for defense in measured.defenses
    }
    seconds = [time.mean for time in times.values() if time is not None and time.mean > 0]
    low, high = (min(seconds), max(seconds)) if seconds else (1.0, 1.0)
    norm: Normalize = LogNorm(low * 0.95, high * 1.05) if seconds else Normalize(0, 1)

    figure = new_figure(9.2, 4.3)
    panels = figure.subplots(1, 2, sharey=True)
    styles = looks(measured)
    legend: dict[str, Any] = {}
    points: Any = None
    last_name = naming.plot_text(last[0]) if last else "the last layer"
    for axes, which, label, better in (
        (panels[0], "mse", f"Change of reconstruction MSE at {last_name} (%)", "higher is better →"),
        (panels[1], "auc", "Change of attack AUC, paper’s protocol (%)", "← lower is better"),
    ):
        shown = 0
        for defense in measured.defenses:
            x = change(defense, which)
            y, _ = average_over_datasets(frame[frame["defense"] == defense], "test_accuracy", FRACTION)
            time = times[defense]
            if x is None or y is None or time is None:
                continue
            shown += 1
            look = styles[defense]
            _error_bars(axes, x, y, "#8a8a8a")
            points = axes.scatter(
                [x.mean], [y.mean], c=[time.mean], norm=norm, cmap="viridis", marker=look.marker, s=85,
                edgecolors="#222222", linewidths=0.9, zorder=3,
            )  # fmt: skip
            hollow = replace(look, color="white")
            legend.setdefault(defense, handle(hollow))
        if not shown:
            one_seed = not measured.inversion.empty and measured.inversion["seed"].nunique() == 1
            silent = (
                "One seed shows nothing\nof a decoder" if one_seed else "No decoder is shown\nto beat both controls"
            )
            unmeasured = "No reconstructions" if measured.inversion.empty else silent
            say(axes, unmeasured if which == "mse" else "No membership attack")
            continue
        axes.axvline(0, color="#999999", linewidth=0.9, zorder=1)
        axes.set_xlabel(f"{label}\n{better}")
    panels[0].set_ylabel("Test accuracy (fraction, higher is better)")
    if points is not None:
        bar = figure.colorbar(points, ax=panels, shrink=0.9, pad=0.015)
        bar.set_label("Training time (s)")
        ticks = np.unique([float(f"{value:.2g}") for value in np.geomspace(low, high, 5)])
        bar.set_ticks(list(ticks), labels=[f"{value:g}" for value in ticks])
        bar.ax.minorticks_off()
        legend_below(figure, legend, columns=7)
    datasets = naming.listing([naming.display(dataset) for dataset in measured.datasets_of(setting)])
    where = f" ({setting.label})" if setting.label else ""
    caption = (
        f"Averaged over {datasets}{where}, changes against the baseline of the same seed; whiskers are 95 % "
        "intervals over seeds. The best corner is the upper right on the left, the upper left on the right."
    )
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


def _error_bars(axes: Axes, x: Estimate, y: Estimate, color: str) -> None:
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
        fpr = measured_fpr(measured.at(setting, dataset))
        row[0].set_title(naming.plot_text(dataset))
        row[0].set_ylabel("Test accuracy (fraction)")
        shown |= _pareto_panel(
            row[0], measured, setting, dataset, "auc", "Honest attack AUC  (← lower is better)", 0.5, styles
        )
        if fpr is None:
            say(row[1], "No TPR: fewer than 100 non-members")
            continue
        label = f"TPR at {100 * fpr:g} % FPR  (← lower is better)"
        shown |= _pareto_panel(row[1], measured, setting, dataset, FPR_COLUMNS[fpr], label, fpr, styles)
    handles: dict[str, Any] = {defense: handle(look) for defense, look in styles.items() if defense in shown}
    handles["Pareto front"] = Line2D([], [], color=_FRONT, linewidth=2.4)
    handles["Guessing"] = Line2D([], [], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    legend_below(figure, handles, columns=5)
    where = f", {setting.label}" if setting.label else ""
    caption = (
        "Upper left is best. Whiskers are 95 % intervals over seeds, of the AUC over seeds and examples (over examples "
        "where there is one seed). They do not show what can be told apart: targets of one seed are compared in pairs, "
        "in the summary. The line joins the defenses that no other beats on both axes, by their means; left of guessing "
        "is noise, and counts as guessing."
    )
    return FigureFile(name=name, title=title + where, caption=caption, png=save(figure, directory, name))


def front(measured: Measurements, setting: Setting, dataset: str, column: str, chance: float = GUESSING) -> list[str]:
    """The defenses on the front of test accuracy (up) and `column` (down), by their means.

    A mean of `column` below `chance`, what guessing gives, is noise and counts as `chance`.
    """
    points: dict[str, tuple[float, float]] = {}
    for defense in measured.defenses:
        risk = measured.estimate(setting, dataset, defense, column)
        utility = measured.estimate(setting, dataset, defense, "test_accuracy")
        if risk is not None and utility is not None:
            points[defense] = (utility.mean, max(risk.mean, chance))
    return pareto_front(points)


def _pareto_panel(
    axes: Axes,
    measured: Measurements,
    setting: Setting,
    dataset: str,
    column: str,
    label: str,
    chance: float,
    styles: dict[str, Look],
) -> set[str]:
    axes.axvline(chance, color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    corners: list[tuple[float, float]] = []
    shown = set()
    best = front(measured, setting, dataset, column, chance)
    for defense in measured.defenses:
        x = measured.estimate(setting, dataset, defense, column)
        y = measured.estimate(setting, dataset, defense, "test_accuracy")
        if x is None or y is None:
            continue
        look = styles[defense]
        shown.add(defense)
        _error_bars(axes, x, y, look.color)
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
