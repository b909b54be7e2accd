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
    """One number. `low` and `high` are the ends of its 95 % interval, or of what it is known to be; `source` is where it stands."""

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
        seen, missing = seen_by(here, adaptive, attack, len(rows_of))
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
        ("epsilon_with_search", "proved ε with its search"),
        ("epsilon_trained_anew", "proved ε with its search, trained anew"),
    ):
        if rows[name].notna().all():
            worst = rows.loc[rows[name].idxmax()]
            value = float(worst[name])
            key = name.replace("_spent", "")
            source = f"trials.parquet: target_id = {worst['target_id']}, {name}"
            facts[key] = Fact(name=key, words=words, value=value, low=value, high=value, source=source)
    return facts


def seen_by(
    here: pd.DataFrame, adaptive: Sequence[str], attack: str | None, n_nulls: int
) -> tuple[list[Seen], list[str]]:
    """What the attacks that count saw, and which of them are missing.

    `here` has the rows of `cohorts` for one cell, with each attack's `config`. `n_nulls` nulls are tested together.
    """
    seen, missing = [], []
    if attack is not None:
        chosen = here[here["attack"] == attack] if len(here) else here
        seen = [_of(row, "asked for", n_nulls) for _, row in chosen.iterrows()]
        return seen, [] if seen else [f"attack '{attack}' did not run"]
    primary = _primary(here)
    if primary is None:
        needed = min(rule.least_seeds for rule in RULES)
        missing.append(f"no attack on the cohort ran, which needs {needed} seeds of a split with coins")
    else:
        seen.append(_of(primary, "primary", n_nulls))
    for name in dict.fromkeys(adaptive):
        of_attack, _, score_name = name.partition("/")
        found = here[(here["attack"] == of_attack) & (here["score_name"] == score_name)] if len(here) else here
        if found.empty:
            missing.append(f"{name}, the attack that adapts to this defense, did not run")
        elif primary is None or (of_attack, score_name) != (primary["attack"], primary["score_name"]):
            seen.append(_of(found.iloc[0], "adaptive", n_nulls))
    return seen, missing


def _primary(here: pd.DataFrame) -> pd.Series | None:
    """The row of the strongest attack that there are seeds enough for."""
    for rule in RULES if len(here) else ():
        rows = here[(here["attack"] == rule.attack) & (here["score_name"] == rule.score_name)]
        for _, row in rows.iterrows():
            if has_options(row["config"], rule.options) and row["n_targets"] >= rule.least_seeds:
                return row
    return None


def _of(row: pd.Series, why: str, n_nulls: int) -> Seen:
    facts: dict[str, Fact] = {}
    where = f"cohorts.parquet: comparison_id = {row['comparison_id']}, score_name = {row['score_name']}"

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
    )


def _interval(row: pd.Series, column: str) -> Estimate | None:
    mean = row.get(column)
    if mean is None or pd.isna(mean):
        return None
    low, high = (None if pd.isna(row[f"{column}{end}"]) else float(row[f"{column}{end}"]) for end in ("_low", "_high"))
    return Estimate(mean=float(mean), low=low, high=high, n=int(row["n_targets"]), over="resamples", bounds=FRACTION)


def _fact(name: str, words: str, found: Estimate, source: str) -> Fact:
    return Fact(name=name, words=words, value=found.mean, low=found.low, high=found.high, source=source)
