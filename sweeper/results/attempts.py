"""How often a trial that has not ended was started, by whichever launch; and where its log is.

attempts/TARGET_ID.json   deleted when the trial has ended, for its rows tell the count then
logs/TARGET_ID.log        what the trial printed, all its attempts one after the other
"""

from __future__ import annotations

import json

from sweeper.storage import Storage

FOLDER = "attempts"
LOGS = "logs"
_MOST = 10**6
"""More starts than these nothing counts."""


def count(storage: Storage, target_id: str) -> int:
    """The starts so far; 0 also where the count is damaged."""
    try:
        attempts = json.loads(storage.read(f"{FOLDER}/{target_id}.json"))["attempts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return attempts if isinstance(attempts, int) and 0 <= attempts < _MOST else 0


def begin(storage: Storage, target_id: str) -> int:
    """Count one more start; gives the count."""
    attempt = count(storage, target_id) + 1
    storage.write(f"{FOLDER}/{target_id}.json", json.dumps({"attempts": attempt}).encode())
    return attempt


def end(storage: Storage, target_id: str) -> None:
    """Forget the count."""
    storage.delete(f"{FOLDER}/{target_id}.json")


def log_name(target_id: str) -> str:
    """The name of a trial's log in the store."""
    return f"{LOGS}/{target_id}.log"
