"""Which factors matter, and what TPVD goes with: the tests of the second paper's Section 6, with effect sizes.

Source: Lin et al. 2020, Section 6 (Shapiro–Wilk, Mann–Whitney U, Kruskal–Wallis H in SPSS). Deviations: both
tests are reported where the paper shows the first alone; p-values stand beside those of Holm; every test has
its effect size; and AC is also compared with CA on matched pairs, which the paper's design has and its tests
leave unused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from analysis.factor_study import (
    CELL,
    FACTORS,
    QUANTILES,
    SEQUENCES,
    Cell,
    FactorStudy,
    cell_name,
    kind_name,
    paired,
    raw_level,
)
from analysis.statistics import (
    PairedResult,
    TestResult,
    holm,
    kruskal_wallis,
    mann_whitney,
    shapiro_wilk,
    spearman,
    wilcoxon_paired,
)

Dependent = Literal["accuracy", "loss"]

ALPHA = 0.05
_ABOVE_BY_CHANCE = 0.025  # the share of two-sided 95 % intervals that lie above the truth


@dataclass(frozen=True, kw_only=True)
class Normality:
    """Shapiro–Wilk of the trials of one level, by its label."""

    factor: str
    level: str
    test: TestResult


@dataclass(frozen=True, kw_only=True)
class Influence:
    """One factor's tests. `u` compares the second of two levels with the first; None where there are more.

    The adjusted p-values are Holm's, over all tests of the same dependent variable.
    """

    factor: str
    levels: tuple[str, ...]
    u: TestResult | None
    u_adjusted: float | None
    h: TestResult
    h_adjusted: float | None

    @property
    def matters(self) -> bool | None:
        """Whether the levels differ by H after Holm's adjustment; None where there is no test."""
        return None if self.h_adjusted is None else self.h_adjusted < ALPHA


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that was tested of one dependent variable; `pairs` compares AC with CA, matched."""

    normality: tuple[Normality, ...]
    influences: tuple[Influence, ...]
    pairs: PairedResult
    pairs_adjusted: float | None

    def influence(self, factor: str) -> Influence:
        """The tests of `factor`."""
        return next(one for one in self.influences if one.factor == factor)


def analyze(study: FactorStudy, dependent: Dependent) -> Analysis:
    """The tests of accuracy (on test examples) or convergence (the final loss on training examples).

    The family of Holm's adjustment is every test made of the dependent variable: U of the factors with two
    levels, H of all factors, and the matched comparison of the sequences. U and H of one factor ask the same,
    so the adjustment is strict.
    """
    normality = []
    tested = []
    for factor in FACTORS:
        groups = {
            raw_level(factor, level): study.grid.loc[study.grid[factor] == level, dependent]
            for level in study.levels(factor)
        }
        normality += [
            Normality(factor=factor, level=level, test=shapiro_wilk(values)) for level, values in groups.items()
        ]
        values = list(groups.values())
        u = mann_whitney(values[1], values[0]) if len(values) == 2 else None
        tested.append((factor, tuple(groups), u, kruskal_wallis(values)))
    pairs = wilcoxon_paired(paired(study.grid, dependent)["value"])
    family = [None if u is None else u.p_value for _, _, u, _ in tested]
    family += [h.p_value for _, _, _, h in tested]
    adjusted = holm([*family, pairs.test.p_value])
    influences = tuple(
        Influence(factor=factor, levels=levels, u=u, u_adjusted=u_adjusted, h=h, h_adjusted=h_adjusted)
        for (factor, levels, u, h), u_adjusted, h_adjusted in zip(
            tested, adjusted[: len(tested)], adjusted[len(tested) : -1], strict=True
        )
    )
    return Analysis(normality=tuple(normality), influences=influences, pairs=pairs, pairs_adjusted=adjusted[-1])


LEAKS = {
    "auc": "Honest AUC",
    "tpr": "TPR at 1 % FPR",
    "epsilon_lower_bound": "Audited lower bound on ε",
}
"""What membership attacks measured, by column."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Of how many targets the AUC's interval over examples lies above 0.5; `known` have an interval.

    `shown` says whether these are more than the one in forty that chance gives where nothing leaks (binomial
    test at 0.05); None where no target has an interval.
    """

    above: int
    known: int
    shown: bool | None


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's correlation of TPVD with one measure of leakage, over one group of targets, and whether these leak.

    `group` says in words which targets: those of one `kind` of mechanism or of one `cell`, where these are not None.
    """

    measure: str
    group: str
    test: TestResult
    leak: Leak
    kind: str | None = None
    cell: Cell | None = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Targets to correlate, as they are or by their ranks within cells."""

    words: str
    rows: pd.DataFrame
    ranked: bool
    kind: str | None = None
    cell: Cell | None = None


ALL, WITHIN_CELLS = "all targets", "all, ranked within each dataset, model and optimizer"


def tpvd_correlations(study: FactorStudy) -> list[Correlation]:
    """Does TPVD go with leakage? Over all targets, over all and each mechanism ranked within cells, and within each cell.

    Datasets and models leak differently and are distorted differently, which alone makes a correlation over
    all of them: so all but the first are of targets, or of ranks among targets, of one dataset, model and optimizer.
    """
    measured = study.frame[study.frame["tpvd"].notna()]
    found = []
    for measure in LEAKS:
        rows = measured[measured[measure].notna()]
        cells = [cell for cell in study.cells if len(study.at(cell, rows))]
        groups = [_Group(words=ALL, rows=rows, ranked=False)]
        if len(cells) > 1:
            groups.append(_Group(words=WITHIN_CELLS, rows=rows, ranked=True))
        for kind in (*SEQUENCES, *QUANTILES):
            words = f"{kind_name(kind)}, ranked likewise"
            groups.append(_Group(words=words, rows=rows[rows["kind"] == kind], ranked=True, kind=kind))
        groups += [_Group(words=cell_name(cell), rows=study.at(cell, rows), ranked=False, cell=cell) for cell in cells]
        for one in groups:
            if one.rows.empty and one.words != ALL:
                continue
            pair = [_rank_share(one.rows, column) if one.ranked else one.rows[column] for column in ("tpvd", measure)]
            found.append(
                Correlation(
                    measure=measure,
                    group=one.words,
                    test=spearman(list(pair[0]), list(pair[1])),
                    leak=leak(one.rows),
                    kind=one.kind,
                    cell=one.cell,
                )
            )
    return found


def _rank_share(rows: pd.DataFrame, column: str) -> pd.Series:
    ranks: Any = rows.groupby(list(CELL))[column]
    return (ranks.rank() - 0.5) / ranks.transform("size")


def leak(rows: pd.DataFrame) -> Leak:
    """Whether membership attacks got anything from these targets at all: else there is nothing for TPVD to track."""
    intervals = rows[rows["auc_low"].notna() & rows["auc_high"].notna()]
    above, known = int((intervals["auc_low"] > 0.5).sum()), len(intervals)
    if not known:
        return Leak(above=0, known=0, shown=None)
    from scipy import stats

    by_chance = float(stats.binomtest(above, known, _ABOVE_BY_CHANCE, alternative="greater").pvalue)
    return Leak(above=above, known=known, shown=by_chance < ALPHA)


def p_text(value: float | None) -> str:
    """A p-value as people write it."""
    if value is None:
        return "—"
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def p_phrase(value: float) -> str:
    """“p < 0.001” or “p = 0.031”."""
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
