"""The summary of a factor study in plain words, computed from its numbers."""

from __future__ import annotations

import pandas as pd

from analysis import naming
from analysis.report.findings import Finding
from analysis.statistics.blocks import ALPHA
from analysis.statistics.estimates import Estimate, sign
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.claims import shared_rates, track_words
from analysis.studies.lin2020.factors.frame import FactorStudy
from analysis.studies.lin2020.factors.levels import AC, QUANTILES, SEQUENCES, kind_name, ordered
from analysis.studies.lin2020.factors.pairs import mean_over_seeds, paired
from analysis.studies.lin2020.influences import MARGINS, UNSIZED, Analysis, Influence, analyze, leak, p_phrase
from analysis.studies.lin2020.tables.significance import QUANTITIES
from analysis.tables.text import estimate_text, number


def summarize_factors(study: FactorStudy, judged: FactorStudy | None = None) -> list[Finding]:
    """What a reader of a factor study should know first. `judged` has the AUCs of the primary attack, if there is one."""
    analyses = [analyze(study, dependent) for dependent in ("accuracy", "train_accuracy", "loss")]
    findings = [
        ("Noise first or clipping first?", _sequence(study, analyses)),
        ("How the learning rate limits these comparisons", _rates(study)),
        ("Does the paper’s metric track privacy?", [*track_words(study), *_initializations(study)]),
        ("Which factors matter", [*map(_factors, analyses), study.note]),
        ("Does the attacker beat guessing?", _guessing(judged or study)),
        ("What is guaranteed", _guarantees(study)),
    ]
    return [Finding(heading=heading, sentences=tuple(sentences)) for heading, sentences in findings if sentences]


def _sequence(study: FactorStudy, analyses: list[Analysis]) -> list[str]:
    sentences = []
    for dataset in ordered("dataset", study.compared["dataset"]):
        here = study.compared[study.compared["dataset"] == dataset]
        parts = []
        for column, name in (
            ("accuracy", "test accuracy"),
            ("train_accuracy", "training accuracy"),
            ("loss", "training loss"),
            ("tpvd", "TPVD"),
        ):
            change = mean_over_seeds(paired(here, column))
            if change is not None:
                parts.append(f"{name} {estimate_text(change, 3, signed=True)} ({_side(change)})")
        if parts:
            sentences.append(f"{naming.display(dataset)}, AC − CA, same seed: {'; '.join(parts)}.")
    if not sentences:
        return ["No trial with noise first has a matching trial with clipping first, so this was not measured."]
    for analysis in analyses:
        one = analysis.influence("sequence")
        if one.largest is not None and one.p_holm is not None:
            sentences.append(
                f"Over {one.largest.n_combinations} matched combinations, {QUANTITIES[analysis.dependent]} moves by "
                f"{estimate_text(one.largest.difference, 3, signed=True)} ({p_phrase(one.p_holm)} by Holm over the factors)."
            )
    if study.frame.loc[study.frame["kind"] == AC, "epsilon_spent"].isna().all():
        sentences.append("AC has no ε: a gradient that is noised before it is clipped has no bounded sensitivity.")
    return sentences


def _rates(study: FactorStudy) -> list[str]:
    shared = shared_rates(study)
    if not shared:
        return []
    sentences = [shared]
    kinds = study.frame.groupby("optimizer")["kind"].agg(set)
    if any(optimizer.startswith("sgd") and set(SEQUENCES) <= kinds[optimizer] for optimizer in kinds.index):
        sentences.append(lin2020.RATE_IN_WORDS)
    if set(study.frame["kind"]) & set(QUANTILES):
        sentences.append(
            "The learning rate also confounds AC’s gain over quantile clipping at a small clip norm. Clipping first at the same "
            "clip norm shows whether the quantile contributes to that gain: in a reduced run on MNIST, its accuracy equalled that "
            "of quantile clipping (0.897 and 0.895)."
        )
    return sentences


def _initializations(study: FactorStudy) -> list[str]:
    """TPVD against the twin of the same initialization, compared with TPVD against another initialization."""
    known = study.frame[study.frame["tpvd"].notna() & study.frame["tpvd_other_init"].notna()]
    if known.empty:
        return ["TPVD against a twin of another initialization needs the undefended model of a second seed."]
    ends = [
        (number(known[column].min(), 2), number(known[column].max(), 2), number(known[column].median(), 2))
        for column in ("tpvd", "tpvd_other_init")
    ]
    (low, high, middle), (other_low, other_high, other_middle) = ends
    return [
        f"Against the twin of the same initialization, TPVD is {low} to {high} here (median {middle}); against the undefended "
        f"model of another seed, {other_low} to {other_high} (median {other_middle}). {lin2020.TPVD_IN_WORDS}"
    ]


