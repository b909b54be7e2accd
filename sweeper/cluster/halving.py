"""Early stopping of runs of searches by Ray Tune's ASHA, which stops a run whose rivals were better at the same epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from sweeper.search.early_stopping import EPOCH, VALIDATION_ACCURACY, Halving
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.sweep.trial import Trial


@dataclass(frozen=True)
class _Known:
    """What ASHA needs of one of Tune's trials."""

    trial_id: str


class EarlyStopping:
    """One ASHA for each search that stops runs early, by its trials' `early_stop`. It knows what ended runs reached, in this launch
    or before.
    """

    def __init__(self, units: Iterable[Trial | ComparisonTask], halvings: Mapping[str, Halving]) -> None:
        self._search_of: dict[str, str] = {}
        self.add(units)
        self._epochs = {search_id: halving.epochs for search_id, halving in halvings.items()}
        self._by_search = {search_id: _asha(halving) for search_id, halving in halvings.items()}
        self.stopped: set[str] = set()
        """Ids of the runs that were stopped."""
        self.reached: dict[str, dict[int, float]] = {}
        """Validation accuracy of each run by epoch, as far as it was reported."""

    def add(self, units: Iterable[Trial | ComparisonTask]) -> None:
        """Take in units that run from now on."""
        self._search_of |= {
            unit.target_id: unit.early_stop for unit in units if isinstance(unit, Trial) and unit.early_stop is not None
        }

    def decision(self, target_id: str, result: Mapping[str, Any]) -> str:
        """Whether a unit of work goes on after a report."""
        search_id = self._search_of.get(target_id)
        if search_id is None or result.get("ended") or VALIDATION_ACCURACY not in result:
            return str(TrialScheduler.CONTINUE)
        epochs = self.reached.setdefault(target_id, {})
        epochs[int(result[EPOCH])] = float(result[VALIDATION_ACCURACY])
        asha = self._by_search[search_id]
        action = str(_tell(asha, target_id, result))
        if (
            int(result[EPOCH]) >= self._epochs[search_id]
        ):  # its last epoch is over, and its result is about to be recorded
            return str(TrialScheduler.CONTINUE)
        if action == TrialScheduler.STOP:
            self.stopped.add(target_id)
        return action


def _asha(halving: Halving) -> AsyncHyperBandScheduler:
    asha = AsyncHyperBandScheduler(
        time_attr=EPOCH,
        metric=VALIDATION_ACCURACY,
        mode="max",
        max_t=halving.epochs,
        grace_period=min(halving.grace_epochs, halving.epochs),
        reduction_factor=halving.reduction_factor,
        stop_last_trials=False,
    )
    for target_id, reached in halving.reached.items():
        for epoch, accuracy in sorted(reached.items()):
            _tell(asha, target_id, {EPOCH: epoch, VALIDATION_ACCURACY: accuracy})
    return asha


def _tell(asha: AsyncHyperBandScheduler, target_id: str, result: Mapping[str, Any]) -> Any:
    known = _Known(target_id)
    if target_id not in asha._trial_info:
        asha.on_trial_add(None, known)  # type: ignore[arg-type]
    return asha.on_trial_result(None, known, dict(result))  # type: ignore[arg-type]
