"""Tables as CSV, in full precision: one line per row, with labels as in the sweep file."""

from __future__ import annotations

import csv
import io

from analysis.tables.model import Column, Entry, Label, Mean, Number, Table
from analysis.tables.text import EMPTY


def table_csv(table: Table) -> str:
    """The table with a header.

    A mean becomes the columns KEY_mean, KEY_low, KEY_high and KEY_n_seeds. Further columns follow if an entry needs them:
    KEY_interval_over if an interval is not over seeds alone; KEY_paper and KEY_difference if a number was published;
    KEY_supported if a mean measured nothing; KEY_note if a mean has a note.
    """
    parts = [_parts(column, [row[place] for row in table.rows]) for place, column in enumerate(table.columns)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for names, _ in parts for name in names])
    for row in range(len(table.rows)):
        values = [value for _, rows in parts for value in rows[row]]
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue()


def _parts(column: Column, entries: list[Entry]) -> tuple[list[str], list[list[object]]]:
    """The names of the CSV columns that `column` becomes, and their values row by row."""
    if column.kind != "mean":
        plain = [entry.value if isinstance(entry, Number | Label) else entry for entry in entries]
        return [column.key], [[None if value == EMPTY else value] for value in plain]
    means = [entry if isinstance(entry, Mean) else Mean(ours=None) for entry in entries]
    has_other_intervals = any(mean.ours is not None and mean.ours.over != "seeds" for mean in means)
    is_published = any(mean.paper is not None for mean in means)
    has_unsupported = any(not mean.supported for mean in means)
    has_notes = any(mean.note for mean in means)
    names = ["mean", "low", "high", "n_seeds"]
    names += ["interval_over"] if has_other_intervals else []
    names += ["paper", "difference"] if is_published else []
    names += ["supported"] if has_unsupported else []
    names += ["note"] if has_notes else []
    rows = []
    for mean in means:
        ours = mean.ours
        row: list[object] = [None, None, None, 0] if ours is None else [ours.mean, ours.low, ours.high, ours.n]
        row += [None if ours is None or ours.low is None else ours.over] if has_other_intervals else []
        row += [mean.paper, mean.difference] if is_published else []
        row += [mean.supported] if has_unsupported else []
        row += [mean.note] if has_notes else []
        rows.append(row)
    return [f"{column.key}_{name}" for name in names], rows
