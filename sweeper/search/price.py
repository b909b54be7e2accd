"""What a search costs in ε: the price of choosing settings by private data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from models.private.composition import Steps
from sweeper.errors import UserError
from sweeper.search.space import Path
from sweeper.search.unfold import ArmSearch, with_values

if TYPE_CHECKING:
    from models.private.accounting import PrivacyAccounting

_MOST_SETTINGS = 256
"""Most combinations of settings with another ε or another number of steps; each takes up to seconds to account for."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """ε of one run, of a search that releases its best run, and of one that also trains anew with the best run's settings.

    Each protects the examples that runs are trained on. `basis` says how it was computed, or why there is none.
    """

    epsilon_run: float | None
    epsilon_with_search: float | None
    epsilon_trained_anew: float | None
    delta: float | None
    basis: str


def price_of(arm: ArmSearch, data_dir: FilePath) -> Price:
    """The price of an arm's search, known before it starts.

    Raises:
        UserError: the space has fields that change a run's privacy and cannot be listed, or too many combinations of them.
    """
    if not arm.is_accounted:
        return _without("its runs have no guarantee")
    found = _accounted(arm, data_dir)
    if found is None:
        return _without("some of its settings have no guarantee")
    settings = tuple(dict.fromkeys(steps for steps, _ in found))
    accounting = found[0][1]
    run = max(each.guarantee(steps.steps).epsilon for steps, each in found)
    plan = arm.plan
    if plan.leak is not None:
        basis = "an attack's results choose the run, and no guarantee covers these"
        return replace(_without(basis), epsilon_run=run, delta=accounting.delta)
    if arm.cell.training.paired_batches:
        basis = "all runs draw the same batches (paired_batches), and no guarantee covers several of them"
        return replace(_without(basis), epsilon_run=run, delta=accounting.delta)
    from models.private.tuning import divergences_of_a_run, epsilon_of_all_runs, epsilon_of_best_run

    if plan.settings.private:
        divergences = divergences_of_a_run(settings)
        best, anew = (
            epsilon_of_best_run(divergences, plan.number_of_runs, accounting.delta, trained_anew=trained_anew)
            for trained_anew in (False, True)
        )
        basis = f"best of a random number of runs ({plan.law_text}) by Papernot & Steinke 2022, against whoever does not know it"
    else:
        best, anew = (
            epsilon_of_all_runs(settings, n_runs, accounting.delta, accounting.accountant)
            for n_runs in (plan.n_runs, plan.n_runs + 1)
        )
        basis = f"composition of all {plan.n_runs} runs"
    return Price(
        epsilon_run=run, epsilon_with_search=best, epsilon_trained_anew=anew, delta=accounting.delta, basis=basis
    )


def _without(basis: str) -> Price:
    return Price(epsilon_run=None, epsilon_with_search=None, epsilon_trained_anew=None, delta=None, basis=basis)


def _accounted(arm: ArmSearch, data_dir: FilePath) -> list[tuple[Steps, PrivacyAccounting]] | None:
    """What the accountant sees of every setting that a run may have; None if some have no accounting."""
    middle = {path: each.at(0.5) for path, each in arm.fields.items()}
    # Of many values, a few tell whether the field matters to ε at all.
    candidates: dict[Path, Sequence[Any]] = {
        path: each.values
        if each.values is not None and len(each.values) <= _MOST_SETTINGS
        else tuple(dict.fromkeys(each.at(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)))
        for path, each in arm.fields.items()
    }
    tried = [(path, middle | {path: value}) for path, values in candidates.items() for value in values]
    seen: dict[Path, set[object]] = {}
    keys = _keys(arm, [values for _, values in tried], data_dir)
    if keys is None:
        return None
    for (path, _), key in zip(tried, keys, strict=True):
        seen.setdefault(path, set()).add(_fact(*key))
    counted = [path for path in arm.fields if len(seen[path]) > 1]
    for path in counted:
        values = arm.fields[path].values
        if values is not None and len(values) > _MOST_SETTINGS:
            raise UserError(
                f"search.space: '{path[-1]}' of {arm.cell.defense_label} has {len(values):,} values with an ε of their own; at "
                f"most {_MOST_SETTINGS} are possible. Give it fewer."
            )
        if values is None:
            raise UserError(
                f"search.space: '{path[-1]}' changes what a run of {arm.cell.defense_label} reveals, so all its values must be known "
                f"beforehand. Write it as {{choice: [{arm.fields[path].at(0.25):g}, {arm.fields[path].at(0.75):g}]}}."
            )
    combinations = math.prod(len(candidates[path]) for path in counted)
    if combinations > _MOST_SETTINGS:
        raise UserError(
            f"search.space: {' and '.join(path[-1] for path in counted)} of {arm.cell.defense_label} have {combinations:,} "
            f"combinations, each with an ε of its own; at most {_MOST_SETTINGS} are possible. Give them fewer values."
        )
    points = [
        middle | dict(zip(counted, values, strict=True)) for values in product(*(candidates[path] for path in counted))
    ]
    return _keys(arm, points, data_dir)


def _keys(
    arm: ArmSearch, points: Sequence[dict[Path, Any]], data_dir: FilePath
) -> list[tuple[Steps, PrivacyAccounting]] | None:
    from sweeper.sweep.preflight import resolve_trials

    resolved, _ = resolve_trials([replace(with_values(arm.cell, each), search_run=0) for each in points], data_dir)
    found = []
    for each in resolved:
        accounting = each.plan.accounting
        if accounting is None:
            return None
        steps = Steps(accounting.noise_multiplier, accounting.sample_rate, each.plan.total_steps)
        found.append((steps, accounting))
    return found


def _fact(steps: Steps, accounting: PrivacyAccounting) -> tuple[object, ...]:
    """Equal where the accountant sees no difference."""
    return (*steps, accounting.delta, accounting.accountant)


def as_json(arm: ArmSearch, price: Price, targets: Sequence[str]) -> dict[str, Any]:
    """A search as `sweep.json` has it. `targets` are the ids of those that were trained with its best settings."""
    best = arm.best
    cell = arm.cell
    return {
        "search_id": arm.search_id,
        "defense": cell.defense_label,
        "dataset": cell.dataset_label,
        "split": cell.split_label,
        "architecture": cell.architecture_label,
        "optimizer": cell.optimizer_label,
        "searcher": arm.plan.settings.searcher,
        "objective": arm.plan.objective_text,
        "search_runs": arm.plan.n_runs,
        "search_law": arm.plan.law_text,
        "epsilon_shown": arm.plan.settings.epsilon,
        "runs": [run.trial.target_id for run in arm.runs],
        "drawn": [{".".join(filter(None, path)): value for path, value in run.values.items()} for run in arm.runs],
        "best_run": best.number if best else None,
        "targets": list(targets),
        **asdict(price),
    }
