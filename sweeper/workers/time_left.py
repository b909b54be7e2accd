"""How long a sweep will still take, from what each kind of unit took so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_LEAST_FRACTION = 0.05
"""Below it, a fraction says nothing yet about how long a unit will take."""


@dataclass
class _Kind:
    """What units of one kind took: how many ended, and their seconds together."""

    ended: int = 0
    seconds: float = 0.0


@dataclass
class TimeLeft:
    """Estimates the time until all units have ended.

    Units of one arm take about as long as each other, and those of another arm may take ten times as long. So each unit that is left
    counts by the mean of its kind. A kind of which none has ended counts by those that run, as far as they have come, or else by the
    mean of all kinds. The work that is left is divided by the number of units that ran at once on average, pauses included.
    """

    kinds: dict[str, str]
    """The kind of each unit by its id. Units may be added."""
    began: float
    _running: dict[str, tuple[float, float]] = field(default_factory=dict)
    _known: dict[str, _Kind] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)

    def note(self, event: str, unit: str, fraction: float, now: float) -> None:
        """Note an event: `started`, `progress`, `retried`, or one of the ends `finished`, `failed` and `elsewhere`."""
        start, _ = self._running.get(unit, (now, 0.0))
        if event in ("started", "progress"):
            self._running[unit] = (start, fraction)
        elif event in ("finished", "failed", "retried", "elsewhere"):
            was_running = self._running.pop(unit, None) is not None
            if event != "retried":
                self._gone.add(unit)
            if event in ("finished", "failed") and was_running:
                known = self._known.setdefault(self.kinds.get(unit, ""), _Kind())
                known.ended += 1
                known.seconds += now - start

    def left_s(self, now: float) -> float | None:
        """Seconds until the end; None before anything has ended."""
        # Copies, because another thread may note an event meanwhile
        known, running, gone = dict(self._known), dict(self._running), set(self._gone)
        worked = sum(each.seconds for each in known.values())
        if not worked:
            return None
        usual = worked / sum(each.ended for each in known.values())
        means = _means(known, running, self.kinds, now)
        left = Counter(kind for unit, kind in list(self.kinds.items()) if unit not in gone and unit not in running)
        work = sum(count * means.get(kind, usual) for kind, count in left.items())
        longest = 0.0
        for unit, (start, fraction) in running.items():
            elapsed = now - start
            worked += elapsed
            rest = max(0.0, means.get(self.kinds.get(unit, ""), usual) - elapsed)
            if not rest and fraction >= _LEAST_FRACTION:
                rest = elapsed / fraction - elapsed
            work += rest
            longest = max(longest, rest)
        at_once = worked / max(now - self.began, 1e-9)
        return max(longest, work / at_once)


def _means(
    known: Mapping[str, _Kind], running: Mapping[str, tuple[float, float]], kinds: Mapping[str, str], now: float
) -> dict[str, float]:
    """The expected seconds of a unit of each kind of which one has ended, or has come far enough."""
    partial: dict[str, list[float]] = {}
    for unit, (start, fraction) in running.items():
        if fraction >= _LEAST_FRACTION:
            partial.setdefault(kinds.get(unit, ""), []).append((now - start) / fraction)
    means = {kind: sum(values) / len(values) for kind, values in partial.items()}
    return means | {kind: each.seconds / each.ended for kind, each in known.items()}
