"""Unfolds the searches of a sweep: which runs are known by now, and what each arm's best run was.

A search is a pure function of its plan and of the recorded results of its runs. So a launch that ended early goes on where it was,
and a run that is recorded is never trained again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from models.defenses.base import AccountedMechanism, Mechanism
from models.seeds import Stream
from models.train import own_trainer
from sweeper.errors import UserError, unknown_name
from sweeper.search.early_stopping import Halving
from sweeper.search.space import Distribution, Path
from sweeper.search.spec import SearchPlan
from sweeper.sweep import components
from sweeper.sweep.identity import identity
from sweeper.sweep.trial import Trial

Values = Mapping[Path, Any]
"""What was drawn for each field."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good a recorded run is, `accuracy` on its validation examples and what an attack saw of it, if the plan limits that.

    A run whose training diverged has no accuracy. One that was stopped early has that of its last epoch, and cannot be the best.
    """

    accuracy: float | None
    leak: float | None = None
    is_stopped: bool = False
    reached: Mapping[int, float] = field(default_factory=dict)
    """Validation accuracy by epoch, if runs may be stopped early."""

    def objective(self, most: float | None) -> float:
        """What a search maximizes. Runs that leak more than `most` come after all others, the least leak first."""
        if self.accuracy is None:
            return -math.inf
        if most is None or self.leak is None or self.leak <= most:
            return self.accuracy
        return most - self.leak


Scores = Callable[[Trial, SearchPlan], Score | None]
"""The score of a run, or None if it is not recorded."""


def nothing_recorded(trial: Trial, plan: SearchPlan) -> Score | None:
    """The scores of a sweep of which nothing is recorded."""
    return None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a search: what was drawn, the trial that trains it, and its score if it is recorded."""

    number: int
    values: Values
    trial: Trial
    score: Score | None = None


@dataclass(frozen=True, kw_only=True)
class ArmSearch:
    """One arm's search as far as it is known. `cell` is a trial of the arm without anything drawn."""

    plan: SearchPlan
    cell: Trial
    fields: Mapping[Path, Distribution]
    runs: Sequence[Run] = ()

    @property
    def is_over(self) -> bool:
        return len(self.runs) == self.plan.n_runs and all(run.score is not None for run in self.runs)

    @property
    def n_to_come(self) -> int:
        """Runs whose settings are not known yet."""
        return self.plan.n_runs - len(self.runs)

    @property
    def best(self) -> Run | None:
        """The best run of a search that is over, the first of equal ones; None if all runs diverged, or while it goes on."""
        if not self.is_over:
            return None
        most = self.plan.leak.most if self.plan.leak else None
        scored = [
            (run.score.objective(most), -run.number, run)
            for run in self.runs
            if run.score is not None and not run.score.is_stopped
        ]
        value, _, run = max(scored, key=lambda each: each[:2], default=(-math.inf, 0, None))
        return run if value > -math.inf else None

    @property
    def is_accounted(self) -> bool:
        """Whether its runs have a guarantee."""
        return any(isinstance(defense, AccountedMechanism) for defense in self.cell.defenses)

    @property
    def stops_early(self) -> bool:
        """Whether its runs may be stopped before their last epoch."""
        has_mechanism = any(isinstance(defense, Mechanism) for defense in self.cell.defenses)
        is_one_training = not has_mechanism and own_trainer(self.cell.defenses) is None
        return self.plan.settings.early_stopping == "asha" and is_one_training

    @property
    def halving(self) -> Halving:
        """What ASHA needs to know of its runs that have ended."""
        settings = self.plan.settings
        return Halving(
            epochs=self.cell.training.epochs,
            grace_epochs=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
            reached={run.trial.target_id: run.score.reached for run in self.runs if run.score and run.score.reached},
        )

    @property
    def early_stop(self) -> str | None:
        """A hash of what decides which of its runs are stopped: the arm, its space, and ASHA's settings. None if none may be.

        The number of runs is left out, so that a search that gets more of them keeps those it has.
        """
        if not self.stops_early:
            return None
        settings = self.plan.settings
        asha = {"grace_epochs": settings.grace_epochs, "reduction_factor": settings.reduction_factor}
        return identity({**self._what, "asha": asha})

    @property
    def _what(self) -> dict[str, Any]:
        return {
            "cell": self.cell.config,
            "fields": {".".join(path): asdict(each) for path, each in self.fields.items()},
        }

    @property
    def search_id(self) -> str:
        """A hash of the arm, its space and its plan."""
        return identity(
            {
                **self._what,
                "settings": {name: value for name, value in asdict(self.plan.settings).items() if name != "epsilon"},
                "leak": self.plan.leak and [self.plan.leak.attack_id, self.plan.leak.metric, self.plan.leak.most],
            }
        )


