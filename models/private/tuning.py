"""The price of tuning on private data: ε of a whole search, which is more than that of one run.

Where the number of runs is drawn from a law of `number_of_runs`, each run draws its settings independently of all others, and only
the best run is released, Rényi divergences grow with the logarithm of the mean number of runs (Papernot & Steinke 2022, Theorems 2
and 6). Any other search spends the ε of all its runs together.

ε counts the examples that runs are trained on. Those that choose the best run are not protected by it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from dp_accounting import ComposedDpEvent, DpEvent
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant

from models.private.accounting import ORDERS, BeyondPrvError, epsilon, rdp_of_a_step
from models.private.composition import Array, Steps
from models.private.number_of_runs import NumberOfRuns


def divergences_of_a_run(settings: Sequence[Steps]) -> Array:
    """Rényi divergences of one run at `ORDERS`, which may have any of these settings, with whatever probabilities.

    At each order it is the largest of the settings, which bounds a run that also draws its settings.
    """
    return np.asarray(np.max([steps * rdp_of_a_step(noise, rate) for noise, rate, steps in settings], axis=0))


def epsilon_of_best_run(divergences: Array, runs: NumberOfRuns, delta: float, *, trained_anew: bool = False) -> float:
    """ε of a search of which only the best run is released; `divergences` are one run's, at `ORDERS`.

    With `trained_anew`, the best run's settings then train one more model on the same examples, which is released as well.
    """
    run = _Run(divergences)
    of_search = _Accountant(ORDERS)
    of_search.compose(RepeatAndSelectDpEvent(run, runs.mean, runs.shape))
    search = _Run(_given_a_run(np.asarray(of_search._rdp), runs))
    accountant = _Accountant(ORDERS)
    accountant.compose(ComposedDpEvent([search, run]) if trained_anew else search)
    return float(accountant.get_epsilon(delta))


def _given_a_run(divergences: Array, runs: NumberOfRuns) -> Array:
    """The divergences at `ORDERS` of a search whose number of runs is drawn again where it is 0.

    Releasing nothing has the same probability p under both datasets. Without this outcome, the sum of P^α·Q^(1 − α) over all others
    is e^((α − 1)·D) − p, and both are divided by 1 − p.
    """
    p = runs.share_without_runs
    if p == 0:
        return divergences
    orders = np.asarray(ORDERS) - 1
    exponent = orders * divergences
    return np.asarray((exponent + np.log1p(-p * np.exp(-exponent)) - math.log1p(-p)) / orders)


def epsilon_of_all_runs(settings: Sequence[Steps], runs: int, delta: float, accountant: str) -> float:
    """ε of all runs together, where the settings of each may depend on the results of earlier ones.

    One setting is composed by `accountant`, if ε is not beyond its range. Else, and several settings, by the Rényi divergences of
    `divergences_of_a_run`, which is looser.

    Raises:
        ValueError: an argument is out of range.
    """
    if len(settings) == 1:
        noise_multiplier, sample_rate, steps = settings[0]
        with contextlib.suppress(BeyondPrvError):
            return epsilon(noise_multiplier, sample_rate, runs * steps, delta, accountant)
    composed = _Accountant(ORDERS)
    composed.compose(_Run(divergences_of_a_run(settings)), runs)
    return float(composed.get_epsilon(delta))


class _Run(DpEvent):  # type: ignore[misc]
    """One run, by its divergences."""

    def __init__(self, divergences: Array) -> None:
        object.__setattr__(self, "divergences", divergences)  # events are frozen


class _Accountant(RdpAccountant):  # type: ignore[misc]
    """dp-accounting's Rényi accountant, for events that are made of `_Run`.

    It has its own divergences of sampled Gaussian steps, which are upper bounds at orders that are not whole; ours are exact.
    """

    def _maybe_compose(self, event: DpEvent, count: int, do_compose: bool) -> Any:
        if not isinstance(event, _Run):
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            self._rdp = self._rdp + count * event.divergences  # type: ignore[has-type]
        return None
