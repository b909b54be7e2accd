"""TPVD by hand and through the results folder, and the bound on ε that the split `coins` allows."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from comparing import run_comparisons
from safetensors import safe_open
from safetensors.numpy import load_file, save

from attacks.auditing import audit_membership
from attacks.base import MembershipScores
from attacks.comparisons.tpvd import displacement_sketch, tpvd, value_differences
from sweeper.results.comparisons import DueComparisons
from sweeper.results.gather import gather
from sweeper.results.schema import SCHEMAS
from sweeper.results.status import read_status
from sweeper.results.store import Store
from sweeper.sweep.comparisons import plan_comparisons
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.trial.context import TrialContext
from sweeper.trial.run import TrialResult, run_trial

TWINS = """
name: twins
datasets: [{name: digits, max_train_examples: 240, max_test_examples: 60}]
splits: [coins]
defenses:
  ac: {name: noise_then_clip, noise_scale: 0.01}
  dp: {name: dp_sgd, noise_multiplier: 1.0, accountant: rdp}
  dropped: [{name: dropout, rate: 0.1}, {name: noise_then_clip, noise_scale: 0.01}]
  none: none
training: {epochs: 2, batch_size: 25, sampling: poisson, paired_batches: true}
seeds: [3]
attacks: [threshold, {name: trained_attackers, attackers: [logistic_regression], search: none}]
"""


# By hand


def test_a_hand_computed_example() -> None:
    twin = {"a": np.array([[3.0, 0.0], [0.0, 4.0]]), "b": np.array([1.0, 2.0, 2.0])}
    ours = {"a": np.array([[3.0, 1.0], [2.0, 2.0]]), "b": np.array([1.0, 2.0, 5.0])}
    # ‖(0, 1, 2, −2)‖ / 5 = 3/5; ‖(0, 0, 3)‖ / 3 = 1
    assert value_differences(ours, twin) == {"a": 0.6, "b": 1.0}
    assert tpvd(value_differences(ours, twin)) == pytest.approx(0.8)


def test_identical_weights_have_none_and_all_scales_are_alike() -> None:
    rng = np.random.default_rng(0)
    twin = {"w": rng.standard_normal((5, 7)).astype(np.float32), "v": rng.standard_normal(3).astype(np.float32)}
    assert tpvd(value_differences(twin, twin)) == 0
    ours = {name: value + rng.standard_normal(value.shape).astype(np.float32) for name, value in twin.items()}
    scaled = [{name: 4 * value for name, value in each.items()} for each in (ours, twin)]
    assert value_differences(*scaled) == pytest.approx(value_differences(ours, twin))


def test_the_two_models_are_not_interchangeable() -> None:
    """Only the twin's norm is the divisor."""
    small, large = {"w": np.array([1.0])}, {"w": np.array([4.0])}
    assert value_differences(large, small) == {"w": 3.0}
    assert value_differences(small, large) == {"w": 0.75}


def test_every_tensor_counts_alike_whatever_its_size() -> None:
    twin = {"large": np.ones(10_000), "small": np.ones(1)}
    ours = {"large": np.ones(10_000), "small": np.array([3.0])}
    assert tpvd(value_differences(ours, twin)) == 1.0


def test_a_tensor_that_is_zero_in_the_twin_is_left_out() -> None:
    twin = {"zero": np.zeros(3), "w": np.array([2.0]), "lost": np.array([1.0])}
    differences = value_differences({"zero": np.ones(3), "w": np.array([3.0]), "lost": np.array([np.nan])}, twin)
    assert differences == {"zero": None, "w": 0.5, "lost": None}
    assert tpvd(differences) == 0.5
    assert tpvd({"zero": None}) is None


def test_other_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="'b'"):
        value_differences({"a": np.ones(1)}, {"a": np.ones(1), "b": np.ones(1)})
    with pytest.raises(ValueError, match=r"\(2,\) in one model and \(3,\) in its twin"):
        value_differences({"a": np.ones(2)}, {"a": np.ones(3)})


def test_two_independent_initializations_have_a_tpvd_of_the_root_of_two() -> None:
    rng = np.random.default_rng(0)
    first, second = ({"w": rng.standard_normal((300, 200)), "v": rng.standard_normal(900)} for _ in range(2))
    assert tpvd(value_differences(first, second)) == pytest.approx(2**0.5, abs=0.05)


