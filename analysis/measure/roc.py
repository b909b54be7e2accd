"""ROC curves of the attack that judges, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.load import Results, Scores, read_scores
from analysis.measure.targets import Measurements
from analysis.statistics.estimates import Values

_GRID_POINTS = 160
_UNKNOWN_RESOLUTION = 1000
"""The number of non-members assumed if no target records it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The mean TPR of each defense at the FPRs of `grid`, which begins at the coarsest resolution of all targets."""

    grid: Values
    by_defense: dict[str, Values]


def true_positive_rate(scores: Scores, fpr: Values) -> Values:
    """The largest TPR at a false positive rate of at most each `fpr`, over all thresholds on the score.

    The attacker calls an example a member if its score lies above the threshold. Tied scores get the same answer.
    """
    order = np.argsort(-scores.score, kind="stable")
    ranked, member = scores.score[order], scores.is_member[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.concatenate([[0], np.cumsum(member)[ends]]) / max(1, int(member.sum()))
    alarms = np.concatenate([[0], np.cumsum(~member)[ends]]) / max(1, int((~member).sum()))
    result: Values = hits[np.searchsorted(alarms, fpr + 1e-12, side="right") - 1]
    return result


def roc(results: Results, measured: Measurements) -> Mapping[tuple[str, str], Curves]:
    """The curves of each setting's key and dataset. There are many scores, so they are summed while they are read, once."""
    frame = measured.frame
    frame = frame[np.array([isinstance(key, tuple) for key in frame["score_key"]], dtype=bool)]
    count = (frame["n_members"] + frame["n_non_members"]).fillna(math.inf)
    wanted = dict(zip(frame["score_key"], count, strict=True))
    panels = zip(frame["setting"], frame["dataset"], strict=True)
    resolution = frame.groupby(["setting", "dataset"])["n_non_members"].min().fillna(_UNKNOWN_RESOLUTION)
    grids = {panel: np.geomspace(1 / max(2.0, smallest), 1, _GRID_POINTS) for panel, smallest in resolution.items()}
    where = {
        key: (panel, str(defense))
        for key, panel, defense in zip(frame["score_key"], panels, frame["defense"], strict=True)
    }
    sums: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for key, one in read_scores(results, wanted):
        if one.is_member.any() and not one.is_member.all():
            panel, defense = where[key]
            total = sums.setdefault(panel, {}).setdefault(defense, [0, np.zeros(_GRID_POINTS)])
            total[0] += 1
            total[1] += true_positive_rate(one, grids[panel])
    return {
        panel: Curves(
            grid=grids[panel],
            by_defense={label: found[label][1] / found[label][0] for label in measured.defenses if label in found},
        )
        for panel, found in sums.items()
    }