def unfold(cell: Trial, plan: SearchPlan, scores: Scores) -> ArmSearch:
    """The search of an arm, with all runs that are known by the recorded `scores`.

    Raises:
        UserError: the arm has nothing to draw, or a drawn value is out of range.
    """
    arm = ArmSearch(
        plan=plan,
        cell=replace(cell, seed=plan.settings.seed, comparisons=(), attacks=()),
        fields=_fields_of(cell, plan),
    )
    for path, each in arm.fields.items():  # also those that are never drawn
        for value in each.options or (each.at(0.0), each.at(1.0)):
            with_values(arm.cell, {path: value})
    proposals = _random(arm) if plan.settings.searcher == "random" else _optuna(arm, lambda run: scores(run, plan))
    runs: list[Run] = []
    seen: dict[str, int] = {}
    for number, values in enumerate(proposals):
        trial = _trial(arm, number, values)
        if plan.settings.private and arm.is_accounted:
            # Drawn twice, it is trained twice: the price holds for runs that share no noise.
            repeat = seen.get(trial.target_id, 0)
            seen[trial.target_id] = repeat + 1
            trial = replace(trial, repeat=repeat)
        score = scores(trial, plan)
        if score is not None and (score.accuracy is None or score.is_stopped):
            trial = replace(trial, attacks=())  # there is nothing to attack
        runs.append(Run(number=number, values=values, trial=trial, score=score))
    return replace(arm, runs=tuple(runs))


def with_values(trial: Trial, values: Values) -> Trial:
    """The trial with drawn values in their fields.

    Raises:
        UserError: a value is out of range.
    """
    where = f"search of {trial.defense_label}"
    training = {path[-1]: value for path, value in values.items() if path[0] == "training"}
    architecture = {path[-1]: value for path, value in values.items() if path[0] == "architecture"}
    defenses = [
        _changed(
            "defense", defense, {path[-1]: value for path, value in values.items() if _is_of(path, defense)}, where
        )
        for defense in trial.defenses
    ]
    return replace(
        trial,
        training=components.validate(type(trial.training), asdict(trial.training) | training, f"{where}: training"),
        architecture=_changed("architecture", trial.architecture, architecture, where),
        defenses=tuple(defenses),
    )


def _changed(kind: str, component: Any, values: Mapping[str, Any], where: str) -> Any:
    if not values:
        return component
    name = components.name_of(kind, component)
    own = {
        each.name: value
        for each in fields(component)
        if each.init and (value := getattr(component, each.name)) is not None
    }
    return components.validate(type(component), own | dict(values), f"{where}: {name}")


def _is_of(path: Path, defense: Any) -> bool:
    """Whether the field is this defense's."""
    if path[0] != "defense":
        return False
    return path[1] in ("", components.name_of("defense", defense)) and path[2] in asdict(defense)


_NEVER_DRAWN = ("optimizer", "paired_batches", "delta", "accountant", "secure_noise")
"""Fields that say what is compared or proved, not how well a training goes."""