def test_the_sketches_of_two_targets_are_as_far_apart_as_their_weights() -> None:
    rng = np.random.default_rng(1)
    twin = {"w": rng.standard_normal((200, 100)), "v": rng.standard_normal(50), "zero": np.zeros(3)}
    moved = {name: value + 0.5 * rng.standard_normal(value.shape) for name, value in twin.items()}
    for size in (1e-4, 0.1, 1.0):
        other = {name: value + size * rng.standard_normal(value.shape) for name, value in moved.items()}
        parts = [
            np.linalg.norm(moved[name] - other[name]) / np.linalg.norm(twin[name]) for name in twin if twin[name].any()
        ]
        sketches = [displacement_sketch(each, twin) for each in (moved, other)]
        assert sketches[0] is not None and sketches[1] is not None
        assert np.linalg.norm(sketches[0] - sketches[1]) == pytest.approx(np.linalg.norm(parts), rel=0.25)
    assert displacement_sketch({"zero": np.ones(3)}, {"zero": np.zeros(3)}) is None


# In the results folder


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Store, dict[str, Trial]]:
    path = tmp_path / "twins.yaml"
    path.write_text(TWINS, encoding="utf-8")
    sweep = load_sweep(str(path))
    store = Store(tmp_path / "out")
    store.prepare()
    store.write_sweep(sweep, expand(sweep))
    return store, {trial.defense_label: trial for trial in expand(sweep)}


def train(store: Store, trial: Trial) -> None:
    run_trial(
        trial, TrialContext(data_dir=store.storage.root, store=store, device=torch.device("cpu"), raise_errors=True)
    )


def weights_path(store: Store, trial: Trial) -> Path:
    return store.storage.root / "weights" / f"{trial.target_id}.safetensors"


def record_weights(store: Store, trial: Trial, content: bytes) -> None:
    """Other weights for a recorded target, as if it had been trained anew."""
    weights_path(store, trial).write_bytes(content)
    part = store.storage.root / "parts" / "trials" / f"{trial.target_id}.parquet"
    (row,) = pq.read_table(part).to_pylist()
    row["weights_sha256"] = hashlib.sha256(content).hexdigest()
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMAS["trials"]), part)


def compare(store: Store) -> list[TrialResult]:
    """Run the comparisons that are due."""
    (path,) = store.storage.root.parent.glob("*.yaml")
    return run_comparisons(store, expand(load_sweep(str(path))))


def gathered(store: Store, table: str = "tpvd") -> pd.DataFrame:
    if table in ("tpvd", "comparisons"):
        compare(store)
    gather(store)
    return pq.read_table(store.storage.root / f"{table}.parquet").to_pandas()


@pytest.mark.slow
@pytest.mark.parametrize("order", [("ac", "none"), ("none", "ac")])
def test_it_is_there_once_both_are_whichever_ran_first(planned: Any, order: tuple[str, str]) -> None:
    store, trials = planned
    train(store, trials[order[0]])
    assert gathered(store).empty
    train(store, trials[order[1]])
    (row,) = gathered(store).to_dict("records")
    assert (row["target_id"], row["twin_id"]) == (trials["ac"].target_id, trials["none"].target_id)
    weights, twin = (load_file(weights_path(store, trials[label])) for label in ("ac", "none"))
    expected = {
        name: np.linalg.norm(weights[name] - twin[name]) / np.linalg.norm(twin[name])
        for name in twin
        if not name.startswith("normalize.")  # constants, not parameters
    }
    assert {each["parameter"]: each["value_difference"] for each in row["tensors"]} == pytest.approx(expected, rel=1e-5)
    assert row["tpvd"] == pytest.approx(np.mean(list(expected.values())), rel=1e-5)
    assert 0 < row["tpvd"] < 10


@pytest.mark.slow
def test_the_twin_of_the_next_seed_has_another_initialization(tmp_path: Path) -> None:
    path = tmp_path / "seeds.yaml"
    path.write_text(TWINS.replace("seeds: [3]", "seeds: [3, 5, 4]"), encoding="utf-8")
    sweep = load_sweep(str(path))
    trials = {(trial.defense_label, trial.seed): trial for trial in expand(sweep)}
    store = Store(tmp_path / "out")
    store.prepare()
    store.write_sweep(sweep, expand(sweep))
    train(store, trials["ac", 3])
    train(store, trials["none", 3])
    train(store, trials["ac", 5])
    (alone,) = gathered(store).to_dict("records")
    assert pd.isna(alone["other_init_twin_id"])
    assert pd.isna(alone["tpvd_other_init"])
    train(store, trials["none", 5])
    rows = gathered(store).set_index("target_id")
    expected = {3: 5, 5: 3}  # of the finished ones the next, after the last one the first
    for seed, other in expected.items():
        row = rows.loc[trials["ac", seed].target_id]
        assert row["other_init_twin_id"] == trials["none", other].target_id
        assert row["twin_id"] == trials["none", seed].target_id
        ours, twin = (load_file(weights_path(store, trials[key])) for key in (("ac", seed), ("none", other)))
        parts = [
            np.linalg.norm(ours[name] - twin[name]) / np.linalg.norm(twin[name])
            for name in twin
            if not name.startswith("normalize.")
        ]
        assert row["tpvd_other_init"] == pytest.approx(np.mean(parts), rel=1e-5)
        assert row["tpvd_other_init"] > row["tpvd"]
    assert {len(sketch) for sketch in rows["displacement_sketch"]} == {256}
    train(store, trials["none", 4])
    rows = gathered(store).set_index("target_id")
    assert rows.loc[trials["ac", 3].target_id, "other_init_twin_id"] == trials["none", 4].target_id


