"""Tables of any columns, for the second paper: as CSV in full precision, as LaTeX, and as text for the page.

The first paper's tables are all of one shape (see `tables`). These are not: words, counts, tests and
estimates stand side by side.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from analysis import naming
from analysis.statistics.estimates import Estimate
from analysis.tables.output import EMPTY, estimate_text, latex_frame, number


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number; `text` is how it is shown where rounding is not enough (a small p-value, a reason).

    `small` stands below it, and repeats what a column of the CSV alone has.
    """

    value: float | None
    decimals: int = 3
    signed: bool = False
    text: str = ""
    small: str = ""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds with the paper's number beside it; `note` is shown below, and alone where there is no mean."""

    ours: Estimate | None
    decimals: int = 3
    signed: bool = False
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label of the sweep file: as it stands there in the CSV, as people write it everywhere else."""

    value: str


Entry = str | int | Label | Number | Mean | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: `key` in the CSV, `name` for people; `words` are set to the left.

    One that is `csv_only` says in numbers what another says in its text.
    """

    key: str
    name: str
    words: bool = False
    csv_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table; with no rows, `missing` says why. `said` is what the paper concluded from its own."""

    name: str
    title: str
    said: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    missing: str = ""


def visible(sheet: Sheet) -> list[int]:
    """The places of the columns that people see."""
    return [place for place, column in enumerate(sheet.columns) if not column.csv_only]


def repeats(sheet: Sheet, row: int, place: int) -> bool:
    """Whether a word stands in the row above too, with all words to the left of it: people then need not read it.

    The last column of words never does: it is what tells the row from the one above.
    """
    words = [at for at, column in enumerate(sheet.columns) if column.words]
    if not row or place not in words[:-1]:
        return False
    upto = words[: words.index(place) + 1]
    return all(sheet.rows[row][at] == sheet.rows[row - 1][at] for at in upto)


def shown(entry: Entry) -> str:
    """The entry as it stands in a cell."""
    if entry is None:
        return EMPTY
    if isinstance(entry, str | int):
        return str(entry)
    if isinstance(entry, Label):
        return naming.display(entry.value)
    if isinstance(entry, Number):
        return entry.text or number(entry.value, entry.decimals, entry.signed)
    if entry.ours is None and entry.note:
        return entry.note
    return estimate_text(entry.ours, entry.decimals, entry.signed)


def below(entry: Entry) -> list[str]:
    """What stands small under it: the paper's number, the difference, a note."""
    if isinstance(entry, Number):
        return [entry.small] if entry.small else []
    if not isinstance(entry, Mean):
        return []
    lines = []
    if entry.paper is not None:
        lines.append(f"paper {number(entry.paper, entry.decimals, entry.signed)}")
        if entry.ours is not None:
            lines.append(f"Δ {number(entry.ours.mean - entry.paper, entry.decimals, signed=True)}")
    if entry.ours is not None and entry.note:
        lines.append(entry.note)
    return lines


def sheet_csv(sheet: Sheet) -> str:
    """One line per row; an estimate is five columns or more: mean, ends, seeds, and the paper's where it has one."""
    header: list[str] = []
    parts: list[list[list[object]]] = []
    for place, column in enumerate(sheet.columns):
        names, values = _csv_column(column, [row[place] for row in sheet.rows])
        header += names
        parts.append(values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for index in range(len(sheet.rows)):
        cells = [value for column_values in parts for value in column_values[index]]
        writer.writerow(["" if value is None else value for value in cells])
    return text.getvalue()


def _csv_column(column: Column, entries: list[Entry]) -> tuple[list[str], list[list[object]]]:
    means = [entry for entry in entries if isinstance(entry, Mean)]
    if not means:
        plain = [entry.value if isinstance(entry, Number | Label) else entry for entry in entries]
        return [column.key], [[None if value == EMPTY else value] for value in plain]
    names = [f"{column.key}_{part}" for part in ("mean", "low", "high", "n_seeds")]
    published = any(mean.paper is not None for mean in means)
    noted = any(mean.note for mean in means)
    names += [f"{column.key}_paper", f"{column.key}_difference"] if published else []
    names += [f"{column.key}_note"] if noted else []
    rows: list[list[object]] = []
    for entry in entries:
        mean = entry if isinstance(entry, Mean) else Mean(ours=None)
        ours = mean.ours
        row: list[object] = [None, None, None, 0] if ours is None else [ours.mean, ours.low, ours.high, ours.n]
        if published:
            both = ours is not None and mean.paper is not None
            row += [mean.paper, ours.mean - mean.paper if both and ours and mean.paper is not None else None]
        row += [mean.note] if noted else []
        rows.append(row)
    return names, rows


def sheet_latex(sheet: Sheet, sweep: str) -> str:
    """A booktabs table, its label that of `sweep`; the paper's number stands in parentheses after ours."""
    if sheet.missing:
        return f"% {sheet.title}: {sheet.missing}\n"
    places = visible(sheet)
    body = []
    for row in sheet.rows:
        cells = []
        for entry in (row[place] for place in places):
            beside = f" ({', '.join(below(entry))})" if below(entry) else ""
            cells.append(naming.latex(shown(entry) + beside))
        body.append(" & ".join(cells) + r" \\")
    header = " & ".join(naming.latex(sheet.columns[place].name) for place in places) + r" \\"
    layout = "".join("l" if sheet.columns[place].words else "r" for place in places)
    label = naming.latex_label(sweep, sheet.name)
    return latex_frame(sheet.title, [sheet.said, *sheet.notes], label, layout, header, body)
