"""The plain-words summary of a factor study, computed from its numbers."""

from __future__ import annotations

import pandas as pd

from analysis import naming
from analysis.factor_claims import track_words
from analysis.factor_study import AC, FactorStudy, kind_name, mean_over_seeds, ordered, paired
from analysis.factor_tests import ALPHA, Analysis, analyze, p_phrase
from analysis.findings import Finding
from analysis.statistics import Estimate, sign
from analysis.table_output import estimate_text, number


def summarize_factors(study: FactorStudy) -> list[Finding]:
    """What a reader of a factor study should know first."""
    accuracy, loss = analyze(study, "accuracy"), analyze(study, "loss")
    findings = [
        ("Noise first or clipping first?", _sequence(study, accuracy, loss)),
        ("Does the paper’s metric track privacy?", track_words(study)),
        ("Which factors matter", [_factors("accuracy", accuracy), _factors("convergence", loss), study.note]),
        ("Does the attacker beat guessing?", _guessing(study)),
        ("What is guaranteed", _guarantees(study)),
    ]
    return [Finding(heading=heading, sentences=tuple(sentences)) for heading, sentences in findings]


def _sequence(study: FactorStudy, accuracy: Analysis, loss: Analysis) -> list[str]:
    sentences = []
    for dataset in ordered("dataset", study.compared["dataset"]):
        here = study.compared[study.compared["dataset"] == dataset]
        parts = []
        for column, name, decimals in (
            ("accuracy", "test accuracy", 3),
            ("loss", "training loss", 3),
            ("tpvd", "TPVD", 3),
        ):
            change = mean_over_seeds(paired(here, column))
            if change is not None:
                parts.append(f"{name} {estimate_text(change, decimals, signed=True)} ({_side(change)})")
        if parts:
            sentences.append(f"{naming.display(dataset)}, AC − CA, same seed: {'; '.join(parts)}.")
    if not sentences:
        return ["No trial under noise first has its pair under clipping first, so this was not measured."]
    for name, analysis, decimals in (("accuracy", accuracy, 3), ("training loss", loss, 3)):
        pairs = analysis.pairs
        if pairs.test.p_value is not None and pairs.shift is not None:
            adjusted = analysis.pairs_adjusted if analysis.pairs_adjusted is not None else pairs.test.p_value
            interval = (
                ""
                if pairs.low is None or pairs.high is None
                else f" [{number(pairs.low, decimals)}, {number(pairs.high, decimals)}]"
            )
            sentences.append(
                f"Over all {pairs.test.n} pairs, {name} moves by {number(pairs.shift, decimals, signed=True)}{interval} "
                f"(Hodges–Lehmann; Wilcoxon {p_phrase(adjusted)} by Holm)."
            )
    if study.frame.loc[study.frame["kind"] == AC, "epsilon_spent"].isna().all():
        sentences.append(
            "AC has no ε: a gradient that meets the noise before it is clipped has no bounded sensitivity."
        )
    return sentences


def _side(change: Estimate) -> str:
    return {1: "above zero", -1: "below zero", 0: "holds zero", None: "one seed"}[sign(change)]


def _factors(dependent: str, analysis: Analysis) -> str:
    tested = [one for one in analysis.influences if one.matters is not None]
    if not tested:
        return f"No factor could be tested for {dependent}."
    ranked = sorted(tested, key=lambda one: -(one.h.effect or 0.0))
    yes = [f"{one.factor} (ε² {number(one.h.effect, 3)})" for one in ranked if one.matters]
    no = [one.factor for one in ranked if not one.matters]
    parts = [f"{naming.listing(yes)} {'matters' if len(yes) == 1 else 'matter'}"] if yes else []
    if no:
        parts.append(f"no effect of {naming.listing(no)} is shown")
    return f"For {dependent}, by Kruskal–Wallis at {ALPHA} after Holm: {'; '.join(parts)}."


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
                f"the AUC’s interval over examples lies above 0.5 for {above} of {len(known)} targets (mean AUC "
                f"{known['auc'].mean():.3f})"
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
        "Each interval is at 95 %: among many targets without a leak, one in forty lies above 0.5 by chance."
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
            "ε that was proved: one of the two is wrong, "
            "or the audit’s one chance in twenty came up."
        )
    sentences.append("Where nothing is guaranteed, a low AUC says only that these attacks failed.")
    return sentences or ["No trial finished."]
