"""The gate: whether one defense's numbers, with their intervals, are within the limits that its release must meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analysis.measure.targets import GUESSING
from analysis.release.facts import FPRS, Fact, Place, Seen
from analysis.statistics.estimates import CONFIDENCE, quantile
from analysis.tables.text import interval_text

Verdict = Literal["pass", "fail", "not enough evidence"]

LEAKS = ("auc", *(f"tpr@{100 * fpr:g}%" for fpr in FPRS))
GUARANTEES = ("epsilon", "epsilon_with_search")
LOWER_IS_BETTER = (*LEAKS, *GUARANTEES)
HIGHER_IS_BETTER = ("test_accuracy",)

_REVERSED_ERRORS = 4.0
"""An AUC so many standard errors below guessing is no chance."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound on one quantity: it must be at most `value`, or at least `value` if `is_least`."""

    name: str
    value: float
    is_least: bool = False


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit at one place, for one attack if it is about a leak. `reason` says in words what was found."""

    place: str
    limit: Limit
    verdict: Verdict
    reason: str
    fact: Fact | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The verdict on a defense, its checks, what evidence is missing beside them, and what the evidence cannot show."""

    verdict: Verdict
    checks: tuple[Check, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decide(
    places: Sequence[Place], limits: Sequence[Limit], least_seeds: int, missing_places: Sequence[str] = ()
) -> Decision:
    """Judge a defense at all its places.

    It passes only if every limit holds at the worse end of its interval, for every attack that counts, with enough seeds and a
    null that stands. A limit that fails decides, whatever else is missing.
    """
    checks, missing = [], list(missing_places)
    for place in places:
        if not place.is_audit and place.n_seeds < least_seeds:
            missing.append(f"{place.label}: {place.n_seeds} seeds finished, and {least_seeds} are asked for")
        missing += [f"{place.label}: {each}" for each in place.missing]
        if not place.is_audit:
            missing += [f"{place.label}: {problem}" for seen in place.seen if (problem := _null_problem(seen))]
            missing += [
                f"{place.label}: {seen.attack}/{seen.score_name} attacked {seen.n_models} of {place.n_seeds} models"
                for seen in place.seen
                if seen.n_models < place.n_seeds
            ]
        for limit in limits:
            if limit.name not in LEAKS:
                checks.append(_of_place(place, limit))
            else:
                checks += [_of_attack(place, seen, limit) for seen in place.seen]
    notes = [_ONE_MODEL for place in places if place.is_audit][:1]
    verdicts = {check.verdict for check in checks}
    verdict: Verdict = "pass"
    if "fail" in verdicts:
        verdict = "fail"
    elif missing or "not enough evidence" in verdicts or not checks:
        verdict = "not enough evidence"
    return Decision(verdict=verdict, checks=tuple(checks), missing=tuple(missing), notes=tuple(notes))


_ONE_MODEL = (
    "One model was audited, so its attacks have no references and no null. Attacks on several models, each with the others as "
    "references, see more."
)


def _null_problem(seen: Seen) -> str:
    """Why an attack's null does not stand; empty if it does."""
    name = f"{seen.attack}/{seen.score_name}"
    if seen.null is None:
        return f"{name} has no null: its AUC on a membership by which no model was trained is not recorded"
    if not seen.is_sound:
        return (
            f"the null of {name} does not stand: its AUC on a membership by which no model was trained is "
            f"{interval_text(seen.null, 3)} and should be 0.5"
        )
    return ""


def _of_place(place: Place, limit: Limit) -> Check:
    counts_search = limit.name == "epsilon_with_search" or (limit.name == "epsilon" and place.counts_search)
    # The targets are trained anew with the best settings, so what covers the search alone does not cover them
    fact = place.facts.get("epsilon_trained_anew" if counts_search else limit.name)
    if limit.name == "epsilon" and "epsilon" not in place.facts:
        reasons = sorted({str(reason) for reason in place.targets["no_guarantee_reason"].dropna()})
        why = "; ".join(reason.rstrip(". ") for reason in reasons) or "no reason is recorded"
        return Check(
            place=place.label,
            limit=limit,
            verdict="fail",
            reason=f"there is no formal guarantee ({why}), so no ε bounds it",
        )
    if fact is None and limit.name in GUARANTEES:
        return Check(
            place=place.label,
            limit=limit,
            verdict="fail",
            reason="no ε with a search is proved: its settings were chosen by hand or by an attack, or it has no guarantee",
        )
    found = _judge(place.label, limit, fact, "")
    if limit.name == "epsilon" and not counts_search and place.was_searched:
        total = place.facts.get("epsilon_trained_anew")
        words = "nothing proves what its search adds" if total is None else f"{total.words} is {total.value:.4g}"
        found = replace(found, reason=f"{found.reason}; {words}")
    return found


def _of_attack(place: Place, seen: Seen, limit: Limit) -> Check:
    by = f" by {seen.attack}/{seen.score_name} ({seen.why}, {seen.n_models} models)"
    found = _judge(place.label, limit, seen.facts.get(limit.name), f" by {seen.attack}" if place.is_audit else by)
    problem = "" if seen.is_sound else "its null does not stand"
    if _is_reversed(seen.facts.get("auc")):
        problem = "it ranks members below non-members, so the direction of its score is wrong"
    if not problem:
        return found
    return replace(found, verdict="not enough evidence", reason=f"{found.reason}; but {problem}")


def _is_reversed(auc: Fact | None) -> bool:
    """Whether an AUC is below guessing by more than chance explains: whoever turns its score around sees a leak."""
    if auc is None or auc.low is None or auc.high is None:
        return False
    error = max(auc.high - auc.value, auc.value - auc.low) / quantile((1 + CONFIDENCE) / 2)
    return auc.value + _REVERSED_ERRORS * error < GUESSING


def _judge(place: str, limit: Limit, fact: Fact | None, by: str) -> Check:
    if fact is None:
        return Check(
            place=place,
            limit=limit,
            verdict="not enough evidence",
            reason=f"{limit.name}{by} was not measured; there are too few examples or seeds for it",
        )
    side, bound = ("lower", fact.low) if limit.is_least else ("upper", fact.high)
    asked = f"at {'least' if limit.is_least else 'most'} {limit.value:g}"
    shown = f"{fact.words}{by} is {fact.value:.4g}"
    if bound is None:
        return Check(
            place=place,
            limit=limit,
            verdict="not enough evidence",
            reason=f"{shown} without an interval; more seeds would give one",
            fact=fact,
        )
    if fact.low != fact.high:
        shown += f", 95 % interval [{fact.low:.4g}, {fact.high:.4g}]"
    holds = bound >= limit.value if limit.is_least else bound <= limit.value
    end = f"; its {side} end" if fact.low != fact.high else "; it"
    verdict: Verdict = "pass" if holds else "fail"
    reason = f"{shown}{end} must be {asked}"
    return Check(place=place, limit=limit, verdict=verdict, reason=reason, fact=fact)
