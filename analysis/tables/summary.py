"""The summary of defenses as a table."""

from __future__ import annotations

from analysis import naming
from analysis.measure.best_of import BEST_OF
from analysis.measure.leak import Rate
from analysis.measure.summary import Summary, summaries
from analysis.measure.targets import Measurements
from analysis.statistics.estimates import Estimate
from analysis.tables.model import Column, Entry, Label, Mean, Number, Table
from analysis.tables.text import interval_text, number, p_text

_MOST_OPEN_ROWS = 24
"""A longer summary is folded on the page."""


def summary_table(measured: Measurements) -> Table:
    """One row per defense and dataset; the setting and the optimizer are named if there are several."""
    rows = summaries(measured)
    has_primary = any(row.attack != BEST_OF for row in rows)
    heading = _tpr_heading(rows, has_primary)
    columns = [
        Column(key="split", kind="label", csv_only=True),
        Column(key="architecture", kind="label", csv_only=True),
        Column(key="optimizer", kind="label", csv_only=True),
        Column(key="dataset", name="Dataset", kind="label"),
        Column(key="setting", name="Setting", kind="label"),
        Column(key="defense", name="Defense", kind="label"),
        Column(key="n_seeds", name="Seeds"),
        Column(key="epsilon_spent", name="ε spent"),
        Column(key="epsilon_trained_anew", csv_only=True),
        Column(key="delta", name="δ"),
        Column(key="accountant", kind="label", csv_only=True),
        Column(key="accuracy", name="Test accuracy", kind="mean"),
        Column(key="auc", name="Attack AUC" if has_primary else "Honest AUC", kind="mean"),
        Column(key="guessing_p_holm", csv_only=True),
        Column(key="tpr", name=heading, kind="mean"),
        Column(key="fpr", csv_only=True),
        Column(key="tpr_examples_low", csv_only=True),
        Column(key="tpr_examples_high", csv_only=True),
        Column(key="attack", csv_only=True),
        Column(key="attack_score", csv_only=True),
        Column(key="n_references", csv_only=True),
        Column(key="null_auc", csv_only=True),
        Column(key="null_auc_low", csv_only=True),
        Column(key="null_auc_high", csv_only=True),
        Column(key="epsilon_lower_bound", name="ε shown"),
        Column(key="epsilon_spent_over_lower_bound", csv_only=True),
        Column(key="advantage", name="Advantage", kind="mean", csv_only=has_primary),
        Column(key="advantage_null", csv_only=True),
        Column(key="time_ratio", name="Time ratio", kind="mean"),
        Column(key="guarantee", name="Guarantee for one run", kind="text", csv_only=has_primary),
    ]
    absent = set() if any(row.setting.label for row in rows) else {"setting"}
    absent |= set() if any(row.setting.optimizer for row in rows) else {"optimizer"}
    absent |= set() if has_primary else _OF_A_PRIMARY
    kept = [place for place, column in enumerate(columns) if column.key not in absent]
    return Table(
        name="summary",
        title="Each defense: its guarantee, its cost, and the results of the attacks",
        columns=tuple(columns[place] for place in kept),
        rows=tuple(tuple(entries[place] for place in kept) for entries in (_entries(row, heading) for row in rows)),
        caption=_caption(measured) if has_primary else "",
        notes=(
            "— under ε: no formal guarantee.",
            "p tests the AUC against guessing: one-sided, over seeds and examples, adjusted for all rows (Holm).",
            *(_NOTES if has_primary else ()),
        )
        if rows
        else (),
        missing="" if rows else "No trial finished, so there is nothing to show.",
        folded=len(rows) > _MOST_OPEN_ROWS,
    )


