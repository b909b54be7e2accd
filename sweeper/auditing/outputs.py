"""Reads a model's stored outputs for `sweeper audit`, in the forms that people store them. Needs no PyTorch.

The input is a Parquet file, or a folder of them, with the columns `example_id, is_member, label` and `logits` or
`probabilities`. These are a list of numbers in each row, or one column per class. In place of these and of the label, there may be
one number per record: a `score`, a `loss`, or a regressor's `prediction` and its `target`. With a column `model`, or as arrays in a
.npz file, the answers of several models to the same records are a cohort.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attacks.base import AttackError, BoolArray, FloatArray, IntArray, Membership, ModelOutputs
from attacks.probabilities import normalized_probabilities
from sweeper.errors import UserError, printable, sentence

_NEEDED = "Needed: example_id, is_member, label, and logits or probabilities."
_ONE_PER_CLASS = re.compile(r"(?:(logits?)|prob(?:a|s|ability|abilities)?)[ _.-]?(\d{1,9})")
"""A column for one class: logit_0, logits_0, prob_0, proba_0, probability_0, probabilities_0."""
_MOST_NAMES = 20
_OF_A_COHORT = ("model", "query")

Names: TypeAlias = pa.Array | None
"""The ids of records that are no whole numbers, in the order of the numbers that stand for them; None if there are none such."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredOutputs:
    """A model's outputs on members and non-members, and a description of each change made to read them."""

    population: Membership
    changes: tuple[str, ...]
    names: Names = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredScores:
    """One number (n,) for each record by which it may be told whether it was a member; higher means more likely."""

    name: str
    example_id: IntArray
    is_member: BoolArray
    score: npt.NDArray[np.float64]
    changes: tuple[str, ...]
    names: Names = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredCohort:
    """Several models' answers to the same records: `is_member` (models, n), `logits` (models, n, queries, classes)."""

    models: tuple[str, ...]
    example_id: IntArray
    label: IntArray
    is_member: BoolArray
    logits: FloatArray
    changes: tuple[str, ...]
    has_classes: bool = True
    """Whether the answers are about classes. If not, their log-odds are a score, and there is no right answer."""
    names: Names = None


Stored = StoredOutputs | StoredScores | StoredCohort


@dataclass(frozen=True, kw_only=True)
class _Values:
    """The columns that hold the outputs: one with all classes, or one per class, starting with class 0."""

    columns: tuple[str, ...]
    is_probability: bool

    @property
    def name(self) -> str:
        return f"columns '{self.columns[0]}' …" if len(self.columns) > 1 else f"column '{self.columns[0]}'"


def read_outputs(path: Path) -> StoredOutputs:
    """Read a model's outputs on members and non-members from a Parquet file or a folder of them.

    In a folder, a path segment such as `is_member=true` is a column, and so is a column that pandas stores as its
    index. Values may be lists, tensors, one column per class (`logit_0`, `logit_1`, …), or one number, which is a
    binary model's logit or probability of class 1. A logit of −∞ is a probability of 0. Probabilities that are outside
    [0, 1] or do not sum to 1 because of rounding are renormalized.

    Raises:
            UserError: the file holds no such outputs; the text names the column, the row and what is allowed.
    """
    table, values, changes = _read_table(path)
    return _outputs_of(table, values, changes, path)


def _outputs_of(table: pa.Table, values: _Values, changes: list[str], path: Path) -> StoredOutputs:
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows; it needs one per member and non-member.")
    for name in ("example_id", "is_member", "label", *values.columns):
        if table.column(name).null_count:
            raise UserError(
                f"{path}: column '{name}' has {table.column(name).null_count} nulls; fill or drop those rows."
            )
    where = f"{path}: {values.name}"
    matrix = _matrix([table.column(name) for name in values.columns], where)
    _check_finite(matrix, where, values.is_probability)
    if matrix.shape[1] == 1:
        matrix, change = _both_classes(matrix, values.is_probability)
        changes.append(change)
    if values.is_probability:
        try:
            matrix, normalized = normalized_probabilities(matrix)
        except AttackError as error:
            raise UserError(f"{where}: {error}") from None
        if normalized is not None:
            changes.append(normalized)
    else:
        ruled_out = np.isneginf(matrix)
        if ruled_out.all(axis=1).any():
            raise UserError(
                f"{where}: row {int(ruled_out.all(axis=1).argmax())} has only logits of −∞; at least one class must be "
                "possible."
            )
        if ruled_out.any():
            changes.append(
                f"{int(ruled_out.any(axis=1).sum())} of {len(matrix)} rows have logits of −∞, a probability of 0 each"
            )
    labels = _whole_numbers(table.column("label"), f"{path}: column 'label'")
    bad = np.flatnonzero((labels < 0) | (labels >= matrix.shape[1]))
    if len(bad):
        raise UserError(
            f"{path}: row {bad[0]} has label {labels[bad[0]]}, but {values.name} have {matrix.shape[1]} classes; "
            f"labels go from 0 to {matrix.shape[1] - 1}."
        )
    ids, names = numbered(table.column("example_id"))
    return StoredOutputs(
        population=Membership(
            outputs=ModelOutputs(
                example_id=ids,
                label=labels,
                values=matrix,
                is_probability=values.is_probability,
            ),
            is_member=membership_of(table.column("is_member"), str(path)),
        ),
        changes=tuple(changes),
        names=names,
    )


