"""Figures 1–5, and TPVD against what membership attacks measured.

Source: Lin et al. 2020, Figures 1–5. Deviations: every curve is the mean over seeds with the seeds' range around it; the
paper has one run. The noised quantile and the last figure are ours; the paper runs no attack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import naming
from analysis.figures.style import MUTED, FigureFile, Look, legend_below, new_figure, save, say
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.factors.frame import FactorStudy
from analysis.studies.lin2020.factors.levels import AC, CA, NORMAL, SEQUENCES, Cell, cell_name, kind_name, ordered
from analysis.studies.lin2020.influences import ALL, LEAKS, Correlation, p_phrase, tpvd_correlations
from analysis.studies.lin2020.tables.clipping import adaptive_cells, adaptive_rows
from analysis.tables.text import number

_SOLID: Any = "-"
_DASHED: Any = (0, (5, 1.5))
_DOTTED: Any = (0, (1.2, 1.2))
_MIXED: Any = (0, (5, 1.5, 1.2, 1.5))

# As in all figures: black for the undefended, cool colors with a guarantee, warm ones without.
LOOKS = {
    NORMAL: Look(color="#000000", marker="o", dashes=_SOLID),
    CA: Look(color="#0072B2", marker="s", dashes=_DASHED),
    AC: Look(color="#D55E00", marker="D", dashes=_MIXED),
    "quantile_flat": Look(color="#CC79A7", marker="^", dashes=_DOTTED),
    "quantile_per_layer": Look(color="#7A7A7A", marker="v", dashes=_DASHED),
    "noised_quantile": Look(color="#009E73", marker="P", dashes=_MIXED),
}
_SMALL_CLIP = Look(color="#E69F00", marker="X", dashes=_SOLID)
_OTHER = Look(color="#666666", marker="*", dashes=_SOLID)
_FIGURE_OF = {"mnist": 1, "cifar10": 2, "svhn": 3}
_NO_HISTORY = "No accuracy and loss by epoch were recorded for both sequences."
_PANELS_IN_A_ROW = 3
_MIN_SPAN = 0.02  # minimum range of an axis, so that a difference of a thousandth does not look large


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure: the mean of these targets."""

    name: str
    look: Look
    targets: frozenset[str]


def factor_figures(study: FactorStudy, directory: Path) -> list[FigureFile]:
    """Writes every figure of a factor study under `directory`, in the order of the report."""
    datasets = ordered("dataset", study.frame["dataset"])
    return [
        *(_training(study, dataset, directory) for dataset in datasets),
        _adaptive(study, "train_accuracy", 4, "accuracy", directory),
        _adaptive(study, "train_loss", 5, "loss", directory),
        _tradeoff(study, directory),
        _leakage(study, directory),
    ]


def training_setting(study: FactorStudy, dataset: str) -> tuple[Cell, float, float] | None:
    """The cell, noise and clip norm nearest to the paper's figure for which both sequences have epochs."""
    noise, clip = lin2020.FIGURE_SETTINGS.get(dataset, lin2020.FIGURE_SETTINGS["mnist"])
    here = study.frame[study.frame["target_id"].isin(study.history["target_id"])]
    here = here[(here["dataset"] == dataset) & here["noise"].notna() & here["clip"].notna()]
    keys = ["model", "optimizer", "noise", "clip"]
    sides = [set(here[here["kind"] == kind][keys].itertuples(index=False, name=None)) for kind in SEQUENCES]
    both = sides[0] & sides[1]
    if not both:
        return None

    def far(setting: tuple[str, str, float, float]) -> tuple[bool, bool, float, tuple[Any, ...]]:
        model, optimizer, own_noise, own_clip = setting
        return (
            model != "lin_cnn",
            optimizer != "adam",
            _ratio(own_noise, noise) + _ratio(own_clip, clip),
            setting,
        )

    model, optimizer, own_noise, own_clip = min(both, key=far)
    return (dataset, model, optimizer), float(own_noise), float(own_clip)


