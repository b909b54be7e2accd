"""Medians of a signal over a target's references, with and without the example, in time linear in the models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from attacks.base import BoolArray
from attacks.cohort.cohort import Design

FloatArray = npt.NDArray[np.float64]


def leave_out_medians(signal: FloatArray, member: BoolArray, design: Design) -> Iterator[tuple[FloatArray, FloatArray]]:
    """For each target of the design: the medians (block, queries) over its IN references and over its OUT references.

    `signal` is (models, block, queries), and `member` (models, block) says which models have each example. A median without
    any reference is NaN. The references are sorted once: a model and its complement are never on one side, so that a
    target's unit takes at most one value from each.
    """
    references = signal[design.references]
    inside = member[design.references]
    sides = [(here, _sorted(references, here)) for here in (inside, ~inside)]
    own = design.unit[design.references]
    for target in design.targets.tolist():
        mine = np.flatnonzero(own == design.unit[target])
        in_median, out_median = (
            _median(values, here.sum(axis=0), _only(references[mine], here[mine])) for here, values in sides
        )
        yield in_median, out_median


def _sorted(values: FloatArray, here: BoolArray) -> FloatArray:
    """The values that are `here` in ascending order (references + 1, block, queries), and then infinities."""
    padded = np.full((len(values) + 1, *values.shape[1:]), np.inf)
    padded[:-1] = np.where(here[..., None], values, np.inf)
    padded.sort(axis=0)
    return padded


def _only(values: FloatArray, here: BoolArray) -> FloatArray:
    """Of a unit's models, the value of the one that is `here` (block, queries); infinity if there is none."""
    result: FloatArray = np.where(here[..., None], values, np.inf).min(axis=0, initial=np.inf)
    return result


def _median(ascending: FloatArray, count: npt.NDArray[np.int64], removed: FloatArray) -> FloatArray:
    """The median of the first `count` (block,) values, without `removed` (infinity: nothing is removed)."""
    left = count[:, None] - np.isfinite(removed)
    middle = []
    for place in ((left - 1) // 2, left // 2):
        place = np.maximum(place, 0)
        before, after = (np.take_along_axis(ascending, (place + shift)[None], axis=0)[0] for shift in (0, 1))
        # Values from the removed one on move down by one place.
        middle.append(np.where(before < removed, before, after))
    result: FloatArray = np.where(left > 0, (middle[0] + middle[1]) / 2, np.nan)
    return result
