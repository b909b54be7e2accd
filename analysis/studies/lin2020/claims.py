"""What Lin et al. (2020) claimed, judged by the numbers of these results.

`analysis.claims` has the rule by which votes become verdicts. The intervals of all votes are over seeds, assumed to be
independent and near normal. The tests of normality and of rank correlation assume independent settings, although settings of
one seed share their members. Their error rates hold only as far as that assumption does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pandas as pd

from analysis import naming
from analysis.claims import ABOVE_ZERO, BELOW_ZERO, Claim, Vote, decide
from analysis.statistics.blocks import ALPHA, adjusted
from analysis.statistics.estimates import Bounds, Estimate, estimate
from analysis.statistics.tests import TestResult, spearman
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.factors.frame import FactorStudy, over_seeds
from analysis.studies.lin2020.factors.levels import AC, CA, SEQUENCES, Cell, cell_name, kind_name, ordered
from analysis.studies.lin2020.factors.pairs import mean_over_seeds, paired
from analysis.studies.lin2020.influences import (
    ALL,
    LEAKS,
    UNSIZED,
    WITHIN_CELLS,
    Analysis,
    Correlation,
    Dependent,
    Influence,
    Normality,
    analyze,
    p_phrase,
    tpvd_correlations,
)
from analysis.studies.lin2020.tables.clipping import adaptive_cells, ladders
from analysis.studies.lin2020.tables.significance import QUANTITIES
from analysis.studies.lin2020.tables.training import accuracy_gain, loss_reduction
from analysis.tables.text import estimate_text, number

_TRACKS = "a larger TPVD goes with a lower honest AUC"
_MIN_PAIRS = 5  # fewer pairs reach 0.05 only through chance ties
_ACCURACIES: tuple[Dependent, ...] = ("accuracy", "train_accuracy")
_ROUNDED = 0.5  # the abstract rounds its gains to whole points and percent


def judge_factors(study: FactorStudy) -> list[Claim]:
    """The paper's claims. The verdict is "undecided" if the results have no comparison that bears on a claim."""
    analyses = {dependent: analyze(study, dependent) for dependent in (*_ACCURACIES, "loss")}
    correlations = tpvd_correlations(study)
    normality = [(dependent, one) for dependent, analysis in analyses.items() for one in analysis.normality]
    excepted = [pair for pair in normality if _is_excepted(*pair)]
    others = [pair for pair in normality if pair not in excepted]
    rate = shared_rates(study)
    claims = []
    for column in _ACCURACIES:
        on = _on(column)
        fixed = _against_quantiles(study, AC, column)
        claims += [
            _decide(
                f"Noise first (AC) is more accurate than clipping first (CA), {on}.",
                _sequence(study, column, ABOVE_ZERO),
                rate,
            ),
            _decide(
                f"On average, AC gains at least as much accuracy over CA as the abstract says, {on}.",
                _beside_abstract(study, "accuracy_gain", "points", partial(accuracy_gain, column=column)),
                rate,
            ),
            _decide(
                f"Beyond a clip norm of 10, accuracy falls under both sequences, {on}.",
                _ladder_fall(study, column),
                rate,
            ),
            _decide(
                f"At clip norm 0.04, AC is more accurate than quantile clipping, {on}.",
                [Vote(judged=change, claimed=ABOVE_ZERO, words=words) for words, change in fixed],
                _clipping_first(study, column),
                rate,
            ),
            _only(analyses[column], ("dataset", "sequence"), f"accuracy, {on}", rate),
        ]
    return [
        *claims,
        _decide("AC reaches a lower training loss than CA.", _sequence(study, "loss", BELOW_ZERO), rate),
        _decide(
            "On average, AC reduces CA’s training loss by at least as much as the abstract says.",
            _beside_abstract(study, "loss_reduction", "%", loss_reduction),
            rate,
        ),
        _only(analyses["loss"], ("dataset", "noise"), "convergence", rate),
        _decide("AC changes the weights less than CA (lower TPVD).", _sequence(study, "tpvd", BELOW_ZERO), rate),
        decide("TPVD grows with the clip norm under both sequences.", _ladder_trend(study)),
        decide(
            "Accuracy and loss are not normally distributed, except for accuracy on CIFAR-10, and for loss on CIFAR-10 and SVHN.",
            _not_normal(others),
        ),
        decide("On these exceptions they are normally distributed.", _normal(excepted)),
        decide(f"Within a dataset, model and optimizer that leak, {_TRACKS}.", _tracks_within(correlations)),
        decide(f"Across datasets, models and optimizers, {_TRACKS}.", _tracks_across(correlations)),
    ]


