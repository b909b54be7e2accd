"""The summary of defenses as a table."""

from __future__ import annotations

from analysis import naming
from analysis.measure.summary import Summary, summaries
from analysis.measure.targets import Measurements
from analysis.tables.model import Column, Entry, Label, Mean, Number, Table
from analysis.tables.text import number, p_text

_MOST_OPEN_ROWS = 24
"""A longer summary is folded on the page."""


def summary_table(measured: Measurements) -> Table:
    """One row per defense and dataset; the setting and the optimizer are named if there are several."""
    rows = summaries(measured)
    columns = [
        Column(key="split", kind="label", csv_only=True),
        Column(key="architecture", kind="label", csv_only=True),
        Column(key="optimizer", kind="label", csv_only=True),
        Column(key="dataset", name="Dataset", kind="label"),
        Column(key="setting", name="Setting", kind="label"),
        Column(key="defense", name="Defense", kind="label"),
        Column(key="n_seeds", name="Seeds"),
        Column(key="epsilon_spent", name="ε spent"),
        Column(key="delta", name="δ"),
        Column(key="accountant", kind="label", csv_only=True),
        Column(key="accuracy", name="Test accuracy", kind="mean"),
        Column(key="auc", name="Honest AUC", kind="mean"),
        Column(key="guessing_p_holm", csv_only=True),
        Column(key="tpr", name="TPR", kind="mean"),
        Column(key="fpr", csv_only=True),
        Column(key="tpr_examples_low", csv_only=True),
        Column(key="tpr_examples_high", csv_only=True),
        Column(key="advantage", name="Advantage", kind="mean"),
        Column(key="advantage_null", csv_only=True),
        Column(key="time_ratio", name="Time ratio", kind="mean"),
        Column(key="guarantee", name="Guarantee for one run", kind="text"),
    ]
    absent = set() if any(row.setting.label for row in rows) else {"setting"}
    absent |= set() if any(row.setting.optimizer for row in rows) else {"optimizer"}
    kept = [place for place, column in enumerate(columns) if column.key not in absent]
    return Table(
        name="summary",
        title="Each defense: its guarantee, its cost, and the results of the attacks",
        columns=tuple(columns[place] for place in kept),
        rows=tuple(tuple(entries[place] for place in kept) for entries in map(_entries, rows)),
        notes=(
            "— under ε: no formal guarantee.",
            "p tests the AUC against guessing: one-sided, over seeds and examples, adjusted for all rows (Holm).",
        )
        if rows
        else (),
        missing="" if rows else "No trial finished, so there is nothing to show.",
        folded=len(rows) > _MOST_OPEN_ROWS,
    )


def _entries(row: Summary) -> tuple[Entry, ...]:
    tpr_lines = [] if row.fpr is None else [f"at {100 * row.fpr:g} %"]
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
        Number(value=row.epsilon_spent, decimals=2),
        Number(value=row.delta, text="" if row.delta is None else naming.scientific(row.delta)),
        row.accountant,
        Mean(ours=row.accuracy),
        Mean(ours=row.auc, small=() if row.guessing_p is None else (f"p {p_text(row.guessing_p)}",)),
        Number(value=row.guessing_p),
        Mean(ours=row.tpr, small=tuple(tpr_lines)),
        Number(value=row.fpr),
        Number(value=low),
        Number(value=high),
        Mean(ours=row.advantage, small=_guessing(row.advantage_null)),
        Number(value=row.advantage_null),
        Mean(ours=row.time_ratio, decimals=2),
        row.guarantee,
    )


def _guessing(advantage: float | None) -> tuple[str, ...]:
    return () if advantage is None else (f"guessing {number(advantage, 3)}",)
