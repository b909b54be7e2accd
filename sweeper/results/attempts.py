"""How often a trial or comparison that has not ended was started, by whichever launch.

The count is deleted when it has ended, for its rows tell the count then.
"""

from __future__ import annotations

import json

from sweeper.results import layout
from sweeper.storage import Storage

_MOST = 10**6
"""More starts than these nothing counts."""


def count(storage: Storage, target_id: str) -> int:
    """The starts so far; 0 also where the count is damaged."""
    try:
        attempts = json.loads(storage.read(layout.attempts(target_id)))["attempts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return attempts if isinstance(attempts, int) and 0 <= attempts < _MOST else 0


def begin(storage: Storage, target_id: str) -> int:
    """Count one more start; gives the count."""
    attempt = count(storage, target_id) + 1
    storage.write(layout.attempts(target_id), json.dumps({"attempts": attempt}).encode())
    return attempt


def end(storage: Storage, target_id: str) -> None:
    """Forget the count."""
    storage.delete(layout.attempts(target_id))
