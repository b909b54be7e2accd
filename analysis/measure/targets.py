"""One row per finished target, with what tables and figures need; comparisons with the baseline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import naming, presentation, studies
from analysis.load import FPR_COLUMNS, Results
from analysis.measure.best_of import best_of
from analysis.measure.primary import Panel, Primary, judged_by, primaries
from analysis.measure.shared_examples import Correlations, correlations
from analysis.statistics.estimates import (
    CONFIDENCE,
    UNBOUNDED,
    Bounds,
    Estimate,
    Values,
    estimate,
    p_above,
    quantile,
    seeds_and_examples,
)

BASELINE_LABELS = ("baseline", "no_defense", "none", "undefended")
"""Labels of the undefended model, in upper or lower case."""

_CELL = ["setting", "dataset", "defense", "seed"]
_PAIR = ["setting", "dataset", "seed"]

Change = Literal["difference", "ratio", "percent"]

GUESSING = 0.5
"""The AUC of an attacker who guesses. A mean below it is noise, not privacy. It counts as 0.5 wherever defenses are ranked
or compared by risk."""

FEWEST_EXAMPLES = 10
"""With fewer members or non-members, an AUC supports no verdict: its interval over examples is asymptotic."""

FRACTION: Bounds = (0.0, 1.0)
FRACTION_CHANGE: Bounds = (-1.0, 1.0)
NOT_NEGATIVE: Bounds = (0.0, np.inf)
PERCENT_CHANGE: Bounds = (-100.0, np.inf)
"""Bounds of a quantity that is not negative."""

_BOUNDS: dict[str, Bounds] = {
    **dict.fromkeys(("test_accuracy", "auc", "paper_protocol_auc", "advantage", *FPR_COLUMNS.values()), FRACTION),
    **dict.fromkeys(("train_time_s", "mse_test", "mse_constant", "mse_untrained"), NOT_NEGATIVE),
}
_CHANGE_BOUNDS: dict[Change, Bounds] = {"ratio": NOT_NEGATIVE, "percent": PERCENT_CHANGE}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What compared targets have in common: split, architecture, the optimizer if a defense has several, and the sweep's part if
    labels repeat.

    `canaries` is the split's label if it has canaries, else empty. `optimizer` is empty if each defense has only one. `label`
    distinguishes the setting from the other settings of the results; it is empty if there is only one.
    """

    key: str
    label: str
    split: str
    architecture: str
    file_name: str
    optimizer: str = ""
    canaries: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Panel:
    """The AUCs (n,) of one setting and dataset, and their correlation (n, n) over the choice of examples.

    `places` maps a defense and a seed to an index. `errors` are standard errors, NaN if none was recorded or if there are too
    `few` examples for one. `guessing` are the standard errors of an attacker who guesses.
    """

    places: dict[str, dict[int, int]]
    auc: Values
    low: Values
    high: Values
    errors: Values
    guessing: Values
    few: npt.NDArray[np.bool_]
    correlation: Values

    def covariance(self, places: list[int], guessing: bool = False) -> Values | None:
        """The covariance, over the choice of examples, of the AUCs at `places`; None if any has no standard error.

        With `guessing`, no error is below that of an attacker who guesses. If a few examples happen to be well in order, the
        estimated error is too small, and chance would look like a leak.
        """
        errors = np.fmax(self.errors, self.guessing) if guessing else self.errors
        errors = np.where(np.isnan(self.errors), np.nan, errors)[places]
        if np.isnan(errors).any():
            return None
        covariance: Values = np.outer(errors, errors) * self.correlation[np.ix_(places, places)]
        return covariance


def _panel(rows: pd.DataFrame, correlations: Correlations, key: tuple[str, str]) -> _Panel:
    places: dict[str, dict[int, int]] = {}
    for place, (defense, seed) in enumerate(zip(rows["defense"], rows["seed"], strict=True)):
        places.setdefault(str(defense), {})[int(seed)] = place
    auc, low, high = (rows[column].to_numpy(dtype=float) for column in ("auc", "auc_low", "auc_high"))
    few = few_examples(rows)
    return _Panel(
        places=places,
        auc=auc,
        low=low,
        high=high,
        errors=standard_errors(rows),
        guessing=guessing_errors(rows),
        few=few,
        correlation=correlations.between(key, list(rows["target_id"]), list(rows["defense"])),
    )


