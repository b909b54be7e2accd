"""The frame of a factor study: its targets, their level of each factor, and which of them are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Results
from analysis.measure.shared_examples import Correlations
from analysis.measure.targets import Measurements
from analysis.studies.lin2020.factors.grid import ALL_CLIPPED, SAME_RUN, SCALE_FREE, balanced_grid
from analysis.studies.lin2020.factors.levels import (
    AC,
    CA,
    CELL,
    FACTORS,
    MECHANISMS,
    NORMAL,
    PAIR,
    SEQUENCES,
    Cell,
    ordered,
)

MEASURED = ("accuracy", "train_accuracy", "loss", "tpvd", "tpvd_other_init", "auc", "tpr", "epsilon_lower_bound")
"""The columns of a target's measurements."""


@dataclass(frozen=True, kw_only=True)
class FactorStudy:
    """The targets of a factor study.

    `frame` has one row per finished target that is undefended or has a mechanism. Its columns are the factors, `kind`
    (normal, CA, AC, a quantile rule), `seed`, `accuracy` (on test examples), `train_accuracy`, `loss` (on training examples
    after the last epoch, the paper's convergence), `test_loss`, `tpvd`, `tpvd_other_init`, `auc`, `tpr` and
    `epsilon_lower_bound`. `distinct_clip` is the smallest clip norm that gives the same training. `setting` names
    everything but the seed that differs within a dataset, model and optimizer.

    `grid` has the rows of the factor analysis. `compared` has these rows, and the sequence trials of datasets, models and
    optimizers that the grid leaves out. `history` has a row per target and epoch. `note` describes the grid in words.
    `correlations` are the correlations of AUCs from shared examples, within a row's `panel`: a split, model and optimizer.
    """

    frame: pd.DataFrame
    grid: pd.DataFrame
    compared: pd.DataFrame
    history: pd.DataFrame
    cells: tuple[Cell, ...]
    note: str
    correlations: Correlations = field(default_factory=lambda: Correlations(frames={}))

    def levels(self, factor: str, frame: pd.DataFrame | None = None) -> list[Any]:
        """The levels of `factor` in `frame` (default: the grid), in the paper's order."""
        return ordered(factor, (self.grid if frame is None else frame)[factor])

    def at(self, cell: Cell, frame: pd.DataFrame | None = None) -> pd.DataFrame:
        """The rows of one dataset, model and optimizer."""
        rows = self.frame if frame is None else frame
        here = (rows["dataset"] == cell[0]) & (rows["model"] == cell[1]) & (rows["optimizer"] == cell[2])
        return rows[here]


def factor_study(results: Results, measured: Measurements) -> FactorStudy | None:
    """The study, if at least two settings of the paper's mechanisms were tried; else None."""
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
        words.append(f"Of several splits, {chosen} has the most sequence trials; the other splits are left out.")
        fixed = frame["sequence"].notna() & frame["noise"].notna() & frame["clip"].notna()
    candidates, repeated = _without_repeats(frame[fixed])
    grid, note = balanced_grid(candidates)
    words.append(note)
    if repeated:
        words.append(
            f"{repeated} trials of a second part are left out, because they repeat the factors and seed of another trial."
        )
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
        correlations=measured.correlations,
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
    rows["panel"] = rows["setting"]
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
    clipped = results.history.groupby("target_id")["clipped_fraction"].min()
    rows["clipped"] = rows["target_id"].map(clipped)
    rows["distinct_clip"] = _distinct_clips(rows)
    rows["setting"] = [
        str(defense) if pd.isna(clip) else f"{kind} {noise:g} {clip:g}"
        for defense, kind, noise, clip in zip(
            rows["defense"], rows["kind"], rows["noise"], rows["distinct_clip"], strict=True
        )
    ]
    return rows


def _distinct_clips(rows: pd.DataFrame) -> pd.Series:
    """The smallest clip norm at which each row's training is the same, by default the row's own.

    Two clip norms give the same training if every gradient is clipped and the noise is zero, or on the sum in clip norms, or on
    each gradient in absolute units. The sum is then proportional to the clip norm. A scale-free optimizer such as Adam takes
    the same steps, except for the noise that each run draws. SGD does not, because its steps are as long as the clip norm; if
    two of its runs are at the same distance from their twin, both have stayed near the initialization.
    """
    distinct = rows["clip"].astype(float)
    for _, here in rows[rows["clip"].notna()].groupby([*CELL, "kind", "noise"], dropna=False):
        scaled = here["optimizer"].str.startswith("sgd") & (here["noise_unit"] == "clip_norm") & (here["noise"] > 0)
        if scaled.any():
            continue
        clips = sorted(set(here["clip"]))
        run = clips[0]
        for smaller, larger in pairwise(clips):
            both = here[here["clip"].isin([smaller, larger])]
            if not _is_one_training(both) and not _are_same_runs(
                here[here["clip"] == smaller], here[here["clip"] == larger]
            ):
                run = larger
            distinct[here.index[here["clip"] == larger]] = run
    return distinct


def _is_one_training(rows: pd.DataFrame) -> bool:
    """Whether runs at two clip norms are one training by construction, as `_distinct_clips` says."""
    noiseless = rows["noise"].fillna(0) == 0
    in_clip_norms = rows["noise_unit"] == "clip_norm"
    proportional = noiseless | (in_clip_norms & (rows["sequence"] == CA)) | (~in_clip_norms & (rows["sequence"] == AC))
    return bool((proportional & rows["optimizer"].isin(SCALE_FREE) & (rows["clipped"] >= ALL_CLIPPED)).all())


def _are_same_runs(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether the weights are nearly the same in every seed that has both (see `SAME_RUN`)."""
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
    """One row per distinct setting: its levels, and the means over seeds of what was measured.

    A test takes these rows as its units. Seeds of one setting are not units, nor are settings that give the same run.
    """
    levels = dict.fromkeys(("kind", "noise", "clip", "distinct_clip", "sequence"), "first")
    ordered_rows = rows[[*CELL, "setting", *MEASURED, *levels]].sort_values("clip", kind="stable")
    by_setting = ordered_rows.groupby([*CELL, "setting"], sort=False)
    return by_setting.agg({**dict.fromkeys(MEASURED, "mean"), **levels}).reset_index()


def _audited(attacks: pd.DataFrame) -> pd.DataFrame:
    """Each target's audited lower bound on ε from the loss, a single score that was fixed beforehand."""
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
    """One trial per combination and seed, from the part with more trials, and the number of trials left out."""
    size = rows.groupby(rows["part"].fillna(""))["part"].transform("size") if len(rows) else rows["seed"]
    order = rows.assign(size=size).sort_values(["size", "target_id"], ascending=[False, True], kind="stable")
    chosen = order.drop_duplicates([*PAIR, "sequence"]).drop(columns="size").sort_index()
    return chosen, len(rows) - len(chosen)
