"""Base class of comparisons, which measure a group of recorded targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class TargetLabel:
    """Facts about a target that are known before training."""

    target_id: str
    twin_id: str | None
    """The same target without its private mechanism. None if the target has no mechanism or no twin."""
    cell_id: str
    """Equal for targets that differ only by seed."""
    seed: int
    is_private: bool
    """Whether it is trained with a private mechanism."""


class ComparedTarget(Protocol):
    """A recorded target."""

    target_id: str

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        """Its trained parameters by name, without buffers."""


class Comparison(ABC):
    """Base of all comparisons: a frozen, keyword-only dataclass with two methods.

    Class constants: `table` is the table that the rows go to. `revision` is raised when the same configuration would give
    different results. `source` cites the comparison's origin.
    """

    table: ClassVar[str]
    revision: ClassVar[int] = 1
    source: ClassVar[str]

    @abstractmethod
    def groups(self, targets: Sequence[TargetLabel]) -> Iterator[tuple[str, ...]]:
        """Target ids of each group, in the order that `run` gets them. The first id names the group.

        `targets` are those that have finished or may still finish.
        """

    @abstractmethod
    def run(self, group: Sequence[ComparedTarget], rng: np.random.Generator) -> list[Mapping[str, Any]]:
        """Rows of `table` for one group, each with a `target_id`; all randomness comes from `rng`.

        Raises:
            ValueError: the targets cannot be compared.
        """
