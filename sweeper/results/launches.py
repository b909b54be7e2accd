"""Launches that share one results folder: which are alive, and which has claimed which trial.

    launches/LAUNCH_ID.json   rewritten every few seconds while the launch lives: its identity and running trials
    claims/TARGET_ID          the id of the launch that runs the trial

Nothing here decides whether a result is kept: records are written whole and have the same content, whoever writes them.
Claims only avoid duplicate work. Object stores leave a race open (two launches claim at the same moment), which costs one
duplicate training and nothing else. Ages are measured by the store's own clock, because machines' clocks may differ.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sweeper.errors import printable
from sweeper.results.layout import CLAIMS, LAUNCHES
from sweeper.storage import Storage, StorageError

HEARTBEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""A launch on another machine counts as dead if its file is older than this, compared with a file written just now."""
_LOOKS, _PAUSE_BETWEEN_LOOKS_S = 10, 0.5


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running trial, as seen by the launch that runs it."""

    target_id: str
    title: str
    stage: str
    fraction: float
    seconds: float
    node: str = ""
    """Name of the machine it runs on; empty until its worker has reported it."""
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What was measured after its epochs so far, `epoch` itself included; of many epochs, some. Empty before the first one."""


CURVES = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
"""What a curve may have."""
MOST_POINTS = 200
"""A curve of more points loses every second one."""
RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources of a cluster whose use a launch reports; memory in bytes."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a launch does now."""

    running: tuple[Running, ...] = ()
    resources: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """How much of the cluster's resources trials hold, and how much there is."""
    left_s: float | None = None
    """The time until everything has ended, if no other launch helps; None before anything has."""


@dataclass(frozen=True, kw_only=True)
class LaunchInfo(Activity):
    """A launch's description of itself, and what it does."""

    launch_id: str
    process: str
    host: str
    pid: int
    started_at: str

    @property
    def name(self) -> str:
        """A readable name: where the launch runs."""
        return f"process {self.pid} on {self.host}"


@dataclass
class _Process:
    """Identifies processes of one machine, and tells a living process from a later one with the same number."""

    machine: str = field(default_factory=lambda: f"{_text('/proc/sys/kernel/random/boot_id')}:{_pid_namespace()}")

    def identity(self, pid: int) -> str | None:
        """Machine, boot, process number and start time; None if there is no such process."""
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 20 or fields[0] in "ZX":  # the process is gone, or is a zombie
            return None
        return f"{self.machine}:{pid}:{fields[19]}"


class Launch:
    """This process's registration as a launch that works on a results folder."""

    def __init__(self, storage: Storage) -> None:
        self.id = secrets.token_hex(8)
        self._storage = storage
        self._activity: Callable[[], Activity] = Activity
        self._process = _Process()
        self._info = LaunchInfo(
            launch_id=self.id,
            process=self._process.identity(os.getpid()) or f"{socket.gethostname()}:{os.getpid()}:{self.id}",
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.others: tuple[LaunchInfo, ...] = ()
        """The other launches that were alive at the last heartbeat."""
        self.met_others = False
        """Whether another launch was alive at any heartbeat. Only then may trials be done elsewhere."""
        self._claimed: set[str] = set()
        self._dead: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="sweeper-heartbeat", daemon=True)

    def __enter__(self) -> Launch:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._thread.join()
        with contextlib.suppress(StorageError):
            for target_id in sorted(self._claimed):
                self._storage.delete(f"{CLAIMS}/{target_id}")
            self._clear_dead()
            self._storage.delete(f"{LAUNCHES}/{self.id}.json")

    def report(self, activity: Callable[[], Activity]) -> None:
        """Include what it returns in each heartbeat; it is called from another thread."""
        self._activity = activity

    def claim(self, target_id: str) -> Literal["ours", "theirs"]:
        """Claim a trial, unless a living launch has claimed it.

        Raises:
            StorageError: the store cannot be written.
        """
        name = f"{CLAIMS}/{target_id}"
        if target_id not in self._claimed and not self._storage.create(name, self.id.encode()):
            try:
                owner = self._storage.read(name).decode(errors="replace")
            except FileNotFoundError:
                owner = ""
            if owner != self.id and self._is_alive(owner):
                return "theirs"
            self._storage.write(name, self.id.encode())
        self._claimed.add(target_id)
        return "ours"

    def release(self, target_id: str) -> None:
        """Give up one of our own claims.

        Raises:
            StorageError: the store cannot be written.
        """
        if target_id in self._claimed:
            self._storage.delete(f"{CLAIMS}/{target_id}")
            self._claimed.discard(target_id)

    def _clear_dead(self) -> None:
        """Delete the files and claims that killed launches left behind.

        The living launches are listed last, because a launch registers itself before it claims.
        """
        claims: dict[str, str] = {}
        for name in self._storage.entries(CLAIMS):
            with contextlib.suppress(FileNotFoundError):  # released just now
                claims[name] = self._storage.read(f"{CLAIMS}/{name}").decode(errors="replace")
        files = [name for name in self._storage.entries(LAUNCHES) if name.endswith(".json")]
        alive = {each.launch_id for each in living(self._storage)}
        for name, owner in claims.items():
            if owner not in alive:
                self._storage.delete(f"{CLAIMS}/{name}")
        for name in files:
            if name.removesuffix(".json") not in alive:
                self._storage.delete(f"{LAUNCHES}/{name}")

    def _is_alive(self, launch_id: str) -> bool:
        if launch_id in self._dead:
            return False
        if launch_id not in {other.launch_id for other in self.others}:
            self._look_around()
        alive = launch_id in {other.launch_id for other in self.others}
        if not alive:
            self._dead.add(launch_id)
        return alive

    def _beat_on(self) -> None:
        while not self._closing.wait(HEARTBEAT_S):
            with contextlib.suppress(StorageError):  # the next may succeed; trials detect a store that is gone
                self._beat()

    def _beat(self) -> None:
        content = asdict(self._info) | asdict(self._activity())
        self._storage.write(f"{LAUNCHES}/{self.id}.json", json.dumps(content).encode())
        self._look_around()

    def _look_around(self) -> None:
        alive = [each for each in living(self._storage) if each.launch_id != self.id]
        self.others = tuple(alive)
        self.met_others |= bool(alive)
        self._dead -= {each.launch_id for each in alive}  # it was only silent for a while