def _ratio(first: float, second: float) -> float:
    """The absolute logarithm of the ratio of two positive numbers; infinite if one is not positive."""
    return abs(math.log(first / second)) if first > 0 and second > 0 else (0.0 if first == second else math.inf)


def _training(study: FactorStudy, dataset: str, directory: Path) -> FigureFile:
    """Figures 1–3: accuracy and loss by epoch, undefended, clipping first, noise first."""
    figure_number = _FIGURE_OF.get(dataset)
    name = f"lin_figure{figure_number}" if figure_number else f"lin_training_{naming.file_name(dataset)}"
    numbered = f"Figure {figure_number}. " if figure_number else ""
    title = f"{numbered}Accuracy and loss on {naming.display(dataset)} under different sequences"
    setting = training_setting(study, dataset)
    if setting is None:
        return FigureFile(name=name, title=title, caption="", png=None, missing=_NO_HISTORY)
    cell, noise, clip = setting
    here = study.at(cell)
    at_setting = (here["noise"] == noise) & (here["clip"] == clip)
    curves = [
        _curve(kind, here[(here["kind"] == kind) & (at_setting | (kind == NORMAL))]) for kind in (NORMAL, *SEQUENCES)
    ]
    figure = new_figure(9.2, 3.7)
    panels = figure.subplots(1, 2)
    for axes, column, label in zip(
        panels, ("train_accuracy", "train_loss"), ("Training accuracy (fraction)", "Training loss (nats)"), strict=True
    ):
        _draw(axes, study.history, curves, column)
        axes.set_ylabel(label)
    legend_below(figure, _handles(curves))
    caption = f"{cell_name(cell)}, noise {noise:g}, clip norm {clip:g}. {_BAND}"
    wanted = lin2020.FIGURE_SETTINGS.get(dataset)
    if wanted is not None and (cell[1:], noise, clip) != (("lin_cnn", "adam"), *wanted):
        caption += (
            f" The paper’s figure has the CNN, Adam, noise {wanted[0]:g} and clip norm {wanted[1]:g}, which these results "
            "do not have with both sequences; this setting is the nearest."
        )
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


_BAND = (
    "Measured on the batches of each epoch during training. Lines are means over seeds; the band around a line spans its "
    "seeds from the lowest to the highest."
)


def _curve(kind: str, rows: pd.DataFrame, name: str = "", look: Look | None = None) -> Curve:
    return Curve(
        name=name or kind_name(kind),
        look=look or LOOKS.get(kind, _OTHER),
        targets=frozenset(str(target) for target in rows["target_id"]),
    )


def _draw(axes: Axes, history: pd.DataFrame, curves: list[Curve], column: str) -> None:
    """Draws `column` by epoch. An epoch's mean is over the seeds that have the epoch."""
    known = history[history[column].notna()]
    drawn = False
    for curve in curves:
        rows = known[known["target_id"].isin(curve.targets)]
        if rows.empty:
            continue
        drawn = True
        by_epoch = rows.groupby("epoch")[column].agg(["mean", "min", "max"]).sort_index()
        epochs = [float(epoch) for epoch in by_epoch.index]
        # With few epochs, markers show the measured points.
        marker = curve.look.marker if len(epochs) <= 12 else ""
        axes.plot(
            epochs,
            by_epoch["mean"].to_numpy(),
            color=curve.look.color,
            linestyle=curve.look.dashes,
            marker=marker,
            markersize=4.5,
            linewidth=1.7,
            zorder=3,
        )
        axes.fill_between(
            epochs,
            by_epoch["min"].to_numpy(),
            by_epoch["max"].to_numpy(),
            color=curve.look.color,
            alpha=0.16,
            linewidth=0,
            zorder=2,
        )
    if not drawn:
        say(axes, "Not recorded")
        return
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _handles(curves: list[Curve]) -> dict[str, Any]:
    return {
        curve.name: Line2D(
            [], [], color=curve.look.color, linestyle=curve.look.dashes, marker=curve.look.marker, markersize=4.5
        )
        for curve in curves
        if curve.targets
    }


