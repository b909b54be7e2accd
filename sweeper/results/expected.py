"""What must be recorded of a trial, and the trial's status from the parts that exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sweeper.results.layout import (
    FAILED,
    TARGET_TABLES,
)
from sweeper.sweep.identity import attack_id, candidate_ids, identity

if TYPE_CHECKING:
    from attacks.base import Attack
    from sweeper.sweep.trial import Trial


@dataclass(frozen=True)
class Status:
    """A trial's recorded status."""

    target: str
    """`finished`, `failed` or `missing`."""
    missing_attacks: tuple[str, ...]
    """Ids of the attacks, and of their comparison, that are not recorded as finished."""
    failed_attacks: tuple[str, ...]
    answered: bool = True
    """Whether the answers that its comparisons need are recorded."""

    @property
    def comparable(self) -> bool:
        """Whether the target can be compared with others."""
        return self.target == "finished" and self.answered

    @property
    def done(self) -> bool:
        return self.comparable and not self.missing_attacks

    @property
    def word(self) -> str:
        """The status in one word: done, failed, partial or to do."""
        if self.done:
            return "done"
        if self.target == "failed" or self.failed_attacks:
            return "failed"
        return "partial" if self.target == "finished" else "to do"


_status = cache(Status)  # most of 100,000 trials have the same status


@dataclass(frozen=True)
class Records:
    """What must be recorded of a trial beside its target."""

    attacks: tuple[tuple[str, str | None], ...]
    """Ids of all records of its attacks, each with the table of what it measured per example or layer, if any."""
    queries: int
    """The number of queries whose answers must be recorded; 0 if none."""
    is_search_run: bool = False
    """Then its row is enough if no attack is missing: a run that diverged has no model."""


def wanted_parts(target_id: str, records: Records) -> Iterator[tuple[str, str]]:
    """Table and key of every part that determines the trial's status."""
    yield from ((table, target_id) for table in TARGET_TABLES)
    yield "trials", target_id + FAILED
    for each, kept in records.attacks:
        yield "attacks", f"{target_id}.{each}"
        yield "attacks", f"{target_id}.{each}{FAILED}"
        if kept:
            yield kept, f"{target_id}.{each}"


def judge(target_id: str, records: Records, has: Callable[[str, str], bool]) -> Status:
    """The status of a trial from the parts that exist.

    A row implies that the rest of its record was written. A part that was deleted or set aside since is computed again.
    """
    missing = []
    for each, kept in records.attacks:
        if not has("attacks", f"{target_id}.{each}") or (kept and not has(kept, f"{target_id}.{each}")):
            missing.append(each)
    target = "missing"
    whole = has("weights", target_id) and all(has(table, target_id) for table in TARGET_TABLES)
    if whole or (records.is_search_run and not missing and has("trials", target_id)):
        target = "finished"
    elif has("trials", target_id + FAILED):
        target = "failed"
    failed = tuple(each for each in missing if has("attacks", f"{target_id}.{each}{FAILED}"))
    answered = not records.queries or has("answers", f"{target_id}.{records.queries}")
    return _status(target, tuple(missing), failed, answered)


BEST_OF = "best_of"


BEST_OF_REVISION = 2
"""Like an attack's revision: it increases when the same candidates would give other results."""


def best_of_id(candidate_ids: Iterable[str]) -> str:
    """The id of the comparison of these attacks."""
    return identity({"name": BEST_OF, "revision": BEST_OF_REVISION, "candidates": sorted(candidate_ids)})


def recorded_attacks(trial: Trial) -> list[str]:
    """Ids of all records of a trial's attacks: the attacks themselves, and the comparison of the membership attacks."""
    return [each for each, _ in records_of(trial).attacks]


def records_of(trial: Trial) -> Records:
    """All records of a trial's attacks, in the order of `recorded_attacks`."""
    return _records_of(trial.attacks, trial.kept_queries, trial.search_run is not None)


@cache
def _records_of(attacks: tuple[Attack, ...], queries: int, is_search_run: bool) -> Records:
    records = tuple((attack_id(attack), attack.result.table) for attack in attacks)
    candidates = candidate_ids(attacks)
    records = (*records, (best_of_id(candidates), None)) if candidates else records
    return Records(records, queries, is_search_run)
