"""The summary in plain words, computed from the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import naming
from analysis.load import Results
from analysis.measure import composition
from analysis.measure.recipes import mixed, unequal
from analysis.measure.summary import summaries
from analysis.measure.targets import FEWEST_EXAMPLES, GUESSING, Measurements, Setting
from analysis.measure.tradeoff import front
from analysis.measure.verdicts import (
    ERROR_RATE,
    against_the_baseline,
    beats_guessing,
)
from analysis.report.leaks import bound_sentences, broken_sentence, rate_sentences
from analysis.report.strength import HEADING, strength
from analysis.statistics.estimates import quantile
from analysis.tables.text import number


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A few sentences under a heading. They are plain text, so whoever shows them must escape them."""

    heading: str
    sentences: tuple[str, ...]


def _names(defenses: list[str]) -> str:
    return naming.listing([naming.display(defense) for defense in defenses])


def summarize(results: Results, measured: Measurements) -> list[Finding]:
    """What the results can show, the trade-off on each dataset, and what was leaked and guaranteed."""
    return [
        Finding(heading="What these results can show", sentences=tuple(_can_show(results, measured))),
        *(found for row in measured.rows() if (found := _tradeoff(measured, *row)).sentences),
        Finding(heading="Does the attacker beat guessing?", sentences=tuple(_guessing(measured))),
        Finding(heading="What is guaranteed", sentences=tuple(_guarantees(measured))),
    ]


def about_the_attacks(results: Results, measured: Measurements) -> list[Finding]:
    """Which attack judges, and which stronger one could have run. Every report has this."""
    return [Finding(heading=HEADING, sentences=tuple(strength(results, measured)))]


def about_the_runs(results: Results, measured: Measurements) -> list[Finding]:
    """The number of private runs, and what ran. Every report ends with these."""
    return [
        Finding(heading="How many private runs were made", sentences=tuple(_private_runs(results, measured))),
        Finding(heading="What ran", sentences=tuple(_what_ran(results, measured))),
    ]


_POWER = 0.8


def _can_show(results: Results, measured: Measurements) -> list[str]:
    """What the sweep can show according to its own file, and how large an effect must be to be found."""
    sentences = [f"The sweep’s file says: {results.expected}"] if results.expected else []
    verdicts = sum(p is not None for p in beats_guessing(measured).values())
    for setting, dataset in measured.rows():
        parts = []
        rows = measured.at(setting, dataset)
        errors = [
            found.error
            for defense in measured.defenses
            if (found := measured.estimate(setting, dataset, defense, "auc")) is not None and found.error is not None
        ]
        if errors and verdicts:
            away = quantile(1 - ERROR_RATE / verdicts) + quantile(_POWER)
            least = min(1.0, GUESSING + away * float(np.median(errors)))
            parts.append(f"an attack must reach an AUC of about {number(least, 2)} to be distinguished from guessing")
        changes = against_the_baseline(measured, setting, dataset, "test_accuracy")
        known = [change for change in changes.values() if change.error is not None]
        if known:
            needed = [
                (quantile(1 - ERROR_RATE / (2 * len(changes)), change.df) + quantile(_POWER)) * (change.error or 0.0)
                for change in known
            ]
            points = min(1.0, float(np.median(needed)))
            parts.append(f"a defense's accuracy must differ from the baseline's by about {number(points, 2)}")
        elif changes:
            parts.append("one seed cannot distinguish a difference in accuracy from chance")
        if not parts:
            continue
        seeds, members, others = rows["seed"].nunique(), rows["n_members"].median(), rows["n_non_members"].median()
        size = f"{seeds} seed{'' if seeds == 1 else 's'}"
        if not np.isnan([members, others]).any():
            size += f", {members:,.0f} members and {others:,.0f} non-members"
        sentences.append(f"{measured.row_label(setting, dataset)} ({size}): {', and '.join(parts)}.")
    if len(sentences) > bool(results.expected):
        sentences.append(
            "An effect of that size is found in four of five such sweeps. A smaller effect is missed more often, "
            "so “not shown” says little about it."
        )
    return sentences or ["No trial finished, so nothing is shown."]


