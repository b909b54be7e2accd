"""What ran, on which data and machines, and what failed."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis import naming
from analysis.load import Results
from analysis.tables.model import Column, Entry, Label, Number, Table


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial, an attack or a comparison that failed: what it was, the last line of its error, and the whole error."""

    kind: str
    what: str
    last_line: str
    error: str


def failures(results: Results) -> list[Failure]:
    """Every failed trial, then every failed attack, then every failed comparison."""
    trials = results.trials
    names = {
        str(row.target_id): f"{naming.display(str(row.defense))} on {naming.display(str(row.dataset))}, "
        f"{row.split} split, seed {row.seed}"
        for row in trials.itertuples()
    }
    failed = [
        _failure("trial", names[str(row.target_id)], row.error)
        for row in trials[trials["status"] != "finished"].itertuples()
    ]
    attacks = results.attacks
    for row in attacks[attacks["status"] != "finished"].itertuples():
        score = "" if pd.isna(row.score_name) else f"/{row.score_name}"
        target = names.get(str(row.target_id), f"target {row.target_id}")
        failed.append(_failure("attack", f"{row.attack}{score} against {target}", row.error))
    comparisons = results.comparisons
    for row in comparisons[comparisons["status"] != "finished"].itertuples():
        first = str(row.members[0]) if row.members is not None and len(row.members) else ""
        failed.append(_failure("comparison", f"{row.comparison} of {names.get(first, f'target {first}')}", row.error))
    return failed


def _failure(kind: str, what: str, error: object) -> Failure:
    text = error.strip() if isinstance(error, str) and error.strip() else "No error text was recorded."
    last = text.splitlines()[-1]
    return Failure(
        kind=kind,
        what=what,
        last_line=last if len(last) <= 200 else last[:200] + "…",
        error=text if len(text) <= 4000 else "…" + text[-4000:],
    )


_PROVENANCE = {
    "sweeper_version": "sweeper",
    "git_commit": "Commit",
    "python_version": "Python",
    "torch_version": "PyTorch",
    "opacus_version": "Opacus",
    "device": "Device",
    "machine": "Machine",
    "threads": "CPU threads",
    "architecture": "Architecture of the targets",
    "optimizer": "Optimizer",
    "learning_rate": "Learning rate",
    "epochs": "Epochs",
}


def provenance(trials: pd.DataFrame) -> list[tuple[str, str]]:
    """What the trials ran on: each name with all values that occur."""
    rows = []
    for column, name in _PROVENANCE.items():
        known = trials[column].dropna().unique()
        values = sorted(f"{value:g}" if isinstance(value, float) else str(value) for value in known)
        if column == "git_commit" and bool(trials["git_dirty"].fillna(False).any()):
            values.append("with changes that are in no commit")
        rows.append((name, ", ".join(values) or "not recorded"))
    started = trials["started_at"].dropna()
    if len(started):
        first, last = (f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (started.min(), started.max()))
        rows.append(("Started", first if first == last else f"{first} to {last}"))
    return rows


def data_table(trials: pd.DataFrame) -> Table:
    """Per dataset and split: the SHA-256, and how many members, non-members and test examples there are."""
    columns = ["dataset", "split_label", "n_train", "n_members", "n_non_members", "n_test", "dataset_sha256"]
    known = trials[trials["status"] == "finished"][columns].drop_duplicates()
    rows = [
        (Label(value=str(dataset)), str(split), *map(_count, counts), None if pd.isna(sha256) else str(sha256))
        for dataset, split, *counts, sha256 in known.itertuples(index=False)
    ]
    return Table(
        name="data",
        title="Data",
        columns=(
            Column(key="dataset", name="Dataset", kind="label"),
            Column(key="split", name="Split", kind="label"),
            Column(key="n_train", name="Trained on"),
            Column(key="n_members", name="Members"),
            Column(key="n_non_members", name="Non-members"),
            Column(key="n_test", name="Test"),
            Column(key="dataset_sha256", name="SHA-256 of inputs and labels", kind="text"),
        ),
        rows=tuple(rows),
        missing="" if rows else "No trial finished.",
    )


def _count(value: float) -> Entry:
    return None if pd.isna(value) else Number(value=value, text=f"{value:,.0f}")
