"""Splits: disjoint parts of one shuffled pool, the test set apart, and every example's role."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from models.splits import SPLITS, SPLITS_WITH_SHADOW_DATA

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
        }[name]
        assert Counter(roles.tolist()) == expected
        assert set(np.flatnonzero(roles == "member")) == set(split.members)
        assert set(np.flatnonzero(roles == "non_member")) == set(split.non_members)
        assert set(np.flatnonzero(roles == "shadow_out")) == set(split.shadow_out)
