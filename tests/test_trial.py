"""One trial from configuration to records, in this process: what it writes, what it never does twice."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from attacks.base import AttackTarget
from attacks.inversion.layer_decoder import LayerDecoder
from attacks.membership.threshold import Threshold
from models import train
from models.train import Recipe
from sweeper.errors import UserError
from sweeper.results.expected import recorded_attacks
from sweeper.results.gather import gather
from sweeper.results.launches import Launch
from sweeper.results.schema import SCHEMAS
from sweeper.results.status import read_status
from sweeper.results.store import DamagedError, Store
from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.preflight import resolve_trials
from sweeper.sweep.trial import Trial
from sweeper.trial import attack as trial_attack
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import record_failure
from sweeper.trial.run import run_trial

TIMES = ["load_time_s", "first_step_time_s", "train_time_s", "seconds_per_step", "started_at", "attack_time_s"]


def run(sweep_path: Path, out: Path, *overrides: str, only: int | None = None) -> tuple[Store, list[Trial], list[Any]]:
    """Run a sweep's trials in this process and gather them."""
    sweep = load_sweep(str(sweep_path), overrides)
    trials = expand(sweep)[:only]
    store = Store(out)
    store.prepare()
    store.write_sweep(sweep, expand(sweep))
    results = [
        run_trial(trial, TrialContext(data_dir=out, store=store, device=torch.device("cpu"), raise_errors=False))
        for trial in trials
    ]
    gather(store)
    return store, trials, results


def table(store: Store, name: str) -> pd.DataFrame:
    return pq.read_table(store.storage.root / f"{name}.parquet").to_pandas()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Trial], Path]:
    """The tiny sweep, run once for all tests that only look."""
    from conftest import TINY

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    store, trials, results = run(path, folder / "out")
    assert [result.status for result in results] == ["finished", "finished"], results
    return store, trials, path


def test_every_table_has_the_declared_schema_and_other_readers_agree(finished: Any) -> None:
    import duckdb

    store, _, _ = finished
    for name, schema in SCHEMAS.items():
        path = store.storage.root / f"{name}.parquet"
        read = pq.read_table(path)
        assert read.schema.equals(schema), name
        assert all(field.metadata[b"description"] for field in read.schema)
        assert len(pd.read_parquet(path)) == read.num_rows == duckdb.sql(f"select * from '{path}'").shape[0]
        assert read.num_rows > 0 or name in ("comparisons", "tpvd", "cohorts", "exposure")  # which need more targets


