"""What passes between the driver, its workers and the children in which trials run. Imports nothing heavy: workers are many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NO_CHECKPOINTS = math.inf
"""As the seconds between two checkpoints: none is written."""

Cause = Literal["error", "diverged", "gpu_memory", "time_limit", "process_died", "worker_lost", "store"]
"""Why an attempt failed; the column `cause` of the tables.

But for `store`, which records nothing: the node cannot write, or has no dataset or no working GPU for it."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is being done, the fraction of the trial that is done, and what was measured just now."""

    what: str
    fraction: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt at a trial ended; without a cause it finished.

    `gpu_memory_peak` is the fraction of its GPU's memory that it held at most, None without a GPU. `metrics` are what is
    on record of the target and its attacks, where a tracker wants to know.
    """

    target_id: str
    cause: Cause | None = None
    error: str = ""
    gpu_memory_peak: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
