"""What the first screen shows of each setting and dataset: the answer, the trade-off, and the table of arms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import naming, presentation
from analysis.figures.style import Look
from analysis.load import CALIBRATED_COLUMNS, FPR_COLUMNS, POOLED_COLUMNS
from analysis.measure.answer import Answer, Preference, answer
from analysis.measure.leak import Rate, cohort, interval_of, tpr
from analysis.measure.roc import Curves
from analysis.measure.summary import Summary
from analysis.measure.targets import GUESSING, NOT_NEGATIVE, Measurements, Setting
from analysis.report.answer import Sentences, answer_sentences, answered_rows, seeds_words
from analysis.report.markers import MARKERS
from analysis.statistics.estimates import Estimate
from analysis.tables.summary import BROKEN
from analysis.tables.text import EMPTY, interval_text, number

_CHARTS = ("tradeoff", "roc")
_TEMPLATES = Path(__file__).parent / "templates"
_MOST_POINTS = 80
"""The most points of a drawn ROC curve."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A quantity that the trade-off can be drawn by. `guessing` is its value for an attacker who guesses, if it has one."""

    key: str
    name: str
    guessing: float | None
    is_log: bool


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An interval bar, in percent of its column's width. `mark` is the mean, `line` the guessing attacker."""

    mark: float
    low: float | None
    high: float | None
    line: float | None


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm's row: what the table shows, and `values` by metric for the charts."""

    key: str
    name: str
    look: Look
    family: str
    summary: Summary
    verdict: str
    verdict_kind: str
    would_tell: str
    auc_bar: Bar | None
    tpr_bar: Bar | None
    values: Mapping[str, Estimate]
    seeds: tuple[Mapping[str, float | int | None], ...]

    @property
    def own_color(self) -> str | None:
        """The arm's color; None for the undefended model, which has the color of the text unless the user chose one."""
        is_ink = self.family == "undefended" and self.key not in presentation.current().colors
        return None if is_ink else self.look.color

    @property
    def epsilon(self) -> tuple[str, str]:
        """The proved ε to say as text, of one run or with its search, as the sweep asks; and a line with the other one."""
        row = self.summary
        if row.epsilon_spent is None:
            return EMPTY, ""
        shown = "unknown" if row.epsilon_shown is None else naming.epsilon(row.epsilon_shown)
        if row.epsilon_other is None:
            return shown, ""
        return shown, f"{'one run' if row.counts_search else 'with search'}: {naming.epsilon(row.epsilon_other)}"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One setting and dataset. `dataset` and `setting` are its keys, `label` its name."""

    key: str
    dataset: str
    setting: str
    label: str
    setting_label: str
    answer: Sentences
    judge: str
    rate: Rate | None
    metrics: tuple[Metric, ...]
    arms: tuple[ArmRow, ...]


def panels(
    measured: Measurements, summaries: list[Summary], styles: Mapping[str, Look], preference: Preference
) -> list[Panel]:
    """A panel for each setting and dataset that has finished targets; those that get an answer come first."""
    first = answered_rows(measured)
    rows = [*first, *(row for row in measured.rows() if row not in first)]
    return [
        _panel(measured, summaries, styles, preference, setting, dataset, f"panel-{number}")
        for number, (setting, dataset) in enumerate(rows)
    ]


def _panel(
    measured: Measurements,
    summaries: list[Summary],
    styles: Mapping[str, Look],
    preference: Preference,
    setting: Setting,
    dataset: str,
    key: str,
) -> Panel:
    here = [row for row in summaries if row.setting.key == setting.key and row.dataset == dataset]
    found = answer(measured, setting, dataset, preference)
    rate = here[0].rate if here else None
    values = {row.defense: _values(measured, row) for row in here}
    metrics = _metrics(measured, setting, dataset, values)
    place = _scale([each["auc"] for each in values.values() if "auc" in each], GUESSING, is_log=False)
    rates = [row.tpr for row in here if row.tpr is not None]
    rate_place = _scale(rates, None if rate is None else rate.fpr, is_log=_spans_decades(rates, rate))
    arms = [
        _arm(measured, row, styles[row.defense], found, values[row.defense], place, rate_place)
        for row in sorted(here, key=_leak)
    ]
    return Panel(
        key=key,
        dataset=dataset,
        setting=setting.key,
        label=measured.row_label(setting, dataset),
        setting_label=setting.label,
        answer=answer_sentences(measured, setting, dataset, preference, found),
        judge=measured.judge(setting, dataset),
        rate=rate,
        metrics=metrics,
        arms=tuple(arms),
    )


def _leak(row: Summary) -> tuple[float, float]:
    """Arms are sorted by this: the AUC, where one below guessing counts as guessing; without one, last."""
    accuracy = 0.0 if row.accuracy is None else row.accuracy.mean
    return (math.inf if row.auc is None else max(row.auc.mean, GUESSING), -accuracy)


def _arm(
    measured: Measurements,
    row: Summary,
    look: Look,
    found: Answer,
    values: Mapping[str, Estimate],
    place: Callable[[Estimate | None], Bar | None],
    rate_place: Callable[[Estimate | None], Bar | None],
) -> ArmRow:
    is_baseline = row.defense == measured.baseline
    family = "undefended" if is_baseline else "guaranteed" if row.defense in measured.guaranteed else "heuristic"
    verdict, kind, would_tell = EMPTY, "open", ""
    if is_baseline:
        verdict, kind = "the reference", "reference"
    elif row.is_broken:
        verdict = BROKEN
    elif row.defense in found.risk:
        kind = found.verdict(row.defense)
        verdict = {"less": "leaks less", "more": "leaks more", "untold": "cannot be told"}[kind]
        would_tell = seeds_words(found, row.defense) if kind == "untold" else ""
    return ArmRow(
        key=row.defense,
        name=naming.display(row.defense),
        look=look,
        family=family,
        summary=row,
        verdict=verdict,
        verdict_kind=kind,
        would_tell=would_tell,
        auc_bar=place(row.auc),
        tpr_bar=rate_place(row.tpr),
        values=values,
        seeds=tuple(_seeds(measured.of(row.setting, row.dataset, row.defense))),
    )


def _values(measured: Measurements, row: Summary) -> dict[str, Estimate]:
    """Every metric of one arm."""
    found: dict[str, Estimate | None] = {"accuracy": row.accuracy, "time": row.time_ratio, "auc": row.auc}
    if not row.is_broken:
        for fpr in FPR_COLUMNS:
            found[f"own-{fpr:g}"] = tpr(measured, row.setting, row.dataset, row.defense, Rate(fpr=fpr))
        cells = cohort(measured, row.setting, row.dataset, row.defense)
        for kind, columns in (("pooled", POOLED_COLUMNS), ("calibrated", CALIBRATED_COLUMNS)):
            for fpr, column in columns.items():
                found[f"{kind}-{fpr:g}"] = None if cells is None else interval_of(cells, column)
    if row.epsilon_lower_bound is not None:
        found["bound"] = Estimate(mean=row.epsilon_lower_bound, low=None, high=None, n=row.n_seeds, bounds=NOT_NEGATIVE)
    return {key: value for key, value in found.items() if value is not None}


def _metrics(
    measured: Measurements, setting: Setting, dataset: str, values: Mapping[str, Mapping[str, Estimate]]
) -> tuple[Metric, ...]:
    """The leaks that some arm has, the one of the verdicts first."""
    name = measured.auc_name(setting, dataset)
    known = {key for each in values.values() for key in each}
    listed = [Metric(key="auc", name=f"{name[0].upper()}{name[1:]}", guessing=GUESSING, is_log=False)]
    for fpr in FPR_COLUMNS:
        words = f"TPR at {100 * fpr:g} % FPR"
        listed.append(
            Metric(key=f"own-{fpr:g}", name=f"{words}, a threshold per target", guessing=fpr, is_log=fpr < 0.1)
        )
    for kind, what in (("pooled", "one threshold for all targets"), ("calibrated", "calibrated per example")):
        for fpr in POOLED_COLUMNS:
            words = f"TPR at {100 * fpr:g} % FPR, {what}"
            listed.append(Metric(key=f"{kind}-{fpr:g}", name=words, guessing=fpr, is_log=True))
    listed.append(Metric(key="bound", name="Lower bound on ε", guessing=0.0, is_log=False))
    return tuple(metric for metric in listed if metric.key in known)


def _spans_decades(rates: list[Estimate], rate: Rate | None) -> bool:
    """Whether rates are so far apart, or so low, that a linear scale would hide them."""
    return rate is not None and rate.fpr <= 0.01 and max((one.mean for one in rates), default=0.0) > 8 * rate.fpr


def _scale(values: list[Estimate], guessing: float | None, is_log: bool) -> Callable[[Estimate | None], Bar | None]:
    """A function that places an estimate on the common axis of a column."""
    ends = [end for one in values for end in (one.mean, one.low, one.high) if end is not None]
    ends += [] if guessing is None else [guessing]
    if is_log and guessing is not None:
        least = guessing / 2  # a logarithmic axis cannot show zero

        def along(value: float) -> float:
            return math.log(max(value, least))
    else:

        def along(value: float) -> float:
            return value

    low, high = min(map(along, ends), default=0.0), max(map(along, ends), default=1.0)
    span = (high - low) or 1.0

    def percent(value: float) -> float:
        return round(4 + 92 * (along(value) - low) / span, 2)

    def place(one: Estimate | None) -> Bar | None:
        if one is None:
            return None
        known = one.low is not None and one.high is not None
        return Bar(
            mark=percent(one.mean),
            low=percent(one.low or 0.0) if known else None,
            high=percent(one.high or 0.0) if known else None,
            line=None if guessing is None else percent(guessing),
        )

    return place


_SEED_COLUMNS = {
    "seed": "seed",
    "accuracy": "test_accuracy",
    "train_accuracy": "train_accuracy",
    "auc": "auc",
    "time": "train_time_s",
    "epsilon": "epsilon_spent",
    **{f"own-{fpr:g}": column for fpr, column in FPR_COLUMNS.items()},
}


def _seeds(rows: pd.DataFrame) -> list[dict[str, float | int | None]]:
    """One row per seed, with what a drill-down shows."""
    found = []
    for row in rows.sort_values("seed").to_dict("records"):
        values = {key: row[column] for key, column in _SEED_COLUMNS.items()}
        found.append({key: None if pd.isna(value) else _short(value) for key, value in values.items()})
    return found


def _short(value: Any) -> float | int:
    """Five digits are more than any interval here supports."""
    return int(value) if float(value).is_integer() else float(f"{value:.5g}")


def as_json(found: list[Panel], curves: Mapping[tuple[str, str], Curves]) -> dict[str, Any]:
    """What the page's script draws from: plain numbers and names, and the charts' Vega specifications."""
    return {
        "markers": MARKERS,
        "specs": {name: json.loads((_TEMPLATES / f"{name}.vg.json").read_text(encoding="utf-8")) for name in _CHARTS},
        "panels": [
            {
                "key": panel.key,
                "dataset": naming.display(panel.dataset),
                "setting": panel.setting_label,
                "label": panel.label,
                "metrics": [
                    {"key": metric.key, "name": metric.name, "guessing": metric.guessing, "log": metric.is_log}
                    for metric in panel.metrics
                ],
                "arms": [_arm_json(arm) for arm in panel.arms],
                "roc": _roc_json(curves.get((panel.setting, panel.dataset))),
            }
            for panel in found
        ],
    }


def _arm_json(arm: ArmRow) -> dict[str, Any]:
    def ends(one: Estimate) -> list[float | None]:
        return [None if end is None else _short(end) for end in (one.mean, one.low, one.high)]

    return {
        "key": arm.key,
        "name": arm.name,
        "color": arm.own_color,
        "marker": arm.look.marker,
        "dash": [] if arm.look.dashes == "-" else [1.8 * each for each in arm.look.dashes[1]],
        "family": arm.family,
        "guarantee": arm.summary.guarantee,
        "epsilon": "none" if arm.summary.epsilon_spent is None else "; ".join(filter(None, arm.epsilon)),
        "values": {key: ends(one) for key, one in arm.values.items()},
        "seeds": arm.seeds,
    }


def _roc_json(curves: Curves | None) -> dict[str, Any] | None:
    if curves is None:
        return None
    step = max(1, -(-len(curves.grid) // _MOST_POINTS))
    places = [*range(0, len(curves.grid) - 1, step), len(curves.grid) - 1]
    return {
        "fpr": [_short(curves.grid[place]) for place in places],
        "tpr": {label: [_short(mean[place]) for place in places] for label, mean in curves.by_defense.items()},
    }


def ends_text(one: Estimate | None, decimals: int = 3) -> str:
    """The ends of an interval, or nothing."""
    return "" if one is None or one.half_width is None else interval_text(one, decimals, mean=False)


def bound_text(arm: ArmRow) -> str:
    """The lower bound on ε, or — without one."""
    return number(arm.summary.epsilon_lower_bound, 2)


def mean_text(one: Estimate | None, decimals: int = 3) -> str:
    """The mean alone."""
    return number(None if one is None else one.mean, decimals)