def _adaptive(study: FactorStudy, column: str, figure_number: int, what: str, directory: Path) -> FigureFile:
    """Figures 4 and 5: fixed clip norms against quantile rules, a panel per dataset."""
    name = f"lin_figure{figure_number}"
    title = f"Figure {figure_number}. Training {what} at fixed clip norms against quantile clipping"
    cells = [
        cell for cell in adaptive_cells(study) if study.history["target_id"].isin(study.at(cell)["target_id"]).any()
    ]
    if not cells:
        why = "No target with a quantile rule has accuracy and loss by epoch."
        return FigureFile(name=name, title=title, caption="", png=None, missing=why)
    unit = "Training accuracy (fraction)" if what == "accuracy" else "Training loss (nats)"
    figure, panels = _panels(len(cells), unit)
    handles: dict[str, Any] = {}
    noises: set[float] = set()
    for axes, cell in zip(panels, cells, strict=False):
        curves = []
        found = [row for row in adaptive_rows(study.at(cell)) if row[0] != CA]  # as in the paper
        for kind, noise, clip, rows in found:
            if kind == AC and noise is not None and noise != _shown_noise(found, clip):
                continue
            if kind == AC and noise is not None:
                noises.add(noise)
            small = clip == lin2020.ADAPTIVE_CLIPS[0]
            label = f"AC, clip norm {clip:g}" if clip is not None else ""
            curves.append(_curve(kind, rows, label, _SMALL_CLIP if small else None))
        _draw(axes, study.history, curves, column)
        axes.set_title(naming.plot_text(cell_name(cell)))
        handles |= _handles(curves)
    legend_below(figure, handles, columns=3)
    said = f" AC has noise {naming.listing([f'{noise:g}' for noise in sorted(noises)])}." if noises else ""
    caption = f"{_BAND}{said} The noised quantile is not in the paper."
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


def _shown_noise(found: list[tuple[str, float | None, float | None, pd.DataFrame]], clip: float | None) -> float | None:
    """The largest noise scale at this clip norm, because the small clip norm probably has it too."""
    return max((noise for kind, noise, at, _ in found if kind == AC and at == clip and noise is not None), default=None)


