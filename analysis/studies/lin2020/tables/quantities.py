"""The quantities that the tables show, and notes on them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.statistics.estimates import estimate
from analysis.studies.lin2020 import numbers as lin2020
from analysis.tables.model import Column, Mean


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity of a training: its column, its name and how it is rounded."""

    key: str
    name: str
    decimals: int


TEST = Quantity(key="accuracy", name="Test accuracy", decimals=3)
TRAIN = Quantity(key="train_accuracy", name="Training accuracy", decimals=3)
LOSS = Quantity(key="loss", name="Training loss", decimals=3)
TPVD = Quantity(key="tpvd", name="TPVD", decimals=3)
OTHER_INIT = Quantity(key="tpvd_other_init", name="TPVD, other initialization", decimals=3)
AUC = Quantity(key="auc", name="Honest AUC", decimals=3)
AUDIT = Quantity(key="epsilon_lower_bound", name="Audited ε, lower bound", decimals=2)

PAPERS = {
    "accuracy": "accuracy",
    "train_accuracy": "accuracy",
    "loss": "loss",
    "tpvd": "tpvd",
    "tpvd_other_init": "tpvd",
}
"""Which of the paper's quantities is shown beside ours. The paper says neither which accuracy it reports nor which twin its
TPVD uses."""

CELL_COLUMNS = (
    Column(key="dataset", name="Dataset", kind="label"),
    Column(key="model", name="Model", kind="label"),
    Column(key="optimizer", name="Optimizer", kind="label"),
)

TPVD_IN_WORDS = (
    "TPVD is the distance of the weights from those of the same training without noise and clipping, relative to their "
    "size, averaged over the parameter tensors. It says how much the weights were changed. It is no guarantee, and "
    "its definition involves no training example. The twin shares the target’s seed, and so its initialization. “Other "
    "initialization” uses the undefended model of the next seed, with its own initialization, members and batches."
)
NOTES = (TPVD_IN_WORDS, lin2020.TPVD_IN_WORDS, lin2020.ACCURACY_IN_WORDS)


def mean_of(rows: pd.DataFrame, quantity: Quantity, paper: float | None = None) -> Mean:
    """Mean and interval over the seeds of `rows`, with the paper's number beside it."""
    return Mean(ours=estimate(rows[quantity.key]), decimals=quantity.decimals, paper=paper)
