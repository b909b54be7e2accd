"""Real Ray: a sweep from the command line, a killed worker, GPU shares, a cluster joined by address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeper.spec import expand, load_sweep

pytestmark = pytest.mark.ray
SWEEPER = [sys.executable, "-m", "sweeper.cli"]


def test_launch_runs_all_and_is_quiet_and_again_does_nothing(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--set", "attacks=[threshold]"]
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("tiny: 2 trials, 0 done, 2 to run")
    assert sum(" finished " in line and "trials/min" in line for line in lines) == 2
    assert lines[-1].startswith("Report: ")
    assert len(lines) == 5, "nothing of Ray's is on the screen"
    assert first.stderr == ""
    assert Path(lines[-1].removeprefix("Report: ")).exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0
    assert "2 done, 0 to run" in again.stdout


def test_a_failing_trial_is_tried_again_then_recorded_and_the_rest_goes_on(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    overrides = [
        "--set",
        "attacks=[threshold]",
        "--set",
        "defenses={bad: {name: dp_sgd, noise_multiplier: 1.0e+38}, good: l2}",
    ]
    result = subprocess.run(
        [*SWEEPER, "launch", str(tiny), "--out", str(out), "--retries", "2", *overrides],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    rows = {row["defense"]: row for row in pq.read_table(out / "trials.parquet").to_pylist()}
    assert rows["good"]["status"] == "finished"
    assert (rows["bad"]["status"], rows["bad"]["attempts"]) == ("failed", 3)
    assert "not finite" in rows["bad"]["error"] or "loss is" in rows["bad"]["error"]
    assert "1 of 2 trials are finished, 1 failed" in result.stderr


def test_gpu_shares_are_packed_and_impossible_requests_are_refused(tiny: Path, tmp_path: Path) -> None:
    import ray

    from sweeper import cluster
    from sweeper.errors import UserError

    # Work enough that the second process, which may start seconds after the first, still finds some
    trials = expand(load_sweep(str(tiny), ["attacks=[threshold]", "seeds=[0, 1, 2, 3]", "training.epochs=150"]))
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        assert cluster.resolve(cluster.Resources()).gpus_per_trial == 1
        with pytest.raises(UserError, match="No node can run a trial of 2 CPUs and 2 GPUs"):
            cluster.resolve(cluster.Resources(gpus_per_trial=2))
        resources = cluster.resolve(cluster.Resources(gpus_per_trial=0.5, cpus_per_trial=1))
        running: set[str] = set()
        together = 0

        def watch(event: cluster.Event) -> None:
            nonlocal together
            (running.add if event.kind in ("started", "progress") else running.discard)(event.target_id)
            together = max(together, len(running))

        cluster.run_trials(
            trials,
            data_dir=tmp_path,
            out_dir=tmp_path / "out",
            resources=resources,
            retries=0,
            on_event=watch,
            verbose=False,
        )
    finally:
        ray.shutdown()
    assert together == 2
    assert len(list((tmp_path / "out" / "parts" / "trials").iterdir())) == 8


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--max-concurrent", "1"]
    command += ["--set", "attacks=[threshold]", "--set", "seeds=[0, 1, 2]", "--set", "training.epochs=40"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = out / "parts" / "trials"
    deadline = time.monotonic() + 120
    while not (folder.exists() and len(list(folder.glob("*.parquet"))) >= 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    finished = {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert 1 <= len(finished) < 6
    assert "The same command goes on from here." in errors
    assert "Traceback" not in errors
    resumed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    after = {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert len(after) == 6
    assert all(after[name] == when for name, when in finished.items()), "a finished target was trained again"


def test_a_running_cluster_is_joined_by_its_address(tiny: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1, num_gpus=2)
        out = tmp_path / "out"
        command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--address", str(cluster.address)]
        command += ["--set", "attacks=[threshold]", "--gpus-per-trial", "1", "--cpus-per-trial", "0.5"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    finally:
        cluster.shutdown()
    assert result.returncode == 0, result.stdout + result.stderr
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished", "finished"]


def test_a_process_that_dies_is_a_failed_row_and_the_rest_goes_on(tiny: Path, tmp_path: Path) -> None:
    package = tmp_path / "installed"
    (package / "fatal-1.0.dist-info").mkdir(parents=True)
    (package / "fatal-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fatal\nVersion: 1.0\n")
    (package / "fatal-1.0.dist-info" / "entry_points.txt").write_text("[sweeper.defenses]\nfatal = fatal:Fatal\n")
    (package / "fatal.py").write_text(
        "import os, signal, sys\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from models.defenses.base import Defense\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Fatal(Defense):\n"
        "    source: ClassVar[str] = 'a test'\n"
        "    def edit_model(self, model):\n"
        "        if sys.argv[0].endswith('default_worker.py'):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return model\n"
    )
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--retries", "1"]
    command += ["--set", "attacks=[threshold]", "--set", "defenses=[fatal, l2]"]
    environment = os.environ | {"PYTHONPATH": str(package)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert result.returncode == 1, result.stdout + result.stderr
    rows = {row["defense"]: row for row in pq.read_table(out / "trials.parquet").to_pylist()}
    assert rows["l2"]["status"] == "finished"
    assert (rows["fatal"]["status"], rows["fatal"]["attempts"]) == ("failed", 2)
    assert "process died" in rows["fatal"]["error"]
    assert "Traceback" not in result.stderr
