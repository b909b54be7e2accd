"""Expands a checked sweep into its trials, and selects some of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, zip_longest

from attacks.base import Attack
from attacks.comparisons.base import Comparison
from models.architectures.base import Architecture
from models.datasets.base import Dataset
from models.defenses.base import Defense
from models.splits import SplitPlan
from models.train import Training
from sweeper.errors import UserError, unknown_name
from sweeper.search.spec import SearchPlan
from sweeper.search.unfold import ArmSearch, Scores, nothing_recorded, unfold, with_values
from sweeper.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Part:
    """One grid of a sweep. Every combination of its axes is a trial. Keys are the labels of tables and figures.

    `trainings` is the axis of optimizers: one training per label.
    """

    name: str
    datasets: dict[str, Dataset]
    splits: dict[str, SplitPlan]
    architectures: dict[str, Architecture]
    defenses: dict[str, tuple[Defense, ...]]
    trainings: dict[str, Training]
    seeds: tuple[int, ...]
    attacks: tuple[Attack, ...]
    comparisons: tuple[Comparison, ...] = ()
    queries: int = 1
    search: SearchPlan | None = None
    """How each arm's settings are chosen before its trials; None if they are as they stand."""

    @property
    def size(self) -> int:
        """The number of trials, runs of searches included."""
        axes: tuple[Sized, ...] = (self.datasets, self.splits, self.architectures, self.trainings, self.defenses)
        n_runs = self.search.n_runs if self.search else 0
        return math.prod(map(len, axes)) * (n_runs + len(self.seeds))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep."""

    name: str
    summary: str
    paper: str
    cost: str
    expected: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Arms:
    """What a sweep consists of, as far as it is known: its trials, and the searches that choose the settings of some."""

    trials: list[Trial]
    """All trials: the runs of searches first, then the targets that are evaluated, in the order of their seeds."""
    searches: list[ArmSearch]

    def targets_of(self, arm: ArmSearch) -> list[str]:
        """Ids of the targets that are trained with the best settings of a search."""
        best = arm.best
        if best is None:
            return []
        where = (*arm.cell.labels, arm.cell.split_label)
        # Trials of another part may have the same labels, and settings that were given by hand.
        return [
            trial.target_id
            for trial in self.trials
            if trial.search_run is None
            and (*trial.labels, trial.split_label) == where
            and trial.settings == best.trial.settings
        ]


def expand(sweep: Sweep, only: Sequence[str] = ()) -> list[Trial]:
    """All trials of the sweep, or those that `select` keeps; of arms that are searched for, the runs that are known at its start.

    Raises:
        UserError: as `arms_of`, or a pattern matches no trial.
    """
    return select(arms_of(sweep).trials, only)


def arms_of(sweep: Sweep, scores: Scores = nothing_recorded) -> Arms:
    """All trials and searches of the sweep, by the recorded scores of its searches' runs; trials with one target are merged.

    Raises:
        UserError: one configuration has two labels, one label has two configurations, or a search's space does not fit an arm.
    """
    by_id: dict[str, Trial] = {}
    searches = {part.name: _searches(sweep.name, part, scores) for part in sweep.parts}
    rounds: Iterator[Iterable[Trial]] = chain(
        ([run.trial for run in arm.runs] for arms in searches.values() for arm in arms),
        chain.from_iterable(
            zip_longest(*(_rounds(sweep.name, part, searches[part.name]) for part in sweep.parts), fillvalue=())
        ),
    )
    for one_round in rounds:
        for trial in one_round:
            known = by_id.get(trial.target_id)
            if known is not None:
                if known.labels != trial.labels:
                    raise UserError(
                        f"{' · '.join(known.labels)} and {' · '.join(trial.labels)} are the same configuration under "
                        "two labels; keep one."
                    )
                trial = dataclasses.replace(
                    known,
                    parts=tuple(dict.fromkeys(known.parts + trial.parts)),
                    attacks=tuple(dict.fromkeys(known.attacks + trial.attacks)),
                    comparisons=tuple(dict.fromkeys(known.comparisons + trial.comparisons)),
                    queries=max(known.queries, trial.queries),
                )
            by_id[trial.target_id] = trial
    trials = list(by_id.values())
    seen: dict[tuple[object, ...], Trial] = {}
    for trial in trials:
        if trial.search_run is not None:
            continue
        first = seen.setdefault((*trial.labels, trial.split_label), trial)
        if first.settings != trial.settings:
            raise UserError(
                f"Parts '{first.part}' and '{trial.part}' give '{trial.title}' two configurations under the same labels; "
                "tables could not distinguish them. Label one of them differently."
            )
    return Arms(trials=trials, searches=list(chain.from_iterable(searches.values())))


def select(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """The trials that match one of the patterns `[PART:][DEFENSE[/DATASET[/SPLIT]]]`, with `*` and `?`.

    A part's name alone selects that part, unless a defense has the same name. A trial that several parts have belongs to
    each of them. Without patterns, all trials are kept.

    Raises:
        UserError: a pattern matches no trial.
    """
    if not only:
        return list(trials)
    chosen = {trial.target_id for pattern in only for trial in _matching(pattern, trials)}
    return [trial for trial in trials if trial.target_id in chosen]


def _matching(pattern: str, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that one pattern of `--only` selects."""
    part, colon, labels = pattern.rpartition(":")
    part_names = {name for trial in trials for name in trial.parts}
    if colon:
        trials = _in_part(part, trials)
        if not trials:
            raise UserError(f"--only {pattern}: {unknown_name('part', part, part_names)}")
        if not labels:
            return list(trials)
    globs = labels.split("/")
    matching = [
        trial
        for trial in trials
        if len(globs) <= 3
        and all(
            fnmatch.fnmatchcase(label, glob)
            for label, glob in zip((trial.defense_label, trial.dataset_label, trial.split_label), globs, strict=False)
        )
    ]
    alone = not colon and len(globs) == 1
    if not matching and alone:
        matching = _in_part(labels, trials)
    if not matching:
        if len(globs) == 1:
            known = {trial.defense_label for trial in trials} | (part_names if alone else set())
        else:
            known = {f"{trial.defense_label}/{trial.dataset_label}" for trial in trials}
        kind = "defense or part" if alone else "defense" if len(globs) == 1 else "DEFENSE/DATASET"
        where = f" in part '{part}'" if colon else ""
        raise UserError(f"--only {pattern}{where}: {unknown_name(kind, labels, known)}")
    return matching


