"""How the AUCs of two targets go together because they were measured on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.load import Results, Scores, read_scores
from analysis.statistics.estimates import auc_influence

_MOST_EXAMPLES = 10_000
"""A correlation needs no more; of larger pools every target keeps the same part."""


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Correlations of the AUCs of targets, a square frame by target id for each setting and dataset."""

    frames: Mapping[tuple[str, str], pd.DataFrame]

    def between(self, panel: tuple[str, str], targets: list[str], groups: list[str]) -> npt.NDArray[np.float64]:
        """The matrix of these targets of one panel, which is a setting's key and a dataset.

        Where a target's scores are not in the results, nothing is assumed in the attacker's or the defense's favor:
        two targets of one group are taken to share all luck, two of different groups none.
        """
        known = self.frames.get(panel, pd.DataFrame()).reindex(index=targets, columns=targets)
        same_group = np.equal.outer(np.array(groups), np.array(groups)).astype(float)
        matrix = known.to_numpy(dtype=float)
        filled: npt.NDArray[np.float64] = np.where(np.isnan(matrix), same_group, matrix)
        return filled


def correlations(results: Results, frame: pd.DataFrame) -> Correlations:
    """Of the targets in `frame` (its columns `setting`, `dataset`, `target_id`, `score_key`), by the scores selected for them.

    The correlation of two AUCs is that of DeLong, DeLong & Clarke-Pearson 1988: what an example adds to one
    times what it adds to the other, summed over the examples that both have. An example can be a member of one
    and a non-member of the other: then it mostly counts with a minus.
    """
    known = frame[np.array([isinstance(key, tuple) for key in frame["score_key"]], dtype=bool)]
    count = (known["n_train"] + known["n_non_members"]).fillna(np.inf)
    wanted = dict(zip(known["score_key"], count, strict=True))
    influences: dict[str, pd.Series] = {}
    for key, scores in read_scores(results, wanted):
        if scores.is_member.any() and not scores.is_member.all():
            influences[key[0]] = _influence(scores)
    frames = {}
    for panel, rows in known.groupby(["setting", "dataset"]):
        found = {target: influences[target] for target in rows["target_id"] if target in influences}
        if found:
            frames[str(panel[0]), str(panel[1])] = _correlate(found)
    return Correlations(frames=frames)


def _influence(scores: Scores) -> pd.Series:
    kept = np.ones(len(scores.score), dtype=bool)
    if len(kept) > _MOST_EXAMPLES:
        # Scrambled by a multiplication, so that the part is not the beginning of the data
        place = (scores.example_id.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        kept = place < _MOST_EXAMPLES / len(kept) * 2.0**32
    influence = auc_influence(scores.is_member, scores.score)[kept]
    return pd.Series(influence, index=scores.example_id[kept]).groupby(level=0).sum().astype(np.float32)


def _correlate(influences: dict[str, pd.Series]) -> pd.DataFrame:
    table = pd.DataFrame(influences).fillna(0.0).to_numpy(dtype=float)
    products = table.T @ table
    length = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):  # an AUC of 1 varies with no example: 0/0 stays unknown
        matrix = products / np.outer(length, length)
    return pd.DataFrame(np.clip(matrix, -1, 1), index=list(influences), columns=list(influences))
