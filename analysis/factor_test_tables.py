"""Tables of the tests of a factor study: normality, which factors matter, what TPVD goes with.

Source: Lin et al. 2020, Tables 8–11. Deviations: see `factor_tests`.
"""

from __future__ import annotations

from analysis import lin2020, naming
from analysis.factor_study import FactorStudy
from analysis.factor_tests import LEAKS, Analysis, Dependent, p_text, tpvd_correlations
from analysis.sheets import Column, Entry, Label, Number, Sheet
from analysis.statistics import TestResult
from analysis.table_output import number

_NO_TRIALS = "No trial with a fixed clip norm and a sequence finished, so nothing can be tested."
_SAME_TRIALS = "The trials are those named under Table 8."


def _result(test: TestResult | None, value: float | None, decimals: int, signed: bool = False) -> Number:
    if test is None:
        return Number(value=None)
    return Number(value=value, decimals=decimals, signed=signed, text=test.note if test.note else "")


def _p(value: float | None, adjusted: float | None = None) -> Number:
    return Number(value=value, text=p_text(value), small="" if adjusted is None else f"Holm {p_text(adjusted)}")


def normality_table(study: FactorStudy, analysis: Analysis, name: str, title: str) -> Sheet:
    """Tables 8 and 9: are the values of each level normally distributed?"""
    rows: list[tuple[Entry, ...]] = [
        (one.factor, Label(value=one.level), _result(one.test, one.test.statistic, 3), one.test.n, _p(one.test.p_value))
        for one in analysis.normality
    ]
    return Sheet(
        name=name,
        title=title,
        said=lin2020.CONCLUSIONS[name],
        columns=(
            Column(key="factor", name="Factor", words=True),
            Column(key="level", name="Level", words=True),
            Column(key="statistic", name="W"),
            Column(key="df", name="df"),
            Column(key="p", name="Sig."),
        ),
        rows=tuple(rows),
        notes=(
            study.note if name == "lin_table8" else _SAME_TRIALS,
            "Below 0.05, the values of that level are not normally distributed; as in the paper, not "
            "adjusted. df is the number of trials. Levels of one factor hold those of the others mixed, which alone "
            "makes most of them far from normal.",
        ),
        missing="" if rows else _NO_TRIALS,
    )


def _interval(test: TestResult | None, decimals: int = 2) -> Number:
    """An effect size with its interval as text."""
    if test is None or test.effect is None:
        return Number(value=None, text=test.note if test is not None else "")
    shown = number(test.effect, decimals, signed=True)
    if test.effect_low is not None and test.effect_high is not None:
        shown += f" [{number(test.effect_low, decimals)}, {number(test.effect_high, decimals)}]"
    return Number(value=test.effect, text=shown)


