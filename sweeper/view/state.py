"""What the page shows of one sweep, from its store alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from sweeper.results.status import SweepStatus, read_status
from sweeper.results.store import Store

MOST_FAILURES = 200
"""Failures beyond these are counted and not listed."""


def state_of(store: Store) -> dict[str, Any]:
    """The sweep's progress by arm, running trials, failures and launches, as plain values.

    Raises:
        UserError: the store holds no sweep, or it is damaged.
        StorageError: the store cannot be read.
    """
    status = read_status(store, may_write=False)
    arm_of = store.arms()
    running = [
        {**asdict(each), "arm": arm_of.get(each.target_id, ""), "launch": launch.name}
        for launch in status.launches
        for each in launch.running
    ]
    return {
        "location": store.location,
        **{name: getattr(status, name) for name in ("trials", "done", "failed", "left", "comparisons", "compared")},
        "per_hour": status.per_hour,
        "left_s": status.left_s,
        "arms": _arms(status, arm_of),
        "running": running,
        "causes": status.causes,
        "failures": [
            {**asdict(each), "arm": arm_of.get(each.target_id, "")} for each in status.failures[:MOST_FAILURES]
        ],
        "n_failures": len(status.failures),
        "launches": [
            {
                "name": each.name,
                "started_at": each.started_at,
                "n_running": len(each.running),
                "resources": each.resources,
            }
            for each in status.launches
        ],
        "quarantined": status.quarantined,
    }


def _arms(status: SweepStatus, arm_of: dict[str, str]) -> list[dict[str, Any]]:
    """Counts by arm, in the order of the sweep."""
    total = Counter(arm_of.values())
    done = Counter(arm_of[each] for each in status.ended if each in arm_of)
    failed = Counter(arm_of[each] for each in status.failed_ids if each in arm_of)
    running = Counter(
        arm_of[each.target_id] for launch in status.launches for each in launch.running if each.target_id in arm_of
    )
    return [
        {"name": arm, "total": count, "done": done[arm], "failed": failed[arm], "running": running[arm]}
        for arm, count in total.items()
    ]
