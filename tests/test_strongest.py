"""The best of all attacks on a cohort's targets: its selection, its null, and when it runs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from comparing import run_comparisons

from attacks.base import AttackError, MembershipScores
from attacks.cohort.cohort import Answers
from attacks.comparisons.base import TargetLabel
from attacks.comparisons.lira import Lira
from attacks.comparisons.ratio import Ratio
from attacks.comparisons.strongest import Strongest
from attacks.comparisons.tpvd import Tpvd
from attacks.selection import best_of
from sweeper.errors import UserError
from sweeper.results import layout
from sweeper.results.comparisons import DueComparisons, write_comparisons_now
from sweeper.results.gather import gather
from sweeper.results.store import Store
from sweeper.sweep.check import check_sweep
from sweeper.sweep.comparisons import ComparisonTask, plan_comparisons, plan_groups
from sweeper.sweep.expand import Sweep, expand
from sweeper.sweep.identity import candidate_ids
from sweeper.sweep.trial import Trial
from sweeper.trial.comparison import record_failed_comparison, run_comparison
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import record_failed_attack
from sweeper.trial.run import run_trial

TRAINED = {"name": "trained_attackers", "attackers": ["logistic_regression"], "search": "none"}


def checked(**changes: object) -> Sweep:
    raw: dict[str, Any] = {
        "datasets": {"digits": {"name": "digits", "max_train_examples": 100, "max_test_examples": 30}},
        "splits": ["coins"],
        "defenses": ["none"],
        "architectures": [{"name": "lomurno_cnn", "filters": [4, 4, 4], "dense_units": 8}],
        "training": {"epochs": 1, "batch_size": 20},
        "seeds": [0, 1, 2, 3],
        "attacks": ["threshold", "blind_mi"],
        "comparisons": ["strongest", "lira", "ratio"],
        **changes,
    }
    return check_sweep(raw, Path("tiny.yaml"))


def sweep_of(**changes: object) -> list[Trial]:
    return expand(checked(**changes))


def context_of(store: Store) -> TrialContext:
    return TrialContext(data_dir=store.storage.root, store=store, device=torch.device("cpu"), raise_errors=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seeds, attacked one by one."""
    store = Store(tmp_path_factory.mktemp("trained") / "results")
    store.prepare()
    for trial in sweep_of(seeds=[0, 1, 2, 3, 4]):
        run_trial(trial, context_of(store))
    return store.storage.root


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    shutil.copytree(trained, tmp_path / "results")
    return Store(tmp_path / "results")


def due_of(store: Store, trials: list[Trial], pending: set[str] | None = None) -> DueComparisons:
    finished = {trial.target_id for trial in trials if store.status(trial).comparable}
    return DueComparisons(store, trials, finished, pending or set())


def names(tasks: list[ComparisonTask]) -> list[str]:
    return [task.name for task in tasks]


def gathered(store: Store, trials: list[Trial], table: str) -> pd.DataFrame:
    store.write_sweep(checked(), trials)
    write_comparisons_now(store, due_of(store, trials).planned)
    gather(store)
    return pq.read_table(store.storage.root / f"{table}.parquet").to_pandas()


def row_of(store: Store, trial: Trial, task_id: str) -> dict[str, Any]:
    (row,) = store.read_part("attacks", f"{trial.target_id}.{task_id}").to_pylist()
    return row


def strongest_of(store: Store, trials: list[Trial]) -> ComparisonTask:
    (task,) = (task for task in due_of(store, trials).planned if task.name == "strongest")
    return task


# The selection


@dataclasses.dataclass(frozen=True)
class Scored:
    """A target with known scores."""

    target_id: str
    seed: int
    known: Mapping[str, MembershipScores]

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        raise NotImplementedError

    def answers(self) -> Answers:
        raise NotImplementedError

    def membership_scores(self) -> Mapping[str, MembershipScores]:
        return self.known


