"""Assumptions of `make chaos`: it kills only its own processes, and it detects lost, duplicate and different records."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, for its /proc")


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", Path(__file__).parents[1] / "benchmarks" / "chaos.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_its_own_processes_are_found_and_killed_and_no_others(chaos: ModuleType, tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    processes = chaos.Processes()
    # One is in the session; the other leads its own session and has lost its parent.
    script = "sleep 60 & setsid -f sleep 60; wait"
    started = processes.start(["sh", "-c", script], log=tmp_path / "log", environment=dict(os.environ), cwd=tmp_path)
    try:
        deadline = time.monotonic() + 10
        commands: list[str] = []
        while commands != [f"sh -c {script}", "sleep 60", "sleep 60"]:
            assert time.monotonic() < deadline, commands
            time.sleep(0.05)
            processes.look()
            commands = sorted(each.command for each in processes.alive.values())
        assert len(processes.kill_all()) == 3
        assert started.wait(10) < 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        processes.kill_all()


class Crowd:
    """Processes of these kinds, each of which a kill removes."""

    def __init__(self, chaos: ModuleType, **counts: int) -> None:
        self._all = [
            chaos.Process(pid, "1", 1, 1, command=kind, kind=kind)
            for kind, count in counts.items()
            for pid in range(len(counts) * count)
        ]

    def of(self, kind: str) -> list[Any]:
        return [process for process in self._all if process.kind == kind]

    def kill(self, process: Any) -> bool:
        self._all.remove(process)
        return True


def test_a_kill_counts_only_where_it_falls_into_work(chaos: ModuleType, tmp_path: Path) -> None:
    def run(crowd: Crowd, **more: Any) -> Any:
        common = {"folder": tmp_path, "cluster": None, "environment": {}, "rng": np.random.default_rng(0)}
        return chaos.Run("x", processes=crowd, found=chaos.Found(), **common, **more)

    busy = run(Crowd(chaos, child=1, worker=1))
    assert busy._kill("worker") and busy._kill("child")
    assert (busy._found.kills, busy._kills) == (2, 2)
    idle = run(Crowd(chaos, worker=20))
    assert not any(idle._kill("worker") for _ in range(200))
    assert (idle._found.kills, idle._kills) == (0, 0)
    assert idle._found.idle["worker"] > 0
    limited = run(Crowd(chaos, driver=3), limits={"driver": 1})
    assert not any(limited._kill("driver") for _ in range(200))
    assert not limited._found.idle, "the one driver that may be killed is kept for when it counts"


@pytest.mark.parametrize(("worked_s", "trains_longer"), [(40.0, False), (25.0, False), (12.0, True), (0.0, True)])
def test_trainings_are_made_long_enough_to_be_disturbed(
    worked_s: float, trains_longer: bool, chaos: ModuleType
) -> None:
    epochs = chaos.enough_epochs(30, worked_s, needed_s=25.0)
    if not trains_longer:
        assert epochs == 30
    else:
        assert epochs > 30
        assert epochs * worked_s / 30 >= 25.0 or epochs == 600, "a step is bounded, and taken again"


def test_a_run_in_which_no_child_or_driver_was_killed_is_not_the_last(chaos: ModuleType) -> None:
    found = chaos.Found()
    assert chaos.missing_kinds(found, wanted=16) == ["driver", "child"]
    found.by_kind["child"] += 1
    found.idle["driver"] += 1
    assert chaos.missing_kinds(found, wanted=16) == ["driver"]
    assert chaos.missing_kinds(found, wanted=0) == []


def write(folder: Path, trials: list[dict[str, Any]], comparison: str = "finished") -> Path:
    """A results folder with these trials, a comparison, and a row of each other table for each trial that is finished."""
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"targets": {"a": [], "b": [], "c": []}}))
    rows = [
        {
            "target_id": trial["target_id"],
            "epoch": 1,
            "example_id": 0,
            "attack_id": "x",
            "score_name": "loss",
            "value": 1.0,
        }
        for trial in trials
        if trial["status"] == "finished"
    ]
    for name in ("tpvd", "history", "outputs", "attacks", "scores"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    pq.write_table(pa.Table.from_pylist(trials), folder / "trials.parquet")
    (folder / "comparisons.json").write_text(json.dumps({"d": ["a", "b", "c"]}))
    compared = {"comparison_id": "d", "score_name": "online", "example_id": 0, "status": comparison}
    for name in ("comparisons", "cohorts", "exposure"):
        pq.write_table(pa.Table.from_pylist([compared]), folder / f"{name}.parquet")
    return folder


def test_what_is_lost_doubled_or_different_is_told(chaos: ModuleType, tmp_path: Path) -> None:
    def trial(target_id: str, **changed: Any) -> dict[str, Any]:
        fine = {"target_id": target_id, "status": "finished", "loss": float("nan"), "train_time_s": 1.0, "attempts": 1}
        return fine | changed

    there = write(tmp_path / "there", [trial("a"), trial("b"), trial("c")])
    same = write(tmp_path / "same", [trial("a", attempts=3), trial("b", train_time_s=2.0), trial("c")])
    assert chaos.compare(same, there) == {"lost": set(), "doubled": set(), "different": set()}
    wrong = write(tmp_path / "wrong", [trial("a", loss=0.5), trial("b"), trial("b"), trial("c", status="failed")])
    found = chaos.compare(wrong, there)
    assert found["lost"] == {"c"} and found["doubled"] == {"b"} and found["different"] == {"a", "b"}
    failed = write(tmp_path / "failed", [trial("a"), trial("b"), trial("c")], comparison="failed")
    assert chaos.compare(failed, there)["lost"] == {"d"}
