"""The tests of the paper's Section 6, with effect sizes: which factors matter, and what correlates with TPVD.

Source: Lin et al. 2020, Section 6 (Shapiro–Wilk, Mann–Whitney U, Kruskal–Wallis H in SPSS). Deviations: the unit of these
tests is a setting, averaged over its seeds. Both U and H are reported; the paper shows only the first. Every test has
an effect size. No conclusion rests on U and H, because differences due to the other factors hide a factor's effect in them.
Instead, levels of a factor are compared on matched settings and blocks of seeds, with Holm's adjustment over the factors.
Whether a factor matters is decided only by a margin: its differences must be shown to lie beyond it, or within it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.measure.targets import FRACTION, GUESSING, guessing_errors, standard_errors
from analysis.statistics.blocks import ALPHA, adjusted, p_value
from analysis.statistics.estimates import Estimate, Values, estimate, p_above, seeds_and_examples
from analysis.statistics.tests import TestResult, holm, kruskal_wallis, mann_whitney, shapiro_wilk, spearman
from analysis.studies.lin2020.factors.frame import FactorStudy, over_seeds
from analysis.studies.lin2020.factors.levels import (
    CELL,
    FACTORS,
    QUANTILES,
    SEQUENCES,
    Cell,
    cell_name,
    kind_name,
    level_name,
    raw_level,
)
from analysis.studies.lin2020.factors.pairs import by_combination, mean_of_combinations

Dependent = Literal["accuracy", "train_accuracy", "loss"]

MARGINS: dict[Dependent, float] = {"accuracy": 0.02, "train_accuracy": 0.02, "loss": 0.05}
"""A factor that changes a mean by no more than this does not matter, however significant the change.

It matters if two of its levels are shown to differ by more, over all combinations of the other factors. It does not matter if
all its levels are shown to differ by less, over all combinations and within each level of each other factor.

Two points of accuracy are less than the smallest gain that the paper's abstract reports on average, 3 points. 0.05 nats
of loss are a factor of 1.05 in the probability of the true class.
"""


@dataclass(frozen=True, kw_only=True)
class Normality:
    """Shapiro–Wilk of the settings of one level, by its label."""

    factor: str
    level: str
    test: TestResult


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One level of a factor minus another, over the combinations of the other factors that have both, matched by seed.

    `difference` is the mean over seeds, None if no combination has both. `slices` has the same difference within each
    level of each other factor, with the level in words.
    """

    levels: tuple[str, str]
    difference: Estimate | None
    slices: tuple[tuple[str, Estimate | None], ...]
    n_combinations: int


UNSIZED = "there is an effect, but it is not shown to exceed the margin"


@dataclass(frozen=True, kw_only=True)
class Influence:
    """One factor's tests.

    `u` compares the second of two levels with the first; it is None if there are more levels. `p_value` is for the
    hypothesis that all contrasts are zero, `p_margin` for all within the margin; both are two-sided and adjusted for several
    contrasts.
    `p_holm` and `p_margin_holm` are also adjusted for the number of factors (Holm). If they are None, `note` says why.
    """

    factor: str
    levels: tuple[str, ...]
    u: TestResult | None
    h: TestResult
    contrasts: tuple[Contrast, ...]
    p_value: float | None
    p_holm: float | None
    p_margin: float | None
    p_margin_holm: float | None
    margin: float
    note: str = ""

    def exceeds(self, comparisons: int = 1) -> bool:
        """Whether two levels are shown to differ by more than the margin, at 0.05 over all comparisons (Bonferroni)."""
        return self.p_margin is not None and self.p_margin * comparisons < ALPHA

    def is_negligible(self, comparisons: int = 1) -> bool:
        """Whether all levels are shown to differ by less than the margin, overall and in each slice, at 0.05.

        Every 95 % interval must lie within the margin. Because all must, no adjustment for their number is needed.
        """
        found = [each for one in self.contrasts for each in (one.difference, *(part for _, part in one.slices))]
        return bool(found) and all(_lies_within(each, self.margin, comparisons) for each in found)

    @property
    def answer(self) -> Literal["matters", "does not matter", "undecided"]:
        """The conclusion on this factor, adjusted for the number of factors."""
        if self.is_negligible():
            return "does not matter"
        return "matters" if self.p_margin_holm is not None and self.p_margin_holm < ALPHA else "undecided"

    @property
    def has_unsized_effect(self) -> bool:
        """Whether it is undecided although the levels are shown to differ."""
        return self.answer == "undecided" and self.p_holm is not None and self.p_holm < ALPHA

    @property
    def conclusion(self) -> str:
        """The answer; if it is undecided, also whether an effect is shown."""
        return f"{self.answer}: {UNSIZED}" if self.has_unsized_effect else self.answer

    @property
    def largest(self) -> Contrast | None:
        """The contrast with the largest difference."""
        known = [one for one in self.contrasts if one.difference is not None]
        return max(known, key=lambda one: abs(one.difference.mean) if one.difference else 0.0, default=None)