def random_targets(
    rng: np.random.Generator, n: int, n_scores: int, leak: float = 0.0, pairs: bool = False, n_targets: int = 4
) -> list[Scored]:
    """Targets with `n_scores` scores of `n` examples, the last of which is higher by `leak` on members."""
    member = rng.random((n_targets, n)) < 0.5
    if pairs:
        member[1::2] = ~member[::2]
    targets = []
    for seed in range(n_targets):
        ids = rng.permutation(n)
        scores = {}
        for number in range(n_scores):
            score = rng.standard_normal(n) + leak * member[seed][ids] * (number == n_scores - 1)
            name = f"s{number}"
            scores[f"a/{name}"] = MembershipScores(name=name, example_id=ids, is_member=member[seed][ids], score=score)
        targets.append(Scored(f"{seed:016x}", seed, scores))
    return targets


@pytest.mark.parametrize("pairs", [False, True])
def test_without_a_leak_selection_and_null_are_at_one_half_and_the_plain_maximum_is_not(pairs: bool) -> None:
    rng = np.random.default_rng(0)
    found = [Strongest().run(random_targets(rng, 120, 8, pairs=pairs), rng) for _ in range(40)]
    mean = {
        "selected": np.mean([each.metrics.auc for one in found for each in one.best]),
        "null": np.mean([one.null_auc for one in found]),
        "maximum": np.mean([each.paper_protocol_auc for one in found for each in one.best]),
    }
    assert mean["selected"] == pytest.approx(0.5, abs=0.01)
    assert mean["null"] == pytest.approx(0.5, abs=0.01)
    assert mean["maximum"] > 0.55


def test_a_leak_is_in_the_selection_and_not_in_its_null() -> None:
    rng = np.random.default_rng(1)
    found = Strongest().run(random_targets(rng, 2000, 5, leak=1.0), rng)
    columns = found.columns()
    assert {each for one in found.best for each in one.selected} == {"a/s4"}
    assert columns["auc"] == pytest.approx(0.76, abs=0.02)
    assert columns["null_auc"] == pytest.approx(0.5, abs=0.02)
    assert columns["auc_low"] < columns["auc"] < columns["auc_high"]
    assert columns["tpr_at_fpr_0.1"] == pytest.approx(0.39, abs=0.05)
    assert columns["tpr_at_fpr_0.001"] is None
    assert (columns["n_targets"], columns["n_examples"]) == (4, 2000)


def test_the_order_of_candidates_and_published_forms_change_nothing() -> None:
    targets = random_targets(np.random.default_rng(2), 200, 4)
    changed = []
    for target in targets:
        (first, *_) = target.known.values()
        published = {
            f"lira/{name}": dataclasses.replace(first, name=name, score=first.is_member + 0.0)
            for name in ("tfp_lira", "privacy_meter_ratio")
        }
        changed.append(dataclasses.replace(target, known=dict(reversed(target.known.items())) | published))
    one, other = (Strongest().run(each, np.random.default_rng(0)) for each in (targets, changed))
    assert one.columns() == other.columns()
    assert [each.selected for each in one.best] == [each.selected for each in other.best]


def test_fitted_candidates_compete_but_are_left_out_of_the_null() -> None:
    rng = np.random.default_rng(3)
    targets = []
    for target in random_targets(rng, 400, 2):
        (first, *_) = target.known.values()
        fold = np.empty(400, dtype=np.int64)
        for side in (first.is_member, ~first.is_member):
            fold[side] = np.arange(side.sum()) % 2
        leaking = first.score + 3 * first.is_member
        fitted = dataclasses.replace(first, name="fit", score=leaking, fold=fold, selection_score=leaking)
        targets.append(dataclasses.replace(target, known={**target.known, "trained/fit": fitted}))
    found = Strongest().run(targets, rng)
    assert {each for one in found.best for each in one.selected} == {"trained/fit"}
    assert max(each for each in found.null_auc if each is not None) < 0.65
    alone = [dataclasses.replace(each, known={"trained/fit": each.known["trained/fit"]}) for each in targets]
    found = Strongest().run(alone, rng)
    assert found.null_auc == (None,) * 4
    assert found.columns()["null_auc"] is None


