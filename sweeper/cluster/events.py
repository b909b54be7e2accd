"""What the driver tells its caller while trials run, and how a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a trial; `what` is the stage it is in or the error's text.

    `retried` is a failure that is not final, `elsewhere` the end of a trial that another launch ran. `stopping`, of no trial,
    comes from the handler of a signal.
    """

    kind: Literal["started", "progress", "finished", "failed", "retried", "elsewhere", "added", "stopping"]
    target_id: str
    what: str = ""
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: whether with all its trials, and if not, why it stopped early (None: it was interrupted)."""

    is_over: bool
    stopped: str | None
