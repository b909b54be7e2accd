"""The frame of a factor study: which targets it has, by which levels of which factors, and which are compared.

The second paper asks which of six factors matter for accuracy and convergence. That can only be asked of
trials in which every level of a factor met the same levels of the others, so this file says which those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from analysis import naming
from analysis.load import Results
from analysis.measure.measurements import Measurements
from analysis.statistics.estimates import Estimate, estimate
from analysis.studies.lin2020 import numbers as lin2020

MECHANISMS = ("clip_then_noise", "noise_then_clip", "quantile_clipping", "noised_quantile")
"""The mechanisms that the second paper sets side by side."""

NORMAL, CA, AC = "normal", "CA", "AC"
QUANTILES = ("quantile_flat", "quantile_per_layer", "noised_quantile")
SEQUENCES = (CA, AC)
KINDS = (NORMAL, *SEQUENCES, *QUANTILES)

FACTORS = ("dataset", "model", "optimizer", "noise", "clip", "sequence")
"""The factors, by their columns. `sequence` is the paper's word for which of clipping and noise comes first."""

CELL = ("dataset", "model", "optimizer")
PAIR = (*CELL, "noise", "clip", "seed")
"""What an AC trial and its CA trial have in common."""

Cell = tuple[str, str, str]
"""(dataset, model, optimizer)."""

SAME_RUN = 0.05
"""Two targets of one seed are one run where their weights lie closer together than this share of how far both were moved."""

SCALE_FREE = ("adam", "adagrad", "adadelta")
"""Optimizers that take the same steps whatever all gradients are multiplied by."""

MEASURED = ("accuracy", "train_accuracy", "loss", "tpvd", "tpvd_other_init", "auc", "tpr", "epsilon_lower_bound")
"""The columns that hold what was measured of a target."""

# A level stays in the grid where at least this share of its combinations was trained: one failed combination
# must not take away a whole dataset.
_FILLED = 0.9

_NAMES = {
    NORMAL: "Normal",
    "quantile_flat": "Quantile, flat",
    "quantile_per_layer": "Quantile, per layer",
    "noised_quantile": "Noised quantile",
    "dp_sgd": "DP-SGD",
}


def kind_name(kind: str) -> str:
    """How a kind of training is called in tables and figures."""
    return _NAMES.get(kind, kind)


@dataclass(frozen=True, kw_only=True)
class FactorStudy:
    """The targets of a factor study.

    `frame` has one row per finished target that is undefended or has a mechanism: the factors, `kind` (normal,
    CA, AC, a quantile rule), `seed`, `accuracy` (on test examples), `train_accuracy`, `loss` (on training
    examples, at the end: the paper's convergence), `test_loss`, `tpvd`, `tpvd_other_init`, `auc`, `tpr`,
    `epsilon_lower_bound`. Its `distinct_clip` is the smallest clip norm with which the same run was made (see
    `SAME_RUN`), and `setting` names all that differs within a dataset, model and optimizer but the seed. `grid` holds
    the rows that the factor analysis is made of, `compared` those and the sequence trials of datasets, models and
    optimizers that the grid leaves out. `history` has a row per target and epoch.
    """

    frame: pd.DataFrame
    grid: pd.DataFrame
    compared: pd.DataFrame
    history: pd.DataFrame
    cells: tuple[Cell, ...]
    note: str

    def levels(self, factor: str, frame: pd.DataFrame | None = None) -> list[Any]:
        """The levels of `factor` in `frame` (default: the grid), in the paper's order."""
        return ordered(factor, (self.grid if frame is None else frame)[factor])

    def at(self, cell: Cell, frame: pd.DataFrame | None = None) -> pd.DataFrame:
        """The rows of one dataset, model and optimizer."""
        rows = self.frame if frame is None else frame
        here = (rows["dataset"] == cell[0]) & (rows["model"] == cell[1]) & (rows["optimizer"] == cell[2])
        return rows[here]


