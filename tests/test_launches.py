"""Launches that share one results folder: which are alive and what they claimed, whatever their clocks say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server, start_s3_server

from sweeper.results import attempts, layout
from sweeper.results.launches import DEAD_AFTER_S, Activity, Launch, Running, living
from sweeper.results.layout import CLAIMS, LAUNCHES
from sweeper.storage import Storage

__all__ = ["start_s3_server"]  # a fixture
ID = "0123456789abcdef"


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path / "out")
    server: S3Server = request.getfixturevalue("s3_server")
    return Storage(server.uri("out"))


def another_machine(storage: Storage, launch_id: str = "fedcba9876543210", **changes: Any) -> str:
    """The file of a launch on another machine; gives its name."""
    content = {"launch_id": launch_id, "process": "elsewhere:1:1:1", "host": "far", "pid": 1}
    content |= {"started_at": "2020-01-01T00:00:00+00:00", "running": []}
    storage.write(f"{LAUNCHES}/{launch_id}.json", json.dumps(content | changes).encode())
    return launch_id


def test_a_claim_keeps_others_away_until_it_is_released(storage: Storage) -> None:
    with Launch(storage) as first, Launch(storage) as second:
        assert first.claim(ID) == "ours"
        assert first.claim(ID) == "ours", "again, after a retry"
        assert second.claim(ID) == "theirs"
        second.release(ID)  # not its own: nothing happens
        assert second.claim(ID) == "theirs"
        first.release(ID)
        assert second.claim(ID) == "ours"
    assert not storage.entries(CLAIMS)
    assert not storage.entries(LAUNCHES)


def test_a_launch_that_ends_gives_up_its_claims(storage: Storage) -> None:
    with Launch(storage) as first:
        first.claim(ID)
    with Launch(storage) as second:
        assert second.claim(ID) == "ours"


def test_the_claim_of_a_process_that_was_killed_is_free_at_once(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "out")
    program = (
        "import os, signal, sys\nfrom sweeper.results.launches import Launch\nfrom sweeper.storage import Storage\n"
        f"launch = Launch(Storage({str(tmp_path / 'out')!r})).__enter__()\nlaunch.claim({ID!r})\n"
        "print('claimed', flush=True)\nsys.stdin.read()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    with Launch(storage) as ours:
        assert ours.claim(ID) == "theirs"
        assert [other.pid for other in ours.others] == [process.pid]
    process.stdin.close()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)  # dead, though its parent has not noticed
    with Launch(storage) as ours:
        assert ours.claim(ID) == "ours"
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("skew_s", [-86400, 0, 86400])
def test_the_age_of_another_machine_s_launch_is_told_by_the_store_s_clock(tmp_path: Path, skew_s: float) -> None:
    storage = Storage(tmp_path / "out")
    other = another_machine(storage)
    storage.write(f"{CLAIMS}/{ID}", other.encode())
    path = tmp_path / "out" / LAUNCHES / f"{other}.json"

    def aged(by_s: float) -> Any:
        """Our launch on a store with a wrong clock, beside a launch whose file is older by the given time."""
        launch = Launch(storage)
        launch._beat()
        ours = tmp_path / "out" / LAUNCHES / f"{launch.id}.json"
        now = ours.stat().st_mtime + skew_s
        os.utime(ours, (now, now))
        os.utime(path, (now - by_s, now - by_s))
        launch._look_around()
        return launch

    assert aged(DEAD_AFTER_S - 5).claim(ID) == "theirs"
    for file in (tmp_path / "out" / LAUNCHES).iterdir():
        if file != path:
            file.unlink()
    assert aged(DEAD_AFTER_S + 5).claim(ID) == "ours"


def test_heartbeats_tell_what_runs(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.results.launches.HEARTBEAT_S", 0.05)
    curve = {"epoch": [1.0, 2.0], "test_loss": [2.5, 2.0]}
    running = Running(target_id=ID, title="dp · digits", stage="epoch 1/2", fraction=0.25, seconds=3.0, curve=curve)
    with Launch(storage) as launch:
        launch.report(lambda: Activity(running=(running,), resources={"CPU": (1.0, 2.0)}, left_s=60.0))
        deadline = time.monotonic() + 20
        while not (found := living(storage))[0].running:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert found[0].running == (running,)
    assert found[0].resources == {"CPU": (1.0, 2.0)}
    assert found[0].left_s == 60
    assert found[0].launch_id == launch.id


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"launch_id": 3}', b"\xff", b"[" * 100_000, b'{"launch_id": "' + ID.encode() + b'"}'],
)
def test_a_damaged_launch_file_is_nobody(tmp_path: Path, content: bytes) -> None:
    storage = Storage(tmp_path / "out")
    storage.write(f"{LAUNCHES}/{ID}.json", content)
    with Launch(storage) as launch:
        assert launch.others == ()
        assert launch.claim(ID) == "ours"
    assert not storage.entries(LAUNCHES), "who ends clears what the dead left"


def test_a_store_that_does_not_answer_for_a_while_ends_no_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper.storage import StorageError

    monkeypatch.setattr("sweeper.results.launches.HEARTBEAT_S", 0.02)
    storage = Storage(tmp_path / "out")
    with Launch(storage) as launch:
        name, write, failed = f"{LAUNCHES}/{launch.id}.json", storage.write, []

        def refuse(*args: Any) -> None:
            failed.append(args)
            raise StorageError("out of reach")

        monkeypatch.setattr(storage, "write", refuse)
        while len(failed) < 3:
            time.sleep(0.01)
        storage.delete(name)
        monkeypatch.setattr(storage, "write", write)
        deadline = time.monotonic() + 20
        while not storage.exists(name):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_starts_are_counted_over_launches_until_the_trial_ends(storage: Storage) -> None:
    assert attempts.count(storage, ID) == 0
    assert [attempts.begin(storage, ID) for _ in range(3)] == [1, 2, 3]
    assert attempts.count(Storage(storage.uri), ID) == 3
    storage.write(f"{layout.ATTEMPTS}/{ID}.json", b"{damaged")
    assert attempts.begin(storage, ID) == 1
    attempts.end(storage, ID)
    attempts.end(storage, ID)
    assert attempts.count(storage, ID) == 0


def test_who_ends_clears_the_claims_of_the_dead_and_leaves_those_of_the_living(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "out")
    dead = another_machine(storage, "dead" * 4)
    path = tmp_path / "out" / LAUNCHES / f"{dead}.json"
    os.utime(path, (path.stat().st_mtime - 2 * DEAD_AFTER_S,) * 2)
    alive = another_machine(storage)
    for target_id, owner in (("a" * 16, dead), ("b" * 16, alive), ("c" * 16, "nobody")):
        storage.write(f"{CLAIMS}/{target_id}", owner.encode())
    with Launch(storage):
        pass
    assert list(storage.entries(CLAIMS)) == ["b" * 16]
    assert list(storage.entries(LAUNCHES)) == [f"{alive}.json"]


def test_what_another_launch_says_in_the_future_is_no_reason_to_live_for_ever(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "out")
    other = another_machine(storage)
    (newest,) = (entry.modified for entry in storage.entries(LAUNCHES).values())
    assert [each.launch_id for each in living(storage)] == [other]
    assert living(storage, now=newest + timedelta(seconds=DEAD_AFTER_S + 1)) == []


def test_a_launch_that_was_silent_for_a_while_has_its_claims_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "out")
    other = another_machine(storage)
    path = tmp_path / "out" / LAUNCHES / f"{other}.json"
    with Launch(storage) as ours:
        os.utime(path, (path.stat().st_mtime - 2 * DEAD_AFTER_S,) * 2)
        storage.write(f"{CLAIMS}/{ID}", other.encode())
        ours._look_around()
        assert ours.claim(ID) == "ours", "it was taken for dead"
        another_machine(storage)
        ours._look_around()
        storage.write(f"{CLAIMS}/{'a' * 16}", other.encode())
        assert ours.claim("a" * 16) == "theirs"
