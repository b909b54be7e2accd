"""Figures 4–6: how well inputs can be reconstructed from each layer, and accuracy against both attacks.

Source: Lomurno & Matteucci 2022, Figures 4–6. Deviations: see each function.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from PIL import Image

from analysis import naming
from analysis.figures.style import FigureFile, handle, legend_below, looks, new_figure, save, say
from analysis.figures.tradeoff import error_bars
from analysis.load import Results, read_examples
from analysis.measure.inversion import decoder_works, inversion_settings, judged_changes, layers
from analysis.measure.targets import (
    FRACTION,
    GUESSING,
    NOT_NEGATIVE,
    PERCENT_CHANGE,
    Measurements,
    Setting,
    against_baseline,
    average_over_datasets,
)
from analysis.statistics.estimates import Estimate

_TILE = 64  # width and height of a reconstruction in pixels
_GAP = 6
_NO_INVERSION = "No reconstructions were recorded."
_EXAMPLES = 2


def _missing(name: str, title: str, why: str) -> FigureFile:
    return FigureFile(name=name, title=title, caption="", png=None, missing=why)


def _wording(setting: Setting) -> str:
    return f" ({setting.label})" if setting.label else ""


def paper_figures(results: Results, measured: Measurements, directory: Path) -> list[FigureFile]:
    """Writes Figures 4–6 under `directory`; a figure that cannot be made says why."""
    return [
        mse_by_layer(measured, directory),
        *reconstructions(results, measured, directory),
        summary_scatter(measured, directory),
    ]


def mse_by_layer(measured: Measurements, directory: Path) -> FigureFile:
    """Figure 4: reconstruction MSE of the baseline by layer, averaged over datasets, with two controls.

    Deviations from the paper: 95 % intervals over seeds, and two controls that give the error a scale: the attacker's
    mean image, and the same decoder on a target that was never trained.
    """
    name, title = "figure4", "Figure 4. Reconstruction MSE of the baseline by layer"
    settings = inversion_settings(measured)
    if not settings:
        return _missing(name, title, _NO_INVERSION)
    setting = settings[0]
    here = measured.inversion[measured.inversion["setting"] == setting.key]
    # Without a baseline, the first defense is shown, and the title says so.
    shown = measured.baseline if measured.baseline in set(here["defense"]) else str(here["defense"].iloc[0])
    if shown != measured.baseline:
        title = f"Figure 4. Reconstruction MSE of {naming.display(str(shown))} by layer (no baseline)"
    rows = here[here["defense"] == shown]
    names = [layer for layer in layers(measured, setting) if layer in set(rows["layer"])]
    place = np.arange(len(names))

    def over_layers(column: str) -> list[Estimate | None]:
        return [average_over_datasets(rows[rows["layer"] == layer], column, NOT_NEGATIVE)[0] for layer in names]

    figure = new_figure(7.2, 3.6)
    axes = figure.add_subplot()
    measured_mse = over_layers("mse_test")
    heights = [np.nan if value is None else value.mean for value in measured_mse]
    works = decoder_works(measured, setting)
    shown_datasets = [dataset for dataset in measured.datasets if dataset in set(rows["dataset"])]
    supported = [all(works.get((dataset, str(shown), layer), False) for dataset in shown_datasets) for layer in names]
    name_shown = naming.plot_text(str(shown))
    # Bars are pale if the decoder is not shown to beat both controls. The legend has the full color.
    colors = ["#56B4E9" if one else "#dceefa" for one in supported]
    axes.bar(place, heights, width=0.62, color=colors, edgecolor="#1b6a97", linewidth=0.8)
    axes.bar([0], [0], color="#56B4E9", edgecolor="#1b6a97", linewidth=0.8, label=name_shown)
    for at, value in zip(place, measured_mse, strict=True):
        if value is not None and value.low is not None and value.high is not None:
            axes.errorbar(
                at, value.mean, yerr=[[value.mean - value.low], [value.high - value.mean]],
                fmt="none", ecolor="#222222", capsize=3, linewidth=1,
            )  # fmt: skip
    # The diamond is drawn off the middle of the bar, so it hides no interval.
    for column, marker, color, shift, label in (
        ("mse_untrained", "D", "#D55E00", 0.2, "Control: untrained target"),
        ("mse_constant", "_", "#000000", 0.0, "Control: constant image"),
    ):
        control = [np.nan if value is None else value.mean for value in over_layers(column)]
        if np.isfinite(control).any():
            size, width = (22, 2) if marker == "_" else (5.5, 1)
            axes.plot(
                place + shift,
                control,
                marker,
                color=color,
                markersize=size,
                markeredgewidth=width,
                label=label,
            )
    axes.set_xticks(place, [naming.plot_text(layer) for layer in names])
    axes.set_ylabel("MSE per pixel on test images\n(pixels in [0, 1])")
    axes.set_xlabel("Cut point, from the input to the output")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.6)
    datasets = naming.listing([naming.display(dataset) for dataset in shown_datasets])
    silent = [naming.display(layer) for layer, one in zip(names, supported, strict=True) if not one]
    caption = (
        f"Lower means easier to invert. Averaged over {datasets}{_wording(setting)}; whiskers are 95 % "
        "intervals over seeds, if there are several. An error near the constant image’s means that the "
        "decoder recovered nothing of the input. An error near the untrained target’s means that the architecture, "
        "not the training, reveals the input."
    )
    if silent:
        caption += (
            f" Pale: at {naming.listing(silent)}, the decoder is not shown to beat both controls"
            f"{', which takes more than one seed' if rows['seed'].nunique() == 1 else ''}; no verdict rests on it."
        )
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


def reconstructions(results: Results, measured: Measurements, directory: Path) -> list[FigureFile]:
    """Figure 5: test images reconstructed from each layer, for up to three defenses, one figure per dataset."""
    settings = inversion_settings(measured)
    title = "Figure 5. Reconstructions by layer"
    if not settings:
        return [_missing("figure5", title, _NO_INVERSION)]
    setting = settings[0]
    here = measured.inversion[measured.inversion["setting"] == setting.key]
    made = []
    for dataset in measured.datasets:
        rows = here[here["dataset"] == dataset]
        if rows.empty:
            continue
        name = "figure5" if here["dataset"].nunique() == 1 else f"figure5_{naming.file_name(dataset)}"
        shown = f"{title}: {naming.display(dataset)}"
        made.append(_grid(results, measured, setting, rows, name, shown, directory))
    return made


def _shown_defenses(measured: Measurements, present: set[str]) -> list[str]:
    """Up to three defenses, first the paper's: baseline, DP at the smallest ε, L2 with dropout."""
    frame = measured.frame[measured.frame["defense"].isin(present)]
    private = frame[frame["epsilon_spent"].notna()].sort_values("epsilon_spent")
    wanted = [measured.baseline, None if private.empty else str(private["defense"].iloc[0]), "l2_dropout"]
    chosen = [label for label in wanted if label in present]
    chosen += [label for label in measured.defenses if label in present and label not in chosen]
    return [str(label) for label in chosen[:3]]


