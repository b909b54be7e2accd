"""What a search of a sweep is: how many runs each arm gets, how their settings are drawn, and how the best is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from attacks.base import Attack
from models.private.number_of_runs import MOST_RUNS, Law, NumberOfRuns
from models.seeds import Stream, numpy_generator
from sweeper.errors import UserError, shown, unknown_name
from sweeper.search.space import Space, check_space
from sweeper.sweep import components
from sweeper.sweep.identity import attack_id

LEAK_METRICS = ("auc", "tpr_at_fpr_0.1", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")
"""Columns of the table `attacks` by which a search may limit a leak."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A limit on what an attack sees of a run: `metric`, of the attack's best score, is at most `most`."""

    attack: Attack
    metric: str
    most: float

    @property
    def attack_id(self) -> str:
        return attack_id(self.attack)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search goes, apart from its space; `SearchPlan` says what the fields mean."""

    runs: int
    validation: int
    searcher: Literal["random", "optuna"] = "random"
    at_once: int = 4
    early_stopping: Literal["none", "asha"] = "none"
    grace_epochs: int = 1
    reduction_factor: int = 3
    private: bool = False
    law: Law = "logarithmic"
    epsilon: Literal["run", "search"] = "run"
    seed: int = 1_000_000

    def __post_init__(self) -> None:
        limits = {"runs": (1, MOST_RUNS), "at_once": (1, MOST_RUNS), "validation": (1, 2**40)}
        limits |= {"grace_epochs": (1, 10**6), "reduction_factor": (2, 100)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low} and at most {high:,}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; a seed is a whole number from 0 to {2**32 - 1}")
        if self.private and self.searcher != "random":
            raise ValueError(
                f"private is true, but searcher is {self.searcher}. The price of a private search holds only if each run's settings "
                "are drawn independently of all results; set searcher: random"
            )


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search that every arm of a part gets, with the same number of runs.

    - `runs`: targets trained per arm; with `private` the mean of their number, which is drawn from `law` once for all arms.
    - `validation`: examples of the pool that choose the best run, and have no other use.
    - `searcher`: `random` draws all settings beforehand. `optuna` (its TPE, through Ray Tune) proposes `at_once` at a time, by the
      results so far.
    - `early_stopping`: with `asha`, Ray Tune's ASHA stops a run if its validation accuracy after `grace_epochs` epochs, or that times
      a power of `reduction_factor`, is not among the best 1 / `reduction_factor`. Arms that add noise to gradients, and
      defenses that train several models, run to the end: their accounting and noise, or their epochs, are not those of one training.
    - `epsilon`: the ε that reports show first, of one run or with its search; they show both.
    - `seed`: of the draws, and of the runs' trainings. No target that is evaluated has it.
    - `leak`: if set, the best run is the most accurate one that stays below it.
    """

    space: Space
    settings: Settings
    leak: Leak | None = None

    @property
    def n_runs(self) -> int:
        """The number of runs of each arm."""
        if not self.settings.private:
            return self.settings.runs
        return self.number_of_runs.draw(numpy_generator(self.settings.seed, Stream.SEARCH))

    @property
    def number_of_runs(self) -> NumberOfRuns:
        """The law of a private search's number of runs."""
        return NumberOfRuns(law=self.settings.law, mean=float(self.settings.runs))

    @property
    def law_text(self) -> str:
        """The law in words, as in the column `search_law`."""
        if not self.settings.private:
            return "fixed"
        return f"{self.settings.law}, mean {self.settings.runs}"

    @property
    def objective_text(self) -> str:
        """The objective in words."""
        if self.leak is None:
            return "validation accuracy"
        attack = components.name_of("attack", self.leak.attack)
        return f"validation accuracy where {attack}'s {self.leak.metric} is at most {self.leak.most:g}"


def check_search(raw: object, labels: Mapping[str, object], path: str) -> SearchPlan:
    """The search of a part with these arms, from its mapping in a sweep file.

    Raises:
        UserError: anything in it is wrong.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{path}: got {shown(raw)}; it must be a mapping with runs, validation and space.")
    names = [field.name for field in dataclasses.fields(Settings)]
    for key in raw:
        if key not in (*names, "space", "objective"):
            raise UserError(f"{path}: {unknown_name('key', key, (*names, 'space', 'objective'))}")
    settings = components.validate(Settings, {key: raw[key] for key in names if key in raw}, path)
    leak = _leak(raw.get("objective", "validation_accuracy"), f"{path}.objective")
    if leak is not None and settings.early_stopping != "none":
        raise UserError(
            f"{path}: early_stopping is {settings.early_stopping}, which compares accuracies alone and would stop the runs that "
            "leak least. Leave it out, or choose by validation_accuracy."
        )
    if leak is not None and settings.private:
        raise UserError(
            f"{path}: private is true, but the objective asks an attack, whose results no guarantee covers. Choose by "
            "validation_accuracy."
        )
    return SearchPlan(
        space=check_space(raw.get("space"), labels, f"{path}.space"),
        settings=settings,
        leak=leak,
    )


def _leak(raw: object, path: str) -> Leak | None:
    if raw == "validation_accuracy":
        return None
    allowed = "validation_accuracy, or {attack: threshold, metric: auc, most: 0.55}"
    if not isinstance(raw, dict) or set(raw) != {"attack", "metric", "most"}:
        raise UserError(f"{path}: got {shown(raw)}; it must be {allowed}.")
    attack: Attack = components.build("attack", raw["attack"], f"{path}.attack")
    if not attack.result.ranks_examples or attack.needs_shadow_data:
        raise UserError(
            f"{path}.attack: '{components.name_of('attack', attack)}' does not score each example of one target; take threshold."
        )
    if raw["metric"] not in LEAK_METRICS:
        raise UserError(f"{path}.metric: {unknown_name('metric', raw['metric'], LEAK_METRICS)}")
    most: Any = raw["most"]
    if isinstance(most, bool) or not isinstance(most, int | float) or not 0 <= most <= 1:
        raise UserError(f"{path}.most: got {shown(most)}; it must be a number from 0 to 1.")
    return Leak(attack=attack, metric=raw["metric"], most=float(most))
