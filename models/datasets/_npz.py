"""Base class of tables of zeros and ones that the field passes around as .npz files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from models.datasets._tables import TableDataset, drawn_test
from models.datasets.base import DatasetError, DatasetInfo, IntArray, RawPart, not_found

_TEST_FRACTION = 0.2
_REMEDY = "Save both with numpy.savez_compressed(path, features=…, labels=…)."


@dataclass(frozen=True, kw_only=True)
class NpzDataset(TableDataset):
    """Base of the datasets in `<name>.npz` in the data folder, with arrays `features` (n, features) and `labels`.

    Features are zeros and ones and are taken as they are. Labels are numbers from 0 or from 1, or rows with a single one. There is no
    official test set, so a fixed seed draws a fifth of each class.
    """

    published: ClassVar[DatasetInfo]

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        path = data_dir / f"{self.name}.npz"
        features, labels = _arrays(path, self.name)
        count = self.published.n_train + self.published.n_test
        size = (count, *self.published.shape)
        if features.shape != size:
            raise DatasetError(
                f"{path.absolute()} has `features` of shape {features.shape}; '{self.name}' has {size}. Get the complete "
                "file, or convert other data to CSV or Parquet for the dataset `table`."
            )
        rows = _bits(features, path)
        classes = _classes(labels, count, self.published.num_classes, path)
        is_test = drawn_test(classes, _TEST_FRACTION)
        return _part(rows, classes, np.flatnonzero(~is_test)), _part(rows, classes, np.flatnonzero(is_test))


def _part(rows: npt.NDArray[np.uint8], labels: IntArray, chosen: IntArray) -> RawPart:
    """Rows become floats only when they are read, because floats take four times the memory."""
    return RawPart(labels=labels[chosen], read=lambda index: rows[chosen[index]].astype(np.float32))


def _arrays(path: Path, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if not path.is_file():
        raise not_found(name, path, "Put the file there, or name the folder that holds it with --data DIR.")
    arrays: list[npt.NDArray[Any]] = []
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)  # never a pickle, which could run any code
            names = file.files if isinstance(file, np.lib.npyio.NpzFile) else []
            if {"features", "labels"} <= set(names):
                arrays = [file["features"], file["labels"]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path.absolute()} cannot be read as arrays of numbers: {str(error).rstrip('.')}. Python objects are never "
            f"unpickled. {_REMEDY}"
        ) from error
    if not arrays:
        raise DatasetError(
            f"{path.absolute()} needs the arrays `features` and `labels`; it has {', '.join(names) or 'no names'}. {_REMEDY}"
        )
    return arrays[0], arrays[1]


def _bits(features: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    if features.dtype.kind in "biuf":
        with np.errstate(invalid="ignore"):  # NaN, which differs from any number below
            bits = features.astype(np.uint8)
        if bits.max() <= 1 and (features.dtype == np.uint8 or np.array_equal(bits, features)):
            return bits
    raise DatasetError(f"{path.absolute()} has `features` other than 0 and 1, of type {features.dtype}.")


def _classes(labels: npt.NDArray[Any], count: int, num_classes: int, path: Path) -> IntArray:
    """Labels (n,) from 0."""
    if labels.dtype.kind in "biuf":
        if labels.shape == (count, num_classes):
            if ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
                classes: IntArray = labels.argmax(axis=1)
                return classes
        elif labels.shape in ((count,), (count, 1)):
            found = np.unique(labels)
            for first in (0, 1):
                if np.isin(found, np.arange(first, first + num_classes)).all():
                    numbers: IntArray = labels.reshape(-1).astype(np.int64)
                    return numbers - first
    raise DatasetError(
        f"{path.absolute()} has `labels` of type {labels.dtype} and shape {labels.shape} that are neither {count} class numbers "
        f"from 0 to {num_classes - 1} or from 1 to {num_classes}, nor rows of {num_classes} with a single one."
    )