def _tradeoff(measured: Measurements, setting: Setting, dataset: str) -> Finding:
    heading = measured.row_label(setting, dataset)
    attacked = measured.attacked(setting, dataset)
    broken = broken_sentence(measured, setting, dataset)
    if not attacked and broken:
        return Finding(heading=heading, sentences=(broken,))
    if not attacked:
        words = "No membership attack has a finished best_of row here, so the risk is unknown."
        return Finding(heading=heading, sentences=(words,))
    sentences = [*([broken] if broken else []), *rate_sentences(measured, setting, dataset)]
    best = front(measured, setting, dataset, "auc")
    if best and len(attacked) > 1:
        sentences.append(f"On the Pareto front of mean accuracy and mean AUC: {_names(best)}.")
    differences = unequal(measured, setting, dataset)
    if differences:
        sentences.append(
            f"Recipes differ: {differences}. A difference between these defenses can come from the recipe."
        )
    return Finding(heading=heading, sentences=tuple(sentences))


def _guessing(measured: Measurements) -> list[str]:
    sentences = []
    p_values = beats_guessing(measured)
    for setting, dataset in measured.rows():
        here = {
            defense: p_values[setting.key, dataset, defense]
            for defense in measured.defenses
            if (setting.key, dataset, defense) in p_values
        }
        if not here:
            continue
        above = [defense for defense, p in here.items() if p is not None and p < ERROR_RATE]
        unclear = [defense for defense, p in here.items() if p is not None and p >= ERROR_RATE]
        alone = [defense for defense, p in here.items() if p is None]
        parts = []
        if above:
            seeds = min(measured.of(setting, dataset, defense)["seed"].nunique() for defense in above)
            target = " (for the one target trained)" if seeds == 1 else ""
            parts.append(f"yes against {_names(above)}{target}")
        if unclear:
            parts.append(f"not shown against {_names(unclear)}")
        if alone:
            few = [defense for defense in alone if measured.has_few_examples(setting, dataset, defense)]
            others = [defense for defense in alone if defense not in few]
            if few:
                why = f"fewer than {FEWEST_EXAMPLES} members or non-members"
                parts.append(f"undecided against {_names(few)} ({why})")
            if others:
                parts.append(f"undecided against {_names(others)} (no interval over examples was recorded)")
        sentences.append(f"{measured.row_label(setting, dataset)}: {'; '.join(parts)}.")
    if not sentences:
        broken = [broken_sentence(measured, setting, dataset) for setting, dataset in measured.rows()]
        if any(broken):
            return list(dict.fromkeys(filter(None, broken)))
        return ["No membership attack has a finished best_of row, so this was not measured."]
    judged = sum(p is not None for p in p_values.values())
    if judged:
        sentences.append(
            f"These tests allow for the choice of examples and of seeds, and for examples that seeds share. Among {judged} "
            f"verdict{'' if judged == 1 else 's'}, the probability of even one wrong “yes” is at most 5 % (Holm)."
        )
    if any(setting.split == "official" for setting in measured.settings):
        sentences.append(
            "On the official split, members are the training set and non-members the test set, for every seed. An attack "
            "may tell them apart for reasons other than membership."
        )
    return sentences


def _guarantees(measured: Measurements) -> list[str]:
    rows = summaries(measured)
    if not rows:
        return ["No trial finished."]
    sentences = []
    for defense in measured.defenses:
        epsilons = [row for row in rows if row.defense == defense and row.epsilon_spent is not None]
        if epsilons:
            worst = max(epsilons, key=lambda row: row.epsilon_spent or 0.0)
            everywhere = len(epsilons) == sum(row.defense == defense for row in rows)
            some = "" if everywhere else ", though not everywhere"
            sentences.append(f"{naming.display(defense)}: {worst.guarantee} for one run{some}.")
    without: dict[str, list[str]] = {}
    for row in rows:
        if row.epsilon_spent is None and row.defense not in without.setdefault(row.guarantee, []):
            without[row.guarantee].append(row.defense)
    for reason, defenses in without.items():
        sentences.append(f"{_names(defenses)}: {reason}.")
    sentences += bound_sentences(rows)
    if without:
        sentences.append("Without a guarantee, a low AUC says only that these attacks failed.")
    return sentences


