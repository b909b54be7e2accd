"""Which attack judges, and which stronger one could have run and did not."""

from __future__ import annotations

import pandas as pd

from analysis import naming
from analysis.load import Results
from analysis.measure.attacks import STRONGEST
from analysis.measure.primary import RULES, cohort_members, is_sound, largest_cohorts
from analysis.measure.targets import Measurements, Setting
from analysis.statistics.estimates import CONFIDENCE, estimate

HEADING = "Which attack judges, and which could have"

_STRONGEST, _WEAKEST = RULES[0], RULES[-1]
_COIN_SPLITS = ("coins", "coin_pairs")


def strength(results: Results, measured: Measurements) -> list[str]:
    """For each setting and dataset, the attack that judges and why no stronger one does; equal sentences are joined."""
    largest = largest_cohorts(cohort_members(results), measured.frame)
    by_words: dict[tuple[str, ...], list[str]] = {}
    for setting, dataset in measured.rows():
        words = (
            _judge(measured, setting, dataset),
            *_weaker(results, largest, measured, setting, dataset),
            *_best_of_all(results, largest, measured, setting, dataset),
        )
        by_words.setdefault(words, []).append(measured.row_label(setting, dataset))
    sentences = []
    for (first, *others), where in by_words.items():
        sentences += [f"{naming.listing(where)}: {first}", *others]
    left = (results.planned or 0) - len(results.trials)
    if sentences and left > 0:
        sentences.append(
            f"{left} planned trials have not run yet. The same command runs them, and then what attacks their seeds together."
        )
    if sentences:
        sentences.append(
            "The attack is fixed by the number of seeds before any result is seen, and is one for all defenses that are compared. "
            "Choosing the best of several by their results would flatter the attacker."
        )
    return sentences or ["No trial finished, so nothing was attacked."]


def _judge(measured: Measurements, setting: Setting, dataset: str) -> str:
    primary = measured.primary(setting, dataset)
    judge = measured.judge(setting, dataset)
    if primary is None:
        return (
            f"{judge} judges. It knows nothing of how hard each example is, and it sees little of what leaks: its low AUC is no "
            "privacy."
        )
    references = measured.at(setting, dataset)["n_references"].dropna()
    seeds = _span(primary.cohorts["n_targets"])
    text = f"{judge} judges. It attacks each of {seeds} seeds of a cell with {_span(references)} other seeds as references."
    if primary.left_out:
        one = primary.left_out == 1
        text += (
            f" {primary.left_out} finished target{' is' if one else 's are'} in no finished comparison and {'has' if one else 'have'} "
            "no AUC: run the same command again."
        )
    return text


def _span(counts: pd.Series) -> str:
    if counts.empty:
        return "no"
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def _weaker(
    results: Results, largest: pd.DataFrame, measured: Measurements, setting: Setting, dataset: str
) -> list[str]:
    """Why the strongest attack does not judge here, and how it would."""
    primary = measured.primary(setting, dataset)
    if primary is not None and primary.attack == _STRONGEST.attack:
        return []
    strongest = naming.attack(_STRONGEST.attack)
    if setting.split not in _COIN_SPLITS:
        return [
            f"Stronger attacks take the other seeds as references. Under the split “{setting.split}” they would be biased: run the "
            f"sweep with --set splits=[coins] and {_seeds(measured)}."
        ]
    rows = measured.at(setting, dataset)
    finished = {defense: rows.loc[rows["defense"] == defense, "seed"].nunique() for defense in measured.defenses}
    finished = {defense: n for defense, n in finished.items() if n}
    sentences = _too_few(finished, strongest, primary is not None, measured)
    failed = _failed(results, rows)
    if failed:
        sentences.append(
            f"{naming.short_listing(failed)} failed here; the same command runs {'it' if len(failed) == 1 else 'them'} again."
        )
    wanted = _STRONGEST if min(finished.values()) >= _STRONGEST.least_seeds else _WEAKEST
    here = largest[(largest["setting"] == setting.key) & (largest["dataset"] == dataset)]
    attacked = here.loc[(here["attack"] == wanted.attack) & (here["n_targets"] >= wanted.least_seeds), "defense"]
    without = [defense for defense in finished if defense not in set(attacked)]
    judged_less = primary is None or primary.attack != wanted.attack
    if without and judged_less and min(finished.values()) >= _WEAKEST.least_seeds:
        names = naming.short_listing([naming.display(defense) for defense in without])
        sentences.append(
            f"{naming.attack(wanted.attack)} has no finished comparison of at least {wanted.least_seeds} seeds of {names}, so it "
            f"judges none of the defenses: run the sweep to its end with “{_STRONGEST.attack}” and "
            f"“{_WEAKEST.attack}” among its comparisons."
        )
    elif not without and judged_less and not sentences:
        sentences.append(
            f"{naming.attack(wanted.attack)} ran, but not in one configuration for all defenses with {_options()}, so it does not "
            "judge."
        )
    return sentences


