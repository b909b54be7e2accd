"""The primary attack: the one attack that judges all defenses of a setting and dataset, fixed before any result is seen.

Attacks on cohorts take the other seeds of a target's cell as references. Which of them is the strongest valid one depends on
how many seeds there are, so the number of seeds alone decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # importing scipy.stats would take a second

from analysis.load import Results
from analysis.measure.best_of import MEMBERSHIP
from analysis.statistics.estimates import CONFIDENCE

_SOUND = 0.5
"""The AUC of a sound attack on a membership by which no model was trained."""

MOST_NULL_GROUPS = 8
"""Units of a cohort whose nulls are independent; of more, some share their tosses (`null_auc` in the schema)."""

MOST_FALSE_ALARMS = 0.01
"""Probability that a report calls some sound attack broken: the level of the test of all its nulls together."""

Panel = tuple[str, str]
"""A setting's key and a dataset: what compared defenses share."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A score that is primary if every compared defense has it from at least `least_seeds` seeds.

    `options` are values that the attack's configuration must have.
    """

    attack: str
    score_name: str
    least_seeds: int
    options: Mapping[str, Any]


RULES = (
    Rule(attack="lira", score_name="online_log_odds", least_seeds=8, options={"spread": "shrunk"}),
    Rule(attack="ratio", score_name="online", least_seeds=4, options={}),
)
"""The candidates, the strongest first. If none applies, the best of the attacks on single targets judges."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Primary:
    """The primary attack of one setting and dataset.

    `cohorts` has the row of the table `cohorts` for each defense, by its label. `broken` are the defenses against which the
    attack is wrong: its null differs from 0.5 (`is_sound`). `left_out` counts finished targets that are in no cohort.
    """

    attack: str
    score_name: str
    cohorts: pd.DataFrame
    broken: tuple[str, ...]
    left_out: int


def cohort_members(results: Results) -> pd.DataFrame:
    """The table `cohorts`, a row per score of a finished comparison, with the comparison's `config` and `members`."""
    done = results.comparisons[results.comparisons["status"] == "finished"]
    done = done[["comparison_id", "config", "members"]].drop_duplicates("comparison_id")
    return results.cohorts.merge(done, on="comparison_id", how="inner")


