"""Means and spreads of a signal over a target's references, with and without the example, in time linear in the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attacks.base import BoolArray
from attacks.cohort.cohort import Design

FloatArray = npt.NDArray[np.float64]
Pair = tuple[FloatArray, FloatArray]
"""One array for the references with an example, and one for those without it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """A signal's moments over those references that were trained with an example, or over those without it.

    `count` (block, 1), `mean` (block, queries), and `squares` (block, queries): the sum of squared distances from the mean.
    Without any reference, the mean and the squares are 0.
    """

    count: FloatArray
    mean: FloatArray
    squares: FloatArray

    @property
    def freedom(self) -> FloatArray:
        """Degrees of freedom of `squares` (block, 1)."""
        return np.maximum(self.count - 1, 0)

    def with_value(self, value: FloatArray, is_here: BoolArray) -> Side:
        """The moments with one more reference's `value` (block, queries), for those examples where it `is_here` (block,)."""
        here = is_here[:, None].astype(np.float64)
        count = self.count + here
        distance = (value - self.mean) * here
        mean = self.mean + distance / np.maximum(count, 1)
        return Side(count=count, mean=mean, squares=self.squares + distance * (value - mean))

    def merged(self, other: Side) -> Side:
        """The moments over the references of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        distance = other.mean - self.mean
        mean = self.mean * (1 - share) + other.mean * share
        return Side(count=count, mean=mean, squares=self.squares + other.squares + distance**2 * self.count * share)


class Gap:
    """IN − OUT of the means, per target and query, over the examples with both. It stands in for a side without references."""

    def __init__(self, n_targets: int, n_queries: int) -> None:
        self._sum, self._squares = np.zeros((2, n_targets, n_queries))
        self._count = np.zeros((n_targets, 1))
        self._inverse_counts = np.zeros((2, n_targets, 1))

    def add(self, row: int, ins: Side, outs: Side) -> None:
        """Count one target's block of examples."""
        both = (ins.count > 0) & (outs.count > 0)
        gap = (ins.mean - outs.mean) * both
        self._sum[row] += gap.sum(axis=0)
        self._squares[row] += (gap**2).sum(axis=0)
        self._count[row] += both.sum()
        for side, moments in enumerate((ins, outs)):
            self._inverse_counts[side, row] += (both / np.maximum(moments.count, 1)).sum()

    def include(self, other: Gap) -> None:
        """Count the examples of another one, too."""
        self._sum += other._sum
        self._squares += other._squares
        self._count += other._count
        self._inverse_counts += other._inverse_counts

    def means(self, row: int, ins: Side, outs: Side) -> Pair:
        """The means of both sides (block, queries); a missing one is the other plus or minus the gap."""
        gap = self._mean(row)
        return np.where(ins.count > 0, ins.mean, outs.mean + gap), np.where(outs.count > 0, outs.mean, ins.mean - gap)

    def shrunk_means(self, row: int, ins: Side, outs: Side, variances: Pair, pooled: Pair) -> Pair:
        """The means of both sides (block, queries), their gap shrunk toward that of all examples.

        True gaps count as Gaussian over the examples. Their variance is the observed gaps' less what the `pooled` variances
        (queries,) of a value about each side's mean add to it, and at least 0. An example's gap is then its posterior mean, and
        the center of both means their mean, weighted by precision, given that gap; `variances` (block, queries) are of the
        example's values. Without references on one side, this is `means`.
        """
        mean = self._mean(row)
        n_examples = np.maximum(self._count[row], 1)
        added = (
            sum(each * inverse[row] for each, inverse in zip(pooled, self._inverse_counts, strict=True)) / n_examples
        )
        true = np.maximum(self.variance(row) - added, 0)
        both = (ins.count > 0) & (outs.count > 0)
        noise = variances[0] / np.maximum(ins.count, 1) + variances[1] / np.maximum(outs.count, 1)
        gap = mean + np.where(both, true / (true + noise), 0) * (ins.mean - outs.mean - mean)
        weight_in, weight_out = ins.count / variances[0], outs.count / variances[1]
        center = (weight_in * (ins.mean - gap / 2) + weight_out * (outs.mean + gap / 2)) / (weight_in + weight_out)
        return center + gap / 2, center - gap / 2

    def variance(self, row: int) -> FloatArray:
        """The variance of the gaps over the examples (queries,)."""
        squares = self._squares[row] / np.maximum(self._count[row], 1)
        result: FloatArray = np.maximum(squares - self._mean(row) ** 2, 0)
        return result

    def _mean(self, row: int) -> FloatArray:
        mean: FloatArray = self._sum[row] / np.maximum(self._count[row], 1)
        return mean


def leave_out_moments(signal: FloatArray, member: BoolArray, design: Design) -> Iterator[tuple[Side, Side]]:
    """For each target of the design: the moments over its IN references and over its OUT references.

    `signal` is (models, block, queries), and `member` (models, block) says which models have each example. Moments are built
    up from both ends of the references and merged, because taking a model away from a sum would lose precision.

    Source: Chan, Golub & LeVeque 1983, equations 1.4 and 2.1.
    """
    if len(np.unique(design.unit[design.targets])) == 1:  # one pass is enough, for all targets lack the same references
        same = _running(signal, member, design.references_of(int(design.targets[0])).tolist())[-1]
        yield from (same for _ in design.targets)
        return
    references = design.references.tolist()
    units = design.unit[design.references]
    before, after = _running(signal, member, references), _running(signal, member, references[::-1])
    for target in design.targets.tolist():
        first = int(np.searchsorted(units, design.unit[target], side="left"))
        last = int(np.searchsorted(units, design.unit[target], side="right"))
        (in_before, out_before), (in_after, out_after) = before[first], after[len(references) - last]
        yield in_before.merged(in_after), out_before.merged(out_after)


def _running(signal: FloatArray, member: BoolArray, references: Sequence[int]) -> list[tuple[Side, Side]]:
    """The moments over the first 0, 1, 2, … references."""
    shape = signal.shape[1:]
    nothing = Side(count=np.zeros((shape[0], 1)), mean=np.zeros(shape), squares=np.zeros(shape))
    running = [(nothing, nothing)]
    for model in references:
        ins, outs = running[-1]
        running.append((ins.with_value(signal[model], member[model]), outs.with_value(signal[model], ~member[model])))
    return running
