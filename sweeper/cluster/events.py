"""Events that the driver reports while trials run, and how a run ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sweeper.results.comparisons import DueComparisons
    from sweeper.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a trial; `what` is its current stage or the error's text.

    `retried` is a failure that is not final. `elsewhere` is the end of a trial that another launch ran. `stopping` belongs to
    no trial and comes from a signal handler.
    """

    kind: Literal["started", "progress", "finished", "failed", "retried", "elsewhere", "added", "stopping"]
    target_id: str
    what: str = ""
    fraction: float = 0.0
    unit_kind: str = ""
    """Of what kind an `added` unit is."""


@dataclass(frozen=True, kw_only=True)
class Grown:
    """What a sweep has become while it runs: trials that follow from results, and its comparisons with them."""

    trials: Sequence[Trial]
    due: DueComparisons


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: whether all its trials ended, and if not, why it stopped early (None: it was interrupted)."""

    is_over: bool
    stopped: str | None
