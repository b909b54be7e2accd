"""Decides which trial runs next, what it requests, and what happens when it ends. Independent of Ray.

Only a window of trials is out at a time. A trial comes back finished, failed, or lost with its worker. It is then
recorded, or goes back to the end of the queue.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sweeper.workers.outcomes import Outcome

AUTO = "auto"
GPU_HEADROOM = 1.2
"""A trial requests its measured peak of GPU memory times this factor."""
_LOOK_AGAIN_S = 5.0
_CLAIMS_AT_ONCE = 20
"""The launch tries to claim at most this many trials before it handles trials that have ended meanwhile."""


class Unit(Protocol):
    """A unit of work: a trial, or a comparison of targets."""

    @property
    def target_id(self) -> str:
        """Its id; for a comparison, the comparison's id."""

    @property
    def title(self) -> str: ...

    @property
    def defense_label(self) -> str: ...

    @property
    def dataset_label(self) -> str: ...

    @property
    def split_label(self) -> str: ...

    @property
    def architecture_label(self) -> str: ...

    @property
    def optimizer_label(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def memory_kind(self) -> object:
        """Equal for units that need the same GPU memory; None if it uses no GPU."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of each trial, and how many may run at once (None: as many as fit).

    CPUs and GPUs are given per architecture label; `None` is the label of all others. A share of a GPU may be "auto": the first
    trial of each kind gets a whole GPU, the others what that one needed. `chunk_size` is the largest number of examples that
    private gradients process at once (None: as many as fit their memory).
    """

    cpus: Mapping[str | None, float] = field(default_factory=dict)
    gpus: Mapping[str | None, float | Literal["auto"]] = field(default_factory=dict)
    max_concurrent: int | None = None
    chunk_size: int | None = None

    def cpus_of(self, trial: Unit) -> float:
        return self.cpus.get(trial.architecture_label, self.cpus.get(None, 1.0))

    def gpus_of(self, trial: Unit) -> float | Literal["auto"]:
        if trial.memory_kind is None:
            return 0.0
        return self.gpus.get(trial.architecture_label, self.gpus.get(None, 0.0))


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One attempt at a trial that is handed out, with the resources it requests."""

    target_id: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a trial is retried: after its own failure, and after the loss of its worker or node."""

    failures: int = 1
    losses: int = 10


class Schedule:
    """The units of work of one launch, from the queue to their end.

    `claim` says whether this launch may run a target id now ("ours"), another launch does ("theirs"), it is done by now
    ("done"), or the store does not answer ("unknown"). `settled` says which units that others ran have ended. `window` is
    the number of units that may be out at a time.
    """

    def __init__(
        self,
        units: Iterable[Unit],
        *,
        resources: Resources,
        retries: Retries,
        claim: Callable[[str], Literal["ours", "theirs", "done", "unknown"]],
        settled: Callable[[Collection[str]], Collection[str]],
        window: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.units = {unit.target_id: unit for unit in units}
        self._resources, self._retries = resources, retries
        self._claim, self._settled, self._window, self._clock = claim, settled, window, clock
        self._line = deque(self.units)
        self._theirs: deque[str] = deque()
        self._look_again = 0.0
        self._failures = Counter[str]()
        self._losses = Counter[str]()
        self._gpus_after_failure: dict[str, float] = {}
        self._kinds: dict[object, _Kind] = {}
        self.out: dict[str, Ticket] = {}
        self.stopped: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is out and nothing will be."""
        if self.out:
            return False
        held = any(kind.held for kind in self._kinds.values())
        return self.stopped is not None or not (self._line or self._theirs or held)

    @property
    def smallest_gpus(self) -> float:
        """The smallest share of a GPU that a trial requests, as far as known."""
        fixed = [float(share) for share in self._resources.gpus.values() if share != AUTO]
        measured = [kind.share for kind in list(self._kinds.values()) if kind.share is not None]
        return min([*fixed, *measured], default=1.0)

    def add(self, units: Iterable[Unit]) -> None:
        """Queue units that could not run before; units that are known already are not queued again."""
        new = {unit.target_id: unit for unit in units if unit.target_id not in self.units}
        self.units |= new
        self._line.extend(new)

    def stop(self, reason: str) -> None:
        """Hand out nothing more."""
        self.stopped = self.stopped or reason

    def next(self) -> Ticket | None:
        """The next attempt; None if there is none now, or if finding one takes long."""
        if self.stopped is not None or len(self.out) >= max(1, self._window()):
            return None
        if not self._line and self._theirs and self._clock() >= self._look_again:
            self._look_at_theirs()
        for _ in range(min(len(self._line), _CLAIMS_AT_ONCE)):
            target_id = self._line.popleft()
            ticket = self._ticket(self.units[target_id])
            if ticket is None:
                continue
            whose = self._claim(target_id)
            if whose == "ours":
                self.out[target_id] = ticket
                return ticket
            self._free_kind(self.units[target_id])
            if whose == "unknown":
                self._line.append(target_id)
                break
            if whose == "theirs":
                self._theirs.append(target_id)
        return None

    def _look_at_theirs(self) -> None:
        """Drop the units that others have ended, and queue the rest for claiming, in case the others died."""
        began = self._clock()
        settled = set(self._settled(self._theirs))
        self._line.extend(target_id for target_id in self._theirs if target_id not in settled)
        self._theirs.clear()
        self._look_again = self._clock() + max(_LOOK_AGAIN_S, 10 * (self._clock() - began))

    def ended(self, outcome: Outcome) -> bool:
        """Take back a trial with its outcome. Returns whether that is final."""
        ticket = self.out.pop(outcome.target_id, None)
        if ticket is None:  # its worker was believed lost meanwhile
            return False
        trial = self.units[outcome.target_id]
        if outcome.gpu_memory_peak is not None and outcome.cause != "gpu_memory":
            self._measured(trial, outcome.gpu_memory_peak)
        self._free_kind(trial, holds=False)
        if outcome.cause is None:
            return True
        if outcome.cause == "gpu_memory":
            if outcome.target_id in self._gpus_after_failure:
                return True
            self._gpus_after_failure[outcome.target_id] = min(1.0, 2 * ticket.gpus) if ticket.gpus < 1 else ticket.gpus
        else:
            self._failures[outcome.target_id] += 1
            allowed = 0 if outcome.cause == "diverged" else self._retries.failures  # the same seeds would diverge again
            if self._failures[outcome.target_id] > allowed:
                return True
        self._line.append(outcome.target_id)
        return False

    def lost(self, target_id: str) -> bool:
        """Take back a trial whose worker or node was lost. Returns whether it is given up."""
        if self.out.pop(target_id, None) is None:
            return False
        self._free_kind(self.units[target_id])
        self._losses[target_id] += 1
        if self._losses[target_id] > self._retries.losses:
            return True
        self._line.append(target_id)
        return False

    def _ticket(self, trial: Unit) -> Ticket | None:
        """The resources that the trial requests; None if it is held until a trial of its kind has been measured."""
        asked = self._resources.gpus_of(trial)
        if asked != AUTO:
            gpus = float(asked)
        else:
            kind = self._kinds.setdefault(trial.memory_kind, _Kind())
            if kind.share is None and kind.holds:
                if kind.probe not in (None, trial.target_id):
                    kind.held.append(trial.target_id)
                    return None
                kind.probe = trial.target_id
            gpus = kind.share or 1.0
        gpus = max(gpus, self._gpus_after_failure.get(trial.target_id, 0.0))
        return Ticket(target_id=trial.target_id, cpus=self._resources.cpus_of(trial), gpus=gpus)

    def _measured(self, trial: Unit, peak: float) -> None:
        kind = self._kinds.get(trial.memory_kind)
        if kind is not None and kind.share is None:
            kind.share = share_for(peak)

    def _free_kind(self, trial: Unit, holds: bool = True) -> None:
        """If this trial was its kind's probe, release the others: with the measured share, or with another trial as the probe.

        If the trial ended without a measurement, the others are not held (`holds` is false): each requests a whole GPU until one
        of them is measured.
        """
        kind = self._kinds.get(trial.memory_kind)
        if kind is not None and kind.probe == trial.target_id:
            kind.probe = None
            kind.holds = holds
            self._line.extendleft(reversed(kind.held))
            kind.held.clear()


def share_for(peak: float) -> float:
    """The share of a GPU to request, in hundredths, if a similar trial held the fraction `peak` of its memory."""
    return min(1.0, max(1, math.ceil(round(100 * peak * GPU_HEADROOM, 6))) / 100)


@dataclass
class _Kind:
    """Trials that need the same GPU memory. While it `holds`, those in `held` wait for the `probe` to be measured."""

    holds: bool = True
    probe: str | None = None
    share: float | None = None
    held: list[str] = field(default_factory=list)
