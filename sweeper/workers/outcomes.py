"""Messages between the driver, its workers and the trials' child processes. Imports nothing heavy, because workers are many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NO_CHECKPOINTS = math.inf
"""With this number of seconds between checkpoints, none is written."""

Cause = Literal["error", "diverged", "gpu_memory", "time_limit", "process_died", "worker_lost", "store"]
"""Why an attempt failed; the column `cause` of the tables.

With `store` nothing is recorded: the node cannot write, or lacks the dataset or a working GPU."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The current activity, the completed fraction of the trial, and the latest measurements."""

    what: str
    fraction: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt at a trial ended; it finished if it has no cause.

    `gpu_memory_peak` is the largest fraction of its GPU's memory that it held, None without a GPU. `metrics` are the
    recorded results of the target and its attacks, if a tracker needs them.
    """

    target_id: str
    cause: Cause | None = None
    error: str = ""
    gpu_memory_peak: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
