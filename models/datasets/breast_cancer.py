"""scikit-learn's bundled breast cancer data: a real table that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from models.datasets._tables import TableDataset, part_of, standardized
from models.datasets.base import DatasetInfo, RawPart


@dataclass(frozen=True, kw_only=True)
class BreastCancer(TableDataset):
    """Breast cancer: 569 tumors, 30 measurements each, malignant (0) or benign (1), bundled with scikit-learn.

    There is no official test set, so a fixed seed draws one of 143, stratified by class. Features are standardized by the
    test set's means and standard deviations.
    """

    source: ClassVar[str] = "Street, Wolberg & Mangasarian 1993, UCI; bundled with scikit-learn"
    published: ClassVar[DatasetInfo | None] = DatasetInfo(n_train=426, n_test=143, shape=(30,), num_classes=2)

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        rows, labels = load_breast_cancer(return_X_y=True)
        train, test, train_labels, test_labels = train_test_split(
            rows, labels.astype("int64"), test_size=143, random_state=0, stratify=labels
        )
        train, test = standardized(train, test)
        return part_of(train, train_labels), part_of(test, test_labels)
