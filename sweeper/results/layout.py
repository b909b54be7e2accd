"""Names of everything in a results folder, on a disk or in an object store.

    RESULTS/
      sweep.json                 which targets and attacks the sweep has now
      comparisons.json           which comparisons its targets have now
      parts/TABLE/KEY.parquet    one file per target (KEY is its id), attack (KEY is target.attack) or comparison (KEY is its id)
      weights/TARGET_ID.safetensors
      checkpoints/TARGET_ID.safetensors   of trainings that are under way
      attempts/ID.json           how often a trial or comparison that has not ended was started
      logs/ID.log                what a trial or comparison printed, all its attempts one after the other
      claims/ID.json, launches/LAUNCH_ID.json   who works here now; see `launches.py`
      quarantine/                damaged files, set aside
      TABLE.parquet              gathered from the parts that sweep.json and comparisons.json name
      report/                    tables, figures, report.html

A target is done when its row in `parts/trials` is there, which is written after everything else of it; an attack likewise in
`parts/attacks`, and a comparison in `parts/comparisons`. A failure is a row too, in a file whose name says so.
"""

from __future__ import annotations

import re

SWEEP = "sweep.json"
COMPARISONS_NOW = "comparisons.json"
PARTS = "parts"
TARGET_TABLES = ("history", "outputs", "trials")
ATTACK_TABLES = ("scores", "reconstructions", "attacks")
COMPARISONS = "comparisons"
COMPARED_TABLES = ("tpvd",)
"""Tables that comparisons fill."""
WEIGHTS = "weights"
CHECKPOINTS = "checkpoints"
ATTEMPTS = "attempts"
LOGS = "logs"
CLAIMS = "claims"
LAUNCHES = "launches"
QUARANTINE = "quarantine"
REPORT = "report"
FOLDERS = (WEIGHTS, CHECKPOINTS, QUARANTINE, ATTEMPTS, LOGS, CLAIMS, LAUNCHES)
FAILED = ".failed"
SUFFIX = ".parquet"
TENSORS = ".safetensors"

ID = re.compile(r"[0-9a-f]{16}")
KEY = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{16})?(\.failed)?")


def part(table: str, key: str) -> str:
    """The file of one target's, attack's or comparison's rows."""
    return f"{PARTS}/{table}/{key}{SUFFIX}"


def weights(target_id: str) -> str:
    return f"{WEIGHTS}/{target_id}{TENSORS}"


def checkpoint(target_id: str) -> str:
    return f"{CHECKPOINTS}/{target_id}{TENSORS}"


def attempts(unit_id: str) -> str:
    return f"{ATTEMPTS}/{unit_id}.json"


def log(unit_id: str) -> str:
    return f"{LOGS}/{unit_id}.log"
