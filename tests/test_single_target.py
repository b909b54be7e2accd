"""BlindMI's decisions and the estimate from the losses' tail: definitions, leaks, nulls, and what is recorded of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.stats import binomtest
from test_trial import run, table

from attacks.base import (
    AttackError,
    AttackTarget,
    BlackBox,
    InputSet,
    Membership,
    MembershipDecisions,
    ModelOutputs,
)
from attacks.membership import blind_mi
from attacks.membership.blind_mi import BlindMi
from attacks.membership.tail import Tail
from attacks.metrics import auc
from sweeper.results.expected import candidate_ids, records_of
from sweeper.sweep import components

CLASSES = 4


def rng(seed: Any = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def population(seed: Any, n_members: int, n_non_members: int, gap: float) -> Membership:
    """Logits of a model that is surer of its members by `gap`, in random order."""
    n = n_members + n_non_members
    is_member = rng([seed, 1]).permutation(np.arange(n) < n_members)
    label = rng([seed, 2]).integers(CLASSES, size=n)
    logits = rng([seed, 3]).normal(size=(n, CLASSES))
    logits[np.arange(n), label] += 1 + gap * is_member
    return Membership(outputs=ModelOutputs(example_id=np.arange(n), label=label, values=logits), is_member=is_member)


def black_box(example_id: np.ndarray, asked: list[torch.Tensor] | None = None) -> BlackBox:
    """A model that is unsure of every probe, and remembers them."""

    def query(images: torch.Tensor) -> np.ndarray:
        if asked is not None:
            asked.append(images)
        return rng(len(images)).normal(size=(len(images), CLASSES))

    n = len(example_id)
    images = torch.from_numpy(rng(9).integers(256, size=(n, 1, 8, 8), dtype=np.uint8))
    return BlackBox(
        query=query,
        test=InputSet(example_id=example_id, inputs=images),
        test_label=rng(8).integers(CLASSES, size=n),
    )


def decide(people: Membership, seed: int = 0, **fields: Any) -> MembershipDecisions:
    target = AttackTarget(population=people, black_box=black_box(np.arange(10_000, 10_050)))
    (decisions,) = BlindMi(**fields).run(target, rng(seed))
    return decisions


# --- BlindMI ---


def reference_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The definition of BlindMi's docstring, from all pairs."""
    widths = [10.0**i for i in range(-6, 1)] + [5, 10, 15, 20, 25, 30, 35] + [10.0**i for i in range(2, 7)]

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        distance = cdist(a, b, "sqeuclidean")
        return float(np.mean([np.exp(-distance / (2 * s)) for s in widths]) * len(widths))

    return max(1e-4, mean(x, x) + mean(y, y) - 2 * mean(x, y))


def reference_pass(probes: np.ndarray, batch: np.ndarray, remains: np.ndarray) -> np.ndarray:
    """Which examples remain members after one pass, by computing every distance anew."""
    now, after = reference_mmd(probes, batch[remains]), remains.copy()
    for j in np.flatnonzero(remains):
        rest = remains & (np.arange(len(batch)) != j)
        if rest.any() and reference_mmd(np.vstack((probes, batch[j])), batch[rest]) > now:
            after[j] = False
    return after


@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("spread", [0.01, 0.5, 1.0])
def test_decisions_equal_those_from_distances_computed_anew(size: int, spread: float) -> None:
    generator = rng([size, int(1 / spread)])
    probes = generator.random((20, 3)) * 0.4
    n_passes = set()
    for _ in range(8):
        batch = np.clip(0.2 + spread * generator.random((size, 3)), 0, 1)
        sums = blind_mi._kernel(batch, probes).sum(axis=1), float(blind_mi._kernel(probes, probes).sum())
        expected, passes = np.ones(size, dtype=bool), 0
        while expected.any():
            passes += 1
            after = reference_pass(probes, batch, expected)
            within = blind_mi._kernel(batch, batch)
            assert list(blind_mi._remaining(sums[1], sums[0], within, passes)) == list(after)
            if (after == expected).all():
                break
            expected = after
        assert list(blind_mi._remaining(sums[1], sums[0], within, 20)) == list(expected)
        n_passes.add(passes)
    assert min(size, spread * 14) < 7 or max(n_passes) > 2, "examples must move in more than one pass"


def test_probes_are_opencvs_sobel_of_twenty_test_examples_that_are_not_evaluated() -> None:
    """SciPy's filter with borders mirrored about the outermost pixels is an independent implementation."""
    images = torch.from_numpy(rng().integers(256, size=(3, 2, 5, 7), dtype=np.uint8))
    edges = blind_mi._sobel(images)
    assert edges.dtype == torch.uint8
    for image, edge in zip(images.numpy().reshape(-1, 5, 7), edges.numpy().reshape(-1, 5, 7), strict=True):
        sides = [np.abs(ndimage.sobel(image.astype(float), axis, mode="mirror")).clip(max=255) for axis in (0, 1)]
        assert (edge == np.round(sum(sides) / 2)).all()

    people = population(0, 30, 30, 1.0)
    asked: list[torch.Tensor] = []
    box = black_box(np.arange(40, 100), asked)  # of these, 40 to 59 are evaluated
    BlindMi().run(AttackTarget(population=people, black_box=box), rng())
    all_edges = [edge.tolist() for edge in blind_mi._sobel(box.test.inputs)]
    (probes,) = asked
    found = [all_edges.index(probe.tolist()) for probe in probes]
    assert len(set(found)) == 20
    assert min(found) >= 20