def _grid(
    results: Results,
    measured: Measurements,
    setting: Setting,
    rows: pd.DataFrame,
    name: str,
    title: str,
    directory: Path,
) -> FigureFile:
    defenses = _shown_defenses(measured, set(rows["defense"]))
    seeds = [set(rows.loc[rows["defense"] == defense, "seed"]) for defense in defenses]
    common = set.intersection(*seeds) if seeds else set()
    names = layers(measured, setting)
    chosen = {}
    for defense in defenses:
        own = rows[rows["defense"] == defense]
        chosen[defense] = own[own["seed"] == (min(common) if common else own["seed"].min())]
    targets = pd.concat(chosen.values())["target_id"] if chosen else []
    examples = read_examples(results, targets, str(rows["attack_id"].iloc[0]))
    pictures = {
        (defense, str(row.layer)): examples.get((row.target_id, row.layer), [])
        for defense, own in chosen.items()
        for row in own.itertuples()
    }
    count = min(_EXAMPLES, max((len(examples) for examples in pictures.values()), default=0))
    if not count:
        return _missing(name, title, "No example images were recorded.")

    step = _TILE + _GAP
    side = min(len(defenses), 3) * step - _GAP  # the original is as tall as its block of rows
    left = side + 3 * _GAP
    block = len(defenses) * step + 2 * _GAP
    canvas = np.ones((count * block - 3 * _GAP, left + len(names) * step - _GAP, 3))
    for example in range(count):
        top = example * block
        for row, defense in enumerate(defenses):
            for column, layer in enumerate(names):
                known = pictures.get((defense, layer), [])
                if example < len(known):
                    tile = _picture(known[example]["reconstruction_png"], _TILE)
                    y, x = top + row * step, left + column * step
                    canvas[y : y + _TILE, x : x + _TILE] = tile
        originals = [known[example] for known in pictures.values() if example < len(known)]
        if originals:
            canvas[top : top + side, :side] = _picture(originals[0]["original_png"], side)

    # The image keeps its proportions. The defenses' names need room on the right.
    height, width = canvas.shape[:2]
    scale = 8.0 / (width + 150)
    figure = new_figure(8.0, scale * (height + 46))
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    axes.text(side / 2, -8, "Original", ha="center", va="bottom", fontsize=8)
    for column, layer in enumerate(names):
        x = left + column * step + _TILE // 2
        axes.text(x, -8, naming.plot_text(layer), ha="center", va="bottom", fontsize=7.5)
    for example in range(count):
        for row, defense in enumerate(defenses):
            y = example * block + row * step + _TILE // 2
            axes.text(width + 8, y, naming.plot_text(defense), ha="left", va="center", fontsize=8)
    caption = (
        "Test images, never seen in training, reconstructed from the target’s activations at each cut point"
        f"{_wording(setting)}; the same images for every defense, one seed. The quality shows how "
        "invertible the target is, not what it memorized."
    )
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))