def _panels(count: int, unit: str) -> tuple[Figure, Any]:
    """A figure of `count` panels in rows. Each row is labeled once; unused places in the last row stay empty."""
    columns = min(_PANELS_IN_A_ROW, count)
    lines = -(-count // columns)
    figure = new_figure(10.4 if columns > 1 else 5.4, 0.9 + 3.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(unit)
    return figure, panels


def _tradeoff(study: FactorStudy, directory: Path) -> FigureFile:
    """Test accuracy against honest AUC: a panel per dataset, a point per defense, model and optimizer."""
    name, title = "lin_tradeoff", "Privacy–utility trade-off of the mechanisms"
    known = study.frame[study.frame["auc"].notna() & study.frame["accuracy"].notna()]
    datasets = ordered("dataset", known["dataset"])
    if not datasets:
        why = "No membership attack has a finished best_of row."
        return FigureFile(name=name, title=title, caption="", png=None, missing=why)
    figure, panels = _panels(len(datasets), "Test accuracy (fraction)")
    handles: dict[str, Any] = {}
    for axes, dataset in zip(panels, datasets, strict=False):
        rows = known[known["dataset"] == dataset]
        means = rows.groupby(["kind", "defense", "model", "optimizer"])[["auc", "accuracy"]].mean().reset_index()
        for kind in ordered("kind", means["kind"]):
            points = means[means["kind"] == kind]
            style = _points(kind)
            axes.plot(points["auc"].to_numpy(), points["accuracy"].to_numpy(), alpha=0.85, zorder=3, **style)
            handles.setdefault(kind_name(kind), Line2D([], [], **style))
        axes.axvline(0.5, color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.set_title(naming.plot_text(dataset))
        axes.set_xlabel("Honest attack AUC  (← lower is better)")
        low, high = axes.get_xlim()
        middle, half = (low + high) / 2, max(high - low, _MIN_SPAN) / 2
        axes.set_xlim(middle - half, middle + half)
    handles["Guessing"] = Line2D([], [], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    legend_below(figure, handles, columns=7 if len(handles) < 5 else 4)
    caption = (
        "One point per defense, model and optimizer: means over seeds; their intervals are in the table of defenses. "
        "Upper left is best."
    )
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


def _points(kind: str) -> Any:
    look = LOOKS.get(kind, _OTHER)
    style: dict[str, Any] = {"color": look.color, "marker": look.marker, "markeredgecolor": "white"}
    return style | {"markersize": 5.5, "markeredgewidth": 0.4, "linestyle": "none"}


def _leakage(study: FactorStudy, directory: Path) -> FigureFile:
    """TPVD against honest AUC, TPR at 1 % FPR and the audited lower bound on ε, a point per target."""
    name, title = "lin_tpvd_leakage", "TPVD against what membership attacks measured"
    correlations = {one.measure: one for one in tpvd_correlations(study) if one.group == ALL}
    known = study.frame[study.frame["tpvd"].notna()]
    if not any(one.test.n for one in correlations.values()):
        why = "No target has both a TPVD and a finished membership attack."
        return FigureFile(name=name, title=title, caption="", png=None, missing=why)
    kinds = [kind for kind in ordered("kind", known["kind"]) if kind != NORMAL]
    figure = new_figure(10.4, 4.0)
    panels = figure.subplots(1, len(LEAKS))
    handles: dict[str, Any] = {}
    chance = {"auc": 0.5, "tpr": 0.01, "epsilon_lower_bound": 0.0}
    for axes, (measure, label) in zip(panels, LEAKS.items(), strict=True):
        rows = known[known[measure].notna()]
        if rows.empty:
            say(axes, f"{label}:\nnot measured")
            continue
        for kind in kinds:
            points = rows[rows["kind"] == kind]
            style = _points(kind)
            axes.plot(points["tpvd"].to_numpy(), points[measure].to_numpy(), alpha=0.75, zorder=3, **style)
            handles.setdefault(kind_name(kind), Line2D([], [], **style))
        axes.axhline(chance[measure], color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max(high - low, _MIN_SPAN) / 2
        axes.set_ylim(middle - half, middle + half)
        distances = rows["tpvd"]
        if distances.min() > 0 and distances.max() / distances.min() > 30:
            axes.set_xscale("log")
        axes.set_xlabel("TPVD (larger: weights changed more)")
        axes.set_ylabel(label)
        axes.set_title(_rho(correlations[measure]), fontsize=9, fontweight="normal", color=MUTED)
    handles["No leak"] = Line2D([], [], color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    legend_below(figure, handles, columns=7 if len(handles) < 5 else 4)
    within = [
        f"{LEAKS[one.measure]}, {one.group}: {_rho(one)}"
        for one in tpvd_correlations(study)
        if one.kind is not None and one.test.p_value is not None
    ]
    caption = (
        "One point per target. ρ is Spearman’s rank correlation over the settings of a panel, each with the means over its "
        "seeds. Below zero, targets whose weights were changed more leak less, as expected of a privacy metric."
    )
    if within:
        caption += f" By ranks within each dataset, model and optimizer: {'; '.join(within)}."
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


def _rho(one: Correlation) -> str:
    test = one.test
    if test.p_value is None:
        return f"no ρ: {test.note}"
    return f"ρ = {number(test.effect, 2, signed=True)}, {p_phrase(test.p_value)}, n = {test.n}"
