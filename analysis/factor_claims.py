"""What Lin et al. (2020) claimed, judged by the numbers of these results.

Where AC is set against CA, or one clipping rule against another, a claim is judged on differences between the
same seeds: it held where every 95 % interval over seeds lies on the claimed side. Where the paper tests, the
test is made here too, at 0.05, after Holm's adjustment where there are several factors.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis import lin2020, naming
from analysis.claims import Claim, Vote, decide
from analysis.factor_study import (
    AC,
    SEQUENCES,
    Cell,
    FactorStudy,
    cell_name,
    kind_name,
    mean_over_seeds,
    ordered,
    paired,
)
from analysis.factor_tables import adaptive_cells, gains, ladders
from analysis.factor_tests import (
    ALL,
    ALPHA,
    LEAKS,
    WITHIN_CELLS,
    Analysis,
    Correlation,
    analyze,
    p_phrase,
    tpvd_correlations,
)
from analysis.statistics import Estimate, TestResult, estimate, sign, spearman
from analysis.table_output import estimate_text, number

_TRACKS = "a larger TPVD goes with a lower honest AUC"
_MIN_PAIRS = 5  # fewer cannot reach 0.05 but by an accident of ties


def judge_factors(study: FactorStudy) -> list[Claim]:
    """The second paper's claims. One that nothing here bears on cannot be told."""
    accuracy, loss = analyze(study, "accuracy"), analyze(study, "loss")
    correlations = tpvd_correlations(study)
    return [
        decide("Noise first (AC) is more accurate than clipping first (CA).", _sequence(study, "accuracy", 1)),
        decide("AC reaches a lower training loss than CA.", _sequence(study, "loss", -1)),
        decide("AC changes the weights less than CA (lower TPVD).", _sequence(study, "tpvd", -1)),
        decide("On average, AC gains as much over CA as the abstract says (here: at least as much).", _gains(study)),
        decide("TPVD grows with the clip norm under both sequences.", _ladder_trend(study)),
        decide("Beyond a clip norm of 10, accuracy falls under both sequences.", _ladder_fall(study)),
        decide("At clip norm 0.04, AC is more accurate than quantile clipping.", _against_quantiles(study)),
        decide("Accuracy and loss are not normally distributed.", [*_not_normal(accuracy, "accuracy"), *_not_normal(loss, "loss")]),
        decide("Of the factors, only dataset and sequence matter for accuracy.", _only(accuracy, ("dataset", "sequence"))),
        decide("Of the factors, only dataset and noise matter for convergence.", _only(loss, ("dataset", "noise"))),
        decide(f"Within a dataset, model and optimizer that leak, {_TRACKS}.", _tracks_within(correlations)),
        decide(f"Across datasets, models and optimizers, {_TRACKS}.", _tracks_across(correlations)),
    ]  # fmt: skip


def _sequence(study: FactorStudy, column: str, side: int) -> list[Vote]:
    """AC − CA in each dataset, model and optimizer; `side` is the sign that the paper claims."""
    votes = []
    for cell in study.cells:
        pairs = paired(study.at(cell, study.compared), column)
        change = mean_over_seeds(pairs)
        if change is None:
            continue
        found = sign(change)
        words = f"{cell_name(cell)}, AC − CA: {estimate_text(change, 3, signed=True)}"
        votes.append(Vote(sign=None if found is None else found * side, words=words))
    return votes


def _gains(study: FactorStudy) -> list[Vote]:
    """Ours beside the abstract's: a vote is against it where our interval lies below the paper's number."""
    votes = []
    for dataset in ordered("dataset", study.compared["dataset"]):
        for model in ordered("model", study.compared["model"]):
            here = study.compared[(study.compared["dataset"] == dataset) & (study.compared["model"] == model)]
            for ours, quantity, words in zip(
                gains(here),
                ("accuracy_gain", "loss_reduction"),
                ("accuracy, points", "loss reduction, %"),
                strict=True,
            ):
                published = lin2020.gain(dataset, model, quantity)
                if ours is None or published is None:
                    continue
                found = sign(ours, published)
                beside = f"{estimate_text(ours, 1, signed=True)} (paper {number(published, 0, signed=True)})"
                where = f"{naming.display(dataset)}, {naming.display(model)}"
                as_large = None if found is None else -1 if found == -1 else 1
                votes.append(Vote(sign=as_large, words=f"{where}, {words}: {beside}"))
    return votes


