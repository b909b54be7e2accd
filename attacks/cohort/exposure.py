"""How exposed each example is to an attack on a cohort."""

from __future__ import annotations

from typing import Any

import numpy as np

from attacks.base import clopper_pearson
from attacks.cohort.attack import CohortScores
from attacks.cohort.summary import lowest_fpr, separation, threshold_at

FOUND_FPRS = (0.001, 0.01)


def exposure_rows(result: CohortScores) -> list[dict[str, Any]]:
    """For each example of the pool, the columns of the table `exposure`.

    `exposure` is `separation`. `found_at_fpr_…` is the share, of the targets with the example, that score it above the
    threshold of that FPR over all targets together, with its Clopper–Pearson interval; None if that FPR cannot be told.
    """
    found = result.scores
    n_in, n_out = found.is_member.sum(axis=0), (~found.is_member).sum(axis=0)
    columns: dict[str, Any] = {
        "example_id": result.example_id,
        "label": result.label,
        "n_in": n_in,
        "n_out": n_out,
        "exposure": separation(found.is_member, found.score),
    }
    lowest = lowest_fpr(found.is_member)
    for fpr in FOUND_FPRS:
        name = f"found_at_fpr_{fpr:g}"
        if lowest is None or fpr < lowest:
            columns |= {name + end: np.full(len(n_in), np.nan) for end in ("", "_low", "_high")}
            continue
        above = found.score > threshold_at(found.is_member, found.score, fpr)
        caught = (above & found.is_member).sum(axis=0)
        here = n_in > 0
        low, high = clopper_pearson(caught, n_in)
        for end, values in (("", caught / np.maximum(n_in, 1)), ("_low", low), ("_high", high)):
            columns[name + end] = np.where(here, values, np.nan)
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*(each.tolist() for each in columns.values()), strict=True)
    ]
