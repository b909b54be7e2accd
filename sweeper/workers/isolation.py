"""Runs a function in a fresh child process, so that its memory is freed, and a crash or a hang affects only the child.

The child is forked from a server process that has imported PyTorch but has used no GPU. So a start takes a fraction of
a second, while a new interpreter takes many seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

Send = Callable[[Any], None]
"""Passed to the function in the child: sends a picklable message to the parent."""

_PRELOADED = ["sweeper.workers.preloaded"]
_LONGEST_WAIT_S = 86400.0
"""The operating system waits for at most 24 days at a time."""
_LONGEST_FOLDER_OF_A_SOCKET = 70
"""Bytes. A socket's path can have 107 (103 on macOS), of which multiprocessing's folder and name take 32."""
_start_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a child ended: `returned` a value, `raised` (text: the traceback's last line), `died` or `timed_out`."""

    how: Literal["returned", "raised", "died", "timed_out"]
    value: Any = None
    text: str = ""


def run_in_child(
    function: Callable[[Any, Send], Any],
    argument: Any,
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    time_limit_s: float | None = None,
    on_message: Callable[[Any], None] = lambda message: None,
) -> Ending:
    """Call `function(argument, send)` in a child process and wait for its end.

    Both must be picklable, and `function` importable by name. The child's output, and the traceback of a crash, are
    appended to `log`. `environment` is set before the function is called. After `time_limit_s` seconds the child and all
    processes it started are killed. If this process dies, the child dies too.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    lifeline, held = context.Pipe(duplex=False)  # nothing is ever written to it; it breaks when this process ends
    process = context.Process(
        target=_child, args=(theirs, lifeline, function, argument, str(log), dict(environment or {})), daemon=False
    )
    try:
        with _start_lock, _no_main_module(), _safe_path(), _short_temporary_folder():
            process.start()
    except (OSError, EOFError) as error:  # no more processes or memory, or the fork server was killed
        ours.close()
        held.close()
        return Ending(how="died", text=f"its process could not be started: {str(error) or 'the fork server is gone'}")
    finally:
        theirs.close()
        lifeline.close()
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    ending: Ending | None = None
    try:
        while ending is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return Ending(how="timed_out", text=f"it was killed at its time limit of {time_limit_s:g} seconds")
            ready = wait([ours, process.sentinel], None if left is None else min(left, _LONGEST_WAIT_S))
            if ours in ready:
                try:
                    kind, content = ours.recv()
                except EOFError:
                    process.join()
                    ending = Ending(how="died", text=_death(process.exitcode))
                    continue
                if kind == "message":
                    on_message(content)
                else:
                    ending = Ending(how=kind, **content)
            elif ready:  # the child is gone, and all its messages are read
                process.join()
                ending = Ending(how="died", text=_death(process.exitcode))
        return ending
    finally:
        _kill(process)
        ours.close()
        held.close()


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
        reason = " (the system does this when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{reason}"
    return f"its process ended with exit code {exitcode}"


def _kill(process: Any) -> None:
    """Kill the child, if it still runs, and all processes it started; it leads its own process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(10)
    with contextlib.suppress(ValueError):  # it is blocked on a device or a disk, and dies when that answers
        process.close()


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide `__main__`, which the child would import again. A worker's main program is slow to import and not needed."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Make a fork server started here search modules where this process does, not in the working directory first."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextlib.contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Make a fork server started here put its socket into /tmp if the path of TMPDIR is too long for one."""
    before = tempfile.gettempdir()
    if len(os.fsencode(before)) > _LONGEST_FOLDER_OF_A_SOCKET:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


def _child(
    connection: Connection,
    lifeline: Connection,
    function: Any,
    argument: Any,
    log: str,
    environment: dict[str, str],
) -> None:
    os.setsid()
    _die_when_broken(lifeline)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, errors="replace")
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="replace")
    faulthandler.enable(file=sys.stderr)
    try:
        content = {"value": function(argument, lambda message: connection.send(("message", message)))}
        kind = "returned"
    except BaseException as error:  # noqa: BLE001  every error is reported to the parent
        traceback.print_exc()
        kind, content = "raised", {"text": f"{type(error).__name__}: {error}"}
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send((kind, content))
    connection.close()


def _die_when_broken(lifeline: Connection) -> None:
    """Make the kernel end this process when the pipe's other end closes, even during a computation.

    Watching the fork server would not do, because it outlives a killed parent while it has children.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    descriptor = lifeline.fileno()
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([lifeline], 0):
        os._exit(1)  # it broke before the kernel was watching