def _read_table(path: Path) -> tuple[pa.Table, _Values, list[str]]:
    """Returns the needed columns of all files, which of them hold the outputs, and notes on how the files were read."""
    files = _files(path)
    try:
        read = [_read_file(file, _columns_in_path(file.relative_to(path)), len(files) > 1) for file in files]
        table = pa.concat_tables([table for table, _, _ in read], promote_options="permissive")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {sentence(printable(error, 300))}") from None
    values = read[0][1]
    for file, (_, others, _) in zip(files, read, strict=True):
        if others != values:
            raise UserError(f"{file} has its outputs in {others.name}, but {files[0]} in {values.name}.")
    changes = []
    if not values.is_probability and any(_is_probability_name(name) for _, _, names in read for name in names):
        changes.append("logits are used; the probabilities beside them are ignored")
    in_paths = [_columns_in_path(file.relative_to(path)) for file in files]
    for name in sorted({name for columns in in_paths for name in columns} - set(table.column_names)):
        parts = len({columns.get(name) for columns in in_paths})
        if parts > 1:
            changes.append(f"the {parts} parts by '{name}' are combined")
    return table, values, changes


def _read_file(file: Path, in_path: dict[str, str | None], is_a_part: bool) -> tuple[pa.Table, _Values, list[str]]:
    """Returns the needed columns, which of them hold the outputs, and the names of all columns.

    One thread reads each file, opened natively. Arrow's own threads must not hold a Python file: if one frees its buffers
    while the interpreter exits, the process aborts.
    """
    with pa.OSFile(os.fsencode(file)) as source, pq.ParquetFile(source, pre_buffer=False) as parquet:
        stored = parquet.schema_arrow.names
        ranges = _pandas_ranges(parquet.schema_arrow)
        names = [*stored, *(name for name in (in_path | ranges) if name not in stored)]
        values = _value_columns(names, file)
        needed = (
            "example_id",
            "is_member",
            "label",
            *values.columns,
            *(name for name in _OF_A_COHORT if name in names),
        )
        table = parquet.read(columns=[name for name in needed if name in stored], use_threads=False)
    n_rows = parquet.metadata.num_rows
    for name in needed:
        if name in stored:
            continue
        if name in in_path:
            table = table.append_column(name, pa.repeat(_scalar(name, in_path[name]), n_rows))
        elif is_a_part or len(ranges[name]) != n_rows:
            raise UserError(
                f"{file}: '{name}' is pandas' index of a table of which this is a part. Write it as a column."
            )
        else:
            table = table.append_column(name, pa.array(ranges[name], pa.int64()))
    return table.select(needed), values, names


