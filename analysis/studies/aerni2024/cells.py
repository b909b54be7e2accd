"""What the attacks fixed beforehand find of each defense: among clean canaries, and among those that expose it most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import POOLED_COLUMNS, Results
from analysis.measure.leak import interval_of, value
from analysis.measure.primary import cohort_members, is_sound, largest_cohorts
from analysis.measure.targets import FRACTION, Measurements
from analysis.statistics.estimates import CONFIDENCE, Estimate, Ratio, estimate, quantile

CLEAN = "clean"
NON_ADAPTIVE = "lira/online_log_odds"
"""The attack of earlier evaluations."""
ATTACKS_ON_ALL = (NON_ADAPTIVE, "lira/online_hinge")
"""The attacks that are tried on every defense, beside those that adapt to it."""
_FPRS = (0.001, 0.01)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """The targets of one defense and dataset with one kind of canaries.

    `scores` has a row of the table `cohorts` for each score of an attack, by `attack/score_name`.
    """

    dataset: str
    defense: str
    kind: str
    targets: pd.DataFrame
    scores: pd.DataFrame
    n_nulls: int

    @property
    def accuracy(self) -> Estimate | None:
        return estimate(self.targets["test_accuracy"], FRACTION)

    @property
    def epsilon(self) -> float | None:
        """The largest proved ε of its targets."""
        known = self.targets["epsilon_spent"].dropna()
        return float(known.max()) if len(known) else None

    def tpr(self, attack: str, fpr: float) -> Estimate | None:
        """The TPR at `fpr` over all targets together; None if it was not measured, or the attack's null is not at one half."""
        if attack not in self.scores.index or not self.is_sound(attack):
            return None
        return interval_of(self.scores.loc[attack], POOLED_COLUMNS[fpr])

    def audit(self, attack: str) -> float | None:
        """The lower bound on the ε that its targets have in common."""
        return value(self.scores.loc[attack], "epsilon_lower_bound") if attack in self.scores.index else None

    def null(self, attack: str) -> Estimate | None:
        return interval_of(self.scores.loc[attack], "null_auc") if attack in self.scores.index else None

    def is_sound(self, attack: str) -> bool:
        return is_sound(self.scores.loc[attack].to_dict(), self.n_nulls)


