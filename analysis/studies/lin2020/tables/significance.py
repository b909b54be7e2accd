"""Tables of the tests: normality, which factors matter, what correlates with TPVD.

Source: Lin et al. 2020, Tables 8–11. Deviations: see `influences`.
"""

from __future__ import annotations

from analysis import naming
from analysis.statistics.tests import TestResult
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.factors.frame import FactorStudy
from analysis.studies.lin2020.influences import (
    LEAKS,
    MARGINS,
    Analysis,
    Dependent,
    Influence,
    p_text,
    tpvd_correlations,
)
from analysis.tables.model import Column, Entry, Label, Number, Table
from analysis.tables.text import number

QUANTITIES: dict[Dependent, str] = {
    "accuracy": "test accuracy",
    "train_accuracy": "training accuracy",
    "loss": "the final training loss",
}

_NO_TRIALS = "No trial with a fixed clip norm and a sequence finished, so nothing can be tested."
_SAME_TRIALS = "The trials are those named under Table 8."
_UNITS = "A unit is a setting, with the mean over its seeds; settings that give the same run count once."


def _result(test: TestResult | None, value: float | None, decimals: int, signed: bool = False) -> Number:
    if test is None:
        return Number(value=None)
    return Number(value=value, decimals=decimals, signed=signed, text=test.note if test.note else "")


def _p(value: float | None, adjusted: float | None = None) -> Number:
    return Number(value=value, text=p_text(value), small=() if adjusted is None else (f"Holm {p_text(adjusted)}",))


def normality_table(study: FactorStudy, analysis: Analysis, name: str, title: str) -> Table:
    """Tables 8 and 9: are the values of each level normally distributed?"""
    rows: list[tuple[Entry, ...]] = [
        (one.factor, Label(value=one.level), _result(one.test, one.test.statistic, 3), one.test.n, _p(one.test.p_value))
        for one in analysis.normality
    ]
    return Table(
        name=name,
        title=title,
        caption=lin2020.CONCLUSIONS.get(name, ""),
        columns=(
            Column(key="factor", name="Factor", kind="label"),
            Column(key="level", name="Level", kind="label"),
            Column(key="statistic", name="W"),
            Column(key="df", name="df"),
            Column(key="p", name="Sig."),
        ),
        rows=tuple(rows),
        notes=(
            study.note if name == "lin_table8" else _SAME_TRIALS,
            f"{_UNITS} If p is below 0.05, the values of that level are not normally distributed. As in the paper, p is not "
            "adjusted. df is the number of settings. Each level of a factor mixes all levels of the others, which alone "
            "makes most distributions far from normal.",
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


def influences_table(analysis: Analysis, name: str, title: str) -> Table:
    """Tables 10 and 11: which factors matter, and by how much?"""
    decimals = 3
    rows: list[tuple[Entry, ...]] = []
    for one in analysis.influences:
        u, h = one.u, one.h
        rows.append(
            (
                one.factor,
                ", ".join(naming.display(level) for level in one.levels),
                h.n,
                _result(u, u.statistic if u else None, 1),
                _p(u.p_value if u else None),
                _interval(u),
                _end(u, "low"),
                _end(u, "high"),
                _result(h, h.statistic, 2),
                _p(h.p_value),
                Number(value=h.effect),
                *_matched(one, decimals),
            )
        )
    margin = MARGINS[analysis.dependent]
    return Table(
        name=name,
        title=title,
        caption=lin2020.CONCLUSIONS.get(name, ""),
        columns=(
            Column(key="factor", name="Factor", kind="label"),
            Column(key="levels", name="Levels", kind="label"),
            Column(key="n", name="n"),
            Column(key="u", name="U"),
            Column(key="u_p", name="p"),
            Column(key="effect", name="Cliff’s δ"),
            Column(key="effect_low", csv_only=True),
            Column(key="effect_high", csv_only=True),
            Column(key="h", name="H"),
            Column(key="h_p", name="p"),
            Column(key="epsilon_squared", name="ε²"),
            Column(key="matched_levels", name="Matched levels", kind="label"),
            Column(key="difference", name="Difference"),
            Column(key="difference_low", csv_only=True),
            Column(key="difference_high", csv_only=True),
            Column(key="matched_p", name="p"),
            Column(key="matched_p_holm", csv_only=True),
            Column(key="answer", name="Verdict", kind="label"),
        ),
        rows=tuple(rows),
        notes=(
            f"Of {QUANTITIES[analysis.dependent]}. {_SAME_TRIALS} {_UNITS} U is Mann & Whitney’s, of the second of two levels over "
            "the first, with Cliff’s delta: above zero, the second level has the larger values. Its interval is Feng & "
            "Cliff’s. H is Kruskal & Wallis’s, with ε². Both are as in the paper and not adjusted. The effects of other factors "
            "easily hide a factor’s own, so no conclusion rests on U and H.",
            "The matched difference is between two levels over all combinations of the other factors, averaged within a "
            "seed; interval and p are Student’s over seeds. With more than two levels, the largest difference is shown, and p is "
            "adjusted for their number. Holm’s p is also adjusted for the factors of this table. Below 0.05 there is an effect, "
            f"which need not matter. A factor matters if it is shown to move the mean by more than {margin:g}: the interval, "
            f"adjusted in the same way, lies beyond ±{margin:g} on one side. It does not matter if every 95 % interval lies within "
            "the margin, over all combinations and within each level of each other factor. Otherwise it is undecided. The margin "
            f"was set beforehand ({lin2020.MARGIN_IN_WORDS[analysis.dependent]}). With a probability of at most 5 %, a factor that "
            "moves the mean by the margin or less is said to matter, or one that moves it by the margin or more is said not to.",
        ),
        missing="" if analysis.normality else _NO_TRIALS,
    )


def _matched(one: Influence, decimals: int) -> tuple[Entry, ...]:
    largest = one.largest
    if largest is None or largest.difference is None:
        none = Number(value=None)
        return "", Number(value=None, text=one.note), none, none, none, none, one.conclusion
    difference = largest.difference
    text = number(difference.mean, decimals, signed=True)
    if difference.low is not None and difference.high is not None:
        text += f" [{number(difference.low, decimals)}, {number(difference.high, decimals)}]"
    first, second = (naming.display(level) for level in largest.levels)
    return (
        f"{second} − {first}",
        Number(value=difference.mean, text=text, small=(one.note,) if one.note else ()),
        Number(value=difference.low),
        Number(value=difference.high),
        _p(one.p_value, one.p_holm),
        _p(one.p_holm),
        one.conclusion,
    )


def _end(test: TestResult | None, which: str) -> Number:
    value = None if test is None else test.effect_low if which == "low" else test.effect_high
    return Number(value=value)


def leakage_table(study: FactorStudy) -> Table:
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
    return Table(
        name="lin_tpvd_leakage",
        title="Does TPVD correlate with what membership attacks measured?",
        caption=lin2020.CONCLUSIONS["lin_tpvd_leakage"],
        columns=(
            Column(key="measure", name="Leakage", kind="label"),
            Column(key="group", name="Settings", kind="label"),
            Column(key="n", name="n"),
            Column(key="spearman", name="Spearman’s ρ"),
            Column(key="spearman_low", csv_only=True),
            Column(key="spearman_high", csv_only=True),
            Column(key="p", name="p"),
        ),
        rows=tuple(rows),
        notes=(
            "Below zero, settings whose weights were changed more leak less, as expected of a privacy metric. "
            f"{_UNITS} p is not adjusted for the number of groups.",
        )
        if rows
        else (),
        missing="" if rows else "No target has both a TPVD and a finished membership attack.",
    )
