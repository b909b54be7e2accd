"""Splits: disjoint parts of one pool, the test set apart, and every example's role."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from models.seeds import Stream, numpy_generator
from models.splits import COIN_SPLITS, SPLITS, SPLITS_WITH_SHADOW_DATA, SplitPlan

SETS = ("members", "non_members", "shadow_in", "shadow_out")
SIZES = [(100, 20), (101, 7), (1437, 360), (8, 2), (1003, 1)]


def training_sets(split):
    return {name: getattr(split, name) for name in SETS}


@pytest.mark.parametrize(("n_train", "n_test"), SIZES)
@pytest.mark.parametrize("name", SPLITS)
def test_sets_are_disjoint_and_nobody_trains_on_the_test_set(name, n_train, n_test):
    split = SPLITS[name](n_train, n_test, 3)
    np.testing.assert_array_equal(split.test, np.arange(n_train, n_train + n_test))
    for one, other in combinations(SETS, 2):
        assert not set(getattr(split, one)) & set(getattr(split, other)), (one, other)
    for part in SETS:
        positions = getattr(split, part)
        assert len(set(positions.tolist())) == len(positions)
        assert positions.dtype == np.int64
        if name == "official" and part == "non_members":
            np.testing.assert_array_equal(positions, split.test)
        else:
            assert len(positions) == 0 or (positions.min() >= 0 and positions.max() < n_train)


@pytest.mark.parametrize(("n_train", "n_test"), SIZES)
def test_sizes(n_train, n_test):
    sizes = {name: [len(part) for part in training_sets(SPLITS[name](n_train, n_test, 0)).values()] for name in SPLITS}
    assert sizes["official"] == [n_train, n_test, 0, 0]
    assert sizes["half"] == [n_train // 2] * 2 + [0, 0]
    assert sizes["quarters"] == [n_train // 4] * 4
    assert sum(sizes["coins"][:2]) == n_train
    assert sizes["coins"][2:] == [0, 0]


def test_only_splits_by_coins_have_sizes_that_depend_on_the_seed():
    for name, make in SPLITS.items():
        sizes = {(len(split.members), len(split.non_members)) for split in (make(400, 40, seed) for seed in range(5))}
        assert (len(sizes) > 1) == (name in COIN_SPLITS), name


def test_coins_are_fair_and_independent_of_each_other():
    """Over 2,000 seeds, the count of members of two examples, and of the two alike, is binomial with p = 1/2."""
    n_seeds, n_train = 2000, 6
    heads = np.zeros((n_seeds, n_train), dtype=bool)
    for seed in range(n_seeds):
        heads[seed, SPLITS["coins"](n_train, 5, seed).members] = True
    spread = np.sqrt(n_seeds) / 2
    # 5 standard deviations: 21 comparisons go wrong with a probability of 1e-5
    assert np.abs(heads.sum(0) - n_seeds / 2).max() < 5 * spread
    for one, other in combinations(range(n_train), 2):
        # In halves of 3 and 3, two examples are alike in 2 of 5 cases, which is 9 standard deviations away.
        assert abs((heads[:, one] == heads[:, other]).sum() - n_seeds / 2) < 5 * spread
    # The number of heads is binomial too, of variance n / 4; for halves it would be 0.
    assert heads.sum(1).var() == pytest.approx(n_train / 4, rel=0.15)


def test_coins_are_those_of_a_stream_of_their_own():
    heads = numpy_generator(7, Stream.SPLIT, 2).random(50) < 0.5  # recorded results were made with these
    np.testing.assert_array_equal(SPLITS["coins"](50, 5, 7).members, np.flatnonzero(heads))


def test_coins_share_no_randomness_with_the_other_splits():
    members = set(SPLITS["coins"](4000, 5, 7).members.tolist())
    for name in ("half", "quarters"):
        others = set(SPLITS[name](4000, 5, 7).members.tolist())
        assert abs(len(members & others) - len(others) / 2) < 5 * np.sqrt(len(others)) / 2


@pytest.mark.parametrize("name", SPLITS)
def test_the_seed_alone_decides(name):
    one, again, other = (SPLITS[name](400, 40, seed) for seed in (1, 1, 2))
    for part in SETS:
        np.testing.assert_array_equal(getattr(one, part), getattr(again, part))
    same = np.array_equal(one.members, other.members)
    assert same == (name == "official")


def test_only_the_splits_that_say_so_have_shadow_data():
    for name, make in SPLITS.items():
        split = make(400, 40, 0)
        assert (len(split.shadow_in) > 0) == (len(split.shadow_out) > 0) == (name in SPLITS_WITH_SHADOW_DATA)


@pytest.mark.parametrize("name", ["half", "quarters"])
def test_every_example_of_the_pool_is_as_likely_in_every_set(name):
    """Over 400 seeds, each position's count in each set is binomial: chi-square over positions, p above 1e-6."""
    n_train, n_seeds, parts = 40, 400, {"half": 2, "quarters": 4}[name]
    counts = {part: np.zeros(n_train) for part in SETS[:parts]}
    for seed in range(n_seeds):
        split = SPLITS[name](n_train, 5, seed)
        for part, count in counts.items():
            count[getattr(split, part)] += 1
    expected, spread = n_seeds / parts, n_seeds / parts * (1 - 1 / parts)
    for count in counts.values():
        # 40 degrees of freedom at most: 97 is passed with a probability of 1e-6 when the pool is well shuffled.
        assert ((count - expected) ** 2 / spread).sum() < 97