@dataclass(frozen=True, kw_only=True)
class Leak:
    """The TPR of one attack on the canaries of one kind."""

    tpr: Estimate
    attack: str
    kind: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """A defense on one dataset: its cells by the kind of their canaries, and the attacks and kinds that were fixed for it."""

    dataset: str
    defense: str
    cells: dict[str, Cell]
    adaptive: tuple[str, ...]
    worst_kinds: tuple[str, ...]
    fpr: float

    @property
    def attacks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*ATTACKS_ON_ALL, *self.adaptive)))

    @property
    def epsilon(self) -> float | None:
        return max((cell.epsilon for cell in self.cells.values() if cell.epsilon is not None), default=None)

    @property
    def is_private(self) -> bool:
        """Whether all its targets have a proved ε, however large."""
        return all(cell.epsilon is not None for cell in self.cells.values())

    @property
    def base(self) -> Leak | None:
        """What an attack that adapts to nothing finds among clean canaries."""
        return self._strongest((CLEAN,), (NON_ADAPTIVE,))

    @property
    def adaptive_on_clean(self) -> Leak | None:
        return self._strongest((CLEAN,), self.attacks)

    @property
    def worst(self) -> Leak | None:
        """The highest TPR of the attacks that were fixed for the defense, on the kinds of canaries that were."""
        return self._strongest(self.worst_kinds, self.attacks)

    @property
    def label_only(self) -> Leak | None:
        return self._strongest(self.worst_kinds, ("label_only/label_only_ratio",))

    @property
    def from_confidences(self) -> Leak | None:
        """What attacks that read the answers' values find."""
        return self._strongest(self.worst_kinds, ATTACKS_ON_ALL)

    @property
    def n_tried(self) -> int:
        """How many attacks on how many kinds `worst` is the highest of."""
        return sum(
            cell.tpr(attack, self.fpr) is not None for cell, attack in self._pairs(self.worst_kinds, self.attacks)
        )

    @property
    def accuracy(self) -> Estimate | None:
        """The test accuracy with its worst canaries."""
        worst = self.worst
        return None if worst is None else self.cells[worst.kind].accuracy

    @property
    def base_accuracy(self) -> Estimate | None:
        return self.cells[CLEAN].accuracy if CLEAN in self.cells else None

    def _pairs(self, kinds: Sequence[str], attacks: Sequence[str]) -> Iterator[tuple[Cell, str]]:
        return ((self.cells[kind], attack) for kind in kinds if kind in self.cells for attack in attacks)

    def _strongest(self, kinds: Sequence[str], attacks: Sequence[str]) -> Leak | None:
        found = [
            Leak(tpr=tpr, attack=attack, kind=cell.kind)
            for cell, attack in self._pairs(kinds, attacks)
            if (tpr := cell.tpr(attack, self.fpr)) is not None
        ]
        return max(found, key=lambda leak: leak.tpr.mean, default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Protocol:
    """All arms of the results that have canaries, at one FPR. `datasets` and `defenses` are in the order of the report."""

    arms: dict[tuple[str, str], Arm]
    datasets: tuple[str, ...]
    defenses: tuple[str, ...]
    fpr: float

    def of(self, dataset: str) -> list[Arm]:
        """The arms of one dataset whose worst leak was measured."""
        found = (self.arms.get((dataset, defense)) for defense in self.defenses)
        return [arm for arm in found if arm is not None and arm.worst is not None]

    def nearest_private(self, arm: Arm) -> Arm | None:
        """Of the private arms with at least this arm's mean accuracy, the least accurate one."""
        own = arm.accuracy
        if own is None:
            return None
        able = [
            (accuracy.mean, other)
            for other in self.of(arm.dataset)
            if other.is_private and other is not arm and (accuracy := other.accuracy) is not None
        ]
        able = [each for each in able if each[0] >= own.mean]
        return min(able, key=lambda each: each[0])[1] if able else None

    def factor(self, arm: Arm) -> Ratio | None:
        """How many times the leak of the nearest private arm this arm's leak is."""
        other = self.nearest_private(arm)
        if other is None or arm.worst is None or other.worst is None:
            return None
        return ratio(arm.worst.tpr, other.worst.tpr, self.fpr)

    def understated(self, arm: Arm) -> Ratio | None:
        """How many times what the usual attack finds among clean canaries the worst leak is."""
        if arm.base is None or arm.worst is None:
            return None
        return ratio(arm.worst.tpr, arm.base.tpr, self.fpr)


def protocol(results: Results, measured: Measurements) -> Protocol | None:
    """The arms with canaries; None if there are none, or no rate at a low FPR could be told."""
    frame = measured.frame
    frame = frame[frame["canary_kind"].notna()]
    frame = _one_setting_each(frame)
    if frame.empty:
        return None
    frame = frame.rename(columns={"canary_kind": "kind"})
    largest = largest_cohorts(cohort_members(results), frame)
    if largest.empty:
        return None
    largest = largest.assign(score=largest["attack"] + "/" + largest["score_name"])
    fpr = _lowest_fpr(largest)
    if fpr is None:
        return None
    n_nulls = len(largest)
    arms = {}
    for (dataset, defense), rows in frame.groupby(["dataset", "defense"]):
        cells = {}
        for (kind, setting), targets in rows.groupby(["kind", "setting"]):
            here = (largest["dataset"] == dataset) & (largest["defense"] == defense) & (largest["setting"] == setting)
            # Of several configurations of an attack, the one with the most targets
            scores = largest[here].drop_duplicates("score").set_index("score")
            cells[str(kind)] = Cell(
                dataset=str(dataset),
                defense=str(defense),
                kind=str(kind),
                targets=targets,
                scores=scores,
                n_nulls=n_nulls,
            )
        arms[str(dataset), str(defense)] = Arm(
            dataset=str(dataset),
            defense=str(defense),
            cells=cells,
            adaptive=_names(rows["adaptive_attacks"]),
            worst_kinds=_names(rows["worst_canaries"]) or ("mislabeled",),
            fpr=fpr,
        )
    return Protocol(
        arms=arms,
        datasets=tuple(each for each in measured.datasets if each in set(frame["dataset"])),
        defenses=tuple(each for each in measured.defenses if each in set(frame["defense"])),
        fpr=fpr,
    )


def _one_setting_each(frame: pd.DataFrame) -> pd.DataFrame:
    """Of several settings of one dataset, defense and kind of canaries, the one with the most targets."""
    arm = ["dataset", "defense", "canary_kind"]
    counts = frame.groupby([*arm, "setting"]).size().rename("count").reset_index()
    chosen = counts.sort_values(["count", "setting"], ascending=[False, True]).drop_duplicates(arm)
    return frame.merge(chosen[[*arm, "setting"]], on=[*arm, "setting"], how="inner")


def _lowest_fpr(cohorts: pd.DataFrame) -> float | None:
    """The lowest FPR at which every cell has a rate by the usual attack; None if there is none."""
    usual = cohorts[cohorts["score"] == NON_ADAPTIVE]
    told = (fpr for fpr in _FPRS if len(usual) and usual[POOLED_COLUMNS[fpr]].notna().all())
    return next(told, None)


def _names(lists: pd.Series) -> tuple[str, ...]:
    """All names in a column of lists, in their order."""
    known = [each for each in lists if isinstance(each, list | tuple | np.ndarray)]
    return tuple(dict.fromkeys(str(name) for each in known for name in each))


def ratio(one: Estimate, other: Estimate, floor: float) -> Ratio | None:
    """How many times `other` the first rate is; a rate below `floor`, which guessing reaches, counts as that.

    The interval is of the logarithm, as if both were independent. They share canaries and seeds, which makes it wide rather than
    narrow. None if a rate has no interval.
    """
    errors = []
    for each in (one, other):
        if each.low is None or each.high is None:
            return None
        low, mean, high = (math.log(max(value, floor)) for value in (each.low, each.mean, each.high))
        errors.append(max(high - mean, mean - low) / quantile((1 + CONFIDENCE) / 2))
    mean = math.log(max(one.mean, floor)) - math.log(max(other.mean, floor))
    return Ratio.of_logarithm(mean, math.hypot(*errors), min(one.n, other.n))
