"""The queue of trials: what is handed out, comes back or is given up. Without Ray."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.workers.outcomes import Outcome
from sweeper.workers.scheduling import Resources, Retries, Schedule, share_for


@pytest.fixture
def trials(tiny: Path) -> list[Trial]:
    return expand(load_sweep(str(tiny), ["seeds=[0, 1, 2, 3]", "attacks=[threshold]"]))


def schedule(trials: list[Trial], **changes: Any) -> Schedule:
    settings: dict[str, Any] = {
        "resources": Resources(),
        "retries": Retries(failures=1, losses=2),
        "claim": lambda target_id: "ours",
        "settled": lambda target_ids: [],
        "window": lambda: 100,
    }
    return Schedule(trials, **settings | changes)


def drain(plan: Schedule) -> list[Any]:
    tickets = []
    while (ticket := plan.next()) is not None:
        tickets.append(ticket)
    return tickets


def test_all_are_handed_out_once_in_order_and_no_more_than_the_window(trials: list[Trial]) -> None:
    plan = schedule(trials, window=lambda: 3)
    handed = drain(plan)
    assert [ticket.target_id for ticket in handed] == [trial.target_id for trial in trials[:3]]
    while not plan.is_over:
        assert plan.ended(Outcome(target_id=next(iter(plan.out))))
        handed += drain(plan)
        assert len(plan.out) <= 3
    assert [ticket.target_id for ticket in handed] == [trial.target_id for trial in trials]


@pytest.mark.parametrize(
    ("cause", "attempts"), [("error", 2), ("process_died", 2), ("time_limit", 2), ("gpu_memory", 2), ("diverged", 1)]
)
def test_a_failure_is_tried_again_where_that_can_help(trials: list[Trial], cause: Any, attempts: int) -> None:
    plan = schedule(trials[:1])
    for attempt in range(1, attempts + 1):
        assert plan.next() is not None
        assert plan.ended(Outcome(target_id=trials[0].target_id, cause=cause)) is (attempt == attempts)
    assert plan.is_over


def test_losses_are_counted_apart_from_failures(trials: list[Trial]) -> None:
    plan, target_id = schedule(trials[:1]), trials[0].target_id
    for given_up in (False, False):
        assert plan.next() is not None
        assert plan.lost(target_id) is given_up
    assert plan.next() is not None
    assert not plan.ended(Outcome(target_id=target_id, cause="error"))
    assert plan.next() is not None
    assert plan.lost(target_id)
    assert plan.is_over


def test_what_comes_back_after_its_worker_was_taken_for_lost_changes_nothing(trials: list[Trial]) -> None:
    plan = schedule(trials[:1])
    plan.next()
    plan.lost(trials[0].target_id)
    assert not plan.ended(Outcome(target_id=trials[0].target_id))
    assert not plan.lost(trials[0].target_id)
    assert plan.next() is not None
    assert not plan.is_over


def test_failures_of_another_kind_leave_the_larger_share_to_be_tried(trials: list[Trial]) -> None:
    plan, target_id = schedule(trials[:1], resources=Resources(gpus={None: 0.3})), trials[0].target_id
    ends = []
    for cause in ("process_died", "gpu_memory", "gpu_memory"):
        ticket = plan.next()
        assert ticket is not None
        ends.append((ticket.gpus, plan.ended(Outcome(target_id=target_id, cause=cause))))  # type: ignore[arg-type]
    assert ends == [(0.3, False), (0.3, False), (0.6, True)]


def test_out_of_gpu_memory_asks_for_twice_the_share_once(trials: list[Trial]) -> None:
    plan, target_id = schedule(trials[:1], resources=Resources(gpus={None: 0.3})), trials[0].target_id
    first = plan.next()
    assert not plan.ended(Outcome(target_id=target_id, cause="gpu_memory"))
    second = plan.next()
    assert first is not None and second is not None
    assert (first.gpus, second.gpus) == (0.3, 0.6)
    assert plan.ended(Outcome(target_id=target_id, cause="gpu_memory"))
    assert plan.is_over


def test_claims_of_others_are_left_and_looked_at_again(trials: list[Trial]) -> None:
    theirs = {trials[0].target_id: "theirs", trials[1].target_id: "theirs"}
    now = [0.0]
    plan = schedule(trials, claim=lambda target_id: theirs.get(target_id, "ours"), clock=lambda: now[0])
    assert [ticket.target_id for ticket in drain(plan)] == [trial.target_id for trial in trials[2:]]
    for trial in trials[2:]:
        plan.ended(Outcome(target_id=trial.target_id))
    assert not plan.is_over, "others may die, and then these are left"
    theirs |= {trials[0].target_id: "done", trials[1].target_id: "ours"}
    now[0] += 60
    assert [ticket.target_id for ticket in drain(plan)] == [trials[1].target_id]
    plan.ended(Outcome(target_id=trials[1].target_id))
    assert plan.is_over


def test_what_others_have_ended_is_found_by_one_look_and_claims_are_tried_by_and_by(trials: list[Trial]) -> None:
    asked: list[str] = []
    looks: list[int] = []
    now = [0.0]

    def claim(target_id: str) -> str:
        asked.append(target_id)
        return "theirs"

    def settled(target_ids: Any) -> list[str]:
        looks.append(len(target_ids))
        return list(target_ids)[:-1]

    many = [replace(trials[0], seed=seed) for seed in range(100)]
    plan = schedule(many, claim=claim, settled=settled, clock=lambda: now[0])
    assert plan.next() is None
    assert 1 < len(asked) <= 20, "a step of the launch is short"
    while len(asked) < 100:
        plan.next()
    assert len(set(asked)) == 100 and not looks
    now[0] += 60
    plan.next()
    assert (looks, len(asked)) == ([100], 101)
    assert not plan.is_over


def test_what_becomes_due_while_others_are_looked_at_is_handed_out(trials: list[Trial]) -> None:
    now = [0.0]

    def settled(target_ids: Any) -> list[str]:
        plan.add(trials[1:2])
        return list(target_ids)

    plan = schedule(
        trials[:1],
        claim=lambda key: "theirs" if key == trials[0].target_id else "ours",
        settled=settled,
        clock=lambda: now[0],
    )
    assert plan.next() is None
    now[0] += 60
    assert [ticket.target_id for ticket in drain(plan)] == [trials[1].target_id]


def test_auto_measures_one_of_each_kind_and_packs_the_others_by_it(trials: list[Trial]) -> None:
    plan = schedule(trials, resources=Resources(gpus={None: "auto"}))
    probes = drain(plan)
    assert len(probes) == 2, "one per defense: the private one needs other memory"
    assert {ticket.gpus for ticket in probes} == {1.0}
    plan.ended(Outcome(target_id=probes[0].target_id, gpu_memory_peak=0.1))
    packed = drain(plan)
    assert [ticket.gpus for ticket in packed] == [0.12] * 3
    plan.lost(probes[1].target_id)
    (again,) = drain(plan)
    assert again.gpus == 1.0, "another one of its kind is the probe"
    plan.ended(Outcome(target_id=again.target_id, cause="error", gpu_memory_peak=0.5))
    assert Counter(ticket.gpus for ticket in drain(plan)) == {0.6: 4}, "it was trained, and an attack failed"
    assert plan.smallest_gpus == 0.12


@pytest.mark.parametrize("cause", [None, "error", "gpu_memory"])
def test_auto_holds_nothing_back_where_nothing_was_measured(trials: list[Trial], cause: Any) -> None:
    room = [1]
    plan = schedule(trials[::2], resources=Resources(gpus={None: "auto"}), window=lambda: room[0])
    (probe,) = drain(plan)
    peak = 1.0 if cause == "gpu_memory" else None  # of what was trained before, nothing is known
    plan.ended(Outcome(target_id=probe.target_id, cause=cause, gpu_memory_peak=peak))
    room[0] = 2
    at_once = drain(plan)
    assert [ticket.gpus for ticket in at_once] == [1.0, 1.0]
    plan.ended(Outcome(target_id=at_once[0].target_id, gpu_memory_peak=0.25))
    assert [ticket.gpus for ticket in drain(plan)] == [0.3], "as soon as one of them is measured, the others are packed"


@pytest.mark.parametrize("peak", [0.0, 0.001, 0.1, 0.25, 0.5, 0.83, 0.9, 1.0])
def test_a_share_covers_the_peak_and_is_no_more_than_a_gpu(peak: float) -> None:
    assert peak <= share_for(peak) <= 1.0
    assert share_for(peak) <= max(0.01, 1.2 * peak + 0.01)


def test_amounts_are_by_architecture(tiny: Path) -> None:
    trials = expand(load_sweep(str(tiny), ["architectures=[lin_cnn, lin_lstm]", "attacks=[threshold]"]))
    resources = Resources(cpus={None: 2.0, "lin_lstm": 1.0}, gpus={None: 0.5, "lin_lstm": 0.1})
    asked = {
        trials[i].architecture_label: (ticket.cpus, ticket.gpus)
        for i, ticket in enumerate(drain(schedule(trials, resources=resources)))
    }
    assert asked == {"lin_cnn": (2.0, 0.5), "lin_lstm": (1.0, 0.1)}


def test_a_stop_is_heeded_while_trials_are_claimed(trials: list[Trial]) -> None:
    asked: list[str] = []

    def claim(target_id: str) -> Any:
        asked.append(target_id)
        plan.stop("the store does not answer")
        return "unknown"

    plan = schedule(trials, claim=claim)
    assert plan.next() is None
    assert asked == [trials[0].target_id]
    assert plan.is_over


def test_a_stop_hands_out_nothing_more(trials: list[Trial]) -> None:
    plan = schedule(trials, window=lambda: 2)
    handed = drain(plan)
    plan.stop("the disk is full")
    plan.ended(Outcome(target_id=handed[0].target_id))
    assert plan.next() is None
    assert not plan.is_over
    plan.ended(Outcome(target_id=handed[1].target_id))
    assert plan.is_over
    assert plan.stopped == "the disk is full"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_every_trial_comes_to_one_end(trials: list[Trial], seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = schedule(trials, resources=Resources(gpus={None: "auto"}), window=lambda: int(rng.integers(1, 5)))
    ends = Counter[str]()
    for _ in range(1000):
        if plan.is_over:
            break
        plan.next()
        if plan.out and rng.random() < 0.5:
            target_id = str(rng.choice(list(plan.out)))
            causes: list[Any] = [None, None, "error", "gpu_memory", "diverged", "time_limit", "lost"]
            cause = causes[int(rng.integers(len(causes)))]
            if cause == "lost":
                ends[target_id] += plan.lost(target_id)
            else:
                ends[target_id] += plan.ended(Outcome(target_id=target_id, cause=cause, gpu_memory_peak=0.2))
    assert plan.is_over
    assert ends == {trial.target_id: 1 for trial in trials}
