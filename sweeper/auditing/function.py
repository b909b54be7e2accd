"""`sweeper.audit`: the same audits as on the command line, from arrays, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from sweeper.auditing.attack import ATTACK_NAMES, THRESHOLD_NAMES, audit_scores, records_of, write_metrics
from sweeper.auditing.attack import audit as audit_outputs
from sweeper.auditing.cohort import COHORT_ATTACKS, audit_cohort
from sweeper.auditing.forms import stored_arrays
from sweeper.auditing.outputs import Stored, StoredCohort, StoredOutputs, StoredScores
from sweeper.errors import UserError, unknown_name


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What an audit found. `metrics` has a row per attack, or per attack on a cohort and score. `records` has a row per attack and
    record: for one model its `score` and the share of non-members that score at least as high (`fpr`); for a cohort its exposure.
    """

    metrics: pd.DataFrame
    records: pd.DataFrame

    def save(self, path: str | Path) -> None:
        """Write the metrics as Parquet, for `sweeper gate`."""
        known = self.metrics.astype(object).where(self.metrics.notna(), None)
        write_metrics(
            [{str(name): value for name, value in row.items()} for row in known.to_dict("records")], Path(path)
        )


def audit(
    *,
    is_member: npt.ArrayLike,
    label: npt.ArrayLike | None = None,
    logits: npt.ArrayLike | None = None,
    probabilities: npt.ArrayLike | None = None,
    score: npt.ArrayLike | None = None,
    loss: npt.ArrayLike | None = None,
    prediction: npt.ArrayLike | None = None,
    target: npt.ArrayLike | None = None,
    example_id: npt.ArrayLike | None = None,
    attacks: Sequence[str] | None = None,
    seed: int = 0,
) -> Audit:
    """Run membership attacks on the answers of one model, or of several that attack each other.

    For one model, `is_member` (n,) says which records it was trained on. Its answers are one of: `logits` or `probabilities`
    (n, classes), or (n,) of a binary model's class 1, with `label` (n,); a `score` (n,), higher for members; a `loss` (n,), lower for
    members; or `prediction` and `target` (n,) of a regressor. `example_id` (n,) tells which rows are of one record.

    For a cohort of m models, `is_member` is (m, n), and the answers have the models first: `logits` or `probabilities` (m, n, classes),
    or (m, n, queries, classes) for several queries about each record, the record itself first; the others (m, n), with `target` (n,).
    Each model is attacked with the others as references, so members must be drawn by independent coins, or be complements of a pair.

    `attacks` are names of `sweeper audit --attack`; by default the thresholds for one model, all that apply for a cohort. Randomness
    comes from `seed` alone.

    Raises:
        UserError: an array has the wrong shape or values, or an attack cannot run.
    """
    stored = stored_arrays(
        is_member=is_member,
        label=label,
        logits=logits,
        probabilities=probabilities,
        score=score,
        loss=loss,
        prediction=prediction,
        target=target,
        example_id=example_id,
    )
    chosen = THRESHOLD_NAMES if attacks is None and isinstance(stored, StoredOutputs) else attacks
    metrics, records = audit_stored(stored, chosen, seed=seed)
    return Audit(metrics=pd.DataFrame(metrics), records=pd.DataFrame(records))


def audit_stored(
    stored: Stored,
    attacks: Sequence[str] | None,
    *,
    seed: int,
    form: str = "log_odds",
    dtype: str = "float64",
    jobs: int = 1,
    on_attack: Callable[[str], None] = lambda name: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `Audit.metrics` and `Audit.records` of what was read or given; by default of all attacks that apply.

    Raises:
        UserError: an attack is unknown, or cannot run.
    """
    if isinstance(stored, StoredScores):
        if attacks:
            raise UserError(f"A single {stored.name} per record is itself the attack; name no other.")
        rows, scores = audit_scores(stored, seed)
        return rows, _named(records_of(scores, [stored.name]), stored)
    known = list(COHORT_ATTACKS) if isinstance(stored, StoredCohort) else list(ATTACK_NAMES)
    names = list(dict.fromkeys(attacks or known))
    for name in names:
        if name not in known:
            raise unknown_name("attack on one model" if name in COHORT_ATTACKS else "attack", name, known)
    if isinstance(stored, StoredCohort):
        rows, records = audit_cohort(stored, names, seed=seed, on_attack=on_attack)
        return rows, _named(records, stored)
    rows, scores = audit_outputs(stored, names, form=form, dtype=dtype, seed=seed, jobs=jobs, on_attack=on_attack)
    return rows, _named(records_of(scores, names), stored)


def _named(records: list[dict[str, Any]], stored: Stored) -> list[dict[str, Any]]:
    """The records with the ids that they came with."""
    if stored.names is None:
        return records
    names = stored.names.to_pylist()
    return [{**each, "example_id": names[each["example_id"]]} for each in records]
