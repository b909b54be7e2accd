"""A trial's recorded results, for trackers."""

from __future__ import annotations

import re

import pyarrow as pa

from sweeper.results import layout
from sweeper.results.expected import BEST_OF, recorded_attacks
from sweeper.results.schema import SCHEMAS
from sweeper.results.store import Store
from sweeper.sweep.trial import Trial

_MEASURED = {
    table: [
        field.name for field in SCHEMAS[table] if pa.types.is_floating(field.type) and not field.name.endswith("time_s")
    ]
    for table in ("attacks", "reconstructions")
} | {"trials": ["train_accuracy", "test_accuracy", "train_loss", "test_loss", "epsilon_spent"]}
"""Columns that are passed to a tracker."""


def recorded_metrics(store: Store, trial: Trial) -> dict[str, float]:
    """A trial's recorded results under the names that a tracker shows: accuracies, ε, and each attack's metrics.

    Raises:
        DamagedError: one of the trial's files is damaged.
        StorageError: the store cannot be read.
    """
    target_id = trial.target_id
    parts = [("trials", target_id)]
    for each in recorded_attacks(trial):
        parts += [(table, f"{target_id}.{each}") for table in ("attacks", "reconstructions")]
    found: dict[str, float] = {}
    attack = ""
    for table, key in parts:
        if not store.storage.has_content(layout.part(table, key)):
            continue
        for row in store.read_part(table, key).to_pylist():
            attack = row.get("attack") or attack  # rows of reconstructions follow their attack's row
            score = "" if attack == BEST_OF else row.get("score_name")
            place = "/".join(filter(None, () if table == "trials" else (attack, score, row.get("layer"))))
            for name in _MEASURED[table]:
                if row[name] is not None:
                    found[re.sub(r"[^\w./-]", "_", f"{place}/{name}" if place else name)] = row[name]
    return found
