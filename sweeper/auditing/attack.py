"""Membership attacks on any model's stored outputs. Trains no targets and needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attacks.base import Attack, AttackError, AttackTarget, MembershipScores
from attacks.membership.threshold import Threshold
from attacks.membership.trained_attackers import TrainedAttackers
from attacks.metrics import REPORTED_FPRS, example_folds, membership_metrics, one_score_per_example
from sweeper.auditing.outputs import StoredOutputs, StoredScores
from sweeper.errors import UserError, unknown_name

THRESHOLD_NAMES: tuple[str, ...] = Threshold().scores
TRAINED_NAMES: tuple[str, ...] = TrainedAttackers().attackers
ATTACK_NAMES = (*THRESHOLD_NAMES, *TRAINED_NAMES)
METRICS = (
    "auc",
    "auc_low",
    "auc_high",
    "advantage",
    "advantage_null",
    *(f"tpr_at_fpr_{fpr:g}{end}" for fpr in REPORTED_FPRS for end in ("", "_low", "_high")),
    "n_members",
    "n_non_members",
    "n_tied",
    "largest_tie",
)


def audit(
    stored: StoredOutputs,
    attack_names: Sequence[str],
    *,
    form: str,
    dtype: str,
    seed: int,
    jobs: int,
    on_attack: Callable[[str], None] = lambda name: None,
) -> tuple[list[dict[str, Any]], list[MembershipScores]]:
    """Run the named attacks. Returns one row of metrics per attack, and the scores.

    Rows with the same `example_id` are one example. Its score is the mean of its rows' scores, and all its rows are in
    the same fold.

    A row's `input_changes` says how the outputs were changed to be readable.

    Raises:
        UserError: an attack is unknown, or has too few members or non-members.
    """
    for name in attack_names:
        if name not in ATTACK_NAMES:
            raise unknown_name("attack", name, ATTACK_NAMES)
    rows, all_scores = [], []
    population = stored.population
    half = example_folds(
        population.outputs.example_id, population.is_member, 2, np.random.default_rng([seed, len(ATTACK_NAMES)])
    )
    target = AttackTarget(population=population, half=half)
    for name in dict.fromkeys(attack_names):
        on_attack(name)
        attack = _attack(name, form, dtype, jobs)
        try:
            attack.check_population(int(population.is_member.sum()), int((~population.is_member).sum()))
            (scores,) = _membership_scores(attack.run(target, np.random.default_rng([seed, ATTACK_NAMES.index(name)])))
            scores = one_score_per_example(scores)
            rng = np.random.default_rng([seed, 100])
            metrics = membership_metrics(scores.is_member, scores.score, rng, scores.fold)
        except (AttackError, ValueError) as error:
            raise UserError(f"Attack '{name}': {error}") from None
        columns = metrics.columns()
        rows.append(
            {"attack": name}
            | {key: columns[key] for key in METRICS}
            | {"n_rows": len(population.outputs), "input_changes": list(stored.changes)}
        )
        all_scores.append(scores)
    return rows, all_scores


def audit_scores(stored: StoredScores, seed: int) -> tuple[list[dict[str, Any]], list[MembershipScores]]:
    """The metrics of one number per record, as the only row, and its scores.

    Raises:
        UserError: there are too few members or non-members.
    """
    scores = MembershipScores(
        name=stored.name, example_id=stored.example_id, is_member=stored.is_member, score=stored.score
    )
    try:
        scores = one_score_per_example(scores)
        metrics = membership_metrics(scores.is_member, scores.score, np.random.default_rng([seed, 100]))
    except (AttackError, ValueError) as error:
        raise UserError(f"'{stored.name}': {error}") from None
    columns = metrics.columns()
    row = {"attack": stored.name} | {key: columns[key] for key in METRICS}
    return [row | {"n_rows": len(stored.score), "input_changes": list(stored.changes)}], [scores]


def records_of(all_scores: Sequence[MembershipScores], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per attack and record: its score, and the share of the non-members that score at least as high."""
    rows = []
    for name, scores in zip(names, all_scores, strict=True):
        others = np.sort(scores.score[~scores.is_member])
        share = 1 - np.searchsorted(others, scores.score, side="left") / max(1, len(others))
        rows += [
            {
                "attack": name,
                "example_id": int(each),
                "is_member": bool(member),
                "score": float(score),
                "fpr": float(fpr),
            }
            for each, member, score, fpr in zip(scores.example_id, scores.is_member, scores.score, share, strict=True)
        ]
    return rows


def _attack(name: str, form: str, dtype: str, jobs: int) -> Attack:
    if name in THRESHOLD_NAMES:
        return Threshold(scores=(name,), form=form, dtype=dtype)
    return TrainedAttackers(attackers=(name,), jobs=jobs)


def write_metrics(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the metrics of one model or of a cohort as Parquet.

    Raises:
        UserError: the file cannot be written.
    """
    write_rows(rows, path, None if "score_name" in rows[0] else _metrics_schema())


def write_rows(rows: Sequence[dict[str, Any]], path: Path, schema: pa.Schema | None = None) -> None:
    """Write rows as Parquet.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not a valid path"
        raise UserError(f"{path} cannot be written: {reason or error}. Name another file.") from None


def _metrics_schema() -> pa.Schema:
    counts = ("n_members", "n_non_members", "n_tied", "largest_tie")
    return pa.schema(
        [
            ("attack", pa.string()),
            *((name, pa.int64() if name in counts else pa.float64()) for name in METRICS),
            ("n_rows", pa.int64()),
            ("input_changes", pa.list_(pa.string())),
        ]
    )


def _membership_scores(results: Iterable[object]) -> list[MembershipScores]:
    return [result for result in results if isinstance(result, MembershipScores)]
