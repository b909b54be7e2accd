"""How a sweep continues when Ray itself gives up. Tested without starting Ray."""

from __future__ import annotations

import json
import pickle
import secrets
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune

from models.datasets.base import DatasetError
from sweeper.cluster import connection, datasets, internals, resources, trackers, watcher
from sweeper.cluster import run as cluster_run
from sweeper.errors import UserError
from sweeper.results import attempts, launches
from sweeper.results.launches import MOST_POINTS, Launch
from sweeper.results.store import Store
from sweeper.storage import StorageError
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.workers import worker
from sweeper.workers.scheduling import Resources, Retries
from sweeper.workers.worker import Settings


def run(tiny: Path, out: Path, fit: Any, monkeypatch: pytest.MonkeyPatch, **retries: int) -> tuple[Any, ...]:
    monkeypatch.setattr(cluster_run, "run_tune", fit)
    monkeypatch.setattr(cluster_run, "_trainable", lambda *args: None)
    trials, events = expand(load_sweep(str(tiny))), []
    store = Store(out)
    store.prepare()
    with Launch(store.storage) as launch:
        ended = cluster_run.run_units(
            trials,
            store=store,
            launch=launch,
            settings=Settings(launch_id=launch.id, store=str(out), data_dir=out),
            resources=Resources(cpus={None: 1.0}, gpus={None: 0.0}, max_concurrent=2),
            retries=Retries(**retries),
            on_event=events.append,
        )
    return trials, events, ended


def hand_out(feeder: Any, watcher: Any) -> list[Any]:
    """What Tune would ask for, started."""
    started = []
    while isinstance(config := feeder.suggest(str(len(started))), dict):
        started.append(SimpleNamespace(config=config, local_path=None))
        watcher.on_trial_start(0, [], started[-1])
    return started


def finish(watcher: Any, trial: Any, cause: str | None = None, what: str = "") -> None:
    result = {"ended": True, "cause": cause, "what": what, "gpu_memory_peak": None}
    watcher.on_trial_result(0, [], trial, result)


