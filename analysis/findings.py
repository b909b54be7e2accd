"""The plain-words summary, computed from the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis import composition, naming, paper
from analysis.figure_tradeoff import front
from analysis.load import Results
from analysis.measurements import Measurements, Setting, average_over_datasets
from analysis.statistics import Estimate, compare, sign
from analysis.table_output import estimate_text, number
from analysis.tables import estimate_in, inversion_settings, layers, mse_changes, summary_table, time_ratios


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A few sentences under a heading; plain text, to be escaped by whoever shows it."""

    heading: str
    sentences: tuple[str, ...]


def _names(defenses: list[str]) -> str:
    return naming.listing([naming.display(defense) for defense in defenses])


def summarize(results: Results, measured: Measurements) -> list[Finding]:
    """What a reader should know first."""
    found = [_tradeoff(measured, setting, dataset) for setting, dataset in measured.rows()]
    return [*found, *_beyond_one_dataset(results, measured)]


def about_the_runs(results: Results, measured: Measurements) -> list[Finding]:
    """How many private runs were made, and what ran: what every kind of report says last."""
    return _beyond_one_dataset(results, measured)[-2:]


def _beyond_one_dataset(results: Results, measured: Measurements) -> list[Finding]:
    findings = [
        ("Does the attacker beat guessing?", _guessing(measured)),
        ("What is guaranteed", _guarantees(measured)),
        ("Inversion under differential privacy", _inversion(measured)),
        ("How many private runs were made", _private_runs(results, measured)),
        ("What ran", _what_ran(results, measured)),
    ]
    return [Finding(heading=heading, sentences=tuple(sentences)) for heading, sentences in findings]


def _apart(first: Estimate | None, second: Estimate | None) -> str:
    """Whether two numbers can be told apart, in words."""
    result = compare(first, second)
    if result is None:
        return "with one seed, nothing tells the difference from noise"
    if result == 0:
        return "the intervals overlap, so the two cannot be told apart"
    return "the intervals are disjoint"


def _tradeoff(measured: Measurements, setting: Setting, dataset: str) -> Finding:
    heading = measured.row_label(setting, dataset)
    aucs = {
        defense: value
        for defense in measured.defenses
        if (value := measured.estimate(setting, dataset, defense, "auc")) is not None
    }
    if not aucs:
        words = "No membership attack has a finished best_of row here, so nothing is known of the risk."
        return Finding(heading=heading, sentences=(words,))
    lowest = min(aucs, key=lambda defense: aucs[defense].mean)
    baseline = measured.baseline
    sentences = []
    if lowest == baseline and len(aucs) > 1:
        sentences.append(
            f"No defense has a lower honest attack AUC than the baseline’s {estimate_text(aucs[lowest], 3)}."
        )
    else:
        least = estimate_text(aucs[lowest], 3)
        text = f"The lowest honest attack AUC is {least}, under {naming.display(lowest)}"
        if baseline in aucs and lowest != baseline:
            reference = aucs[str(baseline)]
            text += f"; the baseline has {estimate_text(reference, 3)}, and {_apart(aucs[lowest], reference)}"
        sentences.append(text + ".")
        sentences.append(_cost(measured, setting, dataset, lowest))
    same = [d for d in aucs if d not in (lowest, baseline) and compare(aucs[d], aucs[lowest]) == 0]
    if same:
        sentences.append(f"{_names(same)} cannot be told from it by AUC: the intervals overlap.")
    best = front(measured, setting, dataset, "auc")
    if len(best) > 0 and len(aucs) > 1:
        sentences.append(f"On the Pareto front of accuracy and AUC, by their means: {_names(best)}.")
    return Finding(heading=heading, sentences=tuple(sentences))


def _cost(measured: Measurements, setting: Setting, dataset: str, defense: str) -> str:
    accuracy = measured.estimate(setting, dataset, defense, "test_accuracy")
    text = f"There, test accuracy is {estimate_text(accuracy, 3)}"
    baseline = measured.baseline
    reference = None if baseline is None else measured.estimate(setting, dataset, baseline, "test_accuracy")
    if reference is None:
        return text + "; no baseline finished to compare its cost with."
    text += f" against the baseline’s {estimate_text(reference, 3)} ({_apart(accuracy, reference)})"
    ratios = time_ratios(measured)
    ratio = None if ratios is None else estimate_in(ratios, setting, dataset, defense)
    if ratio is not None:
        text += f", and training takes {estimate_text(ratio, 2)} times as long"
    return text + "."


def _guessing(measured: Measurements) -> list[str]:
    sentences = []
    for setting, dataset in measured.rows():
        signs = {
            defense: _beats_guessing(measured, setting, dataset, defense, value)
            for defense in measured.defenses
            if (value := measured.estimate(setting, dataset, defense, "auc")) is not None
        }
        if not signs:
            continue
        above = [defense for defense, value in signs.items() if value == 1]
        unclear = [defense for defense, value in signs.items() if value in (0, -1)]
        alone = [defense for defense, value in signs.items() if value is None]
        parts = []
        if above:
            parts.append(f"yes against {_names(above)}, where the AUC’s interval lies above 0.5")
        if unclear:
            parts.append(f"not shown against {_names(unclear)}")
        if alone:
            parts.append(f"cannot be told against {_names(alone)} (no interval)")
        sentences.append(f"{measured.row_label(setting, dataset)}: {'; '.join(parts)}.")
    if any(setting.split == "official" for setting in measured.settings):
        sentences.append(
            "On the official split, members are the training set and non-members the test set, the same for every "
            "seed: what tells them apart there need not be membership."
        )
    return sentences or ["No membership attack has a finished best_of row, so this was not measured."]


