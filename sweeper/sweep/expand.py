"""Expands a checked sweep into its trials, and selects some of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Sequence, Sized
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

    @property
    def size(self) -> int:
        """The number of trials."""
        axes: tuple[Sized, ...] = (self.datasets, self.splits, self.architectures, self.trainings)
        axes += (self.defenses, self.seeds)
        return math.prod(map(len, axes))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep."""

    name: str
    summary: str
    paper: str
    cost: str
    expected: str
    parts: tuple[Part, ...]


def expand(sweep: Sweep, only: Sequence[str] = ()) -> list[Trial]:
    """All trials of the sweep, or those that `select` keeps, in the order of their seeds; trials with one target are merged.

    Raises:
        UserError: one configuration has two labels, one label has two configurations, or a pattern matches no trial.
    """
    by_id: dict[str, Trial] = {}
    rounds = zip_longest(*(_rounds(sweep.name, part) for part in sweep.parts), fillvalue=())
    for one_round in rounds:
        for trial in chain.from_iterable(one_round):
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
    seen: dict[tuple[object, ...], str] = {}
    for trial in trials:
        where = (*trial.labels, trial.split_label, trial.seed)
        if where in seen:
            raise UserError(
                f"Parts '{seen[where]}' and '{trial.part}' give '{trial.title}' two configurations under the same labels; "
                "tables could not distinguish them. Label one of them differently."
            )
        seen[where] = trial.part
    return select(trials, only)


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


def _rounds(sweep_name: str, part: Part) -> Iterator[list[Trial]]:
    """The part's trials, one list per seed, so that a sweep that is cut short still has whole comparisons."""
    for seed in part.seeds:
        yield list(_grid(sweep_name, part, seed))


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
