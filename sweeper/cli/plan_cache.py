"""What `plan` shows of a sweep, cached as plain JSON, so that it is shown again without PyTorch.

The key is a hash of everything that a plan depends on: the question, the sweep file, our code, the installed libraries and the
files in the data folder. Statuses are not cached, nor are errors.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from attacks.comparisons.base import TargetLabel
from sweeper.results.expected import Records, records_of
from sweeper.storage.local import LocalFiles
from sweeper.sweep import components
from sweeper.sweep.packaged import packaged_sweeps

if TYPE_CHECKING:
    from attacks.comparisons.base import Comparison
    from sweeper.prepare import Resolved
    from sweeper.sweep.preflight import ResolvedTrial
    from sweeper.sweep.trial import Trial

MOST_PLANS = 32
"""Most plans in the cache; the oldest are deleted."""
MOST_BYTES = 2**24
"""Sweep files and plans that are larger are not cached."""
MOST_DATA_FILES = 20_000
"""If the data folder has more files and folders, plans are not cached, because looking at them takes too long."""
_PACKAGES = ("sweeper", "models", "attacks")


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """What `plan` shows of a chosen trial."""

    title: str
    rough_cpu_seconds: float
    row: dict[str, Any]
    """The trial as JSON, with an empty status."""


@dataclass(frozen=True, kw_only=True)
class PlannedTarget:
    """What determines a trial's status and comparisons."""

    label: TargetLabel
    records: Records
    comparisons: tuple[dict[str, Any], ...]
    """Name and fields of each comparison."""


