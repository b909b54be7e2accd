"""How often a trial or comparison that has not ended was started, by any launch.

The count is deleted when the trial or comparison ends, because its rows then hold the count.
"""

from __future__ import annotations

import json

from sweeper.results import layout
from sweeper.storage import Storage

_MOST = 10**6
"""A recorded count of this or more is taken as damaged."""


def count(storage: Storage, target_id: str) -> int:
    """The number of starts so far; 0 if there is no count or it is damaged."""
    try:
        attempts = json.loads(storage.read(layout.attempts(target_id)))["attempts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return attempts if isinstance(attempts, int) and 0 <= attempts < _MOST else 0


def begin(storage: Storage, target_id: str) -> int:
    """Count one more start. Returns the count."""
    attempt = count(storage, target_id) + 1
    storage.write(layout.attempts(target_id), json.dumps({"attempts": attempt}).encode())
    return attempt


def end(storage: Storage, target_id: str) -> None:
    """Delete the count."""
    storage.delete(layout.attempts(target_id))
