"""The connection to Ray: a private one on this machine, or a running cluster."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

import analysis
import attacks
import models
import sweeper
from sweeper import imports
from sweeper.cluster import internals
from sweeper.errors import UserError, reason_of, sentence
from sweeper.workers.allocator import ALLOCATOR_ENVIRONMENT

_LONGEST_RAY_FOLDER = 103 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.0")
"""Maximum length in bytes of Ray's folder; a socket's path can have 103 on macOS, 107 on Linux."""


@contextlib.contextmanager
def connect(address: str | None, verbose: bool) -> Iterator[None]:
    """Connect to Ray for the duration of the block: a private Ray on this machine, or the cluster at `address`.

    A private Ray listens on the loopback interface only.

    Raises:
        UserError: there is no cluster at `address`.
    """
    quiet: dict[str, Any] = {} if verbose else {"logging_level": "ERROR", "log_to_driver": False}
    own_folder = str(Path(sweeper.__path__[0]).parent)
    ray.cloudpickle.register_pickle_by_value(imports)
    runtime_env: dict[str, Any] = {
        "env_vars": dict(ALLOCATOR_ENVIRONMENT),  # Ray adds to it
        "worker_process_setup_hook": imports.worker_hook(own_folder if address is None else None),
    }
    internals.show_logs_of_nodes(verbose)
    internals.stay_on_loopback(address is None)
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                runtime_env=runtime_env,
                job_config=internals.DriversPaths(),
                _temp_dir=_folder_for_sockets(),
                **quiet,
            )
        else:
            _check_reachable(address)
            _bring_token(address)
            packages = (sweeper, models, attacks, analysis)
            runtime_env["py_modules"] = [str(Path(package.__path__[0])) for package in packages]
            ray.init(address=address, runtime_env=runtime_env, job_config=internals.DriversPaths(), **quiet)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  if its start times out, Ray raises a plain Exception
        raise UserError(
            f"Ray could not be reached{f' at {address}' if address else ''}: {sentence(reason_of(error).splitlines()[0])} "
            "Give --address HOST:PORT of a running cluster that includes this machine (`ray start --head` prints it; a cluster with "
            "tokens needs its token in ~/.ray/auth_token or RAY_AUTH_TOKEN), or --local for this machine alone."
        ) from None
    _protect_token()
    try:
        yield
    finally:
        ray.shutdown()


def _folder_for_sockets() -> str | None:
    """The folder for a private Ray's files. None is Ray's own choice, unless its socket paths would be too long.

    Raises:
        UserError: the user chose a folder that is too long.
    """
    folder = internals.default_folder()
    if len(os.fsencode(folder)) <= _LONGEST_RAY_FOLDER:
        return None
    if "RAY_TMPDIR" in os.environ:
        raise UserError(
            f"RAY_TMPDIR is {os.environ['RAY_TMPDIR']}, whose path is too long for Ray's sockets. Set it to a folder whose path has at "
            f"most {_LONGEST_RAY_FOLDER - len('/ray')} bytes, or leave it out."
        )
    return "/tmp/ray"  # Ray's default if TMPDIR is unset


def _check_reachable(address: str) -> None:
    """Try to connect to the address first, because Ray keeps trying for ten minutes.

    Raises:
            OSError: nothing answers there within ten seconds.
        ValueError: it is not HOST:PORT.
    """
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "//" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError(f"'{address}' is not HOST:PORT.")
    socket.create_connection((parts.hostname, parts.port), timeout=10).close()


def _bring_token(address: str) -> None:
    """Use this user's token if the cluster asks for one. `ray start` does this itself; Ray does not when joining by address.

    Raises:
        UserError: the cluster asks for a token, and there is none.
    """
    if address == "auto" or "RAY_AUTH_MODE" in os.environ:
        return
    with _silence():
        is_asked = internals.asks_for_token(address.rpartition("//")[2])
    if is_asked and not internals.use_own_token():
        raise UserError(
            f"The cluster at {address} asks for a token, and there is none here. Copy ~/.ray/auth_token from its head "
            "to the same place here, or set RAY_AUTH_TOKEN."
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard what C++ code writes to standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _protect_token() -> None:
    """Make Ray's authentication token readable by its owner only; Ray writes it readable by all."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
