"""Runs a sweep whose processes are killed again and again, and compares it with the same sweep undisturbed.

    python benchmarks/chaos.py            60 trainings, at least 110 kills, two Rays; about half an hour on two cores
    python benchmarks/chaos.py --quick    8 trainings, 6 to 16 kills on a private Ray; about five minutes

First the sweep runs undisturbed. On a fast machine its trainings are longer, so that there is time to kill something. Then
it runs again, alternating between its own cluster (a head and further raylets, all on this machine) and the private Ray of
`sweeper launch`, until there were enough kills. Each run begins with an empty results folder. A kill counts if it hits
work, that is if a trial's process was running. At random moments SIGKILL is sent to a trial's child process, its fork
server, a Tune worker, a raylet other than the head's, the driver and, rarely, the head or a private Ray. Like a person,
this script restarts what nothing else restarts: a raylet, a lost cluster, and `sweeper launch` with the same command,
whether it was killed or gave up.

In the end every trial must exist exactly once, and every table must equal the undisturbed run's, except for times and
attempts. The last line printed is a JSON object. The exit code is 0 if that holds and the sweep left nothing behind: no
claim, no process. The random choices (kinds, victims, pauses) follow from --seed, but what runs at a given moment depends
on the machine, so no two runs are the same.

Kills only processes that it started. Needs Linux, for its /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
SWEEP = """
name: chaos
summary: trainings of a few seconds on one CPU, whose state is more than weights
datasets: [digits]
splits: [coins]
defenses:
  baseline: none
  dropout: dropout
  dp: {name: dp_sgd, noise_multiplier: 1.0, accountant: rdp}
  # A slow clip norm: with a fast one long trainings diverge, for its noise grows with it
  adaptive: {name: noised_quantile, noise_multiplier: 0.5, clip_learning_rate: 0.01, accountant: rdp}
  l2_dropout: [l2, dropout]
  dp_dropout: [{name: dp_sgd, noise_multiplier: 0.7, accountant: rdp}, dropout]
