"""Columns of a user's CSV or Parquet file: their names, their values as numbers or as categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from models.datasets.base import DatasetError, IntArray, not_found

_MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null"]
"""Values of a CSV file that say that there is none."""
_QUOTED = pc_csv.ParseOptions(newlines_in_values=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises `DatasetError` for a file that cannot be read in the body of the `with`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path.absolute()} cannot be read: {str(error).rstrip('.')}. Correct the file.") from error


def names_of(path: Path, name: str) -> list[str]:
    """The names of the columns, each of which occurs once."""
    if not path.is_file():
        raise not_found(name, path, "Name the folder that holds it with --data DIR.")
    with _readable(path):
        if path.suffix == ".parquet":
            names = list(pq.read_schema(path).names)
        else:
            names = list(pc_csv.open_csv(path, parse_options=_QUOTED).schema.names)
    twice = [each for each, count in Counter(names).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{path.absolute()} has more than one column named {', '.join(map(repr, twice))}. Rename or remove one."
        )
    return names


def read(path: Path, names: Sequence[str], text: Sequence[str]) -> pa.Table:
    """These columns of the file. Those of a CSV file become numbers if all their values are, except columns of `text`."""
    with _readable(path):
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=list(names), partitioning=None)
        else:
            # All values are read as text: a type guessed from the first rows may not fit the last ones.
            options = pc_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=list(names), null_values=[]
            )
            table = pc_csv.read_csv(path, parse_options=_QUOTED, convert_options=options)
            for position, name in enumerate(names):
                column = pc.utf8_trim_whitespace(table.column(name))
                column = pc.if_else(pc.is_in(column, value_set=pa.array(_MISSING)), None, column)
                table = table.set_column(position, name, column if name in text else _parsed(column))
    if not table.num_rows:
        raise DatasetError(f"{path.absolute()} has no rows. Give at least one.")
    return table


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as numbers or truth values; unchanged if any value is neither."""
    lower = pc.utf8_lower(column)
    if pc.all(pc.is_in(lower, value_set=pa.array(["true", "false", None], pa.string()))).as_py():
        return lower.cast(pa.bool_())
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return column


def numbers_of(parts: Sequence[pa.ChunkedArray]) -> npt.NDArray[np.float64] | None:
    """The values (n,), NaN if missing; None if they are of another type than numbers and truth values."""
    arrays = []
    for part in parts:
        kind = part.type
        if pa.types.is_boolean(kind):
            part = part.cast(pa.uint8())
        elif not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_null(kind)
        ):
            return None
        arrays.append(part.cast(pa.float64(), safe=False).to_numpy())
    return np.concatenate(arrays)


def categories_of(name: str, parts: Sequence[pa.ChunkedArray], where: str) -> tuple[list[str], IntArray]:
    """The values as text in ascending order, and the position (n,) of each row's value among them; −1 if it is missing."""
    chunks = []
    for part in parts:
        if pa.types.is_floating(part.type):
            part = pc.if_else(pc.is_nan(part), None, part)
        try:
            chunks += part.cast(pa.string()).chunks
        except pa.ArrowException:
            raise DatasetError(f"{where}: '{name}' is of type {part.type}, which cannot be used. Drop it.") from None
    encoded = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
    found = encoded.dictionary.to_pylist()
    levels = sorted(found)
    position = {level: number for number, level in enumerate(levels)}
    # One more entry, for the −1 of a missing value
    positions = np.array([*(position[level] for level in found), -1], dtype=np.int64)
    return levels, positions[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
