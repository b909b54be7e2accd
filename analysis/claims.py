"""What Lomurno & Matteucci (2022) claimed, judged by the numbers of these results.

A claim is judged on differences between targets of the same dataset and seed. It held where every 95 %
interval over seeds lies on the claimed side, it did not hold where one lies on the other, and it cannot be
told otherwise, one seed included. With some thirty intervals at 95 %, one or two miss by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from analysis import naming, paper
from analysis.measurements import Measurements, Setting, against_baseline, average_over_datasets
from analysis.statistics import Estimate, estimate, sign
from analysis.table_output import estimate_text, number
from analysis.tables import estimate_in, inversion_settings, layers, mse_changes, time_ratios

Verdict = Literal["held", "did not hold", "cannot be told"]

# A little over the largest loss in the paper's Table 1 among those it calls almost identical or mildly
# worse: 0.900 − 0.879 = 0.021.
ACCURACY_KEPT = 0.025
TIME_FACTORS = (41.0, 50.5)  # the paper's own largest ratio is 50.1

_MARKS = {1: "✓", -1: "✗", 0: "?", None: "?"}
_PRIVATE = ("dp_eps2", "dp_eps4", "dp_eps8")
_REGULARIZED = ("l2", "dropout", "l2_dropout")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, the verdict, and the numbers that decide it."""

    text: str
    verdict: Verdict
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One comparison: 1 as claimed, −1 against, 0 or None undecided; with its words."""

    sign: int | None
    words: str


def judge(measured: Measurements) -> list[Claim]:
    """The paper's claims, where a baseline and at least one of the paper's defenses are in the results."""
    known = set(measured.frame["defense"])
    if measured.baseline not in known or not known & {*_PRIVATE, *_REGULARIZED}:
        return []
    tests: list[tuple[str, Callable[[Measurements], list[Vote]]]] = [
        ("Differential privacy costs accuracy, and the more the smaller ε is.", _accuracy_falls),
        (f"Regularization keeps accuracy (here: loses at most {ACCURACY_KEPT}).", _accuracy_kept),
        ("Differential privacy at ε = 2 slows training 41 to 50 times.", _slowdown),
        (
            "Every defense lowers the AUC of membership inference (here: of the score selected on other examples).",
            _auc_falls,
        ),
        ("On MNIST, L2 lowers that AUC more than differential privacy at any ε.", _l2_on_mnist),
        ("Inversion is easier the closer the cut is to the input (baseline).", _closer_is_easier),
        ("Differential privacy lowers the reconstruction MSE at the last layers.", _dp_last_layers),
        ("L2 raises the reconstruction MSE at the prediction layer.", _l2_prediction),
    ]
    return [decide(text, test(measured)) for text, test in tests]


def decide(text: str, votes: list[Vote]) -> Claim:
    """The claim with its verdict: it held where every vote is for it, and did not hold where one is against it."""
    evidence = tuple(f"{_MARKS[vote.sign]} {vote.words}" for vote in votes) or ("Not measured here.",)
    return Claim(text=text, verdict=_verdict(votes), evidence=evidence)


def _verdict(votes: list[Vote]) -> Verdict:
    if any(vote.sign == -1 for vote in votes):
        return "did not hold"
    return "held" if votes and all(vote.sign == 1 for vote in votes) else "cannot be told"


def _negated(value: int | None) -> int | None:
    return None if value is None else -value


def _difference(
    measured: Measurements, setting: Setting, dataset: str, defense: str, reference: str, column: str
) -> Estimate | None:
    """`column` of `defense` minus that of `reference`, paired by seed."""
    frame = measured.frame
    here = frame[(frame["setting"] == setting.key) & (frame["dataset"] == dataset)]
    paired = against_baseline(here, reference, column, "difference")
    return estimate(paired.loc[paired["defense"] == defense, "value"])


def _each(
    measured: Measurements,
    pairs: list[tuple[str, str]],
    column: str,
    vote: Callable[[Estimate], int | None],
    datasets: tuple[str, ...] | None = None,
) -> list[Vote]:
    votes = []
    for setting, dataset in measured.paper_rows():
        if datasets is not None and dataset not in datasets:
            continue
        for defense, reference in pairs:
            change = _difference(measured, setting, dataset, defense, reference, column)
            if change is None:
                continue
            pair = f"{naming.display(defense)} − {naming.display(reference)}"
            words = f"{measured.row_label(setting, dataset)}, {pair}: {estimate_text(change, 3, signed=True)}"
            votes.append(Vote(sign=vote(change), words=words))
    return votes


def _below_zero(change: Estimate) -> int | None:
    return _negated(sign(change))


def _accuracy_falls(measured: Measurements) -> list[Vote]:
    here = [label for label in _PRIVATE if label in set(measured.frame["defense"])]
    pairs = [(label, str(measured.baseline)) for label in here]
    if len(here) > 1:
        pairs.append((here[0], here[-1]))  # the paper's own ε = 4 and ε = 8 are out of order on CIFAR-10
    return _each(measured, pairs, "test_accuracy", _below_zero)


def _accuracy_kept(measured: Measurements) -> list[Vote]:
    pairs = [(label, str(measured.baseline)) for label in _REGULARIZED]
    return _each(measured, pairs, "test_accuracy", lambda change: sign(change, -ACCURACY_KEPT))


def _slowdown(measured: Measurements) -> list[Vote]:
    ratios = time_ratios(measured)
    votes = []
    for setting, dataset in measured.paper_rows():
        ratio = None if ratios is None else estimate_in(ratios, setting, dataset, "dp_eps2")
        if ratio is None:
            continue
        low, high = (sign(ratio, end) for end in TIME_FACTORS)
        inside = None if low is None else 1 if (low, high) == (1, -1) else -1 if low == -1 or high == 1 else 0
        published = paper.time_ratio(dataset, "dp_eps2")
        beside = "" if published is None else f" (paper {number(published, 1)})"
        times = f"{estimate_text(ratio, 2)} times the baseline"
        words = f"{measured.row_label(setting, dataset)}: {times}{beside}"
        votes.append(Vote(sign=inside, words=words))
    return votes


def _auc_falls(measured: Measurements) -> list[Vote]:
    pairs = [(label, str(measured.baseline)) for label in (*_PRIVATE, *_REGULARIZED)]
    return _each(measured, pairs, "auc", _below_zero)


def _l2_on_mnist(measured: Measurements) -> list[Vote]:
    return _each(measured, [("l2", label) for label in _PRIVATE], "auc", _below_zero, datasets=("mnist",))


def _closer_is_easier(measured: Measurements) -> list[Vote]:
    settings = inversion_settings(measured)
    if not settings:
        return []
    rows = measured.inversion[measured.inversion["setting"] == settings[0].key]
    rows = rows[rows["defense"] == measured.baseline]
    names = layers(measured, settings[0])
    by_layer = rows.pivot_table(index=["dataset", "seed"], columns="layer", values="mse_test")
    votes = []
    for nearer, deeper in [*pairwise(names), (names[0], names[-1])]:
        if nearer == deeper or nearer not in by_layer or deeper not in by_layer:
            continue
        steps = (by_layer[deeper] - by_layer[nearer]).rename("value").reset_index()
        rise, _ = average_over_datasets(steps, "value")
        if rise is None:
            continue
        pair = f"{naming.display(deeper)} − {naming.display(nearer)}"
        words = f"{pair}: MSE {estimate_text(rise, 4, signed=True)}"
        votes.append(Vote(sign=sign(rise), words=words))
    return votes


def _mse_votes(
    measured: Measurements, labels: tuple[str, ...], names: list[str], vote: Callable[[Estimate], int | None]
) -> list[Vote]:
    settings = inversion_settings(measured)
    changes = mse_changes(measured, settings[0]) if settings else None
    votes: list[Vote] = []
    if changes is None:
        return votes
    for layer in names:
        for label in labels:
            rows = changes[(changes["layer"] == layer) & (changes["defense"] == label)]
            change, _ = average_over_datasets(rows, "value")
            if change is None:
                continue
            published = paper.number(4, layer, label)
            beside = "" if published is None else f" (paper {number(published, 1, signed=True)}\u00a0%)"
            where = f"{naming.display(layer)}, {naming.display(label)}"
            words = f"{where}: {estimate_text(change, 1, signed=True)}\u00a0%{beside}"
            votes.append(Vote(sign=vote(change), words=words))
    return votes


def _dp_last_layers(measured: Measurements) -> list[Vote]:
    # "For all the final layers": the three at which the paper's Table 4 is below zero for every ε.
    return _mse_votes(measured, _PRIVATE, ["maxpool3", "dense", "prediction"], _below_zero)


def _l2_prediction(measured: Measurements) -> list[Vote]:
    return _mse_votes(measured, ("l2",), ["prediction"], sign)
