"""A sweep's overhead beside its trials: slot utilization, workers, start-up, and 100,000 empty trials.

    python benchmarks/scheduling.py [--quick] [--trials 100000]

Compare times within one run only. Needs two cores, and a quiet machine for meaningful ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEAST_BUSY = 0.95
"""A smaller fraction of the slots' time with a trial at work, on a quiet machine, is a defect: exit code 1."""
TRAININGS = """
name: scheduling
summary: trainings of digits for a benchmark
datasets: [digits]
splits: [half]
defenses: {baseline: none}
training: {batch_size: 25, learning_rate: 0.1}
attacks: []
"""


def log(text: str) -> None:
    print(text, flush=True)


def rss_mib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def sweep_file(folder: Path, seeds: int, epochs: int) -> Path:
    path = folder / f"scheduling-{seeds}-{epochs}.yaml"
    lines = TRAININGS.replace("training: {", f"training: {{epochs: {epochs}, ")
    path.write_text(lines + f"seeds: [{', '.join(map(str, range(seeds)))}]\n", encoding="utf-8")
    return path


@contextmanager
def nodes(count: int, gpus: int = 0) -> Iterator[None]:
    """A Ray with `count` nodes on this machine, each with `gpus` declared GPUs and as many CPUs (at least one)."""
    import ray
    from ray.cluster_utils import Cluster

    from sweeper.workers.allocator import ALLOCATOR_ENVIRONMENT

    resources = {"num_cpus": max(1, gpus), "num_gpus": gpus}
    os.environ["SWEEPER_PRETEND_GPUS"] = "1"
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    try:
        for _ in range(count - 1):
            cluster.add_node(**resources)
        environment = {"env_vars": ALLOCATOR_ENVIRONMENT}
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False, runtime_env=environment)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(
    trials: Sequence[Any], folder: Path, attempt: Callable[..., Any] | None = None, gpus: float = 0.0
) -> tuple[float, Any]:
    """Returns the seconds that the connected Ray takes for the trials, and the store with the results."""
    from sweeper.cluster import datasets, resources, run
    from sweeper.results.launches import Launch
    from sweeper.results.store import Store
    from sweeper.workers.scheduling import Resources, Retries
    from sweeper.workers.worker import Settings

    store = Store(folder)
    store.prepare()
    more = {} if attempt is None else {"attempt": attempt}
    with Launch(store.storage) as launch:
        settings = Settings(launch_id=launch.id, store=str(folder), data_dir=folder)
        datasets.stage_datasets(trials, settings, is_cluster=False)
        started = time.perf_counter()
        ended = run.run_units(
            trials,
            store=store,
            launch=launch,
            settings=settings,
            resources=resources.resolve(Resources(cpus={None: 1.0}, gpus={None: gpus}), trials),
            retries=Retries(),
            on_event=lambda event: None,
            **more,
        )
        seconds = time.perf_counter() - started
        datasets.clear_staged(launch.id, is_cluster=False)
    assert ended.is_over
    return seconds, store


