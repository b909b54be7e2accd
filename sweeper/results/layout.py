"""Names of everything in a results folder, on a disk or in an object store.

    RESULTS/
            sweep.json                 the sweep's current targets and attacks
            comparisons.json           the current comparisons of its targets
            parts/TABLE/KEY.parquet    one file per target (KEY is its id), attack (KEY is target.attack) or comparison (KEY is its id)
            weights/TARGET_ID.safetensors
            answers/TARGET_ID.QUERIES.safetensors   the target's logits for that many queries about each example
            checkpoints/TARGET_ID.safetensors   of trainings in progress
            attempts/ID.json           number of starts of a trial or comparison that has not ended
            logs/ID.log                output of a trial or comparison, all attempts in order
            claims/ID.json, launches/LAUNCH_ID.json   the launches at work; see `launches.py`
      quarantine/                damaged files, set aside
      TABLE.parquet              gathered from the parts that sweep.json and comparisons.json name
      report/                    tables, figures, report.html

A target is done if its row in `parts/trials` exists, which is written after the rest of its record. The same holds for an
attack in `parts/attacks` and a comparison in `parts/comparisons`. A failure is a row too, in a file whose name says so.
"""

from __future__ import annotations

import re

SWEEP = "sweep.json"
COMPARISONS_NOW = "comparisons.json"
PARTS = "parts"
TARGET_TABLES = ("history", "outputs", "trials")
ATTACK_TABLES = ("scores", "reconstructions", "attacks")
COMPARISONS = "comparisons"
COMPARED_TABLES = ("tpvd", "cohorts", "exposure")
"""Tables with rows of a whole comparison. Rows of one of its targets are in the tables of attacks, by `target.comparison`."""
WEIGHTS = "weights"
ANSWERS = "answers"
CHECKPOINTS = "checkpoints"
ATTEMPTS = "attempts"
LOGS = "logs"
CLAIMS = "claims"
LAUNCHES = "launches"
QUARANTINE = "quarantine"
REPORT = "report"
FOLDERS = (WEIGHTS, ANSWERS, CHECKPOINTS, QUARANTINE, ATTEMPTS, LOGS, CLAIMS, LAUNCHES)
FAILED = ".failed"
SUFFIX = ".parquet"
TENSORS = ".safetensors"

ID = re.compile(r"[0-9a-f]{16}")
KEY = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{16})?(\.failed)?")


def part(table: str, key: str) -> str:
    """The file with one target's, attack's or comparison's rows."""
    return f"{PARTS}/{table}/{key}{SUFFIX}"


def weights(target_id: str) -> str:
    return f"{WEIGHTS}/{target_id}{TENSORS}"


def answers(target_id: str, queries: int) -> str:
    return f"{ANSWERS}/{target_id}.{queries}{TENSORS}"


def checkpoint(target_id: str) -> str:
    return f"{CHECKPOINTS}/{target_id}{TENSORS}"


def attempts(unit_id: str) -> str:
    return f"{ATTEMPTS}/{unit_id}.json"


def log(unit_id: str) -> str:
    return f"{LOGS}/{unit_id}.log"
