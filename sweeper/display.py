"""What the terminal shows while a sweep runs: built here, printed by the command line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.errors import printable
from sweeper.spec import Trial

if TYPE_CHECKING:
    from sweeper.cluster import Event
    from sweeper.status import SweepStatus

RECENT = 6
SHOWN_RUNNING = 24
SHOWN_FAILURES = 10
STOPPING = "Stopping: what is finished is kept, and reported on"
_MARKS = {"finished": ("✔ ", "green"), "failed": ("✘ ", "red"), "retried": ("↻ ", "yellow")}


class SweepDisplay:
    """The state of a running sweep, fed with events; renders itself, or tells one line per finished trial."""

    def __init__(self, trials: Mapping[str, Trial], done_before: int) -> None:
        self._trials = trials
        self._done_before = done_before
        self._started = time.monotonic()
        self._running: dict[str, tuple[float, str, float]] = {}
        self._recent: list[tuple[str, str, str, str]] = []
        self.finished = 0
        self.failed = 0
        self.elsewhere = 0
        self._is_stopping = False

    @property
    def _total(self) -> int:
        return len(self._trials) - self.elsewhere

    def update(self, event: Event) -> str | None:
        """Take in an event; a line to log where a trial ended."""
        now = time.monotonic()
        target_id = event.target_id
        if event.kind == "started":
            self._running[target_id] = (now, "starting", 0.0)
            return None
        if event.kind == "stopping":
            self._is_stopping = True
            return None
        if event.kind == "elsewhere":
            self.elsewhere += 1
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
        line = f"[{counted}/{self._total}] {event.kind} {target_id} {self._trials[target_id].title} in {took}"
        line += f", {self._rate()}"
        return line + (f": {event.what}" if event.what else "")

    def _rate(self) -> str:
        """Trials per minute and the time left, from what has ended so far."""
        counted = self.finished + self.failed
        elapsed = time.monotonic() - self._started
        if not counted:
            return f"{duration(elapsed)} so far"
        partial = sum(fraction for _, _, fraction in self._running.values())
        left = elapsed / (counted + partial) * max(0.0, self._total - counted - partial)
        return f"{60 * counted / elapsed:.1f} trials/min, {duration(left)} left"

    def __rich__(self) -> RenderableType:
        counted = self.finished + self.failed
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        bar = ProgressBar(total=max(1, self._total), completed=counted)
        head.add_row(bar, f"{counted}/{self._total} trials")
        summary = Text(f"{self.finished} finished", style="green")
        summary.append(f", {self.failed} failed", style="red" if self.failed else "dim")
        elsewhere = f", {self.elsewhere} by others" if self.elsewhere else ""
        summary.append(f"{elsewhere}, {self._done_before} done before, {self._rate()}", style="dim")
        if self._is_stopping:
            summary = Text(f"{STOPPING}; {self.finished} finished", style="yellow")
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
        for column, width in (("trial", None), ("doing", 20), ("", 12), ("time", 12)):
            table.add_column(column, width=width, no_wrap=True, overflow="ellipsis", ratio=1 if width is None else None)
        for kind, target_id, what, took in self._recent:
            mark = Text(*_MARKS[kind])
            title = mark.append(self._trials[target_id].title, style="dim")
            table.add_row(title, Text(what.splitlines()[0] if what else "", style="dim"), "", Text(took, style="dim"))
        for target_id, (started, what, fraction) in list(self._running.items())[:SHOWN_RUNNING]:
            bar = ProgressBar(total=1.0, completed=fraction, width=12)
            table.add_row(Text("  " + self._trials[target_id].title), what, bar, duration(time.monotonic() - started))
        more = len(self._running) - SHOWN_RUNNING
        return Group(head, summary, table, *([Text(f"  and {more} more", style="dim")] if more > 0 else []))


def status_view(status: SweepStatus, results: str) -> RenderableType:
    """How a sweep stands, for a person."""
    head = Text(f"{status.done} of {status.trials} trials done", style="bold")
    head.append(f", {status.failed} failed", style="red" if status.failed else "dim")
    head.append(f", {status.left} left", style="not bold")
    if status.per_hour is not None:
        head.append(f"; {status.per_hour:.3g} trials/h of late", style="not bold dim")
        if status.left and status.left_s is not None:
            head.append(f", about {duration(status.left_s)} left", style="not bold dim")
    parts: list[RenderableType] = [head]
    if not status.launches:
        how = "The same launch command goes on from here." if status.left or status.failed else "The sweep is finished."
        parts.append(Text(f"Nothing works on it now. {how}"))
    for launch in status.launches:
        parts.append(Text(f"Launched by {launch.name}, {launch.started_at}: {len(launch.running)} running"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for running in launch.running[:SHOWN_RUNNING]:
            shown = (
                running.target_id,
                running.title,
                f"on {running.node}" if running.node else "",
                running.stage,
                f"{running.fraction:.0%}",
                duration(running.seconds),
            )
            table.add_row(*map(Text, shown))  # from files, where a bracket is no style
        parts.append(table)
    if status.failures:
        parts.append(
            Text("Failures: " + printable(", ".join(f"{cause} {count}" for cause, count in status.causes.items())))
        )
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for failure in status.failures[:SHOWN_FAILURES]:
            lines = failure.error.splitlines() or [""]
            cells = (failure.target_id, failure.attack or "training", lines[0])
            table.add_row(*(Text(printable(cell, 300)) for cell in cells))
        parts.append(table)
        more = len(status.failures) - SHOWN_FAILURES
        parts.append(Text((f"and {more} more; " if more > 0 else "") + f"the whole story: sweeper logs {results} ID"))
    if status.quarantined:
        parts.append(Text(f"{status.quarantined} damaged files lie in quarantine; what they held is made anew."))
    return Group(*parts)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
