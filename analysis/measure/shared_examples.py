"""The correlation of two targets' AUCs that comes from measuring them on the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.load import Results, ScoreKey, Scores, read_scores
from analysis.statistics.estimates import auc_influence

_MOST_EXAMPLES = 10_000
"""Examples that suffice for a correlation. From a larger pool, every target keeps the same part."""


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Correlations of AUCs: a square frame by target id for each setting and dataset."""

    frames: Mapping[tuple[str, str], pd.DataFrame]

    def between(self, panel: tuple[str, str], targets: list[str], groups: list[str]) -> npt.NDArray[np.float64]:
        """The matrix of these targets of one panel, which is a setting's key and a dataset.

        A target without recorded scores is treated conservatively: its correlation is 1 with targets of its own group, and 0
        with targets of other groups.
        """
        known = self.frames.get(panel, pd.DataFrame()).reindex(index=targets, columns=targets)
        same_group = np.equal.outer(np.array(groups), np.array(groups)).astype(float)
        matrix = known.to_numpy(dtype=float)
        filled: npt.NDArray[np.float64] = np.where(np.isnan(matrix), same_group, matrix)
        return filled


def correlations(results: Results, frames: Sequence[pd.DataFrame]) -> list[Correlations]:
    """For each of `frames`, the correlations of its targets, by the scores that were selected for them there.

    A frame has the columns `setting`, `dataset`, `target_id`, `score_key`, `n_members` and `n_non_members`.

    Source: DeLong, DeLong & Clarke-Pearson 1988. The covariance of two AUCs is the sum, over the examples that both targets
    have, of the products of their influences (`auc_influence`). An example that is a member of one target and a non-member of
    the other mostly contributes a negative product.
    """
    known = [frame[np.array([isinstance(key, tuple) for key in frame["score_key"]], dtype=bool)] for frame in frames]
    wanted: dict[ScoreKey, float] = {}
    for rows in known:
        count = (rows["n_members"] + rows["n_non_members"]).fillna(np.inf)
        wanted |= dict(zip(rows["score_key"], count, strict=True))
    influences: dict[ScoreKey, pd.Series] = {}
    for key, scores in read_scores(results, wanted):  # the scores are many and are read once
        if scores.is_member.any() and not scores.is_member.all():
            influences[key] = _influence(scores)
    return [_by_panel(rows, influences) for rows in known]


def _by_panel(known: pd.DataFrame, influences: Mapping[ScoreKey, pd.Series]) -> Correlations:
    frames = {}
    for panel, rows in known.groupby(["setting", "dataset"]):
        found = {key[0]: influences[key] for key in rows["score_key"] if key in influences}
        if found:
            frames[str(panel[0]), str(panel[1])] = _correlate(found)
    return Correlations(frames=frames)


def _influence(scores: Scores) -> pd.Series:
    kept = np.ones(len(scores.score), dtype=bool)
    if len(kept) > _MOST_EXAMPLES:
        # Multiplication scrambles the ids, so the kept part is not just the beginning of the data.
        place = (scores.example_id.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        kept = place < _MOST_EXAMPLES / len(kept) * 2.0**32
    influence = auc_influence(scores.is_member, scores.score)[kept]
    return pd.Series(influence, index=scores.example_id[kept]).groupby(level=0).sum().astype(np.float32)


def _correlate(influences: dict[str, pd.Series]) -> pd.DataFrame:
    table = pd.DataFrame(influences).fillna(0.0).to_numpy(dtype=float)
    products = table.T @ table
    length = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):  # an AUC of 1 varies with no example, and 0/0 stays unknown
        matrix = products / np.outer(length, length)
    return pd.DataFrame(np.clip(matrix, -1, 1), index=list(influences), columns=list(influences))
