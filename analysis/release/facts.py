"""What was measured of one defense, each number with its interval and the rows it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.load import CALIBRATED_COLUMNS, FPR_COLUMNS, POOLED_COLUMNS, Results
from analysis.measure.primary import RULES, cohort_members, has_options, is_sound, largest_cohorts
from analysis.measure.targets import FRACTION, Measurements, Setting
from analysis.statistics.estimates import Estimate, estimate

FPRS = tuple(sorted({*FPR_COLUMNS, *POOLED_COLUMNS}))
"""The false positive rates at which a TPR may be recorded."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One number. `low` and `high` are the ends of its 95 % interval; an exact number equals both. `source` is where it is."""

    name: str
    words: str
    value: float
    low: float | None
    high: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one score of an attack on the cohort saw: the facts by their names, and its null."""

    attack: str
    score_name: str
    why: str
    """Why it counts: it is primary, adaptive, or asked for."""
    facts: dict[str, Fact]
    null: Estimate | None
    is_sound: bool
    n_models: int = 1
    """How many models it attacked, each with the others as references."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One dataset and setting of a defense: its targets, what they cost and prove, and what attacks saw."""

    setting: Setting
    dataset: str
    label: str
    targets: pd.DataFrame
    facts: dict[str, Fact]
    seen: tuple[Seen, ...]
    missing: tuple[str, ...] = ()
    """What should have run and did not, in words."""
    is_audit: bool = False
    """Whether it is one model that sweeper did not train: then there are no seeds and no null."""

    @property
    def n_seeds(self) -> int:
        return len(self.targets)

    @property
    def was_searched(self) -> bool:
        """Whether a search chose its settings."""
        return "search_id" in self.targets and bool(self.targets["search_id"].notna().any())

    @property
    def counts_search(self) -> bool:
        """Whether the sweep asks for the ε with the search where there is one ε to say."""
        return "epsilon_shown" in self.targets and bool((self.targets["epsilon_shown"] == "search").any())


def places_of(results: Results, measured: Measurements, defense: str, attack: str | None = None) -> list[Place]:
    """Every dataset and setting that the defense was trained on.

    Attacks are the primary one, fixed by the number of seeds alone, and those that the defense names as adapted to it; or all
    scores of `attack`.
    """
    members = cohort_members(results)
    largest = largest_cohorts(members, measured.frame) if len(members) else members
    found = []
    rows_of = [(setting, dataset, measured.of(setting, dataset, defense)) for setting, dataset in measured.rows()]
    rows_of = [each for each in rows_of if len(each[2])]
    for setting, dataset, rows in rows_of:
        here = largest
        if len(largest):
            is_here = (
                (largest["setting"] == setting.key) & (largest["dataset"] == dataset) & (largest["defense"] == defense)
            )
            here = largest[is_here]
        adaptive = [str(name) for each in rows["adaptive_attacks"] if each is not None for name in each]
        seen, missing = seen_by(here, adaptive, attack, len(rows_of), len(rows))
        unfinished = _unfinished(results, rows)
        if unfinished:
            missing.append(f"{unfinished} of {unfinished + len(rows)} targets have failed")
        if (rows["delta"] >= 1 / rows["n_train"]).any():
            missing.append(
                f"δ = {rows['delta'].max():.2g} is not below 1/n for {rows['n_train'].min():,.0f} records, so its ε would allow "
                "publishing a whole record"
            )
        if rows["delta"].nunique() > 1:
            missing.append("the seeds' guarantees have different δ, so their ε cannot be compared")
        found.append(
            Place(
                setting=setting,
                dataset=dataset,
                label=measured.row_label(setting, dataset),
                targets=rows,
                facts=_facts(rows),
                seen=tuple(seen),
                missing=tuple(missing),
            )
        )
    return found


def _unfinished(results: Results, rows: pd.DataFrame) -> int:
    """How many targets of the same cell are on record as failed, and have no finished seed in their place."""
    first, trials = rows.iloc[0], results.trials
    same = trials["status"] != "finished"
    for name in ("defense", "dataset", "split_label", "architecture", "optimizer"):
        same &= trials[name].isna() if pd.isna(first[name]) else trials[name] == first[name]
    return len(set(trials.loc[same, "seed"]) - set(rows["seed"]))


def places_missing(results: Results, defense: str) -> list[str]:
    """Datasets and splits of the defense of which no target has finished, in words."""
    trials = results.trials[results.trials["defense"] == defense]
    done = {
        (str(row["dataset"]), str(row["split_label"])) for _, row in trials[trials["status"] == "finished"].iterrows()
    }
    every = dict.fromkeys((str(row["dataset"]), str(row["split_label"])) for _, row in trials.iterrows())
    return [
        f"no target on {dataset}, split {split}, has finished"
        for dataset, split in every
        if (dataset, split) not in done
    ]


def rows_in_trials(rows: pd.DataFrame) -> str:
    """Where the targets stand in the table `trials`."""
    first = rows.iloc[0]
    known = [
        name for name in ("defense", "dataset", "split_label", "architecture", "optimizer") if pd.notna(first[name])
    ]
    return f"trials.parquet: {', '.join(f'{name} = {first[name]}' for name in known)}"


