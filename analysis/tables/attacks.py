"""The table of all membership attacks."""

from __future__ import annotations

from analysis import naming
from analysis.load import Results
from analysis.measure.attacks import PAPERS_MAXIMUM, AttackOnCell, attacks_on_cells
from analysis.measure.targets import Measurements
from analysis.tables.model import Column, Entry, Label, Mean, Number, Table

_MOST_OPEN_ROWS = 24


def attack_table(results: Results, measured: Measurements) -> Table:
    """One row per dataset, defense, attack and score. Columns that no attack fills are left out."""
    rows = attacks_on_cells(results, measured)
    columns = [
        Column(key="dataset", name="Dataset", kind="label"),
        Column(key="setting", name="Setting", kind="label"),
        Column(key="defense", name="Defense", kind="label"),
        Column(key="attack", name="Attack", kind="label"),
        Column(key="score", name="Score", kind="label"),
        Column(key="is_primary", csv_only=True),
        Column(key="n_references", name="References"),
        Column(key="auc", name="AUC", kind="mean"),
        Column(key="null_auc", name="Null AUC", kind="mean"),
        Column(key="balanced_accuracy", name="Balanced accuracy", kind="mean"),
        Column(key="tpr", name="TPR", kind="mean"),
        Column(key="fpr", csv_only=True),
        Column(key="tnr", name="TNR of the tail", kind="mean"),
        Column(key="fnr", csv_only=True),
        Column(key="calibrated_tpr", name="TPR, pooled, calibrated", kind="mean"),
        Column(key="pooled_tpr", name="TPR, pooled", kind="mean"),
        Column(key="pooled_fpr", csv_only=True),
        Column(key="top_share", name="Share of top 1 %"),
        Column(key="epsilon_lower_bound", name="ε shown"),
    ]
    entries = [_entries(row) for row in rows]
    kept = [place for place in range(len(columns)) if any(_is_filled(row[place]) for row in entries)]
    return Table(
        name="attacks",
        title="All attacks",
        columns=tuple(columns[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in entries),
        caption="Intervals are over seeds alone. Verdicts rest on the primary attack alone."
        if any(row.is_primary for row in rows)
        else "Intervals are over seeds alone.",
        notes=(
            "The paper’s maximum is the largest AUC over all scores on one target, on the data that it is reported on. A maximum "
            "over noise lies above 0.5, so it overstates the attacker.",
        )
        if rows
        else (),
        missing="" if rows else "No membership attack finished.",
        folded=len(rows) > _MOST_OPEN_ROWS,
    )


def _is_filled(entry: Entry) -> bool:
    if isinstance(entry, Mean):
        return entry.ours is not None
    return entry.value is not None if isinstance(entry, Number) else entry not in (None, "")


def _entries(row: AttackOnCell) -> tuple[Entry, ...]:
    score, _, variant = row.score_name.partition("@")
    name = "Paper’s maximum" if row.attack == PAPERS_MAXIMUM else naming.attack(row.attack)
    return (
        Label(value=row.dataset),
        row.setting.label,
        Label(value=row.defense),
        Label(value=row.attack, text=f"{name} (primary)" if row.is_primary else name),
        Label(value=row.score_name, text=naming.score(score) + (f" ({variant})" if variant else "")),
        int(row.is_primary),
        Number(value=row.n_references, decimals=0),
        Mean(ours=row.auc),
        Mean(ours=row.null_auc),
        Mean(ours=row.balanced_accuracy),
        Mean(ours=row.tpr, small=_at(row.fpr)),
        Number(value=row.fpr),
        Mean(ours=row.tnr, small=_at(row.fnr, "FNR")),
        Number(value=row.fnr),
        Mean(ours=row.calibrated_tpr, small=_at(row.pooled_fpr)),
        Mean(ours=row.pooled_tpr, small=_at(row.pooled_fpr)),
        Number(value=row.pooled_fpr),
        Number(value=row.top_share, text="" if row.top_share is None else f"{100 * row.top_share:.1f} %"),
        Number(value=row.epsilon_lower_bound, decimals=2),
    )


def _at(rate: float | None, name: str = "FPR") -> tuple[str, ...]:
    return () if rate is None else (f"at {100 * rate:.3g} % {name}",)