def test_probes_come_from_evaluated_non_members_where_there_are_no_others() -> None:
    people = population(0, 30, 30, 1.0)
    asked: list[torch.Tensor] = []
    box = black_box(people.outputs.example_id[~people.is_member], asked)
    BlindMi().run(AttackTarget(population=people, black_box=box), rng())
    assert len(asked[0]) == 20
    for few, message in ((black_box(np.arange(1000, 1019)), "there are 19"), (None, "stored outputs alone")):
        with pytest.raises(AttackError, match=message):
            BlindMi().run(AttackTarget(population=people, black_box=few), rng())


def test_blind_mi_finds_the_members_of_a_leaky_target_and_none_of_a_tight_one() -> None:
    leaky = decide(population(1, 400, 400, gap=6.0)).columns()
    assert leaky["decided_tpr_low"] > leaky["decided_fpr_high"] + 0.3
    assert leaky["balanced_accuracy"] > 0.7
    differences = []
    for seed in range(20):
        tight = decide(population(seed, 200, 200, gap=0.0), seed).columns()
        differences.append(tight["decided_tpr"] - tight["decided_fpr"])
    error = np.std(differences, ddof=1) / np.sqrt(20)
    assert abs(np.mean(differences)) < 4 * error < 0.1


def test_decisions_use_no_membership_and_repeat_themselves() -> None:
    people = population(2, 50, 60, gap=3.0)
    turned = Membership(outputs=people.outputs, is_member=~people.is_member)
    first = decide(people)
    assert 0 < first.decided.sum() < len(first.decided)
    assert (first.decided == decide(turned).decided).all()
    assert (first.decided == decide(people).decided).all()
    assert (first.decided != decide(people, seed=1).decided).any()


def test_more_passes_only_move_more_examples_out() -> None:
    people = population(3, 200, 200, gap=4.0)
    remaining = [decide(people, max_passes=passes).decided for passes in (1, 2, 20, 1000)]
    for before, after in itertools.pairwise(remaining):
        assert (after <= before).all()
    assert (remaining[2] == remaining[3]).all()
    with pytest.raises(ValueError, match="max_passes is 0; it must be at least 1"):
        BlindMi(max_passes=0)


@pytest.mark.parametrize(("right", "wrong"), [(0, 0), (30, 40), (30, 0), (7, 13)])
def test_columns_of_decisions_are_rates_with_exact_intervals(right: int, wrong: int) -> None:
    is_member = np.arange(70) < 30
    decided = np.concatenate((np.arange(30) < right, np.arange(40) < wrong))
    found = MembershipDecisions(name="d", example_id=np.arange(70), is_member=is_member, decided=decided).columns()
    for name, count, n in (("decided_tpr", right, 30), ("decided_fpr", wrong, 40)):
        exact = binomtest(count, n).proportion_ci(0.95, "exact")
        values = [found[name], found[f"{name}_low"], found[f"{name}_high"]]
        assert values == pytest.approx([count / n, exact.low, exact.high], abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx((right / 30 + 1 - wrong / 40) / 2)


# --- Tail ---


@pytest.mark.parametrize("gap", [0.0, 2.0])
@pytest.mark.parametrize("n_members", [999, 1999])
def test_tail_counts_the_non_members_with_a_loss_above_almost_all_members(gap: float, n_members: int) -> None:
    """With n members, the rank α(n + 1) is whole, so the threshold is the loss of one member."""
    people = population([n_members, int(gap)], n_members, 300, gap)
    (found,) = Tail().run(AttackTarget(population=people), rng())
    values, label = people.outputs.values, people.outputs.label
    loss = np.log(np.exp(values).sum(axis=1)) - values[np.arange(len(values)), label]
    columns = found.columns()
    for fnr, known in ((0.001, False), (0.01, n_members >= 1000), (0.1, True)):
        name = f"tnr_at_fnr_{fnr}"
        if not known:
            assert columns[name] is columns[f"{name}_low"] is columns[f"{name}_high"] is None
            continue
        threshold = np.sort(loss[people.is_member])[-round(fnr * (n_members + 1))]
        assert columns[name] == pytest.approx((loss[~people.is_member] > threshold).mean())
        assert columns[f"{name}_low"] <= columns[name] <= columns[f"{name}_high"]
    assert (columns["n_members"], columns["n_non_members"]) == (n_members, 300)


def test_tail_is_the_false_negative_rate_where_nothing_leaks_and_far_above_where_it_does() -> None:
    rates = [
        Tail().run(AttackTarget(population=population(seed, 300, 300, 0.0)), rng())[0].tnr_at_fnr[0.1]
        for seed in range(40)
    ]
    assert np.mean(rates) == pytest.approx(0.1, abs=4 * np.std(rates) / np.sqrt(40))
    (leaky,) = Tail().run(AttackTarget(population=population(0, 300, 300, 4.0)), rng())
    assert leaky.columns()["tnr_at_fnr_0.1_low"] > 0.5


# --- What is recorded ---


ALL = "attacks=[threshold, blind_mi, tail, {name: trained_attackers, attackers: [logistic_regression], search: none}]"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, pd.DataFrame]:
    from conftest import TINY

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recorded")
    path = folder / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    store, trials, (result,) = run(path, folder / "out", "splits=[coins]", ALL, only=1)
    assert result.status == "finished", result.errors
    return store, trials[0], table(store, "attacks")