def _facts(rows: pd.DataFrame) -> dict[str, Fact]:
    """Accuracy and guarantees, over all seeds."""
    facts = {}
    accuracy = estimate(rows["test_accuracy"], FRACTION)
    if accuracy is not None:
        facts["test_accuracy"] = _fact(
            "test_accuracy", "test accuracy", accuracy, f"{rows_in_trials(rows)}, test_accuracy"
        )
    for name, words in (
        ("epsilon_spent", "proved ε of one run"),
        ("epsilon_with_search", "proved ε of the search that chose its settings, if its best run is released"),
        ("epsilon_trained_anew", "proved ε of that search and of a model trained anew with its settings"),
    ):
        if rows[name].notna().all():
            worst = rows.loc[rows[name].idxmax()]
            words = f"{words}, at δ = {float(worst['delta']):.2g}"
            value = float(worst[name])
            key = name.replace("_spent", "")
            source = f"trials.parquet: target_id = {worst['target_id']}, {name}"
            facts[key] = Fact(name=key, words=words, value=value, low=value, high=value, source=source)
    return facts


def seen_by(
    here: pd.DataFrame,
    adaptive: Sequence[str],
    attack: str | None,
    n_nulls: int,
    n_seeds: int,
    file: str = "cohorts.parquet",
) -> tuple[list[Seen], list[str]]:
    """What the attacks that count saw, and which of them are missing.

    `here` has the rows of `cohorts` for one cell, with each attack's `config`. `n_nulls` nulls are tested together. `n_seeds` have
    finished; they alone decide which attack is primary.
    """
    seen, missing = [], []
    if attack is not None:
        chosen = here[here["attack"] == attack] if len(here) else here
        seen = [_of(row, "asked for", n_nulls, file) for _, row in chosen.iterrows()]
        return seen, [] if seen else [f"attack '{attack}' did not run"]
    primary, wanted = _primary(here, n_seeds)
    if primary is None:
        missing.append(wanted)
    else:
        seen.append(_of(primary, "primary", n_nulls, file))
    for name in dict.fromkeys(adaptive):
        of_attack, _, score_name = name.partition("/")
        found = here[(here["attack"] == of_attack) & (here["score_name"] == score_name)] if len(here) else here
        if found.empty:
            missing.append(f"{name}, the attack that adapts to this defense, did not run")
        elif primary is None or (of_attack, score_name) != (primary["attack"], primary["score_name"]):
            seen.append(_of(found.iloc[0], "adaptive", n_nulls, file))
    return seen, missing


def _primary(here: pd.DataFrame, n_seeds: int) -> tuple[pd.Series | None, str]:
    """The row of the attack that the number of seeds makes primary; without it, what is missing in words."""
    rule = next((rule for rule in RULES if n_seeds >= rule.least_seeds), None)
    if rule is None:
        needed = min(rule.least_seeds for rule in RULES)
        return None, f"attacks on the cohort need {needed} seeds"
    if len(here):
        rows = here[(here["attack"] == rule.attack) & (here["score_name"] == rule.score_name)]
        for _, row in rows.sort_values("n_targets", ascending=False, kind="stable").iterrows():
            if has_options(row["config"], rule.options):
                return row, ""
    return (
        None,
        f"{rule.attack}/{rule.score_name}, the primary attack for {n_seeds} seeds, did not run; the split must have coins",
    )


def _of(row: pd.Series, why: str, n_nulls: int, file: str) -> Seen:
    facts: dict[str, Fact] = {}
    where = f"{file}: comparison_id = {row['comparison_id']}, score_name = {row['score_name']}"

    def add(name: str, words: str, column: str) -> None:
        found = _interval(row, column)
        if found is None:
            return
        before = facts.get(name)
        # Of several ways to count, the one that shows most
        if before is None or (found.high or 0.0) > (before.high or 0.0):
            facts[name] = _fact(name, words, found, f"{where}, {column}")

    add("auc", "AUC", "auc")
    for fpr in FPRS:
        name = f"tpr@{100 * fpr:g}%"
        for columns in (FPR_COLUMNS, POOLED_COLUMNS, CALIBRATED_COLUMNS):
            if fpr in columns:
                add(name, f"TPR at {100 * fpr:g} % FPR", columns[fpr])
    if pd.notna(row["epsilon_lower_bound"]):
        value = float(row["epsilon_lower_bound"])
        facts["epsilon_lower_bound"] = Fact(
            name="epsilon_lower_bound",
            words="lower bound on ε",
            value=value,
            low=value,
            high=value,
            source=f"{where}, epsilon_lower_bound",
        )
    return Seen(
        attack=str(row["attack"]),
        score_name=str(row["score_name"]),
        why=why,
        facts=facts,
        null=_interval(row, "null_auc"),
        is_sound=bool(pd.notna(row["null_auc"])) and is_sound(row.to_dict(), n_nulls),
        n_models=int(row["n_targets"]),
    )


def _interval(row: pd.Series, column: str) -> Estimate | None:
    mean = row.get(column)
    if mean is None or pd.isna(mean):
        return None
    low, high = (None if pd.isna(row[f"{column}{end}"]) else float(row[f"{column}{end}"]) for end in ("_low", "_high"))
    return Estimate(mean=float(mean), low=low, high=high, n=int(row["n_targets"]), over="resamples", bounds=FRACTION)


def _fact(name: str, words: str, found: Estimate, source: str) -> Fact:
    return Fact(name=name, words=words, value=found.mean, low=found.low, high=found.high, source=source)
