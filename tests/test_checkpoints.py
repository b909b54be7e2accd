"""A training interrupted at any epoch, its checkpoint written to the store and read back, ends as if never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from models.train import Recipe
from sweeper.results import checkpoints
from sweeper.results.checkpoints import CheckpointError, from_bytes
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.trial import provenance
from sweeper.trial import run as trial_run
from sweeper.trial import target as trial_target
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial
from sweeper.workers.outcomes import Progress

CPU = torch.device("cpu")
TIMES = ("load_time_s", "first_step_time_s", "train_time_s", "seconds_per_step", "started_at", "attempts")


class Killed(BaseException):
    """Stands for a SIGKILL: no handler of ours catches it."""


def run(trial: Trial, store: Store, after: int | None = None, **settings: Any) -> Any:
    """Run a trial, killed after an epoch where one is given."""

    def watch(progress: Progress) -> None:
        if after is not None and progress.what.startswith(f"epoch {after}/"):
            raise Killed

    settings = {"checkpoint_every_s": 0.0, "raise_errors": True} | settings
    return run_trial(trial, TrialContext(data_dir=Path(), store=store, device=CPU, on_progress=watch, **settings))


def prepared(folder: Path) -> Store:
    store = Store(folder)
    store.prepare()
    return store


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "adadelta"])
@pytest.mark.parametrize("defense", ["dropout", "{name: dp_sgd, epsilon: 4, accountant: rdp}", "quantile_clipping"])
def test_killed_and_resumed_is_bitwise_as_undisturbed(
    tiny: Path, tmp_path: Path, optimizer: str, defense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    momentum = ["training.momentum=0.9"] if optimizer == "sgd" else []
    settings = [f"training.optimizer={optimizer}", "training.learning_rate=0.01", "training.epochs=4", *momentum]
    (trial,) = expand(load_sweep(str(tiny), [*settings, f"defenses={{one: {defense}}}", "attacks=[]"]))
    whole, cut = prepared(tmp_path / "whole"), prepared(tmp_path / "cut")
    run(trial, whole, checkpoint_every_s=1e9)
    for after in (1, 3):
        with pytest.raises(Killed):
            run(trial, cut, after)
        assert cut.read_checkpoint(trial.target_id) is not None
    trained: list[int] = []
    original = Recipe.train
    monkeypatch.setattr(
        Recipe, "train", lambda recipe: (trained.append(len(recipe.resume.history)), original(recipe))[1]
    )
    run(trial, cut)
    assert trained == [3]
    assert cut.read_weights(trial.target_id) == whole.read_weights(trial.target_id)
    for table in ("trials", "history", "outputs"):
        first, second = (store.read_part(table, trial.target_id) for store in (whole, cut))
        kept = [name for name in first.column_names if name not in TIMES]
        assert first.select(kept).equals(second.select(kept)), table
    assert cut.read_checkpoint(trial.target_id) is None, "a recorded target needs none"


def test_short_trainings_leave_no_checkpoint(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(Store, "write_checkpoint", lambda self, target_id, content: written.append(target_id))
    trial = expand(load_sweep(str(tiny), ["attacks=[]"]))[0]
    run(trial, prepared(tmp_path), checkpoint_every_s=60.0)
    assert written == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-5],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content.replace(b'"history', b'"hiztory'),
        lambda content: content.replace(b"dataset_sha256", b"dataset_sha255"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_not_used(tiny: Path, tmp_path: Path, damage: Any) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]"]))[0]
    store = prepared(tmp_path)
    with pytest.raises(Killed):
        run(trial, store, after=1)
    content = store.read_checkpoint(trial.target_id)
    assert content is not None
    owner = {"target_id": trial.target_id}
    with pytest.raises(CheckpointError):
        from_bytes(damage(content), owner, CPU)
    store.write_checkpoint(trial.target_id, damage(content))
    assert run(trial, store).status == "finished"
    history = pq.read_table(store.storage.root / "parts" / "history" / f"{trial.target_id}.parquet")
    assert history.num_rows == trial.training.epochs


def test_a_checkpoint_of_other_code_is_not_used(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]"]))[0]
    store = prepared(tmp_path)
    with pytest.raises(Killed):
        run(trial, store, after=1)
    monkeypatch.setattr(provenance, "training_code", lambda sources: "of tomorrow")
    assert run(trial, store).status == "finished"
    assert "the checkpoint is not used: it was made by another version of the code" in caplog.text


def test_a_target_that_another_process_has_recorded_meanwhile_is_left_as_it_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[threshold]"]))[0]
    store = prepared(tmp_path)
    written: list[str] = []
    write_target, outputs = Store.write_target, trial_target.outputs_of

    def count(self: Store, target_id: str, *content: Any) -> None:
        written.append(target_id)
        write_target(self, target_id, *content)

    def meanwhile(*content: Any) -> Any:
        monkeypatch.setattr(trial_run, "outputs_of", outputs)
        assert run(trial, store).status == "finished"
        return outputs(*content)

    monkeypatch.setattr(Store, "write_target", count)
    monkeypatch.setattr(trial_run, "outputs_of", meanwhile)
    assert run(trial, store).status == "finished"
    assert written == [trial.target_id]


def test_nothing_in_a_checkpoint_is_a_pickle(tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny), ["attacks=[]", "training.optimizer=adam"]))[0]
    store = prepared(tmp_path)
    with pytest.raises(Killed):
        run(trial, store, after=1)
    content = store.read_checkpoint(trial.target_id)
    assert content is not None
    assert set(checkpoints.metadata_of(content)) == {"format", "owner", "sha256", "training"}
    assert "import pickle" not in Path(checkpoints.__file__).read_text(encoding="utf-8")
