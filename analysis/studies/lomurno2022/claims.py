"""What Lomurno & Matteucci (2022) claimed, judged by the numbers of these results.

Each claim is judged on differences between targets of the same dataset and seed; `analysis.claims` has the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from analysis import naming
from analysis.claims import ABOVE_ZERO, BELOW_ZERO, Claim, Vote, decide
from analysis.measure.cost import time_ratio, time_ratios
from analysis.measure.inversion import inversion_settings, judged_changes, judged_inversion, layers, why_no_decoder
from analysis.measure.targets import (
    FRACTION_CHANGE,
    PERCENT_CHANGE,
    Measurements,
    Setting,
    against_baseline,
    average_over_datasets,
)
from analysis.statistics.estimates import Bounds, Estimate, estimate
from analysis.studies.lomurno2022 import numbers as paper
from analysis.tables.text import number

# The paper calls accuracies almost identical or mildly worse up to a loss of 0.900 − 0.879 = 0.021 (Table 1). This is a
# little more.
ACCURACY_KEPT = 0.025
TIME_FACTORS = (41.0, 50.5)  # the paper's own largest ratio is 50.1

_PRIVATE = ("dp_eps2", "dp_eps4", "dp_eps8")
_REGULARIZED = ("l2", "dropout", "l2_dropout")


def judge(measured: Measurements) -> list[Claim]:
    """The paper's claims; none without a baseline and at least one of the paper's defenses."""
    known = set(measured.frame["defense"])
    if measured.baseline not in known or not known & {*_PRIVATE, *_REGULARIZED}:
        return []
    tests: list[tuple[str, Callable[[Measurements], list[Vote]]]] = [
        ("Differential privacy costs accuracy, and a smaller ε costs more.", _accuracy_falls),
        (f"Regularization keeps accuracy (here: loses at most {ACCURACY_KEPT}).", _accuracy_kept),
        ("Differential privacy at ε = 2 slows training 41 to 50 times.", _slowdown),
        (
            "Every defense lowers the AUC of membership inference (here: of the score selected on other examples).",
            _auc_falls,
        ),
        ("On MNIST, L2 lowers that AUC more than differential privacy at any ε.", _l2_on_mnist),
        ("Inversion is easier from a cut closer to the input (baseline).", _closer_is_easier),
        ("Differential privacy lowers the reconstruction MSE at the last layers.", _dp_last_layers),
        ("L2 raises the reconstruction MSE at the prediction layer.", _l2_prediction),
    ]
    return [decide(text, test(measured)) for text, test in tests]


def _difference(
    measured: Measurements, setting: Setting, dataset: str, defense: str, reference: str, column: str
) -> Estimate | None:
    """`column` of `defense` minus that of `reference`, paired by seed."""
    paired = against_baseline(measured.at(setting, dataset), reference, column, "difference")
    return estimate(paired.loc[paired["defense"] == defense, "value"], FRACTION_CHANGE)


def _each(
    measured: Measurements,
    pairs: list[tuple[str, str]],
    column: str,
    claimed: Bounds,
    datasets: tuple[str, ...] | None = None,
) -> list[Vote]:
    votes = []
    for setting, dataset in measured.official_rows():
        if datasets is not None and dataset not in datasets:
            continue
        for defense, reference in pairs:
            if column == "auc":
                change = measured.risk_difference(setting, dataset, defense, reference)
            else:
                change = _difference(measured, setting, dataset, defense, reference, column)
            if change is None:
                continue
            pair = f"{naming.display(defense)} − {naming.display(reference)}"
            words = f"{measured.row_label(setting, dataset)}, {pair}"
            votes.append(Vote(judged=change, claimed=claimed, words=words))
    return votes


def _accuracy_falls(measured: Measurements) -> list[Vote]:
    here = [label for label in _PRIVATE if label in set(measured.frame["defense"])]
    pairs = [(label, str(measured.baseline)) for label in here]
    if len(here) > 1:
        pairs.append(
            (here[0], here[-1])
        )  # the paper's own ε = 4 and ε = 8 are out of order on CIFAR-10, so only the extremes are compared
    return _each(measured, pairs, "test_accuracy", BELOW_ZERO)


def _accuracy_kept(measured: Measurements) -> list[Vote]:
    pairs = [(label, str(measured.baseline)) for label in _REGULARIZED]
    return _each(measured, pairs, "test_accuracy", (-ACCURACY_KEPT, math.inf))


def _slowdown(measured: Measurements) -> list[Vote]:
    ratios = time_ratios(measured)
    votes = []
    for setting, dataset in measured.official_rows():
        ratio = time_ratio(ratios, setting, dataset, "dp_eps2")
        if ratio is None:
            continue
        published = paper.time_ratio(dataset, "dp_eps2")
        beside = "" if published is None else f" (paper {number(published, 1)})"
        words = f"{measured.row_label(setting, dataset)}, times the baseline{beside}"
        votes.append(Vote(judged=ratio, claimed=TIME_FACTORS, words=words, decimals=2))
    return votes


def _auc_falls(measured: Measurements) -> list[Vote]:
    pairs = [(label, str(measured.baseline)) for label in (*_PRIVATE, *_REGULARIZED)]
    return _each(measured, pairs, "auc", BELOW_ZERO)


def _l2_on_mnist(measured: Measurements) -> list[Vote]:
    return _each(measured, [("l2", label) for label in _PRIVATE], "auc", BELOW_ZERO, datasets=("mnist",))


def _closer_is_easier(measured: Measurements) -> list[Vote]:
    settings = inversion_settings(measured)
    if not settings:
        return []
    rows = judged_inversion(measured, settings[0])
    rows = rows[rows["defense"] == measured.baseline]
    names = layers(measured, settings[0])
    by_layer = rows.pivot_table(index=["dataset", "seed"], columns="layer", values="mse_test")
    works = rows.pivot_table(index=["dataset", "seed"], columns="layer", values="works", aggfunc="all")
    votes = []
    for nearer, deeper in [*pairwise(names), (names[0], names[-1])]:
        if nearer == deeper or nearer not in by_layer or deeper not in by_layer:
            continue
        words = f"{naming.display(deeper)} − {naming.display(nearer)}, MSE"
        supported = works[nearer].eq(True) | works[deeper].eq(True)
        steps = (by_layer[deeper] - by_layer[nearer])[supported].rename("value").reset_index()
        rise, _ = average_over_datasets(steps, "value")
        if rise is None:
            votes.append(Vote(words=f"{words}: {why_no_decoder(measured, settings[0])}"))
            continue
        votes.append(Vote(judged=rise, claimed=ABOVE_ZERO, words=words, decimals=4))
    return votes


def _mse_votes(measured: Measurements, labels: tuple[str, ...], names: list[str], claimed: Bounds) -> list[Vote]:
    settings = inversion_settings(measured)
    changes = judged_changes(measured, settings[0]) if settings else None
    votes: list[Vote] = []
    if changes is None:
        return votes
    present = set(measured.inversion["layer"])
    for layer in names:
        for label in labels:
            if layer not in present or label not in set(measured.inversion["defense"]):
                continue
            published = paper.number(4, layer, label)
            beside = "" if published is None else f" (paper {number(published, 1, signed=True)}\u00a0%)"
            words = f"{naming.display(layer)}, {naming.display(label)}{beside}"
            rows = changes[(changes["layer"] == layer) & (changes["defense"] == label)]
            change, _ = average_over_datasets(rows, "value", PERCENT_CHANGE)
            if change is None:
                votes.append(Vote(words=f"{words}: {why_no_decoder(measured, settings[0])}"))
                continue
            votes.append(Vote(judged=change, claimed=claimed, words=words, decimals=1, unit="\u00a0%"))
    return votes


def _dp_last_layers(measured: Measurements) -> list[Vote]:
    # The paper says "for all the final layers". Its Table 4 is below zero at these three for every ε.
    return _mse_votes(measured, _PRIVATE, ["maxpool3", "dense", "prediction"], BELOW_ZERO)


def _l2_prediction(measured: Measurements) -> list[Vote]:
    return _mse_votes(measured, ("l2",), ["prediction"], ABOVE_ZERO)
