"""A user's own table, as CSV or Parquet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.datasets._columns import categories_of, names_of, numbers_of, read
from models.datasets._tables import RowArray, TableDataset, drawn_test, part_of, statistics
from models.datasets.base import DatasetError, DatasetInfo, IntArray, RawPart, inside, kept, refuse_one_class

_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_MOST_LEVELS = 1000
_MOST_SHOWN = 5

Level = str | int | float | bool
_Value = TypeVar("_Value")


class _Columns(dict[str, _Value]):
    """Column names with what is said of each. Unlike a dictionary it can be hashed, as datasets must."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclass(frozen=True, kw_only=True)
class Table(TableDataset):
    """A table of your own, CSV or Parquet: `path` below the data folder, and the column of the `label`.

    - `features`: the columns to learn from; null for all but the label and those that `drop` names.
    - `categorical`: columns to encode one-hot, as a list, or as a mapping from column to declared levels. Levels that are not
      declared (null) are those found in both parts, in order of their text.
    - `test_path`: a file with the test part. Or `test_fraction`: the share of each class that a fixed seed draws for it.
    - `missing`: refuse missing values (in CSV: nothing, NA, N/A, NaN, nan, NULL, null), or show them to the model by an
      `indicator`. A missing number then becomes the mean, with a column that is 1 where the number is missing; a missing category
      is a level of its own.
    - `standardize`: public means and standard deviations, column: [mean, std]. All other numbers are standardized by the test
      part, whose rows no target is trained on.

    Labels are of any type. Classes are those that occur in either part, numbered from 0 in ascending order, of numbers if all are
    whole numbers and of text otherwise. Values of a CSV file lose outer blanks; it has a header and commas, in UTF-8. The content
    of the file is not in the dataset's identity: each record holds a hash of the examples.
    """

    path: str
    label: str
    features: tuple[str, ...] | None = None
    categorical: tuple[str, ...] | Mapping[str, tuple[Level, ...] | None] = ()
    drop: tuple[str, ...] = ()
    test_path: str | None = None
    test_fraction: float | None = None
    missing: Literal["refuse", "indicator"] = "refuse"
    standardize: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    source: ClassVar[str] = "your own file"

    def __post_init__(self) -> None:
        super().__post_init__()
        # One spelling of equal tables: a list of columns is a mapping to no levels, and levels are text.
        given = self.categorical if isinstance(self.categorical, Mapping) else dict.fromkeys(self.categorical)
        levels = {
            name: None if values is None else tuple(pa.scalar(value).cast(pa.string()).as_py() for value in values)
            for name, values in given.items()
        }
        if len(given) != len(self.categorical):
            _refuse_twice("categorical", self.categorical)
        object.__setattr__(self, "categorical", _Columns(levels))
        object.__setattr__(self, "standardize", _Columns(self.standardize))
        self._check_paths()
        self._check_columns()
        for name, values in levels.items():
            if values is not None and not values:
                raise ValueError(f"categorical.{name} has no levels; list them, or give null for those that are found")
            _refuse_twice(f"categorical.{name}", values or ())
        for name, (mean, std) in self.standardize.items():
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise ValueError(
                    f"standardize.{name} is [{mean}, {std}]; give a finite mean, and a finite standard deviation above 0"
                )

    def _check_paths(self) -> None:
        for name, path in (("path", self.path), ("test_path", self.test_path)):
            if path is not None:
                inside(Path(), path, name)
                if not path.endswith(_SUFFIXES):
                    raise ValueError(f"{name} is {path!r}; it must end in {', '.join(_SUFFIXES)}")
        if (self.test_path is None) == (self.test_fraction is None):
            raise ValueError("give exactly one of test_path and test_fraction")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}; it must be above 0 and below 1")

    def _check_columns(self) -> None:
        if self.features is not None:
            if not self.features:
                raise ValueError("features is an empty list; name a column, or give null for all")
            if self.drop:
                raise ValueError("drop leaves columns out of all of them, and features names some; give one of the two")
            _refuse_twice("features", self.features)
        _refuse_twice("drop", self.drop)
        used = {"features": self.features or (), "categorical": self.categorical, "standardize": self.standardize}
        for name, columns in (used | {"drop": self.drop}).items():
            if self.label in columns:
                raise ValueError(f"{name} names {self.label!r}, which is the label; leave it out there")
        for name in ("categorical", "standardize"):
            for column in used[name]:
                if column in self.drop or (self.features is not None and column not in self.features):
                    raise ValueError(f"{name} names {column!r}, which is no feature; leave it out in one of the places")
        for column in self.standardize:
            if column in self.categorical:
                raise ValueError(
                    f"standardize names {column!r}, which is categorical; leave it out in one of the places"
                )

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        train, test, _ = self._parts(data_dir)
        return train, test

    def raw_info(self, data_dir: Path) -> DatasetInfo:
        train, test, notes = self._parts(data_dir)
        labels = train.labels[kept(len(train.labels), self.max_train_examples, self.subset_seed)]
        refuse_one_class(labels, len(train.labels), self.name)
        return replace(self.info_of(train, test), notes=notes)

    def _parts(self, data_dir: Path) -> tuple[RawPart, RawPart, tuple[str, ...]]:
        """The training and the test part, and notes for users."""
        paths = [data_dir / path for path in (self.path, self.test_path) if path is not None]
        headers = [names_of(path, self.name) for path in paths]
        features = self._features(paths, headers)
        text = [self.label, *self.categorical]
        tables = [read(path, [self.label, *features], text) for path in paths]
        where = " and ".join(str(path.absolute()) for path in paths)
        columns = {name: [table.column(name) for table in tables] for name in (self.label, *features)}
        numbers = {name: numbers_of(columns[name]) for name in features if name not in self.categorical}
        _refuse_text({name: columns[name] for name, values in numbers.items() if values is None}, where)
        categories = {name: categories_of(name, columns[name], where) for name in features if name in self.categorical}
        labels = _classes(self.label, *categories_of(self.label, columns[self.label], where), where)
        is_test = np.repeat([False, True], [tables[0].num_rows, tables[-1].num_rows])
        if self.test_fraction is not None:
            is_test = drawn_test(labels, self.test_fraction)
            if is_test.all() or not is_test.any():
                raise DatasetError(
                    f"{where}: test_fraction {self.test_fraction} of {len(labels)} rows leaves one of the parts empty. Give "
                    "another fraction, or more rows."
                )
        rows, notes = self._encoded(features, numbers, categories, is_test, where)
        only_in_test = np.setdiff1d(labels[is_test], labels[~is_test])
        if len(only_in_test):
            notes.append(f"{len(only_in_test)} of {labels.max() + 1} classes occur in the test part alone")
        train, test = (part_of(rows[chosen], labels[chosen]) for chosen in (~is_test, is_test))
        return train, test, tuple(notes)

    def _features(self, paths: Sequence[Path], headers: Sequence[Sequence[str]]) -> list[str]:
        """The features, in the order of `features` or of the file."""
        fields = {"label": (self.label,), "features": self.features or (), "drop": self.drop}
        fields |= {"categorical": tuple(self.categorical), "standardize": tuple(self.standardize)}
        for name, columns in fields.items():
            _refuse_absent(columns, paths[0], headers[0], f"{name} names")
        features = list(self.features or (each for each in headers[0] if each not in (self.label, *self.drop)))
        if not features:
            raise DatasetError(f"{paths[0].absolute()} has no column beside the label and those dropped. Drop fewer.")
        if "" in features:
            raise DatasetError(
                f"{paths[0].absolute()} has a column without a name, such as an index that pandas wrote. Name it, or write "
                "drop: ['']."
            )
        _refuse_absent((self.label, *features), paths[-1], headers[-1], "the training part has")
        return features

    def _encoded(
        self,
        features: Sequence[str],
        numbers: Mapping[str, Any],
        categories: Mapping[str, tuple[list[str], IntArray]],
        is_test: npt.NDArray[np.bool_],
        where: str,
    ) -> tuple[RowArray, list[str]]:
        """All rows, (n, width), with the columns of each feature in their order; and notes."""
        gaps = {name: np.isnan(values) for name, values in numbers.items()}
        gaps |= {name: codes < 0 for name, (_, codes) in categories.items()}
        counts = {name: int(gaps[name].sum()) for name in features if gaps[name].any()}
        if counts and self.missing == "refuse":
            raise DatasetError(
                f"{where}: values are missing in {_listed(counts.items())}. Fill them in, drop the columns, or set missing: "
                "indicator."
            )
        blocks: list[RowArray] = []
        for name in features:
            if name in numbers:
                blocks.append(self._standardized(name, numbers[name], is_test, where)[:, None])
                if name in counts:
                    blocks.append(gaps[name].astype(np.float32)[:, None])
            else:
                blocks.append(self._one_hot(name, *categories[name], where))
        notes = []
        found = {name: len(levels) for name, (levels, _) in categories.items() if self._declared(name) is None}
        if found:
            notes.append(
                f"levels of {_listed(found.items())} are those found in the data, members included, and are taken as public; "
                "declare them in `categorical` if they are not"
            )
        if counts:
            notes.append(
                f"values are missing in {_listed(counts.items())}; that these columns have gaps is taken as public"
            )
        return np.concatenate(blocks, axis=1), notes

    def _declared(self, name: str) -> tuple[Level, ...] | None:
        assert isinstance(self.categorical, Mapping)
        return self.categorical[name]

    def _standardized(
        self, name: str, values: npt.NDArray[np.float64], is_test: npt.NDArray[np.bool_], where: str
    ) -> RowArray:
        """The numbers less the mean, over the standard deviation; 0 where they are missing."""
        test = values[is_test]
        if name not in self.standardize and np.isnan(test).all():
            raise DatasetError(
                f"{where}: '{name}' is missing in the whole test part, so it has no mean there. Give its mean and standard "
                "deviation in `standardize`, or drop it."
            )
        # A value that is too large for the numbers of a model is refused below, with its column's name.
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = self.standardize.get(name) or statistics(test)
            ready = ((values - mean) / std).astype(np.float32)
        # An infinite deviation would make all rows 0.
        if not (np.isfinite(std) and np.isfinite(ready[~np.isnan(values)]).all()):
            raise DatasetError(
                f"{where}: '{name}' has infinite or far too large values and cannot be standardized. Correct them, or drop the "
                "column."
            )
        return np.where(np.isnan(values), np.float32(0), ready)

    def _one_hot(self, name: str, found: list[str], codes: IntArray, where: str) -> RowArray:
        """One column for each level, and a last one for missing values if there are any."""
        declared = self._declared(name)
        if declared is None:
            _refuse_ids(name, found, len(codes), where)
            levels = found
        else:
            levels = [str(level) for level in declared]
            unknown = [level for level in found if level not in set(levels)]
            if unknown:
                raise DatasetError(
                    f"{where}: '{name}' has levels that are not declared: {_shown(unknown)}. Declared are {_shown(levels)}. Add "
                    "them to `categorical`, or correct the rows."
                )
            positions = np.array([levels.index(level) for level in found] or [0])
            codes = np.where(codes < 0, -1, positions[codes])
        width = len(levels) + int((codes < 0).any())
        encoded: RowArray = np.eye(width, dtype=np.float32)[codes]  # a missing value's −1 is the last row
        return encoded