def _best_of_all(
    results: Results, largest: pd.DataFrame, measured: Measurements, setting: Setting, dataset: str
) -> list[str]:
    """Against which defenses the best of all attacks sees more than the attack that judges."""
    here = largest[
        (largest["attack"] == STRONGEST) & (largest["setting"] == setting.key) & (largest["dataset"] == dataset)
    ]
    sound = [is_sound(row, len(here)) for row in here.to_dict("records")]
    recorded = results.attacks[results.attacks["attack_id"].isin(set(here.loc[sound, "comparison_id"]))]
    best = recorded[recorded["status"] == "finished"].drop_duplicates("target_id", keep="last")
    both = measured.at(setting, dataset)[["target_id", "defense", "auc"]].dropna()
    both = both.merge(best[["target_id", "auc"]], on="target_id", suffixes=("", "_best")).dropna()
    if both.empty:
        return []
    parts = []
    for defense, rows in both.groupby("defense", sort=False):
        more = estimate(rows["auc_best"] - rows["auc"])
        at = 1 - 2 * (1 - CONFIDENCE) / both["defense"].nunique()  # one-sided, for all defenses together
        if more is not None and (more.at(at).low or 0) > 0:
            parts.append(
                f"{rows['auc_best'].mean():.3f} instead of {rows['auc'].mean():.3f} against {naming.display(defense)}"
            )
    text = f"The {naming.attack(STRONGEST).lower()}, chosen for each target on other examples than it is measured on,"
    if not parts:
        return [f"{text} is not shown to see more."]
    return [f"{text} sees more: a mean AUC of {naming.listing(parts)}. The verdicts do not use it."]


def _too_few(finished: dict[str, int], strongest: str, has_primary: bool, measured: Measurements) -> list[str]:
    least = _STRONGEST.least_seeds
    few = {defense: n for defense, n in finished.items() if n < least}
    if not few:
        return []
    if len(few) == len(finished):
        most = max(few.values())
        if has_primary or most >= _WEAKEST.least_seeds:
            text = f"{strongest}, which is stronger, needs {least} seeds, and there are {_seed_counts(few)}"
        else:
            text = f"Stronger attacks take the other seeds as references and need {_WEAKEST.least_seeds} seeds, {strongest} {least}"
            text += f", and there {'is' if most == 1 else 'are'} {_seed_counts(few)}"
        return [f"{text}: give the sweep at least {least} seeds, {_seeds(measured)}."]
    names = naming.short_listing([f"{naming.display(defense)} ({n})" for defense, n in few.items()])
    return [
        f"Only {names} {'has' if len(few) == 1 else 'have'} fewer than the {least} finished seeds that {strongest} needs. All "
        f"defenses that are compared are judged by one attack, so the weaker rule holds for all of them: give the sweep at least "
        f"{least} seeds, {_seeds(measured)}."
    ]


def _seed_counts(few: dict[str, int]) -> str:
    low, high = min(few.values()), max(few.values())
    return str(low) if low == high else f"{low} to {high}"


def _seeds(measured: Measurements) -> str:
    """The option that adds seeds to those that there are."""
    present = sorted(set(map(int, measured.frame["seed"])))
    missing = max(0, _STRONGEST.least_seeds - len(present))
    seeds = present + [present[-1] + 1 + place for place in range(missing)]
    return f"--set seeds=[{','.join(map(str, seeds))}]"


def _options() -> str:
    return naming.listing([f"{name} “{value}”" for name, value in _STRONGEST.options.items()])


def _failed(results: Results, rows: pd.DataFrame) -> list[str]:
    """The attacks on cohorts of these targets that failed, each as “LiRA on Baseline”."""
    names = {rule.attack for rule in RULES}
    defense_of = dict(zip(rows["target_id"], rows["defense"], strict=True))
    failed = results.comparisons[
        (results.comparisons["status"] != "finished") & results.comparisons["comparison"].isin(names)
    ]
    found = []
    for comparison, members in zip(failed["comparison"], failed["members"], strict=True):
        defenses = {defense_of[each] for each in (() if members is None else members) if each in defense_of}
        found += [f"{naming.attack(str(comparison))} on {naming.display(defense)}" for defense in sorted(defenses)]
    return sorted(set(found))
