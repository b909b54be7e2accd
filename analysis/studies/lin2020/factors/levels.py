"""The factors of the paper and their levels: order and names."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import naming
from analysis.studies.lin2020 import numbers as lin2020

MECHANISMS = ("clip_then_noise", "noise_then_clip", "quantile_clipping", "noised_quantile")
"""The mechanisms that the paper compares, and the noised quantile, which is ours."""

NORMAL, CA, AC = "normal", "CA", "AC"
QUANTILES = ("quantile_flat", "quantile_per_layer", "noised_quantile")
SEQUENCES = (CA, AC)
KINDS = (NORMAL, *SEQUENCES, *QUANTILES)

FACTORS = ("dataset", "model", "optimizer", "noise", "clip", "sequence")
"""The factors, by their columns. `sequence`, the paper's word, says whether clipping or noise comes first."""

CELL = ("dataset", "model", "optimizer")
PAIR = (*CELL, "noise", "clip", "seed")
"""What an AC trial and its CA trial have in common."""

Cell = tuple[str, str, str]
"""(dataset, model, optimizer)."""

_NAMES = {
    NORMAL: "Normal",
    "quantile_flat": "Quantile, flat",
    "quantile_per_layer": "Quantile, per layer",
    "noised_quantile": "Noised quantile",
    "dp_sgd": "DP-SGD",
}


def kind_name(kind: str) -> str:
    """The name of a kind of training in tables and figures."""
    return _NAMES.get(kind, kind)


def ordered(factor: str, values: pd.Series) -> list[Any]:
    """The distinct known values: first those of the paper in its order, then the others, sorted."""
    known: dict[str, tuple[Any, ...]] = {
        "dataset": lin2020.DATASETS,
        "model": tuple(lin2020.MODELS),
        "optimizer": lin2020.OPTIMIZERS,
        "sequence": SEQUENCES,
        "kind": KINDS,
    }
    first = known.get(factor, ())
    present = set(values.dropna())
    return [value for value in first if value in present] + sorted(present - set(first))


def raw_level(factor: str, level: Any) -> str:
    """A level as text: a number, or the label of the sweep file."""
    return f"{level:g}" if factor in ("noise", "clip") else str(level)


def level_name(factor: str, level: Any) -> str:
    """A level as shown to readers."""
    return naming.display(raw_level(factor, level))


def cell_name(cell: Cell) -> str:
    """“MNIST, CNN, Adam”."""
    return ", ".join(naming.display(label) for label in cell if label)
