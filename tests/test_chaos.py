"""What `make chaos` rests on: that it kills nothing but its own, and that it sees what is lost, doubled or different."""

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
    # One is in the session, one leads a session of its own and has lost its parent.
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


def write(folder: Path, trials: list[dict[str, Any]]) -> Path:
    """A results folder with these trials, and a row of each other table for each that is finished."""
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