def influences_table(analysis: Analysis, dependent: Dependent, name: str, title: str) -> Sheet:
    """Tables 10 and 11: which factors matter, and by how much?"""
    rows: list[tuple[Entry, ...]] = []
    for one in analysis.influences:
        u, h = one.u, one.h
        rows.append(
            (
                one.factor,
                ", ".join(naming.display(level) for level in one.levels),
                h.n,
                _result(u, u.statistic if u else None, 1),
                _p(u.p_value if u else None, one.u_adjusted),
                _p(one.u_adjusted),
                _interval(u),
                _end(u, "low"),
                _end(u, "high"),
                _result(h, h.statistic, 2),
                _p(h.p_value, one.h_adjusted),
                _p(one.h_adjusted),
                Number(value=h.effect),
            )
        )
    pairs = analysis.pairs
    if pairs.test.n:
        rows.append(
            (
                "sequence, matched",
                "CA, AC",
                f"{pairs.test.n} pairs",
                _result(pairs.test, pairs.test.statistic, 1),
                _p(pairs.test.p_value, analysis.pairs_adjusted),
                _p(analysis.pairs_adjusted),
                _interval(pairs.test),
                Number(value=None),
                Number(value=None),
                Number(value=None),
                Number(value=None),
                Number(value=None),
                Number(value=None),
            )
        )
    what = "test accuracy" if dependent == "accuracy" else "the final training loss"
    notes = [
        f"Of {what}. {_SAME_TRIALS} U is Mann & Whitney’s of the second of two levels over the first, with Cliff’s delta: above zero, "
        "the second level has the larger values; its interval is Feng & Cliff’s. H is Kruskal & Wallis’s, with ε². "
        "Holm’s p is adjusted for the family of all tests in this table. The unpaired tests take trials as independent, "
        "though trials of one seed share initialization and batches.",
    ]
    if pairs.test.n:
        notes.append(_paired_words(analysis, dependent))
    return Sheet(
        name=name,
        title=title,
        said=lin2020.CONCLUSIONS[name],
        columns=(
            Column(key="factor", name="Factor", words=True),
            Column(key="levels", name="Levels", words=True),
            Column(key="n", name="n"),
            Column(key="u", name="U or W"),
            Column(key="u_p", name="p"),
            Column(key="u_p_holm", name="", csv_only=True),
            Column(key="effect", name="Cliff’s δ or r"),
            Column(key="effect_low", name="", csv_only=True),
            Column(key="effect_high", name="", csv_only=True),
            Column(key="h", name="H"),
            Column(key="h_p", name="p"),
            Column(key="h_p_holm", name="", csv_only=True),
            Column(key="epsilon_squared", name="ε²"),
        ),
        rows=tuple(rows),
        notes=tuple(notes),
        missing="" if analysis.normality else _NO_TRIALS,
    )


def _end(test: TestResult | None, which: str) -> Number:
    value = None if test is None else test.effect_low if which == "low" else test.effect_high
    return Number(value=value)


def _paired_words(analysis: Analysis, dependent: Dependent) -> str:
    pairs = analysis.pairs
    decimals = 4 if dependent == "accuracy" else 3
    words = (
        "The matched row is Wilcoxon’s signed-rank test of AC against the CA trial with the same dataset, model, "
        "optimizer, noise, clip norm and seed, with the rank-biserial r"
    )
    if pairs.shift is None:
        return words + "."
    shift = number(pairs.shift, decimals, signed=True)
    if pairs.low is None or pairs.high is None:
        return f"{words}. AC − CA by Hodges & Lehmann: {shift}; too few pairs for an interval."
    ends = f"{number(pairs.low, decimals)} to {number(pairs.high, decimals)}"
    return f"{words}. AC − CA by Hodges & Lehmann: {shift}, 95 % interval {ends}."


def leakage_table(study: FactorStudy) -> Sheet:
    """Spearman's correlation of TPVD with each measure of leakage, over all targets and within groups."""
    rows: list[tuple[Entry, ...]] = []
    for one in tpvd_correlations(study):
        if one.test.n:
            rows.append(
                (
                    LEAKS[one.measure],
                    one.group,
                    one.test.n,
                    _interval(one.test),
                    _end(one.test, "low"),
                    _end(one.test, "high"),
                    _p(one.test.p_value),
                )
            )
    return Sheet(
        name="lin_tpvd_leakage",
        title="Does TPVD go with what membership attacks measured?",
        said=lin2020.CONCLUSIONS["lin_tpvd_leakage"],
        columns=(
            Column(key="measure", name="Leakage", words=True),
            Column(key="group", name="Targets", words=True),
            Column(key="n", name="n"),
            Column(key="spearman", name="Spearman’s ρ"),
            Column(key="spearman_low", name="", csv_only=True),
            Column(key="spearman_high", name="", csv_only=True),
            Column(key="p", name="p"),
        ),
        rows=tuple(rows),
        notes=(
            "Below zero, targets whose weights were changed more leak less, as a metric of privacy should have it. Not "
            "adjusted for their number. Seeds of one setting are not independent of each other, so p is too small.",
        )
        if rows
        else (),
        missing="" if rows else "No target has both a TPVD and a finished membership attack.",
    )