def _in_part(glob: str, trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if any(fnmatch.fnmatchcase(name, glob) for name in trial.parts)]


def _searches(sweep_name: str, part: Part, scores: Scores) -> list[ArmSearch]:
    if part.search is None:
        return []
    for path in part.search.space.everywhere:
        fields = {name: None for each in part.architectures.values() for name in dataclasses.asdict(each)}
        if path[0] == "architecture" and path[1] not in fields:
            raise UserError(f"search.space.architecture: {unknown_name('field', path[1], fields)}")
    return [unfold(cell, part.search, scores) for cell in _grid(sweep_name, part, part.search.settings.seed)]


def _rounds(sweep_name: str, part: Part, searches: Sequence[ArmSearch]) -> Iterator[list[Trial]]:
    """The part's trials, one list per seed, so that a sweep that is cut short still has whole comparisons.

    Arms whose search is not over have none yet.
    """
    for seed in part.seeds:
        cells = list(_grid(sweep_name, part, seed))
        if part.search is None:
            yield cells
            continue
        yield [
            with_values(cell, arm.best.values)
            for cell, arm in zip(cells, searches, strict=True)
            if arm.best is not None
        ]


def _grid(sweep_name: str, part: Part, seed: int) -> Iterator[Trial]:
    for dataset_label, dataset in part.datasets.items():
        for split_label, split_plan in part.splits.items():
            for architecture_label, architecture in part.architectures.items():
                for optimizer_label, training in part.trainings.items():
                    for defense_label, defenses in part.defenses.items():
                        yield Trial(
                            sweep=sweep_name,
                            parts=(part.name,),
                            dataset_label=dataset_label,
                            architecture_label=architecture_label,
                            optimizer_label=optimizer_label,
                            defense_label=defense_label,
                            dataset=dataset,
                            split_label=split_label,
                            split_plan=split_plan,
                            architecture=architecture,
                            defenses=defenses,
                            training=training,
                            seed=seed,
                            attacks=part.attacks,
                            comparisons=part.comparisons,
                            queries=part.queries,
                        )
