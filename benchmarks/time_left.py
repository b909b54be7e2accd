"""How honest the time left of a running sweep is: the estimate over the truth after a quarter, a half and three quarters.

    python benchmarks/time_left.py            the demo, and a sweep of 100 trials whose arms take very different times

Each sweep runs whole, in a temporary folder. The ratios need nothing else to run on the machine meanwhile.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sweeper.cluster.events import Event
from sweeper.launch import LaunchOptions, launch
from sweeper.messages import Reporter
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.sweep.trial import Trial
from sweeper.workers.time_left import TimeLeft

SHARES = (0.25, 0.5, 0.75)

MIXED = """
name: mixed
datasets: [{name: digits, max_train_examples: 600, max_test_examples: 100}]
splits: [coins]
architectures: [lomurno_cnn]
training: {epochs: 10, batch_size: 32, learning_rate: 0.05}
defenses:
  undefended: none
  l2: {name: l2, weight: 0.001}
  dropout: {name: dropout, rate: 0.5}
  dp_eps8: {name: dp_sgd, epsilon: 8, accountant: rdp}
  selena: {name: selena, models: 10, left_out: 4}
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
attacks: [threshold]
"""


class _Recorder(Reporter):
    """Notes the time left at every event of a launch."""

    def __init__(self) -> None:
        self.estimates: list[tuple[float, float | None]] = []

    @contextlib.contextmanager
    def running(self, units: Sequence[Trial | ComparisonTask], n_done: int) -> Iterator[Callable[[Event], None]]:
        began = time.monotonic()
        estimate = TimeLeft({unit.target_id: unit.kind for unit in units}, began)

        def on_event(event: Event) -> None:
            now = time.monotonic()
            if event.kind == "added":
                estimate.kinds[event.target_id] = event.unit_kind
            estimate.note(event.kind, event.target_id, event.fraction, now)
            self.estimates.append((now - began, estimate.left_s(now)))

        yield on_event


def ratios(sweep: str) -> list[float]:
    """The estimated over the true time left of one sweep, at each of `SHARES` of its time."""
    recorder = _Recorder()
    with tempfile.TemporaryDirectory() as folder:
        result = launch(sweep, LaunchOptions(out=Path(folder) / "out"), recorder)
    assert result.is_whole, result.failed
    times = [when for when, _ in recorder.estimates]
    whole = times[-1]
    found = []
    for share in SHARES:
        when, left = recorder.estimates[bisect_right(times, share * whole) - 1]
        found.append(float("nan") if left is None else left / (whole - when))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mixed = Path(folder) / "mixed.yaml"
        mixed.write_text(MIXED, encoding="utf-8")
        print("estimated over true time left after", ", ".join(f"{share:.0%}" for share in SHARES))
        for name, sweep in (("demo", "demo"), ("100 trials of 5 arms", str(mixed))):
            print(f"{name:24s}", "  ".join(f"{ratio:5.2f}" for ratio in ratios(sweep)))


if __name__ == "__main__":
    main()
