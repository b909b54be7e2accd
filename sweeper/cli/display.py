"""The terminal's view of a running sweep. Built here, printed by the command line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.errors import printable
from sweeper.workers.time_left import TimeLeft

if TYPE_CHECKING:
    from sweeper.cluster.events import Event
    from sweeper.results.status import SweepStatus
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.trial import Trial

RECENT = 6
SHOWN_RUNNING = 24
SHOWN_FAILURES = 10
STOPPING = "Stopping: finished work is kept and reported"
LEAST_TITLE = 24
"""Characters of a title in a table; with less room, a trial takes several lines."""
_LEAST_NAME = 6
"""Characters that each name keeps; if there is no room for these, the last name is dropped."""
_MARKS = {"finished": ("✔ ", "green"), "failed": ("✘ ", "red"), "retried": ("↻ ", "yellow")}


def cut_title(title: str, width: int) -> str:
    """A trial's title in `width` characters: its longest names lose their middle, the last name may be dropped, the seed is kept."""
    names = title.split(" · ")
    sizes = list(map(len, names))
    while (left := sum(sizes) + 3 * (len(names) - 1) - width) > 0:
        cuttable = [index for index, name in enumerate(names) if not name.startswith("seed ")]
        longest = max(cuttable, key=sizes.__getitem__, default=0)
        if len(cuttable) > 1 and sum(max(0, sizes[index] - _LEAST_NAME) for index in cuttable) < left:
            del names[cuttable[-1]], sizes[cuttable[-1]]
        elif cuttable and sizes[longest] > 1:
            sizes[longest] -= 1
        else:
            break
    return " · ".join(map(_without_middle, names, sizes))


def _without_middle(name: str, size: int) -> str:
    if len(name) <= size:
        return name
    tail = size // 2
    return f"{name[: size - 1 - tail]}…{name[len(name) - tail :]}"