_OF_A_PRIMARY = {
    *("attack", "attack_score", "n_references", "null_auc", "null_auc_low", "null_auc_high"),
    *("epsilon_lower_bound", "epsilon_spent_over_lower_bound"),
}
BROKEN = "attack broken"
_NOTES = (
    "null: the attack’s AUC on a membership by which no model was trained. Where it differs from 0.5 (all nulls of a report "
    "together at 1 %), the attack is broken and there is no AUC and no TPR. One sound interval in twenty misses 0.5.",
    "ε shown: the seeds’ common ε is at least that, at 95 % confidence, by the guesses of this attack. Below it, how many times "
    "as large the proved ε is.",
)


def _caption(measured: Measurements) -> str:
    """Which attack judges where."""
    judges: dict[str, list[str]] = {}
    for setting, dataset in measured.rows():
        judges.setdefault(measured.judge(setting, dataset), []).append(measured.row_label(setting, dataset))
    if len(judges) == 1:
        return f"The attack is {next(iter(judges))}."
    return " ".join(f"{naming.listing(where)}: the attack is {judge}." for judge, where in judges.items())


def _tpr_heading(rows: list[Summary], has_primary: bool) -> str:
    rates = {row.rate for row in rows if row.rate is not None}
    return next(iter(rates)).words if has_primary and len(rates) == 1 else "TPR"


def _rate_line(rate: Rate) -> str:
    return f"at {100 * rate.fpr:g} %" + (", pooled" if rate.pooled else "")


def _auc_lines(row: Summary) -> list[str]:
    lines = [] if row.guessing_p is None else [f"p {p_text(row.guessing_p)}"]
    return lines if row.null_auc is None else [*lines, f"null {interval_text(row.null_auc, 3)}"]


def _bound_lines(row: Summary) -> tuple[str, ...]:
    return () if row.bound_ratio is None else (f"proved: {row.bound_ratio:,.3g} ×",)


def _ends(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found.mean, found.low, found.high)


def _entries(row: Summary, tpr_heading: str) -> tuple[Entry, ...]:
    tpr_lines = [] if row.rate is None or row.rate.words == tpr_heading else [_rate_line(row.rate)]
    low, high = row.tpr_examples or (None, None)
    if row.tpr_examples is not None:
        tpr_lines.append(f"examples [{number(low, 3)}, {number(high, 3)}]")
    return (
        row.setting.split,
        row.setting.architecture,
        row.setting.optimizer,
        Label(value=row.dataset),
        row.setting.label,
        Label(value=row.defense),
        row.n_seeds,
        _epsilon(row),
        Number(value=row.epsilon_with_search),
        Number(value=row.delta, text="" if row.delta is None else naming.scientific(row.delta)),
        row.accountant,
        Mean(ours=row.accuracy),
        Mean(ours=row.auc, note=BROKEN if row.is_broken else "", small=tuple(_auc_lines(row))),
        Number(value=row.guessing_p),
        Mean(ours=row.tpr, small=tuple(tpr_lines)),
        Number(value=row.fpr),
        Number(value=low),
        Number(value=high),
        row.attack,
        row.score_name,
        Number(value=row.n_references),
        *(Number(value=end) for end in _ends(row.null_auc)),
        Number(value=row.epsilon_lower_bound, decimals=2, small=_bound_lines(row)),
        Number(value=row.bound_ratio),
        Mean(ours=row.advantage, small=_guessing(row.advantage_null)),
        Number(value=row.advantage_null),
        Mean(ours=row.time_ratio, decimals=2),
        row.guarantee,
    )


def _epsilon(row: Summary) -> Number:
    """ε of a run and with its search, the one that the sweep asks for first."""
    if row.epsilon_spent is None:
        return Number(value=None)
    shown = "unknown with its search" if row.epsilon_shown is None else naming.epsilon(row.epsilon_shown)
    other = "one run" if row.counts_search else "with its search"
    small = () if row.epsilon_other is None else (f"{other}: {naming.epsilon(row.epsilon_other)}",)
    # The CSV has the ε of one run here, and that with the search in its own column.
    return Number(value=row.epsilon_spent, text=shown, small=small)


def _guessing(advantage: float | None) -> tuple[str, ...]:
    return () if advantage is None else (f"guessing {number(advantage, 3)}",)
