"""Searches for settings: spaces, draws, proposals, the best run, the price, and trials from their file to their tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from s3_server import S3Server, start_s3_server
from scipy import stats
from typer.testing import CliRunner

from analysis.load import load
from models.private.accounting import epsilon
from sweeper.cli import app
from sweeper.cluster import run as cluster_run
from sweeper.cluster.halving import EarlyStopping
from sweeper.errors import UserError
from sweeper.launch import LaunchOptions, launch
from sweeper.prepare import prepare
from sweeper.results.expected import Records, judge
from sweeper.results.gather import gather
from sweeper.results.searches import RecordedScores
from sweeper.results.status import read_status
from sweeper.results.store import Store
from sweeper.search.early_stopping import EPOCH, VALIDATION_ACCURACY, Halving
from sweeper.search.price import price_of
from sweeper.search.space import Distribution
from sweeper.search.unfold import ArmSearch, Score
from sweeper.sweep.expand import Arms, arms_of, expand
from sweeper.sweep.load import load_sweep
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

__all__ = ["start_s3_server"]  # a fixture

SEARCHED = """
name: searched
datasets: [{name: digits, max_train_examples: 400, max_test_examples: 100}]
splits: [coin_pairs]
architectures: [{name: mlp}]
training: {epochs: 2, batch_size: 25, learning_rate: 0.1}
defenses:
  baseline: none
  l2: {name: l2, weight: 0.01}
  dp: {name: dp_sgd, epsilon: 4.0, accountant: rdp}
seeds: [0, 1]
attacks: [threshold]
search:
  runs: 4
  validation: 50
  space:
    training: {learning_rate: {loguniform: [0.01, 1.0]}}
    defenses:
      l2: {weight: {loguniform: [1.0e-4, 1.0e-2]}}
      dp: {max_grad_norm: {uniform: [0.5, 2.0]}}
