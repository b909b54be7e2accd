"""A cohort's answers and memberships, and the designs by which its models are targets and references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attacks.base import AttackError, BoolArray, IntArray
from attacks.cohort.signals import SIGNALS

FloatArray = npt.NDArray[np.float64]

BLOCK = 1024
"""Number of examples that are held in memory at a time."""


class ArrayOnDisk(Protocol):
    """An array (examples, queries, classes) that is read in slices of its first axis."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: slice, /) -> npt.NDArray[np.floating]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """A target's logits (n, queries, classes) for the same examples and queries as every other target of its cohort.

    The first query of each example is the example itself. `label` (n,) is its class. `in_pool` (n,) says whether a coin
    decided over its membership, and `is_member` (n,) how it fell; examples outside the pool are non-members of every target.
    """

    example_id: IntArray
    label: IntArray
    in_pool: BoolArray
    is_member: BoolArray
    logits: ArrayOnDisk


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Which models are attacked, with which references, by which membership.

    `member` (models, pool) is the membership that the attack uses and that its scores are measured by. `targets` and
    `references` are indices of models, ascending. `unit` (models,), ascending, is equal for a model and its complement, whose
    members are exactly its non-members. Models of a target's own unit, itself included, are never its references.
    """

    member: BoolArray
    targets: IntArray
    references: IntArray
    unit: IntArray

    def counts(self) -> IntArray:
        """The number of references of each target (targets,)."""
        own = self.unit[self.targets][:, None] == self.unit[self.references]
        counts: IntArray = (~own).sum(axis=1)
        return counts

    def references_of(self, target: int) -> IntArray:
        """The models that may be used against a target."""
        allowed: IntArray = self.references[self.unit[self.references] != self.unit[target]]
        return allowed


class Cohort:
    """The answers of models that differ only by their seed, read in blocks of examples.

    Signals are computed in float64 from logits. Memory does not depend on the number of examples.

    Raises:
        AttackError: the models' answers are not to the same examples, or some are not finite.
    """

    def __init__(self, answers: Sequence[Answers], seeds: Sequence[int] | None = None) -> None:
        first = answers[0]
        self._seeds = range(len(answers)) if seeds is None else seeds
        for each in answers[1:]:
            same = np.array_equal(each.example_id, first.example_id) and np.array_equal(each.label, first.label)
            if not same or not np.array_equal(each.in_pool, first.in_pool) or each.logits.shape != first.logits.shape:
                raise AttackError("The models of the cohort did not answer the same examples and queries.")
        n_pool = int(first.in_pool.sum())
        if not first.in_pool[:n_pool].all():
            raise AttackError("The pool's examples must come before all others.")
        self._answers = answers
        self._others = n_pool, len(first.in_pool)
        self.example_id, self.label = first.example_id[:n_pool], first.label[:n_pool]
        self.member = np.stack([each.is_member[:n_pool] for each in answers])
        self.n_queries, self.n_classes = first.logits.shape[1:]

    @property
    def n_models(self) -> int:
        return len(self._answers)

    @property
    def n_examples(self) -> int:
        """The number of examples of the pool."""
        return len(self.example_id)

    def first(self, n_examples: int) -> Cohort:
        """The same models with as many examples of the pool, and outside it, at most."""
        part = copy(self)
        start, stop = self._others
        part._others = start, min(stop, start + n_examples)
        part.example_id, part.label = self.example_id[:n_examples], self.label[:n_examples]
        part.member = self.member[:, :n_examples]
        return part

    def blocks(self) -> Iterator[slice]:
        """Slices that cover the pool."""
        return blocks_of(0, self.n_examples)

    def other_blocks(self) -> Iterator[slice]:
        """Slices that cover the examples outside the pool, as positions for `signal` and `logits`."""
        return blocks_of(*self._others)

    def signal(self, kind: str, block: slice) -> FloatArray:
        """One of `SIGNALS` (models, block, queries)."""
        label = self._answers[0].label[block]
        return np.stack([SIGNALS[kind](self.logits(model, block), label) for model in range(self.n_models)])

    def logits(self, model: int, block: slice) -> FloatArray:
        """One model's logits (block, queries, classes).

        Raises:
            AttackError: a logit is not finite.
        """
        logits = self._answers[model].logits[block].astype(np.float64)
        if not np.isfinite(logits).all():
            raise AttackError(
                f"The answers of seed {self._seeds[model]} are not all finite numbers: its training diverged. Train it with a lower "
                "learning rate, or leave that seed out of the sweep."
            )
        return logits


def blocks_of(start: int, stop: int) -> Iterator[slice]:
    """Slices that cover a range of examples."""
    for at in range(start, stop, BLOCK):
        yield slice(at, min(at + BLOCK, stop))
