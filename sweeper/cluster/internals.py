"""All code that depends on private parts of Ray and Ray Tune, as of Ray 2.60.0.

Each piece says which public behavior it replaces. After upgrading Ray, check this file against the new version.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private.authentication import authentication_token_setup
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]  # generated
from ray.experimental import internal_kv
from ray.job_config import JobConfig
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

EXPECTED_DEATHS = (
    NodeDeathInfo.Reason.Value("EXPECTED_TERMINATION"),
    NodeDeathInfo.Reason.Value("AUTOSCALER_DRAIN_IDLE"),
)
"""Reasons for which a node may leave without being lost: it was stopped, or an autoscaler removed it as idle. `ray.nodes()`
returns the number of the reason, and has no public name for it."""


class DriversPaths(JobConfig):
    """A job whose workers search the working directory for modules only if the driver does.

    By default Ray puts its own working directory first on every worker's path. There is no public option to change that.
    """

    def _runtime_env_has_working_dir(self) -> bool:  # if True, Ray leaves the path unchanged
        return not {"", str(Path.cwd())} & set(sys.path)


class SilentReporter(TrialProgressCallback):
    """Replaces Tune's own reporter by one that prints nothing.

    Tune adds its own reporter unless a callback of this class exists. That one would print and keep every trial's reports.
    """


class ForgetfulScheduler(FIFOScheduler):
    """Runs trials in the order they come, and makes Tune forget each trial that has ended.

    By default Tune keeps all trials until its run ends and scans them at every step, so a sweep's time grows with the square
    of its length. There is no public way to drop a trial.
    """

    def __init__(self, *, keeps_files: bool, decide: Callable[[str, dict[str, Any]], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keeps_files = keeps_files
        self._decide = decide

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ask whether the trial goes on."""
        return self._decide(trial.config["target_id"], result)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: Tune's own state is never restored here."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        its = tune_controller._tune_controller
        ended = {each for each in its._stopped_trials | its._failed_trials if each not in its._trial_to_actor}
        ended -= set(its._trials[-1:])  # if none is left, Tune reads back its own snapshot at the end
        if ended:
            its._trials[:] = [each for each in its._trials if each not in ended]
            for trials in (its._stopped_trials, its._failed_trials, its._live_trials, its._trials_to_cache):
                trials -= ended
            waiting = its._actor_manager._pending_actors_to_enqueued_actor_tasks
            for gone in waiting.keys() - its._actor_manager._pending_actors_to_attrs.keys():
                del waiting[gone]
            for trial in ended:
                its._trial_metadata.pop(trial.trial_id, None)
                if not self._keeps_files:
                    shutil.rmtree(trial.local_path, ignore_errors=True)
        return super().choose_trial_to_run(tune_controller)


def reason_of_loss(trial: Any) -> str:
    """The last line of Ray's error for a lost worker.

    Replaces `Trial.get_error`, which reads a file that is copied to its place only later.
    """
    try:
        lines = Path(trial.local_path, "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except (OSError, TypeError):
        lines = []
    return lines[-1].strip() if lines else "no reason given"


def show_logs_of_nodes(shown: bool) -> None:
    """Set whether this driver prints what nodes publish to every driver, such as the last log lines of a dead raylet.

    `log_to_driver=False` does not suppress these lines.
    """
    ray._private.worker._worker_logs_enabled = shown


def stay_on_loopback(stays: bool) -> None:
    """Set whether a Ray started here listens on 127.0.0.1 only.

    Ray does so if it expects no second node; on Linux it checks only this constant.
    """
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = not stays


def default_folder() -> str:
    """Ray's default folder for its files: `ray` in RAY_TMPDIR, TMPDIR or /tmp."""
    return str(get_default_ray_temp_dir())


def asks_for_token(address: str) -> bool:
    """Whether the cluster at HOST:PORT refuses a client without a token. `ray.init` does not ask before it fails."""
    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        return True
    return False


def use_own_token() -> bool:
    """Use this user's token, as `ray start` does by default; returns False if there is none."""
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it warns even if this is safe
    return bool(authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def autoscaler_is_v2() -> bool:
    """Whether the connected cluster runs version 2 of the autoscaler, which may always start nodes."""
    return bool(is_autoscaler_v2(fetch_from_server=True))


def autoscaler_report() -> dict[str, Any]:
    """The latest report of version 1 of the autoscaler, which `ray status` prints; empty if there is none."""
    status: bytes | None = internal_kv._internal_kv_get(b"__autoscaling_status")
    return json.loads(status or "{}").get("autoscaler_report") or {}