optimizers: [{name: sgd, learning_rate: 0.1}, {name: adam, learning_rate: 0.002}]
training: {epochs: EPOCHS, batch_size: 64, sampling: poisson}
seeds: SEEDS
attacks: [threshold]
"""
KEYS = {
    "trials": ["target_id"],
    "tpvd": ["target_id"],
    "history": ["target_id", "epoch"],
    "outputs": ["target_id", "example_id"],
    "attacks": ["target_id", "attack_id", "score_name"],
    "scores": ["target_id", "attack_id", "score_name", "example_id"],
    "comparisons": ["comparison_id"],
    "cohorts": ["comparison_id", "score_name"],
    "exposure": ["comparison_id", "score_name", "example_id"],
}
"""The tables, each with the columns that identify a row."""
INCIDENTAL = re.compile(r"_time_s$|^seconds_per_step$|^started_at$|^attempts$|^git_")
"""Columns that describe the moment, not the result; code shipped to a cluster has no commit to record."""

Kind = Literal["driver", "child", "fork_server", "worker", "raylet", "head", "other"]
WEIGHTS: dict[Kind, int] = {"child": 8, "worker": 5, "fork_server": 2, "raylet": 2, "driver": 2}
"""Relative frequency of each kind."""
EPOCHS = 30
MEAN_PAUSE_S = {"full": 2.5, "quick": 0.9}
WORK_S = {"full": 60.0, "quick": 25.0}
"""A sweep with less time at work is too short to be disturbed."""
FEWEST_QUICK_KILLS = 6
SURE: dict[str, tuple[Kind, ...]] = {"full": ("child",), "quick": ("driver", "child")}
"""Kinds that are killed in the first run of each sort, whatever is drawn."""
HEADS = 2
"""In full mode all of Ray is killed this often: once in each of the first runs."""
STALL_S = 240.0
"""A living driver hangs if nothing moves for this long."""
GIVE_UPS = 10
"""More drivers than this that end on their own are too many."""
RAY = (sys.executable, "-m", "ray.scripts.scripts")
MARKER = "SWEEPER_CHAOS"
WORKER_ADDRESSES = ("127.0.0.2", "127.0.0.3")


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


# Processes


@dataclass
class Process:
    """A living process that was started here, or by one that was."""

    pid: int
    start: str
    parent: int
    session: int
    command: str = ""
    kind: Kind = "other"


class Processes:
    """The processes started here, recognized by their session, a mark in their environment, or their parents.

    No single sign is enough: trials lead their own sessions, Ray's workers overwrite their environment with their title,
    and a process that loses its parent gets another.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.environment = {MARKER: self.token}
        self._sessions: set[int] = set()
        self.alive: dict[int, Process] = {}

    def start(
        self, command: list[str], *, log: Path, environment: dict[str, str], cwd: Path
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                env=environment | self.environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._sessions.add(process.pid)
        return process

    def look(self) -> None:
        """Update `alive`."""
        seen: dict[int, Process] = {}
        strangers: list[Process] = []
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            fields = _read(f"/proc/{entry.name}/stat").rpartition(b")")[2].split()
            if len(fields) < 20 or fields[0] in (b"Z", b"X"):
                continue
            process = Process(int(entry.name), fields[19].decode(), int(fields[1]), int(fields[3]))
            known = self.alive.get(process.pid)
            if process.session in self._sessions or (known is not None and known.start == process.start):
                seen[process.pid] = process
            else:
                strangers.append(process)
        mark = f"{MARKER}={self.token}".encode()
        for process in sorted(strangers, key=lambda process: int(process.start)):  # parents first
            if process.parent in seen or mark in _read(f"/proc/{process.pid}/environ").split(b"\0"):
                seen[process.pid] = process
        for process in seen.values():
            process.command = (
                _read(f"/proc/{process.pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
            )
            process.kind = _kind(process)
        self.alive = seen

    def of(self, kind: Kind) -> list[Process]:
        return [process for process in self.alive.values() if process.kind == kind]

    def kill(self, process: Process) -> bool:
        """Send SIGKILL, unless another process has this number by now. Returns whether the process was there."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:
            return False
        try:
            fields = _read(f"/proc/{process.pid}/stat").rpartition(b")")[2].split()
            if len(fields) < 20 or fields[19].decode() != process.start or fields[0] in (b"Z", b"X"):
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def kill_all(self) -> list[Process]:
        """Kill all processes. Returns those that were there."""
        killed: dict[int, Process] = {}
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.look()
            if not self.alive:
                break
            for process in self.alive.values():
                self.kill(process)
                killed[process.pid] = process
            time.sleep(0.2)
        return list(killed.values())


def _kind(process: Process) -> Kind:
    command = process.command
    program = command.split(" ", 1)[0].rpartition("/")[2]
    if "multiprocessing.forkserver" in command:
        return "child" if process.session == process.pid else "fork_server"
    if command.startswith("ray::"):
        return "other" if "Agent" in command.split(" ", 1)[0] else "worker"
    if program == "gcs_server" or (program == "raylet" and " --head" in command):
        return "head"
    if program == "raylet":
        return "raylet"
    return "driver" if "-m sweeper.cli launch" in command else "other"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has just ended, or belongs to another user
        return b""


# A cluster on this machine


class Cluster:
    """A head and further raylets with one CPU each. `tend` restarts those that die."""

    def __init__(self, processes: Processes, folder: Path, environment: dict[str, str], workers: int) -> None:
        self._processes, self._folder, self._environment = processes, folder, environment
        self._workers = WORKER_ADDRESSES[:workers]
        self._starting: dict[str, subprocess.Popen[bytes]] = {}
        self._pause_until: dict[str, float] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"

    def start_head(self) -> None:
        """Start the head and wait until it is ready."""
        options = ["--head", f"--port={self.port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        if self._start("head", options).wait(120) != 0:
            raise RuntimeError(f"`ray start --head` failed; see {self._folder / 'ray-head.log'}")

    def tend(self, rng: np.random.Generator) -> None:
        """Restart dead raylets, each after a moment."""
        for address in self._workers:
            running = any(
                f"--node_ip_address={address} " in process.command for process in self._processes.of("raylet")
            )
            starting = self._starting.get(address)
            if running or (starting is not None and starting.poll() is None):
                self._pause_until.pop(address, None)
                continue
            until = self._pause_until.setdefault(address, time.monotonic() + rng.uniform(0, 3))
            if time.monotonic() >= until:
                del self._pause_until[address]
                self._start(address, [f"--address={self.address}", f"--node-ip-address={address}"])

    def _start(self, name: str, options: list[str]) -> subprocess.Popen[bytes]:
        command = [*RAY, "start", "--num-cpus=1", "--disable-usage-stats", "--include-log-monitor=false", *options]
        self._starting[name] = self._processes.start(
            command, log=self._folder / f"ray-{name}.log", environment=self._environment, cwd=self._folder
        )
        return self._starting[name]


# A run


@dataclass
class Found:
    """Observations from all runs."""

    by_kind: Counter[str] = field(default_factory=Counter)
    idle: Counter[str] = field(default_factory=Counter)
    """Kills that do not count, because no trial was running."""
    launches: int = 0
    exit_codes: Counter[int] = field(default_factory=Counter)
    gave_up: list[str] = field(default_factory=list)
    """Last output of drivers that ended on their own although neither they nor Ray's head were killed."""
    after_head_s: list[float] = field(default_factory=list)
    """How long drivers outlived a head."""
    stalls: int = 0
    at_once: set[str] = field(default_factory=set)
    """Trials seen running in two processes at once: allowed, but wasteful."""
    survivors: list[str] = field(default_factory=list)
    """Processes of a sweep that were still running after its clean end."""

    @property
    def kills(self) -> int:
        return sum(self.by_kind.values())


class Run:
    """One run of the sweep into its own folder, with or without kills."""

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        cluster: Cluster | None,
        processes: Processes,
        environment: dict[str, str],
        found: Found,
        rng: np.random.Generator,
        mean_pause_s: float = math.inf,
        limits: Mapping[Kind, int] | None = None,
        patience_s: float = math.inf,
    ) -> None:
        self.name, self.results = name, folder / name
        self._folder, self._cluster, self._processes, self._environment = folder, cluster, processes, environment
        self._found, self._rng, self._mean_pause_s = found, rng, mean_pause_s
        self._limits, self._patience_s = limits or {}, patience_s
        self._worked_s, self._looked_at = 0.0, time.monotonic()
        self._log = folder / f"{name}.log"
        self._driver: subprocess.Popen[bytes] | None = None
        self._excuse = ""
        self._head_killed_at: float | None = None
        self._moved = (time.monotonic(), ())
        self._said = 0.0
        self._kills = 0

    @property
    def worked_s(self) -> float:
        """For how long trials were running."""
        return self._worked_s

    def go(self, *, kills: int, sure: Sequence[Kind] = ()) -> None:
        """Run to the end with up to `kills` kills. After a quarter of these, it kills one of each `sure` kind not killed before."""
        sure = [kind for kind in sure if not self._found.by_kind[kind]]
        self._start_driver()
        next_kill = time.monotonic() + self._pause()
        while True:
            time.sleep(0.1)
            self._processes.look()
            self._note_doubles()
            now = time.monotonic()
            self._worked_s += now - self._looked_at if self._processes.of("child") else 0.0
            self._looked_at = now
            if self._cluster is not None and self._head_killed_at is None:
                self._cluster.tend(self._rng)
            assert self._driver is not None
            code = self._driver.poll()
            if code is not None:
                if self._ended(code):
                    break
                self._start_driver()
            elif self._hangs():
                self._kill_driver_that_hangs()
            self._say_how_it_stands()
            has_had_enough = self._kills >= kills or (self._worked_s > self._patience_s and not sure)
            if time.monotonic() < next_kill or has_had_enough or self._head_killed_at is not None:
                continue
            next_kill = time.monotonic() + self._pause()
            if sure and self._kills >= kills // 4 and self._processes.of("child"):
                if self._kill(sure[0]):
                    del sure[0]
            else:
                self._kill(self._draw())
        self._look_for_survivors()

    def _pause(self) -> float:
        return 0.2 + self._mean_pause_s * float(self._rng.exponential())

    def _start_driver(self) -> None:
        self._excuse = ""
        command = [sys.executable, "-m", "sweeper.cli", "launch", "chaos.yaml", "--out", self.name]
        command += ["--cpus-per-trial", "1", "--checkpoint-every", "0.2s"]
        # A killed child counts as its trial's own failure, because it may have crashed. No trial may be given up.
        command += ["--retries", "1000", "--worker-retries", "1000"]
        command += ["--local"] if self._cluster is None else ["--address", self._cluster.address]
        self._driver = self._processes.start(command, log=self._log, environment=self._environment, cwd=self._folder)
        self._found.launches += 1
        self._moved = (time.monotonic(), ())

    def _draw(self) -> Kind:
        shares = np.array(list(WEIGHTS.values()), dtype=float)
        return list(WEIGHTS)[self._rng.choice(len(shares), p=shares / shares.sum())]

    def _kill(self, kind: Kind) -> bool:
        """Kill one process of a kind, if there is one. Returns whether it hit work.

        A launch takes as long to start as many trials do. So while no trial is running, most kills are skipped; otherwise most
        would fall into that time.
        """
        victims = sorted(self._processes.of(kind), key=lambda process: process.pid)
        if kind == "head":  # a cluster's GCS server, which knows all its processes; a private Ray's only raylet
            program = "raylet" if self._cluster is None else "gcs_server"
            victims = [process for process in victims if f"/{program} " in process.command]
        is_at_work = bool(self._processes.of("child"))
        spared = not is_at_work and (kind in self._limits or self._rng.random() < 0.95)
        if not victims or spared or self._found.by_kind[kind] >= self._limits.get(kind, math.inf):
            return False
        victim = victims[self._rng.integers(len(victims))]
        if not self._processes.kill(victim):
            return False
        (self._found.by_kind if is_at_work else self._found.idle)[kind] += 1
        self._kills += is_at_work
        if kind in ("driver", "head"):
            self._excuse = kind
        if kind == "head":
            self._head_killed_at = time.monotonic()
        say(f"  {self.name}: killed {kind} {victim.pid} ({victim.command.split(' ', 1)[0].rpartition('/')[2]})")
        return is_at_work

    def _ended(self, code: int) -> bool:
        """Handle the driver's end. Returns whether the run is over."""
        self._found.exit_codes[code] += 1
        if self._head_killed_at is not None:
            seconds = time.monotonic() - self._head_killed_at
            self._found.after_head_s.append(round(seconds, 1))
            say(f"  {self.name}: the driver ended {seconds:.0f} s after Ray's head, with exit code {code}")
            self._head_killed_at = None
            if self._cluster is not None and code != 0:
                self._processes.kill_all()  # the rest of the cluster
                self._cluster.start_head()
        if code != 0 and not self._excuse:
            words = (self._log.read_text(errors="replace").splitlines() or ["nothing was said"])[-1]
            self._found.gave_up.append(f"exit code {code}: {words}")
            say(f"  {self.name}: the driver gave up with exit code {code}: {words}")
            if len(self._found.gave_up) > GIVE_UPS:
                raise RuntimeError(
                    f"`sweeper launch` gave up for the {len(self._found.gave_up)}th time; see {self._log}"
                )
        return code == 0

    def _parts(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return sum(path.name.count(".") == 1 for path in (self.results / "parts" / "trials").iterdir())
        return 0

    def _hangs(self) -> bool:
        logs = self.results / "logs"
        state = (self._parts(), sum(path.stat().st_size for path in logs.glob("*.log")), len(self._processes.alive))
        if state != self._moved[1]:
            self._moved = (time.monotonic(), state)
        return time.monotonic() - self._moved[0] > STALL_S

    def _kill_driver_that_hangs(self) -> None:
        assert self._driver is not None
        self._found.stalls += 1
        say(f"  {self.name}: nothing has moved for {STALL_S:.0f} s; the driver is killed")
        if stacks := shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
            shown = subprocess.run([stacks, "dump", "--pid", str(self._driver.pid)], capture_output=True, text=True)
            with self._log.open("a") as file:
                file.write(f"The driver's stacks:\n{shown.stdout}{shown.stderr}\n")
        self._excuse = "hang"
        self._driver.kill()
        self._driver.wait()

    def _note_doubles(self) -> None:
        logs: Counter[str] = Counter()
        for process in self._processes.of("child"):
            with contextlib.suppress(OSError):
                logs[Path(f"/proc/{process.pid}/fd/1").readlink().name] += 1
        for name, count in logs.items():
            if name.endswith(".log") and re.fullmatch(r"[0-9a-f]{16}\.log", name) and count > 1:
                if name not in self._found.at_once:
                    say(f"  {self.name}: {name.removesuffix('.log')} is under way in {count} processes at once")
                self._found.at_once.add(name)

    def _say_how_it_stands(self) -> None:
        if time.monotonic() - self._said < 10:
            return
        self._said = time.monotonic()
        kinds = Counter(process.kind for process in self._processes.alive.values())
        running = ", ".join(f"{kinds[kind]} {kind}" for kind in ("driver", "worker", "child", "raylet") if kinds[kind])
        say(f"{self.name}: {self._parts()} targets, {self._kills} kills; running: {running or 'nothing'}")

    def _look_for_survivors(self) -> None:
        """Check that after a clean end no process of the sweep is running; the cluster's own processes may be."""
        # Agents of a Ray whose driver was killed look for its head for a minute
        deadline = time.monotonic() + 90
        while True:
            self._processes.look()
            if self._cluster is None:
                left = list(self._processes.alive.values())
            else:
                left = [each for kind in ("child", "fork_server") for each in self._processes.of(kind)]  # type: ignore[arg-type]
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self._found.survivors += [f"{process.kind} {process.command[:80]}" for process in left]
        self._processes.kill_all()


# The result


def compare(here: Path, there: Path) -> dict[str, set[str]]:
    """Ids of targets and comparisons that are lost, doubled, or different in `here`, compared with `there`."""
    planned = set(json.loads((here / "sweep.json").read_text())["targets"])
    compared = set(json.loads((here / "comparisons.json").read_text()))
    found: dict[str, set[str]] = {"lost": set(), "doubled": set(), "different": set()}
    for name, keys in KEYS.items():
        mine, other = pq.read_table(here / f"{name}.parquet"), pq.read_table(there / f"{name}.parquet")
        counted = Counter(zip(*(mine.column(key).to_pylist() for key in keys), strict=True))
        found["doubled"] |= {key[0] for key, count in counted.items() if count > 1}
        columns = [column for column in other.column_names if not INCIDENTAL.search(column)]
        rows, others = (by_id(table.select(columns).to_pylist(), keys[0]) for table in (mine, other))
        if mine.column_names != other.column_names or [key for key in rows if key in others] != [
            key for key in others if key in rows
        ]:
            found["different"] |= planned
        if name in ("trials", "comparisons"):
            statuses = zip(mine.column(keys[0]).to_pylist(), mine.column("status").to_pylist(), strict=True)
            wanted = planned if name == "trials" else compared
            found["lost"] |= wanted - {each for each, status in statuses if status == "finished"}
        found["different"] |= {key for key in rows.keys() | others.keys() if rows.get(key) != others.get(key)}
        found["doubled"] |= (rows.keys() | others.keys()) - planned - compared
    found["different"] -= found["lost"]
    return found


def by_id(rows: list[dict[str, Any]], key: str) -> dict[str, list[str]]:
    """Rows of each target or comparison as text, so that NaN equals NaN."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(repr(row))
    return found


def left_behind(results: Path) -> dict[str, int]:
    """Files that a sweep should not have left after a good end."""
    counts = {folder: len(list((results / folder).iterdir())) for folder in ("claims", "launches", "attempts")}
    counts["checkpoints"] = len(list((results / "checkpoints").glob("*.safetensors")))
    counts["failed_rows"] = len(list((results / "parts").glob("*/*.failed.parquet")))
    counts["temporary"] = len(list(results.rglob(".*.tmp"))) + len(list(results.glob(".gather-*")))
    counts["quarantine"] = len(list((results / "quarantine").iterdir()))
    parts = (path for path in (results / "parts").rglob("*") if path.is_file() and not path.name.startswith("."))
    counts["strange_parts"] = sum(
        not re.fullmatch(r"[0-9a-f]{16}(\.[0-9a-f]{16})?(\.failed)?\.parquet", path.name) for path in parts
    )
    return counts


def attempts_of(results: Path) -> tuple[int, int, list[str]]:
    """The most attempts at a trial, how many resumed from a checkpoint, and trials whose attempts are miscounted."""
    most, resumed, miscounted = 0, 0, []
    recorded = {row["target_id"]: row["attempts"] for row in pq.read_table(results / "trials.parquet").to_pylist()}
    for target_id, attempts in recorded.items():
        text = (results / "logs" / f"{target_id}.log").read_text(errors="replace")
        numbers = [int(number) for number in re.findall(r"^--- attempt (\d+) at ", text, flags=re.MULTILINE)]
        resumed += text.count("resuming after epoch")
        most = max([most, *numbers])
        if attempts not in numbers or any(later <= earlier for earlier, later in pairwise(numbers)):
            miscounted.append(f"{target_id}: {attempts} recorded, {numbers} in its log")
    return most, resumed, miscounted


@contextlib.contextmanager
def working_folder(keep: bool) -> Iterator[Path]:
    """A folder with a short path, because Ray's socket paths must be short. Deleted unless something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    try:
        yield folder
        keep = keep or (folder / "keep").exists()
    except BaseException:
        keep = True
        raise
    finally:
        if keep:
            say(f"Everything is kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials, fewer kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices [default: 0]")
    parser.add_argument(
        "--kills", type=int, help="minimum number of kills [default: 110]; with --quick the maximum [16]"
    )
    parser.add_argument(
        "--on", choices=["cluster", "local"], help="the Ray to use [default: both in turn; quick: local]"
    )
    parser.add_argument("--keep", action="store_true", help="keep the results and logs")
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.stderr.write("This needs Linux. Nothing was run.\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes = Processes()
    with working_folder(arguments.keep) as folder:
        try:
            result = torment(folder, processes, arguments)
        finally:
            processes.kill_all()
        if result["problems"]:
            (folder / "keep").touch()
    sys.stdout.write(json.dumps(result) + "\n")
    return int(bool(result["problems"]))


def enough_epochs(epochs: int, worked_s: float, needed_s: float) -> int:
    """Epochs for which trials run `needed_s`, given that they ran `worked_s` with `epochs`; never fewer than `epochs`."""
    if worked_s >= needed_s:
        return epochs
    return math.ceil(epochs * min(20.0, 1.3 * needed_s / max(worked_s, 0.1)))


def missing_kinds(found: Found, wanted: int) -> list[Kind]:
    """Kinds that had to be killed in the middle of work, but were not."""
    kinds: tuple[Kind, ...] = ("driver", "child")
    return [kind for kind in kinds if wanted and not found.by_kind[kind]]


def torment(folder: Path, processes: Processes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything, and return the results."""
    quick = arguments.quick
    wanted = arguments.kills if arguments.kills is not None else 16 if quick else 110
    rng = np.random.default_rng(arguments.seed)
    n_seeds = 4 if quick else 5  # enough for the attacks on cohorts
    mode = "quick" if quick else "full"
    sweep = SWEEP.replace("SEEDS", str(list(range(n_seeds))))
    if quick:
        sweep = re.sub(r"  (baseline|dp|l2_dropout|dp_dropout): .*\n", "", sweep)
        sweep = sweep.replace("{name: sgd, learning_rate: 0.1}, ", "")
    for name in ("ray", "tmp"):
        (folder / name).mkdir()
    environment = os.environ | {"RAY_TMPDIR": str(folder / "ray"), "TMPDIR": str(folder / "tmp")}
    # A password against others on the network who reach the cluster; and nothing is written to the user's home folder.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    common: dict[str, Any] = {"folder": folder, "processes": processes, "environment": environment, "rng": rng}
    started = time.monotonic()
    calm, epochs = Found(), EPOCHS
    while True:
        say(f"the sweep, undisturbed, {epochs} epochs a training")
        (folder / "chaos.yaml").write_text(sweep.replace("EPOCHS", str(epochs)), encoding="utf-8")
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        undisturbed_began = time.monotonic()
        undisturbed = Run("undisturbed", cluster=None, found=calm, **common)
        undisturbed.go(kills=0)
        longer = enough_epochs(epochs, undisturbed.worked_s, WORK_S[mode])
        if longer == epochs:
            break
        epochs = longer
    undisturbed_s = time.monotonic() - undisturbed_began

    found = Found()
    runs: list[Path] = []
    rays = [arguments.on] if arguments.on else ["local"] if quick else ["cluster", "local"]
    totals: dict[str, set[str]] = {"lost": set(), "doubled": set(), "different": set()}
    behind: Counter[str] = Counter()
    attempts_max, resumed, miscounted = 0, 0, []
    # In quick mode, limit the most expensive kills, because a slow machine has only a few minutes.
    manner: dict[str, Any] = {"mean_pause_s": MEAN_PAUSE_S[mode]}
    if quick:
        manner |= {"limits": {"driver": 1, "raylet": 2}, "patience_s": 30.0}
    needed = min(wanted, FEWEST_QUICK_KILLS) if quick else wanted
    while len(runs) < len(rays) or found.kills < needed or missing_kinds(found, wanted):
        ray = rays[len(runs) % len(rays)]
        name = f"{ray}{len(runs) + 1}"
        cluster = None
        if ray == "cluster":
            say("starting a cluster")
            cluster = Cluster(processes, folder, environment, workers=1 if quick else 2)
            cluster.start_head()
        # After its share of kills a run continues undisturbed; otherwise a slow machine would never finish.
        share = max(wanted - found.kills, len(SURE[mode])) if quick else -(-wanted * 3 // 5)
        run = Run(name, cluster=cluster, found=found, **manner, **common)
        run.go(
            kills=share if wanted else 0, sure=SURE[mode] if quick else ("head",) if len(runs) < HEADS else SURE[mode]
        )
        runs.append(run.results)
        for key, target_ids in compare(run.results, folder / "undisturbed").items():
            totals[key] |= {f"{name}/{target_id}" for target_id in target_ids}
        behind += Counter(left_behind(run.results))
        most, more, wrong = attempts_of(run.results)
        attempts_max, resumed, miscounted = max(attempts_max, most), resumed + more, miscounted + wrong
        say(
            f"{name}: ended; {found.kills} kills of {wanted} so far; {', '.join(f'{len(totals[key])} {key}' for key in totals)}"
        )
    problems = [f"{key}: {', '.join(sorted(ids)[:5])}" for key, ids in totals.items() if ids]
    problems += [f"{behind[each]} {each} left" for each in ("claims", "strange_parts", "quarantine") if behind[each]]
    problems += [f"left alive: {each}" for each in calm.survivors + found.survivors]
    problems += [f"attempts of {each}" for each in miscounted]
    problems += [f"{found.stalls} times a driver hung"] if found.stalls else []
    return {
        "kills": found.kills,
        "trials": sum(len(json.loads((run / "sweep.json").read_text())["targets"]) for run in runs),
        **{key: len(ids) for key, ids in totals.items()},
        "seed": arguments.seed,
        "runs": [run.name for run in runs],
        "by_kind": dict(found.by_kind),
        "kills_while_idle": sum(found.idle.values()),
        "epochs": epochs,
        "attempts_max": attempts_max,
        "resumed_from_checkpoint": resumed,
        "twice_at_once": len(found.at_once),
        "launches": found.launches,
        "exit_codes": {str(code): count for code, count in sorted(found.exit_codes.items())},
        "gave_up": found.gave_up,
        "driver_outlived_head_s": found.after_head_s,
        "left_behind": {key: count for key, count in behind.items() if count},
        "problems": problems,
        "seconds": round(time.monotonic() - started),
        "seconds_undisturbed": round(undisturbed_s),
    }


if __name__ == "__main__":
    sys.exit(main())