def ordered(factor: str, values: pd.Series) -> list[Any]:
    """The distinct known values, in the paper's order, then as they sort."""
    known: dict[str, tuple[Any, ...]] = {
        "dataset": lin2020.DATASETS,
        "model": tuple(lin2020.MODELS),
        "optimizer": lin2020.OPTIMIZERS,
        "sequence": SEQUENCES,
        "kind": KINDS,
    }
    first = known.get(factor, ())
    present = set(values.dropna())
    return [value for value in first if value in present] + sorted(present - set(first))


def raw_level(factor: str, level: Any) -> str:
    """A level as text: a number, or the label of the sweep file."""
    return f"{level:g}" if factor in ("noise", "clip") else str(level)


def level_name(factor: str, level: Any) -> str:
    """How a level is shown."""
    return naming.display(raw_level(factor, level))


def cell_name(cell: Cell) -> str:
    """“MNIST, CNN, Adam”."""
    return ", ".join(naming.display(label) for label in cell if label)


def factor_study(results: Results, measured: Measurements) -> FactorStudy | None:
    """The study, where at least two settings of the second paper's mechanisms were tried; else None."""
    trials = results.trials
    tried = trials[trials["mechanism"].isin(MECHANISMS)]
    if tried["defense"].nunique() < 2:
        return None
    frame = _frame(results, measured)
    several = ordered("split", frame["split"])
    fixed = frame["sequence"].notna() & frame["noise"].notna() & frame["clip"].notna()
    words = []
    if len(several) > 1:
        counts = (frame[fixed] if bool(fixed.any()) else frame)["split"].value_counts()
        chosen = sorted(counts.index, key=lambda split: (-counts[split], split))[0]
        frame = frame[frame["split"] == chosen].reset_index(drop=True)
        words.append(f"Of several splits, {chosen} has the most sequence trials; the others are left out here.")
        fixed = frame["sequence"].notna() & frame["noise"].notna() & frame["clip"].notna()
    candidates, repeated = _without_repeats(frame[fixed])
    grid, note = _grid(candidates)
    words.append(note)
    if repeated:
        words.append(f"{repeated} trials of a second part have the factors and seed of another and are left out.")
    inside = set(grid[list(CELL)].itertuples(index=False, name=None))
    outside = [cell not in inside for cell in candidates[list(CELL)].itertuples(index=False, name=None)]
    cells = [cell for cell in _cells(frame) if len(frame)]
    return FactorStudy(
        frame=frame,
        grid=grid.reset_index(drop=True),
        compared=pd.concat([grid, candidates[outside]]).reset_index(drop=True),
        history=_history(results, frame),
        cells=tuple(cells),
        note=" ".join(words),
    )


def _cells(frame: pd.DataFrame) -> list[Cell]:
    present = set(frame[list(CELL)].itertuples(index=False, name=None))
    every = product(*(ordered(factor, frame[factor]) for factor in CELL))
    return [(str(a), str(b), str(c)) for a, b, c in every if (a, b, c) in present]


def _kind(mechanism: Any, clipping: Any) -> str | None:
    if mechanism == "quantile_clipping":
        return "quantile_per_layer" if clipping == "quantile_per_layer" else "quantile_flat"
    if mechanism in ("clip_then_noise", "noise_then_clip"):
        order = CA if mechanism == "clip_then_noise" else AC
        return order if clipping in ("fixed", None) or pd.isna(clipping) else f"{order}, {clipping}"
    return None if mechanism is None or pd.isna(mechanism) else str(mechanism)


def _frame(results: Results, measured: Measurements) -> pd.DataFrame:
    rows = measured.frame.copy()
    rows["kind"] = [_kind(*pair) for pair in zip(rows["mechanism"], rows["clipping"], strict=True)]
    twins = set(rows["twin_id"].dropna())
    normal = rows["kind"].isna() & (rows["target_id"].isin(twins) | (rows["defense"] == measured.baseline))
    rows.loc[normal, "kind"] = NORMAL
    rows = rows[rows["kind"].notna()]
    rows = rows.rename(
        columns={
            "architecture": "model",
            "noise_scale": "noise",
            "max_grad_norm": "clip",
            "test_accuracy": "accuracy",
            "train_loss": "loss",
            "tpr_at_fpr_0.01": "tpr",
        }
    )
    rows["sequence"] = rows["kind"].where(rows["kind"].isin(SEQUENCES))
    for name in CELL:
        rows[name] = rows[name].fillna("").astype(str)
    distances = results.tpvd.dropna(subset=["target_id", "tpvd"]).drop_duplicates("target_id", keep="last")
    distances = distances[["target_id", "tpvd", "tpvd_other_init", "displacement_sketch"]]
    rows = rows.merge(distances, on="target_id", how="left")
    rows = rows.merge(_audited(results.attacks), on="target_id", how="left").reset_index(drop=True)
    rows["distinct_clip"] = _distinct_clips(rows)
    rows["setting"] = [
        str(defense) if pd.isna(clip) else f"{kind} {noise:g} {clip:g}"
        for defense, kind, noise, clip in zip(
            rows["defense"], rows["kind"], rows["noise"], rows["distinct_clip"], strict=True
        )
    ]
    return rows