def _refuse_twice(name: str, values: Iterable[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{name} names {twice[0]!r} twice; name it once")


def _refuse_absent(names: Iterable[str], path: Path, header: Sequence[str], who: str) -> None:
    absent = [name for name in names if name not in header]
    if absent:
        raise DatasetError(f"{path.absolute()} has no column {_quoted(absent)}, which {who}. It has {_quoted(header)}.")


def _refuse_text(columns: Mapping[str, list[pa.ChunkedArray]], where: str) -> None:
    """Refuse features that hold no numbers and are not declared categorical."""
    if columns:
        found = []
        for name, parts in columns.items():
            levels, _ = categories_of(name, parts, where)
            found.append(f"{name} ({len(levels):,} values, such as {_shown(levels[:2])})")
        raise DatasetError(
            f"{where}: these columns hold other values than numbers: {', '.join(found)}. List those with few values in "
            "`categorical`, and the others, such as names and dates, in `drop`."
        )


def _refuse_ids(name: str, levels: Sequence[str], n_rows: int, where: str) -> None:
    """Refuse a column with nearly as many values as rows, or with too many to encode."""
    if len(levels) > min(_MOST_LEVELS, max(20, n_rows // 2)):
        raise DatasetError(
            f"{where}: '{name}' has {len(levels):,} different values in {n_rows:,} rows, such as {_shown(levels[:2])}; it looks like "
            "an id or a measurement, not like a category. Drop it, or merge its values into fewer."
        )


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _shown(levels: Sequence[str]) -> str:
    return _quoted(levels[:_MOST_SHOWN]) + (", …" if len(levels) > _MOST_SHOWN else "")


def _classes(name: str, levels: list[str], codes: IntArray, where: str) -> IntArray:
    """Labels as numbers from 0, in ascending order of the values."""
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise DatasetError(
            f"{where}: the label '{name}' is missing in {n_missing} rows. Fill it in, or remove the rows."
        )
    keys: list[Any] = _whole_numbers(name, levels, where) or levels
    classes = sorted(set(keys))
    if len(classes) < 2:
        raise DatasetError(
            f"{where}: the label '{name}' is {classes[0]!r} in all rows. Give rows of two classes or more."
        )
    _refuse_ids(name, levels, len(codes), where)
    position = {each: number for number, each in enumerate(classes)}
    return np.array([position[key] for key in keys], dtype=np.int64)[codes]


def _whole_numbers(name: str, levels: list[str], where: str) -> list[int] | None:
    """The levels as numbers; None if any is none.

    Raises:
        DatasetError: all are numbers, but not whole.
    """
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    fractions = [level for level, number in zip(levels, numbers, strict=True) if not number.is_integer()]
    if fractions:
        raise DatasetError(
            f"{where}: the label '{name}' has values that are not whole, such as {_shown(fractions[:2])}; a label is a class. Give "
            "each range of values a class."
        )
    # Floats would merge whole numbers above 2**53.
    return [int(level) if level.lstrip("+-").isdecimal() else int(float(level)) for level in levels]
