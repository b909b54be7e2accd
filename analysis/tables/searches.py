"""The searches of the arms as a table."""

from __future__ import annotations

from analysis import naming
from analysis.load import Results
from analysis.measure.searches import Search, searches
from analysis.tables.model import Column, Entry, Label, Number, Table


def search_table(results: Results) -> Table:
    """One row per arm whose settings were searched for; without rows if there is none."""
    found = searches(results)
    has_epsilon = any(each.epsilon_run is not None for each in found)
    columns = [
        Column(key="dataset", name="Dataset", kind="label"),
        Column(key="split", name="Split", kind="label"),
        Column(key="architecture", kind="label", csv_only=True),
        Column(key="optimizer", kind="label", csv_only=True),
        Column(key="defense", name="Defense", kind="label"),
        Column(key="runs", name="Runs"),
        Column(key="different", csv_only=True),
        Column(key="search_law", kind="label", csv_only=True),
        Column(key="diverged", name="Diverged"),
        Column(key="best", name="Best validation accuracy"),
        Column(key="median", name="Median"),
        Column(key="chosen", name="Chosen settings", kind="label"),
        Column(key="epsilon_run", name="ε of a run", csv_only=not has_epsilon),
        Column(key="epsilon_with_search", name="ε with its search", csv_only=not has_epsilon),
        Column(key="epsilon_trained_anew", name="… and trained anew", csv_only=not has_epsilon),
    ]
    laws = sorted({each.law for each in found if each.law and each.law != "fixed"})
    notes = ["All arms had the same number of runs, chosen by the same validation examples, which nothing else uses."]
    if has_epsilon:
        how = f"Its number of runs was drawn ({'; '.join(laws)})." if laws else "All runs are composed."
        notes.append(
            f"ε with its search counts what choosing the settings reveals, if the best run is released. {how} It does not cover the "
            "validation examples. Trained anew: the best settings train one more model on the same examples."
        )
    return Table(
        name="searches",
        title="Searches: how each arm’s settings were chosen",
        columns=tuple(columns),
        rows=tuple(_entries(each) for each in found),
        notes=tuple(notes) if found else (),
        missing="" if found else "No arm’s settings were searched for by the sweep.",
    )


def _entries(search: Search) -> tuple[Entry, ...]:
    runs = f"{search.n_planned}"
    small: tuple[str, ...] = ()
    if not search.is_over:
        runs = f"{search.n_runs} of {search.n_planned}"
    elif search.n_runs < search.n_planned:
        small = (f"{search.n_runs} different",)
    return (
        Label(value=search.dataset),
        search.split,
        search.architecture,
        search.optimizer,
        Label(value=search.defense),
        Number(value=search.n_planned, decimals=0, text=runs, small=small),
        search.n_runs,
        search.law,
        search.n_diverged,
        Number(value=search.best),
        Number(value=search.median),
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in search.chosen),
        *(_epsilon(value) for value in (search.epsilon_run, search.epsilon_with_search, search.epsilon_trained_anew)),
    )


def _epsilon(value: float | None) -> Number:
    return Number(value=value, text="" if value is None else naming.epsilon(value))