@pytest.mark.slow
def test_a_run_that_ray_gives_up_is_begun_again_without_the_trial_that_brings_it_down(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        both = hand_out(feeder, watcher)
        calls.append([trial.config["target_id"] for trial in both])
        if len(calls) <= 2:
            finish(watcher, both[-1]) if len(both) == 2 else None
            raise RuntimeError("Caught unexpected exception: 1 worker(s) were killed\nmore")

    trials, events, ended = run(tiny, tmp_path / "out", fit, monkeypatch, losses=1)
    first, second = (trial.target_id for trial in trials)
    assert calls == [[first, second], [first]]
    ends = [(event.kind, event.target_id) for event in events if event.kind != "started"]
    assert ends == [("finished", second), ("retried", first), ("failed", first)]
    assert ended.is_over
    store = Store(tmp_path / "out")
    assert store.status(trials[0]).word == "failed"
    (failure,) = store.failures()
    assert (failure.cause, "Ray gave up" in failure.error) == ("worker_lost", True)


def test_an_error_of_ours_is_not_taken_for_rays(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: Any) -> None:
        raise RuntimeError("nothing was running")

    with pytest.raises(RuntimeError, match="nothing was running"):
        run(tiny, tmp_path / "out", fit, monkeypatch)


def test_a_lost_worker_is_no_failure_of_its_trial(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        first, second = hand_out(feeder, watcher)
        watcher.on_trial_error(0, [], first)
        finish(watcher, second, cause="error", what="ValueError: no")
        again = hand_out(feeder, watcher)
        assert [each.config["target_id"] for each in again] == [each.config["target_id"] for each in (first, second)]
        for each in again:
            finish(watcher, each)
        assert feeder.suggest("x") == "FINISHED"

    _, events, ended = run(tiny, tmp_path / "out", fit, monkeypatch, failures=1, losses=1)
    kinds = [event.kind for event in events if event.kind != "started"]
    assert kinds == ["retried", "retried", "finished", "finished"]
    assert ended.is_over
    assert list((tmp_path / "out" / "claims").iterdir()) == []


def test_a_store_that_cannot_be_written_stops_the_launch(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise StorageError("No space left on device.")

    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        monkeypatch.setattr(watcher._store, "prepare", full)
        for _ in range(10):
            for trial in hand_out(feeder, watcher):
                finish(watcher, trial, cause="store", what="No space left on device. Make room there.")

    trials, events, ended = run(tiny, tmp_path / "out", fit, monkeypatch)
    assert (ended.is_over, ended.stopped) == (False, "No space left on device. Make room there.")
    assert len([event for event in events if event.kind == "retried"]) == 4
    statuses = Store(tmp_path / "out").statuses(trials)
    assert {status.word for status in statuses.values()} == {"to do"}


def test_a_node_that_cannot_write_the_store_does_not_stop_the_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        for _ in range(3):
            for trial in hand_out(feeder, watcher):
                finish(watcher, trial, cause="store", what="No space left on device.")
        for trial in hand_out(feeder, watcher):
            finish(watcher, trial)
        feeder.suggest("end")

    _, events, ended = run(tiny, tmp_path / "out", fit, monkeypatch)
    assert [event.kind for event in events if event.kind != "started"] == ["retried"] * 6 + ["finished"] * 2
    assert ended.is_over


def test_a_run_of_tune_that_leaves_trials_behind_was_interrupted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        runs.append(hand_out(feeder, watcher))

    _, _, ended = run(tiny, tmp_path / "out", fit, monkeypatch)
    assert len(runs) == 1
    assert not ended.is_over and ended.stopped is None


@pytest.mark.parametrize("ray_gives_up", [True, False])
def test_an_interrupt_that_was_heard_is_heeded_whatever_tune_does(
    ray_gives_up: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        runs.append(hand_out(feeder, watcher))
        watcher.stopping()
        if ray_gives_up:
            raise RuntimeError("Caught unexpected exception")
        watcher.all_lost("its worker was stopped")
        feeder.is_finished = True

    _, events, ended = run(tiny, tmp_path / "out", fit, monkeypatch)
    assert len(runs) == 1
    assert not ended.is_over
    assert "stopping" in [event.kind for event in events]


def test_what_another_launch_ends_is_told_once_and_not_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    now = [0.0]
    monkeypatch.setattr(cluster_run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Launch, "claim", lambda self, target_id: "theirs")
    settled = ["done", "failed"]

    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        assert hand_out(feeder, watcher) == []
        store = watcher._store
        statuses = {
            target_id: SimpleNamespace(done=word == "done", word=word)
            for target_id, word in zip(watcher._schedule.units, settled, strict=True)
        }
        monkeypatch.setattr(
            store, "statuses", lambda trials: {each.target_id: statuses[each.target_id] for each in trials}
        )
        now[0] += 60
        assert hand_out(feeder, watcher) == []
        assert feeder.suggest("end") == "FINISHED"

    trials, events, ended = run(tiny, out, fit, monkeypatch)
    assert [(event.kind, event.target_id) for event in events] == [("elsewhere", trial.target_id) for trial in trials]
    assert ended.is_over


def test_a_tracker_that_fails_is_left_out_and_ends_nothing() -> None:
    heard: list[str] = []

    class Tracker(tune.Callback):  # type: ignore[misc]
        def setup(self, **info: Any) -> None:
            heard.append("setup")

        def on_trial_result(self, **info: Any) -> None:
            heard.append("result")
            raise ConnectionError("nobody there at https://me:p%40ss@host")

    warnings: list[str] = []
    tracker = trackers._Forgiving(Tracker(), "MLflow", warnings.append, secrets=("me", "p%40ss"))
    tracker.warn = threading.RLock()  # it cannot be pickled, like a terminal's objects, and Tune pickles its callbacks
    pickle.dumps(tracker)
    tracker.setup()
    for _ in range(3):
        tracker.on_trial_result(iteration=0, trials=[], trial=None, result={})
    tracker.on_experiment_end(trials=[])
    assert heard == ["setup", "result"]
    assert warnings == [
        "MLflow failed and gets no further results: ConnectionError: nobody there at https://***:***@host"
    ]


def test_what_runs_is_told_with_its_node_and_trackers_are_given_a_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    names: list[str] = []

    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        first, second = hand_out(feeder, watcher)
        names.extend(trial.config["name"] for trial in (first, second))
        watcher.on_trial_result(0, [], first, {"what": "epoch 1/2", "fraction": 0.25, "hostname": "gpu-7"})
        seen.extend(watcher.activity().running)
        for trial in (first, second):
            finish(watcher, trial)
        feeder.suggest("end")

    trials, _, _ = run(tiny, tmp_path / "out", fit, monkeypatch)
    assert [(each.stage, each.fraction, each.node) for each in seen] == [
        ("epoch 1/2", 0.25, "gpu-7"),
        ("starting", 0.0, ""),
    ]
    assert names == [
        f"{label}_digits_quarters_seed_0_{trial.target_id}"
        for label, trial in zip(("baseline", "dp"), trials, strict=True)
    ]


def test_a_node_that_is_lost_is_told_once_and_one_that_was_stopped_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(name: str, reason: int | None = None) -> dict[str, Any]:
        where = {"NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.7", "NodeID": name}
        return where | ({"Alive": True} if reason is None else {"Alive": False, "DeathReason": reason})

    warnings: list[str] = []
    lost, idle = (
        internals.NodeDeathInfo.Reason.Value(name) for name in ("UNEXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE")
    )
    monkeypatch.setattr(watcher, "_LOOK_AT_NODES_EVERY_S", 0.0)
    noted: list[Any] = []
    monkeypatch.setattr(watcher.ray, "cluster_resources", lambda: {"CPU": 4.0, "node:a": 1.0, "GPU": 2.0})
    monkeypatch.setattr(watcher.ray, "available_resources", lambda: {"CPU": 1.5})
    callback = watcher.Nodes(warnings.append, noted.append)
    first = [node("head"), node("a"), node("b"), node("before", lost)]
    later = [node("head"), node("a", lost), node("b", idle), node("before", lost)]
    for nodes in (first, later, later):
        monkeypatch.setattr(watcher.ray, "nodes", lambda nodes=nodes: nodes)
        callback.on_step_end(0, [])
    assert warnings == ["Node a (10.0.0.7) was lost; its trials continue elsewhere."]
    assert noted == 3 * [{"CPU": (2.5, 4.0), "GPU": (2.0, 2.0)}]


def test_a_curve_has_one_point_per_epoch_and_stays_short() -> None:
    under_way = watcher._UnderWay(began=0.0)
    for epoch in range(1, 1001):
        result = {"epoch": epoch, "train_loss": 1 / epoch, "what": "epoch", "test_accuracy": 0.5, "clip_norm": 1.0}
        under_way = replace(under_way, curve=under_way.measured(result))
        under_way = replace(under_way, curve=under_way.measured(result))  # a later report of the same epoch
        under_way = replace(under_way, curve=under_way.measured({"what": "attack"}))
    curve = under_way.curve
    assert set(curve) == {"epoch", "train_loss", "test_accuracy"}
    assert MOST_POINTS / 2 <= len(curve["epoch"]) <= MOST_POINTS
    assert curve["epoch"][0] == 1 and curve["epoch"][-1] >= 990
    assert all(loss == 1 / epoch for epoch, loss in zip(curve["epoch"], curve["train_loss"], strict=True))
    for damaged in ({"epoch": 1001, "train_loss": float("nan")}, {"epoch": 1001}):
        assert under_way.measured(damaged) == curve


def test_mlflow_is_told_of_runs_by_name_and_of_what_attacks_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow").tracking
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    warnings: list[str] = []
    uri = f"file:{tmp_path}"
    tracker = trackers.tracker("mlflow", uri, "study", warnings.append)

    class Trial(SimpleNamespace):
        def __str__(self) -> str:
            return "dp_digits_half_seed_0_0123456789abcdef"

        def __hash__(self) -> int:
            return 0

    trial = Trial(config={"target_id": "0" * 16, "defense": "dp"})
    tracker.setup()
    tracker.on_trial_start(0, [], trial)
    result = {"training_iteration": 3, "threshold/loss/auc": 0.625, "test_accuracy": 0.75}
    tracker.on_trial_result(0, [], trial, result)
    tracker.on_trial_complete(0, [], trial)
    assert warnings == []
    client = tracking.MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'study'")
    (told,) = client.search_runs([experiment.experiment_id])
    assert told.info.run_name == str(trial)
    assert told.data.metrics["threshold/loss/auc"] == 0.625
    assert told.data.params["defense"] == "dp"


def test_a_dataset_that_breaks_while_it_is_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise DatasetError("scans/train/a/7.png is no image.")

    monkeypatch.setattr(datasets, "stage_here", broken)
    settings = Settings(launch_id="0" * 16, store=str(tmp_path), data_dir=tmp_path)
    trials = expand(load_sweep("demo"))[:1]
    with pytest.raises(UserError, match="is no image"):
        datasets.stage_datasets(trials, settings, is_cluster=False)


def test_workers_that_cannot_begin_stop_the_launch(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(function: Any, feeder: Any, watcher: Any, *others: Any) -> None:
        while not feeder.is_finished:
            for trial in hand_out(feeder, watcher):
                watcher.on_trial_error(0, [], trial)

    _, events, ended = run(tiny, tmp_path / "out", fit, monkeypatch, losses=10**6)
    assert not ended.is_over
    assert ended.stopped == "workers end before they start work: no reason given"
    assert len([event for event in events if event.kind == "retried"]) < 50


@pytest.mark.parametrize("address", ["nowhere", "host:port", "127.0.0.1"])
def test_an_address_that_is_none_is_explained(address: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"), connection.connect(address, verbose=False):
        pass


def test_a_private_ray_takes_a_folder_that_is_short_enough_for_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/short")
    assert connection._folder_for_sockets() is None
    monkeypatch.setenv("TMPDIR", "/" + 60 * "x")
    assert connection._folder_for_sockets() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/" + 60 * "y")
    with pytest.raises(UserError, match=r"RAY_TMPDIR is /y+, whose path is too long"):
        connection._folder_for_sockets()


@pytest.mark.parametrize(
    ("kinds", "may_grow"),
    [
        ({"fa50bbc7": "node_fa50bbc7", "0d1e2f3a": "node_0d1e2f3a"}, False),
        ({"10.0.0.7": "head"}, True),
        ({"10.0.0.7": "head", "10.0.0.8": "gpu"}, True),
        (None, False),
    ],
    ids=["by hand", "head", "head and worker", "not known yet"],
)
def test_only_a_cluster_whose_kinds_of_nodes_were_named_may_grow(
    kinds: dict[str, str] | None, may_grow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"monitor_pid": 1} | ({"autoscaler_report": {"node_type_mapping": kinds}} if kinds else {})
    monkeypatch.setattr(internals.internal_kv, "_internal_kv_get", lambda key: json.dumps(report).encode())
    monkeypatch.setattr(internals, "is_autoscaler_v2", lambda fetch_from_server: False)
    assert resources.can_grow() is may_grow


@pytest.mark.parametrize(("nodes", "may_grow"), [(2, True), (3, False)])
def test_a_cluster_of_all_the_machines_there_are_does_not_grow(
    nodes: int, may_grow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    kinds = "{head: {resources: {}, max_workers: 0}, machine: {resources: {}, max_workers: 2}}"
    (tmp_path / "ray_bootstrap_config.yaml").write_text(f"max_workers: 2\navailable_node_types: {kinds}\n")
    monkeypatch.setattr(resources, "_node_resources", lambda: [{"CPU": 4.0}] * nodes)
    monkeypatch.setattr(internals, "is_autoscaler_v2", lambda fetch_from_server: True)
    assert resources.can_grow() is may_grow
    request = Resources(gpus={None: 8.0}), expand(load_sweep("demo"))[:1]
    if may_grow:
        warnings: list[str] = []
        resources.resolve(*request, warn=warnings.append)
        assert "waiting for the autoscaler" in warnings[0]
    else:
        with pytest.raises(UserError, match="No node can run a trial"):
            resources.resolve(*request)


def test_cpus_follow_the_share_of_a_gpu_that_each_architecture_asks_for(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = expand(load_sweep(str(tiny), ["architectures=[lin_cnn, lin_lstm, lomurno_cnn]", "attacks=[]"]))
    monkeypatch.setattr(resources, "_node_resources", lambda: [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}])
    monkeypatch.setattr(resources, "can_grow", lambda: False)

    def cpus(asked: Resources) -> dict[str, float]:
        found = resources.resolve(asked, trials)
        return {trial.architecture_label: found.cpus_of(trial) for trial in trials}

    shares: dict[str | None, Any] = {"lin_lstm": 0.25, "lomurno_cnn": 0.0}
    assert cpus(Resources(gpus=shares)) == {"lin_cnn": 8.0, "lin_lstm": 2.0, "lomurno_cnn": 1.0}
    assert cpus(Resources(gpus=shares, cpus={"lin_lstm": 3.0})) == {"lin_cnn": 8.0, "lin_lstm": 3.0, "lomurno_cnn": 1.0}
    assert set(cpus(Resources(gpus=shares, cpus={None: 2.0})).values()) == {2.0}


def test_a_folder_that_is_not_the_launching_machines_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_PAUSE_BETWEEN_LOOKS_S", 0.0)
    there, here = Store(tmp_path / "there"), Store(tmp_path / "here")
    there.prepare()
    here.prepare()
    with Launch(there.storage) as launch:
        launches.check_shared(there.storage, launch.id)
        with pytest.raises(StorageError, match="is not the launching machine's"):
            launches.check_shared(here.storage, launch.id)


@pytest.mark.parametrize(
    ("declared", "usable", "pretend", "is_told"),
    [(2, 0, False, True), (2, 1, False, True), (2, 2, False, False), (0, 0, False, False), (2, 0, True, False)],
)
def test_gpus_that_pytorch_cannot_use_are_told(
    declared: int, usable: int, pretend: bool, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(worker.PRETEND_GPUS, raising=False)
    if pretend:
        monkeypatch.setenv(worker.PRETEND_GPUS, "1")
    monkeypatch.setattr(worker.subprocess, "run", lambda *args, **more: SimpleNamespace(stdout=f"{usable}\n".encode()))
    monkeypatch.setattr(resources, "_node_resources", lambda: [{"CPU": 2.0, "GPU": float(declared)}])
    trials = expand(load_sweep("demo"))[:1]
    launch_id = secrets.token_hex(8)
    settings = Settings(launch_id=launch_id, store=str(tmp_path), data_dir=tmp_path)
    try:
        if is_told:
            with pytest.raises(UserError, match=f"declares {declared} GPUs on .*, but PyTorch can use {usable}"):
                datasets.stage_datasets(trials, settings, is_cluster=False, uses_gpus=True)
        datasets.stage_datasets(trials, settings, is_cluster=False, uses_gpus=not is_told)
    finally:
        datasets.clear_staged(launch_id, is_cluster=False)


def test_what_was_cut_short_in_another_launch_is_no_end(tiny: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.prepare()
    failed, again, never = "1" * 16, "2" * 16, "3" * 16
    for target_id in (failed, again):
        attempts.begin(store.storage, target_id)
        store.storage.write(f"parts/trials/{target_id}.failed.parquet", b"a failure")
    attempts.begin(store.storage, again)
    assert store.cut_short([failed, again, never]) == {again}
    assert store.cut_short([]) == set()


@pytest.mark.parametrize("has_token", [True, False])
def test_a_cluster_that_asks_for_a_token_is_given_the_users(has_token: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def client(address: str) -> None:
        asked.append(address)
        raise ray.exceptions.AuthenticationError("InvalidAuthToken")

    def enable(warn_if_disabled: bool) -> bool:
        return has_token

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(internals, "GcsClient", client)
    monkeypatch.setattr(internals.authentication_token_setup, "maybe_enable_token_auth_if_token_available", enable)
    if has_token:
        connection._bring_token("10.0.0.7:6379")
    else:
        with pytest.raises(UserError, match=r"10\.0\.0\.7:6379 asks for a token, and there is none here"):
            connection._bring_token("10.0.0.7:6379")
    assert asked == ["10.0.0.7:6379"]
    connection._bring_token("auto")  # Ray sees to that itself
    assert len(asked) == 1


@pytest.mark.ray
def test_one_process_may_connect_again() -> None:
    for _ in range(2):
        with connection.connect(None, verbose=False):
            assert ray.is_initialized()
