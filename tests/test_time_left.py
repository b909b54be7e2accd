"""The time left of mixed arms, in simulated sweeps whose end is known."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from sweeper.workers.time_left import TimeLeft


def simulated(
    units: list[tuple[str, float]], workers: int, share: float, noise: float = 0.1, pause: float = 0.2
) -> float:
    """The estimate over the truth after `share` of the time, where units (kind, seconds) run in order on so many workers."""
    rng = np.random.default_rng(0)
    kinds = {str(number): kind for number, (kind, _) in enumerate(units)}
    free = [0.0] * workers
    events: list[tuple[float, str, str, float]] = []
    for number, (_, seconds) in enumerate(units):
        start = heapq.heappop(free) + pause
        end = start + seconds * float(rng.lognormal(0, noise))
        heapq.heappush(free, end)
        events += [(start, "started", str(number), 0.0), (end, "finished", str(number), 1.0)]
        events += [(start + part * (end - start), "progress", str(number), part) for part in (0.2, 0.5, 0.8)]
    whole = max(free)
    estimate = TimeLeft(kinds, 0.0)
    for when, event, unit, fraction in sorted(events):
        if when > share * whole:
            break
        estimate.note(event, unit, fraction, when)
    left = estimate.left_s(share * whole)
    assert left is not None
    return left / ((1 - share) * whole)


def sweep(seconds: dict[str, float], seeds: int) -> list[tuple[str, float]]:
    """All arms of one seed, then all of the next, and then a comparison of each arm."""
    arms = list(seconds.items())
    return [unit for _ in range(seeds) for unit in arms] + [("lira", 0.5) for _ in arms]


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_after_a_quarter_it_is_within_a_quarter(workers: int, spread: float, share: float) -> None:
    seconds = {"undefended": 1.0, "l2": 1.1, "dropout": 1.2, "dp": 2.0 * spread, "selena": 3.0 * spread}
    assert simulated(sweep(seconds, seeds=20), workers, share) == pytest.approx(1, abs=0.25)


def test_slow_arms_at_the_end_are_counted_as_slow() -> None:
    """Each arm's first seed has run, then the fast arm ends before the slow one goes on."""
    units = [("fast", 1.0), ("slow", 10.0), *[("fast", 1.0)] * 49, *[("slow", 10.0)] * 49]
    assert simulated(units, 2, 0.1, noise=0.0) == pytest.approx(1, abs=0.15)


def test_nothing_is_known_before_a_unit_ends_and_lost_work_is_left_again() -> None:
    estimate = TimeLeft({"a": "x", "b": "x", "c": "x"}, 0.0)
    estimate.note("started", "a", 0.0, 0.0)
    assert estimate.left_s(5.0) is None
    estimate.note("finished", "a", 1.0, 10.0)
    assert estimate.left_s(10.0) == pytest.approx(20)
    estimate.note("started", "b", 0.0, 10.0)
    assert estimate.left_s(15.0) == pytest.approx(15)
    estimate.note("retried", "b", 0.0, 15.0)
    assert estimate.left_s(15.0) == pytest.approx(20 * 15 / 10)
    estimate.note("elsewhere", "b", 0.0, 15.0)
    estimate.note("elsewhere", "c", 0.0, 15.0)
    assert estimate.left_s(15.0) == 0