def _on(column: Dependent) -> str:
    return "on training examples" if column == "train_accuracy" else "on test examples"


def _decide(text: str, votes: list[Vote], *notes: str) -> Claim:
    """The claim with its verdict. The notes join the evidence where there is any."""
    return _with_notes(decide(text, votes), notes if votes else ())


def _with_notes(claim: Claim, notes: Iterable[str]) -> Claim:
    return replace(claim, evidence=(*claim.evidence, *(note for note in notes if note)))


def shared_rates(study: FactorStudy) -> str:
    """A sentence on how learning rates limit comparisons between arms; empty with fewer than two arms."""
    arms = study.frame[study.frame["sequence"].notna()]
    if arms["setting"].nunique() < 2:
        return ""
    if arms["learning_rate"].isna().all():
        return "The learning rates of the arms were not recorded; they may cause a difference between arms."
    rates = arms.groupby(["model", "optimizer", "dataset"])["learning_rate"].nunique()
    if int(rates.max()) > 1:
        return "Arms have different learning rates, which may cause a difference between arms."
    named = [
        f"{naming.display(str(optimizer))} {naming.listing([f'{rate:g}' for rate in sorted(set(here.dropna()))])}"
        for optimizer, here in arms.groupby("optimizer")["learning_rate"]
    ]
    return (
        f"All arms share one learning rate ({', '.join(named)}), tuned for none of them. A difference between arms may come "
        "from how well this rate suits each."
    )


def _sequence(study: FactorStudy, column: str, claimed: Bounds) -> list[Vote]:
    """AC − CA in each dataset, model and optimizer."""
    votes = []
    for cell in study.cells:
        change = mean_over_seeds(paired(study.at(cell, study.compared), column))
        if change is not None:
            votes.append(Vote(judged=change, claimed=claimed, words=f"{cell_name(cell)}, AC − CA"))
    return votes


def _beside_abstract(
    study: FactorStudy, quantity: str, unit: str, measured: Callable[[pd.DataFrame], Estimate | None]
) -> list[Vote]:
    """Our averages against the abstract's. Those are whole numbers, so ours equals one if it rounds to it."""
    votes = []
    for dataset in ordered("dataset", study.compared["dataset"]):
        for model in ordered("model", study.compared["model"]):
            here = study.compared[(study.compared["dataset"] == dataset) & (study.compared["model"] == model)]
            ours, published = measured(here), lin2020.gain(dataset, model, quantity)
            if ours is None or published is None:
                continue
            words = f"{naming.display(dataset)}, {naming.display(model)}, {unit} (paper {number(published, 0, signed=True)})"
            votes.append(Vote(judged=ours, claimed=(published - _ROUNDED, math.inf), words=words, decimals=1))
    return votes


def _trend(test: TestResult, side: int, comparisons: int) -> int | None:
    """1 if the correlation is significant on the claimed side, −1 if significant on the other after Bonferroni, else 0."""
    if test.p_value is None or test.effect is None or test.n < _MIN_PAIRS:
        return None
    if test.effect * side > 0:
        return 1 if test.p_value < ALPHA else 0
    return -1 if test.p_value * comparisons < ALPHA else 0


