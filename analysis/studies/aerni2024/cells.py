"""What the attacks fixed beforehand find of each defense: among clean canaries, and among those that expose it most."""

from __future__ import annotations

import json
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
LIRA = "lira/online_log_odds"
ATTACKS_ON_ALL = (LIRA, "lira/online_hinge", "lira/online_log_odds_unaugmented", "lira/online_hinge_unaugmented")
"""The attacks that are tried on every defense, beside those that adapt to it: LiRA by either score, with and without augmented
queries. They are the attacks of earlier evaluations."""
LABEL_ONLY = "label_only/label_only_ratio"
EQUAL = 0.005
"""Test accuracies that differ by no more count as equal."""
NEAR = 0.02
"""How much less accurate a DP arm may be, if no DP arm is as accurate as the defense beside which it stands."""
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

    @property
    def is_private(self) -> bool:
        """Whether each of its targets has a proved ε, however large."""
        return bool(self.targets["epsilon_spent"].notna().all())

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
    """A defense on one dataset: its cells by the kind of their canaries, and the attacks and kinds that were fixed for it.

    `components` are the names of the defenses that it combines; none for the undefended model.
    """

    dataset: str
    defense: str
    components: frozenset[str]
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
        return all(cell.is_private for cell in self.cells.values())

    @property
    def base(self) -> Leak | None:
        """What attacks that adapt to nothing find among clean canaries."""
        return self._strongest((CLEAN,), ATTACKS_ON_ALL)

    @property
    def adaptive_on_clean(self) -> Leak | None:
        return self._strongest((CLEAN,), self.attacks)

    @property
    def worst(self) -> Leak | None:
        """The highest TPR of the attacks that were fixed for the defense, on the kinds of canaries that were."""
        return self._strongest(self.worst_kinds, self.attacks)

    @property
    def label_only(self) -> Leak | None:
        return self._strongest(self.worst_kinds, (LABEL_ONLY,))

    @property
    def from_confidences(self) -> Leak | None:
        """What attacks that read the answers' values find."""
        return self._strongest(self.worst_kinds, ATTACKS_ON_ALL)

    @property
    def not_fixed(self) -> Leak | None:
        """The highest of the attacks that were not fixed for the defense, if it is above `worst`."""
        others = {attack for kind in self.worst_kinds if kind in self.cells for attack in self.cells[kind].scores.index}
        found, worst = self._strongest(self.worst_kinds, sorted(others - set(self.attacks))), self.worst
        return found if found is not None and worst is not None and found.tpr.mean > worst.tpr.mean else None

    @property
    def missing_kinds(self) -> tuple[str, ...]:
        """The kinds of canaries that were fixed for the defense but not measured."""
        return tuple(kind for kind in self.worst_kinds if self._strongest((kind,), self.attacks) is None)

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
    """All arms of the results that have canaries, at one FPR. `datasets` and `defenses` are in the order of the report.

    `left_out` are the datasets with other architectures, whose targets are in no arm.
    """

    arms: dict[tuple[str, str], Arm]
    datasets: tuple[str, ...]
    defenses: tuple[str, ...]
    fpr: float
    left_out: tuple[str, ...]

    def all_of(self, dataset: str) -> list[Arm]:
        found = (self.arms.get((dataset, defense)) for defense in self.defenses)
        return [arm for arm in found if arm is not None]

    def of(self, dataset: str) -> list[Arm]:
        """The arms of one dataset whose worst leak was measured."""
        return [arm for arm in self.all_of(dataset) if arm.worst is not None]

    def frontier(self, dataset: str) -> list[Arm]:
        """The private arms that no other private arm beats in accuracy and worst leak, the least accurate first."""
        places = {arm: _place(arm, self.fpr) for arm in self.of(dataset) if arm.is_private}
        best = [arm for arm, place in places.items() if not any(beats(other, place) for other in places.values())]
        return sorted(best, key=lambda arm: places[arm][1])

    def nearest_private(self, arm: Arm) -> Arm | None:
        """The least accurate arm on the frontier that is as accurate as this arm, up to `EQUAL`.

        Without one, the most accurate of the frontier if it is at most `NEAR` less accurate. None for a private arm.
        """
        if arm.accuracy is None or arm.is_private:
            return None
        gaps = [(self.gap(arm, other), other) for other in self.frontier(arm.dataset)]
        able = [other for gap, other in gaps if gap >= -EQUAL]
        near = [other for gap, other in gaps if gap >= -NEAR]
        return able[0] if able else near[-1] if near else None

    def gap(self, arm: Arm, other: Arm) -> float:
        """By how much `other` is more accurate; the accuracies of both are known."""
        assert arm.accuracy is not None
        assert other.accuracy is not None
        return other.accuracy.mean - arm.accuracy.mean

    def factor(self, arm: Arm) -> Ratio | None:
        """How many times the leak of the nearest private arm this arm's leak is."""
        other = self.nearest_private(arm)
        if other is None or arm.worst is None or other.worst is None:
            return None
        return ratio(arm.worst.tpr, other.worst.tpr, self.fpr)

    def understated(self, arm: Arm) -> Ratio | None:
        """How many times what LiRA finds among clean canaries the worst leak is."""
        if arm.base is None or arm.worst is None:
            return None
        return ratio(arm.worst.tpr, arm.base.tpr, self.fpr)