def test_targets_that_make_no_cohort_are_refused() -> None:
    rng = np.random.default_rng(4)
    targets = random_targets(rng, 50, 2)
    with pytest.raises(AttackError, match="No attack that scores each example has finished on target 0000000000000001"):
        Strongest().run([targets[0], dataclasses.replace(targets[1], known={}), *targets[2:]], rng)
    with pytest.raises(AttackError, match="not attacked on the same examples"):
        Strongest().run([*targets[:3], *random_targets(rng, 60, 2)[3:]], rng)
    with pytest.raises(AttackError, match="have the same members"):
        Strongest().run([targets[0], *targets[:3]], rng)
    with pytest.raises(UserError, match="independent coins"):
        sweep_of(splits=["half"], comparisons=["strongest"])


# Groups and their inputs


def label(seed: int, *candidates: str, cell: str = "c") -> TargetLabel:
    return TargetLabel(
        target_id=f"{cell}{seed}",
        twin_id=None,
        cell_id=cell,
        seed=seed,
        split="coins",
        queries=1,
        is_private=False,
        candidate_ids=candidates,
    )


def test_inputs_are_the_scores_of_the_group_and_part_of_its_id() -> None:
    labels = [label(seed, "a", "b") for seed in range(4)] + [label(seed, "a", cell="d") for seed in range(4)]

    def planned(*comparisons: Any, own: list[TargetLabel] = labels) -> dict[tuple[str, str], Any]:
        groups = plan_groups((each, comparisons) for each in own)
        return {(group.name, group.member_ids[0][0]): group for group in groups}

    found = planned(Strongest(), Tpvd(), Ratio(), Lira())
    others = {found[name, "c"].comparison_id for name in ("lira", "ratio")}
    assert set(found["strongest", "c"].inputs) == others | {f"c{seed}.{each}" for seed in range(4) for each in "ab"}
    assert len(found["strongest", "d"].inputs) == 2 + 4
    assert not found["lira", "c"].inputs
    same = planned(Lira(), Ratio(), Strongest())
    assert same["strongest", "c"].comparison_id == found["strongest", "c"].comparison_id, "order does not matter"
    ids = {found["strongest", "c"].comparison_id}
    ids.add(planned(Lira(), Strongest())["strongest", "c"].comparison_id)
    ids.add(planned(Lira(prior_weight=2.0), Ratio(), Strongest())["strongest", "c"].comparison_id)
    less = [label(seed, "a") for seed in range(4)]
    ids.add(planned(Lira(), Ratio(), Strongest(), own=less)["strongest", "c"].comparison_id)
    assert len(ids) == 4
    assert planned(Strongest(), own=[label(seed) for seed in range(4)]) == {}, "nothing to compare"


# In the results folder


@pytest.mark.parametrize("order", [["strongest", "lira", "ratio"], ["ratio", "strongest", "lira"]])
def test_it_runs_when_its_inputs_have_ended_and_once(store: Store, order: list[str]) -> None:
    trials = sweep_of(comparisons=order)
    due = due_of(store, trials)
    tasks = {task.name: task for task in due.due()}
    assert set(tasks) == {"lira", "ratio"}
    assert names(due.waiting) == ["strongest"]
    for name in ("ratio", "lira"):
        assert due.due() == []
        run_comparison(tasks[name], context_of(store))
        last = due.ended(tasks[name].comparison_id)
        assert names(last) == (["strongest"] if name == "lira" else [])
    assert run_comparison(last[0], context_of(store)).status == "finished"
    assert due.ended(last[0].comparison_id) == due.due() == due.waiting == []
    again = due_of(store, trials)
    assert (again.due(), again.waiting, again.n_done) == ([], [], 3)


