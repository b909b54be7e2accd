"""TensorBoard and MLflow, fed by Tune on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from ray import tune


@dataclass(frozen=True, kw_only=True)
class Loggers:
    """The requested trackers: a folder for TensorBoard, a tracking URI for MLflow."""

    tensorboard: Path | None = None
    mlflow: str | None = None


def tracker(kind: Literal["tensorboard", "mlflow"], uri: str, name: str, warn: Callable[[str], None]) -> tune.Callback:
    if kind == "tensorboard":
        from ray.tune.logger import TBXLoggerCallback

        return _Forgiving(TBXLoggerCallback(), "TensorBoard", warn)
    os.environ.setdefault(
        "MLFLOW_ALLOW_FILE_STORE", "true"
    )  # otherwise MLflow 3 refuses a folder, and only after the start
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # by default it blocks everything for four minutes
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    mlflow = MLflowLoggerCallback(tracking_uri=uri, experiment_name=name)
    parts = urlsplit(uri)
    return _Forgiving(mlflow, "MLflow", warn, secrets=(parts.username, parts.password))


class _Forgiving(tune.Callback):
    """A tracker that may fail without ending anything else: its first error gives a warning, then it is no longer called."""

    def __init__(
        self, tracker: tune.Callback, name: str, warn: Callable[[str], None], secrets: Sequence[str | None] = ()
    ) -> None:
        self._tracker: tune.Callback | None = tracker
        self._name, self._warn, self._secrets = name, warn, secrets

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks

    def _tell(self, what: str, *args: Any, **info: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*args, **info)
        except Exception as error:  # noqa: BLE001  any error of a tracker
            self._tracker = None
            text = f"{type(error).__name__}: {error}"
            for secret in filter(None, self._secrets):
                text = text.replace(secret, "***").replace(unquote(secret), "***")
            self._warn(f"{self._name} failed and gets no further results: {text}")

    setup = partialmethod(_tell, "setup")
    on_step_begin = partialmethod(_tell, "on_step_begin")
    on_step_end = partialmethod(_tell, "on_step_end")
    on_trial_start = partialmethod(_tell, "on_trial_start")
    on_trial_result = partialmethod(_tell, "on_trial_result")
    on_trial_complete = partialmethod(_tell, "on_trial_complete")
    on_trial_error = partialmethod(_tell, "on_trial_error")
    on_experiment_end = partialmethod(_tell, "on_experiment_end")
