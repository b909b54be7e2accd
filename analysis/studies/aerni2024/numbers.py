"""The published numbers that ours are compared with.

Aerni, Zhang & Tramèr 2024, "Evaluations of Machine Learning Privacy Defenses are Misleading" (CCS): its main table, in percent,
for CIFAR-10 with 500 canaries and 64 models a cell.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

CITATION = "Aerni, Zhang & Tramèr (2024), “Evaluations of Machine Learning Privacy Defenses are Misleading”"
SWEEPS = ("aerni2024", "aerni2024_small")
DATASET = "cifar10"
FPR = 0.001
_HEURISTICS = (
    "l2",
    "dropout",
    "l2_dropout",
    "weight_decay",
    "label_smoothing",
    "mixup",
    "augmentation",
    "early_stopping",
    "relaxloss",
    "hamp",
    "selena",
    "memguard",
    "adversarial_regularization",
    "prediction_purification",
)
_PRIVATE = (
    "dp_paper_eps2",
    "dp_paper_eps4",
    "dp_paper_eps8",
    "dp_eps2",
    "dp_eps4",
    "dp_eps8",
    "dp_medium",
    "dp_high",
    "dp_very_high",
)
EVALUATED = frozenset(("hamp", "relaxloss", "selena"))
"""The heuristic defenses that the paper evaluates and the sweeps have."""
REGULARIZATION = frozenset(("l2", "dropout"))
"""The defenses of which, alone and together, Lomurno & Matteucci (2022) say that they protect like differential privacy."""
_OF_OTHERS = {"l2", "dropout", "l2_dropout", "dp_eps2", "dp_eps4", "dp_eps8"}
OWN_LABELS = ("undefended", *(label for label in (*_HEURISTICS, *_PRIVATE) if label not in _OF_OTHERS))
"""The labels of its sweeps that no other study has; the order of the others is theirs."""


@cache
def _numbers() -> dict[tuple[str, str], float]:
    text = files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return {(row["defense"], row["quantity"]): float(row["value"]) / 100 for row in csv.DictReader(text.splitlines())}


def published(dataset: str, defense: str, quantity: str) -> float | None:
    """The paper's `base_tpr`, `worst_tpr` (at `FPR`), `base_accuracy` or `worst_accuracy`, as a fraction; None if it has none."""
    return _numbers().get((defense, quantity)) if dataset == DATASET else None
