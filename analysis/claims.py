"""Votes on a claim, and the verdict that follows from them.

Each comparison that bears on a claim is one vote. A vote supports the claim if its 95 % interval lies on the claimed
side. The claim held if every vote supports it, so a false claim is said to hold with a probability of at most 5 %, however
many votes there are. A vote contradicts the claim if its interval, widened for the number of votes (Bonferroni), lies on
the other side. The claim did not hold if any vote contradicts it, so a true claim is said not to hold with a probability
of at most 5 %. Otherwise the verdict is "undecided".

One seed decides nothing, and neither do several seeds with the same value. A test without an interval votes by its
p-value, under the same two rules. A comparison that is merely not significant never supports a claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from analysis.statistics.estimates import CONFIDENCE, Bounds, Estimate, Ratio
from analysis.tables.text import interval_text, number

Verdict = Literal["held", "did not hold", "undecided"]

_MARKS = {1: "✓", -1: "✗", 0: "?", None: "?"}

BELOW_ZERO: Bounds = (-math.inf, 0.0)
ABOVE_ZERO: Bounds = (0.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, its verdict, and the numbers that decide it."""

    text: str
    verdict: Verdict
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One comparison in words. `sign` is 1 if it supports the claim, −1 if it contradicts it, else 0 or None.

    If `judged` is given, `decide` sets the sign from its interval: 1 if the 95 % interval lies within `claimed`, −1 if the
    widened interval lies outside. Both intervals are shown with `decimals` and `unit`.
    """

    words: str
    sign: int | None = None
    judged: Estimate | None = None
    claimed: Bounds = ABOVE_ZERO
    decimals: int = 3
    unit: str = ""


def decide(text: str, votes: list[Vote]) -> Claim:
    """The claim with its verdict: it held if every vote supports it, and did not hold if any vote contradicts it.

    To contradict, a vote's interval must lie outside even when widened so that all of the claim's intervals hold together
    with 95 % confidence (Bonferroni).
    """
    number_judged = sum(_has_interval(vote) for vote in votes)
    votes = [vote if vote.judged is None else _settled(vote, vote.judged, number_judged) for vote in votes]
    evidence = tuple(f"{_MARKS[vote.sign]} {vote.words}" for vote in votes) or ("Not measured here.",)
    return Claim(text=text, verdict=_verdict(votes), evidence=evidence)


def _has_interval(vote: Vote) -> bool:
    # An interval over the examples of one target says nothing about another training run.
    return vote.judged is not None and vote.judged.low is not None and vote.judged.over != "examples"


def _settled(vote: Vote, judged: Estimate, comparisons: int) -> Vote:
    """The vote with its sign and its intervals in words."""
    low, high = vote.claimed
    is_signed = low <= 0 and not isinstance(judged, Ratio)
    if not _has_interval(vote):
        mean = number(judged.mean, vote.decimals, signed=is_signed)
        why = "one seed" if judged.n == 1 else f"the same in all {judged.n} seeds"
        why = "too few examples" if judged.few_examples else why
        return replace(vote, sign=None, words=f"{vote.words}: {mean}{vote.unit} ({why})")
    widened = judged.at(1 - (1 - CONFIDENCE) / comparisons)
    words = f"{vote.words}: {interval_text(judged, vote.decimals, is_signed)}{vote.unit}"
    if comparisons > 1:
        words += (
            f", all {comparisons} together {interval_text(widened, vote.decimals, is_signed, mean=False)}{vote.unit}"
        )
    if _between(judged, low, high):
        return replace(vote, sign=1, words=words)
    return replace(vote, sign=-1 if _outside(widened, low, high) else 0, words=words)


def _between(judged: Estimate, low: float, high: float) -> bool:
    return judged.low is not None and judged.high is not None and low < judged.low and judged.high < high


def _outside(judged: Estimate, low: float, high: float) -> bool:
    return judged.low is not None and judged.high is not None and (judged.high < low or high < judged.low)


def _verdict(votes: list[Vote]) -> Verdict:
    if any(vote.sign == -1 for vote in votes):
        return "did not hold"
    return "held" if votes and all(vote.sign == 1 for vote in votes) else "undecided"
