"""The searches that chose the settings of arms: what was drawn, what won, and what that costs in ε."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.load import Results

_ARM = ["dataset", "split_label", "architecture", "optimizer", "defense"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one arm.

    `n_runs` different settings are on record, of `n_planned` runs; of runs with equal settings, one is trained. It `is_over` if targets
    have its best settings. `chosen` has what was drawn, in the best run, as field and value. Accuracies are those
    on the validation examples. The three ε are those of the columns of the same names.
    """

    dataset: str
    split: str
    architecture: str
    optimizer: str
    defense: str
    n_runs: int
    n_planned: int
    is_over: bool
    law: str
    n_diverged: int
    best: float | None
    median: float | None
    chosen: tuple[tuple[str, str], ...]
    epsilon_run: float | None
    epsilon_with_search: float | None
    epsilon_trained_anew: float | None


def searches(results: Results) -> list[Search]:
    """The searches of all arms, in the order of the results."""
    runs = results.search_runs
    found = []
    for _, arm in runs.groupby(_ARM, sort=False) if len(runs) else ():
        targets = results.trials
        for name in _ARM:
            targets = targets[targets[name] == arm[name].iloc[0]]
        finished = arm[arm["validation_accuracy"].notna()]
        first = arm.iloc[0]
        found.append(
            Search(
                dataset=str(first["dataset"]),
                split=str(first["split_label"]),
                architecture=str(first["architecture"]),
                optimizer=str(first["optimizer"]),
                defense=str(first["defense"]),
                n_runs=len(arm),
                n_planned=int(first["search_runs"]) if pd.notna(first["search_runs"]) else len(arm),
                is_over=len(targets) > 0,
                law=str(first["search_law"]) if pd.notna(first["search_law"]) else "",
                n_diverged=int((arm["cause"] == "diverged").sum()),
                best=float(finished["validation_accuracy"].max()) if len(finished) else None,
                median=float(finished["validation_accuracy"].median()) if len(finished) else None,
                chosen=_chosen(arm, targets),
                epsilon_run=_known(first["epsilon_run"]),
                epsilon_with_search=_known(first["epsilon_with_search"]),
                epsilon_trained_anew=_known(first["epsilon_trained_anew"]),
            )
        )
    return found


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _chosen(runs: pd.DataFrame, targets: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    """The settings of the evaluated targets in which the runs differ."""
    if targets.empty:
        return ()
    try:
        drawn = [_flat(json.loads(config)) for config in runs["config"]]
        chosen = _flat(json.loads(targets["config"].iloc[0]))
    except (TypeError, ValueError, RecursionError):  # another program wrote it
        return ()
    names = [name for name in drawn[0] if len({each.get(name) for each in drawn}) > 1 and name != "repeat"]
    return tuple((name.rpartition(".")[2], chosen.get(name, "")) for name in names)


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Each setting by its path, as JSON."""
    if isinstance(config, dict):
        pairs = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in config.items()]
    elif isinstance(config, list) and any(isinstance(each, dict) for each in config):
        pairs = [(f"{prefix}.{place}", value) for place, value in enumerate(config)]
    else:
        return {prefix: f"{config:g}" if isinstance(config, float) else json.dumps(config)}
    return {name: value for path, each in pairs for name, value in _flat(each, path).items()}
