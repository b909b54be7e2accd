"""Real Ray: a sweep from the command line, GPU shares, clusters joined by address, faults, Ctrl-C, a killed driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from s3_server import KEY, SECRET, Fault, S3Server, start_s3_server

from sweeper.cluster import connection
from sweeper.cluster.datasets import clear_staged, stage_datasets
from sweeper.cluster.events import Ended, Event
from sweeper.cluster.internals import ForgetfulScheduler
from sweeper.cluster.resources import resolve
from sweeper.cluster.run import run_units
from sweeper.errors import UserError
from sweeper.results.gather import gather
from sweeper.results.launches import Launch, Running, living
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial
from sweeper.workers.outcomes import Outcome
from sweeper.workers.scheduling import AUTO, Resources, Retries
from sweeper.workers.worker import PRETEND_GPUS, Settings

__all__ = ["start_s3_server"]  # a fixture

pytestmark = pytest.mark.ray
SWEEPER = [sys.executable, "-m", "sweeper.cli"]


def test_launch_runs_all_and_is_quiet_and_again_does_nothing(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    temporary = tmp_path / "a temporary folder whose path is longer than that of a socket may be" / "and longer"
    temporary.mkdir(parents=True)
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--set", "attacks=[threshold]"]
    command += ["--tensorboard", str(tmp_path / "events")]
    environment = os.environ | {"TMPDIR": str(temporary)}
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("tiny: 2 trials, 0 done, 2 to run")
    assert sum(" finished " in line and "trials/min" in line for line in lines) == 2
    assert lines[-1].startswith("Report: ")
    assert len(lines) == 5, "nothing of Ray's is on the screen"
    assert first.stderr == ""
    assert Path(lines[-1].removeprefix("Report: ")).exists()
    events = list((tmp_path / "events").rglob("events.out.tfevents.*"))
    assert len(events) == 2
    assert {re.sub(r"_[0-9a-f]{16}$", "", each.parent.name) for each in events} == {
        "baseline_digits_quarters_seed_0",
        "dp_digits_quarters_seed_0",
    }
    content = b"".join(each.read_bytes() for each in events)
    for tag in (b"threshold/loss/auc", b"best_of/auc", b"test_accuracy", b"train_loss"):
        assert tag in content
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0
    assert "2 done, 0 to run" in again.stdout


def test_the_launch_from_python_that_the_first_page_shows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "getting-started.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "LaunchOptions" in block]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 of 8 trials are done; the report is"), "and nothing else is said"
    assert (tmp_path / "results" / "from_python" / "report" / "report.html").is_file()


@dataclass(frozen=True)
class Watched:
    """Trials on a Ray of its own, as `launch` runs them, and what was seen of them."""

    store: Store
    events: list[Event]
    ended: Ended


def run_on(trials: list[Trial], out: Path, resources: Resources, **more: Any) -> Watched:
    """Run trials on the Ray that this process is connected to."""
    store, events = Store(out), []
    store.prepare()
    with Launch(store.storage) as launch:
        own = Settings(launch_id=launch.id, store=str(out.absolute()), data_dir=out)
        stage_datasets(trials, own, is_cluster=False)
        ended = run_units(
            trials,
            store=store,
            launch=launch,
            settings=own,
            resources=resolve(resources, trials),
            retries=Retries(failures=0),
            on_event=events.append,
            **more,
        )
        clear_staged(launch.id, is_cluster=False)
    return Watched(store=store, events=events, ended=ended)


def needing(gpu_memory: float, notes: Path) -> Any:
    """An attempt at nothing that needed so much of a GPU's memory, and notes what it was given, and when."""
    notes.mkdir()

    def attempt(parcel: Any, settings: Any, *, gpus: float, **more: Any) -> Outcome:
        begun = time.time()
        time.sleep(2)
        note = {"gpus": gpus, "begun": begun, "ended": time.time()}
        (notes / parcel.target_id).write_text(json.dumps(note))
        return Outcome(target_id=parcel.target_id, gpu_memory_peak=gpu_memory)

    return attempt