@pytest.mark.slow
def test_the_twin_is_all_but_the_mechanism(planned: Any) -> None:
    store, trials = planned
    twins = {label: trial.twin_id for label, trial in trials.items()}
    assert twins["none"] is None
    assert twins["ac"] == twins["dp"] == trials["none"].target_id
    assert twins["dropped"] not in {trial.target_id for trial in trials.values()}  # dropout alone is not in the sweep
    for label in ("dropped", "none"):
        train(store, trials[label])
    assert gathered(store).empty
    rows = gathered(store, "trials").set_index("defense")
    assert rows.loc["dropped", "mechanism"] == "noise_then_clip"
    assert pd.isna(rows.loc["none", "mechanism"])


@pytest.mark.slow
def test_a_target_that_is_trained_anew_is_compared_anew(planned: Any) -> None:
    store, trials = planned
    for label in ("ac", "none"):
        train(store, trials[label])
    before = gathered(store)["tpvd"][0]
    path = weights_path(store, trials["none"])
    with safe_open(path, framework="numpy") as weights:
        metadata = weights.metadata()
    record_weights(store, trials["none"], save({key: 2 * each for key, each in load_file(path).items()}, metadata))
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))
    assert gathered(store)["tpvd"][0] != pytest.approx(before)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"not tensors", b""])
def test_damaged_weights_are_set_aside_and_their_target_is_to_be_trained_again(planned: Any, damage: bytes) -> None:
    store, trials = planned
    for label in ("ac", "none"):
        train(store, trials[label])
    path = weights_path(store, trials["none"])
    path.write_bytes(damage or path.read_bytes()[:-1] + b"\0")  # a flipped byte is still valid safetensors
    (result,) = compare(store)
    assert result.status == "failed"
    assert path.name in result.errors[0] and "set aside" in result.errors[0]
    assert [each.name for each in (store.storage.root / "quarantine").iterdir()] == [f"weights.{path.name}"]
    assert store.status(trials["none"]).word == "to do"
    assert store.status(trials["ac"]).done
    train(store, trials["none"])
    assert len(gathered(store)) == 1


@pytest.mark.slow
def test_records_from_before_weights_were_fingerprinted_still_count(planned: Any) -> None:
    store, trials = planned
    for label in ("ac", "none"):
        train(store, trials[label])
        part = store.storage.root / "parts" / "trials" / f"{trials[label].target_id}.parquet"
        rows = pq.read_table(part).drop_columns(["weights_sha256", "cause"])
        pq.write_table(rows.replace_schema_metadata(rows.schema.metadata | {b"schema_version": b"2"}), part)
    assert len(gathered(store)) == 1
    assert gather(store).damaged == ()


@pytest.mark.slow
def test_weights_of_another_model_are_named(planned: Any) -> None:
    store, trials = planned
    for label in ("ac", "none"):
        train(store, trials[label])
    record_weights(store, trials["none"], save({"other": np.ones(3, np.float32)}, {"parameters": '["other"]'}))
    (failed,) = compare(store)
    assert (failed.status, failed.cause) == ("failed", "error")
    assert "the tensors ['conv1.weight'" in failed.errors[0] or "are in one of the two models only" in failed.errors[0]
    assert gathered(store).empty
    (row,) = gathered(store, "comparisons").to_dict("records")
    assert (row["comparison"], row["status"], row["cause"]) == ("tpvd", "failed", "error")
    assert list(row["members"]) == [trials["ac"].target_id, trials["none"].target_id]
    assert "are in one of the two models only" in row["error"]
    status = read_status(store)
    assert [(each.target_id, each.attack) for each in status.failures] == [(row["comparison_id"], "tpvd")]
    assert (status.comparisons, status.compared, status.failed) == (1, 0, 0)