def _picture(png: bytes | None, size: int) -> npt.NDArray[np.float64]:
    """The image as (size, size, 3) in [0, 1], enlarged without smoothing; gray where there is none."""
    if png is None:
        return np.full((size, size, 3), 0.9)
    with Image.open(io.BytesIO(png)) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=float) / 255


def summary_scatter(measured: Measurements, directory: Path) -> FigureFile:
    """Figure 6: accuracy against the change of inversion MSE and of attack AUC, colored by training time.

    As in the paper, values are averaged over datasets, and the AUC is the best over all scores; below 0.5 it counts as 0.5.
    Deviations: the cut point is the last one at which a decoder is shown to beat both controls; the paper uses the prediction
    layer. Markers distinguish the defenses. 95 % intervals over seeds are drawn.
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
            error_bars(axes, x, y, "#8a8a8a")
            points = axes.scatter(
                [x.mean], [y.mean], c=[time.mean], norm=norm, cmap="viridis", marker=look.marker, s=85,
                edgecolors="#222222", linewidths=0.9, zorder=3,
            )  # fmt: skip
            hollow = replace(look, color="white")
            legend.setdefault(defense, handle(hollow))
        if not shown:
            one_seed = not measured.inversion.empty and measured.inversion["seed"].nunique() == 1
            silent = (
                "One seed cannot show\nwhat a decoder can do"
                if one_seed
                else "No decoder is shown\nto beat both controls"
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
        f"Changes against the baseline of the same seed, averaged over {datasets}{where}; whiskers are 95 % "
        "intervals over seeds. The best corner is the upper right in the left panel, the upper left in the right panel."
    )
    return FigureFile(name=name, title=title, caption=caption, png=save(figure, directory, name))
