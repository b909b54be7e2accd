"""The numbers that Lin et al. (2020) published, and their conclusion from each table.

Lin, Bao, Li, Si & Chu 2020, "Differential privacy protection over deep learning: An investigation of its impacted factors",
Computers & Security 99. Our copy lacks the tables, so `published.csv` has only the numbers in the running text.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

CITATION = (
    "Lin, Bao, Li, Si & Chu (2020), “Differential privacy protection over deep learning: An investigation of its "
    "impacted factors”"
)
SWEEP = "lin2020"
DATASETS = ("mnist", "cifar10", "svhn")
MODELS = {"lin_cnn": "cnn", "lin_lstm": "lstm"}
"""The architecture of each of the paper's two models."""
OPTIMIZERS = ("sgd", "adam")

FIGURE_SETTINGS = {"mnist": (0.5, 1.4), "cifar10": (0.1, 0.8), "svhn": (0.1, 1.4)}
"""Noise and clip norm of Figures 1–3, all with the CNN and Adam."""

ADAPTIVE_CLIPS = (0.04, 1.4)
"""The fixed clip norms that Section 5.3 compares with quantile clipping."""

LADDER = ("mnist", "lin_cnn", "adam", 0.5)
"""Dataset, model, optimizer and noise of Table 12. The paper does not name the model; Table 6 has the CNN."""

ACCURACY_FALLS_BEYOND = 10.0
"""The clip norm after which the paper saw accuracy fall rapidly (Section 7)."""

QUANTILE_IN_WORDS = (
    "The paper’s two rows of quantile clipping have 20.57 % at TPVD 1.9679 and 19.31 % at 2.2126. The surviving text "
    "does not say which is flat and which per layer."
)

MARGIN_IN_WORDS = {
    "accuracy": "less than the smallest average gain in the paper’s abstract, 3 points",
    "train_accuracy": "less than the smallest average gain in the paper’s abstract, 3 points",
    "loss": "a factor of 1.05 in the probability of the true class",
}
"""Reasons for the margins within which a factor does not matter."""

NORMAL_EXCEPTIONS = {"accuracy": ("cifar10",), "loss": ("cifar10", "svhn")}
"""The datasets for which the paper’s own tests did not reject that accuracy, or loss, is normally distributed (Section 6.1)."""

TPVD_IN_WORDS = (
    "The paper’s TPVD of 1.5 to 2.3 suggests that its model without noise was initialized anew: two independent "
    "initializations are about 1.41 apart, while twins that share one stay below 1. Most of such a TPVD then comes "
    "from the initialization, whatever the mechanism does. TPVD is therefore given here against both: the twin of the same "
    "seed, and the undefended model of another seed."
)
ACCURACY_IN_WORDS = (
    "The paper does not say whether its accuracies are on test or training examples (“the training accuracy can be as "
    "high as 97 %”, Section 5.1). Its numbers are shown beside both, and claims are judged on both."
)
RATE_IN_WORDS = (
    "With SGD, AC’s loss of accuracy comes mostly from sharing one learning rate: AC shortens every step by a factor of "
    "about noise × √parameters, which Adam compensates and SGD does not. On some 2,000 examples of MNIST, at noise 0.1, clip "
    "norm 0.8 and one seed, the best of four rates gave CA .939 (at rate 10), and the best of two gave AC .954 (at rate 30). "
    "With one rate of 0.1 for both, AC is 26 to 37 points worse."
)
"""From a separate check, independent of the results in a report."""

_TRAINING = (
    "The paper concluded: noise first and clipping second (AC) is more accurate, and reaches a lower loss, than "
    "clipping first (CA) on every dataset."
)
CONCLUSIONS = {
    "lin_table3": _TRAINING,
    "lin_table4": _TRAINING,
    "lin_table5": _TRAINING,
    "lin_table6": "The paper concluded: AC is more accurate than CA and distorts the weights less; TPVD grows with the "
    "clip norm.",
    "lin_table7": "The paper concluded: at clip norm 0.04, AC is far more accurate than quantile clipping, at a smaller "
    "TPVD; the two get closer as the clip norm grows.",
    "lin_table8": "The paper concluded: accuracy is not normally distributed, except on CIFAR-10.",
    "lin_table9": "The paper concluded: convergence is not normally distributed, except on CIFAR-10 and SVHN.",
    "lin_table10": "The paper concluded: of the six factors, only dataset and sequence matter for accuracy.",
    "lin_table11": "The paper concluded: of the six factors, only dataset and noise matter for convergence.",
    "lin_table12": "The paper concluded: TPVD grows with the clip norm under both sequences; AC stays more accurate; "
    "beyond a clip norm of 10, accuracy falls rapidly under both.",
    "lin_convergence": "The paper concluded: AC converges faster than CA. It names no epoch and no level.",
    "lin_gains": "The paper’s abstract has one average per dataset and model, for accuracy and for loss.",
    "lin_tpvd_leakage": "The paper took TPVD as its metric of privacy, larger being better, and ran no attack.",
}
"""What the paper concluded from each table, in our words."""


@cache
def _numbers() -> dict[tuple[str, ...], float]:
    text = files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        value = float(row["value"]) / (100 if row["quantity"] == "accuracy" else 1)
        key = tuple(row[name] for name in ("dataset", "model", "optimizer", "noise", "clip", "sequence", "quantity"))
        found[key] = value
    return found


def number(
    dataset: str, model: str, optimizer: str, noise: float | None, clip: float | None, sequence: str, quantity: str
) -> float | None:
    """The paper's accuracy (as a fraction) or TPVD, or None. `model` is our architecture's label.

    `noise` is None for the numbers of Section 5.3, which states no noise. They belong to Table 7 alone.
    """
    levels = ["" if level is None else f"{level:g}" for level in (noise, clip)]
    return _numbers().get((dataset, MODELS.get(model, ""), optimizer, *levels, sequence, quantity))


def gain(dataset: str, model: str, quantity: str) -> float | None:
    """The abstract's average of AC against CA in percent: `accuracy_gain` or `loss_reduction`."""
    return _numbers().get((dataset, MODELS.get(model, ""), "", "", "", "AC against CA", quantity))