def test_it_equals_best_of_on_the_recorded_scores(store: Store) -> None:
    trials = sweep_of()
    run_comparisons(store, trials)
    task = strongest_of(store, trials)
    candidates = []
    for trial in trials:
        frame = [
            row
            for path in sorted((store.storage.root / "parts" / "scores").glob(f"{trial.target_id}.*"))
            for row in pq.read_table(path).to_pandas().groupby("score_name")
        ]
        own = {}
        for name, rows in frame:
            (attack,) = {
                each["attack"]
                for key in rows["attack_id"].unique()
                for each in store.read_part("attacks", f"{trial.target_id}.{key}").to_pylist()
            }
            if attack != "blind_mi":
                own[f"{attack}/{name}"] = MembershipScores(
                    name=str(name),
                    example_id=rows["example_id"].to_numpy(),
                    is_member=rows["is_member"].to_numpy(),
                    score=rows["score"].to_numpy(),
                )
        candidates.append(dict(sorted(own.items())))
    key = task.comparison_id
    rng = np.random.default_rng([int(key[:8], 16), int(key[8:], 16)])
    expected = [best_of(each, rng) for each in candidates]
    for trial, own, best in zip(trials, candidates, expected, strict=True):
        row = row_of(store, trial, key)
        assert (row["attack"], row["family"], row["attack_id"]) == ("strongest", "membership", key)
        assert row["candidates"] == list(own)
        assert {each.partition("/")[0] for each in own} == {"threshold", "lira", "ratio"}
        assert row["selected_scores"] == list(best.selected)
        assert row["paper_protocol_auc"] == best.paper_protocol_auc == max(_aucs(store, trial))
        assert row["paper_protocol_score"] == best.paper_protocol_score
        assert {name: row[name] for name in best.metrics.columns()} == best.metrics.columns()
    row = gathered(store, trials, "cohorts").set_index("attack").loc["strongest"]
    assert row["auc"] == pytest.approx(np.mean([each.metrics.auc for each in expected]))
    assert row["null_auc_low"] <= row["null_auc"] <= row["null_auc_high"]
    assert row[["top_share", "audit_guesses", "pooled_tpr_at_fpr_0.01"]].isna().all()
    assert (gathered(store, trials, "attacks")["attack"] == "strongest").sum() == 4


def _aucs(store: Store, trial: Trial) -> list[float]:
    """The AUC of each score of the target."""
    gathered = (store.storage.root / "parts" / "attacks").glob(f"{trial.target_id}.*")
    rows = [row for path in gathered for row in pq.read_table(path).to_pylist()]
    return [row["auc"] for row in rows if row["attack"] in ("threshold", "lira", "ratio")]


def test_it_goes_without_an_input_that_failed_and_is_made_anew_when_that_succeeds(store: Store) -> None:
    trials = sweep_of()
    due = due_of(store, trials)
    planned = {task.name: task for task in due.planned}
    tasks = {task.name: task for task in due.due()}
    run_comparison(tasks["ratio"], context_of(store))
    due.ended(tasks["ratio"].comparison_id)
    record_failed_comparison(tasks["lira"], store, "it broke", "error")
    (without,) = due.ended(tasks["lira"].comparison_id)
    assert without.comparison_id != planned["strongest"].comparison_id
    assert set(planned["strongest"].inputs) - set(without.inputs) == {tasks["lira"].comparison_id}
    run_comparison(without, context_of(store))
    assert not any(each.startswith("lira") for each in row_of(store, trials[0], without.comparison_id)["candidates"])

    after = due_of(store, trials)  # the next launch tries the failed one again
    assert {task.name: after.states[task.comparison_id] for task in after.planned} == {
        "strongest": "done",
        "lira": "failed",
        "ratio": "done",
    }
    (retried,) = after.due()
    assert names(after.waiting) == []
    record_failed_comparison(retried, store, "it broke again", "error")
    assert after.ended(retried.comparison_id) == []

    assert [each.status for each in run_comparisons(store, trials)] == ["finished"] * 2
    whole = strongest_of(store, trials)
    assert whole.comparison_id == planned["strongest"].comparison_id
    assert any(each.startswith("lira") for each in row_of(store, trials[0], whole.comparison_id)["candidates"])
    attacks = gathered(store, trials, "attacks")
    assert set(attacks.loc[attacks["attack"] == "strongest", "attack_id"]) == {whole.comparison_id}