def _trend_votes(found: list[tuple[str, TestResult]], side: int) -> list[Vote]:
    told = sum(test.p_value is not None and test.n >= _MIN_PAIRS for _, test in found)
    return [
        Vote(sign=_trend(test, side, told), words=f"{where}: {_correlation_words(test, told)}") for where, test in found
    ]


def _correlation_words(test: TestResult, comparisons: int = 1) -> str:
    if test.p_value is None:
        return f"not computed: {test.note} (n = {test.n})"
    words = f"ρ = {number(test.effect, 2, signed=True)}, {p_phrase(test.p_value)}, n = {test.n}"
    if comparisons > 1 and test.n >= _MIN_PAIRS:
        words += f" ({p_phrase(min(1.0, comparisons * test.p_value))} for all {comparisons} at once)"
    return words


def _ladder_trend(study: FactorStudy) -> list[Vote]:
    """Correlations over clip norms, each with the mean over its seeds. Clip norms that give the same run count once."""
    found = []
    for cell, noise, here in ladders(study):
        for sequence in SEQUENCES:
            rows = here[(here["sequence"] == sequence) & here["tpvd"].notna()]
            if rows.empty:
                continue
            units = over_seeds(rows)
            test = spearman(list(units["distinct_clip"]), list(units["tpvd"]))
            found.append((f"{cell_name(cell)}, noise {noise:g}, {sequence}", test))
    return _trend_votes(found, 1)


def _ladder_fall(study: FactorStudy, column: str) -> list[Vote]:
    votes = []
    for cell, noise, here in ladders(study):
        for sequence in SEQUENCES:
            rows = here[here["sequence"] == sequence]
            clips = [float(clip) for clip in ordered("clip", rows["clip"])]
            # The largest clip norm is compared with the last one that the paper calls safe.
            below = [clip for clip in clips if clip <= lin2020.ACCURACY_FALLS_BEYOND]
            if not below or clips[-1] <= lin2020.ACCURACY_FALLS_BEYOND:
                continue
            change = _by_seed(rows[rows["clip"] == clips[-1]], rows[rows["clip"] == below[-1]], column)
            if change is not None:
                words = f"{cell_name(cell)}, noise {noise:g}, {sequence}, clip norm {clips[-1]:g} − {below[-1]:g}"
                votes.append(Vote(judged=change, claimed=BELOW_ZERO, words=words))
    return votes