def _distinct_clips(rows: pd.DataFrame) -> pd.Series:
    """Per row the smallest clip norm with which the same run was made; its own where none was.

    Where every gradient is clipped and both runs draw the same noise in clip norms, or none, the gradient is
    proportional to the clip norm, and an optimizer that does not mind its size, such as Adam, takes the same steps.
    """
    distinct = rows["clip"].astype(float)
    for _, here in rows[rows["clip"].notna()].groupby([*CELL, "kind", "noise"], dropna=False):
        clips = sorted(set(here["clip"]))
        run = clips[0]
        for smaller, larger in pairwise(clips):
            if not _are_same_runs(here[here["clip"] == smaller], here[here["clip"] == larger]):
                run = larger
            distinct[here.index[here["clip"] == larger]] = run
    return distinct


def _are_same_runs(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether, in every seed that has both, the weights are the same but for next to nothing."""
    pairs = first.merge(second, on="seed")
    known = pairs[pairs["displacement_sketch_x"].notna() & pairs["displacement_sketch_y"].notna()]
    sketches = [
        (np.asarray(one, dtype=float), np.asarray(other, dtype=float))
        for one, other in zip(known["displacement_sketch_x"], known["displacement_sketch_y"], strict=True)
    ]
    return bool(sketches) and all(
        len(one) == len(other)
        and np.linalg.norm(one - other) <= SAME_RUN * max(np.linalg.norm(one), np.linalg.norm(other))
        for one, other in sketches
    )


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per setting that is a run of its own: its levels, and what was measured as the mean over seeds.

    Seeds of one setting, and runs that are the same but for the clip norm's name, are no units of their own in a test.
    """
    levels = dict.fromkeys(("kind", "noise", "clip", "distinct_clip", "sequence"), "first")
    ordered_rows = rows[[*CELL, "setting", *MEASURED, *levels]].sort_values("clip", kind="stable")
    by_setting = ordered_rows.groupby([*CELL, "setting"], sort=False)
    return by_setting.agg({**dict.fromkeys(MEASURED, "mean"), **levels}).reset_index()


def _audited(attacks: pd.DataFrame) -> pd.DataFrame:
    """Per target the audit's lower bound on ε from the loss: one score fixed beforehand, no largest of several."""
    known = attacks[
        (attacks["status"] == "finished")
        & (attacks["attack"] == "threshold")
        & (attacks["score_name"] == "loss")
        & attacks["epsilon_lower_bound"].notna()
    ]
    return known[["target_id", "epsilon_lower_bound"]].drop_duplicates("target_id", keep="last")


def _history(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    labels = frame[["target_id", "kind", *FACTORS, "seed"]]
    joined = results.history.dropna(subset=["target_id", "epoch"]).merge(labels, on="target_id", how="inner")
    return joined.sort_values(["target_id", "epoch"]).reset_index(drop=True)


def _without_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """One trial per combination and seed: where two parts have it, that of the part with more trials."""
    size = rows.groupby(rows["part"].fillna(""))["part"].transform("size") if len(rows) else rows["seed"]
    order = rows.assign(size=size).sort_values(["size", "target_id"], ascending=[False, True], kind="stable")
    chosen = order.drop_duplicates([*PAIR, "sequence"]).drop(columns="size").sort_index()
    return chosen, len(rows) - len(chosen)


@dataclass(frozen=True, kw_only=True)
class _Levels:
    """The levels of each factor that are kept, those that were dropped, and how many combinations there are of."""

    kept: dict[str, list[Any]]
    dropped: list[tuple[str, Any]]
    present: int

    @property
    def possible(self) -> int:
        return prod(len(levels) for levels in self.kept.values())

    @property
    def worth(self) -> tuple[int, int]:
        """How many factors still have two levels or more, then how many combinations."""
        return sum(len(levels) > 1 for levels in self.kept.values()), self.present


def _balanced(rows: pd.DataFrame, spare_pairs: bool) -> _Levels:
    """Drops the level with the largest share of missing combinations until all have nine tenths of theirs.

    With `spare_pairs`, factors of two levels are left alone as long as one of more levels has gaps.
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
        # Of several the last: of a ladder of clip norms the top goes first.
        _, factor, level = [gap for gap in many or gaps if gap[0] == worst][-1]
        kept[factor].remove(level)
        dropped.append((factor, level))


def _grid(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The trials of a balanced grid, and which they are in words.

    In a balanced grid every level of a factor met the same levels of the others. Levels with gaps are dropped:
    clip norms that one dataset alone was trained with, a dataset that was trained with few combinations. There
    are two orders of dropping; the one that leaves more factors with several levels, then more combinations,
    is taken.
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
        f"The factor analysis is made of {len(grid)} finished trials with a fixed clip norm: every combination of "
        f"{said}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}."
    )
    missing = levels.possible - levels.present
    if missing:
        note += f" {missing} of the {levels.possible} combinations did not finish or were not trained."
    if levels.dropped:
        names = [f"{factor} {level_name(factor, level)}" for factor, level in levels.dropped]
        note += f" Left out, for not every combination was trained with it: {naming.listing(names)}."
    return grid, note + _same_run_words(grid) + _units(grid) + _clip_words(grid)


def _same_run_words(grid: pd.DataFrame) -> str:
    """How many trials are another's run, and which."""
    repeats = grid[grid["clip"] != grid["distinct_clip"]]
    if repeats.empty:
        return ""
    where = repeats[["kind", *CELL]].drop_duplicates().itertuples(index=False, name=None)
    named = [f"{kind} on {cell_name((a, b, c))}" for kind, a, b, c in where]
    return (
        f" {len(repeats)} of these trials are the run of a smaller clip norm once more ({naming.listing(named)}): their weights "
        f"lie within {100 * SAME_RUN:g} % of the way that the mechanism moved them. They count once where settings are the "
        "units of a test, and tell nothing of the clip norm."
    )


def _clip_words(grid: pd.DataFrame) -> str:
    """Where the clip norm cannot matter, by construction."""
    relative = (grid["kind"] == CA) & (grid["noise_unit"] == "clip_norm") & grid["optimizer"].isin(SCALE_FREE)
    optimizers = [naming.display(name) for name in ordered("optimizer", grid.loc[relative, "optimizer"])]
    if grid["clip"].nunique() < 2 or not optimizers:
        return ""
    return (
        f" With {naming.listing(optimizers)}, CA is one and the same mechanism at every clip norm that all gradients exceed, for its "
        "noise is in clip norms: there the clip norm cannot matter."
    )


def _units(grid: pd.DataFrame) -> str:
    """How the noise scale is to be read under each sequence."""
    words = {"clip_norm": "times the clip norm", "absolute": "as it stands"}
    where = {CA: "on the sum over a batch", AC: "on each example’s gradient"}
    said = []
    for sequence in SEQUENCES:
        units = sorted(set(grid.loc[grid["sequence"] == sequence, "noise_unit"].dropna()))
        if units:
            named = " or ".join(words.get(str(unit), str(unit)) for unit in units)
            said.append(f"under {sequence} {named}, {where[sequence]}")
    return f" The noise’s standard deviation is the noise scale: {'; '.join(said)}." if said else ""


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

    Only seeds that have every combination count; where fewer than two do, only combinations that every seed
    has.
    """
    complete = grid.dropna()
    if len(complete) < min(2, len(grid)):
        complete = grid.dropna(axis="columns")
    if complete.empty or not complete.shape[1]:
        return None
    return estimate(complete.mean(axis=1))