def test_decisions_are_recorded_as_one_point_without_a_roc(recorded: Any) -> None:
    store, _, attacks = recorded
    (row,) = attacks[attacks["attack"] == "blind_mi"].to_dict("records")
    scores = table(store, "scores")
    own = scores[scores["attack_id"] == row["attack_id"]]
    assert set(own["score_name"]) == {row["score_name"]} == {"diff_w"}
    assert set(own["score"]) <= {0.0, 1.0}
    assert row["decided_tpr"] == pytest.approx(own.loc[own["is_member"], "score"].mean())
    assert row["decided_fpr"] == pytest.approx(own.loc[~own["is_member"], "score"].mean())
    assert row["balanced_accuracy"] == pytest.approx((1 + row["decided_tpr"] - row["decided_fpr"]) / 2)
    assert (row["status"], row["uses_target_membership_labels"]) == ("finished", False)
    ranked = [name for name in attacks.columns if name.startswith(("auc", "tpr_at", "advantage", "n_tied", "null_auc"))]
    assert len(ranked) > 12
    assert all(pd.isna(row[name]) for name in [*ranked, "epsilon_lower_bound", "audit_delta", "largest_tie"])
    others = attacks[attacks["attack"] != "blind_mi"]
    assert others[[name for name in attacks.columns if name.startswith("decided")]].isna().all(axis=None)


def test_the_tail_is_recorded_without_scores(recorded: Any) -> None:
    store, trial, attacks = recorded
    (row,) = attacks[attacks["attack"] == "tail"].to_dict("records")
    assert row["attack_id"] not in set(table(store, "scores")["attack_id"])
    assert row["tnr_at_fnr_0.1_low"] <= row["tnr_at_fnr_0.1"] <= row["tnr_at_fnr_0.1_high"]
    assert all(pd.isna(row[name]) for name in ("tnr_at_fnr_0.01", "auc", "score_name", "decided_tpr", "null_auc"))
    assert store.status(trial).done
    tables = {
        components.name_of("attack", attack): dict(records_of(trial).attacks)[each]
        for each, attack in trial.attack_ids.items()
    }
    assert tables == {"threshold": "scores", "blind_mi": "scores", "tail": None, "trained_attackers": "scores"}


def test_what_has_no_ranking_is_never_the_best_attack(recorded: Any) -> None:
    _, trial, attacks = recorded
    (best,) = attacks[attacks["attack"] == "best_of"].to_dict("records")
    assert {each.split("/")[0] for each in best["candidates"]} == {"threshold", "trained_attackers"}
    ranked = tuple(each for each in trial.attacks if components.name_of("attack", each) not in ("blind_mi", "tail"))
    assert candidate_ids(trial.attacks) == candidate_ids(ranked), "so that earlier records of best_of remain valid"


def test_attacks_without_a_ranking_need_no_best_of(tiny: Path, tmp_path: Path) -> None:
    store, trials, (result,) = run(tiny, tmp_path / "out", "attacks=[blind_mi, tail]", "splits=[official]", only=1)
    assert result.status == "finished", result.errors
    assert set(table(store, "attacks")["attack"]) == {"blind_mi", "tail"}
    assert store.statuses(trials)[trials[0].target_id].done


def test_each_unfitted_score_has_a_null_under_coins(recorded: Any) -> None:
    _, _, attacks = recorded
    known = attacks["null_auc"].notna()
    assert set(attacks.loc[known, "attack"]) == {"threshold"}
    assert known.sum() == 4
    assert attacks.loc[known, "epsilon_lower_bound"].notna().all()
    n = int(attacks.loc[known, "n_members"].iloc[0] + attacks.loc[known, "n_non_members"].iloc[0])
    error = 1 / np.sqrt(3 * n)  # of the AUC of guesses, with half of n on each side
    assert (attacks.loc[known, "null_auc"] - 0.5).abs().max() < 4 * error


def test_the_null_tosses_coins_of_its_own_and_changes_no_other_draw() -> None:
    from attacks.base import MembershipScores
    from sweeper.trial.attack import _null_auc

    generator, untouched = rng(5), rng(5)
    score = rng(6).normal(size=4000)
    result = MembershipScores(name="s", example_id=np.arange(4000), is_member=score > 0, score=score)
    null = _null_auc(result, generator)
    assert auc(result.is_member, score) == 1
    assert null == pytest.approx(0.5, abs=4 / np.sqrt(3 * 4000))
    assert generator.random() == untouched.random()
    assert _null_auc(result, rng(5)) == null
