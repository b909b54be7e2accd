"""Base class of datasets that are tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.datasets.base import Dataset, DatasetError, DatasetInfo, IntArray, RawPart

RowArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TableDataset(Dataset):
    """Base of all datasets that are tables: rows of finite float32 features, ready for a model.

    Standardize in `open`, by constants or by statistics of the test part, never of examples that a target may be trained on:
    ε does not cover such a choice, and a model's inputs would tell of members.
    """

    def info_of(self, train: RawPart, test: RawPart) -> DatasetInfo:
        first = train.read(np.zeros(1, dtype=np.int64))
        return self._info(len(train.labels), len(test.labels), first.shape[1:], train, test)

    def combined(self, train: RawPart, test: RawPart, *indexes: IntArray) -> tuple[npt.NDArray[Any], DatasetInfo]:
        parts = [part.read(index) for part, index in zip((train, test), indexes, strict=True)]
        for part in parts:
            if part.dtype != np.float32 or part.ndim != 2 or part.shape[1:] != parts[0].shape[1:]:
                raise DatasetError(
                    f"Dataset '{self.name}' returned {part.dtype} of shape {part.shape}; rows of a table must be float32, (n, "
                    "features), of the same features in train and test."
                )
            if not np.isfinite(part).all():
                raise DatasetError(f"Dataset '{self.name}' has features that are not finite numbers.")
        info = self._info(len(parts[0]), len(parts[1]), parts[0].shape[1:], train, test)
        return np.concatenate(parts), info

    def _info(self, n_train: int, n_test: int, shape: tuple[int, ...], train: RawPart, test: RawPart) -> DatasetInfo:
        num_classes = int(max(train.labels.max(), test.labels.max())) + 1
        return DatasetInfo(n_train=n_train, n_test=n_test, shape=shape, num_classes=num_classes)


def statistics(test: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means and standard deviations of the test part's columns, without missing values; 1 for the deviation of a constant."""
    mean, std = (np.asarray(each(test, axis=0, dtype=np.float64)) for each in (np.nanmean, np.nanstd))
    # Rounding may give a constant a deviation that is not zero.
    varies = (np.nanmax(test, axis=0) > np.nanmin(test, axis=0)) & (std > 0)
    return mean, np.where(varies, std, 1.0)


def standardized(train: npt.NDArray[Any], test: npt.NDArray[Any]) -> tuple[RowArray, RowArray]:
    """Both parts (n, features) less the test part's mean, over its standard deviation; constant features are only centered."""
    mean, std = statistics(test)
    first, second = (((part - mean) / std).astype(np.float32) for part in (train, test))
    return first, second


def drawn_test(labels: IntArray, fraction: float) -> npt.NDArray[np.bool_]:
    """Which examples a fixed seed draws for the test part: `fraction` of each class, to within one example.

    The draw depends on the labels and their order alone, not on a trial's seed.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    is_test = np.zeros(len(labels), dtype=np.bool_)
    is_test[by_class] = np.diff(np.floor(np.arange(len(labels) + 1) * fraction + 0.5)) > 0
    return is_test


def part_of(rows: RowArray, labels: IntArray) -> RawPart:
    """A part whose rows are in memory."""
    return RawPart(labels=labels, read=lambda index: rows[index])
