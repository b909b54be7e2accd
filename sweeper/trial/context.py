"""Where and how a trial runs: the context that all its stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.performance import Performance
from sweeper.results.store import Store
from sweeper.workers.outcomes import NO_CHECKPOINTS, Progress


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """Nothing in here changes what is measured, except through the device's arithmetic."""

    data_dir: Path
    store: Store
    device: torch.device
    attempt: int = 1
    """How often the trial was started, including this time."""
    staged: Path | None = None
    """A folder that may hold the decoded dataset."""
    checkpoint_every_s: float = NO_CHECKPOINTS
    performance: Performance | None = None
    on_progress: Callable[[Progress], None] = lambda progress: None
    raise_errors: bool = False
    """Raise an error in training or in an attack, instead of recording it as a failure."""
