"""The one model of a table: columns, each of one kind, and rows of entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.statistics.estimates import Estimate

Kind = Literal["label", "text", "number", "mean"]
"""What a column holds: short left-aligned words, sentences, single values, or means with intervals."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label of the sweep file. The CSV has it unchanged; people read `text`, by default the label's display name."""

    value: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number. `text` replaces the rounded number (a small p-value, a reason); `small` are lines below it.

    The CSV has only `value`, so numbers in `small` must also have their own column.
    """

    value: float | None
    decimals: int = 3
    signed: bool = False
    text: str = ""
    small: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds, with the published number beside it as `paper`.

    `note` is shown below the mean, or in its place if there is no mean, and in the CSV. `small` are further lines below it,
    which other columns of the CSV repeat. If `supported` is False, the mean measured nothing; a note of the table says why.
    """

    ours: Estimate | None
    decimals: int = 3
    signed: bool = False
    paper: float | None = None
    note: str = ""
    small: tuple[str, ...] = ()
    supported: bool = True

    @property
    def difference(self) -> float | None:
        """Ours minus the published number."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper


Entry = str | int | Label | Number | Mean | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: `key` is its name in the CSV, `name` its name for people, who do not see a `csv_only` column."""

    key: str
    name: str = ""
    kind: Kind = "number"
    csv_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. `caption` stands above it and `notes` below; without rows, `missing` says why.

    `folded` hides the rows of the page's table until a reader opens it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    missing: str = ""
    folded: bool = False

    @property
    def visible(self) -> list[int]:
        """The places of the columns that people see."""
        return [place for place, column in enumerate(self.columns) if not column.csv_only]

    def repeats(self, row: int, place: int) -> bool:
        """Whether this label, and every visible label to its left, equals that of the row above.

        Such a label is not shown again. The last label of a row never repeats, because it distinguishes the row.
        """
        labels = [at for at in self.visible if self.columns[at].kind in ("label", "text")]
        if not row or place not in labels[:-1]:
            return False
        upto = labels[: labels.index(place) + 1]
        return all(self.rows[row][at] == self.rows[row - 1][at] for at in upto)