@pytest.mark.slow
def test_a_comparison_is_an_id_of_its_members_and_is_not_done_twice(planned: Any) -> None:
    store, trials = planned
    for label in ("ac", "none"):
        train(store, trials[label])
    (done,) = compare(store)
    assert done.status == "finished"
    assert compare(store) == []
    (task,) = plan_comparisons([trials["none"], trials["ac"]])
    assert task.comparison_id == done.target_id
    assert [member.target_id for member in task.members] == [trials["ac"].target_id, trials["none"].target_id]
    seeds = [dataclasses.replace(trials[label], seed=4) for label in ("none", "ac")]
    tasks = plan_comparisons([trials["none"], trials["ac"], *seeds])
    assert {len(each.members) for each in tasks} == {3}
    assert done.target_id not in {each.comparison_id for each in tasks}, "another seed makes another group"
    assert plan_comparisons([dataclasses.replace(trials["ac"], comparisons=()), trials["none"]]) == []


@pytest.mark.slow
def test_groups_wait_for_targets_that_may_still_finish_and_do_without_those_that_fail(planned: Any) -> None:
    store, trials = planned
    first, twin = trials["ac"], trials["none"]
    other = dataclasses.replace(twin, seed=4)
    train(store, first)
    due = DueComparisons(store, [first, twin, other], {first.target_id}, {twin.target_id, other.target_id})
    assert due.due() == []
    assert [len(task.members) for task in due.waiting] == [3]
    train(store, twin)
    assert due.ended(twin.target_id) == []
    (task,) = due.ended(other.target_id)  # which has failed
    assert [member.target_id for member in task.members] == [first.target_id, twin.target_id]
    assert due.ended(other.target_id) == []


# The bound on ε


def test_single_scores_of_a_coin_split_get_a_bound_and_no_others(planned: Any) -> None:
    store, trials = planned
    train(store, trials["none"])
    attacks = gathered(store, "attacks")
    bounded = attacks["attack"] == "threshold"
    assert attacks.loc[bounded, "epsilon_lower_bound"].ge(0).all()
    assert attacks.loc[~bounded, "epsilon_lower_bound"].isna().all()
    assert set(attacks.loc[~bounded, "attack"]) == {"trained_attackers", "best_of"}
    assert set(attacks.loc[bounded, "audit_delta"]) == {1e-5}


def test_a_target_is_audited_at_the_delta_of_its_own_guarantee(tmp_path: Path) -> None:
    path = tmp_path / "delta.yaml"
    path.write_text(TWINS.replace("noise_multiplier: 1.0", "noise_multiplier: 1.0, delta: 0.001"), encoding="utf-8")
    (trial,) = (each for each in expand(load_sweep(str(path))) if each.defense_label == "dp")
    store = Store(tmp_path / "out")
    store.prepare()
    train(store, trial)
    bounds = gathered(store, "attacks").set_index("attack").loc["threshold"]
    assert set(bounds["audit_delta"]) == {0.001}


def test_halves_of_a_fixed_size_get_no_bound(tmp_path: Path) -> None:
    path = tmp_path / "halves.yaml"
    path.write_text(TWINS.replace("[coins]", "[half]"), encoding="utf-8")
    sweep = load_sweep(str(path))
    store = Store(tmp_path / "out")
    store.prepare()
    store.write_sweep(sweep, expand(sweep))
    train(store, expand(sweep)[-1])
    assert gathered(store, "attacks")["epsilon_lower_bound"].isna().all()


def test_the_bound_is_of_the_tenth_on_either_side() -> None:
    rng = np.random.default_rng(0)
    is_member = rng.random(1000) < 0.5

    def scores(score: np.ndarray, example_id: np.ndarray | None = None) -> MembershipScores:
        ids = np.arange(1000) if example_id is None else example_id
        return MembershipScores(name="one", example_id=ids, is_member=is_member, score=score)

    audit = audit_membership(scores(is_member + 0.0), rng)
    assert (audit.n_guesses, audit.n_right, audit.confidence, audit.delta) == (200, 200, 0.95, 1e-5)
    assert audit.epsilon_lower_bound > 3
    assert audit_membership(scores(rng.random(1000)), rng).epsilon_lower_bound < 0.5
    with pytest.raises(ValueError, match="1000 rows are 500 examples"):
        audit_membership(scores(rng.random(1000), np.arange(1000) // 2), rng)
    fitted = dataclasses.replace(scores(rng.random(1000)), fold=np.arange(1000) % 2)
    with pytest.raises(ValueError, match="'one' was fitted on membership labels"):
        audit_membership(fitted, rng)