def _trend(test: TestResult, side: int) -> int | None:
    """1 where the correlation is significant and on the claimed side, −1 on the other, 0 where it is neither."""
    if test.p_value is None or test.effect is None or test.n < _MIN_PAIRS:
        return None
    if test.p_value >= ALPHA:
        return 0
    return 1 if test.effect * side > 0 else -1


def _correlation_words(test: TestResult) -> str:
    if test.p_value is None:
        return f"not computed: {test.note} (n = {test.n})"
    return f"ρ = {number(test.effect, 2, signed=True)}, {p_phrase(test.p_value)}, n = {test.n}"


def _ladder_trend(study: FactorStudy) -> list[Vote]:
    votes = []
    for cell, noise, here in ladders(study):
        for sequence in SEQUENCES:
            rows = here[(here["sequence"] == sequence) & here["tpvd"].notna()]
            if rows.empty:
                continue
            test = spearman(list(rows["clip"]), list(rows["tpvd"]))
            words = f"{cell_name(cell)}, noise {noise:g}, {sequence}: {_correlation_words(test)}"
            votes.append(Vote(sign=_trend(test, 1), words=words))
    return votes


def _ladder_fall(study: FactorStudy) -> list[Vote]:
    votes = []
    for cell, noise, here in ladders(study):
        for sequence in SEQUENCES:
            rows = here[here["sequence"] == sequence]
            clips = [float(clip) for clip in ordered("clip", rows["clip"])]
            # The last clip norm that the paper still calls safe, against the largest.
            below = [clip for clip in clips if clip <= lin2020.ACCURACY_FALLS_BEYOND]
            if not below or clips[-1] <= lin2020.ACCURACY_FALLS_BEYOND:
                continue
            change = _by_seed(rows[rows["clip"] == clips[-1]], rows[rows["clip"] == below[-1]])
            if change is None:
                continue
            found = sign(change)
            words = (
                f"{cell_name(cell)}, noise {noise:g}, {sequence}, clip norm {clips[-1]:g} − {below[-1]:g}: "
                f"{estimate_text(change, 3, signed=True)}"
            )
            votes.append(Vote(sign=None if found is None else -found, words=words))
    return votes


def _by_seed(first: pd.DataFrame, second: pd.DataFrame, column: str = "accuracy") -> Estimate | None:
    """Mean over seeds of `column` of `first` minus that of `second`, of the same seed."""
    sides = [rows.groupby("seed")[column].mean() for rows in (first, second)]
    return estimate((sides[0] - sides[1]).dropna())


def _against_quantiles(study: FactorStudy) -> list[Vote]:
    votes = []
    small = lin2020.ADAPTIVE_CLIPS[0]
    for cell in adaptive_cells(study):
        here = study.at(cell)
        noise_first = here[(here["kind"] == AC) & (here["clip"] == small)]
        # The paper compares with un-noised quantiles; the noised rule is ours.
        for kind in ("quantile_flat", "quantile_per_layer"):
            for noise in ordered("noise", noise_first["noise"]):
                change = _by_seed(noise_first[noise_first["noise"] == noise], here[here["kind"] == kind])
                if change is None:
                    continue
                words = (
                    f"{cell_name(cell)}, AC (noise {noise:g}) − {kind_name(kind)}: "
                    f"{estimate_text(change, 3, signed=True)}"
                )
                votes.append(Vote(sign=sign(change), words=words))
    return votes


def _not_normal(analysis: Analysis, dependent: str) -> list[Vote]:
    votes = []
    for one in analysis.normality:
        test = one.test
        if test.p_value is None:
            words = f"{dependent}, {one.factor} {naming.display(one.level)}: {test.note} (n = {test.n})"
            votes.append(Vote(sign=None, words=words))
            continue
        words = (
            f"{dependent}, {one.factor} {naming.display(one.level)}: W = {number(test.statistic, 3)}, {p_phrase(test.p_value)}, "
            f"n = {test.n}"
        )
        # A test that does not reject says nothing against the claim.
        votes.append(Vote(sign=1 if test.p_value < ALPHA else 0, words=words))
    return votes


