"""Matched pairs of trials, and means of them over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.statistics.estimates import Estimate, estimate
from analysis.studies.lin2020.factors.levels import AC, CA, PAIR, SEQUENCES


def paired(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per matched pair: the keys of the pair, `CA`, `AC` and `value`, which is AC minus CA."""
    known = rows[rows[column].notna() & rows["sequence"].notna()]
    keys = list(PAIR)
    sides = [
        known[known["sequence"] == sequence][[*keys, column]].rename(columns={column: sequence})
        for sequence in SEQUENCES
    ]
    pairs = sides[0].merge(sides[1], on=keys, how="inner")
    pairs["value"] = (pairs[AC] - pairs[CA]).astype(float)
    return pairs[pairs["value"].notna()].reset_index(drop=True)


def mean_over_seeds(pairs: pd.DataFrame, column: str = "value") -> Estimate | None:
    """Mean over combinations within each seed, then mean and interval over seeds; see `mean_of_combinations`."""
    return None if pairs.empty else mean_of_combinations(by_combination(pairs, PAIR[:-1], column))


def by_combination(pairs: pd.DataFrame, keys: Sequence[str], column: str = "value") -> pd.DataFrame:
    """A row per seed and a column per combination of `keys`."""
    return pairs.pivot_table(index="seed", columns=list(keys), values=column, aggfunc="mean")


def mean_of_combinations(grid: pd.DataFrame) -> Estimate | None:
    """Mean over the columns of each seed's row, then mean and interval over seeds.

    Only seeds with every combination count. If fewer than two seeds have every combination, only the combinations that
    every seed has count.
    """
    complete = grid.dropna()
    if len(complete) < min(2, len(grid)):
        complete = grid.dropna(axis="columns")
    if complete.empty or not complete.shape[1]:
        return None
    return estimate(complete.mean(axis=1))