@dataclass(frozen=True, kw_only=True)
class PlannedSearch:
    """What `plan` shows of an arm's search."""

    search_id: str
    trials: tuple[str, ...]
    """Ids of its runs, and of the targets that its best settings train."""
    title: str
    fields: tuple[str, ...]
    """What is drawn."""
    n_runs: int
    n_done: int
    n_to_come: int
    """Runs that are not among the trials yet."""
    n_targets: int
    """Targets that its best settings will train, and that are not among the trials yet."""
    rough_cpu_seconds: float
    """Rough cost of what is not among the trials yet."""
    epsilon_run: float | None
    epsilon_with_search: float | None
    epsilon_trained_anew: float | None
    basis: str
    """How ε was computed, or why there is none."""

    def as_json(self) -> dict[str, Any]:
        """What `plan --json` says of it beside each of its trials."""
        values = asdict(self)
        for name in ("trials", "title", "rough_cpu_seconds"):
            del values[name]
        return values


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved sweep in plain values."""

    name: str
    summary: str
    paper: str
    cost: str
    expected: str
    missing: tuple[str, ...]
    """For each dataset that cannot be opened, the reason."""
    warnings: tuple[str, ...]
    trials: tuple[PlannedTrial, ...]
    """The chosen trials."""
    targets: tuple[PlannedTarget, ...]
    """All trials of the sweep."""
    searches: tuple[PlannedSearch, ...] = ()


def planned_trial(each: ResolvedTrial) -> PlannedTrial:
    return PlannedTrial(title=each.trial.title, rough_cpu_seconds=each.rough_cpu_seconds, row=each.as_json(status=""))


def planned_target(trial: Trial) -> PlannedTarget:
    comparisons = tuple(map(_reference, trial.comparisons))
    return PlannedTarget(label=trial.target_label, records=records_of(trial), comparisons=comparisons)


def _reference(comparison: Comparison) -> dict[str, Any]:
    """A comparison as in a sweep file."""
    config = components.configuration("comparison", comparison)
    return {key: value for key, value in config.items() if key != "revision"}


def planned_searches(resolved: Resolved) -> tuple[PlannedSearch, ...]:
    """The searches of the chosen arms."""
    seconds = {each.trial.target_id: each.rough_cpu_seconds for each in resolved.chosen}
    found = []
    for arm in resolved.arms.searches:
        known = [seconds[run.trial.target_id] for run in arm.runs if run.trial.target_id in seconds]
        if not known:
            continue
        parts = [part for part in resolved.sweep.parts if part.name in arm.cell.parts]
        n_targets = 0 if arm.is_over else sum(len(part.seeds) for part in parts)
        price = resolved.prices[arm.search_id]
        found.append(
            PlannedSearch(
                search_id=arm.search_id,
                trials=(*(run.trial.target_id for run in arm.runs), *resolved.arms.targets_of(arm)),
                title=f"{arm.cell.defense_label} · {arm.cell.dataset_label} · {arm.cell.split_label}",
                fields=tuple(path[-1] for path in arm.fields),
                n_runs=arm.plan.n_runs,
                n_done=sum(run.score is not None for run in arm.runs),
                n_to_come=arm.n_to_come,
                n_targets=n_targets,
                rough_cpu_seconds=(arm.n_to_come + n_targets) * sum(known) / len(known),
                epsilon_run=price.epsilon_run,
                epsilon_with_search=price.epsilon_with_search,
                epsilon_trained_anew=price.epsilon_trained_anew,
                basis=price.basis,
            )
        )
    return tuple(found)


def planned(resolved: Resolved, missing: Sequence[str], warnings: Sequence[str]) -> Plan:
    """The plan of a resolved sweep."""
    sweep = resolved.sweep
    return Plan(
        name=sweep.name,
        summary=sweep.summary,
        paper=sweep.paper,
        cost=sweep.cost,
        expected=sweep.expected,
        missing=tuple(missing),
        warnings=tuple(warnings),
        trials=tuple(map(planned_trial, resolved.chosen)),
        targets=tuple(map(planned_target, resolved.arms.trials)),
        searches=planned_searches(resolved),
    )


def plan_key(sweep: str, data: Path, *question: object) -> str | None:
    """The key of a plan in the cache; None if the plan cannot be cached.

    `question` is what else was asked: overrides, patterns, the kind of output.
    """
    if entry_points().groups & {f"sweeper.{kind}s" for kind in components.KINDS}:
        return None  # a plan may depend on anything that other packages' components read
    try:
        path = packaged_sweeps().get(sweep, Path(sweep))
        found = list(islice(_below(data), MOST_DATA_FILES + 1))
        if not path.is_file() or path.stat().st_size > MOST_BYTES or len(found) > MOST_DATA_FILES:
            return None
        # Messages name the data folder as given, and its absolute path
        facts = [sys.version, repr((sweep, str(data), str(data.absolute()), question)), *_installed(), *found]
        digest = hashlib.sha256("\n".join(facts).encode())
        folders = [Path(folder) for name in _PACKAGES for folder in import_module(name).__path__]
        for source in [path, *(each for folder in folders for each in sorted(folder.rglob("*.py")))]:
            content = source.read_bytes()
            digest.update(f"\n{source} {len(content)}\n".encode() + content)
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def _installed() -> Iterator[str]:
    """The metadata folders of all installed distributions. Their names contain the versions."""
    for folder in sys.path:
        with suppress(OSError), os.scandir(folder or ".") as scan:
            for each in sorted(scan, key=lambda each: each.name):
                if each.name.endswith(("-info", ".egg-link")):
                    yield repr((each.path, each.stat(follow_symlinks=False).st_mtime_ns))


def _below(folder: Path) -> Iterator[str]:
    """All folders below a folder, and all files with their sizes and times. Links are followed."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as scan:
                entries = sorted(scan, key=lambda each: each.name)
        except OSError as error:
            yield repr((error.filename, error.errno))
            continue
        for each in entries:
            try:
                status = each.stat()
            except OSError as error:  # a link that leads nowhere
                yield repr((each.path, error.errno))
                continue
            if stat.S_ISDIR(status.st_mode):
                yield repr(each.path)
                waiting.append(each.path)
            else:  # st_ctime differs even if a file is replaced by one of the same size and st_mtime
                yield repr((each.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def read_plan(key: str) -> Plan | None:
    """The cached plan; None if there is none, or if its file is damaged."""
    try:
        checksum, _, content = (_folder() / key).read_bytes().partition(b"\n")
        return TypeAdapter(Plan).validate_json(content) if checksum == _checksum(key, content) else None
    except (OSError, RuntimeError, ValueError):
        return None


def write_plan(key: str, plan: Plan) -> None:
    """Cache a plan, unless it is too large or the folder cannot be written."""
    content = json.dumps(asdict(plan)).encode()
    if len(content) > MOST_BYTES:
        return
    with suppress(OSError, RuntimeError):
        LocalFiles(_folder()).write(key, _checksum(key, content) + b"\n" + content)
        files = [path for path in _folder().iterdir() if path.is_file()]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-MOST_PLANS]:
            path.unlink()


def _folder() -> Path:
    """Where plans are cached, by the XDG base directory specification. RuntimeError if the user has no home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "sweeper" / "plans"


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).hexdigest().encode()