def _private_runs(results: Results, measured: Measurements) -> list[str]:
    trials = results.trials
    # A private run that failed before its first step has no ε, but it still counts.
    private = trials[
        trials["epsilon_target"].notna()
        | trials["noise_multiplier"].notna()
        | trials["epsilon_spent"].notna()
        | trials["defense"].isin(measured.guaranteed)
    ]
    if private.empty:
        return ["No trial was trained with differential privacy."]
    sentences = []
    for dataset, rows in private.groupby("dataset", sort=False):
        text = f"{naming.display(str(dataset))}: {len(rows)} private run{'s' if len(rows) > 1 else ''} in these tables"
        unfinished = int((rows["status"] != "finished").sum())
        if unfinished:
            text += f", {unfinished} of them failed"
        sentences.append(f"{text}{_together(rows[rows['epsilon_spent'].notna()])}.")
    again = int((private["attempts"] > 1).sum())
    if again:
        sentences.append(
            f"{again} of them were started more than once; no ε here includes what the earlier attempts spent."
        )
    sentences.append(
        "Interrupted runs, runs of searches for settings, runs of earlier versions of the sweep and the attackers' shadow models are "
        "not counted. "
        "Each ε holds for its own run. Choosing the best run and publishing it, or publishing this report, "
        "spends more than the ε of one run."
    )
    return sentences


def _together(finished: pd.DataFrame) -> str:
    """The ε of releasing several finished private runs, as the end of a sentence; empty for fewer than two."""
    if len(finished) < 2:
        return ""
    shared = int(composition.sharing(finished).sum())
    if shared:
        return (
            f"; {shared} of the finished runs drew the same batches as another run of their seed, so that arms differ only by "
            "their mechanism; no guarantee covers releasing two of these"
        )
    curves = [curve for curve in finished["rdp"] if curve is not None and len(curve)]
    delta = float(finished["delta"].min())
    epsilon = composition.joint_epsilon(curves, delta) if len(curves) == len(finished) else None
    if epsilon is None:
        return "; their Rényi divergences were not recorded, so the ε of releasing them together is unknown"
    together = f"ε = {naming.epsilon(epsilon, 1)} at δ = {naming.scientific(delta)}"
    return f"; the {len(finished)} finished runs share neither noise nor batches; releasing all of them spends {together} (RDP)"


def _what_ran(results: Results, measured: Measurements) -> list[str]:
    trials, attacks = results.trials, results.attacks
    failed = int((trials["status"] != "finished").sum())
    broken = int((attacks["status"] != "finished").sum())
    seeds = trials["seed"].nunique()
    planned = results.planned or len(trials)
    sentences = [
        f"{len(trials) - failed} of {planned} trials finished, {failed} failed, with {seeds} "
        f"seed{'' if seeds == 1 else 's'}; {len(attacks) - broken} of {len(attacks)} attack scores were "
        f"computed, {broken} failed."
    ]
    compared = results.comparisons
    uncompared = int((compared["status"] != "finished").sum())
    if len(compared):
        sentences.append(f"{len(compared) - uncompared} of {len(compared)} comparisons of targets finished.")
    if planned > len(trials):
        sentences.append(f"{planned - len(trials)} planned trials have not run yet, so this report is partial.")
    if failed or broken or uncompared:
        sentences.append("The failures are listed below; they enter no number.")
    if seeds == 1:
        sentences.append(
            "One seed gives no interval over seeds, so differences between defenses cannot be distinguished from "
            "chance. Brackets hold an AUC’s interval over examples, for the one target trained."
        )
    elif seeds > 1:
        sentences.append(
            "± is the half-width of a 95 % interval: a t-interval over seeds; for the honest AUC, over seeds and examples. Brackets "
            "hold an interval’s ends. They are used for differences, widened so that all comparisons with the baseline hold "
            "together, and for intervals that are cut at a bound of the quantity."
        )
    for column, words in (("recipe", "different recipes"), ("component_sha256", "different code of their components")):
        several = mixed(measured, column)
        if several:
            sentences.append(
                f"Seeds of {naming.listing(several)} were trained with {words}, so a mean over them mixes different things."
            )
    if measured.superseded:
        sentences.append(
            f"{measured.superseded} finished targets are left out: a newer one, made after the sweep was changed, has the "
            "same labels and seed."
        )
    if measured.other_inversions:
        sentences.append(f"{measured.other_inversions} further inversion attacks are in the Parquet tables only.")
    return sentences