def read_table(path: Path) -> tuple[pa.Table, StoredOutputs]:
    """The outputs of one model or several, and the table that they were read from, with the column `model` if there is one.

    Raises:
        UserError: as `read_outputs`.
    """
    table, values, changes = _read_table(path)
    return table, _outputs_of(table, values, changes, path)


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a file, or of the first file of a folder, with those that folder names set.

    Raises:
        UserError: there is no such file, or it is no Parquet file.
    """
    first = _files(path)[0]
    try:
        return [*pq.read_schema(first).names, *_columns_in_path(first.relative_to(path))]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {sentence(printable(error, 300))}") from None


def has_outputs(names: Sequence[str]) -> bool:
    """Whether there are columns of logits or probabilities."""
    return any(name in ("logits", "probabilities") or _ONE_PER_CLASS.fullmatch(name) for name in names)


def read_columns(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """These columns of all files, those that folder names set among them.

    Raises:
        UserError: a file cannot be read, a needed column is missing, or one has nulls.
    """
    tables = []
    for file in _files(path):
        in_path = _columns_in_path(file.relative_to(path))
        try:
            with pa.OSFile(os.fsencode(file)) as source, pq.ParquetFile(source, pre_buffer=False) as parquet:
                stored = parquet.schema_arrow.names
                wanted = [name for name in (*needed, *optional) if name in stored]
                table = parquet.read(columns=wanted, use_threads=False)
                n_rows = parquet.metadata.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{file} is not a readable Parquet file: {sentence(printable(error, 300))}") from None
        for name in (*needed, *optional):
            if name not in stored and name in in_path:
                table = table.append_column(name, pa.repeat(_scalar(name, in_path[name]), n_rows))
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise UserError(f"{file} lacks {', '.join(missing)}; it has {_listed(stored)}.")
        tables.append(table)
    table = pa.concat_tables(tables, promote_options="permissive")
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows; it needs one per member and non-member.")
    for name in table.column_names:
        if nulls := table.column(name).null_count:
            raise UserError(f"{path}: column '{name}' has {nulls} nulls; fill or drop those rows.")
    return table


def _files(path: Path) -> list[Path]:
    """The file itself, or all Parquet files below the folder except hidden ones, sorted."""
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UserError(f"{path} does not exist or is not a file. Give a Parquet file of a model's outputs.")
        files = sorted(
            file
            for file in path.rglob("*.parquet")
            if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        )
    except (OSError, ValueError) as error:  # the name is not a valid path, or the folder cannot be read
        raise UserError(f"{path} cannot be read: {sentence(error)} Give a Parquet file of a model's outputs.") from None
    if not files:
        raise UserError(f"{path} is a folder without *.parquet files. Give a Parquet file of a model's outputs.")
    return files


def _columns_in_path(path: Path) -> dict[str, str | None]:
    """The columns that folder names such as `is_member=true` set for all rows of a file."""
    pairs = [part.split("=", 1) for part in path.parent.parts if "=" in part]
    return {unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for name, value in pairs}


def _scalar(name: str, text: str | None) -> pa.Scalar:
    """A value from a folder's name: text, except for a label written as a whole number."""
    if name == "label" and text is not None and re.fullmatch(r"-?[0-9]{1,18}", text):
        return pa.scalar(int(text), pa.int64())
    return pa.scalar(text, pa.string())


def _pandas_ranges(schema: pa.Schema) -> dict[str, range]:
    """Indexes of evenly spaced numbers. pandas writes these as start, stop and step, not as a column."""
    try:
        return {
            index["name"]: range(index["start"], index["stop"], index["step"])
            for index in json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
            if isinstance(index, dict) and index["kind"] == "range" and isinstance(index["name"], str)
        }
    except (KeyError, TypeError, ValueError):  # not written by pandas
        return {}


def _value_columns(names: Sequence[str], path: Path) -> _Values:
    per_class: dict[bool, dict[int, list[str]]] = {False: {}, True: {}}
    for name in dict.fromkeys(names):
        match = _ONE_PER_CLASS.fullmatch(name)
        if match:
            per_class[match[1] is None].setdefault(int(match[2]), []).append(name)
    lists = [name for name in ("logits", "probabilities") if name in names]
    given = [_Values(columns=(name,), is_probability=name != "logits") for name in lists]
    for is_probability, columns in per_class.items():
        if not columns:
            continue
        twice = [several for several in columns.values() if len(several) > 1]
        if twice:
            raise UserError(f"{path} has several columns for one class: {', '.join(twice[0])}. Drop all but one.")
        missing = sorted(set(range(max(columns) + 1)) - set(columns)) if max(columns) < len(names) else [0]
        if missing or sorted(columns) != list(range(len(columns))):
            raise UserError(
                f"{path} has {_listed([columns[number][0] for number in sorted(columns)])}, but no such column for class "
                f"{missing[0]}. There must be one for each class from 0. A binary model's one value goes into a column "
                f"'{'probabilities' if is_probability else 'logits'}'."
            )
        in_order = tuple(columns[number][0] for number in range(len(columns)))
        given.append(_Values(columns=in_order, is_probability=is_probability))
    missing_names = [name for name in ("example_id", "is_member", "label") if name not in names]
    if missing_names or not given:
        raise UserError(
            f"{path} lacks {', '.join([*missing_names, *([] if given else ['logits or probabilities'])])}; it has "
            f"{_listed(names)}. {_NEEDED}"
        )
    values = min(given, key=lambda each: each.is_probability)
    several = [each for each in given if each.is_probability == values.is_probability]
    if len(several) > 1:
        raise UserError(f"{path} has {' and '.join(each.name for each in several)}. Drop one of them.")
    counts = Counter(names)
    for name in ("example_id", "is_member", "label", *values.columns):
        if counts[name] > 1:
            raise UserError(f"{path} has {counts[name]} columns called '{name}'. Drop all but one.")
    return values