def protocol(results: Results, measured: Measurements) -> Protocol | None:
    """The arms with canaries; None if there are none, or no rate at a low FPR could be told."""
    frame = measured.frame
    frame = frame[frame["canary_kind"].notna()].rename(columns={"canary_kind": "kind"})
    if frame.empty:
        return None
    largest = largest_cohorts(cohort_members(results), frame)
    if largest.empty:
        return None
    largest = _one_configuration_each(largest.assign(score=largest["attack"] + "/" + largest["score_name"]))
    fpr = _lowest_fpr(largest)
    if fpr is None:
        return None
    frame, left_out = _one_architecture_each(frame, largest)
    rows_of = {key: _one_setting_each(rows, largest) for key, rows in frame.groupby(["dataset", "defense"])}
    scores_of = {
        (key, kind): here[here["setting"] == rows["setting"].iloc[0]].set_index("score")
        for key, arm in rows_of.items()
        for kind, rows in arm.groupby("kind")
        for here in [largest[(largest["dataset"] == key[0]) & (largest["defense"] == key[1])]]
    }
    adaptive = {key: _names(rows["adaptive_attacks"]) for key, rows in rows_of.items()}
    n_nulls = sum(len(set(scores.index) & {*ATTACKS_ON_ALL, *adaptive[key]}) for (key, _), scores in scores_of.items())
    arms = {}
    for (dataset, defense), rows in rows_of.items():
        cells = {
            str(kind): Cell(
                dataset=str(dataset),
                defense=str(defense),
                kind=str(kind),
                targets=targets,
                scores=scores_of[(dataset, defense), kind],
                n_nulls=n_nulls,
            )
            for kind, targets in rows.groupby("kind")
        }
        arms[str(dataset), str(defense)] = Arm(
            dataset=str(dataset),
            defense=str(defense),
            components=_components(rows["config"].iloc[0]),
            cells=cells,
            adaptive=adaptive[dataset, defense],
            worst_kinds=_names(rows["worst_canaries"]) or ("mislabeled",),
            fpr=fpr,
        )
    return Protocol(
        arms=arms,
        datasets=tuple(each for each in measured.datasets if each in set(frame["dataset"])),
        defenses=tuple(each for each in measured.defenses if each in set(frame["defense"])),
        fpr=fpr,
        left_out=left_out,
    )


def _one_configuration_each(largest: pd.DataFrame) -> pd.DataFrame:
    """Of several configurations of an attack, the one with the most targets in all cells together; others where it is missing."""
    sizes = largest.groupby(["attack", "config"])["n_here"].sum().rename("in_all").reset_index()
    ranked = largest.merge(sizes, on=["attack", "config"]).sort_values(
        ["in_all", "config"], ascending=[False, True], kind="stable"
    )
    return ranked.drop_duplicates(["score", "setting", "dataset", "defense"])


def _one_architecture_each(frame: pd.DataFrame, largest: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The targets of the architecture that most attacked targets of their dataset have, and the datasets that have others."""
    cell = ["setting", "dataset", "defense"]
    attacked = frame.merge(largest[cell].drop_duplicates(), on=cell, how="inner")
    counts = attacked.groupby(["dataset", "architecture"]).size().rename("count").reset_index()
    ranked = counts.sort_values(["count", "architecture"], ascending=[False, True])
    chosen = ranked.drop_duplicates("dataset")[["dataset", "architecture"]]
    kept = frame.merge(chosen, on=["dataset", "architecture"], how="inner")
    others = frame.merge(chosen, on="dataset", suffixes=("", "_chosen"))
    others = others[others["architecture"] != others["architecture_chosen"]]
    return kept, tuple(sorted(set(others["dataset"])))


def _one_setting_each(arm: pd.DataFrame, largest: pd.DataFrame) -> pd.DataFrame:
    """Of several settings of an arm with one kind of canaries, that with the most attacked targets, or else the most targets."""
    here = largest[largest["defense"].isin(arm["defense"]) & largest["dataset"].isin(arm["dataset"])]
    attacked = here.groupby("setting")["n_here"].max().rename("attacked").reset_index()
    counts = arm.groupby(["kind", "setting"]).size().rename("count").reset_index()
    counts = counts.merge(attacked, on="setting", how="left").fillna({"attacked": 0})
    ranked = counts.sort_values(["attacked", "count", "setting"], ascending=[False, False, True])
    chosen = ranked.drop_duplicates("kind")[["kind", "setting"]]
    return arm.merge(chosen, on=["kind", "setting"], how="inner")


def _lowest_fpr(cohorts: pd.DataFrame) -> float | None:
    """The lowest FPR at which half of all cells or more have a rate by LiRA; None if there is none."""
    usual = cohorts[cohorts["score"] == LIRA]
    told = (fpr for fpr in _FPRS if len(usual) and usual[POOLED_COLUMNS[fpr]].notna().mean() >= 0.5)
    return next(told, None)


def _components(config: object) -> frozenset[str]:
    """The names of the defenses in a recorded configuration, canonical JSON; empty if another program wrote it."""
    try:
        return frozenset(str(defense["name"]) for defense in json.loads(str(config))["defenses"]) - {"none"}
    except (ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


def _names(lists: pd.Series) -> tuple[str, ...]:
    """All names in a column of lists, in their order."""
    known = [each for each in lists if isinstance(each, list | tuple | np.ndarray)]
    return tuple(dict.fromkeys(str(name) for each in known for name in each))


def _place(arm: Arm, fpr: float) -> tuple[float, float]:
    """Leak, of which guessing reaches `fpr`, and accuracy; both were measured."""
    assert arm.worst is not None
    assert arm.accuracy is not None
    return max(arm.worst.tpr.mean, fpr), arm.accuracy.mean


def beats(other: tuple[float, float], one: tuple[float, float]) -> bool:
    """Whether a (leak, accuracy) is at least as good as another on both sides, and better on one."""
    return other != one and other[0] <= one[0] and other[1] >= one[1]


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
