"""A child process: its result, how its end is reported, and that nothing of it outlives its parent."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper.workers.isolation import run_in_child

pytestmark = pytest.mark.slow

IMPORTED_FIRST = frozenset(sys.modules)
"""What was imported before this file: in a child, what the fork server had."""


def act(what: str, send: Any) -> Any:
    """What the child does, by name; importable, since the child imports it."""
    send(os.getpid())
    print(f"doing {what}")
    if what == "raise":
        raise ValueError("no good")
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(3)
    if what == "leave a child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        time.sleep(60)
    if what == "hang":
        while True:
            pass
    if what == "environment":
        return {
            "pid": os.getpid(),
            "value": os.environ.get("SWEEPER_TEST"),
            "preloaded": [name for name in ("torch", "opacus", "sweeper.trial.run") if name in IMPORTED_FIRST],
            "main": sys.modules["__main__"].__dict__.get("__file__"),
        }
    return what


def test_values_and_messages_come_back_and_prints_go_to_the_log(tmp_path: Path) -> None:
    messages: list[Any] = []
    log = tmp_path / "log"
    ending = run_in_child(act, "this", log=log, on_message=messages.append)
    assert (ending.how, ending.value) == ("returned", "this")
    assert len(messages) == 1 and messages[0] != os.getpid()
    assert log.read_text() == "doing this\n"


def test_the_child_is_fresh_and_has_the_environment_it_was_given(tmp_path: Path) -> None:
    first, second = (
        run_in_child(act, "environment", log=tmp_path / "log", environment={"SWEEPER_TEST": str(i)}).value
        for i in (1, 2)
    )
    assert first["pid"] != second["pid"]
    assert (first["value"], second["value"]) == ("1", "2")
    assert "SWEEPER_TEST" not in os.environ
    assert first["preloaded"] == ["torch", "opacus", "sweeper.trial.run"], "so that it begins at once"


def test_the_fork_server_starts_whatever_the_working_directory_and_the_temporary_one_are(tmp_path: Path) -> None:
    for name in ("sweeper", "models", "attacks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('of another project')\n")
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from test_isolation import act
        from sweeper.workers.isolation import run_in_child
        print(*run_in_child(act, "environment", log=Path("log")).value["preloaded"])
        """
    )
    temporary = tmp_path / ("a temporary folder whose path is too long for a socket in it" + 40 * "-")
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["torch", "opacus", "sweeper.trial.run"], done.stderr


@pytest.mark.parametrize(
    ("what", "how", "text"),
    [
        ("raise", "raised", "ValueError: no good"),
        ("segfault", "died", "SIGSEGV"),
        ("exit", "died", "exit code 3"),
        ("hang", "timed_out", "time limit of 1 seconds"),
    ],
)
def test_each_end_is_told(what: str, how: str, text: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    ending = run_in_child(act, what, log=log, time_limit_s=1 if what == "hang" else 60)
    assert ending.how == how
    assert text in ending.text
    if what == "raise":
        assert 'raise ValueError("no good")' in log.read_text()
    if what == "segfault":
        assert "Segmentation fault" in log.read_text()
    assert run_in_child(act, "after", log=log).value == "after"


def test_a_child_that_is_killed_takes_its_own_children_along(tmp_path: Path) -> None:
    pids: list[int] = []
    ending = run_in_child(act, "leave a child", log=tmp_path / "log", time_limit_s=1, on_message=pids.append)
    assert ending.how == "timed_out"
    assert _alive_in_group(pids[0]) == []


def _alive_in_group(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def test_a_parent_that_is_killed_takes_a_computing_child_along(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from test_isolation import act
        from sweeper.workers.isolation import run_in_child
        run_in_child(act, "hang", log=Path({str(tmp_path / "log")!r}), on_message=lambda pid: print(pid, flush=True))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _alive_in_group(child) == [child]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _alive_in_group(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("limit", [30 * 86400, 1e300, float("inf")])
def test_a_limit_of_months_is_no_longer_than_the_system_waits(limit: float, tmp_path: Path) -> None:
    assert run_in_child(act, "after", log=tmp_path / "log", time_limit_s=limit).value == "after"


def test_a_child_that_cannot_be_started_is_told_like_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(descriptors: list[int]) -> tuple[int, int]:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.forkserver.connect_to_new_process", exhausted)
    ending = run_in_child(act, "after", log=tmp_path / "log")
    assert ending.how == "died"
    assert ending.text == "its process could not be started: [Errno 11] Resource temporarily unavailable"