def _only(analysis: Analysis, named: Iterable[str]) -> list[Vote]:
    """The named factors must matter. One of the others that does is against it; that one does not is as claimed.

    Sequence matters where either of its tests says so: the matched one sees what the unpaired one buries
    under the differences between datasets.
    """
    votes = []
    for one in analysis.influences:
        h = one.h
        if h.p_value is None or one.h_adjusted is None:
            votes.append(Vote(sign=None, words=f"{one.factor}: {h.note} (n = {h.n})"))
            continue
        matters = bool(one.matters)
        words = (
            f"{one.factor}: H = {number(h.statistic, 2)}, {p_phrase(one.h_adjusted)} by Holm, "
            f"ε² = {number(h.effect, 3)}, n = {h.n}"
        )
        if one.factor == "sequence" and analysis.pairs_adjusted is not None:
            matters = matters or analysis.pairs_adjusted < ALPHA
            matched = analysis.pairs.test
            words += (
                f"; matched: {p_phrase(analysis.pairs_adjusted)} by Holm, r = {number(matched.effect, 2, signed=True)}"
            )
        if one.factor in named:
            votes.append(Vote(sign=1 if matters else 0, words=words))
        else:
            votes.append(Vote(sign=-1 if matters else 1, words=f"{words} (the paper: does not matter)"))
    return votes


def _tracks_within(correlations: list[Correlation]) -> list[Vote]:
    """A vote of each cell in which something leaks; where nothing does, there is nothing for TPVD to go with."""
    votes = []
    for one in correlations:
        if one.measure == "auc" and one.cell and one.test.n and one.leak.shown is not False:
            votes.append(Vote(sign=_trend(one.test, -1), words=f"{one.group}: {_correlation_words(one.test)}"))
    return votes


def _tracks_across(correlations: list[Correlation]) -> list[Vote]:
    votes = []
    for one in correlations:
        if one.measure == "auc" and one.group == ALL and one.test.n:
            silent = one.leak.shown is False
            words = f"{ALL}: {_correlation_words(one.test)}" + (f"; {_no_leak(one)}" if silent else "")
            votes.append(Vote(sign=None if silent else _trend(one.test, -1), words=words))
    return votes


def _no_leak(one: Correlation) -> str:
    return (
        f"no leak is shown that TPVD could track ({one.leak.above} of {one.leak.known} AUC intervals lie above 0.5, "
        "no more than chance gives)"
    )


def track_words(study: FactorStudy) -> list[str]:
    """Does the paper's metric track privacy? In sentences, for the summary."""
    correlations = tpvd_correlations(study)
    overall = [one for one in correlations if one.group == ALL and one.test.n]
    if not overall:
        return ["No target has both a TPVD and a finished membership attack, so this was not measured."]
    within, across = _tracks_within(correlations), _tracks_across(correlations)
    sentences = []
    if overall[0].leak.shown is False:
        sentences.append(f"Nothing can be said: {_no_leak(overall[0])}.")
    elif not within:
        sentences.append("It cannot be told: in no dataset, model and optimizer alone is a leak shown.")
    else:
        sentences.append(
            f"By the honest AUC, within one dataset, model and optimizer where something leaks: {_answer(within)} "
            f"({'; '.join(vote.words for vote in within)}). Across them: {_answer(across)}."
        )
    silent = [one.cell for one in correlations if one.measure == "auc" and one.cell and one.leak.shown is False]
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
            f"The AUC’s interval over examples holds 0.5 or lies below it for {found.known - found.above} of {found.known} targets."
        )
    sentences.append("A correlation is no guarantee: TPVD bounds nothing, and depends on the seed.")
    return sentences


def _answer(votes: list[Vote]) -> str:
    signs = {vote.sign for vote in votes}
    return "no" if -1 in signs else "yes" if signs == {1} else "it cannot be told"


def _span(study: FactorStudy, cell: Cell) -> str:
    """A cell with the range of its targets' TPVD."""
    values = study.at(cell)["tpvd"].dropna()
    return f"{cell_name(cell)} (TPVD {number(values.min(), 2)} to {number(values.max(), 2)})"