def timed(notes: str) -> Callable[..., Any]:
    """Unchanged attempts that also note when the trial's own work began and ended, and on which slot and devices."""

    def attempt(parcel: Any, settings: Any, *, cpus: float, gpus: float, on_progress: Any) -> Any:
        import ray

        from sweeper.workers.worker import attempt_trial

        begun, node = [], ray.get_runtime_context().get_node_id()

        def watch(progress: Any) -> None:
            begun or begun.append(time.time())
            on_progress(progress)

        outcome = attempt_trial(parcel, settings, cpus=cpus, gpus=gpus, on_progress=watch)
        note = {"begun": begun[0], "ended": time.time(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        note |= {"slot": f"{node}:{os.getpid()}", "node": node}
        (Path(notes) / f"{parcel.target_id}.json").write_text(json.dumps(note))
        return outcome

    return attempt


def read_notes(folder: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(path.read_text()) for path in folder.iterdir()), key=lambda note: note["begun"])


def busy(notes: list[dict[str, Any]], slots: int) -> float:
    """The fraction of the slots' time in which a trial was at work, in the steady state: from the last worker's first trial
    until the first worker runs out of trials.
    """
    workers: dict[str, list[dict[str, Any]]] = {}
    for note in notes:
        workers.setdefault(note["slot"], []).append(note)
    start = max(each[0]["begun"] for each in workers.values())
    end = min(each[-1]["ended"] for each in workers.values())
    worked = sum(max(0.0, min(note["ended"], end) - max(note["begun"], start)) for note in notes)
    return worked / (slots * (end - start))


def most_at_once(notes: list[dict[str, Any]]) -> int:
    """The largest number of trials that held one device at the same time."""
    most = 0
    for note in notes:
        same = [each for each in notes if (each["node"], each["devices"]) == (note["node"], note["devices"])]
        most = max(most, sum(each["begun"] <= note["begun"] < each["ended"] for each in same))
    return most


def epochs_for(seconds: float, folder: Path) -> int:
    """Epochs of a training that takes about `seconds` here, on one thread of a free core."""
    from sweeper.sweep.expand import expand
    from sweeper.sweep.load import load_sweep

    with nodes(1):
        notes = folder / "calibration-notes"
        notes.mkdir()
        trials = expand(load_sweep(str(sweep_file(folder, 2, 200))))
        run(trials, folder / "calibration", timed(str(notes)))
    quickest = min(note["ended"] - note["begun"] for note in read_notes(notes))
    return max(1, int(200 * seconds / quickest))


def slots_and_workers(folder: Path, trial_s: float, trials_per_worker: int) -> dict[str, Any]:
    from sweeper.sweep.expand import expand
    from sweeper.sweep.load import load_sweep

    epochs = epochs_for(trial_s, folder)
    walls, found = {}, {}
    for workers in (1, 2):
        notes = folder / f"notes-{workers}"
        notes.mkdir()
        trials = expand(load_sweep(str(sweep_file(folder, 2 * trials_per_worker, epochs))))
        with nodes(1):  # started separately, so that its start is not measured
            pass
        with nodes(workers):
            walls[workers], _ = run(trials, folder / f"workers-{workers}", timed(str(notes)))
        read = read_notes(notes)
        own = sum(note["ended"] - note["begun"] for note in read)
        found[workers] = {
            "busy": busy(read, workers),
            "overhead": walls[workers] * workers / own - 1,
            "trial_s": own / len(read),
        }
        log(
            f"{workers} workers: {len(read)} trials of {own / len(read):.1f} s, slots busy {found[workers]['busy']:.1%}, "
            f"overhead above the trials' own time {found[workers]['overhead']:.1%}"
        )
    speedup = walls[1] / walls[2]
    possible = two_bare_processes(folder, epochs)
    log(
        f"1 -> 2 workers: {speedup:.2f} times as fast; two processes without Ray are {possible:.2f} times as fast as one"
    )
    return {"speedup": speedup, "two_bare_processes": possible, "workers": found}


def two_bare_processes(folder: Path, epochs: int) -> float:
    """How many times faster two trainings run in parallel than in sequence, in their own processes without Ray.

    That is the machine's limit: its cores share their memory, and share the host's with others.
    """
    import pyarrow.parquet as pq

    from sweeper.sweep.expand import expand
    from sweeper.sweep.load import load_sweep
    from sweeper.workers.allocator import ALLOCATOR_ENVIRONMENT

    sweep, out = sweep_file(folder, 4, epochs), folder / "bare"
    ids = [trial.target_id for trial in expand(load_sweep(str(sweep)))]

    def seconds(together: Sequence[str]) -> float:
        command = [sys.executable, "-m", "sweeper.cli", "trial", str(sweep)]
        environment = os.environ | ALLOCATOR_ENVIRONMENT
        running = [
            subprocess.Popen([*command, each, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL)
            for each in together
        ]
        assert [each.wait() for each in running] == [0] * len(running)
        parts = [pq.read_table(out / "parts" / "trials" / f"{each}.parquet") for each in together]
        return max(part["train_time_s"][0].as_py() for part in parts)

    before, both, after = seconds(ids[:1]), seconds(ids[1:3]), seconds(ids[3:])
    return (before + after) / both


def whole_launch(folder: Path, trial_s: float, trials_per_worker: int) -> dict[str, Any]:
    """Time of `sweeper launch` from the command to the report on two workers, beyond the computation that its records show."""
    import pyarrow.parquet as pq

    sweep = sweep_file(folder, 2 * trials_per_worker, epochs_for(trial_s, folder))
    command = [sys.executable, "-m", "sweeper.cli", "launch", str(sweep), "--out", str(folder / "launch"), "--local"]
    command += ["--cpus-per-trial", "1", "--max-concurrent", "2"]
    started = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    ended = time.time()
    rows = pq.read_table(folder / "launch" / "trials.parquet").to_pylist()
    owns = [row["load_time_s"] + row["first_step_time_s"] + row["train_time_s"] for row in rows]
    begins = [row["started_at"].timestamp() for row in rows]
    ends = sorted(map(sum, zip(begins, owns, strict=True)))
    own = sum(owns)
    found = {
        "trials": len(rows),
        "trial_s": own / len(rows),
        "overhead": 2 * (ended - started) / own - 1,
        "before_the_first": 2 * (min(begins) - started) / own,
        "one_worker_idle": (ends[-1] - ends[-2]) / own,
        "after_the_last": 2 * (ended - ends[-1]) / own,
    }
    log(
        f"sweeper launch: {len(rows)} trials of {found['trial_s']:.1f} s on 2 workers, {found['overhead']:.1%} above their own "
        f"time: {found['before_the_first']:.1%} before the first trial, {found['after_the_last']:.1%} after the last, "
        f"{found['one_worker_idle']:.1%} one worker idle while the other had the last, the rest between"
    )
    return found


def starts(folder: Path) -> dict[str, Any]:
    """How long a trial's process takes to begin its work, compared with a new interpreter that imports the same modules."""
    from sweeper.workers.isolation import run_in_child

    def seconds(start: Callable[[], Any]) -> float:
        began = time.perf_counter()
        start()
        return time.perf_counter() - began

    def child() -> None:
        assert run_in_child(os.getenv, "HOME", log=folder / "log").how in ("returned", "raised")

    child()  # this starts the fork server
    forked = sorted(seconds(child) for _ in range(20))[10]
    command = [sys.executable, "-c", "import sweeper.workers.preloaded"]
    fresh = sorted(seconds(lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL)) for _ in range(5))[2]
    log(
        f"a trial's process begins {fresh / forked:.0f} times sooner than a new interpreter ({forked:.2f} s, {fresh:.1f} s)"
    )
    return {"forked_s": forked, "fresh_s": fresh}


def devices(folder: Path, trial_s: float) -> dict[str, Any]:
    """Two nodes with two declared GPUs each: the devices each trial sees, and whether a device is ever shared."""
    from sweeper.sweep.expand import expand
    from sweeper.sweep.load import load_sweep

    notes = folder / "notes-devices"
    notes.mkdir()
    trials = expand(load_sweep(str(sweep_file(folder, 24, epochs_for(trial_s, folder) // 2))))
    with nodes(2, gpus=2):
        run(trials, folder / "devices", timed(str(notes)), gpus=1.0)
    read = read_notes(notes)
    found = {
        "slots": len({(note["node"], note["devices"]) for note in read}),
        "most_at_once": most_at_once(read),
        "busy": busy(read, 4),
    }
    log(
        f"2 nodes of 2 declared GPUs: {found['slots']} devices used, at most {found['most_at_once']} trial on one at a time, "
        f"slots busy {found['busy']:.1%}"
    )
    return found


def nothing_at_all(parcel: Any, settings: Any, *, cpus: float, gpus: float, on_progress: Any) -> Any:
    """An attempt that does nothing, not even record a result."""
    from sweeper.workers.outcomes import Outcome

    return Outcome(target_id=parcel.target_id)


def nothing(parcel: Any, settings: Any, *, cpus: float, gpus: float, on_progress: Any) -> Any:
    """An attempt that trains nothing and records the minimum."""
    from sweeper.results.store import Store
    from sweeper.workers.outcomes import Outcome

    row = {"schema_version": 0, "target_id": parcel.target_id, "status": "finished"}
    output = {"target_id": [parcel.target_id], "example_id": [0], "role": ["member"], "label": [0], "logits": [[0.0]]}
    Store(settings.store).write_target(
        parcel.target_id, row, [{"target_id": parcel.target_id, "epoch": 1}], output, b""
    )
    return Outcome(target_id=parcel.target_id)


SCALE = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import scheduling as bench
from sweeper.sweep.preflight import resolve_trials
from sweeper.results.gather import gather
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
import sweeper.cluster.run  # sets what Ray reads when it is imported
count, folder = int(sys.argv[2]), Path(sys.argv[3])
found = {"trials": count, "rss_start_mib": bench.rss_mib()}
def step(name, began):
    found[name + "_ms"] = 1000 * (time.perf_counter() - began) / count
    found[name + "_rss_mib"] = bench.rss_mib()
    print(f"  {count} trials: {name} {found[name + '_ms']:.2f} ms a trial, {bench.rss_mib():.0f} MiB", file=sys.stderr, flush=True)
began = time.perf_counter()
sweep = load_sweep(str(bench.sweep_file(folder, count, 1)))
trials = expand(sweep)
step("plan", began)
began = time.perf_counter()
resolve_trials(trials, folder)
step("resolve", began)
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
found["rss_ray_mib"] = bench.rss_mib()
seconds, store = bench.run(trials, folder / "out", bench.nothing)
began = time.perf_counter() - seconds
step("run", began)
seconds, _ = bench.run(trials[:1000], folder / "unrecorded", bench.nothing_at_all)
found["unrecorded_ms"] = 1000 * seconds / len(trials[:1000])
@ray.remote
def bare(number): return number
ray.get([bare.remote(i) for i in range(100)])
began = time.perf_counter()
n_bare = min(count, 10_000)
for start in range(0, n_bare, 500):
    ray.get([bare.remote(i) for i in range(500)])
found["bare_ms"] = 1000 * (time.perf_counter() - began) / n_bare
ray.shutdown()
began = time.perf_counter()
statuses = store.statuses(trials)
step("statuses", began)
store.write_sweep(sweep, trials)
began = time.perf_counter()
gathered = gather(store)
step("gather", began)
import pyarrow.parquet as pq
assert pq.read_metadata(gathered.folder / "trials.parquet").num_rows == count and not gathered.damaged
print(json.dumps(found))
"""


def scale(folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Run empty trials, each count in its own process, so that its memory is measured separately."""
    rows = []
    for count in counts:
        place = folder / f"scale-{count}"
        place.mkdir()
        command = [sys.executable, "-c", textwrap.dedent(SCALE), str(Path(__file__).parent), str(count), str(place)]
        # Workers import `nothing` from this file
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(place)
        row = rows[-1]
        log(
            f"{count:>7} trials that do nothing: per trial plan {row['plan_ms']:.2f} ms, resolve {row['resolve_ms']:.2f}, run "
            f"{row['run_ms']:.1f} ({row['unrecorded_ms']:.1f} where nothing is recorded), gather {row['gather_ms']:.2f}; driver "
            f"{row['rss_start_mib']:.0f} MiB at first, {row['plan_rss_mib']:.0f} planned, {row['run_rss_mib']:.0f} run, "
            f"{row['gather_rss_mib']:.0f} gathered; "
            f"bare ray.remote {row['bare_ms']:.2f} ms"
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="trials of 5 s, and no more than 1000 that do nothing")
    parser.add_argument("--trials", type=int, default=100_000, help="the most trials that do nothing")
    parser.add_argument("--only", choices=["starts", "workers", "launch", "devices", "scale"], help="one part alone")
    arguments = parser.parse_args()
    trial_s = 5.0 if arguments.quick else 30.0
    most = 1000 if arguments.quick else arguments.trials
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sweeper-bench-") as name:
        folder = Path(name)
        parts: dict[str, Callable[[Path], Any]] = {
            "starts": starts,
            "workers": lambda place: slots_and_workers(place, trial_s, 3 if arguments.quick else 8),
            "launch": lambda place: whole_launch(place, trial_s, 3 if arguments.quick else 32),
            "devices": lambda place: devices(place, min(trial_s, 10.0)),
            "scale": lambda place: scale(place, [count for count in (1000, 10_000, 100_000) if count <= most]),
        }
        for part, measure in parts.items():
            if arguments.only in (None, part):
                place = folder / part
                place.mkdir()
                result[part] = measure(place)
    print(json.dumps(result))
    measured = [*result.get("workers", {}).get("workers", {}).values(), *filter(None, [result.get("devices")])]
    idle = not arguments.quick and any(each["busy"] < LEAST_BUSY for each in measured)
    return int(idle or result.get("devices", {}).get("most_at_once", 1) > 1)


if __name__ == "__main__":
    sys.exit(main())