def _by_seed(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Estimate | None:
    """Mean over seeds of the difference in `column`, `first` minus `second`, paired by seed."""
    sides = [rows.groupby("seed")[column].mean() for rows in (first, second)]
    return estimate((sides[0] - sides[1]).dropna())


def _against_quantiles(study: FactorStudy, sequence: str, column: str) -> list[tuple[str, Estimate]]:
    """One sequence at the small clip norm minus each quantile rule, per dataset, model and optimizer."""
    found = []
    for cell in adaptive_cells(study):
        here = study.at(cell)
        fixed = here[(here["kind"] == sequence) & (here["clip"] == lin2020.ADAPTIVE_CLIPS[0])]
        # The paper compares with quantiles without noise; the noised rule is ours.
        for kind in ("quantile_flat", "quantile_per_layer"):
            for noise in ordered("noise", fixed["noise"]):
                change = _by_seed(fixed[fixed["noise"] == noise], here[here["kind"] == kind], column)
                if change is not None:
                    found.append((f"{cell_name(cell)}, {sequence} (noise {noise:g}) − {kind_name(kind)}", change))
    return found


def _clipping_first(study: FactorStudy, column: str) -> str:
    """The same comparison for clipping first. If that equals quantile clipping, the quantile does not explain AC's gain."""
    found = _against_quantiles(study, CA, column)
    if not found:
        return "Clipping first at that clip norm was not tried, so AC’s gain may be due to where the noise is added."
    parts = [f"{where}: {estimate_text(change, 3, signed=True)}" for where, change in found]
    return (
        f"Clipping first at that clip norm: {'; '.join(parts)}. If this is near zero, AC’s lead does not come from a fixed "
        "clip norm, but from adding the noise first, with steps of another length."
    )


def _is_excepted(dependent: Dependent, one: Normality) -> bool:
    """Whether the paper’s own test did not reject this level. Its accuracy may be either of ours, so both are excepted."""
    kind = "loss" if dependent == "loss" else "accuracy"
    return one.factor == "dataset" and one.level in lin2020.NORMAL_EXCEPTIONS[kind]


def _normality_words(dependent: Dependent, one: Normality) -> str:
    level = f"{QUANTITIES[dependent]}, {one.factor} {naming.display(one.level)}"
    test = one.test
    if test.p_value is None:
        return f"{level}: {test.note} (n = {test.n})"
    return f"{level}: W = {number(test.statistic, 3)}, {p_phrase(test.p_value)}, n = {test.n}"


def _not_normal(levels: list[tuple[Dependent, Normality]]) -> list[Vote]:
    """Votes that levels are not normal. A test that does not reject does not count against the claim."""
    votes = []
    for dependent, one in levels:
        found = None if one.test.p_value is None else 1 if one.test.p_value < ALPHA else 0
        votes.append(Vote(sign=found, words=_normality_words(dependent, one)))
    return votes


def _normal(levels: list[tuple[Dependent, Normality]]) -> list[Vote]:
    """Votes that levels are normal. A test that does not reject does not support the claim, so tests can only refute it."""
    told = sum(one.test.p_value is not None for _, one in levels)
    votes = []
    for dependent, one in levels:
        p = one.test.p_value
        found = None if p is None else -1 if p * told < ALPHA else 0
        votes.append(Vote(sign=found, words=_normality_words(dependent, one)))
    return votes


def _only(analysis: Analysis, named: Iterable[str], what: str, rate: str) -> Claim:
    """The claim that only the named factors matter. These must be shown to matter, and the others not to; see `MARGINS`."""
    told = sum(one.p_value is not None for one in analysis.influences)
    votes = []
    for one in analysis.influences:
        is_named = one.factor in named
        words = f"{one.factor}: {_influence_words(one, told)}" + ("" if is_named else " (the paper: does not matter)")
        found: int | None = None
        if one.p_value is not None and is_named:
            found = 1 if one.exceeds() else -1 if one.is_negligible(told) else 0
        elif one.p_value is not None:
            found = 1 if one.is_negligible() else -1 if one.exceeds(told) else 0
        votes.append(Vote(sign=found, words=words))
    claim = decide(f"Of the factors, only {naming.listing(list(named))} matter for {what}.", votes)
    return _with_notes(claim, [rate] if told else [])


def _influence_words(one: Influence, comparisons: int) -> str:
    largest = one.largest
    if one.p_value is None or largest is None or largest.difference is None:
        return f"not tested: {one.note}"
    first, second = (naming.display(level) for level in largest.levels)
    seeds = largest.difference.n
    words = (
        f"matched, {second} − {first}: {estimate_text(largest.difference, 3, signed=True)} over {largest.n_combinations} "
        f"combinations and {seeds} seeds, {p_phrase(one.p_value)}"
    )
    wide = adjusted(largest.difference, comparisons * len(one.contrasts))
    if wide.low is not None and wide.high is not None and comparisons * len(one.contrasts) > 1:
        words += f", [{number(wide.low, 3)}, {number(wide.high, 3)}] for all {comparisons} factors at once"
    if one.is_negligible():
        return f"{words}; all intervals within ±{one.margin:g}, in every slice"
    if one.exceeds():
        return f"{words}; beyond ±{one.margin:g}" + ("" if one.exceeds(comparisons) else ", but not for all at once")
    if one.p_value < ALPHA:
        words += f"; {UNSIZED}, ±{one.margin:g}"
    outside = [(name, part) for name, part in largest.slices if not _within(part, one.margin)]
    if outside:
        name, part = max(outside, key=lambda item: abs(item[1].mean) if item[1] else 0.0)
        words += f"; not shown to stay within ±{one.margin:g}: with {name} {estimate_text(part, 3, signed=True)}"
    return words


def _within(part: Estimate | None, margin: float) -> bool:
    return part is not None and part.low is not None and part.high is not None and max(-part.low, part.high) < margin


def _tracks_within(correlations: list[Correlation]) -> list[Vote]:
    """One vote per cell in which a leak is shown. Without a leak, TPVD has nothing to correlate with."""
    found = [
        (one.group, one.test)
        for one in correlations
        if one.measure == "auc" and one.cell and one.test.n and one.leak.shown
    ]
    return _trend_votes(found, -1)


def _tracks_across(correlations: list[Correlation]) -> list[Vote]:
    votes = []
    for one in correlations:
        if one.measure == "auc" and one.group == ALL and one.test.n:
            silent = not one.leak.shown
            words = f"{ALL}: {_correlation_words(one.test)}" + (f"; {_no_leak(one)}" if silent else "")
            votes.append(Vote(sign=None if silent else _trend(one.test, -1, 1), words=words))
    return votes


def _no_leak(one: Correlation) -> str:
    return f"no leak is shown that TPVD could track (mean AUC {estimate_text(one.leak.auc, 3)})"


def track_words(study: FactorStudy) -> list[str]:
    """Sentences for the summary on whether the paper's metric tracks privacy."""
    correlations = tpvd_correlations(study)
    overall = [one for one in correlations if one.group == ALL and one.test.n]
    if not overall:
        return ["No target has both a TPVD and a finished membership attack, so this was not measured."]
    within, across = _tracks_within(correlations), _tracks_across(correlations)
    sentences = []
    if not overall[0].leak.shown:
        sentences.append(f"Nothing can be said: {_no_leak(overall[0])}.")
    elif not within:
        sentences.append("It is undecided: no single dataset, model and optimizer shows a leak.")
    else:
        sentences.append(
            f"By the honest AUC, within each dataset, model and optimizer that leaks: {_answer(within)} "
            f"({'; '.join(vote.words for vote in within)}). Across them: {_answer(across)}."
        )
    silent = [one.cell for one in correlations if one.measure == "auc" and one.cell and not one.leak.shown]
    if silent and within:
        spans = [_span(study, cell) for cell in silent]
        sentences.append(f"No leak is shown, whatever the TPVD, in {naming.listing(spans)}.")
    for one in overall:
        others = [
            f"{other.group}: {_correlation_words(other.test)}"
            for other in correlations
            if other.measure == one.measure
            and other.test.n
            and (other.group == WITHIN_CELLS or other.kind in SEQUENCES)
        ]
        words = f"{LEAKS[one.measure]} against TPVD, {ALL}: {_correlation_words(one.test)}"
        sentences.append("; ".join([words, *others]) + ".")
    found = overall[0].leak
    if found.known:
        sentences.append(
            f"The AUC’s interval over examples contains 0.5 or lies below it for {found.known - found.above} of {found.known} targets."
        )
    sentences.append("A correlation is no guarantee: TPVD bounds nothing, and depends on the seed.")
    return sentences


def _answer(votes: list[Vote]) -> str:
    signs = {vote.sign for vote in votes}
    return "no" if -1 in signs else "yes" if signs == {1} else "undecided"


def _span(study: FactorStudy, cell: Cell) -> str:
    """A cell with the range of its targets' TPVD."""
    values = study.at(cell)["tpvd"].dropna()
    return f"{cell_name(cell)} (TPVD {number(values.min(), 2)} to {number(values.max(), 2)})"