def _fields_of(cell: Trial, plan: SearchPlan) -> dict[Path, Distribution]:
    """The fields that are drawn in this arm."""
    found: dict[Path, Distribution] = {}
    for path, distribution in plan.space.of(cell.defense_label).items():
        owners = 1
        if path == ("training", "epochs") and plan.settings.early_stopping != "none":
            raise UserError(
                "search.space: early stopping compares runs epoch by epoch, so they need the same number of epochs; do not draw "
                "`epochs`."
            )
        if path[0] == "training":
            if path[1] not in asdict(cell.training) or path[1] in _NEVER_DRAWN:
                allowed = ", ".join(name for name in asdict(cell.training) if name not in _NEVER_DRAWN)
                raise UserError(
                    f"search.space: training has no field '{path[1]}' that can be drawn. Fields: {allowed}."
                )
        elif path[0] == "architecture":
            owners = int(path[1] in asdict(cell.architecture))
            if not owners and path in plan.space.of_arms.get(cell.defense_label, {}):
                unknown = unknown_name("field of its architecture", path[1], asdict(cell.architecture))
                raise UserError(f"search.space.defenses.{cell.defense_label}: {unknown}")
        else:
            if path[-1] in _NEVER_DRAWN:
                raise UserError(
                    f"search.space.defenses.{cell.defense_label}: '{path[-1]}' says what is proved, so it must be the same for all "
                    "runs; do not draw it."
                )
            owners = sum(_is_of(path, defense) for defense in cell.defenses)
            if owners == 1:
                owner = next(defense for defense in cell.defenses if _is_of(path, defense))
                path = ("defense", components.name_of("defense", owner), path[-1])
                if path in found:
                    raise UserError(
                        f"search.space.defenses.{cell.defense_label}: '{path[-1]}' of {path[1]} has two distributions; keep one."
                    )
            else:
                raise UserError(
                    f"search.space.defenses.{cell.defense_label}: {owners} of its defenses have a field '{path[-1]}'. Name the defense "
                    f"that you mean: {{{components.name_of('defense', cell.defenses[0])}: {{{path[-1]}: …}}}}."
                )
        if owners:
            found[path] = distribution
    if not found:
        raise UserError(
            f"search.space: arm '{cell.defense_label}' has nothing to draw, so it would not be tuned as the others are. Give it "
            "fields, or put it into a part with `search: null`."
        )
    return found


def _trial(arm: ArmSearch, number: int, values: Values) -> Trial:
    trial = replace(with_values(arm.cell, values), search_run=number)
    if arm.stops_early:
        trial = replace(trial, early_stop=arm.early_stop)
    leak = arm.plan.leak
    return replace(trial, attacks=(leak.attack,)) if leak else trial


def _random(arm: ArmSearch) -> Iterator[Values]:
    """Independent draws. A field has the same draws in all arms that have it."""
    shares = {}
    for path in arm.fields:
        key = int.from_bytes(hashlib.sha256("/".join(path).encode()).digest())
        generator = np.random.default_rng([arm.plan.settings.seed, Stream.SEARCH, 1, key])
        shares[path] = generator.random(arm.plan.n_runs)
    for number in range(arm.plan.n_runs):
        yield {path: each.at(float(shares[path][number])) for path, each in arm.fields.items()}


def _optuna(arm: ArmSearch, score_of: Callable[[Trial], Score | None]) -> Iterator[Values]:
    """Proposals of Optuna's TPE, so many at once, until results of the last ones are missing."""
    from sweeper.cluster.searcher import Proposer

    most = arm.plan.leak.most if arm.plan.leak else None
    proposer = Proposer({".".join(path): each for path, each in arm.fields.items()}, arm.plan.settings.seed)
    paths = {".".join(path): path for path in arm.fields}
    n_runs, done = arm.plan.n_runs, 0
    while done < n_runs:
        count = min(arm.plan.settings.at_once, n_runs - done)
        batch = [
            {paths[name]: arm.fields[paths[name]].rounded(value) for name, value in proposed.items()}
            for proposed in proposer.propose(count)
        ]
        yield from batch
        found = [score_of(_trial(arm, done + place, values)) for place, values in enumerate(batch)]
        if any(score is None for score in found):
            return
        proposer.tell([score.objective(most) for score in found if score is not None])
        done += count
