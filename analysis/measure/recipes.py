"""How each defense was trained, and whether compared defenses had the same recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import naming
from analysis.measure.targets import Measurements, Setting

_COLUMNS = ("epochs", "batch_size", "learning_rate", "optimizer")
"""The columns of `trials` used if the configuration was not recorded."""
_IMPLIED = {"augmentation_multiplicity": 1}
"""Options that a configuration leaves out where they have these values."""
_MANY = 4
"""So many defenses with the same value of an option are “all others”."""
_NO_PART = frozenset({"evaluate_every"})
"""Options that do not change what is trained."""
SHOWN_FIRST = (*_COLUMNS, "momentum", "sampling", "precision")
OFF = {
    "augmentation": "none",
    "augmentation_multiplicity": "1",
    "clip_grad_norm": "null",
    "ema_decay": "null",
    "nesterov": "false",
    "paired_batches": "false",
    "schedule": "constant",
    "weight_decay": "0",
}
"""Options that are not shown where no recipe uses them, and their values there."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`training` has the options that a sweep sets for all defenses; `own` has the defense's own, in words."""

    training: tuple[tuple[str, str], ...]
    own: str


def recipe(trial: pd.Series) -> Recipe:
    """The recipe of one row of `trials`, from its configuration."""
    try:
        config = json.loads(trial["config"])
        training = _IMPLIED | {key: value for key, value in config["training"].items() if key not in _NO_PART}
        own = "; ".join(_own(dict(defense)) for defense in config["defenses"])
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RecursionError,
    ):  # it was not recorded, or another program wrote it
        training, own = {key: trial[key] for key in _COLUMNS if not pd.isna(trial[key])}, ""
    return Recipe(training=tuple(sorted((key, _text(value)) for key, value in training.items())), own=own)


def _own(options: dict[str, Any]) -> str:
    name = str(options.pop("name", "unnamed"))
    shown = [
        f"{key} {_text(value)}" for key, value in sorted(options.items()) if value is not None and key != "revision"
    ]
    return f"{name}: {', '.join(shown)}" if shown else name


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    # Invisible characters, and characters that change the direction of text, are spelled out.
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, sort_keys=True, default=str)


def with_recipes(measured: Measurements) -> pd.DataFrame:
    """The finished targets with the column `recipe`."""
    frame = measured.frame
    return frame.assign(recipe=pd.Series([recipe(row) for _, row in frame.iterrows()], index=frame.index, dtype=object))


def unequal(measured: Measurements, setting: Setting, dataset: str) -> str:
    """How the recipes of the defenses on one dataset differ, in words; empty if they do not, or if all were searched for alike."""
    rows = measured.at(setting, dataset)
    if searched_alike(rows):
        return ""
    by_key: dict[str, dict[str, list[str]]] = {}
    for defense in measured.defenses:
        for one in (recipe(row) for _, row in rows[rows["defense"] == defense].iterrows()):
            for key, value in one.training:
                labels = by_key.setdefault(key, {}).setdefault(value, [])
                if defense not in labels:
                    labels.append(defense)
    return "; ".join(f"{key_words(key)} {_by_value(values)}" for key, values in by_key.items() if len(values) > 1)


def _by_value(values: dict[str, list[str]]) -> str:
    """“0.5 for DP ε=2 and 0.1 for all others”: which defenses have which value of an option."""
    most = max(values, key=lambda value: len(values[value]))
    if len(values[most]) < _MANY:
        return naming.listing([f"{value} for {_names(labels)}" for value, labels in values.items()])
    fewer = [f"{value} for {_names(labels)}" for value, labels in values.items() if value != most]
    return naming.listing([*fewer, f"{most} for all others"])


def searched_alike(trials: pd.DataFrame) -> bool:
    """Whether the settings of all these targets were chosen by searches with the same number of runs."""
    return len(trials) > 0 and bool(trials["search_id"].notna().all()) and trials["search_runs"].nunique() == 1


def mixed(measured: Measurements, column: str) -> list[str]:
    """The cells whose seeds differ in `column`, each as "Baseline on MNIST"."""
    frame = with_recipes(measured) if column == "recipe" else measured.frame[measured.frame[column].notna()]
    counts = frame.groupby(["setting", "dataset", "defense"], sort=False)[column].nunique()
    several = counts[counts > 1].reset_index()
    return sorted({f"{naming.display(row.defense)} on {naming.display(row.dataset)}" for row in several.itertuples()})


def _names(defenses: list[str]) -> str:
    return naming.listing([naming.display(defense) for defense in defenses])


def key_words(key: str) -> str:
    return key.replace("_", " ")