def check_shared(storage: Storage, launch_id: str) -> None:
    """Check that this machine's results folder is the one the launch writes to, not a folder of its own.

    Raises:
            StorageError: the launch is not registered there.
    """
    for _ in range(_LOOKS):  # a mounted folder may lag behind
        if storage.exists(f"{LAUNCHES}/{launch_id}.json"):
            return
        time.sleep(_PAUSE_BETWEEN_LOOKS_S)
    raise StorageError(
        f"{storage.location} is not the launching machine's: what that machine wrote is not visible here. For --out name a folder that "
        "all nodes mount under the same path, or s3://… or gs://…."
    )


def living(storage: Storage, now: datetime | None = None) -> list[LaunchInfo]:
    """The living launches, from their files. `now` is the store's time; by default the time of the newest launch file.

    Raises:
        StorageError: the store cannot be read.
    """
    entries = {name: entry for name, entry in storage.entries(LAUNCHES).items() if name.endswith(".json")}
    newest = max((entry.modified for entry in entries.values()), default=None)
    now = now or newest
    process = _Process()
    found = []
    for name, entry in sorted(entries.items()):
        try:
            info = _read_info(json.loads(storage.read(f"{LAUNCHES}/{name}")), name.removesuffix(".json"))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue  # it ended just now, or is not a launch's file
        if info.process.startswith(process.machine + ":"):
            alive = process.identity(info.pid) == info.process
        else:
            alive = now is not None and now - entry.modified < timedelta(seconds=DEAD_AFTER_S)
        if alive:
            found.append(info)
    return found


def _read_info(content: dict[str, Any], launch_id: str) -> LaunchInfo:
    """The description in a launch's file. Another machine wrote it, so it is checked."""
    if content["launch_id"] != launch_id:
        raise ValueError("it describes another launch")
    running = tuple(
        Running(
            target_id=_shown(each["target_id"]),
            title=_shown(each["title"]),
            stage=_shown(each["stage"]),
            fraction=_finite(each["fraction"]),
            seconds=_finite(each["seconds"]),
            node=_shown(each.get("node", "")),
            curve=_curve(each.get("curve", {})),
        )
        for each in content["running"]
    )
    texts = {key: _shown(content[key]) for key in ("launch_id", "process", "host", "started_at")}
    used = content.get("resources", {})
    resources = {name: (_finite(used[name][0]), _finite(used[name][1])) for name in RESOURCES if name in used}
    left_s = content.get("left_s")
    return LaunchInfo(
        **texts,
        pid=int(content["pid"]),
        running=running,
        resources=resources,
        left_s=None if left_s is None else _finite(left_s),
    )


def _curve(content: Mapping[str, Any]) -> dict[str, list[float]]:
    """A curve in a launch's file: its known values, all with one value per epoch."""
    found = {name: [_finite(value) for value in content[name]] for name in CURVES if name in content}
    if len(set(map(len, found.values()))) > 1:
        raise ValueError("a curve has values without an epoch")
    return found


def _shown(text: object) -> str:
    """The printable part of a text, of limited length."""
    return printable(text, 300)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("it is not finite")
    return number


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