def test_gpu_shares_are_packed_and_impossible_requests_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, kept = ForgetfulScheduler.choose_trial_to_run, []

    def watch(self: Any, controller: Any) -> Any:
        chosen = choose(self, controller)
        kept.append(len(controller.get_trials()))
        return chosen

    monkeypatch.setattr(ForgetfulScheduler, "choose_trial_to_run", watch)
    monkeypatch.setenv(PRETEND_GPUS, "1")
    # Enough work that the second process, which may start seconds later, still finds some
    trials = expand(load_sweep(str(tiny), ["attacks=[]", "seeds=[0, 1, 2]", "training.epochs=150"]))
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        assert resolve(Resources(), trials).gpus == {None: 1}
        with pytest.raises(UserError, match="No node can run a trial of lomurno_cnn with 2 CPUs and 2 GPUs"):
            resolve(Resources(gpus={None: 2.0}), trials)
        watched = run_on(trials, tmp_path / "out", Resources(gpus={None: 0.5}, cpus={None: 1.0}))
        packed = run_on(
            trials,
            tmp_path / "packed",
            Resources(gpus={None: AUTO}, cpus={None: 0.5}),
            attempt=needing(0.2, tmp_path / "notes"),
        )
    finally:
        ray.shutdown()
    running: set[str] = set()
    together = 0
    for event in watched.events:
        (running.add if event.kind in ("started", "progress") else running.discard)(event.target_id)
        together = max(together, len(running))
    assert together == 2
    assert watched.ended.is_over
    assert len(list((tmp_path / "out" / "parts" / "trials").iterdir())) == 6
    notes = [json.loads(path.read_text()) for path in (tmp_path / "notes").iterdir()]
    assert packed.ended.is_over and len(notes) == 6
    by_share = {share: [note for note in notes if note["gpus"] == share] for share in (1.0, 0.24)}
    assert {share: len(each) for share, each in by_share.items()} == {1.0: 2, 0.24: 4}, "one of each kind is measured"
    held = [sum(each["gpus"] for each in notes if each["begun"] <= note["begun"] < each["ended"]) for note in notes]
    assert 2 * 0.24 <= max(note for note, each in zip(held, notes, strict=True) if each["gpus"] < 1) <= 1
    assert max(held) <= 1
    assert max(kept) <= 5 and kept[-1] <= 2, "of six Tune keeps the window, and the last that have ended"


