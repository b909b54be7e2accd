"""Membership attacks on any model's stored outputs: no training of targets, no torch.

Reads Parquet with the columns `example_id, is_member, label` and `logits` or `probabilities`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attacks.base import Attack, AttackError, AttackTarget, Membership, MembershipScores, ModelOutputs
from attacks.membership.threshold import Threshold
from attacks.membership.trained_attackers import TrainedAttackers
from attacks.metrics import membership_metrics
from sweeper.errors import UserError, sentence, unknown_name

THRESHOLD_NAMES: tuple[str, ...] = Threshold().scores
TRAINED_NAMES: tuple[str, ...] = TrainedAttackers().attackers
ATTACK_NAMES = (*THRESHOLD_NAMES, *TRAINED_NAMES)


def read_outputs(path: Path) -> Membership:
    """A model's outputs on members and non-members.

    Raises:
        UserError: the file is not such a Parquet file; the text says which column, which row and what is allowed.
    """
    if not _is_file(path):
        raise UserError(f"{path} does not exist or is no file. Give a Parquet file of a model's outputs.")
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {sentence(error)}") from None
    names = set(table.column_names)
    missing = [name for name in ("example_id", "is_member", "label") if name not in names]
    given = [name for name in ("logits", "probabilities") if name in names]
    if missing or not given:
        raise UserError(
            f"{path} lacks {', '.join([*missing, *([] if given else ['logits or probabilities'])])}; it has "
            f"{', '.join(table.column_names) or 'no columns'}. Needed: example_id, is_member, label, and logits or probabilities."
        )
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows; it needs one per member and non-member.")
    value_name = given[0]
    for name in ("example_id", "is_member", "label", value_name):
        if table.column(name).null_count:
            raise UserError(
                f"{path}: column '{name}' has {table.column(name).null_count} nulls; fill or drop those rows."
            )
    values = _matrix(table.column(value_name), f"{path}: column '{value_name}'")
    labels = _integers(table.column("label"), f"{path}: column 'label'")
    bad = np.flatnonzero((labels < 0) | (labels >= values.shape[1]))
    if len(bad):
        raise UserError(
            f"{path}: row {bad[0]} has label {labels[bad[0]]}, but {value_name} have {values.shape[1]} classes; "
            f"labels go from 0 to {values.shape[1] - 1}."
        )
    return Membership(
        outputs=ModelOutputs(
            example_id=_ids(table.column("example_id")),
            label=labels,
            values=values,
            is_probability=value_name == "probabilities",
        ),
        is_member=_membership(table.column("is_member"), path),
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can be called so
        return False


def audit(
    population: Membership,
    attack_names: Sequence[str],
    *,
    form: str,
    dtype: str,
    seed: int,
    jobs: int,
    on_attack: Callable[[str], None] = lambda name: None,
) -> tuple[list[dict[str, Any]], list[MembershipScores]]:
    """Run the named attacks; gives a row of metrics for each, and the raw scores.

    Raises:
        UserError: an unknown attack, or fewer members or non-members than one needs.
    """
    for name in attack_names:
        if name not in ATTACK_NAMES:
            raise unknown_name("attack", name, ATTACK_NAMES)
    rows, all_scores = [], []
    target = AttackTarget(population=population)
    for name in dict.fromkeys(attack_names):
        on_attack(name)
        attack = _attack(name, form, dtype, jobs)
        try:
            attack.check_population(int(population.is_member.sum()), int((~population.is_member).sum()))
            (scores,) = _membership_scores(attack.run(target, np.random.default_rng([seed, ATTACK_NAMES.index(name)])))
            metrics = membership_metrics(scores.is_member, scores.score, np.random.default_rng([seed, 100]))
        except (AttackError, ValueError) as error:
            raise UserError(f"Attack '{name}': {error}") from None
        rows.append(
            {
                "attack": name,
                "auc": metrics.auc,
                "auc_low": metrics.auc_low,
                "auc_high": metrics.auc_high,
                "advantage": metrics.advantage,
                **{f"tpr_at_fpr_{fpr:g}": tpr for fpr, tpr in metrics.tpr_at_fpr.items()},
                "n_members": metrics.n_members,
                "n_non_members": metrics.n_non_members,
            }
        )
        all_scores.append(scores)
    return rows, all_scores


def _attack(name: str, form: str, dtype: str, jobs: int) -> Attack:
    if name in THRESHOLD_NAMES:
        return Threshold(scores=(name,), form=form, dtype=dtype)
    return TrainedAttackers(attackers=(name,), jobs=jobs)


def write_metrics(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The metrics as Parquet.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=_metrics_schema()), file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is no path"
        raise UserError(f"{path} cannot be written: {reason or error}. Name another file with --out.") from None


def _metrics_schema() -> pa.Schema:
    floats = ("auc", "auc_low", "auc_high", "advantage", "tpr_at_fpr_0.001", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1")
    return pa.schema(
        [
            ("attack", pa.string()),
            *((name, pa.float64()) for name in floats),
            ("n_members", pa.int64()),
            ("n_non_members", pa.int64()),
        ]
    )


def _membership_scores(results: Iterable[object]) -> list[MembershipScores]:
    return [result for result in results if isinstance(result, MembershipScores)]


def _matrix(column: pa.ChunkedArray, where: str) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UserError(f"{where} is {kind}; it must be a list of floats, one per class.")
    lengths = np.unique(pc.list_value_length(column).to_numpy())
    if len(lengths) != 1 or lengths[0] < 2:
        raise UserError(
            f"{where} has rows of {', '.join(map(str, lengths[:5]))} values; each row needs the same two or more."
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise UserError(f"{where} has nulls inside its lists; every class needs a number.")
    values = flat.to_numpy().reshape(-1, int(lengths[0]))
    values = np.asarray(values if values.dtype.kind == "f" else values.astype(np.float64))
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise UserError(
            f"{where} has NaN or infinity in {len(bad)} rows, the first is row {bad[0]}. Drop those rows, or find out why "
            "the model answers so; a score of NaN ranks nowhere."
        )
    return values


def _integers(column: pa.ChunkedArray, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where} is {column.type}; it must be whole numbers.")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _ids(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids as they are; ids of another type are numbered, for they only name rows."""
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), dtype=np.int64)
    return np.arange(len(column), dtype=np.int64)


def _membership(column: pa.ChunkedArray, path: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    values = np.asarray(column.to_numpy())
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type)) or not np.isin(values, (0, 1)).all():
        raise UserError(
            f"{path}: column 'is_member' is {column.type}; it must be true or false (or 1 or 0) in every row."
        )
    return values.astype(np.bool_)
