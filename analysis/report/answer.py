"""The first paragraph: which defense gives the most privacy for the least accuracy and time, in plain words."""

from __future__ import annotations

from collections.abc import Iterable

from analysis import naming
from analysis.measure.answer import ACCURACY_MARGIN, Answer, answer
from analysis.measure.cost import time_ratio, time_ratios
from analysis.measure.targets import GUESSING, Measurements, Setting
from analysis.report.leaks import broken_sentence
from analysis.tables.text import estimate_text, interval_text, number

QUESTION = "Which defense gives the most privacy for the least accuracy and time?"
Verdict = tuple[str, list[str]]
"""A sentence that answers, and the sentences with its numbers."""


def answer_paragraphs(measured: Measurements) -> list[tuple[str, str, str]]:
    """For each setting and dataset its label, empty if there is only one, the verdict, and the numbers behind it.

    Of a dataset with a primary attack in some setting, the settings without one are left out: their attacks see less.
    """
    strong = {dataset for setting, dataset in measured.rows() if measured.primary(setting, dataset) is not None}
    rows = [row for row in measured.rows() if row[1] not in strong or measured.primary(*row) is not None]
    if not rows:
        return [("", "There is no answer yet: no trial finished.", "")]
    found = []
    for row in rows:
        verdict, sentences = _verdict(measured, *row)
        broken = broken_sentence(measured, *row)
        words = " ".join([broken, *sentences] if broken else sentences)
        found.append((measured.row_label(*row) if len(measured.rows()) > 1 else "", verdict, words))
    return found


def _names(defenses: Iterable[str]) -> str:
    return naming.short_listing([naming.display(defense) for defense in defenses])


def _verdict(measured: Measurements, setting: Setting, dataset: str) -> Verdict:
    baseline = measured.baseline
    attacked = measured.attacked(setting, dataset)
    if not attacked:
        primary = measured.primary(setting, dataset)
        why = "no membership attack finished" if primary is None else "the attack is broken against every model"
        return f"There is no answer yet: {why}, so the risk is unknown.", []
    if baseline is None or baseline not in attacked:
        return (
            "There is no answer yet: the risk of no undefended model is known, so no defense can be compared with it.",
            [],
        )
    if len(attacked) == 1:
        return "There is no answer yet: the risk of no defense is known.", []
    found = answer(measured, setting, dataset)
    return (_best if found.lower else _nothing_told)(measured, setting, dataset, found)


def _best(measured: Measurements, setting: Setting, dataset: str, found: Answer) -> Verdict:
    """The defense with the most privacy, of those that are as private the most accurate, and what it costs."""
    best, *as_private = found.best
    cheap = [defense for defense in found.lower if found.cost(defense) == "cheap"]
    kept = min(cheap, key=lambda defense: found.risk[defense].mean, default=None)
    verdict = f"{naming.display(best)} gives the most privacy for the least accuracy"
    if found.cost(best) == "costly":
        verdict = f"{naming.display(best)} gives the most privacy, but it is costly"
        verdict += f"; {naming.display(kept)} gives the most at little cost" if kept else ""
    baseline = measured.estimate(setting, dataset, str(measured.baseline), "auc")
    sentences = [
        f"The {measured.auc_name(setting, dataset)} is {estimate_text(baseline, 3)} on the undefended model; {number(GUESSING, 1)} is "
        "guessing.",
        _numbers(measured, setting, dataset, found, best),
    ]
    if best not in measured.guaranteed:
        sentences.append("It has no formal guarantee: another attack may find more.")
    if as_private:
        sentences.append(
            f"{_names(as_private)} may be as private or more: no difference is shown, and the mean accuracy is lower."
        )
    if kept is not None and kept != best:
        sentences.append(_numbers(measured, setting, dataset, found, kept))
    elif kept is None:
        sentences.append(
            f"No defense is shown both to leak less and to lose less than {ACCURACY_MARGIN:g} of accuracy."
        )
    return f"{verdict}.", [*sentences, _how_many(found)]


def _numbers(measured: Measurements, setting: Setting, dataset: str, found: Answer, defense: str) -> str:
    """A defense's AUC, and what it costs in accuracy and time, as a sentence."""
    risk = measured.estimate(setting, dataset, defense, "auc")
    change = interval_text(found.risk[defense], 3, signed=True)
    parts = []
    if defense in found.accuracy:
        verdict = {
            "costly": f"costly: more than {ACCURACY_MARGIN:g} is lost",
            "cheap": f"less than {ACCURACY_MARGIN:g} is lost",
            "undecided": f"whether more than {ACCURACY_MARGIN:g} is lost is undecided",
        }[found.cost(defense)]
        parts.append(f"{interval_text(found.accuracy[defense], 3, signed=True)} of test accuracy ({verdict})")
    ratio = time_ratio(time_ratios(measured), setting, dataset, defense)
    if ratio is not None:
        parts.append(f"{estimate_text(ratio, 2)} times the training time")
    price = f"its price is {naming.listing(parts)}" if parts else "its price was not measured"
    return f"{naming.display(defense)} has {estimate_text(risk, 3)} (a change of {change}); {price}."


def _how_many(found: Answer) -> str:
    """How many defenses can be told from the baseline."""
    undecided = [defense for defense in found.risk if defense not in found.lower]
    n = len(found.risk)
    text = f"{len(found.lower)} of {n} defense{'' if n == 1 else 's'} {'is' if len(found.lower) == 1 else 'are'} shown to leak less"
    text += f" than the undefended model ({_names(found.lower)})"
    return f"{text}; of {_names(undecided)} that is not shown." if undecided else f"{text}."


def _nothing_told(measured: Measurements, setting: Setting, dataset: str, found: Answer) -> Verdict:
    """That no defense is shown to help, and what is missing to show it."""
    n = len(found.risk)
    which = f"the only defense, {_names(found.risk)}, is not" if n == 1 else f"none of the {n} defenses is"
    baseline = measured.estimate(setting, dataset, str(measured.baseline), "auc")
    auc = f"The {measured.auc_name(setting, dataset)} is {estimate_text(baseline, 3)} on the undefended model"
    n_seeds = max(change.n for change in found.risk.values())
    if found.leak is False:
        sentences = [
            f"{auc}, which is not shown to beat guessing, so there is nothing that a defense could be shown to reduce. What is missing "
            "is a stronger attack, more seeds, or a model that overfits more."
        ]
    elif found.least_difference is None or n_seeds == 1:
        sentences = [f"{auc}. What is missing is seeds: {n_seeds} cannot tell a difference from the luck of one run."]
    else:
        lowest = min(found.risk, key=lambda defense: found.risk[defense].mean)
        sentences = [
            f"{auc}. The lowest mean, of {naming.display(lowest)}, differs from it by "
            f"{interval_text(found.risk[lowest], 3, signed=True)}; with {n_seeds} seeds, about "
            f"{number(-found.least_difference, 3)} would be found. What is missing is more seeds or more examples."
        ]
    costly = [defense for defense in found.accuracy if found.cost(defense) == "costly"]
    if costly:
        sentences.append(f"Costly, with more than {ACCURACY_MARGIN:g} of accuracy shown to be lost: {_names(costly)}.")
    return f"There is no answer yet: {which} shown to leak less than the undefended model.", sentences