def test_quarters_are_not_made_of_neighbors():
    """Four parts of one shuffled pool: the lag of sorted positions is that of random subsets, not 1."""
    split = SPLITS["quarters"](4000, 10, 0)
    for part in training_sets(split).values():
        assert np.median(np.diff(part)) > 1
        assert part.min() < 40
        assert part.max() > 3960


def test_roles_say_what_each_example_is_used_for():
    n_train, n_test = 43, 9
    for name, make in SPLITS.items():
        split = make(n_train, n_test, 5)
        roles = np.array(split.roles(n_train + n_test))
        expected = {
            "official": {"member": n_train, "non_member": n_test},
            "half": {"member": 21, "non_member": 21, "unused": 1, "test": n_test},
            "quarters": {
                "member": 10,
                "non_member": 10,
                "shadow_in": 10,
                "shadow_out": 10,
                "unused": 3,
                "test": n_test,
            },
            **{
                key: {"member": len(split.members), "non_member": n_train - len(split.members), "test": n_test}
                for key in ("coins", "coin_pairs")
            },
        }[name]
        assert Counter(roles.tolist()) == expected
        assert set(np.flatnonzero(roles == "member")) == set(split.members)
        assert set(np.flatnonzero(roles == "non_member")) == set(split.non_members)
        assert set(np.flatnonzero(roles == "shadow_out")) == set(split.shadow_out)


@pytest.mark.parametrize("name", SPLITS)
def test_validation_examples_come_from_the_pool_and_have_no_other_use(name):
    splits = [SplitPlan(name=name, validation=60).draw(400, 50, seed) for seed in range(4)]
    without = [SplitPlan(name=name).draw(400, 50, seed) for seed in range(4)]
    for split, before in zip(splits, without, strict=True):
        assert len(split.validation) == 60
        assert split.validation.max() < 400
        np.testing.assert_array_equal(split.validation, splits[0].validation)
        for other in (*training_sets(split).values(), split.trained, split.test):
            assert not set(split.validation.tolist()) & set(other.tolist())
        for part in SETS:
            np.testing.assert_array_equal(
                getattr(split, part), np.setdiff1d(getattr(before, part), split.validation), part
            )
        assert Counter(split.roles(450))["validation"] == 60


def test_validation_and_reference_examples_are_disjoint_and_a_pool_without_room_is_refused():
    split = SplitPlan(name="coins", validation=60, reference=100).draw(400, 50, 0)
    assert not set(split.validation.tolist()) & set(split.reference.tolist())
    np.testing.assert_array_equal(split.reference, SplitPlan(name="coins", reference=100).draw(400, 50, 0).reference)
    with pytest.raises(ValueError, match="300 reference examples and 100 validation examples"):
        SplitPlan(name="coins", validation=100, reference=300).draw(400, 50, 0)
    with pytest.raises(ValueError, match="validation is -1"):
        SplitPlan(name="half", validation=-1)