def largest_cohorts(members: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """For each cell, configuration of an attack, and score, the row of `cohort_members` with the most targets of the cell.

    Seeds that are added later make a new, larger cohort; it replaces the smaller one. The columns `setting`, `dataset` and
    `defense` name the cell, and `n_here` counts its targets.
    """
    pairs = members[["comparison_id", "members"]].drop_duplicates("comparison_id").explode("members")
    pairs = pairs.rename(columns={"members": "target_id"}).astype({"target_id": "str"})
    cell = ["setting", "dataset", "defense"]
    located = pairs.merge(frame[["target_id", *cell]], on="target_id", how="inner")
    counts = located.groupby(["comparison_id", *cell]).size().rename("n_here").reset_index()
    rows = members.merge(counts, on="comparison_id", how="inner")
    rows = rows.sort_values(["n_here", "comparison_id"], ascending=[False, True], kind="stable")
    return rows.drop_duplicates(["attack", "config", "score_name", *cell]).reset_index(drop=True)


def primaries(results: Results, frame: pd.DataFrame) -> dict[Panel, Primary]:
    """The primary attack of each setting and dataset that has one; the weakest defense's number of seeds decides."""
    members = cohort_members(results)
    if members.empty or frame.empty:
        return {}
    largest = largest_cohorts(members, frame)
    n_nulls = len(frame[["setting", "dataset", "defense"]].drop_duplicates())
    found = {}
    for (setting, dataset), rows in frame.groupby(["setting", "dataset"]):
        here = largest[(largest["setting"] == setting) & (largest["dataset"] == dataset)]
        primary = next(_candidates(here, rows, n_nulls), None)
        if primary is not None:
            found[str(setting), str(dataset)] = primary
    return found


def _candidates(largest: pd.DataFrame, frame: pd.DataFrame, n_nulls: int) -> Iterator[Primary]:
    """The attacks that may judge the targets in `frame`, the strongest first."""
    defenses = sorted(set(frame["defense"]))
    for rule in RULES:
        rows = largest[(largest["attack"] == rule.attack) & (largest["score_name"] == rule.score_name)]
        # One configuration judges all defenses; of several, the one with the most targets.
        sizes = rows.groupby("config")["n_here"].sum()
        for config in sorted(sizes.index, key=lambda config: (-sizes[config], config)):
            cohorts = rows[rows["config"] == config].set_index("defense")
            if not has_options(config, rule.options) or not set(defenses) <= set(cohorts.index):
                continue
            if (cohorts["n_targets"] < rule.least_seeds).any():
                continue
            holds = np.array([is_sound(row, n_nulls) for row in cohorts.to_dict("records")], dtype=bool)
            yield Primary(
                attack=rule.attack,
                score_name=rule.score_name,
                cohorts=cohorts,
                broken=tuple(str(defense) for defense in cohorts.index[~holds]),
                left_out=len(frame) - int(cohorts["n_here"].sum()),
            )


def is_sound(cohort: Mapping[str, Any], n_nulls: int) -> bool:
    """Whether the null of a cohort's attack may be 0.5: a two-sided t-test over its groups at `MOST_FALSE_ALARMS` / `n_nulls`.

    `cohort` is a row of the table `cohorts`; the standard error is that of its interval. A null of unknown spread is sound.
    """
    freedom = min(cohort["n_units"], MOST_NULL_GROUPS) - 1
    half_width = (cohort["null_auc_high"] - cohort["null_auc_low"]) / 2
    off = abs(cohort["null_auc"] - _SOUND)
    if not (freedom >= 1 and np.isfinite(half_width) and np.isfinite(off)):
        return True
    if half_width == 0:
        return bool(off == 0)
    p_value = 2 * stdtr(freedom, -off / half_width * stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return bool(p_value >= MOST_FALSE_ALARMS / max(1, n_nulls))


def has_options(config: object, options: Mapping[str, Any]) -> bool:
    """Whether a recorded configuration, canonical JSON, has these values."""
    try:
        recorded = json.loads(str(config))
        return all(recorded[name] == value for name, value in options.items())
    except (ValueError, KeyError, TypeError, RecursionError):  # another program wrote it
        return False


def judged_by(frame: pd.DataFrame, attacks: pd.DataFrame, found: Mapping[Panel, Primary]) -> pd.DataFrame:
    """`frame` with the numbers of the primary attack in place of best_of's, wherever there is one.

    A target in no cohort, or against which the attack is broken, has none: its numbers are null.
    """
    columns = [name for name in MEMBERSHIP if not name.startswith("paper_protocol")]
    replaced = [*columns, "attacked_members", "attacked_non_members", "selected_score", "score_key"]
    frame = frame.copy()
    done = attacks[(attacks["status"] == "finished") & attacks["attack_id"].isin(_comparison_ids(found))]
    for (setting, dataset), primary in found.items():
        here = frame.index[(frame["setting"] == setting) & (frame["dataset"] == dataset)]
        rows = frame.loc[here, ["target_id", "defense"]]
        rows["attack_id"] = rows["defense"].map(primary.cohorts["comparison_id"])
        rows = rows[~rows["defense"].isin(primary.broken)]
        scored = done[done["score_name"] == primary.score_name].drop_duplicates(["target_id", "attack_id"], keep="last")
        rows = rows.reset_index().merge(scored, on=["target_id", "attack_id"], how="inner").set_index("index")
        rows = rows.rename(columns={"n_members": "attacked_members", "n_non_members": "attacked_non_members"})
        rows["selected_score"] = f"{primary.attack}/{primary.score_name}"
        keys = zip(rows["target_id"], rows["attack_id"], rows["score_name"], strict=True)
        rows["score_key"] = pd.Series([tuple(map(str, key)) for key in keys], index=rows.index, dtype=object)
        frame.loc[here, replaced] = None
        frame.loc[rows.index, replaced] = rows[replaced]
    return frame


def _comparison_ids(found: Mapping[Panel, Primary]) -> set[str]:
    return {str(each) for primary in found.values() for each in primary.cohorts["comparison_id"]}
