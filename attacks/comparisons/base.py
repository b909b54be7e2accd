"""Base class of comparisons, which measure a group of recorded targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from attacks.base import MembershipScores
    from attacks.cohort.attack import CohortScores
    from attacks.cohort.best import CohortBest
    from attacks.cohort.cohort import Answers


@dataclass(frozen=True, kw_only=True)
class TargetLabel:
    """Facts about a target that are known before training."""

    target_id: str
    twin_id: str | None
    """The same target without its private mechanism. None if the target has no mechanism or no twin."""
    cell_id: str
    """Equal for targets that differ only by seed."""
    seed: int
    split: str
    queries: int
    """How many answers about each example are recorded; 0 if none are."""
    is_private: bool
    """Whether it is trained with a private mechanism."""
    candidate_ids: tuple[str, ...] = ()
    """Ids of the attacks on it alone that score each example."""


class ComparedTarget(Protocol):
    """A recorded target."""

    target_id: str
    seed: int

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        """Its trained parameters by name, without buffers."""

    def answers(self) -> Answers:
        """Its answers to the sweep's queries."""

    def membership_scores(self) -> Mapping[str, MembershipScores]:
        """Its recorded scores of each example, by attacks on it alone and by comparisons, each named `attack/score`."""


class Comparison(ABC):
    """Base of all comparisons: a frozen, keyword-only dataclass with two methods.

    Class constants: `tables` are the tables with rows of the whole group, and `target_tables` those with rows of each target.
    `needs_answers` says whether `run` asks for the targets' answers. `needs_scores` says whether it asks for their membership
    scores; it then runs when all attacks and comparisons that record some have ended. `revision` is raised when the same
    configuration would give different results. `source` cites the comparison's origin.
    """

    tables: ClassVar[tuple[str, ...]]
    target_tables: ClassVar[tuple[str, ...]] = ()
    needs_answers: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    source: ClassVar[str]

    def refusal(self, split: str) -> str | None:
        """Why targets of this split cannot be compared, and which splits to use instead; None if they can be."""
        return None

    def least_seeds(self) -> int:
        """Fewest seeds of a cell that make a group."""
        return 1

    @abstractmethod
    def groups(self, targets: Sequence[TargetLabel]) -> Iterator[tuple[str, ...]]:
        """Target ids of each group, in the order that `run` gets them. The first id names the group.

        `targets` are those that have finished or may still finish.
        """

    @abstractmethod
    def run(
        self, group: Sequence[ComparedTarget], rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any]] | Sequence[CohortScores] | CohortBest:
        """Results for one group: rows of the only table, each with a `target_id`; scores of a cohort's targets; or their best.

        All randomness comes from `rng`.

        Raises:
            ValueError: the targets cannot be compared.
        """
