"""Answers to the fixed queries: what is asked, how it is recorded, and that asking more trains nothing."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import run_comparisons
from PIL import Image

from analysis.load import load
from models.defenses.temperature import Temperature
from models.queries import QUERY_COUNTS, queried
from models.splits import SPLITS, coin_pairs, coins
from sweeper.errors import UserError
from sweeper.results import answers, layout
from sweeper.results.comparisons import DueComparisons
from sweeper.results.gather import gather
from sweeper.results.store import DamagedError, Store
from sweeper.sweep.check import check_sweep
from sweeper.sweep.expand import expand
from sweeper.sweep.trial import Trial
from sweeper.trial.attack import attack_target
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial


def test_queries_are_the_image_its_mirror_image_and_their_shifts() -> None:
    images = torch.randint(0, 256, (3, 2, 9, 7), dtype=torch.uint8)
    shown = [queried(images, query) for query in range(max(QUERY_COUNTS))]
    assert torch.equal(shown[0], images)
    assert torch.equal(shown[1], images.flip(-1))
    assert len({each.numpy().tobytes() for each in shown}) == 18
    shifts = set()
    for query in range(0, 18, 2):
        assert torch.equal(shown[query + 1], shown[query].flip(-1))
        for down in (-4, 0, 4):
            for right in (-4, 0, 4):
                moved = torch.zeros_like(images)
                to = moved[..., max(0, down) : 9 + min(0, down), max(0, right) : 7 + min(0, right)]
                to.copy_(images[..., max(0, -down) : 9 - max(0, down), max(0, -right) : 7 - max(0, right)])
                if torch.equal(moved, shown[query]):
                    shifts.add((down, right))
    assert len(shifts) == 9


def test_an_odd_seed_of_coin_pairs_has_the_complement_of_the_even_one_before_it() -> None:
    for seed in (0, 6):
        even, odd = coin_pairs(100, 20, seed), coin_pairs(100, 20, seed + 1)
        assert np.array_equal(even.members, coins(100, 20, seed).members)
        assert np.array_equal(even.members, odd.non_members)
        assert np.array_equal(even.non_members, odd.members)
        assert np.array_equal(odd.test, np.arange(100, 120))
    assert not np.array_equal(coin_pairs(100, 20, 0).members, coin_pairs(100, 20, 2).members)


def sweep_of(**changes: object) -> list[Trial]:
    raw = {
        "datasets": {"digits": {"name": "digits", "max_train_examples": 100, "max_test_examples": 30}},
        "splits": ["coins"],
        "defenses": ["none"],
        "architectures": [{"name": "lomurno_cnn", "filters": [4, 4, 4], "dense_units": 8}],
        "training": {"epochs": 1, "batch_size": 20},
        "seeds": [0, 1, 2, 3],
        "attacks": ["threshold"],
        **changes,
    }
    return expand(check_sweep(raw, Path("tiny.yaml")))


def context_of(store: Store) -> TrialContext:
    return TrialContext(data_dir=store.storage.root, store=store, device=torch.device("cpu"), raise_errors=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "results")
    found.prepare()
    return found


@pytest.mark.slow
def test_answers_are_recorded_whole_and_equal_the_outputs_at_the_first_query(store: Store, tmp_path: Path) -> None:
    [trial, *_] = sweep_of(queries=18)
    assert run_trial(trial, context_of(store)).trained
    found = answers.read(store, trial.target_id, 18, tmp_path)
    outputs = store.read_part("outputs", trial.target_id)
    logits = np.stack(outputs.column("logits").to_numpy())
    assert found.logits.shape == (130, 18, 10)
    assert np.allclose(found.logits[0:130][:, 0], logits, atol=1e-5)
    assert np.array_equal(found.logits[120:500][:, 3], found.logits[0:130][120:, 3])
    assert found.is_member.tolist() == [role == "member" for role in outputs.column("role").to_pylist()]
    assert found.in_pool.sum() == 100
    assert np.array_equal(found.example_id, outputs.column("example_id"))


@pytest.mark.slow
def test_adding_queries_trains_nothing_and_makes_the_comparison_anew(store: Store) -> None:
    trials = sweep_of(queries=1)
    for trial in trials:
        assert run_trial(trial, context_of(store)).trained
    first = run_comparisons(store, trials)
    assert [each.status for each in first] == ["finished"] * 4
    assert run_comparisons(store, trials) == []
    more = sweep_of(queries=2)
    assert [trial.target_id for trial in more] == [trial.target_id for trial in trials]
    assert {store.status(trial).word for trial in more} == {"partial"}
    assert run_comparisons(store, more) == []  # they wait for the answers
    for trial in more:
        result = run_trial(trial, context_of(store))
        assert not result.trained
        assert store.status(trial).done
    assert len(run_comparisons(store, more)) == 4


@pytest.mark.slow
def test_a_seed_that_is_added_makes_the_comparison_anew_and_only_it(store: Store) -> None:
    trials = sweep_of(seeds=[0, 1, 2, 3, 4])
    for trial in trials:
        run_trial(trial, context_of(store))
    before = {each.target_id for each in run_comparisons(store, trials[:4])}
    after = {each.target_id for each in run_comparisons(store, trials)}
    assert len(before) == len(after) == 4
    assert not before & after
    gathered = gather(store)
    assert gathered.damaged == ()
    assert {path.name for path in store.storage.root.glob("*.parquet")} >= {"cohorts.parquet", "exposure.parquet"}


@pytest.mark.slow
def test_results_do_not_depend_on_the_order_in_which_seeds_ended(tmp_path: Path) -> None:
    tables = []
    for name, order in (("one", [0, 1, 2, 3]), ("two", [2, 3, 1, 0])):
        store = Store(tmp_path / name)
        store.prepare()
        trials = sweep_of()
        for index in order:
            run_trial(trials[index], context_of(store))
        run_comparisons(store, [trials[index] for index in order])
        keys = sorted(store.keys("cohorts"))
        tables.append([store.read_part("cohorts", key).to_pylist() for key in keys])
        scores = sorted(store.keys("scores"))
        tables.append([store.read_part("scores", key).to_pylist() for key in scores])
    assert tables[0] == tables[2]
    assert tables[1] == tables[3]


def test_damaged_answers_are_set_aside_and_made_again_without_training(store: Store, tmp_path: Path) -> None:
    [trial, *_] = sweep_of()
    run_trial(trial, context_of(store))
    path = store.storage.root / layout.answers(trial.target_id, 1)
    intact = path.read_bytes()
    path.write_bytes(intact[:-5] + bytes([intact[-5] ^ 1]) + intact[-4:])
    with pytest.raises(DamagedError, match="set aside"):
        answers.read(store, trial.target_id, 1, tmp_path)
    assert not store.status(trial).done
    assert not run_trial(trial, context_of(store)).trained
    assert path.read_bytes() == intact


def test_a_cohort_runs_on_the_seeds_that_finished_and_says_how_many(store: Store) -> None:
    trials = sweep_of(seeds=[0, 1, 2, 3, 4])
    for trial in trials[:4]:
        run_trial(trial, context_of(store))
    finished = {trial.target_id for trial in trials[:4]}
    due = DueComparisons(store, trials, finished, set())
    assert {len(task.members) for task in due.planned} == {4}
    run_comparisons(store, trials[:4])
    [key, *_] = sorted(store.keys("cohorts"))
    assert set(store.read_part("cohorts", key).column("n_targets").to_pylist()) == {4}


def test_the_most_exposed_examples_keep_their_pictures(store: Store) -> None:
    trials = sweep_of()
    for trial in trials:
        run_trial(trial, context_of(store))
    run_comparisons(store, trials)
    data = trials[0].dataset.load(store.storage.root)
    images = dict(zip(data.example_id.tolist(), data.inputs.numpy()[:, 0], strict=True))
    for key in store.keys("exposure"):
        rows = sorted(store.read_part("exposure", key).to_pylist(), key=lambda row: -row["exposure"])
        assert len(rows) == 100
        pictured = [row for row in rows if row["image_png"] is not None]
        assert len(pictured) == 16
        assert min(row["exposure"] for row in pictured) >= max(
            row["exposure"] for row in rows if row["image_png"] is None
        )
        for row in pictured:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image_png"]))), images[row["example_id"]])


@pytest.mark.parametrize("split", ["official", "half", "quarters"])
def test_a_cohort_of_another_split_is_refused_where_it_is_asked_for(split: str) -> None:
    with pytest.raises(UserError, match="independent coins"):
        sweep_of(splits=[split], comparisons=["lira"])
    assert {trial.kept_queries for trial in sweep_of(splits=[split])} == {0}  # not asked for: nothing to keep


def test_too_few_seeds_and_wrong_numbers_of_queries_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4 seeds, and the part has 3"):
        sweep_of(seeds=[0, 1, 2], comparisons=["ratio"])
    for wrong in (0, 3, True, "18"):
        with pytest.raises(UserError, match=r"queries: got .*; it must be 1, 2, 18"):
            sweep_of(queries=wrong)


def test_queries_are_no_part_of_a_target() -> None:
    one, two = sweep_of(queries=1)[0], sweep_of(queries=18)[0]
    assert one.target_id == two.target_id
    assert dataclasses.replace(one, queries=18) == two


def test_edited_answers_are_all_that_accuracy_and_attacks_see(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defense that answers the same to everything, so that nothing can be told."""
    monkeypatch.setattr(
        Temperature, "edit_answers", lambda self, answer: lambda inputs: torch.zeros_like(answer(inputs))
    )
    silent = {"defenses": [{"name": "temperature", "temperature": 2}], "training": {"epochs": 8, "batch_size": 5}}
    trials = sweep_of(**silent, attacks=["threshold", "blind_mi"], queries=2, comparisons=["lira", "ratio"])
    [shadowed] = sweep_of(**silent, splits=["quarters"], attacks=[], seeds=[0])
    for trial in (*trials, shadowed):
        assert run_trial(trial, context_of(store)).status == "finished"
        assert not np.any(store.read_part("outputs", trial.target_id).column("logits").combine_chunks().flatten())
        assert store.read_part("trials", trial.target_id).column("test_loss")[0].as_py() == pytest.approx(np.log(10))
    assert {each.status for each in run_comparisons(store, trials)} == {"finished"}
    gather(store)
    attacks = load(store.storage.root).attacks.dropna(subset="auc")
    assert set(attacks["score_name"]) >= {"loss", "online_log_odds", "online"}
    assert attacks["auc"].to_numpy() == pytest.approx(0.5, abs=1e-3)  # means over references are off by rounding
    data, split = shadowed.dataset.load(tmp_path), SPLITS["quarters"](100, 30, 0)
    target = attack_target(shadowed, data, split, context_of(store))
    assert target.train_shadow is not None
    assert not target.train_shadow().outputs.values.any()
