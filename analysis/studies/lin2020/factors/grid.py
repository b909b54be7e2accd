"""The balanced grid: trials in which every level of a factor is combined with the same levels of the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import pandas as pd

from analysis import naming
from analysis.studies.lin2020.factors.levels import AC, CA, CELL, FACTORS, SEQUENCES, cell_name, level_name, ordered

ALL_CLIPPED = 0.999
"""If at least this fraction of gradients is clipped in every epoch, all count as clipped."""

SAME_RUN = 0.05
"""Two targets of one seed are the same run if the distance between their weights is at most this share of how far the
mechanism moved them."""

SCALE_FREE = ("adam", "adagrad", "adadelta")
"""Optimizers whose steps do not change if all gradients are multiplied by one number."""

# A level stays in the grid if at least this share of its combinations was trained, so that one failed combination does
# not remove a whole dataset.
_FILLED = 0.9


@dataclass(frozen=True, kw_only=True)
class _Levels:
    """The kept levels of each factor, the dropped ones, and the number of combinations of kept levels that were trained."""

    kept: dict[str, list[Any]]
    dropped: list[tuple[str, Any]]
    present: int

    @property
    def possible(self) -> int:
        return prod(len(levels) for levels in self.kept.values())

    @property
    def worth(self) -> tuple[int, int]:
        """The number of factors with two levels or more, then the number of combinations."""
        return sum(len(levels) > 1 for levels in self.kept.values()), self.present


def _balanced(rows: pd.DataFrame, spare_pairs: bool) -> _Levels:
    """Drops the level with the most missing combinations until every level has nine tenths of its combinations.

    With `spare_pairs`, factors with two levels keep them as long as a factor with more levels has gaps.
    """
    combinations = set(rows[list(FACTORS)].itertuples(index=False, name=None))
    kept = {factor: ordered(factor, rows[factor]) for factor in FACTORS}
    dropped: list[tuple[str, Any]] = []
    while True:
        present = [c for c in combinations if all(v in kept[f] for f, v in zip(FACTORS, c, strict=True))]
        possible = prod(len(levels) for levels in kept.values())
        gaps = [
            (share, factor, level)
            for place, factor in enumerate(FACTORS)
            for level in kept[factor]
            if len(kept[factor]) > 1 and factor != "sequence"
            if (share := sum(c[place] == level for c in present) * len(kept[factor]) / possible) < _FILLED
        ]
        if not gaps:
            return _Levels(kept=kept, dropped=dropped, present=len(present))
        many = [gap for gap in gaps if len(kept[gap[1]]) > 2] if spare_pairs else []
        worst = min(share for share, _, _ in many or gaps)
        # Of several levels the last is dropped, so a ladder of clip norms loses its top first.
        _, factor, level = [gap for gap in many or gaps if gap[0] == worst][-1]
        kept[factor].remove(level)
        dropped.append((factor, level))


def balanced_grid(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The trials of a balanced grid, and a description of them in words.

    In a balanced grid, every level of a factor was combined with the same levels of the others. Only then can the effects of
    factors be compared. Levels with gaps are dropped, such as a clip norm that only one dataset was trained with. Of two orders
    of dropping, the better one leaves more factors with several levels; if these are equal, more combinations.
    """
    if rows.empty:
        return rows, "No trial has a noise scale, a fixed clip norm and a sequence, so no factor can be analyzed."
    levels = max((_balanced(rows, spare_pairs) for spare_pairs in (False, True)), key=lambda found: found.worth)
    inside = pd.Series(True, index=rows.index)
    for factor in FACTORS:
        inside &= rows[factor].isin(levels.kept[factor])
    grid = rows[inside]
    said = "; ".join(
        f"{factor} {', '.join(level_name(factor, level) for level in levels.kept[factor])}" for factor in FACTORS
    )
    seeds = [str(seed) for seed in sorted(set(grid["seed"]))]
    note = (
        f"The factor analysis uses {len(grid)} finished trials with a fixed clip norm: every combination of "
        f"{said}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}."
    )
    missing = levels.possible - levels.present
    if missing:
        note += f" {missing} of the {levels.possible} combinations did not finish or were not trained."
    if levels.dropped:
        names = [f"{factor} {level_name(factor, level)}" for factor, level in levels.dropped]
        note += f" Left out, because not every combination was trained with it: {naming.listing(names)}."
    return grid, note + _same_run_words(grid) + _units(grid) + _clip_words(grid)


def _same_run_words(grid: pd.DataFrame) -> str:
    """How many trials repeat the training of a smaller clip norm, and which."""
    repeats = grid[grid["clip"] != grid["distinct_clip"]]
    if repeats.empty:
        return ""
    where = repeats[["kind", *CELL]].drop_duplicates().itertuples(index=False, name=None)
    named = [f"{kind} on {cell_name((a, b, c))}" for kind, a, b, c in where]
    return (
        f" {len(repeats)} of these trials repeat the training of a smaller clip norm ({naming.listing(named)}): every gradient was "
        "clipped, and the optimizer ignores a common factor of all gradients; or their weights lie within "
        f"{100 * SAME_RUN:g} % of the distance that the mechanism moved them. They count once if settings are the units of a "
        "test, and show nothing about the clip norm."
    )


def _clip_words(grid: pd.DataFrame) -> str:
    """The optimizers for which the clip norm may not matter, if the records do not show it."""
    relative = (grid["kind"] == CA) & (grid["noise_unit"] == "clip_norm") & grid["optimizer"].isin(SCALE_FREE)
    relative &= grid["clipped"].isna()
    optimizers = [naming.display(name) for name in ordered("optimizer", grid.loc[relative, "optimizer"])]
    if grid["clip"].nunique() < 2 or not optimizers:
        return ""
    return (
        f" With {naming.listing(optimizers)}, CA is the same mechanism at all clip norms that every gradient exceeds. These records "
        "do not say how many gradients did, so such settings count as several in Shapiro and Wilk’s W, U, H and the correlations "
        "of TPVD; their p-values are then too small. New trainings record it."
    )


def _units(grid: pd.DataFrame) -> str:
    """What the noise scale means under each sequence."""
    words = {"clip_norm": "times the clip norm", "absolute": "in absolute units"}
    where = {CA: "on the sum over a batch", AC: "on each example’s gradient"}
    said = []
    for sequence in SEQUENCES:
        units = sorted(set(grid.loc[grid["sequence"] == sequence, "noise_unit"].dropna()))
        if units:
            named = " or ".join(words.get(str(unit), str(unit)) for unit in units)
            said.append(f"under {sequence} {named}, {where[sequence]}")
    return f" The noise scale is the noise’s standard deviation: {'; '.join(said)}." if said else ""
