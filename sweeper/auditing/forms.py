"""Reads what people store of models in any of its forms: outputs, one number per record, or a cohort of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from attacks.base import AttackError, BoolArray, FloatArray, IntArray, Membership, ModelOutputs
from attacks.probabilities import normalized_probabilities
from sweeper.auditing.outputs import (
    Names,
    Stored,
    StoredCohort,
    StoredOutputs,
    StoredScores,
    columns_of,
    has_outputs,
    membership_of,
    numbered,
    read_columns,
    read_table,
)
from sweeper.errors import UserError, sentence

_LEAST_PROBABILITY = 1e-45
"""Probabilities below it count as it, so that their logarithm is finite."""
_LEAST_RESIDUAL = 1e-12
"""The same of residuals, times their largest."""

ONE_NUMBER = ("score", "loss", "prediction")
"""Columns with one number per record, in the order in which they are looked for."""


def read_stored(path: Path) -> Stored:
    """What a file or folder stores of one model or several.

    Raises:
        UserError: it is in none of the forms; the text says what is missing.
    """
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path)
    names = columns_of(path)
    if not has_outputs(names):
        for name in ONE_NUMBER:
            if name in names:
                return _read_scores(path, name, "model" in names)
    table, outputs = read_table(path)
    if "model" not in table.column_names:
        return outputs
    population = outputs.population
    models = _models(table, path)
    query = np.zeros(len(models), dtype=np.int64)
    if "query" in table.column_names:
        given = _plain_numbers(table, "query", path)
        if not np.isfinite(given).all() or (given % 1).any():
            raise UserError(f"{path}: column 'query' must have whole numbers, without nulls.")
        query = given.astype(np.int64)
    values = _as_logits(population.outputs.values, population.outputs.is_probability)
    found = _pivoted(path, models, query, population.outputs, population.is_member, values, outputs.changes)
    return replace(found, names=outputs.names)


def stored_arrays(
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
    where: str = "audit",
) -> Stored:
    """The same from arrays. `sweeper.audit` says what they are.

    Raises:
        UserError: there is not exactly one kind of answers, or the shapes do not fit.
    """
    given = {
        name: _as_array(name, value, where)
        for name, value in (
            *(("logits", logits), ("probabilities", probabilities), ("score", score), ("loss", loss)),
            ("prediction", prediction),
        )
        if value is not None
    }
    if len(given) != 1:
        raise UserError(
            f"{where}: {' and '.join(given) or 'no answers'} given; give exactly one of logits, probabilities, score, loss and "
            "prediction (with target)."
        )
    ((name, values),) = given.items()
    _refuse_other_types(name, values, where)
    member = _members(_as_array("is_member", is_member, where), where)
    if values.ndim == member.ndim + 1 and values.shape[-1] == 1:  # one output unit
        values = values[..., 0]
    if not member.ndim <= values.ndim <= 2 * member.ndim:
        raise UserError(f"{where}: {name} has {values.ndim} dimensions, which do not fit is_member with {member.ndim}.")
    if name in ONE_NUMBER:
        if values.ndim != member.ndim:
            raise UserError(
                f"{where}: {name} has the shape {values.shape}; it must have one number for each value of is_member."
            )
        if (name == "prediction") != (target is not None):
            raise UserError(f"{where}: prediction and target belong together; give both, or neither.")
        targets = None
        if target is not None:
            targets = _as_array("target", target, where)
            _refuse_other_types("target", targets, where)
            targets = targets.astype(np.float64)
        values = _one_number(name, values.astype(np.float64), targets, where)
        member = _oriented(member, values.shape, where, name)
        ids, names = _checked_ids(example_id, member.shape[-1], where)
        if member.ndim == 1:
            return StoredScores(name=name, example_id=ids, is_member=member, score=values, changes=(), names=names)
        models = tuple(map(str, range(len(member))))
        return replace(_cohort_of_scores(models, ids, member, _log_odds_of(name, values)), names=names)
    is_probability = name == "probabilities"
    if values.ndim == member.ndim:  # a binary model's one value
        values = np.stack([1 - values, values] if is_probability else [np.zeros_like(values), values], axis=-1)
    member = _oriented(member, values.shape, where, name)
    n = member.shape[-1]
    ids, names = _checked_ids(example_id, n, where)
    if label is None:
        raise UserError(f"{where}: {name} need label, the true class of each record.")
    labels = np.asarray(label)
    n_classes = values.shape[-1]
    if labels.dtype.kind not in "biuf":
        raise UserError(
            f"{where}: label has the type {labels.dtype}; number the classes from 0, in the order of the answers' columns."
        )
    whole = np.issubdtype(labels.dtype, np.integer) or bool(np.all(np.mod(labels.astype(np.float64), 1) == 0))
    if labels.shape != (n,) or not whole or labels.min(initial=0) < 0 or labels.max(initial=0) >= n_classes:
        raise UserError(f"{where}: label must have {n} whole numbers from 0 to {n_classes - 1}, one for each record.")
    labels = labels.astype(np.int64)
    if np.isnan(values).any() or (values == np.inf).any() or (is_probability and not np.isfinite(values).all()):
        raise UserError(f"{where}: {name} have values that are not finite numbers; only a logit may be −∞.")
    if (values == -np.inf).all(axis=-1).any():
        raise UserError(f"{where}: {name} have records with only logits of −∞; at least one class must be possible.")
    if member.ndim == 1:
        changes: tuple[str, ...] = ()
        if is_probability:
            values, changed = _probabilities(values, where)
            changes = (changed,) if changed else ()
        outputs = ModelOutputs(example_id=ids, label=labels, values=values, is_probability=is_probability)
        return StoredOutputs(population=Membership(outputs=outputs, is_member=member), changes=changes, names=names)
    if values.ndim == 3:
        values = values[:, :, None, :]
    if is_probability:
        flat, _ = _probabilities(values.reshape(-1, n_classes), where)
        values = flat.reshape(values.shape)
    return StoredCohort(
        models=tuple(map(str, range(len(member)))),
        example_id=ids,
        label=labels,
        is_member=member,
        logits=_as_logits(values, is_probability),
        changes=(),
        names=names,
    )


def _from_npz(path: Path) -> Stored:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npz file: {sentence(error)}") from None
    names = {
        "membership": "is_member",
        "labels": "label",
        "scores": "score",
        "losses": "loss",
        "predictions": "prediction",
    }
    arrays = {names.get(name, name): value for name, value in arrays.items()}
    known = ("is_member", "label", "logits", "probabilities", "score", "loss", "prediction", "target", "example_id")
    if "is_member" not in arrays:
        raise UserError(f"{path} has no array 'is_member'; it has {', '.join(sorted(arrays)) or 'none'}.")
    return stored_arrays(**{name: arrays[name] for name in known if name in arrays}, where=str(path))


def _read_scores(path: Path, name: str, is_cohort: bool) -> Stored:
    needed = ["is_member", name, *(["target"] if name == "prediction" else []), *(["model"] if is_cohort else [])]
    table = read_columns(path, needed, optional=("example_id",))
    arrays = {each: _plain_numbers(table, each, path) for each in needed if each not in ("is_member", "model")}
    values = _one_number(name, arrays[name], arrays.get("target"), str(path))
    members = membership_of(table.column("is_member"), str(path))
    n, names = len(values), None
    if "example_id" in table.column_names:
        ids, names = numbered(table.column("example_id"))
    elif is_cohort:
        raise UserError(f"{path} has a column 'model' but no 'example_id', which says which rows are of one record.")
    else:
        ids = np.arange(n)
    models = _models(table, path) if is_cohort else np.zeros(n, dtype="U1")
    if len(set(models.tolist())) == 1:
        return StoredScores(name=name, example_id=ids, is_member=members, score=values, changes=(), names=names)
    values = _log_odds_of(name, values)
    outputs = ModelOutputs(
        example_id=ids,
        label=np.ones(n, dtype=np.int64),
        values=np.stack([np.zeros(n), values], axis=1),
    )
    found = _pivoted(path, models, np.zeros(n, dtype=np.int64), outputs, members, outputs.values, ())
    return replace(found, names=names, has_classes=False) if isinstance(found, StoredCohort) else found


def _models(table: pa.Table, path: Path) -> npt.NDArray[np.str_]:
    """The model of each row."""
    column = table.column("model")
    if column.null_count:
        raise UserError(f"{path}: column 'model' has {column.null_count} nulls; name the model of each row.")
    return np.array([str(each) for each in column.to_pylist()])


def _pivoted(
    path: Path,
    models: npt.NDArray[np.str_],
    query: IntArray,
    outputs: ModelOutputs,
    is_member: BoolArray,
    values: FloatArray,
    changes: Sequence[str],
) -> Stored:
    """A cohort from one row per model, record and query."""
    names = list(dict.fromkeys(models.tolist()))
    if len(names) == 1:
        return StoredOutputs(population=Membership(outputs=outputs, is_member=is_member), changes=tuple(changes))
    found: list[tuple[IntArray, IntArray, BoolArray, FloatArray]] = []
    for name in names:
        rows = np.flatnonzero(models == name)
        rows = rows[np.lexsort((query[rows], outputs.example_id[rows]))]
        ids, counts = np.unique(outputs.example_id[rows], return_counts=True)
        if len(set(counts.tolist())) != 1 or not (query[rows].reshape(len(ids), -1) == query[rows][: counts[0]]).all():
            raise UserError(
                f"{path}: model '{name}' has not the same queries of every record. Give each record one row per model, or add a column "
                "'query' that numbers them alike."
            )
        shape = (len(ids), int(counts[0]))
        members = is_member[rows].reshape(shape)
        if (members != members[:, :1]).any():
            raise UserError(f"{path}: model '{name}' has a record that is a member in one row and not in another.")
        found.append((ids, outputs.label[rows].reshape(shape)[:, 0], members[:, 0], values[rows].reshape(*shape, -1)))
    first = found[0]
    for name, each in zip(names[1:], found[1:], strict=True):
        if (
            each[3].shape != first[3].shape
            or not np.array_equal(each[0], first[0])
            or not np.array_equal(each[1], first[1])
        ):
            raise UserError(
                f"{path}: models '{names[0]}' and '{name}' did not answer the same records and queries, or their labels differ. "
                "Keep the records that all models answered."
            )
    return StoredCohort(
        models=tuple(names),
        example_id=first[0],
        label=first[1],
        is_member=np.stack([each[2] for each in found]),
        logits=np.stack([each[3] for each in found]),
        changes=tuple(changes),
    )


def _cohort_of_scores(models: tuple[str, ...], ids: IntArray, member: BoolArray, score: FloatArray) -> StoredCohort:
    """A cohort whose only signal is a score: as logits (0, score) of the true class 1, whose log-odds are the score."""
    return StoredCohort(
        models=models,
        example_id=ids,
        label=np.ones(len(ids), dtype=np.int64),
        is_member=member,
        logits=np.stack([np.zeros_like(score), score], axis=-1)[:, :, None, :],
        changes=(),
        has_classes=False,
    )


def _one_number(name: str, values: FloatArray, target: FloatArray | None, where: str) -> npt.NDArray[np.float64]:
    """The score of each record: higher means more likely a member."""
    if target is not None:
        if target.shape != values.shape[-target.ndim :]:
            raise UserError(
                f"{where}: prediction has the shape {values.shape}, and target {target.shape}; they must fit."
            )
        residual = np.abs(values - target)
        # The logarithm makes residuals of references more nearly Gaussian, and ranks one model's records as they do.
        score = -np.log(np.maximum(residual, _LEAST_RESIDUAL * max(1.0, float(residual.max(initial=0.0)))))
    else:
        score = -values if name == "loss" else values
    if not np.isfinite(score).all():
        raise UserError(
            f"{where}: {name} has values that are not finite numbers; a record without a score cannot be ranked."
        )
    return np.asarray(score, dtype=np.float64)


def _log_odds_of(name: str, score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What attacks on a cohort take for log-odds: of losses that may be cross-entropies, log(p / (1 − p)) with p = exp(−loss)."""
    if name != "loss" or (score > 0).any():
        return score
    loss = np.maximum(-score, 1e-300)
    return np.asarray(-loss - np.log(-np.expm1(-loss)))


