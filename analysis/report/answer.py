"""The first sentences of the page: which defense to choose, what it costs, how sure that is, and what would make it surer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from analysis import naming
from analysis.measure.answer import Answer, Preference, answer
from analysis.measure.cost import time_ratio, time_ratios
from analysis.measure.targets import GUESSING, Measurements, Setting
from analysis.report.leaks import broken_sentence
from analysis.statistics.estimates import Estimate
from analysis.statistics.power import MOST_SEEDS
from analysis.tables.text import estimate_text, number

QUESTION = "Which defense gives the most privacy for the least accuracy and time?"


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """The answer in words for one setting and dataset: the `verdict`, and the sentences with its price and how sure it is."""

    verdict: str
    details: tuple[str, ...] = ()


def rule_sentence(preference: Preference) -> str:
    """The rule by which the best defense is chosen."""
    if preference.weight is not None:
        return (
            f"The best defense has the highest mean accuracy − {preference.weight:g} × (AUC − 0.5). "
            "An AUC below 0.5 is noise and counts as 0.5."
        )
    return (
        f"The best defense leaks least (lowest mean AUC of the strongest attack) among those whose mean accuracy is within "
        f"{points(preference.within)} of the best. An AUC below 0.5 is noise and counts as 0.5."
    )


def points(number: float) -> str:
    """“2 points” of accuracy, which are percentage points."""
    return f"{number:g} point{'' if number == 1 else 's'}"


def answered_rows(measured: Measurements) -> list[tuple[Setting, str]]:
    """The settings and datasets that get an answer, in order.

    Of a dataset with a primary attack in some setting, the settings without one are left out: their attacks see less.
    """
    strong = {dataset for setting, dataset in measured.rows() if measured.primary(setting, dataset) is not None}
    return [row for row in measured.rows() if row[1] not in strong or measured.primary(*row) is not None]


def answer_sentences(
    measured: Measurements, setting: Setting, dataset: str, preference: Preference, found: Answer | None = None
) -> Sentences:
    """The answer for one setting and dataset in words."""
    found = found or answer(measured, setting, dataset, preference)
    broken = broken_sentence(measured, setting, dataset)
    said = _answer(measured, setting, dataset, preference, found)
    return Sentences(verdict=said.verdict, details=tuple(filter(None, (broken, *said.details))))


def seeds_words(found: Answer, defense: str) -> str:
    """What would tell a defense from the undefended model, if these results do not."""
    change = found.risk[defense]
    if change.few_examples:
        return "more examples: these are too few for an interval"
    if change.n < 2:
        return "more seeds: one shows no variation between runs"
    if change.error == 0:
        return "more examples: all seeds gave the same difference"
    needed = found.seeds_to_tell(defense)
    if needed is None:
        return f"more than {MOST_SEEDS:,} seeds, or more examples"
    more = max(1, needed - change.n)
    return f"about {more} more seed{'' if more == 1 else 's'}"


def _names(defenses: Iterable[str]) -> str:
    return naming.short_listing([naming.display(defense) for defense in defenses])


def _answer(measured: Measurements, setting: Setting, dataset: str, preference: Preference, found: Answer) -> Sentences:
    baseline, attacked = measured.baseline, measured.attacked(setting, dataset)
    if found.best is None:
        why = "no membership attack finished"
        if measured.primary(setting, dataset) is not None:
            why = "the attack is broken against every model"
        return Sentences(verdict=f"There is no answer yet: {why}, so the risk is unknown.")
    primary = measured.primary(setting, dataset)
    if primary is not None and baseline in primary.broken:
        return Sentences(verdict="There is no answer yet: the attack is broken against the undefended model.")
    if len(attacked) == 1:
        return Sentences(verdict="There is no answer yet: the risk of one arm alone is known.")
    best = found.best
    leak = f"{measured.auc_name(setting, dataset)} {estimate_text(measured.estimate(setting, dataset, best, 'auc'), 3)}"
    if preference.weight is None:
        among = f"within {points(preference.within)} of the best accuracy"
        first = f"{naming.display(best)} leaks least of the {len(found.eligible)} arms {among}"
        if len(found.eligible) == 1:
            first = f"{naming.display(best)} is the only arm {among}"
    else:
        first = f"{naming.display(best)} is best at a weight of {preference.weight:g}"
    if baseline is None or baseline not in attacked:
        return Sentences(
            verdict=f"{first}.",
            details=(
                f"{leak[0].upper()}{leak[1:]}.",
                "What it gains is unknown, because the risk of no undefended model is known.",
                *_rivals(found),
            ),
        )
    undefended = measured.estimate(setting, dataset, baseline, "auc")
    if found.leak is False and not found.lower:
        return Sentences(
            verdict="There is no answer yet: no leak of the undefended model is shown that a defense could reduce.",
            details=(
                f"The {measured.auc_name(setting, dataset)} is {estimate_text(undefended, 3)} on it; {GUESSING} is guessing. "
                "What would tell: a stronger attack, more seeds, or a model that overfits more.",
            ),
        )
    if best == baseline:
        verdict = "By this rule, no defense is chosen: " + (
            f"the undefended model itself leaks least of the arms {among}."
            if preference.weight is None
            else f"the undefended model is best at a weight of {preference.weight:g}."
        )
        return Sentences(
            verdict=verdict, details=(f"Its {leak}.", *_rivals(found), *_at_a_price(measured, setting, dataset, found))
        )
    price = _price(measured, setting, dataset, found, best)
    details = [f"{leak[0].upper()}{leak[1:]}, against {estimate_text(undefended, 3)} without a defense; {price}."]
    told = found.verdict(best)
    if told == "less":
        details.append("It is shown to leak less than the undefended model.")
        verdict = f"{first}."
    elif told == "more":
        details.append("It is shown to leak more than the undefended model.")
        verdict = f"{first}, but it leaks more than the undefended model."
    else:
        verdict = f"{first}, but it is not shown to leak less than the undefended model."
        details.append(f"What would tell: {seeds_words(found, best)}.")
    details += _rivals(found)
    if best not in measured.guaranteed:
        details.append("It has no formal guarantee: another attack may find more.")
    return Sentences(verdict=verdict, details=(*details, *_at_a_price(measured, setting, dataset, found)))


def _rivals(found: Answer) -> list[str]:
    return [f"May be as good by the same rule: {_names(found.rivals)}."] if found.rivals else []


def _price(measured: Measurements, setting: Setting, dataset: str, found: Answer, defense: str) -> str:
    """What a defense costs in accuracy and time."""
    parts = []
    change = found.accuracy.get(defense)
    if change is not None:
        parts.append(_accuracy_words(change))
    ratio = time_ratio(time_ratios(measured), setting, dataset, defense)
    if ratio is not None:
        parts.append(f"takes {estimate_text(ratio, 2)} times the training time")
    return f"it {naming.listing(parts)}" if parts else "what it costs was not measured"


def _accuracy_words(change: Estimate) -> str:
    """“costs 0.8 points of accuracy [0.0, 1.6]”, or “gains”; the interval is of what it costs or gains."""
    verb, sign = ("gains", 1) if change.mean > 0 else ("costs", -1)
    mean = f"{verb} {number(100 * sign * change.mean, 1)} points of accuracy"
    if change.low is None or change.high is None:
        return mean
    low, high = sorted((sign * change.low, sign * change.high))
    return f"{mean} [{number(100 * low, 1)}, {number(100 * high, 1)}]"


def _at_a_price(measured: Measurements, setting: Setting, dataset: str, found: Answer) -> list[str]:
    """The most private of those that are shown to leak less and that the rule passes over."""
    others = [defense for defense in found.lower if defense != found.best]
    if not others:
        return []

    def auc(defense: str) -> float:
        estimate = measured.estimate(setting, dataset, defense, "auc")
        return 1.0 if estimate is None else max(estimate.mean, GUESSING)

    def accuracy(defense: str) -> float:
        estimate = measured.estimate(setting, dataset, defense, "test_accuracy")
        return 0.0 if estimate is None else estimate.mean

    least = min(others, key=lambda defense: (auc(defense), -accuracy(defense)))
    if found.best is not None and auc(least) >= auc(found.best):
        return []
    price = _price(measured, setting, dataset, found, least)
    return [
        f"At any price, {naming.display(least)} leaks least of those that are shown to leak less: AUC {number(auc(least), 3)}; {price}."
    ]
