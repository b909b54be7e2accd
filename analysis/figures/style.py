"""How figures look: colors, markers, sizes, and writing them as PNG, SVG and PDF.

The colors are those of Okabe & Ito (2008), which stay distinct under the common forms of color blindness. Markers and line
styles also differ, so no figure depends on color alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import naming, presentation
from analysis.measure.targets import Measurements
from analysis.presentation import MARKERS

DPI = 170
DIRECT_LABEL = "direct-label"
"""The group id of a text that names a mark: it stands at the mark, until `save` moves it."""
INK = "#222222"
GRID = "#dddddd"
MUTED = "#666666"

_COOL = ["#0072B2", "#56B4E9", "#009E73"]
_WARM = ["#E69F00", "#D55E00", "#CC79A7", "#F0E442"]
_BLACK = "#000000"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))

# These apply in a context, not in the whole process, so a user's own matplotlib settings stay in force.
_PARAMETERS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",  # the file looks the same if DejaVu Sans is not installed
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "sweeper",  # the same results give the same file
    "savefig.facecolor": "white",
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Color, marker and line style of one defense, the same in every figure."""

    color: str
    marker: str
    dashes: Any


@dataclass(frozen=True, kw_only=True)
class FigureFile:
    """A figure that was written. If it could not be made, `missing` says why and `png` is None."""

    name: str
    title: str
    caption: str
    png: Path | None
    missing: str = ""


def looks(measured: Measurements) -> dict[str, Look]:
    """The look of each defense: black for the baseline, cool colors with a formal guarantee, warm ones without,
    until they run out; or what the user's presentation says."""
    cool, warm = list(_COOL), list(_WARM)
    chosen: dict[str, Look] = {}
    own_look = presentation.current()
    for index, defense in enumerate(measured.defenses):
        if defense == measured.baseline:
            color = _BLACK
        else:
            own, other = (cool, warm) if defense in measured.guaranteed else (warm, cool)
            color = own.pop(0) if own else other.pop(0) if other else [*_COOL, *_WARM][index % 7]
        marker = MARKERS[index % len(MARKERS)]
        chosen[defense] = Look(
            color=own_look.colors.get(defense, color),
            marker=own_look.markers.get(defense, marker),
            dashes=_DASHES[index % len(_DASHES)],
        )
    return chosen


def style() -> Any:
    """A context in which figures have the style of all reports."""
    return mpl.rc_context(_PARAMETERS)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, on the Agg canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Writes NAME.png, NAME.svg and NAME.pdf under `directory`. Returns the path of the PNG."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.png"
    # Computing the layout takes half of the drawing time, so both files share one.
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _separate_labels(figure)
    figure.savefig(path, dpi=DPI)
    # No date: the same results give the same file.
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    return path


def _separate_labels(figure: Figure) -> None:
    """Moves direct labels off their marks and off each other. Sizes must be final."""
    from adjustText import adjust_text  # imports pyplot, which reads users' settings; only where it is needed

    for axes in figure.axes:
        names = [text for text in axes.texts if text.get_gid() == DIRECT_LABEL]
        if names:
            x, y = zip(*(text.get_position() for text in names), strict=True)
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5}
            # A limit of steps, not of time: the same results give the same file.
            adjust_text(
                names, x=x, y=y, ax=axes, expand=(1.15, 1.35), force_text=(0.3, 0.5), iter_lim=800, arrowprops=line
            )


def handle(look: Look) -> Line2D:
    """A defense's entry in a legend of points."""
    return Line2D(
        [],
        [],
        color=look.color,
        marker=look.marker,
        linestyle="none",
        markersize=7,
        markeredgecolor=INK,
        markeredgewidth=0.6,
    )


def say(axes: Axes, text: str) -> None:
    """Writes `text` in the middle of a panel that has nothing to show."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=MUTED, wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def legend_below(figure: Figure, entries: Mapping[str, Any], columns: int = 4) -> None:
    """One legend for the whole figure, below its panels; `entries` has a handle per label."""
    # About 14 characters fit in an inch, so the longest label limits the number of columns.
    names = [naming.plot_text(label) for label in entries]
    longest = max(map(len, names), default=0)
    columns = min(columns, len(names), int(14 * figure.get_figwidth() / (longest + 8)))
    figure.legend(
        list(entries.values()),
        names,
        loc="outside lower center",
        ncols=max(1, columns),
        handlelength=2.6,
        columnspacing=1.6,
    )