def _as_array(name: str, value: npt.ArrayLike, where: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{where}: {name} is no array of one shape: {sentence(error)}") from None


def _refuse_other_types(name: str, values: npt.NDArray[Any], where: str) -> None:
    if values.dtype.kind not in "iuf":
        raise UserError(f"{where}: {name} has the type {values.dtype}; it must be real numbers.")


def _members(values: npt.NDArray[Any], where: str) -> BoolArray:
    if values.ndim not in (1, 2):
        raise UserError(f"{where}: is_member has {values.ndim} dimensions; it must be (records), or (models, records).")
    return membership_of(_as_column(values.ravel(), "is_member", where), where).reshape(values.shape)


def _as_column(values: npt.NDArray[Any], name: str, where: str) -> pa.ChunkedArray:
    try:
        return pa.chunked_array([pa.array(values.astype(str) if values.dtype.kind == "S" else values)])
    except pa.ArrowException as error:
        raise UserError(
            f"{where}: {name} has the type {values.dtype}, which cannot be read: {sentence(error)}"
        ) from None


def _oriented(member: BoolArray, shape: tuple[int, ...], where: str, name: str) -> BoolArray:
    """The membership in the order of the answers, (models, records) if there are several models."""
    if shape[: member.ndim] == member.shape:
        return member
    if member.ndim == 2 and shape[:2] == member.shape[::-1]:
        return member.T.copy()
    raise UserError(f"{where}: is_member has the shape {member.shape}, and {name} {shape}; they do not fit.")


def _checked_ids(example_id: npt.ArrayLike | None, n: int, where: str) -> tuple[IntArray, Names]:
    if example_id is None:
        return np.arange(n), None
    given = np.asarray(example_id)
    if given.shape != (n,):
        raise UserError(f"{where}: example_id has the shape {given.shape}; it must be ({n},).")
    return numbered(_as_column(given, "example_id", where))


def _probabilities(values: FloatArray, where: str) -> tuple[FloatArray, str | None]:
    try:
        return normalized_probabilities(values)
    except AttackError as error:
        raise UserError(f"{where}: probabilities: {error}") from None


def _as_logits(values: FloatArray, is_probability: bool) -> FloatArray:
    """Logits of probabilities; logits of −∞ become finite."""
    if is_probability:
        return np.log(np.maximum(values.astype(np.float64), _LEAST_PROBABILITY))
    return np.maximum(values, np.finfo(np.float32).min / 4)


def _plain_numbers(table: pa.Table, name: str, path: Path) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(table.column(name).cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowException:
        raise UserError(
            f"{path}: column '{name}' is of type {table.column(name).type}; it must be a number per row."
        ) from None