def _lies_within(value: Estimate | None, margin: float, comparisons: int) -> bool:
    if value is None:
        return False
    wide = adjusted(value, comparisons)
    return wide.low is not None and wide.high is not None and -margin < wide.low and wide.high < margin


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All tests of one dependent variable."""

    dependent: Dependent
    normality: tuple[Normality, ...]
    influences: tuple[Influence, ...]

    def influence(self, factor: str) -> Influence:
        """The tests of `factor`."""
        return next(one for one in self.influences if one.factor == factor)


def analyze(study: FactorStudy, dependent: Dependent) -> Analysis:
    """The tests of accuracy (on test or on training examples) or convergence (the final loss on training examples)."""
    settings = over_seeds(study.grid)
    normality = []
    tested = []
    for factor in FACTORS:
        groups = {
            raw_level(factor, level): settings.loc[settings[factor] == level, dependent]
            for level in study.levels(factor)
        }
        normality += [
            Normality(factor=factor, level=level, test=shapiro_wilk(values)) for level, values in groups.items()
        ]
        values = list(groups.values())
        u = mann_whitney(values[1], values[0]) if len(values) == 2 else None
        tested.append((factor, tuple(groups), u, kruskal_wallis(values), contrasts(study, factor, dependent)))
    margin = MARGINS[dependent]
    p_values = [_smallest(found) for *_, found in tested]
    p_margins = [_smallest(found, margin) for *_, found in tested]
    influences = [
        Influence(
            factor=factor,
            levels=levels,
            u=u,
            h=h,
            contrasts=found,
            p_value=p,
            p_holm=p_holm,
            p_margin=p_margin,
            p_margin_holm=p_margin_holm,
            margin=margin,
            note="" if p is not None else _why_untested(levels, found),
        )
        for (factor, levels, u, h, found), p, p_holm, p_margin, p_margin_holm in zip(
            tested, p_values, holm(p_values), p_margins, holm(p_margins), strict=True
        )
    ]
    return Analysis(dependent=dependent, normality=tuple(normality), influences=tuple(influences))


def contrasts(study: FactorStudy, factor: str, dependent: Dependent) -> tuple[Contrast, ...]:
    """Every pair of levels of `factor`, the later level minus the earlier.

    Pairs of clip norms that give the same run are left out, because they say nothing about the clip norm.
    """
    known = study.grid[study.grid[dependent].notna()]
    others = [name for name in FACTORS if name != factor]
    found = []
    for first, second in combinations(study.levels(factor), 2):
        sides = [
            known.loc[known[factor] == level, [*others, "seed", "distinct_clip", dependent]]
            for level in (first, second)
        ]
        pairs = sides[0].merge(sides[1], on=[*others, "seed"], suffixes=("_first", "_second"))
        if factor == "clip":
            pairs = pairs[pairs["distinct_clip_first"] != pairs["distinct_clip_second"]]
        pairs = pairs.assign(value=pairs[f"{dependent}_second"] - pairs[f"{dependent}_first"])
        grid = by_combination(pairs, others) if len(pairs) else pd.DataFrame()
        slices = []
        for name in others:
            levels = study.levels(name)
            if len(levels) > 1 and len(pairs):
                of_column = grid.columns.get_level_values(name)
                slices += [
                    (f"{name} {level_name(name, level)}", mean_of_combinations(grid.loc[:, of_column == level]))
                    for level in levels
                    if level in of_column
                ]
        found.append(
            Contrast(
                levels=(raw_level(factor, first), raw_level(factor, second)),
                difference=mean_of_combinations(grid),
                slices=tuple(slices),
                n_combinations=grid.shape[1],
            )
        )
    return tuple(found)


def _smallest(found: tuple[Contrast, ...], margin: float = 0.0) -> float | None:
    """The smallest p-value of the hypotheses that a contrast lies within ±`margin`, adjusted for their number; or None."""
    known = [p for one in found if (p := p_value(one.difference, margin)) is not None]
    return min(1.0, len(found) * min(known)) if known else None


def _why_untested(levels: tuple[str, ...], found: tuple[Contrast, ...]) -> str:
    if len(levels) < 2:
        return "one level only"
    if not any(one.n_combinations for one in found):
        return "no combination has different runs at two levels"
    return "fewer than 2 seeds, or the same value in all seeds"


LEAKS = {
    "auc": "Honest AUC",
    "tpr": "TPR at 1 % FPR",
    "epsilon_lower_bound": "Audited lower bound on ε",
}
"""What membership attacks measured, by column."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """The mean AUC over seeds. A seed's AUC is the mean over its targets, which share members and are not independent.

    Its interval is over seeds and examples. `p_value` is one-sided, of all AUCs being 0.5, as in `beats_guessing`, adjusted for
    the leaks that are judged together (Holm). It is None with one seed, without an interval over examples, or with too few
    examples. Of the `known` targets with an interval over examples, `above` have an interval above 0.5.
    """

    auc: Estimate | None
    p_value: float | None
    above: int
    known: int

    @property
    def shown(self) -> bool | None:
        """Whether a leak is shown; None if nothing can be said."""
        return None if self.p_value is None else self.p_value < ALPHA


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's correlation of TPVD with one measure of leakage, over one group of targets.

    `group` names the targets in words. They belong to one `kind` of mechanism or one `cell`, unless these are None. The units
    are settings, each with the means over its seeds. `leak` says whether the targets leak.
    """

    measure: str
    group: str
    test: TestResult
    leak: Leak
    kind: str | None = None
    cell: Cell | None = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Targets whose settings are correlated, by value or by rank within cells."""

    words: str
    rows: pd.DataFrame
    ranked: bool
    kind: str | None = None
    cell: Cell | None = None


ALL, WITHIN_CELLS = "all settings", "all, ranked within each dataset, model and optimizer"


def tpvd_correlations(study: FactorStudy) -> list[Correlation]:
    """Correlations of TPVD with leakage: over all settings, over ranks within cells, per mechanism, and within each cell.

    Datasets and models differ in leakage and in distortion, which alone causes a correlation over all of them. All
    correlations but the first are therefore within one dataset, model and optimizer, over settings or their ranks.
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
            words = f"{kind_name(kind)}, ranked in the same way"
            groups.append(_Group(words=words, rows=rows[rows["kind"] == kind], ranked=True, kind=kind))
        groups += [_Group(words=cell_name(cell), rows=study.at(cell, rows), ranked=False, cell=cell) for cell in cells]
        groups = [one for one in groups if len(one.rows) or one.words == ALL]
        for one, leaked in zip(groups, _leaks(study, groups), strict=True):
            units = over_seeds(one.rows)
            if measure == "auc":  # an AUC below one half is noise, and ranks nothing
                units = units.assign(auc=units["auc"].clip(lower=GUESSING))
            pair = [_rank_share(units, column) if one.ranked else units[column] for column in ("tpvd", measure)]
            found.append(
                Correlation(
                    measure=measure,
                    group=one.words,
                    test=spearman(list(pair[0]), list(pair[1])),
                    leak=leaked,
                    kind=one.kind,
                    cell=one.cell,
                )
            )
    return found