def test_the_row_of_a_target_is_complete_and_true(finished: Any) -> None:
    store, trials, _ = finished
    rows = table(store, "trials").set_index("defense")
    assert list(rows["status"]) == ["finished", "finished"]
    assert list(rows["target_id"]) == [trial.target_id for trial in trials]
    assert set(rows["n_train"]) == {100}
    assert set(rows["steps"]) == {8}
    baseline, private = rows.loc["baseline"], rows.loc["dp"]
    assert pd.isna(baseline["epsilon_spent"])
    assert "no differentially private mechanism" in baseline["no_guarantee_reason"]
    assert private["sampling"] == "poisson"
    assert private["sample_rate"] == 0.25
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(1.0, 0.25, 8)]
    assert private["epsilon_spent"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert private["epsilon_gdp"] < private["epsilon_spent"]
    assert pd.isna(private["no_guarantee_reason"])
    assert rows[["test_accuracy", "dataset_sha256", "torch_version", "threads", "config"]].notna().all(axis=None)


def test_accuracy_can_be_computed_again_from_outputs_and_weights(finished: Any) -> None:
    store, trials, _ = finished
    outputs = table(store, "outputs")
    for trial, (_, row) in zip(trials, table(store, "trials").iterrows(), strict=True):
        own = outputs[outputs["target_id"] == trial.target_id]
        right = np.stack(own["logits"].to_list()).argmax(1) == own["label"]
        assert right[own["role"] == "member"].mean() == pytest.approx(row["train_accuracy"])
        assert right[own["role"] == "test"].mean() == pytest.approx(row["test_accuracy"])
        assert dict(own["role"].value_counts()) == dict.fromkeys(
            ["member", "non_member", "shadow_in", "shadow_out", "test"], 100
        )
        weights = load_file(store.storage.root / "weights" / f"{trial.target_id}.safetensors")
        assert sum(value.size for name, value in weights.items() if name.startswith("stages.prediction")) == 1290


def test_metrics_can_be_computed_again_from_scores(finished: Any) -> None:
    from sklearn.metrics import roc_auc_score

    store, _, _ = finished
    scores, attacks = table(store, "scores"), table(store, "attacks")
    membership = attacks[(attacks["family"] == "membership") & (attacks["attack"] != "best_of")]
    assert len(membership) == 12
    for _, row in membership.iterrows():
        own = scores[(scores["target_id"] == row["target_id"]) & (scores["attack_id"] == row["attack_id"])]
        own = own[own["score_name"] == row["score_name"]]
        assert row["auc"] == pytest.approx(roc_auc_score(own["is_member"], own["score"]))
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert pd.isna(row["tpr_at_fpr_0.01"])  # 100 non-members are too few for 1 %
    best = attacks[attacks["attack"] == "best_of"]
    assert len(best) == 2
    for _, row in best.iterrows():
        own = membership[membership["target_id"] == row["target_id"]]
        assert row["paper_protocol_auc"] == pytest.approx(own["auc"].max())
        assert len(row["candidates"]) == 6
        assert row["score_name"] in row["candidates"]
        assert row["n_members"] == 100
        assert len(row["selected_scores"]) == 2
        assert set(row["selected_scores"]) <= set(row["candidates"])
        assert row["selected_scores"][0] == row["score_name"]
    trained = attacks[attacks["attack"] == "trained_attackers"]
    assert trained["uses_target_membership_labels"].all()
    assert (membership["advantage_null"] > 0.1).all()
    assert (membership["tpr_at_fpr_0.1_low"] <= membership["tpr_at_fpr_0.1"]).all()
    assert (membership["tpr_at_fpr_0.1"] <= membership["tpr_at_fpr_0.1_high"]).all()


def test_only_attackers_that_were_fitted_on_labels_have_folds(finished: Any) -> None:
    store, _, _ = finished
    scores = table(store, "scores").merge(
        table(store, "attacks")[["target_id", "attack_id", "score_name", "attack"]],
        on=["target_id", "attack_id", "score_name"],
    )
    fitted = scores["attack"] == "trained_attackers"
    assert fitted.any()
    for column in ("fold", "selection_score"):
        assert (scores[column].notna() == fitted).all()
    for _, own in scores[fitted].groupby("target_id"):
        assert dict(own.groupby(["is_member", "fold"]).size()) == {(m, f): 50 for m in (False, True) for f in (0, 1)}


def test_reconstructions_have_all_layers_controls_and_images(finished: Any) -> None:
    import io

    from PIL import Image

    store, _, _ = finished
    rows = table(store, "reconstructions")
    layers = ["conv1", "maxpool1", "conv2", "maxpool2", "conv3", "maxpool3", "dense", "prediction"]
    for _, own in rows.groupby("target_id"):
        assert list(own["layer"]) == layers
        assert own["mse_gap"].to_numpy() == pytest.approx((own["mse_non_members"] - own["mse_members"]).to_numpy())
        assert own["mse_untrained"].notna().all()
    ids = {tuple(example["example_id"] for example in examples) for examples in rows["examples"]}
    assert len(ids) == 1, "every defense and layer must show the same examples"
    image = Image.open(io.BytesIO(rows["examples"].iloc[0][0]["reconstruction_png"]))
    assert image.size == (8, 8)


@pytest.mark.slow
def test_same_trial_twice_gives_the_same_parquet_but_for_times(finished: Any, tmp_path: Path) -> None:
    store, _, path = finished
    again, _, _ = run(path, tmp_path / "again")
    for name in SCHEMAS:
        first, second = (pq.read_table(each.storage.root / f"{name}.parquet") for each in (store, again))
        kept = [column for column in first.column_names if column not in TIMES]
        assert first.select(kept).equals(second.select(kept)), name


def test_what_is_recorded_is_not_done_again(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, trials, path = finished

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained or attacked again")

    monkeypatch.setattr(Recipe, "train", refuse)
    monkeypatch.setattr(Threshold, "run", refuse)
    _, _, results = run(path, store.storage.root)
    assert [(result.status, result.trained, result.attacks_run) for result in results] == [("finished", False, 0)] * 2
    assert all(status.done for status in store.statuses(trials).values())


def test_adding_an_attack_trains_nothing_and_compares_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(tiny, out, "attacks=[threshold]", only=1)
    monkeypatch.setattr(Recipe, "train", None)
    overrides = "attacks=[threshold, {name: trained_attackers, attackers: [knn], search: none}]"
    store, trials, (result,) = run(tiny, out, overrides, only=1)
    assert (result.status, result.trained, result.attacks_run) == ("finished", False, 1)
    attacks = table(store, "attacks")
    (best,) = attacks[attacks["attack"] == "best_of"].to_dict("records")
    assert len(best["candidates"]) == 5
    assert store.statuses(trials)[trials[0].target_id].done


def test_a_lost_comparison_is_made_again(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    two = "attacks=[threshold, {name: trained_attackers, attackers: [knn], search: none}]"
    run(tiny, out, two, only=1)
    store, trials, _ = run(tiny, out, "attacks=[threshold]", only=1)  # one attack fewer: another comparison
    assert list(table(store, "attacks")["attack"]).count("best_of") == 1
    (best_of,) = [
        path for path in (out / "parts" / "attacks").iterdir() if path.stem.split(".")[1] == trials_best_of(trials)
    ]
    best_of.unlink()  # as after a kill just before it was written
    assert store.statuses(trials)[trials[0].target_id].word == "partial"
    store, _, (result,) = run(tiny, out, "attacks=[threshold]", only=1)
    assert (result.status, result.trained, result.attacks_run) == ("finished", False, 0)
    assert best_of.exists()


def trials_best_of(trials: list[Trial]) -> str:
    return recorded_attacks(trials[0])[-1]


def test_a_target_is_not_attacked_with_other_data_than_it_was_trained_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.datasets.digits import Digits

    out = tmp_path / "out"
    run(tiny, out, "attacks=[threshold]", only=1)
    original = Digits.open

    def changed(self: Digits, data_dir: Path, download: bool) -> Any:
        train_part, test_part = original(self, data_dir, download)
        return type(train_part)(labels=train_part.labels, read=lambda index: 255 - train_part.read(index)), test_part

    monkeypatch.setattr(Digits, "open", changed)
    overrides = "attacks=[threshold, {name: trained_attackers, attackers: [knn], search: none}]"
    store, _, (result,) = run(tiny, out, overrides, only=1)
    assert result.status == "failed"
    attacks = table(store, "attacks").set_index("attack")
    assert "have changed since the target was trained" in attacks.loc["trained_attackers", "error"]
    assert table(store, "trials")["status"].iloc[0] == "finished"


def test_targets_of_an_earlier_version_are_kept_but_not_gathered(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny, out, "attacks=[threshold]", only=1)
    store, trials, _ = run(tiny, out, "attacks=[threshold]", "training.epochs=1", only=1)
    assert list(table(store, "trials")["target_id"]) == [trials[0].target_id]
    assert len(list((out / "parts" / "trials").iterdir())) == 2
    assert gather(store).left_out == 1


def test_a_failed_training_is_a_row_and_is_done_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(train.PlainGradient, "step", lambda self, images, labels: 1 / 0)
        store, trials, results = run(tiny, out, "attacks=[threshold]")
    assert [result.status for result in results] == ["failed", "finished"]
    row = table(store, "trials").set_index("defense").loc["baseline"]
    assert row["status"] == "failed"
    assert "ZeroDivisionError: division by zero" in row["error"]
    assert pd.isna(row["test_accuracy"])
    assert store.statuses(trials)[trials[0].target_id].word == "failed"
    store, _, results = run(tiny, out, "attacks=[threshold]")
    assert [result.status for result in results] == ["finished", "finished"]
    assert set(table(store, "trials")["status"]) == {"finished"}


def test_a_diverged_training_says_so(tiny: Path, tmp_path: Path) -> None:
    store, _, (result,) = run(tiny, tmp_path / "out", "training.learning_rate=1e30", "attacks=[]", only=1)
    assert result.status == "failed"
    row = table(store, "trials").iloc[0]
    assert "lower training.learning_rate" in row["error"]
    assert (result.cause, row["cause"]) == ("diverged", "diverged")


def test_a_failed_attack_is_a_row_and_the_others_go_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(Threshold, "run", lambda self, target, rng: 1 / 0)
    overrides = "attacks=[threshold, {name: trained_attackers, attackers: [knn], search: none}]"
    store, trials, (result,) = run(tiny, out, overrides, only=1)
    assert result.status == "failed"
    assert "threshold: ZeroDivisionError" in result.errors[0]
    attacks = table(store, "attacks").set_index("attack")
    assert attacks.loc["threshold", "status"] == "failed"
    assert pd.isna(attacks.loc["threshold", "auc"])
    assert attacks.loc["trained_attackers", "status"] == "finished"
    assert attacks.loc["best_of", "status"] == "failed"
    assert "one of the compared attacks has failed" in attacks.loc["best_of", "error"]
    assert table(store, "trials")["status"].iloc[0] == "finished"
    assert store.statuses(trials)[trials[0].target_id].word == "failed"


NEEDED: dict[str, dict[str, Any]] = {
    "dp_sgd": {"epsilon": 8.0, "accountant": "rdp"},
    "noised_quantile": {"epsilon": 8.0, "accountant": "rdp", "count_noise_std": 5.0},
    "majority_of": {"models": 2},
    "memguard": {"hidden": [8], "epochs": 2, "steps": 20},
    "prediction_purification": {"epochs": 2},
    "selena": {"models": 3, "left_out": 1},
}
"""Fields that some defenses need, or that make them quick."""


def overrides_for(name: str) -> list[str]:
    """A sweep's changes so that its only defense is `name`, with reference examples if it needs them."""
    needs_reference = components.component_class("defense", name).needs_reference
    splits = ["splits=[{name: coins, reference: 20}]"] if needs_reference else []
    return [f"defenses=[{json.dumps({'name': name, **NEEDED.get(name, {})})}]", *splits]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(components.names("defense")))
def test_every_defense_that_is_found_trains(name: str, tiny: Path, tmp_path: Path) -> None:
    store, _, (result,) = run(tiny, tmp_path / "out", *overrides_for(name), "attacks=[]")
    assert result.status == "finished", result.errors
    row = table(store, "trials").iloc[0]
    assert pd.notna(row["epsilon_spent"]) != pd.notna(row["no_guarantee_reason"])


def test_every_defense_that_is_found_is_planned(tiny: Path, tmp_path: Path) -> None:
    for name in sorted(components.names("defense")):
        sweep = load_sweep(str(tiny), (*overrides_for(name), "attacks=[]"))
        ((each,), _) = resolve_trials(expand(sweep), tmp_path)
        assert each.rough_cpu_seconds > 0, name


def test_a_defense_that_needs_reference_examples_is_refused_without_them(tiny: Path, tmp_path: Path) -> None:
    sweep = load_sweep(str(tiny), ("defenses=[memguard]", "attacks=[]"))
    with pytest.raises(UserError, match="memguard needs reference examples, on which no target is trained"):
        resolve_trials(expand(sweep), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(components.names("attack")))
def test_every_attack_that_is_found_runs(name: str, tiny: Path, tmp_path: Path) -> None:
    cheap = {"trained_attackers": {"search": "none"}, "layer_decoder": {"epochs": 1, "width": 2}}.get(name, {})
    override = f"attacks=[{json.dumps({'name': name, **cheap})}]"
    store, trials, (result,) = run(tiny, tmp_path / "out", override, only=1)
    assert result.status == "finished", result.errors
    assert store.statuses(trials)[trials[0].target_id].done


def test_errors_are_raised_for_a_debugger(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.PlainGradient, "step", lambda self, images, labels: 1 / 0)
    trial = expand(load_sweep(str(tiny)))[0]
    with pytest.raises(ZeroDivisionError):
        run_trial(
            trial, TrialContext(data_dir=tmp_path, store=Store(tmp_path), device=torch.device("cpu"), raise_errors=True)
        )


def test_a_killed_process_leaves_a_failed_row(tiny: Path, tmp_path: Path) -> None:
    sweep = load_sweep(str(tiny))
    (trial, _), store = expand(sweep), Store(tmp_path)
    store.prepare()
    store.write_sweep(sweep, expand(sweep))
    record_failure(trial, store, attempt=2, error="the trial's process died", cause="process_died")
    gather(store)
    row = table(store, "trials").iloc[0]
    assert (row["status"], row["attempts"], row["error"]) == ("failed", 2, "the trial's process died")
    assert row["cause"] == "process_died"


def test_a_process_killed_during_an_attack_leaves_failed_attacks(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny, out, "attacks=[]", only=1)
    sweep = load_sweep(str(tiny))
    store = Store(out)
    store.write_sweep(sweep, expand(sweep))
    record_failure(expand(sweep)[0], store, attempt=2, error="the node was lost", cause="worker_lost")
    gather(store)
    assert list(table(store, "trials")["status"]) == ["finished"]
    attacks = table(store, "attacks")
    assert set(attacks["status"]) == {"failed"}
    assert set(attacks["cause"]) == {"worker_lost"}
    assert set(attacks["attack"]) == {"threshold", "trained_attackers", "shadow", "layer_decoder", "best_of"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut off", "flipped"])
@pytest.mark.parametrize("table_name", ["trials", "outputs", "history", "scores", "attacks"])
def test_a_damaged_part_is_set_aside_and_what_it_held_is_done_again(
    tiny: Path, tmp_path: Path, table_name: str, damage: str
) -> None:
    store, trials, _ = run(tiny, tmp_path / "out", "attacks=[threshold]", only=1)
    before = table(store, table_name)
    (part,) = [
        path
        for path in (store.storage.root / "parts" / table_name).iterdir()
        if trials_best_of(trials) not in path.name
    ]
    content = bytearray(part.read_bytes())
    column = pq.read_metadata(part).row_group(0).column(0)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1  # only a checksum can tell
    part.write_bytes(content if damage == "flipped" else content[:-30])
    gathered = gather(store)
    assert len(gathered.damaged) == 1 and part.name in gathered.damaged[0]
    assert [path.name for path in (store.storage.root / "quarantine").iterdir()] == [f"parts.{table_name}.{part.name}"]
    assert not store.status(trials[0]).done
    store, _, (result,) = run(tiny, tmp_path / "out", "attacks=[threshold]", only=1)
    assert result.status == "finished"
    kept = [column for column in before.columns if column not in TIMES]
    pd.testing.assert_frame_equal(table(store, table_name)[kept], before[kept])


def test_what_is_found_damaged_while_attacking_is_made_anew_at_once(tiny: Path, tmp_path: Path) -> None:
    store, trials, _ = run(tiny, tmp_path / "out", "attacks=[]", only=1)
    (outputs,) = (store.storage.root / "parts" / "outputs").iterdir()
    outputs.write_bytes(outputs.read_bytes()[:-20])
    store, _, (result,) = run(tiny, tmp_path / "out", "attacks=[threshold]", only=1)
    assert (result.status, result.trained) == ("finished", True)
    assert store.status(trials[0]).done


def test_both_ways_of_asking_for_the_status_agree(finished: Any, tmp_path: Path) -> None:
    store, trials, _ = finished
    copy = Store(shutil.copytree(store.storage.root, tmp_path / "copy"))
    files = sorted(path for path in (copy.storage.root / "parts").rglob("*.parquet") if path.parent.name != "tpvd")
    words = set()
    rng = np.random.default_rng(0)
    weights = sorted((copy.storage.root / "weights").iterdir())
    for file in [None, weights[0], *files]:
        if file is not None and rng.random() < 0.5:
            file.unlink()
        elif file is not None:
            file.write_bytes(b"")
        statuses = copy.statuses(trials)
        assert statuses == {trial.target_id: copy.status(trial) for trial in trials}
        planned = copy.planned()
        assert planned is not None
        assert set(copy.ended(planned)) == {target_id for target_id, status in statuses.items() if status.done}
        words |= {status.word for status in statuses.values()}
    assert words == {"done", "partial", "to do"}


def test_the_status_tells_the_rate_and_what_is_left(finished: Any, tmp_path: Path) -> None:
    store, trials, path = finished
    copy = Store(shutil.copytree(store.storage.root, tmp_path / "copy"))
    more = expand(load_sweep(str(path), ["seeds=[0, 1, 2, 3]"]))
    first, second = trials
    for trial in more[2:5]:  # also done, according to the files
        for file in list(copy.storage.root.rglob(f"{first.target_id}*")):
            shutil.copy(file, file.with_name(file.name.replace(first.target_id, trial.target_id)))
    copy.write_sweep(load_sweep(str(path), ["seeds=[0, 1, 2, 3]"]), more)
    record_failure(more[5], copy, 1, "ValueError: no", "error")
    gone = "a" * 16
    row = copy.read_part("attacks", f"{first.target_id}.{recorded_attacks(first)[0]}").to_pylist()[0]
    copy.write_failed_attack(more[6].target_id, gone, row | {"target_id": more[6].target_id, "attack_id": gone})
    now = time.time()
    for age_s, trial in zip((7200, 1800, 1200, 600, 0), (first, second, *more[2:5]), strict=True):
        for file in copy.storage.root.rglob(f"{trial.target_id}*"):
            os.utime(file, (now - age_s,) * 2)
    idle = read_status(copy)
    assert (idle.trials, idle.done, idle.failed, idle.left) == (8, 5, 1, 2), (
        "an attack that the sweep has no more is no failure"
    )
    assert (idle.per_hour, idle.left_s) == (None, None), "nothing works on it"
    assert idle.causes == {"error": 1}
    with Launch(copy.storage):
        status = read_status(copy)
    assert status.per_hour == pytest.approx(6.0, rel=0.05), "three in the half hour since one ended"
    assert status.left_s == pytest.approx(1200, rel=0.05)


def test_a_column_that_a_flipped_bit_has_renamed_is_damage(finished: Any, tmp_path: Path) -> None:
    store, trials, _ = finished
    copy = Store(shutil.copytree(store.storage.root, tmp_path / "copy"))
    path = copy.storage.root / "parts" / "trials" / f"{trials[0].target_id}.parquet"
    rows = pq.read_table(path)
    renamed = [{"weights_sha256": "weights_sha257"}.get(name, name) for name in rows.column_names]
    pq.write_table(rows.rename_columns(renamed).replace_schema_metadata(rows.schema.metadata), path)
    with pytest.raises(DamagedError, match="its columns are not those of its version"):
        copy.read_part("trials", trials[0].target_id)
    assert not path.exists() and copy.storage.entries("quarantine")


def test_an_untrained_target_leaks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "still.yaml"
    path.write_text(
        "datasets: [{name: digits, max_train_examples: 400}]\nsplits: [half]\n"
        "defenses: {baseline: none}\nattacks: [threshold]\n"
        "training: {epochs: 1, batch_size: 20, learning_rate: 0.05}\n"
    )
    untrained, _, _ = run(path, tmp_path / "untrained", "training.learning_rate=1e-12")
    rows = table(untrained, "attacks")
    honest = rows[rows["attack"] == "best_of"].iloc[0]
    assert honest["auc_low"] < 0.5 < honest["auc_high"]


@pytest.mark.slow
def test_a_target_with_random_labels_gives_an_auc_above_nine_tenths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.datasets.digits import Digits

    original = Digits.open

    def with_random_labels(self: Digits, data_dir: Path, download: bool) -> Any:
        train_part, test_part = original(self, data_dir, download)
        shuffled = np.random.default_rng(0).permutation(train_part.labels)
        return type(train_part)(labels=shuffled, read=train_part.read), test_part

    # Random labels can be learned only by heart, so a target that is right on them is as overfitted as can be.
    monkeypatch.setattr(Digits, "open", with_random_labels)
    path = tmp_path / "leak.yaml"
    path.write_text(
        "datasets: [{name: digits, max_train_examples: 400}]\nsplits: [half]\ndefenses: {baseline: none}\n"
        "attacks: [threshold]\ntraining: {epochs: 120, batch_size: 20, learning_rate: 0.05}\n"
    )
    store, _, _ = run(path, tmp_path / "out")
    rows = table(store, "attacks").set_index("score_name")
    assert rows.loc["loss", "auc"] > 0.9
    assert table(store, "trials")["train_accuracy"].iloc[0] > 0.95


def test_a_target_whose_files_were_lost_fails_with_a_row(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, trials, _ = run(tiny, tmp_path / "out", "attacks=[]", only=1)
    store.storage.delete(f"parts/outputs/{trials[0].target_id}.parquet")
    monkeypatch.setattr(Recipe, "train", lambda recipe: 1 / 0)
    result = run_trial(trials[0], TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu")))
    assert (result.status, store.status(trials[0]).word) == ("failed", "failed")
    assert [(failure.target_id, failure.cause) for failure in store.failures()] == [(trials[0].target_id, "error")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "gpu_memory"),
        (RuntimeError("CUDA error: out of memory"), "gpu_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "gpu_memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "error"),
        (MemoryError(), "error"),
    ],
)
def test_what_runs_out_of_gpu_memory_before_the_first_attack_is_told_apart(
    error: Exception, cause: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(trial_attack, "_white_box", fails)
    store, _, (result,) = run(tiny, tmp_path / "out", "attacks=[threshold]", only=1)
    assert (result.status, result.cause) == ("failed", cause)
    assert {(failure.attack, failure.cause) for failure in store.failures()} == {
        ("threshold", cause),
        ("best_of", cause),
    }


@pytest.mark.slow
def test_the_demos_decoder_beats_both_controls_at_the_layer_that_tells_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert = LayerDecoder.run

    def invert_the_last_layer(self: LayerDecoder, target: AttackTarget, rng: np.random.Generator) -> Any:
        assert target.white_box is not None
        last = replace(target.white_box, cut_points=target.white_box.cut_points[-1:])
        return invert(self, replace(target, white_box=last), rng)

    monkeypatch.setattr(LayerDecoder, "run", invert_the_last_layer)
    sweep = load_sweep("demo", ["seeds=[0]"])
    baseline = next(trial for trial in expand(sweep) if trial.defense_label == "baseline")
    trial = replace(baseline, attacks=tuple(one for one in baseline.attacks if isinstance(one, LayerDecoder)))
    store = Store(tmp_path)
    store.prepare()
    store.write_sweep(sweep, [trial])
    run_trial(trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu")))
    gather(store)
    (last,) = (row for _, row in table(store, "reconstructions").iterrows())
    assert last["layer"] == "prediction"
    assert last["mse_test"] < 0.8 * min(last["mse_constant"], last["mse_untrained"])