def _side(change: Estimate) -> str:
    without = "one seed" if change.n == 1 else "the same in all seeds"
    return {1: "above zero", -1: "below zero", 0: "contains zero", None: without}[sign(change)]


def _factors(analysis: Analysis) -> str:
    quantity = QUANTITIES[analysis.dependent]
    by_answer = {
        answer: [one for one in analysis.influences if one.p_value is not None and one.conclusion == answer]
        for answer in _ANSWERS
    }
    if not any(by_answer.values()):
        return f"No factor could be tested for {quantity}."
    parts = []
    for answer, (one_word, several) in _ANSWERS.items():
        found = sorted(by_answer[answer], key=lambda one: -_size(one))
        if found:
            named = [f"{one.factor} ({number(_size(one), 3)})" for one in found]
            parts.append(f"{naming.listing(named)} {one_word if len(named) == 1 else several}")
    return (
        f"For {quantity}, by matched differences over seeds (the largest in parentheses), at {ALPHA:g} after Holm and with a margin "
        f"of {MARGINS[analysis.dependent]:g}: {'; '.join(parts)}."
    )


_ANSWERS = {
    "matters": ("matters", "matter"),
    "does not matter": ("does not matter", "do not matter"),
    f"undecided: {UNSIZED}": (
        "has an effect that is not shown to exceed the margin",
        "have effects that are not shown to exceed the margin",
    ),
    "undecided": ("is undecided", "are undecided"),
}


def _size(one: Influence) -> float:
    largest = one.largest
    return 0.0 if largest is None or largest.difference is None else abs(largest.difference.mean)


def _by_kind(study: FactorStudy) -> list[tuple[str, pd.DataFrame]]:
    kinds = ordered("kind", study.frame["kind"])
    return [(kind_name(kind), study.frame[study.frame["kind"] == kind]) for kind in kinds]


def _guessing(study: FactorStudy) -> list[str]:
    sentences = []
    for name, rows in _by_kind(study):
        known = rows[rows["auc_low"].notna()]
        bounds = rows["epsilon_lower_bound"].dropna()
        parts = []
        if len(known):
            above = int((known["auc_low"] > 0.5).sum())
            parts.append(
                f"mean AUC over seeds and examples {estimate_text(leak(study, rows).auc, 3)}; the AUC’s interval over examples "
                f"lies above 0.5 for {above} of {len(known)} targets"
            )
        if len(bounds):
            positive = int((bounds > 0).sum())
            parts.append(
                f"the audit’s lower bound on ε above zero for {positive} of {len(bounds)} (largest {bounds.max():.2f})"
            )
        if parts:
            sentences.append(f"{name}: {'; '.join(parts)}.")
    if not sentences:
        return ["No membership attack has a finished best_of row, so this was not measured."]
    sentences.append(
        "Each interval has 95 % confidence. Among many targets without a leak, one interval in forty lies above 0.5 by chance. "
        "Targets of one seed share members, so if one of them does, others probably do too."
    )
    return sentences


def _guarantees(study: FactorStudy) -> list[str]:
    sentences = []
    for name, rows in _by_kind(study):
        proved = rows[rows["epsilon_spent"].notna()]
        reasons = sorted({str(reason).rstrip(". ") for reason in rows["no_guarantee_reason"].dropna()})
        if len(proved):
            low, high = proved["epsilon_spent"].min(), proved["epsilon_spent"].max()
            span = f"ε = {low:.3g}" if low == high else f"ε from {low:.3g} to {high:.3g}"
            deltas = naming.listing(sorted({naming.scientific(float(delta)) for delta in proved["delta"].dropna()}))
            text = f"{name}: {span} at δ = {deltas}, for one run"
            unproved = len(rows) - len(proved)
            sentences.append(text + (f"; {unproved} of {len(rows)} targets have none." if unproved else "."))
        elif len(rows):
            sentences.append(f"{name}: no formal guarantee: {'; '.join(reasons) or 'the reason was not recorded'}.")
    contradicted = study.frame[study.frame["epsilon_lower_bound"] > study.frame["epsilon_spent"]]
    if len(contradicted):
        sentences.append(
            f"{len(contradicted)} target{' has' if len(contradicted) == 1 else 's have'} an audited lower bound above the "
            "proved ε: one of the two is wrong, "
            "or this is the one audit in twenty that errs by chance."
        )
    sentences.append("Without a guarantee, a low AUC says only that these attacks failed.")
    return sentences or ["No trial finished."]