class Title:
    """A trial's title, cut to the available width."""

    def __init__(self, title: str, mark: str = "", style: str = "", mark_style: str = "") -> None:
        self.title, self._mark, self._style, self._mark_style = title, mark, style, mark_style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(self._mark, self._mark_style, no_wrap=True, overflow="ellipsis")
        yield text.append(cut_title(self.title, options.max_width - cell_len(self._mark)), self._style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = cell_len(self._mark) + cell_len(self.title)
        return Measurement(min(whole, LEAST_TITLE), whole)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of `Rows`. Its cells may be cut or wrapped down to `least` characters; None: never."""

    heading: str = ""
    least: int | None = None
    justify: Literal["left", "right"] = "left"
    style: str = ""


class Rows:
    """A table. If the terminal is too narrow for its numbers, each row is printed by itself, on as many lines as it needs.

    Cells are text or a `Title`. Cells of a column without `least` are cut only if they alone are wider than the
    terminal.
    """

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[str | Title]], indent: int = 0) -> None:
        self._columns, self._rows, self._indent = columns, rows, indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [
            max([cell_len(column.heading), *(_width(row[index]) for row in self._rows)])
            for index, column in enumerate(self._columns)
        ]
        given = [
            width if column.least is None else min(width, column.least)
            for column, width in zip(self._columns, widths, strict=True)
        ]
        spare = options.max_width - self._indent - sum(given) - 2 * len(given)
        if spare < 0:
            yield from self._stacked(options.max_width)
            return
        has_heading = any(column.heading for column in self._columns)
        table = Table(box=None, show_header=has_heading, padding=(0, 2, 0, 0), header_style="bold")
        for column, width, narrowest in zip(self._columns, widths, given, strict=True):
            more = min(spare, width - narrowest)
            spare -= more
            table.add_column(column.heading, justify=column.justify, style=column.style, width=narrowest + more)
        for row in self._rows:
            table.add_row(*(cell if isinstance(cell, Title) else Text(cell) for cell in row))
        yield Padding(table, (0, 0, 0, self._indent), expand=False)

    def _stacked(self, width: int) -> RenderResult:
        """Print each row's cells one after the other; a cell that does not fit begins a new line."""
        for row in self._rows:
            line, start = Text(), self._indent
            for index, (column, cell) in enumerate(zip(self._columns, row, strict=True)):
                is_named = column.heading and index and not isinstance(cell, Title)
                piece = Text(f"{column.heading} " if is_named else "", "dim")
                whole = cut_title(cell.title, width - self._indent - 2) if isinstance(cell, Title) else cell
                piece.append(whole, column.style)
                if index and start + line.cell_len + 2 + piece.cell_len > width:
                    yield Padding(line, (0, 0, 0, start), expand=False)
                    line, start = Text(), self._indent + 2
                line.append("  " if line else "").append_text(piece)
            yield Padding(line, (0, 0, 0, start), expand=False)


def _width(cell: str | Title) -> int:
    return cell_len(cell.title if isinstance(cell, Title) else cell)


class SweepDisplay:
    """The state of a running sweep, fed with events. Renders itself, or returns one line per finished trial."""

    def __init__(self, units: Sequence[Trial | ComparisonTask], done_before: int) -> None:
        self._titles = {unit.target_id: unit.title for unit in units}
        self._are_trials_alone = all(unit.memory_kind is not None for unit in units)
        self._done_before = done_before
        self._started = time.monotonic()
        self._running: dict[str, tuple[float, str, float]] = {}
        self._recent: list[tuple[str, str, str, str]] = []
        self.finished = 0
        self.failed = 0
        self.elsewhere = 0
        self._is_stopping = False
        self._time_left = TimeLeft({unit.target_id: unit.kind for unit in units}, self._started)

    @property
    def _total(self) -> int:
        return len(self._titles) - self.elsewhere

    def update(self, event: Event) -> str | None:
        """Handle an event. Returns a line to log if a trial ended."""
        now = time.monotonic()
        target_id = event.target_id
        if event.kind == "added":
            self._time_left.kinds[target_id] = event.unit_kind
        self._time_left.note(event.kind, target_id, event.fraction, now)
        if event.kind == "started":
            self._running[target_id] = (now, "starting", 0.0)
            return None
        if event.kind == "stopping":
            self._is_stopping = True
            return None
        if event.kind == "elsewhere":
            self.elsewhere += 1
            return None
        if event.kind == "added":
            self._titles[target_id] = event.what
            return None
        if event.kind == "progress":
            started = self._running.get(target_id, (now, "", 0.0))[0]
            self._running[target_id] = (started, event.what, event.fraction)
            return None
        started = self._running.pop(target_id, (now, "", 0.0))[0]
        took = duration(now - started)
        if event.kind == "finished":
            self.finished += 1
        elif event.kind == "failed":
            self.failed += 1
        self._recent = [*self._recent, (event.kind, target_id, event.what, took)][-RECENT:]
        counted = self.finished + self.failed
        line = f"[{counted}/{self._total}] {event.kind} {target_id} {self._titles[target_id]} in {took}"
        line += f", {self._rate()}"
        return line + (f": {event.what}" if event.what else "")

    def _rate(self) -> str:
        """Trials per minute and the time left, by what each kind of trial took."""
        counted = self.finished + self.failed
        now = time.monotonic()
        elapsed, left = now - self._started, self._time_left.left_s(now)
        if left is None:
            return f"{duration(elapsed)} so far"
        return (
            f"{60 * counted / elapsed:.1f} {'trials' if self._are_trials_alone else 'done'}/min, {duration(left)} left"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        counted = self.finished + self.failed
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        bar = ProgressBar(total=max(1, self._total), completed=counted)
        head.add_row(bar, f"{counted}/{self._total} {'trials' if self._are_trials_alone else 'trials and comparisons'}")
        yield head
        summary = Text(f"{self.finished} finished", style="green")
        summary.append(f", {self.failed} failed", style="red" if self.failed else "dim")
        elsewhere = f", {self.elsewhere} by others" if self.elsewhere else ""
        summary.append(f"{elsewhere}, {self._done_before} done before, {self._rate()}", style="dim")
        if self._is_stopping:
            summary = Text(f"{STOPPING}; {self.finished} finished", style="yellow")
        yield summary
        # Cut names first, then the activity, then the bar; keep percentages and times whole
        has_stage, has_bar = options.max_width >= 70, options.max_width >= 100
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
        table.add_column("trial", no_wrap=True, ratio=1)
        if has_stage:
            table.add_column("doing", no_wrap=True, overflow="ellipsis", width=20 if has_bar else 14)
        if has_bar:
            table.add_column("", width=12)
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)

        def add_row(title: Title, what: str, fraction: float | None, took: str, style: str = "") -> None:
            cells: list[RenderableType] = [title]
            cells += [Text(what, style)] if has_stage else []
            if has_bar:
                cells.append("" if fraction is None else ProgressBar(total=1.0, completed=fraction, width=12))
            share = "" if fraction is None else f"{fraction:.0%}"
            table.add_row(*cells, Text(share, style), Text(took, style))

        for kind, target_id, what, took in self._recent:
            mark, mark_style = _MARKS[kind]
            title = Title(self._titles[target_id], mark, "dim", mark_style)
            add_row(title, what.splitlines()[0] if what else "", None, took, "dim")
        for target_id, (started, what, fraction) in list(self._running.items())[:SHOWN_RUNNING]:
            add_row(Title(self._titles[target_id], "  "), what, fraction, duration(time.monotonic() - started))
        yield table
        more = len(self._running) - SHOWN_RUNNING
        if more > 0:
            yield Text(f"  and {more} more", style="dim")


def status_view(status: SweepStatus, results: str) -> RenderableType:
    """The status of a sweep as text for the terminal."""
    head = Text(f"{status.done} of {status.trials} trials done", style="bold")
    head.append(f", {status.failed} failed", style="red" if status.failed else "dim")
    head.append(f", {status.left} left", style="not bold")
    if status.per_hour is not None:
        head.append(f"; {status.per_hour:.3g} trials/h recently", style="not bold dim")
        if status.left and status.left_s is not None:
            head.append(f", about {duration(status.left_s)} left", style="not bold dim")
    parts: list[RenderableType] = [head]
    if status.comparisons:
        parts.append(Text(f"{status.compared} of {status.comparisons} comparisons done"))
    if not status.launches:
        how = (
            "The same launch command continues from here." if status.left or status.failed else "The sweep is finished."
        )
        parts.append(Text(f"No launch is working on it now. {how}"))
    for launch in status.launches:
        parts.append(Text(f"Launched by {launch.name}, {launch.started_at}: {len(launch.running)} running"))
        columns = [
            Column(),
            Column(least=LEAST_TITLE),
            Column(least=4),
            Column(least=8),
            Column(justify="right"),
            Column(),
        ]
        rows = [
            (
                each.target_id,
                Title(each.title),
                f"on {each.node}" if each.node else "",
                each.stage,
                f"{each.fraction:.0%}",
                duration(each.seconds),
            )
            for each in launch.running[:SHOWN_RUNNING]
        ]
        parts.append(Rows(columns, rows, indent=2))
    if status.failures:
        parts.append(
            Text("Failures: " + printable(", ".join(f"{cause} {count}" for cause, count in status.causes.items())))
        )
        causes = []
        for failure in status.failures[:SHOWN_FAILURES]:
            error = (failure.error.splitlines() or [""])[0]
            causes.append([printable(cell, 300) for cell in (failure.target_id, failure.attack or "training", error)])
        parts.append(Rows([Column(), Column(), Column(least=30)], causes, indent=2))
        more = len(status.failures) - SHOWN_FAILURES
        parts.append(Text((f"and {more} more; " if more > 0 else "") + f"full output: sweeper logs {results} ID"))
    if status.quarantined:
        parts.append(Text(f"{status.quarantined} damaged files are in quarantine; their content is recomputed."))
    return Group(*parts)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