def _beats_guessing(
    measured: Measurements, setting: Setting, dataset: str, defense: str, value: Estimate
) -> int | None:
    """`sign` of the AUC against 0.5; on the official split its interval over examples must lie above it too.

    There every seed has the same examples, so an interval over seeds does not hold their choice.
    """
    verdict = sign(value, 0.5)
    lows = measured.of(setting, dataset, defense)["auc_low"]
    return 0 if verdict == 1 and setting.split == "official" and not lows.mean() > 0.5 else verdict


def _guarantees(measured: Measurements) -> list[str]:
    rows = summary_table(measured)
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
    if without:
        sentences.append("Where nothing is guaranteed, a low AUC says only that these attacks failed.")
    return sentences


def _inversion(measured: Measurements) -> list[str]:
    settings = inversion_settings(measured)
    if not settings:
        return ["No reconstructions were recorded, so this was not measured."]
    if not measured.guaranteed:
        return ["No finished target carries a privacy guarantee, so this was not measured."]
    changes = mse_changes(measured, settings[0])
    if changes is None:
        return ["No baseline finished, so there is nothing to compare with."]
    last = layers(measured, settings[0])[-1]
    sentences = []
    for defense in measured.defenses:
        if defense not in measured.guaranteed:
            continue
        rows = changes[(changes["layer"] == last) & (changes["defense"] == defense)]
        change, _ = average_over_datasets(rows, "value")
        if change is None:
            continue
        verdict = {
            -1: "easier to invert than the baseline",
            1: "harder to invert than the baseline",
            0: "cannot be told from the baseline",
            None: "one seed, so this cannot be told from noise",
        }[sign(change)]
        published = paper.number(4, last, defense)
        beside = "" if published is None else f"; the paper has {number(published, 1, signed=True)}\u00a0%"
        words = f"{naming.display(defense)} changes it by {estimate_text(change, 1, signed=True)}\u00a0%"
        sentences.append(f"{words}: {verdict}{beside}.")
    if not sentences:
        return ["No private target has reconstructions beside a baseline of the same seed."]
    where = f"At {naming.display(last)}, the last cut point"
    return [f"{where}, against the baseline’s reconstruction MSE on test images:", *sentences]


def _private_runs(results: Results, measured: Measurements) -> list[str]:
    trials = results.trials
    # A run that failed before its first step has no ε, but it was made like those that have one.
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
        sentences.append(f"{again} of them were started more than once; what those attempts spent is in no ε here.")
    sentences.append(
        "Runs of earlier versions of the sweep, interrupted ones and the attackers' shadows are not counted. "
        "Each ε holds for its own run. Who looks at all of them and publishes the best, or publishes this "
        "report, spends more than the ε of the one."
    )
    return sentences


def _together(finished: pd.DataFrame) -> str:
    """What releasing several finished private runs spends, as the end of a sentence; nothing for fewer than two."""
    if len(finished) < 2:
        return ""
    shared = int(composition.sharing(finished).sum())
    if shared:
        return (
            f"; {shared} of the finished ones drew the same batches as another one of their seed, so that arms differ by "
            "their mechanism alone, and no guarantee covers releasing two of these"
        )
    curves = [curve for curve in finished["rdp"] if curve is not None and len(curve)]
    delta = float(finished["delta"].min())
    epsilon = composition.joint_epsilon(curves, delta) if len(curves) == len(finished) else None
    if epsilon is None:
        return "; their Rényi divergences are not on record, so what releasing them together spends is not known"
    together = f"ε = {epsilon:.1f} at δ = {naming.scientific(delta)}"
    return f"; the {len(finished)} finished ones share neither noise nor batches, and released together spend {together} (RDP)"


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
    if planned > len(trials):
        sentences.append(f"{planned - len(trials)} planned trials have not run yet: this report is of a part.")
    if failed or broken:
        sentences.append("The failures are listed below; no number covers for them.")
    if seeds == 1:
        sentences.append(
            "One seed gives no interval over seeds: differences between defenses cannot be told from the "
            "luck of one run. Brackets hold an AUC’s interval over examples, for the one target trained."
        )
    elif seeds > 1:
        sentences.append("± is the half-width of a 95 % t-interval over seeds.")
    if measured.superseded:
        sentences.append(
            f"{measured.superseded} finished targets have the labels and seed of a newer one, made after the "
            "sweep was changed, and are left out."
        )
    if measured.other_inversions:
        sentences.append(f"{measured.other_inversions} further inversion attacks are in the Parquet tables only.")
    return sentences