def _leaks(study: FactorStudy, groups: list[_Group]) -> list[Leak]:
    """The leak of each group. Verdicts rest on all settings and on each cell; those leaks are judged together."""
    leaks = [leak(study, one.rows) for one in groups]
    judged = [one.words == ALL or one.cell is not None for one in groups]
    adjusted = holm([one.p_value if counts else None for one, counts in zip(leaks, judged, strict=True)])
    return [replace(one, p_value=p) if counts else one for one, p, counts in zip(leaks, adjusted, judged, strict=True)]


def _rank_share(rows: pd.DataFrame, column: str) -> pd.Series:
    ranks: Any = rows.groupby(list(CELL))[column]
    return (ranks.rank() - 0.5) / ranks.transform("size")


def leak(study: FactorStudy, rows: pd.DataFrame) -> Leak:
    """What membership attacks measured on these targets. If they leak nothing, TPVD has nothing to track."""
    attacked = rows[rows["auc"].notna()]
    intervals = attacked[attacked["auc_low"].notna() & attacked["auc_high"].notna()]
    by_seed = attacked.groupby("seed")["auc"].mean()
    covariance = _covariance_of_seeds(study, attacked)
    return Leak(
        auc=estimate(by_seed) if covariance is None else seeds_and_examples(by_seed, covariance, FRACTION),
        p_value=None if covariance is None or len(by_seed) < 2 else p_above(by_seed, covariance, GUESSING),
        above=int((intervals["auc_low"] > 0.5).sum()),
        known=len(intervals),
    )


def _covariance_of_seeds(study: FactorStudy, rows: pd.DataFrame) -> Values | None:
    """The covariance of each seed's mean AUC over the choice of examples; None if a target has no standard error.

    Two targets on one dataset whose scores cannot be compared are assumed to be fully correlated.
    """
    errors = np.fmax(standard_errors(rows), guessing_errors(rows))
    errors[np.isnan(standard_errors(rows))] = np.nan
    if not len(rows) or np.isnan(errors).any():
        return None
    panels = list(zip(rows["panel"], rows["dataset"], strict=True))
    of_dataset = rows["dataset"].to_numpy()
    correlation = np.equal.outer(of_dataset, of_dataset).astype(float)
    for panel in set(panels):
        places = np.array([place for place, one in enumerate(panels) if one == panel])
        here = rows.iloc[places]
        between = study.correlations.between(panel, list(here["target_id"]), list(here["dataset"]))
        correlation[np.ix_(places, places)] = between
    of_seed = pd.get_dummies(rows["seed"]).to_numpy(dtype=float)
    weights = of_seed / of_seed.sum(axis=0) * errors[:, None]
    covariance: Values = weights.T @ correlation @ weights
    return covariance


def p_text(value: float | None) -> str:
    """A p-value as people write it."""
    if value is None:
        return "—"
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def p_phrase(value: float) -> str:
    """“p < 0.001” or “p = 0.031”."""
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