def few_examples(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each target's AUC has fewer than `FEWEST_EXAMPLES` members or non-members; False if that is not known."""
    counts = rows[["attacked_members", "attacked_non_members"]].to_numpy(dtype=float)
    found: npt.NDArray[np.bool_] = (counts < FEWEST_EXAMPLES).any(axis=1)
    return found


def standard_errors(rows: pd.DataFrame) -> Values:
    """Standard errors of the targets' AUCs over the choice of examples; NaN if none was recorded or examples are too few."""
    width = (rows["auc_high"] - rows["auc_low"]).to_numpy(dtype=float)
    errors: Values = np.where(few_examples(rows), np.nan, width / (2 * quantile((1 + CONFIDENCE) / 2)))
    return errors


def guessing_errors(rows: pd.DataFrame) -> Values:
    """Exact standard errors of a guessing attacker's AUC (Mann & Whitney 1947); 0 if the number of examples is not known."""
    members, others = (rows[name].to_numpy(dtype=float) for name in ("attacked_members", "attacked_non_members"))
    errors: Values = np.nan_to_num(np.sqrt((members + others + 1) / (12 * members * others)))
    return errors


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured.

    `frame` has one row per finished target: the columns of `trials`, the setting, and columns of the attack that judges it:
    the primary attack of its setting and dataset (`primaries`), or else best_of. They are null if it did not finish. These are
    `auc` (best_of's is honest: the score is chosen on each half of the examples and measured on the other), `auc_low`,
    `auc_high`, the numbers of members and non-members that it was measured on (`attacked_members`, `attacked_non_members`),
    `paper_protocol_auc` (the maximum over all scores, on the data it is reported on), `advantage`, the true positive rates, and
    `score_key`.

    `inversion` has one row per finished target and layer, from one inversion attack; `other_inversions` counts the others.
    `correlations` has the correlations of AUCs that come from shared examples. `guaranteed` are the defenses with an ε.
    `superseded` counts targets that were replaced by a newer one with the same labels and seed. `single` is the same
    with best_of as the judge everywhere; None if it judges everywhere here.
    """

    frame: pd.DataFrame
    inversion: pd.DataFrame
    correlations: Correlations
    settings: tuple[Setting, ...]
    datasets: tuple[str, ...]
    defenses: tuple[str, ...]
    baseline: str | None
    guaranteed: frozenset[str]
    superseded: int
    other_inversions: int
    primaries: Mapping[Panel, Primary] = field(default_factory=dict)
    single: Measurements | None = None

    @property
    def on_single_targets(self) -> Measurements:
        """The same with best_of as the judge everywhere, as papers on attacks without references report."""
        return self.single or self

    def primary(self, setting: Setting, dataset: str) -> Primary | None:
        """The primary attack of one setting and dataset; None if best_of judges."""
        return self.primaries.get((setting.key, dataset))

    def attacked(self, setting: Setting, dataset: str) -> list[str]:
        """The defenses with an AUC on one dataset."""
        present = set(self.at(setting, dataset).dropna(subset=["auc"])["defense"])
        return [defense for defense in self.defenses if defense in present]

    def judge(self, setting: Setting, dataset: str) -> str:
        """The name of the attack that judges one setting and dataset."""
        primary = self.primary(setting, dataset)
        if primary is None:
            return "the best of the attacks on one target"
        return f"{naming.attack(primary.attack)} ({naming.score(primary.score_name)})"

    def auc_name(self, setting: Setting, dataset: str) -> str:
        """What the AUC of one setting and dataset is called."""
        primary = self.primary(setting, dataset)
        return "honest attack AUC" if primary is None else f"AUC of {naming.attack(primary.attack)}"

    def datasets_of(self, setting: Setting) -> list[str]:
        """The datasets with at least one finished target in `setting`, in order."""
        present = set(self.frame.loc[self.frame["setting"] == setting.key, "dataset"])
        return [dataset for dataset in self.datasets if dataset in present]

    def at(self, setting: Setting, dataset: str) -> pd.DataFrame:
        """The targets of one dataset, of every defense."""
        frame = self.frame
        return frame[(frame["setting"] == setting.key) & (frame["dataset"] == dataset)]

    def of(self, setting: Setting, dataset: str, defense: str) -> pd.DataFrame:
        """The targets of one cell, a row per seed."""
        rows = self.at(setting, dataset)
        return rows[rows["defense"] == defense]

    def estimate(self, setting: Setting, dataset: str, defense: str, column: str) -> Estimate | None:
        """Mean and interval of `column` over seeds.

        The interval of the AUC is over seeds and examples. With one seed it is the attack's own, over examples.
        """
        if column != "auc":
            return estimate(self.of(setting, dataset, defense)[column], bounds_of(column))
        panel = self._panels.get((setting.key, dataset))
        places = [] if panel is None else list(panel.places.get(defense, {}).values())
        if panel is None or not places:
            return None
        covariance = panel.covariance(places)
        if covariance is None:
            return _without_examples(panel.auc[places], panel.few[places], FRACTION)
        found = seeds_and_examples(panel.auc[places], covariance, FRACTION)
        if len(places) > 1:
            return found
        return replace(found, low=float(panel.low[places[0]]), high=float(panel.high[places[0]]))

    def risk_difference(self, setting: Setting, dataset: str, defense: str, reference: str) -> Estimate | None:
        """AUC of `defense` minus that of `reference`, paired by seed, with the interval over seeds and examples.

        A mean AUC below 0.5 counts as 0.5. This shifts the difference and does not change the width of its interval.
        """
        panel = self._panels.get((setting.key, dataset))
        if panel is None:
            return None
        one, other = panel.places.get(defense, {}), panel.places.get(reference, {})
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return None
        places = [one[seed] for seed in seeds] + [other[seed] for seed in seeds]
        n = len(seeds)
        first, second = panel.auc[places[:n]], panel.auc[places[n:]]
        values = first - second + max(GUESSING - first.mean(), 0.0) - max(GUESSING - second.mean(), 0.0)
        both = panel.covariance(places)
        if both is None:
            return _without_examples(values, panel.few[places], FRACTION_CHANGE)
        covariance = both[:n, :n] + both[n:, n:] - both[:n, n:] - both[n:, :n]
        return seeds_and_examples(values, covariance, FRACTION_CHANGE)

    def accuracy_difference(self, setting: Setting, dataset: str, defense: str, reference: str) -> Estimate | None:
        """Test accuracy of `defense` minus that of `reference`, paired by seed, with the interval over seeds."""
        paired = against_baseline(self.at(setting, dataset), reference, "test_accuracy", "difference")
        return estimate(paired.loc[paired["defense"] == defense, "value"], FRACTION_CHANGE)

    def p_guessing(self, setting: Setting, dataset: str, defense: str) -> float | None:
        """One-sided p-value that every seed's AUC is 0.5; None without an interval over examples, or with too few of them."""
        panel = self._panels.get((setting.key, dataset))
        places = [] if panel is None else list(panel.places.get(defense, {}).values())
        covariance = None if panel is None or not places else panel.covariance(places, guessing=True)
        return None if panel is None or covariance is None else p_above(panel.auc[places], covariance, GUESSING)

    def has_few_examples(self, setting: Setting, dataset: str, defense: str) -> bool:
        """Whether some AUC of a cell has too few examples to be judged."""
        rows = self.of(setting, dataset, defense)
        return bool(few_examples(rows[rows["auc"].notna()]).any())

    @cached_property
    def _panels(self) -> dict[tuple[str, str], _Panel]:
        attacked = self.frame[self.frame["auc"].notna()]
        return {
            (str(setting), str(dataset)): _panel(rows, self.correlations, (str(setting), str(dataset)))
            for (setting, dataset), rows in attacked.groupby(["setting", "dataset"])
        }

    def compared_datasets(self, setting: Setting) -> list[tuple[Setting, str]]:
        """`setting` with each of its datasets."""
        return [(setting, dataset) for dataset in self.datasets_of(setting)]

    def rows(self) -> list[tuple[Setting, str]]:
        """Every setting with each of its datasets."""
        return [pair for setting in self.settings for pair in self.compared_datasets(setting)]

    def official_rows(self) -> list[tuple[Setting, str]]:
        """Each dataset with its settings on the official split, which papers report; with all its settings if it has none."""
        rows = self.rows()
        official = {dataset for setting, dataset in rows if setting.split == "official"}
        return [row for row in rows if row[0].split == "official" or row[1] not in official]

    def row_label(self, setting: Setting, dataset: str) -> str:
        """The name of a row: the dataset, and the setting if there are several."""
        shown = naming.display(dataset)
        return f"{shown} ({setting.label})" if setting.label else shown


def _without_examples(values: Values, few: npt.NDArray[np.bool_], bounds: Bounds) -> Estimate | None:
    """The mean over seeds with a t-interval; without one if examples are too few, because seeds may share them."""
    found = estimate(values, bounds)
    if found is None or not few.any():
        return found
    return replace(found, low=None, high=None, error=None, few_examples=True)


def bounds_of(column: str, change: Change | None = None) -> Bounds:
    """The values that `column`, or a change of it against the baseline, can have."""
    if change == "difference":
        return FRACTION_CHANGE if _BOUNDS.get(column) == FRACTION else UNBOUNDED
    return _BOUNDS.get(column, UNBOUNDED) if change is None else _CHANGE_BOUNDS[change]


def against_baseline(frame: pd.DataFrame, baseline: str, column: str, change: Change, extra: str = "") -> pd.DataFrame:
    """`frame` with `value`: `column` against the baseline of the same setting, dataset and seed.

    Pairing by seed removes the variation that both share, from the split and the examples. `extra` names one more column to
    pair on. Rows without a finished baseline are left out. "percent" is 100·(value − baseline)/baseline.
    """
    pair = [*_PAIR, extra] if extra else _PAIR
    reference = frame.loc[frame["defense"] == baseline, [*pair, column]].rename(columns={column: "reference"})
    joined = frame.merge(reference, on=pair, how="inner")
    if change == "difference":
        value = joined[column] - joined["reference"]
    elif change == "ratio":
        value = joined[column] / joined["reference"]
    else:
        value = 100 * (joined[column] - joined["reference"]) / joined["reference"]
    joined["value"] = value.astype(float)
    return joined[joined["value"].notna()]


def average_over_datasets(
    frame: pd.DataFrame, column: str, bounds: Bounds = UNBOUNDED
) -> tuple[Estimate | None, list[str]]:
    """Mean over datasets per seed, then mean and interval over seeds; and the names of the datasets.

    Only seeds with every dataset count, because an average over fewer datasets is another quantity. If no seed has every
    dataset, the result is the mean of the datasets' means, without an interval.
    """
    known = frame[frame[column].notna()]
    if known.empty:
        return None, []
    grid = known.pivot_table(index="seed", columns="dataset", values=column, aggfunc="mean")
    datasets = [str(name) for name in grid.columns]
    complete = grid.dropna()
    if complete.empty:
        return Estimate(mean=float(grid.mean().mean()), low=None, high=None, n=1, bounds=bounds), datasets
    return estimate(complete.mean(axis=1), bounds), datasets


def measured_fpr(frame: pd.DataFrame) -> float | None:
    """The false positive rate at which TPR is reported: 1 %, or else the smallest that all attacked targets have.

    None if there is no such rate. TPR at FPR α needs about 10/α non-members.
    """
    attacked = frame[frame["auc"].notna()]
    if attacked.empty:
        return None
    complete = [fpr for fpr, column in FPR_COLUMNS.items() if attacked[column].notna().all()]
    return 0.01 if 0.01 in complete else min(complete, default=None)


def measure(results: Results) -> Measurements:
    """Everything that tables and figures are made from."""
    trials = results.trials
    finished = trials[trials["status"] == "finished"].copy()
    finished, settings = _with_settings(finished)
    # Two targets have the same labels and seed if the sweep file was edited and run again. The newest counts.
    finished = finished.sort_values("started_at", kind="stable", na_position="first")
    newest = finished.drop_duplicates(_CELL, keep="last")
    superseded = len(finished) - len(newest)
    frame = newest.merge(best_of(results.attacks), on="target_id", how="left").sort_values(_CELL).reset_index(drop=True)
    found = primaries(results, frame)
    judged = judged_by(frame, results.attacks, found)
    of_single_targets, of_judged = correlations(results, [frame, judged])
    defenses = _ordered(trials["defense"], [label for study in studies.found() for label in study.defenses])
    private = frame.loc[frame["epsilon_spent"].notna(), "defense"]
    inversion, other_inversions = _inversion(results, frame)
    single = Measurements(
        frame=frame,
        inversion=inversion,
        correlations=of_single_targets,
        settings=settings,
        datasets=tuple(_ordered(trials["dataset"], [label for study in studies.found() for label in study.datasets])),
        defenses=tuple(defenses),
        baseline=next((label for label in defenses if label.lower() in BASELINE_LABELS), None),
        guaranteed=frozenset(str(label) for label in private),
        superseded=superseded,
        other_inversions=other_inversions,
    )
    return replace(single, frame=judged, correlations=of_judged, primaries=found, single=single) if found else single


def _ordered(labels: pd.Series, known: Iterable[str]) -> list[str]:
    """Labels in the user's order, in that of `known`, then the undefended, then the others as people sort them, eps2 before eps10.

    The order of the rows means nothing, because the tables are gathered from files named by hashes.
    """
    known = list(dict.fromkeys([*presentation.current().order, *known]))
    present = {str(label) for label in labels.dropna()}

    def rank(label: str) -> tuple[bool, list[tuple[int, str]]]:
        parts = re.findall(r"\d+|\D+", label)
        return label.lower() not in BASELINE_LABELS, [(int(p) if p.isdecimal() else -1, p) for p in parts]

    return [label for label in known if label in present] + sorted(present - set(known), key=rank)


def _with_settings(finished: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Setting, ...]]:
    named = {
        name: finished[name].fillna("").astype(str) for name in ("split_label", "architecture", "optimizer", "part")
    }
    keys = ["split_label", "architecture"]
    # Where each defense has one optimizer, it is part of the defense's recipe, and all defenses are compared.
    optimizers = finished.assign(**named).groupby([*keys, "dataset", "defense"])["optimizer"].nunique()
    keys += ["optimizer"] if bool((optimizers > 1).any()) else []
    repeats = finished.assign(**named).groupby([*keys, "dataset", "defense", "seed"])["part"].nunique()
    keys += ["part"] if bool((repeats > 1).any()) else []
    joined = ["\x1f".join(row) for row in zip(*(named[name] for name in keys), strict=True)]
    finished = finished.assign(setting=joined)
    varying = [name for name in keys if named[name].nunique() > 1]
    settings = []
    for key, rows in finished.groupby("setting", sort=False):
        first = rows.iloc[0]
        canaries = str(first["split_label"]) if isinstance(first["canary_kind"], str) else ""
        words = {
            "split_label": f"{naming.display(canaries)} canaries" if canaries else f"{first['split_label']} split",
            "architecture": naming.display(str(first["architecture"])),
            "optimizer": naming.display(str(first["optimizer"])),
        }
        settings.append(
            Setting(
                key=str(key),
                label=", ".join(words.get(name, str(first[name])) for name in varying),
                split=str(first["split"]),
                architecture=str(first["architecture"]),
                file_name=naming.file_name("-".join(str(first[name]) for name in varying)),
                optimizer=str(first["optimizer"]) if "optimizer" in varying else "",
                canaries=canaries,
            )
        )
    # The official split comes first, because papers report it.
    return finished, tuple(sorted(settings, key=lambda setting: (setting.split != "official", setting.key)))


def _inversion(results: Results, frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The reconstructions of the inversion attack that most targets have, and the number of other attacks."""
    targets = frame[["target_id", *_CELL, "test_accuracy"]]
    rows = results.reconstructions.merge(targets, on="target_id", how="inner")
    if rows.empty:
        return rows, 0
    counts = rows["attack_id"].value_counts()
    rows = rows[rows["attack_id"] == counts.index[0]]
    return rows.sort_values([*_CELL, "layer_index"]).reset_index(drop=True), len(counts) - 1