def _is_probability_name(name: str) -> bool:
    match = _ONE_PER_CLASS.fullmatch(name)
    return name == "probabilities" or (match is not None and match[1] is None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES]) or "no columns"
    return shown if len(names) <= _MOST_NAMES else f"{shown}, … ({len(names)} columns)"


def _matrix(columns: Sequence[pa.ChunkedArray], where: str) -> FloatArray:
    """The values as floats, of shape (n, values per row)."""
    if len(columns) > 1:
        return np.column_stack([_floats(_plain(column), where) for column in columns])
    column = _plain(columns[0])
    kind = column.type
    if not _is_list(kind):
        return _floats(column, where)[:, None]
    lengths = np.unique(pc.list_value_length(column).to_numpy(zero_copy_only=False))
    if len(lengths) != 1 or lengths[0] < 1:
        raise UserError(
            f"{where} has rows of {', '.join(map(str, lengths[:5]))} values; each row needs the same number, one per class."
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise UserError(f"{where} has nulls inside its lists; every class needs a number.")
    return _floats(flat, where, kind).reshape(-1, int(lengths[0]))


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array without Arrow's extension types (a tensor becomes a list) and dictionaries."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    return array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _floats(array: pa.Array, where: str, kind: pa.DataType | None = None) -> npt.NDArray[np.floating[Any]]:
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise UserError(
            f"{where}: the type is {kind or array.type}; it must be a number, or a list of numbers with one per class."
        )
    values = array.to_numpy(zero_copy_only=False)
    return np.asarray(values if values.dtype.kind == "f" else values.astype(np.float64))


def _check_finite(values: FloatArray, where: str, is_probability: bool) -> None:
    bad = np.flatnonzero((~np.isfinite(values) if is_probability else np.isnan(values) | np.isposinf(values)).any(1))
    if len(bad):
        allowed = "" if is_probability else " (a logit of −∞ is fine: that class is ruled out)"
        raise UserError(
            f"{where} has NaN or infinity in {len(bad)} rows, the first is row {bad[0]}{allowed}. Drop those rows, or "
            "find out why the model outputs them; a score of NaN cannot be ranked."
        )


def _both_classes(values: FloatArray, is_probability: bool) -> tuple[FloatArray, str]:
    """Turn a binary model's single value (n, 1) into values of class 0 and class 1 (n, 2)."""
    exact = values.astype(np.float64)
    if is_probability:
        return np.column_stack(
            (1 - exact, exact)
        ), "each row's single probability p is read as the probabilities (1 − p, p) of two classes"
    return np.column_stack(
        (np.zeros(len(exact)), exact)
    ), "each row's single logit z is read as the logits (0, z) of two classes"


def _whole_numbers(column: pa.ChunkedArray, where: str) -> IntArray:
    array = _plain(column)
    is_number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type)
    try:
        if is_number or pa.types.is_boolean(array.type):
            return np.asarray(array.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
    except pa.ArrowInvalid:
        pass  # 0.5, NaN, or 2**63
    raise UserError(f"{where} is of type {array.type}; its values must be whole numbers, the classes from 0.")


def numbered(column: pa.ChunkedArray) -> tuple[IntArray, Names]:
    """Integer ids unchanged; ids of other types are numbered in order of first appearance, equal ids alike."""
    array = _plain(column)
    if pa.types.is_integer(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64), None
    try:
        encoded = array.dictionary_encode()
        return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64), encoded.dictionary
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists, structs: each row gets its own id
        return np.arange(len(array), dtype=np.int64), array


def membership_of(column: pa.ChunkedArray, where: str) -> BoolArray:
    """Whether each record was a member, from booleans, numbers or words.

    Raises:
        UserError: a value is something else.
    """
    array = _plain(column)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        meaning = {"true": 1, "false": 0, "1": 1, "0": 0}
        values = np.array([meaning.get(text.lower(), -1) for text in array.to_pylist()])
    elif pa.types.is_boolean(array.type) or pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        values = np.asarray(array.to_numpy(zero_copy_only=False))
    else:
        values = np.array([-1])
    bad = np.flatnonzero(~np.isin(values, (0, 1)))
    if len(bad):
        raise UserError(
            f"{where}: 'is_member' is of type {array.type}, with {printable(repr(array[int(bad[0])].as_py()), 80)} in row "
            f"{bad[0]}; it must be true or false (or 1 or 0) in every row."
        )
    return values.astype(np.bool_)
