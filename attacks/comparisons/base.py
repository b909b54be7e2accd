"""What every comparison takes and gives: a measurement over a group of recorded targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class TargetLabel:
    """What is known of a target before it is trained."""

    target_id: str
    twin_id: str | None
    """The target that is the same but for its private mechanism; None where it has none, or no twin."""
    cell_id: str
    """Equal for targets that differ by their seed alone."""
    seed: int
    is_private: bool
    """Whether a private mechanism trained it."""


class ComparedTarget(Protocol):
    """A recorded target."""

    target_id: str

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        """Its trained parameters by name, without buffers."""


class Comparison(ABC):
    """Base of all comparisons: a frozen, keyword-only dataclass with two methods.

    Class constants: `table` is the table that takes the rows; `revision` goes up when the same configuration would give other
    results; `source` cites where the comparison comes from.
    """

    table: ClassVar[str]
    revision: ClassVar[int] = 1
    source: ClassVar[str]

    @abstractmethod
    def groups(self, targets: Sequence[TargetLabel]) -> Iterator[tuple[str, ...]]:
        """Target ids of each group, in the order in which `run` gets them; the first is the one that the group is named after.

        `targets` are those that are finished or may still finish.
        """

    @abstractmethod
    def run(self, group: Sequence[ComparedTarget], rng: np.random.Generator) -> list[Mapping[str, Any]]:
        """Rows of `table` for one group, each with a `target_id`; all randomness comes from `rng`.

        Raises:
            ValueError: the targets cannot be compared.
        """
