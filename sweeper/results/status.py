"""A sweep's status, from its results folder alone: on any machine, while it runs or afterwards."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sweeper.errors import UserError
from sweeper.results.launches import LaunchInfo, living
from sweeper.results.layout import COMPARISONS, LAUNCHES, QUARANTINE
from sweeper.results.store import Failure, Store
from sweeper.storage import StorageError

_RATE_OVER = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """Counts of trials, the living launches, the recent rate, and the failures.

    A trial is done if its target and all its attacks are recorded. It is failed if one of these is a failure and none is
    running. `per_hour` and `left_s` are None if too few trials have ended lately, or if nothing runs.
    """

    trials: int
    done: int
    failed: int
    comparisons: int
    """Number of comparisons that the sweep's targets have now."""
    compared: int
    """How many of these are recorded."""
    launches: tuple[LaunchInfo, ...]
    per_hour: float | None
    left_s: float | None
    failures: tuple[Failure, ...]
    quarantined: int
    ended: frozenset[str] = frozenset()
    """Ids of the trials that are done."""
    failed_ids: frozenset[str] = frozenset()

    @property
    def left(self) -> int:
        """Trials that are neither done nor failed."""
        return self.trials - self.done - self.failed

    @property
    def causes(self) -> dict[str, int]:
        """Recorded failures by cause, most frequent first."""
        return dict(Counter(failure.cause or "error" for failure in self.failures).most_common())

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **{name: getattr(self, name) for name in ("trials", "done", "failed", "left", "comparisons", "compared")},
            "per_hour": self.per_hour,
            "left_s": self.left_s,
            "quarantined": self.quarantined,
            "causes": self.causes,
            "failures": [asdict(failure) for failure in self.failures],
            "launches": [asdict(launch) for launch in self.launches],
        }


def read_status(store: Store, *, may_write: bool = True) -> SweepStatus:
    """The status of the sweep in `store`.

    A launch on another machine is alive if its file is young by the store's clock, which takes writing a small file. Unless this
    `may_write`, this machine's clock is taken.

    Raises:
            UserError: the store holds no sweep.
            StorageError: the store cannot be read.
    """
    planned = store.planned()
    if planned is None:
        raise UserError(f"{store.location} holds no sweep. Name the folder or URI that `sweeper launch` writes to.")
    ended = store.ended(planned)
    planned_comparisons = set(store.comparisons_now() or ())
    compared = planned_comparisons & set(store.keys(COMPARISONS))
    known = [
        each
        for each in store.failures()
        if each.target_id in planned_comparisons - compared
        or (each.target_id in planned and each.attack_id in (None, *planned[each.target_id]))
    ]
    now = _now(store) if may_write else datetime.now(UTC)
    launches = tuple(living(store.storage, now))
    under_way = {running.target_id for launch in launches for running in launch.running}
    failures = tuple(each for each in known if each.target_id not in ended and each.target_id not in under_way)
    failed = {failure.target_id for failure in failures} & planned.keys()
    left = len(planned) - len(ended) - len(failed)
    per_hour = _per_hour(list(ended.values()), now) if launches else None
    return SweepStatus(
        trials=len(planned),
        done=len(ended),
        failed=len(failed),
        comparisons=len(planned_comparisons),
        compared=len(compared),
        launches=launches,
        per_hour=per_hour,
        left_s=_left_s(launches) or (3600 * left / per_hour if per_hour else None),
        failures=failures,
        quarantined=len(store.storage.entries(QUARANTINE)),
        ended=frozenset(ended),
        failed_ids=frozenset(failed),
    )


def _now(store: Store) -> datetime:
    """The store's clock, read from a small file. If that cannot be written: ours, or the last sign of any launch if later."""
    name = f"{LAUNCHES}/clock-{secrets.token_hex(8)}"
    with contextlib.suppress(StorageError):
        store.storage.write(name, b"")
        try:
            if entry := store.storage.entries(LAUNCHES).get(name.rpartition("/")[2]):
                return entry.modified
        finally:
            store.storage.delete(name)
    return max([datetime.now(UTC), *(entry.modified for entry in store.storage.entries(LAUNCHES).values())])


def _left_s(launches: Sequence[LaunchInfo]) -> float | None:
    """The time left by the launches' own estimates, each as if it worked alone; None unless all have one."""
    estimates = [launch.left_s for launch in launches]
    if not estimates or not all(estimates):
        return None
    return 1 / sum(1 / each for each in estimates if each)


def _per_hour(ended: list[datetime], now: datetime) -> float | None:
    """Trials per hour since the first end within the last hour; work before that end is not counted."""
    late = [each for each in ended if now - each <= _RATE_OVER]
    since = (now - min(late)).total_seconds() if late else 0.0
    return 3600 * (len(late) - 1) / since if len(late) >= 2 and since > 0 else None