@pytest.mark.slow
def test_it_waits_for_attacks_that_are_still_to_run_and_goes_without_those_that_fail(store: Store) -> None:
    trials = sweep_of(comparisons=["strongest"], attacks=["threshold", {"name": "blind_mi"}, TRAINED])
    pending = {trial.target_id for trial in trials}
    due = due_of(store, trials, pending)
    (planned,) = due.planned
    assert due.due() == []
    for trial in trials[:3]:
        run_trial(trial, context_of(store))
        assert due.ended(trial.target_id) == []
    missing = next(each for each in candidate_ids(trials[3].attacks) if not store.has_attack(trials[3].target_id, each))
    record_failed_attack(trials[3], missing, store, "it broke", "error")
    (task,) = due.ended(trials[3].target_id)
    assert set(planned.inputs) - set(task.inputs) == {f"{trials[3].target_id}.{missing}"}
    run_comparison(task, context_of(store))
    assert len(row_of(store, trials[0], task.comparison_id)["candidates"]) > len(
        row_of(store, trials[3], task.comparison_id)["candidates"]
    )


def test_an_input_that_is_made_anew_makes_it_anew(store: Store) -> None:
    trials = sweep_of()
    run_comparisons(store, trials)
    task = strongest_of(store, trials)
    (store.storage.root / layout.part("comparisons", _other(task))).unlink()
    rerun = [each.target_id for each in run_comparisons(store, trials)]
    assert rerun == [_other(task), task.comparison_id]
    for key in (f"attacks/{next(each for each in task.inputs if '.' in each)}", f"comparisons/{_other(task)}"):
        assert due_of(store, trials).states[task.comparison_id] == "done"
        path = store.storage.root / "parts" / f"{key}.parquet"
        later = max(each.stat().st_mtime for each in path.parent.iterdir()) + 10
        os.utime(path, (later, later))
        assert due_of(store, trials).states[task.comparison_id] == "to do"
        for each in (store.storage.root / "parts").glob(f"*/*{task.comparison_id}.parquet"):
            os.utime(each, (later + 1, later + 1))


def _other(task: ComparisonTask) -> str:
    return next(each for each in task.inputs if "." not in each)


def test_a_seed_that_is_added_makes_it_anew(store: Store) -> None:
    trials = sweep_of(seeds=[0, 1, 2, 3, 4])
    run_comparisons(store, trials[:4])
    before = strongest_of(store, trials[:4])
    assert run_comparisons(store, trials[:4]) == []
    assert len(run_comparisons(store, trials)) == 3
    after = strongest_of(store, trials)
    assert before.comparison_id != after.comparison_id
    assert set(before.inputs) & set(after.inputs) == {each for each in before.inputs if "." in each}
    assert gathered(store, trials, "cohorts").set_index("attack").loc["strongest", "n_targets"] == 5


def test_a_target_that_fails_leaves_it(store: Store) -> None:
    trials = sweep_of(seeds=[0, 1, 2, 3, 4])
    lost = trials[4].target_id
    (store.storage.root / layout.part("trials", lost)).unlink()
    due = due_of(store, trials, {lost})
    assert due.due() == []
    tasks = due.ended(lost)
    assert sorted(names(tasks)) == ["lira", "ratio"]
    for task in tasks:
        run_comparison(task, context_of(store))
        last = due.ended(task.comparison_id)
    assert [len(task.members) for task in last] == [4]


def test_it_is_the_last_of_the_default_comparisons() -> None:
    raw = sweep_of(comparisons=None)
    assert names(plan_comparisons(raw))[-1] == "strongest"
