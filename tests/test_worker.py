"""One attempt as a worker makes it, in a real child process: its records, its log, its count of attempts, and its failures."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from s3_server import S3Server, start_s3_server

from sweeper.results import attempts, layout
from sweeper.results.gather import gather
from sweeper.results.status import read_status
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.workers import worker
from sweeper.workers.nodes import node_folder
from sweeper.workers.outcomes import Progress
from sweeper.workers.staging import load_staged, stage, staged_name
from sweeper.workers.worker import Settings, attempt_trial, pack

__all__ = ["start_s3_server"]  # a fixture
LAUNCH = "00000000deadbeef"


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def prepared(location: Path | str, trials: list[Trial]) -> Store:
    store = Store(location)
    store.prepare()
    store.write_sweep(load_sweep("demo"), trials)
    return store


def attempt(trial: Trial, store: Store, data_dir: Path = Path("data"), **changes: Any) -> tuple[Any, list[Progress]]:
    progress: list[Progress] = []
    settings = Settings(launch_id=LAUNCH, store=store.storage.uri, data_dir=data_dir, **changes)
    (parcel,) = pack([trial], staged_name)
    return attempt_trial(parcel, settings, cpus=1, gpus=0, on_progress=progress.append), progress


def test_workers_import_no_torch() -> None:
    program = (
        "import sys, sweeper.workers.worker, sweeper.workers.outcomes; "
        "print([name for name in ('torch', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "s3"])
def test_an_attempt_records_reports_and_logs(
    place: str, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[threshold]"]))[0]
    location: Path | str = tmp_path / "out"
    if place == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        location = server.uri("out")
    store = prepared(location, [trial])
    outcome, progress = attempt(trial, store)
    assert outcome.cause is None, outcome
    assert store.status(trial).done
    assert [each.what for each in progress] == ["loading", "epoch 1/2", "epoch 2/2", "threshold", "best_of"]
    assert {"train_loss", "train_accuracy"} <= progress[1].metrics.keys()
    log = store.storage.read(layout.log(trial.target_id)).decode()
    assert log.startswith(f"--- attempt 1 at {trial.target_id} ({trial.title}), ")
    assert "epoch 2/2: train_loss" in log
    assert log.splitlines()[-1] == "--- ended: finished"
    assert attempts.count(store.storage, trial.target_id) == 0, "it has ended, and its row tells the count"
    status = read_status(store)
    assert (status.trials, status.done, status.left, status.launches) == (1, 1, 0, ())


def test_what_is_on_record_is_told_where_a_tracker_wants_it(tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny)))[0]
    store = prepared(tmp_path / "out", [trial])
    outcome, _ = attempt(trial, store, is_tracked=True)
    assert outcome.cause is None, outcome
    row = store.read_part("trials", trial.target_id).to_pylist()[0]
    assert outcome.metrics["test_accuracy"] == row["test_accuracy"]
    aucs = {name: value for name, value in outcome.metrics.items() if name.endswith("/auc")}
    assert {"threshold/loss/auc", "trained_attackers/logistic_regression/auc", "best_of/auc"} <= aucs.keys()
    (threshold,) = [key for key, attack in trial.attack_ids.items() if type(attack).__name__ == "Threshold"]
    rows = store.read_part("attacks", f"{trial.target_id}.{threshold}").to_pylist()
    assert {f"threshold/{each['score_name']}/auc": each["auc"] for each in rows}.items() <= aucs.items()
    assert any(name.startswith("layer_decoder/") and name.endswith("/mse_test") for name in outcome.metrics)
    assert all(isinstance(value, float) for value in outcome.metrics.values())
    assert attempt(trial, store)[0].metrics == {}


def test_attempts_are_counted_into_the_row(tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]", "training.learning_rate=1e30"]))[0]
    store = prepared(tmp_path / "out", [trial])
    for number in (1, 2):
        outcome, _ = attempt(trial, store)
        assert outcome.cause == "diverged"
        row = store.read_part("trials", f"{trial.target_id}.failed").to_pylist()[0]
        assert (row["attempts"], row["cause"]) == (number, "diverged")
    assert "DivergedError" in store.storage.read(layout.log(trial.target_id)).decode()
    assert read_status(store).causes == {"diverged": 1}


def test_a_log_goes_on_on_another_node(tiny: Path, tmp_path: Path, s3_server: S3Server) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]", "training.learning_rate=1e30"]))[0]
    store = prepared(s3_server.uri("out"), [trial])
    attempt(trial, store)
    shutil.copytree(node_folder(LAUNCH), tmp_path / "first node")
    shutil.rmtree(node_folder(LAUNCH))
    attempt(trial, store)  # on a second node
    shutil.rmtree(node_folder(LAUNCH))
    shutil.copytree(tmp_path / "first node", node_folder(LAUNCH), dirs_exist_ok=True)
    attempt(trial, store)  # on the first again
    log = store.storage.read(layout.log(trial.target_id)).decode()
    assert [line.split()[2] for line in log.splitlines() if line.startswith("--- attempt")] == ["1", "2", "3"]


def test_the_log_of_a_running_trial_can_be_read_in_an_object_store(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_COPY_LOG_EVERY_S", 0.05)
    storage, log = Store(s3_server.uri("out")).storage, tmp_path / "log"

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while not (storage.exists("logs/x.log") and storage.read("logs/x.log").decode() == text):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    log.write_text("--- attempt 1\n")
    with worker._mirrored(log, storage, "logs/x.log"):
        wait_for("--- attempt 1\n")
        worker._append(log, "epoch 1\n")
        wait_for("--- attempt 1\nepoch 1\n")
        monkeypatch.setattr(worker, "_COPY_LOG_EVERY_S", 1e6)
        worker._append(log, "--- ended\n")
    assert storage.read("logs/x.log").decode() == "--- attempt 1\nepoch 1\n--- ended\n"


@pytest.mark.parametrize("what", ["a folder", "a link"])
def test_a_log_that_is_no_file_makes_place(what: str, tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]"]))[0]
    store = prepared(tmp_path / "out", [trial])
    log = store.storage.root / layout.log(trial.target_id)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("of somebody")
    log.mkdir() if what == "a folder" else log.symlink_to(elsewhere)
    outcome, _ = attempt(trial, store)
    assert outcome.cause is None, outcome
    assert log.read_text().startswith("--- attempt 1 at ")
    assert elsewhere.read_text() == "of somebody"


@pytest.mark.slow
def test_an_attempt_out_of_time_is_a_failed_row_and_goes_on_from_its_checkpoint(tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]", "training.epochs=400"]))[0]
    store = prepared(tmp_path / "out", [trial])
    attempt(expand(load_sweep(str(tiny), ["attacks=[]"]))[1], store)  # the fork server's start is not in the time limit
    outcome, _ = attempt(trial, store, time_limit_s=0.7, checkpoint_every_s=0.0)
    assert (outcome.cause, store.status(trial).word) == ("time_limit", "failed")
    log = store.storage.read(layout.log(trial.target_id)).decode()
    assert log.splitlines()[-1] == "--- ended: time_limit: it was killed at its time limit of 0.7 seconds"
    outcome, _ = attempt(trial, store)
    assert outcome.cause is None
    assert "resuming after epoch" in store.storage.read(layout.log(trial.target_id)).decode()
    assert store.read_part("trials", trial.target_id).column("attempts").to_pylist() == [2]
    assert store.status(trial).done


def test_a_full_disk_is_the_store_s_failure_and_costs_nothing(
    mount: Callable[[str], Path], tiny: Path, tmp_path: Path
) -> None:
    trials = expand(load_sweep(str(tiny), ["attacks=[threshold]"]))
    disk = mount("size=300k")
    store = prepared(disk / "out", trials)
    first, _ = attempt(trials[0], store)
    causes = {first.cause}
    if first.cause is None:
        outcome, _ = attempt(trials[1], store)
        causes.add(outcome.cause)
    assert "store" in causes
    assert not [path for path in disk.rglob("*") if path.name.endswith(".tmp")]
    done = {trial.target_id for trial in trials if store.status(trial).done}
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    for trial in trials:
        assert attempt(trial, store)[0].cause is None
        assert store.status(trial).done
    for target_id in done:
        assert store.read_part("trials", target_id).column("attempts").to_pylist() == [1], "it was not trained again"
    assert gather(store).damaged == ()


def test_a_staged_dataset_is_the_dataset_and_is_used_in_its_place(tmp_path: Path, tiny: Path) -> None:
    import torch

    trial = expand(load_sweep(str(tiny), ["attacks=[]"]))[0]
    loaded = trial.dataset.load(tmp_path)
    folder = node_folder(LAUNCH)
    assert folder.stat().st_mode & 0o077 == 0, "only its owner may read it"
    assert load_staged(trial.dataset, folder) is None
    stage(trial.dataset, loaded, folder)
    staged = load_staged(trial.dataset, folder)
    assert staged is not None
    assert torch.equal(staged.inputs, loaded.inputs) and torch.equal(staged.labels, loaded.labels)
    assert (staged.example_id == loaded.example_id).all()
    assert (staged.info, staged.sha256) == (loaded.info, loaded.sha256)


def test_a_node_without_the_dataset_trains_on_the_staged_one(tmp_path: Path, tiny: Path) -> None:
    data = tmp_path / "data"
    for part, count in (("train", 60), ("test", 20)):
        for number in range(count):
            path = data / "mine" / part / str(number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28), number, np.uint8)).save(path)
    settings = [
        "datasets=[{name: image_folder, folder: mine}]",
        "attacks=[]",
        "defenses=[none]",
        "training.batch_size=5",
    ]
    (trial,) = expand(load_sweep(str(tiny), settings))
    store = prepared(tmp_path / "out", [trial])
    outcome, _ = attempt(trial, store, data_dir=tmp_path / "nowhere")
    assert outcome.cause == "error" and "was not found" in outcome.error
    stage(trial.dataset, trial.dataset.load(data), node_folder(LAUNCH))
    outcome, _ = attempt(trial, store, data_dir=tmp_path / "nowhere")
    assert outcome.cause is None, outcome
