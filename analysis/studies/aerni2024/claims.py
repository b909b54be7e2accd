"""What Aerni et al. (2024) claimed, and what they contest, judged by the numbers of these results."""

from __future__ import annotations

import math

from analysis import naming
from analysis.claims import Claim, Vote, decide
from analysis.statistics.estimates import Bounds
from analysis.studies.aerni2024 import numbers
from analysis.studies.aerni2024.cells import Arm, Protocol, ratio
from analysis.tables.text import number

_MORE: Bounds = (1.0, math.inf)
_SEVERAL: Bounds = (2.0, math.inf)
_AS_LITTLE: Bounds = (0.0, 1.5)
"""A leak that counts as the same as DP's: at most half more."""
MASKING = ("hamp", "memguard")


def judge(found: Protocol) -> list[Claim]:
    """The claims that these results bear on."""
    arms = [arm for dataset in found.datasets for arm in found.of(dataset)]
    heuristics = [arm for arm in arms if not arm.is_private and arm.defense in numbers.HEURISTICS]
    return [
        decide(
            "A heuristic defense leaks at least twice what DP-SGD of at least its accuracy leaks.",
            [_against_private(found, arm, _SEVERAL) for arm in heuristics],
        ),
        decide(
            "An evaluation by an attack that adapts to nothing, on clean canaries, understates what a defense leaks.",
            [_understated(found, arm) for arm in heuristics],
        ),
        decide(
            "Against defenses that mask answers, an attack by labels alone finds more than LiRA on the answers.",
            [_label_only(found, arm) for arm in arms if arm.defense in MASKING],
        ),
        decide(
            "Regularization protects like differential privacy (Lomurno & Matteucci 2022; here: it leaks at most 1.5 times what "
            "DP-SGD of at least its accuracy leaks).",
            [_against_private(found, arm, _AS_LITTLE) for arm in arms if arm.defense in numbers.REGULARIZATION],
        ),
    ]


def _named(arm: Arm) -> str:
    return f"{naming.display(arm.dataset)}, {naming.display(arm.defense)}"


def _against_private(found: Protocol, arm: Arm, claimed: Bounds) -> Vote:
    nearest, factor = found.nearest_private(arm), found.factor(arm)
    if nearest is None:
        accuracy = arm.accuracy
        reached = "" if accuracy is None else f" of at least {number(accuracy.mean, 3)}"
        return Vote(words=f"{_named(arm)}: no DP arm has a test accuracy{reached}")
    words = f"{_named(arm)} over {naming.display(nearest.defense)}"
    if factor is None:
        return Vote(words=f"{words}: no interval")
    return Vote(judged=factor, claimed=claimed, words=words, decimals=1, unit=" times")


def _understated(found: Protocol, arm: Arm) -> Vote:
    factor = found.understated(arm)
    if factor is None:
        return Vote(words=f"{_named(arm)}: no clean canaries, or no interval")
    return Vote(judged=factor, claimed=_MORE, words=_named(arm), decimals=1, unit=" times")


def _label_only(found: Protocol, arm: Arm) -> Vote:
    by_labels, by_answers = arm.label_only, arm.from_confidences
    factor = None if by_labels is None or by_answers is None else ratio(by_labels.tpr, by_answers.tpr, found.fpr)
    if factor is None:
        return Vote(words=f"{_named(arm)}: not measured, or no interval")
    return Vote(judged=factor, claimed=_MORE, words=_named(arm), decimals=1, unit=" times")