@pytest.mark.parametrize(("how", "goes_on"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    tiny: Path, tmp_path: Path, how: int, goes_on: bool
) -> None:
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--max-concurrent", "1"]
    command += ["--set", "attacks=[threshold]", "--set", "seeds=[0, 1, 2]", "--set", "training.epochs=40"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = out / "parts" / "trials"
    deadline = time.monotonic() + 120
    while not (folder.exists() and len(list(folder.glob("*.parquet"))) >= 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert list((out / "claims").iterdir()) == list((out / "launches").iterdir()) == []
    finished = {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert 1 <= len(finished) < 6
    assert "Stopping: finished work is kept" in errors
    assert "The same command continues from here." in errors
    assert "Traceback" not in errors
    if not goes_on:
        return
    resumed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    after = {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert len(after) == 6
    assert all(after[name] == when for name, when in finished.items()), "a finished target was trained again"


def test_on_the_nodes_of_a_cluster_each_trial_sees_its_own_share_and_none_is_given_twice(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    for name, value in install_faults(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(PRETEND_GPUS, "1")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 2})
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--address", str(nodes.address)]
    command += ["--set", "attacks=[]", "--set", "defenses={watched: {name: fault, what: watch}}"]
    command += [
        "--set",
        "seeds=[0, 1, 2, 3]",
        "--set",
        "architectures=[lomurno_cnn, lin_lstm]",
        "--cpus-per-trial",
        "1",
    ]
    command += ["--gpus-per-trial", "1", "--gpus-per-trial", "lin_lstm=0"]
    try:
        nodes.add_node(num_cpus=1, num_gpus=1)
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    finally:
        nodes.shutdown()
    assert result.returncode == 0, result.stdout + result.stderr
    assert {row["status"] for row in pq.read_table(out / "trials.parquet").to_pylist()} == {"finished"}
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("[0-9]*.json")]
    assert len(notes) == 8
    with_gpu = [note for note in notes if note["CUDA_VISIBLE_DEVICES"]]
    assert [note["CUDA_VISIBLE_DEVICES"] for note in notes if note not in with_gpu] == [""] * 4, (
        "none asked for, none seen"
    )
    assert len({note["RAY_RAYLET_PID"] for note in notes}) == 2
    held = [(note["RAY_RAYLET_PID"], note["CUDA_VISIBLE_DEVICES"], note["begun"], note["ended"]) for note in with_gpu]
    assert {devices for _, devices, _, _ in held} <= {"0", "1"} and len(held) == 4
    for node, devices, begun, ended in held:
        at_once = [each for each in held if each[:2] == (node, devices) and each[2] < ended and begun < each[3]]
        assert len(at_once) == 1, "a GPU was given to two trials"


def test_code_and_datasets_travel_to_a_node_and_what_it_lacks_is_said_before_the_start(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    driver, node = tmp_path / "driver", tmp_path / "node"
    for split, count in (("train", 16), ("test", 4)):
        for label in "ab":
            folder = driver / "data" / "scans" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((28, 28), 10 * number).save(folder / f"{number}.png")
    (node / "sweeper").mkdir(parents=True)
    (node / "sweeper" / "__init__.py").write_text("raise ImportError('the node has no such code')\n")
    ours = dict(os.environ)
    with monkeypatch.context() as its:
        its.chdir(node)
        its.setenv("PYTHONPATH", str(node))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes.add_node(num_cpus=1, num_gpus=2)

    def launch(*more: str) -> Any:
        command = [*SWEEPER, "launch", str(tiny), "--address", str(nodes.address), "--set", "attacks=[]", *more]
        return subprocess.run(command, cwd=driver, env=ours, capture_output=True, text=True, check=False, timeout=300)

    # One path, which on the driver and on the node leads to each one's own folder
    own_data = ("--data", "/proc/self/cwd/data")
    scans = ("--set", "datasets=[{name: image_folder, folder: scans}]", "--set", "training.batch_size=4", *own_data)
    try:
        declared = launch(*scans, "--out", str(tmp_path / "out"))
        own_data += ("--gpus-per-trial", "0")
        good = launch(*scans, *own_data, "--out", str(tmp_path / "out"))
        unshared = launch(*scans, *own_data, "--out", "/proc/self/cwd/out")
        nowhere = launch("--set", "datasets=[mnist]", *own_data, "--out", str(tmp_path / "nowhere"))
    finally:
        nodes.shutdown()
    if not torch.cuda.is_available():
        assert declared.returncode == 2
        assert re.search("Ray declares 2 GPUs on .*, but PyTorch can use 0", declared.stderr)
    assert good.returncode == 0, good.stdout + good.stderr
    assert pq.read_table(tmp_path / "out" / "trials.parquet").column("status").to_pylist() == ["finished"] * 2
    assert unshared.returncode == 2
    assert "/proc/self/cwd/out is not the launching machine's" in unshared.stderr
    assert not (node / "out").exists()
    assert nowhere.returncode == 2
    assert "1 of the cluster's 1 nodes cannot run this sweep" in nowhere.stderr and "mnist" in nowhere.stderr
    assert "Traceback" not in unshared.stderr + nowhere.stderr


def test_a_node_that_dies_in_mid_launch_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    for name, value in install_faults(tmp_path).items():
        monkeypatch.setenv(name, value)
    out, errors = tmp_path / "out", tmp_path / "errors"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--address", str(nodes.address)]
    command += ["--set", "attacks=[]", "--set", "defenses=[{name: fault, what: wait}]", "--set", "seeds=[0, 1]"]
    deadline = time.monotonic() + 250
    try:
        second = nodes.add_node(num_cpus=1)
        with errors.open("w") as file:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        running: list[Running] = []
        while len([each for each in running if each.node]) < 2:
            assert process.poll() is None and time.monotonic() < deadline, errors.read_text()
            time.sleep(0.5)
            running = [each for launch in living(Store(out).storage) for each in launch.running]
        nodes.remove_node(second, allow_graceful=False)
        while not errors.read_text():  # Ray notices by missing heartbeats
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        (tmp_path / "go").touch()
        output, _ = process.communicate(timeout=300)
    finally:
        nodes.shutdown()
    said = errors.read_text()
    assert process.returncode == 0, output + said
    assert {each.node for each in running} == {socket.gethostname()}
    assert re.fullmatch(r"Warning: Node .* was lost; its trials continue elsewhere\.\n", said)
    assert all(re.match(r"\d\d:\d\d:\d\d |tiny: |\d+ finished|Report: ", line) for line in output.splitlines()), output


@pytest.mark.parametrize("joins", [False, True], ids=["private", "cluster"])
def test_other_packages_of_the_same_names_are_not_taken_for_ours(
    joins: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    project, on_path, script = tmp_path / "project", tmp_path / "on_path", tmp_path / "bin" / "sweeper"
    for folder in (project, on_path):
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "__init__.py").write_text("raise ImportError('the models of another project')\n")
        (folder / "attacks.py").write_text("raise ImportError('the attacks of another project')\n")
        (folder / "analysis.py").write_text("raise ImportError('the analysis of another project')\n")
    (project / "sweeper").mkdir()
    (project / "sweeper" / "__init__.py").write_text("raise ImportError('another sweeper')\n")
    (project / "statistics.py").write_text("raise ImportError('not the statistics of Python')\n")
    script.parent.mkdir()
    script.write_text("import sys\nfrom sweeper.cli import main\nsys.exit(main())\n")
    monkeypatch.setenv("PYTHONPATH", str(on_path), prepend=os.pathsep if os.environ.get("PYTHONPATH") else None)
    monkeypatch.chdir(project)
    command = [sys.executable, str(script), "launch", str(tiny), "--out", "out"]
    command += ["--set", "attacks=[threshold]", "--set", "defenses=[l2]"]
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) if joins else None
    try:
        command += ["--address", str(nodes.address)] if nodes else []
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    finally:
        if nodes:
            nodes.shutdown()
    assert result.returncode == 0, result.stdout + result.stderr
    assert pq.read_table("out/trials.parquet").column("status").to_pylist() == ["finished"]


def test_two_launches_on_one_folder_share_the_work(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--max-concurrent", "1"]
    command += ["--set", "attacks=[threshold]", "--set", "seeds=[0, 1, 2, 3]", "--set", "training.epochs=100"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    finished = [re.findall(r" finished ([0-9a-f]{16}) ", output) for output, _ in said]
    assert sorted(finished[0] + finished[1]) == sorted(
        trial.target_id for trial in expand(load_sweep(str(tiny), [*command[-5::2]]))
    )
    assert all(finished), "each did some"
    assert all(log.read_text().count("--- attempt") == 1 for log in (out / "logs").iterdir())
    assert list((out / "claims").iterdir()) == []
    assert pq.read_table(out / "trials.parquet").num_rows == 8


FAULTS = """
import ctypes, json, os, signal, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from models.defenses.base import Defense

@dataclass(frozen=True, kw_only=True)
class Fault(Defense):
    what: str
    source: ClassVar[str] = "a test"

    def edit_model(self, model):
        if b"forkserver" not in Path("/proc/self/cmdline").read_bytes():
            return model  # not in a trial's own process
        if self.what == "segfault":
            ctypes.string_at(0)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "hang":
            while True:
                pass
        if self.what == "raise":
            raise ValueError("no such luck")
        if self.what == "wait":
            while not Path(os.environ["SWEEPER_TEST_NOTES"], "go").exists():
                time.sleep(0.1)
        if self.what == "watch":
            note = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "RAY_RAYLET_PID")} | {"begun": time.time()}
            time.sleep(3)
            note["ended"] = time.time()
            Path(os.environ["SWEEPER_TEST_NOTES"], f"{os.getpid()}.json").write_text(json.dumps(note))
        if self.what == "gpu_memory":
            import torch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model
"""


def install_faults(folder: Path) -> dict[str, str]:
    """Install the defense `fault` for processes with this environment."""
    package = folder / "installed"
    (package / "faults-1.0.dist-info").mkdir(parents=True)
    (package / "faults-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: faults\nVersion: 1.0\n")
    (package / "faults-1.0.dist-info" / "entry_points.txt").write_text("[sweeper.defenses]\nfault = faults:Fault\n")
    (package / "faults.py").write_text(FAULTS)
    return os.environ | {
        "PYTHONPATH": f"{package}:{os.environ.get('PYTHONPATH', '')}",
        "SWEEPER_TEST_NOTES": str(folder),
    }


def test_each_fault_costs_its_own_trial_only_and_is_told_apart(tiny: Path, tmp_path: Path) -> None:
    environment = install_faults(tmp_path)
    out = tmp_path / "out"
    kinds = ("segfault", "kill", "hang", "raise", "gpu_memory")
    faults = ", ".join(f"{kind}: {{name: fault, what: {kind}}}" for kind in kinds)
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--retries", "1", "--time-limit", "5s"]
    command += [
        "--set",
        "attacks=[threshold]",
        "--set",
        f"defenses={{{faults}, diverges: {{name: dp_sgd, noise_multiplier: 1.0e+38}}, good: l2}}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "1 of 7 trials are finished, 6 failed, 0 are left" in result.stderr
    rows = {row["defense"]: row for row in pq.read_table(out / "trials.parquet").to_pylist()}
    assert rows["good"]["status"] == "finished"
    causes = {"segfault": "process_died", "kill": "process_died", "hang": "time_limit", "raise": "error"}
    assert {kind: rows[kind]["cause"] for kind in kinds} == causes | {"gpu_memory": "gpu_memory"}
    assert {rows[kind]["attempts"] for kind in kinds} == {2}
    assert (rows["diverges"]["cause"], rows["diverges"]["attempts"]) == ("diverged", 1), "the same seeds diverge again"
    assert "the training loss is" in rows["diverges"]["error"]
    assert "SIGSEGV" in rows["segfault"]["error"]
    assert "killed at its time limit of 5 seconds" in rows["hang"]["error"]
    status = json.loads(
        subprocess.run([*SWEEPER, "status", str(out), "--json"], capture_output=True, check=True).stdout
    )
    assert (status["trials"], status["done"], status["failed"], status["left"]) == (7, 1, 6, 0)
    assert status["causes"] == {"process_died": 2, "time_limit": 1, "error": 1, "gpu_memory": 1, "diverged": 1}
    shown = subprocess.run([*SWEEPER, "status", str(out)], capture_output=True, text=True, check=True).stdout
    assert "1 of 7 trials done, 6 failed, 0 left" in shown
    assert "No launch is working on it now." in shown
    log = subprocess.run(
        [*SWEEPER, "logs", str(out), rows["raise"]["target_id"][:8]], capture_output=True, text=True, check=True
    ).stdout
    assert log.count("--- attempt ") == 2
    assert "ValueError: no such luck" in log


def test_a_killed_driver_leaves_a_store_that_the_same_command_finishes(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*SWEEPER, "launch", str(tiny), "--out", str(out), "--checkpoint-every", "0.1s"]
    command += [
        "--set",
        "attacks=[]",
        "--set",
        "defenses=[none]",
        "--set",
        "seeds=[0, 1]",
        "--set",
        "training.epochs=1000",  # so many that none ends before the orphans of the killed driver do
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert list((out / "claims").iterdir()), "it had no chance to give them up"
    resumed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"finished"} and len(rows) == 2
    assert max(row["attempts"] for row in rows) == 2, "starts are counted over launches"
    assert any("resuming after epoch" in log.read_text() for log in (out / "logs").iterdir())


def own_sockets() -> list[tuple[str, str]]:
    """Process and local address of every socket on which a process listens that this one started, or its children did."""
    listing = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for line in listing:
        for name, pid in re.findall(r'\("([^"]+)",pid=(\d+)', line):
            if is_descendant(int(pid)):
                found.append((name, line.split()[3]))
    return found


def is_descendant(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            return False
    return False


@pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss to list sockets")
def test_a_private_ray_listens_on_the_loopback_interface_alone() -> None:
    with connection.connect(None, verbose=False):
        ray.get(ray.remote(num_cpus=0)(lambda: None).remote())  # a worker is there
        sockets = own_sockets()
        port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    ours = [(process, address) for process, address in sockets if re.match(r"raylet|gcs_server|ray::", process)]
    assert any(address.endswith(f":{port}") for _, address in ours)
    wide = [each for each in ours if "127.0.0.1" not in each[1] and "[::1]" not in each[1]]
    assert not wide


def comparable(folder: Path, table: str) -> Any:
    """A gathered table without the columns that differ from run to run."""
    varying = r".*time_s$|seconds_per_step|started_at|attempts"
    rows = pq.read_table(folder / f"{table}.parquet")
    return rows.select([name for name in rows.column_names if not re.fullmatch(varying, name)])


def test_results_go_to_an_object_store_that_fails_and_stalls(
    tiny: Path, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = s3_server.uri("sweeps/tiny")
    command = [*SWEEPER, "launch", str(tiny), "--set", "attacks=[threshold]", "--checkpoint-every", "0.2s", "--out"]
    faults = [Fault("500", rate=0.1), Fault("slow", rate=0.1, seed=1), Fault("cut", rate=0.03, seed=2)]
    with s3_server.failing(*faults):
        first = subprocess.run([*command, there], capture_output=True, text=True, check=False, timeout=400)
        assert first.returncode == 0, first.stdout + first.stderr
        assert KEY not in first.stdout + first.stderr and SECRET not in first.stdout + first.stderr
        again = subprocess.run([*command, there], capture_output=True, text=True, check=False, timeout=300)
        assert again.returncode == 0 and "2 done, 0 to run" in again.stdout, again.stderr
    here = Store(tmp_path / "here")
    here.prepare()
    trials = expand(load_sweep(str(tiny), ["attacks=[threshold]"]))
    for trial in trials:
        run_trial(trial, TrialContext(data_dir=tmp_path, store=here, device=torch.device("cpu")))
    here.write_sweep(load_sweep(str(tiny), ["attacks=[threshold]"]), trials)
    gather(here)
    store = Store(there)
    for table in ("trials", "history", "outputs", "attacks", "scores"):
        assert comparable(Path("results/tiny"), table).equals(comparable(Path("here"), table)), table
        assert table + ".parquet" in store.storage.entries("")
    assert "report.html" in store.storage.entries("report")
    assert not store.storage.entries("launches")
    status = json.loads(subprocess.run([*SWEEPER, "status", there, "--json"], capture_output=True, check=True).stdout)
    assert (status["done"], status["left"]) == (2, 0)
    logs = subprocess.run([*SWEEPER, "logs", there, trials[0].target_id], capture_output=True, text=True, check=True)
    assert "epoch 2/2" in logs.stdout
