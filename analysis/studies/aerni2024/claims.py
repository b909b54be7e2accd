"""What Aerni et al. (2024) claimed, and what they contest, judged by the numbers of these results."""

from __future__ import annotations

import math

from analysis import naming
from analysis.claims import Claim, Vote, decide
from analysis.statistics.estimates import Bounds
from analysis.studies.aerni2024 import numbers
from analysis.studies.aerni2024.cells import LABEL_ONLY, Arm, Protocol, ratio
from analysis.tables.text import number

_MORE: Bounds = (1.0, math.inf)
_SEVERAL: Bounds = (2.0, math.inf)
_AS_LITTLE: Bounds = (0.0, 1.5)
"""A leak that counts as the same as DP's: at most half more."""


def judge(found: Protocol) -> list[Claim]:
    """The claims that these results bear on. An arm that is planned but not yet attacked leaves its claims undecided."""
    arms = [arm for dataset in found.datasets for arm in found.all_of(dataset)]
    heuristics = [arm for arm in arms if arm.components and not arm.is_private]
    evaluated = [arm for arm in heuristics if arm.components & numbers.EVALUATED]
    regularized = [arm for arm in heuristics if arm.components <= numbers.REGULARIZATION]
    others = [arm for arm in heuristics if arm not in evaluated and arm not in regularized]
    masking = [arm for arm in heuristics if LABEL_ONLY in arm.adaptive]
    return [
        decide(
            "HAMP, RelaxLoss and SELENA each leak more than twice as much as equally accurate DP-SGD.",
            [_against_private(found, arm, _SEVERAL) for arm in evaluated],
        ),
        decide(
            "The other heuristic defenses, regularization aside, each leak more than twice as much as equally accurate DP-SGD.",
            [_against_private(found, arm, _SEVERAL) for arm in others],
        ),
        decide(
            "Regularization protects like differential privacy (Lomurno & Matteucci 2022): dropout, L2 and both leak at most 1.5 times "
            "as much as equally accurate DP-SGD.",
            [_against_private(found, arm, _AS_LITTLE) for arm in regularized],
        ),
        decide(
            "An evaluation by LiRA on clean canaries understates what a heuristic defense leaks.",
            [_understated(found, arm) for arm in heuristics],
        ),
        decide(
            "Against defenses that mask answers, an attack by labels alone finds more than LiRA on the answers.",
            [_label_only(found, arm) for arm in masking],
        ),
    ]


def _named(arm: Arm) -> str:
    return f"{naming.display(arm.dataset)}, {naming.display(arm.defense)}"


def _against_private(found: Protocol, arm: Arm, claimed: Bounds) -> Vote:
    accuracy, nearest, factor = arm.accuracy, found.nearest_private(arm), found.factor(arm)
    if accuracy is None:
        return Vote(words=f"{_named(arm)}: not attacked on its worst canaries")
    if nearest is None:
        return Vote(words=f"{_named(arm)}: no DP arm has about its test accuracy, {number(accuracy.mean, 3)}, or more")
    words = f"{_named(arm)} over {naming.display(nearest.defense)}"
    if factor is None:
        return Vote(words=f"{words}: no interval")
    return Vote(judged=factor, claimed=claimed, words=words, decimals=1, unit=" times")


def _understated(found: Protocol, arm: Arm) -> Vote:
    factor = found.understated(arm)
    if factor is None:
        return Vote(words=f"{_named(arm)}: not attacked on clean and on its worst canaries, or no interval")
    return Vote(judged=factor, claimed=_MORE, words=_named(arm), decimals=1, unit=" times")


def _label_only(found: Protocol, arm: Arm) -> Vote:
    by_labels, by_answers = arm.label_only, arm.from_confidences
    factor = None if by_labels is None or by_answers is None else ratio(by_labels.tpr, by_answers.tpr, found.fpr)
    if factor is None:
        return Vote(words=f"{_named(arm)}: not measured, or no interval")
    return Vote(judged=factor, claimed=_MORE, words=_named(arm), decimals=1, unit=" times")