"""


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    path = tmp_path / "searched.yaml"
    path.write_text(SEARCHED, encoding="utf-8")
    return path


def arms(path: Path, *overrides: str, scores: Any = None) -> Arms:
    sweep = load_sweep(str(path), overrides)
    return arms_of(sweep, scores) if scores else arms_of(sweep)


def drawn(arm: ArmSearch, field: str) -> list[Any]:
    return [next(value for path, value in run.values.items() if path[-1] == field) for run in arm.runs]


def by_learning_rate(trial: Any, plan: Any) -> Score:
    """Scores that prefer a learning rate near 0.2."""
    return Score(accuracy=1 - abs(np.log10(trial.training.learning_rate / 0.2)) / 4)


# What is drawn


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_draws_have_their_distribution_and_stay_within_it(kind: Any) -> None:
    field = Distribution(kind=kind, low=0.01, high=10.0)
    values = np.array([field.at(share) for share in np.random.default_rng(0).random(4000)])
    assert values.min() >= 0.01
    assert values.max() <= 10
    law = stats.uniform(0.01, 9.99) if kind == "uniform" else stats.loguniform(0.01, 10)
    assert stats.kstest(values, law.cdf).pvalue > 0.01
    assert (field.at(0.0), field.at(1.0)) == (0.01, 10.0)


def test_choices_and_whole_numbers_are_equally_likely() -> None:
    for field in (
        Distribution(kind="choice", options=([8, 16], [16, 32], "x")),
        Distribution(kind="int", low=3, high=5),
    ):
        values = [str(field.at(share)) for share in np.linspace(0, 1, 3000, endpoint=False)]
        assert sorted(pd.Series(values).value_counts()) == [1000, 1000, 1000]


def test_runs_are_the_same_every_time_and_a_shared_field_is_drawn_alike_in_all_arms(searched: Path) -> None:
    first, second = arms(searched), arms(searched)
    assert [trial.target_id for trial in first.trials] == [trial.target_id for trial in second.trials]
    baseline, l2, dp = first.searches
    assert drawn(baseline, "learning_rate") == drawn(l2, "learning_rate") == drawn(dp, "learning_rate")
    assert len(set(drawn(baseline, "learning_rate"))) == 4
    assert [set(arm.fields) for arm in (baseline, l2)] == [
        {("training", "learning_rate")},
        {("training", "learning_rate"), ("defense", "l2", "weight")},
    ]
    assert [run.trial.defenses[0].weight for run in l2.runs] == drawn(l2, "weight")
    other = arms(searched, "search.seed=7").searches[0]
    assert drawn(other, "learning_rate") != drawn(baseline, "learning_rate")


def test_runs_come_first_and_more_runs_keep_those_that_there_were(searched: Path) -> None:
    few, many = (arms(searched, f"search.runs={runs}") for runs in (4, 9))
    assert all(trial.search_run is not None for trial in few.trials)
    for arm, longer in zip(few.searches, many.searches, strict=True):
        assert [run.trial.target_id for run in arm.runs] == [run.trial.target_id for run in longer.runs][:4]


def test_runs_are_trained_on_no_validation_or_evaluated_examples(searched: Path) -> None:
    (run, *_), *_ = (arm.runs for arm in arms(searched).searches)
    split = run.trial.split_plan.draw(400, 100, run.trial.seed)
    assert len(split.validation) == 50
    assert not set(split.validation) & (set(split.trained) | set(split.non_members) | set(split.test))
    target = expand(load_sweep(str(searched), ["search=null"]))[0]
    assert run.trial.seed not in (0, 1)
    assert target.split_plan.validation == 0


# Which run is best


def test_the_best_run_trains_all_seeds_once_all_runs_are_recorded(searched: Path) -> None:
    found = arms(searched, scores=by_learning_rate)
    for arm in found.searches:
        assert arm.best is not None
        rates = np.array(drawn(arm, "learning_rate"))
        assert arm.best.number == np.abs(np.log10(rates / 0.2)).argmin()
        targets = [trial for trial in found.trials if trial.target_id in found.targets_of(arm)]
        assert [trial.seed for trial in targets] == [0, 1]
        for trial in targets:
            assert trial.search_run is None
            assert trial.comparisons
            assert replace(trial, seed=arm.cell.seed).target_id == arm.best.trial.target_id

    def without_one(trial: Any, plan: Any) -> Score | None:
        return None if trial.search_run == 2 else by_learning_rate(trial, plan)

    assert all(trial.search_run is not None for trial in arms(searched, scores=without_one).trials)


def test_a_limited_leak_comes_before_accuracy(searched: Path) -> None:
    objective = "search.objective={attack: threshold, metric: auc, most: 0.6}"
    results = [(0.9, 0.7), (0.8, 0.59), (0.7, 0.5), (None, None)]

    def scores(trial: Any, plan: Any) -> Score:
        accuracy, leak = results[trial.search_run]
        return Score(accuracy=accuracy, leak=leak)

    found = arms(searched, objective, scores=scores)
    assert [arm.best.number for arm in found.searches if arm.best] == [1, 1, 1]
    assert [len(run.trial.attacks) for run in found.searches[0].runs] == [1, 1, 1, 0]
    results[:] = [(0.9, 0.9), (0.8, 0.7), (None, None), (0.2, 0.71)]
    assert arms(searched, objective, scores=scores).searches[0].best.number == 1  # type: ignore[union-attr]
    results[:] = [(None, None)] * 4
    found = arms(searched, objective, scores=scores)
    assert [arm.best for arm in found.searches] == [None] * 3
    assert all(trial.search_run is not None for trial in found.trials)


def test_optuna_proposes_in_batches_by_what_is_recorded_and_does_better_than_chance(searched: Path) -> None:
    settings = ["search.searcher=optuna", "search.at_once=5", "search.runs=30"]
    recorded: dict[str, Score] = {}

    def scores(trial: Any, plan: Any) -> Score | None:
        return recorded.get(trial.target_id)

    seen: list[int] = []
    for _ in range(6):
        found = arms(searched, *settings, scores=scores)
        baseline = found.searches[0]
        seen.append(len(baseline.runs))
        assert baseline.n_to_come == 30 - len(baseline.runs)
        recorded |= {
            run.trial.target_id: by_learning_rate(run.trial, None) for arm in found.searches for run in arm.runs
        }
    assert seen == [5, 10, 15, 20, 25, 30]
    whole = arms(searched, *settings, scores=scores)
    assert [arm.is_over for arm in whole.searches] == [True] * 3
    assert [run.trial.target_id for run in whole.searches[0].runs[:25]] == [
        run.trial.target_id for run in baseline.runs[:25]
    ]
    errors = np.abs(np.log10(np.array(drawn(whole.searches[0], "learning_rate")) / 0.2))
    assert errors[15:].mean() < errors[:10].mean() / 1.5


# What it costs


def test_optuna_takes_choices_as_they_are(searched: Path) -> None:
    choice = "search.space={training: {learning_rate: {choice: [0.123456, 0.234567]}}}"
    baseline = arms(searched, choice, "search.searcher=optuna").searches[0]
    assert set(drawn(baseline, "learning_rate")) <= {0.123456, 0.234567}


def test_a_private_search_draws_one_number_of_runs_for_all_arms(searched: Path) -> None:
    numbers = set()
    for seed in range(20):
        settings = ["search.private=true", "search.runs=10", "search.law=geometric", f"search.seed={1000 + seed}"]
        lengths = {len(arm.runs) for arm in arms(searched, *settings).searches}
        assert len(lengths) == 1
        numbers |= lengths
    assert len(numbers) > 5


def test_equal_draws_of_a_private_search_are_trained_with_noise_of_their_own(searched: Path) -> None:
    choices = "search.space={training: {learning_rate: {choice: [0.1, 0.2]}}}"
    private = ["search.private=true", "search.law=poisson", "search.runs=12"]
    baseline, _, dp = arms(searched, choices, *private).searches
    assert len({run.trial.target_id for run in dp.runs}) == len(dp.runs) > 2
    assert len({run.trial.target_id for run in baseline.runs}) == 2


def test_prices(searched: Path, tmp_path: Path) -> None:
    baseline, _, dp = arms(searched).searches
    assert price_of(baseline, tmp_path).epsilon_with_search is None
    fixed = price_of(dp, tmp_path)
    assert fixed.epsilon_run == pytest.approx(4, rel=0.01)
    assert "composition of all 4 runs" in fixed.basis
    private = ["search.private=true", "search.runs=4"]
    best = price_of(arms(searched, *private).searches[2], tmp_path)
    assert fixed.epsilon_run < best.epsilon_with_search < fixed.epsilon_with_search < fixed.epsilon_trained_anew  # type: ignore[operator]
    assert best.epsilon_with_search < best.epsilon_trained_anew  # type: ignore[operator]
    leak = ["search.objective={attack: threshold, metric: auc, most: 0.6}"]
    chosen = price_of(arms(searched, *leak).searches[2], tmp_path)
    assert (chosen.epsilon_with_search, chosen.epsilon_trained_anew) == (None, None)
    assert "no guarantee covers" in chosen.basis


def test_runs_that_share_batches_have_no_price_together(searched: Path, tmp_path: Path) -> None:
    price = price_of(arms(searched, "training.paired_batches=true").searches[2], tmp_path)
    assert price.epsilon_run is not None
    assert (price.epsilon_with_search, price.epsilon_trained_anew) == (None, None)
    assert "same batches" in price.basis


def test_a_mechanism_without_noise_has_no_price(searched: Path, tmp_path: Path) -> None:
    quiet = "defenses.dp={name: clip_then_noise, noise_scale: 0, max_grad_norm: 1.0}"
    assert price_of(arms(searched, quiet).searches[2], tmp_path).epsilon_run is None


def test_a_price_counts_every_batch_size_that_may_be_drawn(searched: Path, tmp_path: Path) -> None:
    batch = "search.space.defenses.dp.training={batch_size: {choice: [25, 100]}}"
    noise = "defenses.dp={name: dp_sgd, noise_multiplier: 1.0, accountant: rdp}"
    of_both = price_of(arms(searched, batch, noise).searches[2], tmp_path)
    alone = [price_of(arms(searched, noise, f"training.batch_size={size}").searches[2], tmp_path) for size in (25, 100)]
    assert of_both.epsilon_run == max(each.epsilon_run for each in alone)  # type: ignore[type-var]
    assert of_both.epsilon_with_search >= max(each.epsilon_with_search for each in alone) * 0.999  # type: ignore[operator, type-var]
    endless = "search.space.defenses.dp={noise_multiplier: {uniform: [0.5, 2.0]}}"
    with pytest.raises(UserError, match="'noise_multiplier' changes what a run of dp reveals"):
        price_of(arms(searched, endless, noise).searches[2], tmp_path)
    many = "search.space.defenses.dp={training: {batch_size: {int: [20, 60]}, epochs: {int: [1, 9]}}}"
    with pytest.raises(UserError, match="369 combinations"):
        price_of(arms(searched, many, noise).searches[2], tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("search=3", "must be a mapping with runs"),
        ("search.runs=0", "runs is 0"),
        ("search.budget=9", "Unknown key 'budget'"),
        ("search.searcher=grid", "searcher"),
        ("search.validation=0", "validation is 0"),
        ("search.space={}", "must map training"),
        ("search.space.optimizer={}", "Unknown key 'optimizer'"),
        ("search.space.training={rate: {uniform: [0, 1]}}", "no field 'rate'"),
        ("search.space.training={optimizer: {choice: [sgd, adam]}}", "no field 'optimizer' that can be drawn"),
        ("search.space.training={learning_rate: {loguniform: [0, 1]}}", "above 0"),
        ("search.space.training={learning_rate: {uniform: [1, 0]}}", "lower one first"),
        ("search.space.training={learning_rate: {normal: [0, 1]}}", "Unknown distribution 'normal'"),
        ("search.space.training={learning_rate: 0.1}", "must be one of"),
        ("search.space.training={epochs: {int: [1.5, 3]}}", "whole numbers"),
        ("search.space.training={learning_rate: {choice: [-1, 0.1]}}", "learning_rate is -1"),
        ("search.space.training={epochs: {choice: [many]}}", "epochs: got 'many'"),
        ("search.space.defenses={l3: {weight: {uniform: [0, 1]}}}", "Unknown label 'l3'"),
        ("search.space.defenses={l2: {rate: {uniform: [0, 1]}}}", "0 of its defenses have a field 'rate'"),
        ("search.space={defenses: {l2: {weight: {uniform: [0, 1]}}}}", "arm 'baseline' has nothing to draw"),
        ("search.seed=1", "a target that chose its own settings"),
        ("search.private=true", None),
        ("search={runs: 4, validation: 50, private: true, searcher: optuna, space: {}}", "set searcher: random"),
        ("search.space.defenses={dp: {delta: {choice: [0.1, 0.01]}}}", "'delta' says what is proved"),
        (
            "search={runs: 4, validation: 50, early_stopping: asha, space: {}, objective: {attack: threshold, metric: auc, most: 1}}",
            "asha",
        ),
        ("search.objective=accuracy", "it must be validation_accuracy"),
        ("search.objective={attack: threshold, metric: mse, most: 0.1}", "Unknown metric 'mse'"),
        ("search.objective={attack: layer_decoder, metric: auc, most: 0.1}", "take threshold"),
        ("search.objective={attack: threshold, metric: auc, most: 55}", "from 0 to 1"),
    ],
)
def test_wrong_searches_are_refused_in_words(searched: Path, override: str, problem: str | None) -> None:
    if problem is None:
        arms(searched, override)
        return
    with pytest.raises(UserError, match=problem):
        arms(searched, override)


def test_a_part_may_have_no_search(tmp_path: Path) -> None:
    path = tmp_path / "parts.yaml"
    text = SEARCHED.replace(
        "defenses:\n  baseline: none\n",
        "parts:\n  plain: {search: null, defenses: {baseline: none}}\n  tuned: {}\ndefenses:\n",
    )
    path.write_text(text, encoding="utf-8")
    found = arms(path)
    assert [arm.cell.defense_label for arm in found.searches] == ["l2", "dp"]
    assert [trial.defense_label for trial in found.trials if trial.search_run is None] == ["baseline", "baseline"]


def test_a_private_search_by_an_attack_is_refused(searched: Path) -> None:
    with pytest.raises(UserError, match="no guarantee covers"):
        arms(searched, "search.private=true", "search.objective={attack: threshold, metric: auc, most: 0.6}")


def test_every_part_gets_the_same_budget_and_only_spaces_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "parts.yaml"
    text = SEARCHED.replace("defenses:\n  baseline: none\n  l2: {name: l2, weight: 0.01}\n", "").replace(
        "  dp: {name: dp_sgd, epsilon: 4.0, accountant: rdp}\n", ""
    )
    text += (
        "parts:\n"
        "  plain: {defenses: {baseline: none, l2: {name: l2, weight: 0.01}}}\n"
        "  private:\n"
        "    defenses: {dp: {name: dp_sgd, epsilon: 4.0, accountant: rdp}}\n"
        "    search: {space: {training: {learning_rate: {loguniform: [0.1, 10.0]}}}}\n"
    )
    path.write_text(text, encoding="utf-8")
    baseline, l2, dp = arms(path).searches
    assert (len(baseline.runs), len(l2.runs), len(dp.runs)) == (4, 4, 4)
    assert dp.fields["training", "learning_rate"].high == 10
    assert baseline.fields["training", "learning_rate"].high == 1
    assert ("defense", "dp_sgd", "max_grad_norm") in dp.fields
    with pytest.raises(UserError, match="its settings are not those of part 'plain'"):
        arms(path, "parts.private.search.runs=8")
    with pytest.raises(UserError, match=r"search.space.defenses: Unknown label 'dq'"):
        arms(path, "search.space.defenses={dq: {weight: {uniform: [0, 1]}}}")


# Early stopping


ASHA = ("search.early_stopping=asha", "search.grace_epochs=2", "training.epochs=8", "search.runs=9")


def test_only_plain_single_trainings_may_be_stopped(searched: Path) -> None:
    two = "defenses={baseline: none, selena: {name: selena, models: 2, left_out: 1}, dp: {name: dp_sgd, epsilon: 4.0, accountant: rdp}}"
    space = "search.space={training: {learning_rate: {loguniform: [0.01, 1.0]}}}"
    found = arms(searched, *ASHA, two, space).searches
    assert [arm.stops_early for arm in found] == [True, False, False]
    assert [{run.trial.early_stop for run in arm.runs} for arm in found] == [{found[0].early_stop}, {None}, {None}]
    with pytest.raises(UserError, match="do not draw `epochs`"):
        arms(searched, *ASHA, "search.space.training={epochs: {int: [1, 5]}}")


def test_asha_stops_the_worse_runs_at_its_rungs_and_remembers_runs_of_earlier_launches(searched: Path) -> None:
    baseline = arms(searched, *ASHA).searches[0]
    ids = [run.trial.target_id for run in baseline.runs]

    def decisions(stopping: EarlyStopping, accuracies: dict[str, float], epochs: range = range(1, 9)) -> dict[str, int]:
        """The last epoch of each run, if all go on side by side."""
        last: dict[str, int] = {}
        for epoch in epochs:
            for target_id, accuracy in accuracies.items():
                if last.get(target_id, epoch - 1) == epoch - 1:
                    last[target_id] = epoch
                    if stopping.decision(target_id, {EPOCH: epoch, VALIDATION_ACCURACY: accuracy}) == "STOP":
                        last[target_id] -= 100
        return {target_id: epoch % 100 for target_id, epoch in last.items()}

    units = [run.trial for run in baseline.runs]
    halving = Halving(epochs=8, grace_epochs=2, reduction_factor=3)
    stopping = EarlyStopping(units, {baseline.early_stop: halving})
    accuracies = {target_id: 0.9 - place / 100 for place, target_id in enumerate(ids)}  # the best comes first
    last = decisions(stopping, accuracies)
    assert last[ids[0]] == 8
    assert stopping.decision(ids[0], {EPOCH: 8, VALIDATION_ACCURACY: 0.0}) == "CONTINUE"  # it has just finished
    assert stopping.stopped == {target_id for target_id in ids if last[target_id] < 8}
    assert set(last.values()) <= {2, 6, 8}
    assert sum(epoch == 2 for epoch in last.values()) >= 5
    again = EarlyStopping(
        units, {baseline.early_stop: replace(halving, reached=dict(list(stopping.reached.items())[:8]))}
    )
    assert again.decision(ids[8], {EPOCH: 2, VALIDATION_ACCURACY: 0.5}) == "STOP"
    forgetful = EarlyStopping(units, {baseline.early_stop: halving})
    assert forgetful.decision(ids[8], {EPOCH: 2, VALIDATION_ACCURACY: 0.5}) == "CONTINUE"
    assert stopping.decision("another", {EPOCH: 2, VALIDATION_ACCURACY: 0.0}) == "CONTINUE"


def test_a_stopped_run_is_not_the_best(searched: Path) -> None:
    def scores(trial: Any, plan: Any) -> Score:
        stopped = trial.search_run == 0
        return Score(accuracy=0.99 if stopped else 0.5, is_stopped=stopped)

    assert [arm.best.number for arm in arms(searched, scores=scores).searches if arm.best] == [1, 1, 1]


def test_a_stopped_run_counts_for_no_search_that_stops_otherwise(searched: Path) -> None:
    def ids(*more: str) -> list[str]:
        return [run.trial.target_id for run in arms(searched, *ASHA, *more).searches[0].runs]

    assert not set(ids()) & set(ids("search.early_stopping=none"))
    assert not set(ids()) & set(ids("search.grace_epochs=1"))
    assert ids("search.runs=12")[:9] == ids()  # a larger budget keeps what there is


@pytest.mark.parametrize("is_search_run", [True, False])
def test_a_run_without_weights_is_done_only_if_no_attack_asks_for_them(is_search_run: bool) -> None:
    def word(*parts: str, attacks: tuple[tuple[str, None], ...] = ()) -> str:
        have = {tuple(part.split("/")) for part in parts}
        records = Records(attacks, 0, is_search_run)
        return judge("run", records, lambda table, key: (table, key) in have).word

    assert word("trials/run") == ("done" if is_search_run else "to do")
    assert word("trials/run", attacks=(("one", None),)) == "to do"
    everything = ("trials/run", "history/run", "outputs/run", "weights/run")
    assert word(*everything, attacks=(("one", None),)) == "partial"
    assert word(*everything, "attacks/run.one", attacks=(("one", None),)) == "done"


@pytest.mark.parametrize("split", ["half", "official", "quarters", "coins"])
def test_runs_are_planned_with_the_members_that_their_seed_leaves(searched: Path, tmp_path: Path, split: str) -> None:
    chosen = prepare(
        str(searched), LaunchOptions(data=tmp_path, out=tmp_path, overrides=[f"splits=[{split}]"])
    ).resolved.chosen
    for each in chosen:
        drawn = each.trial.split_plan.draw(400, 100, each.trial.seed)
        assert each.size.n_train == len(drawn.trained) > 0


@pytest.mark.slow
def test_a_search_run_whose_answers_are_not_finite_has_diverged(searched: Path, tmp_path: Path) -> None:
    # After its only step, the weights are finite, and what they answer is not
    one_step = (
        "splits=[half]",
        "architectures=[logistic_regression]",
        "training.epochs=1",
        "training.batch_size=171",
        "search.runs=1",
    )
    space = "search.space={training: {learning_rate: {choice: [1.0e+38]}}}"
    store, rounds = run_all(searched, tmp_path, *one_step, space, "comparisons=[]", "defenses={baseline: none}")
    assert rounds == 1
    (row,) = load(tmp_path).search_runs.to_dict("records")
    assert (row["status"], row["cause"]) == ("failed", "diverged")
    assert "not finite" in row["error"]
    assert read_status(store).failed == 0


@pytest.mark.slow
def test_a_run_that_is_not_stopped_is_the_run_without_early_stopping(searched: Path, tmp_path: Path) -> None:
    weights = []
    for place, settings in enumerate((["training.epochs=3"], ["search.early_stopping=asha", "training.epochs=3"])):
        trial = arms(searched, *settings).searches[0].runs[0].trial
        store = Store(tmp_path / str(place))
        store.prepare()
        run_trial(trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu")))
        weights.append(store.read_weights(trial.target_id))
        history = store.read_part("history", trial.target_id).to_pandas()
        row = store.read_part("trials", trial.target_id).to_pandas()
    assert weights[0] == weights[1]
    assert history["validation_accuracy"].notna().all()
    assert history["validation_accuracy"].iloc[-1] == row["validation_accuracy"][0]


@pytest.mark.ray
def test_a_launch_stops_runs_early_and_records_how_far_they_came(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [
        *(
            "search.early_stopping=asha",
            "search.grace_epochs=1",
            "training.epochs=30",
            "search.runs=8",
            "comparisons=[]",
        ),
        "defenses={baseline: none}",
        "search.space={training: {learning_rate: {choice: [1.0e-6, 0.1]}, batch_size: {choice: [20, 21, 22, 23, 24, 25, 26, 27]}}}",
    ]
    result = launch(str(searched), LaunchOptions(data=tmp_path, out=out, overrides=settings))
    assert result.is_whole, result
    runs = load(out).search_runs
    assert set(runs["status"]) == {"finished", "stopped"}
    stopped, finished = (runs[runs["status"] == word] for word in ("stopped", "finished"))
    assert finished["validation_accuracy"].max() > stopped["validation_accuracy"].max()
    assert set(load(out).trials["learning_rate"]) == {0.1}
    store = Store(out)
    for target_id in stopped["target_id"]:
        assert 1 <= store.read_part("history", target_id).column("epoch").to_pylist()[-1] < 30
    again = launch(str(searched), LaunchOptions(data=tmp_path, out=out, overrides=settings))
    assert again.is_whole
    assert load(out).search_runs["started_at"].equals(runs["started_at"])


# From the file to the tables


def test_a_plan_says_what_a_search_takes_before_it_starts(searched: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(searched), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "12 trials, 0 done, and 6 more when their settings are known" in text
    assert "composition of all 4 runs" in text
    (row,) = (
        line for line in result.stdout.splitlines() if line.startswith("dp · digits") and "search run" not in line
    )
    run, with_search, anew = map(float, row.split()[-3:])
    assert run <= 4 < with_search < anew
    rows = json.loads(CliRunner().invoke(app, ["plan", str(searched), "--json"]).stdout)
    assert sorted(row["search_run"] for row in rows) == sorted([0, 1, 2, 3] * 3)
    of_dp = [row["search"] for row in rows if row["defense"] == "dp"]
    assert {(each["n_runs"], each["n_to_come"], each["n_targets"]) for each in of_dp} == {(4, 0, 2)}
    assert of_dp[0]["epsilon_run"] < of_dp[0]["epsilon_with_search"] < of_dp[0]["epsilon_trained_anew"]


def run_all(path: Path, out: Path | str, *overrides: str) -> tuple[Store, int]:
    """Run a sweep in this process, round by round; the number of rounds."""
    options = LaunchOptions(data=path.parent, out=out, overrides=overrides)
    rounds = 0
    while True:
        prepared = prepare(str(path), options)
        prepared.store.prepare()
        prepared.resolved.record()
        pending = prepared.pending
        if not pending:
            gather(prepared.store, path.parent / "copy")
            return prepared.store, rounds
        rounds += 1
        assert rounds < 20, read_status(prepared.store)
        for trial in pending:
            run_trial(trial, TrialContext(data_dir=path.parent, store=prepared.store, device=torch.device("cpu")))


@pytest.mark.slow
def test_a_searched_sweep_from_its_file_to_its_tables(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    store, rounds = run_all(searched, out, "comparisons=[]")
    assert rounds == 2
    results = load(out)
    assert len(results.search_runs) == 12
    assert len(results.trials) == 6
    assert results.planned == 6
    assert not set(results.attacks["target_id"]) & set(results.search_runs["target_id"])
    for defense, runs in results.search_runs.groupby("defense"):
        best = runs.loc[runs["validation_accuracy"].idxmax()]
        chosen = results.trials[results.trials["defense"] == defense]
        assert set(chosen["learning_rate"]) == {best["learning_rate"]}
        assert set(chosen["search_runs"]) == {4}
        assert set(chosen["search_law"]) == {"fixed"}
    private = results.trials[results.trials["defense"] == "dp"]
    assert (private["epsilon_run"] <= private["epsilon_with_search"]).all()
    assert (private["epsilon_with_search"] <= private["epsilon_trained_anew"]).all()
    assert results.trials.loc[results.trials["defense"] == "l2", "epsilon_run"].isna().all()
    status = read_status(store)
    assert (status.trials, status.done) == (18, 18)
    outputs = store.read_part("outputs", results.trials["target_id"][0]).to_pandas()
    assert (outputs["role"] == "validation").sum() == 50
    assert run_all(searched, out, "comparisons=[]")[1] == 0


@pytest.mark.slow
def test_a_search_goes_on_in_an_object_store(searched: Path, tmp_path: Path, s3_server: S3Server) -> None:
    one_arm = (
        "defenses={l2: {name: l2, weight: 0.01}}",
        "comparisons=[]",
        "search.searcher=optuna",
        "search.at_once=2",
    )
    one_arm += ("search.space={training: {learning_rate: {loguniform: [0.01, 1.0]}}}",)
    objective = "search.objective={attack: threshold, metric: auc, most: 0.9}"
    store, rounds = run_all(searched, s3_server.uri("searched"), *one_arm, objective)
    here, rounds_here = run_all(searched, tmp_path / "out", *one_arm, objective)
    assert rounds == rounds_here == 3
    assert store.searches() == here.searches()
    results = load(tmp_path / "copy")
    assert (len(results.search_runs), len(results.trials)) == (4, 2)


@pytest.mark.slow
def test_a_diverging_run_is_a_result_and_not_a_failure(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    space = "search.space={training: {learning_rate: {choice: [0.05, 0.1, 1.0e+30]}}}"
    objective = "search.objective={attack: threshold, metric: auc, most: 0.9}"
    store, rounds = run_all(
        searched, out, "comparisons=[]", space, objective, "defenses={l2: {name: l2, weight: 0.01}}"
    )
    assert rounds == 2
    runs = load(out).search_runs
    assert set(runs["status"]) == {"finished", "failed"}
    assert set(runs.loc[runs["status"] == "failed", "cause"]) == {"diverged"}
    assert set(load(out).trials["learning_rate"]) == {0.1}
    assert read_status(store).failed == 0
    recorded = json.loads((out / "sweep.json").read_text())
    assert [each["best_run"] is not None for each in recorded["searches"]] == [True]
    arm = arms(searched, space, objective, "defenses={l2: {name: l2, weight: 0.01}}").searches[0]
    scores = [RecordedScores(store)(run.trial, arm.plan) for run in arm.runs]
    assert {score.accuracy is None for score in scores if score} == {True, False}
    assert {score.leak is None for score in scores if score} == {True, False}


@pytest.mark.ray
def test_launch_trains_the_runs_and_then_the_chosen(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run_tune, began = tmp_path / "out", cluster_run.run_tune, []

    def watch(*arguments: Any) -> None:
        began.append(arguments)
        run_tune(*arguments)

    monkeypatch.setattr(cluster_run, "run_tune", watch)
    options = LaunchOptions(data=tmp_path, out=out, overrides=["search.searcher=optuna", "search.at_once=2"])
    result = launch(str(searched), options)
    assert result.is_whole, result
    assert (result.n_trials, result.n_done) == (18, 18)
    assert len(load(out).search_runs) == 12
    assert len(began) == 1  # each next run starts as soon as it is known, and waits for no other arm


def test_composition_of_a_fixed_number_of_runs_is_that_of_their_steps(searched: Path, tmp_path: Path) -> None:
    noise = "defenses.dp={name: dp_sgd, noise_multiplier: 1.0, accountant: rdp}"
    dp = arms(searched, noise).searches[2]
    price = price_of(dp, tmp_path)
    split = dp.cell.split_plan.draw(400, 100, dp.cell.seed)
    n_train = len(split.trained)
    steps = 2 * n_train // 25
    assert price.epsilon_with_search == pytest.approx(epsilon(1.0, 25 / n_train, 4 * steps, 1e-5, "rdp"))
    assert price.epsilon_trained_anew == pytest.approx(epsilon(1.0, 25 / n_train, 5 * steps, 1e-5, "rdp"))


def test_targets_whose_settings_were_given_are_not_those_of_a_search(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    text = SEARCHED.replace(
        "defenses:\n  baseline", "parts:\n  tuned:\n  plain: {search: null, seeds: [4, 5]}\ndefenses:\n  baseline"
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="two configurations under the same labels"):
        arms(path, scores=by_learning_rate)
    found = arms(path)  # before the search is over, nothing is known to differ
    assert {trial.seed for trial in found.trials if trial.search_run is None} == {4, 5}
    assert [found.targets_of(arm) for arm in found.searches] == [[], [], []]


def test_a_field_of_no_architecture_is_refused(searched: Path) -> None:
    with pytest.raises(UserError, match="Unknown field 'hiden'"):
        arms(searched, "search.space.architecture={hiden: {uniform: [0, 1]}}")
    with pytest.raises(UserError, match="Unknown field of its architecture 'hiden'"):
        arms(searched, "search.space.defenses.l2={architecture: {hiden: {uniform: [0, 1]}}}")


def test_a_field_has_one_distribution_however_it_is_named(searched: Path) -> None:
    named = arms(searched, "search.space.defenses.l2={l2: {weight: {loguniform: [1.0e-4, 1.0e-2]}}}")
    assert [drawn(one, "weight") for one in named.searches[1:2]] == [drawn(arms(searched).searches[1], "weight")]
    both = "search.space.defenses.l2={weight: {uniform: [0.1, 0.2]}, l2: {weight: {uniform: [0.3, 0.4]}}}"
    with pytest.raises(UserError, match="'weight' of l2 has two distributions"):
        arms(searched, both)


def test_many_whole_numbers_have_a_price_if_they_do_not_change_epsilon(searched: Path, tmp_path: Path) -> None:
    wide = "search.space.defenses.dp={training: {%s: {int: [1, 400]}}}"
    [*_, dp] = arms(searched, wide % "evaluate_every").searches
    assert price_of(dp, tmp_path).epsilon_run == pytest.approx(4.0, abs=0.05)
    [*_, dp] = arms(searched, wide % "epochs").searches
    with pytest.raises(UserError, match="400 values with an ε of their own"):
        price_of(dp, tmp_path)


def test_runs_with_noise_in_their_gradients_are_never_stopped_early(searched: Path) -> None:
    overrides = ["search.early_stopping=asha", "search.space.defenses.dp={max_grad_norm: {uniform: [0.5, 2.0]}}"]
    noisy = "defenses.dp={name: noise_then_clip, noise_scale: 1.0, max_grad_norm: 1.0}"
    for override in ([], [noisy]):
        *plain, dp = arms(searched, *overrides, *override).searches
        assert not dp.stops_early
        assert all(arm.stops_early for arm in plain)
