"""Five ways to split a dataset into members, non-members, shadow data and test examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.seeds import Stream, numpy_generator

IntArray = npt.NDArray[np.int64]

_NONE: IntArray = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Positions in a dataset, in which training examples come first and test examples after them.

    The target is trained on `members`. Accuracy is measured on `test`; under `official` these are also the non-members.
    """

    members: IntArray
    non_members: IntArray
    test: IntArray
    shadow_in: IntArray = field(default_factory=lambda: _NONE)
    shadow_out: IntArray = field(default_factory=lambda: _NONE)

    def roles(self, count: int) -> list[str]:
        """The role of each of `count` examples; an example in no set is "unused"."""
        roles = ["unused"] * count
        for name in ("test", "non_members", "members", "shadow_in", "shadow_out"):
            for position in getattr(self, name).tolist():
                roles[position] = name.removesuffix("s") if name.endswith("members") else name
        return roles


def official(n_train: int, n_test: int, seed: int) -> Split:
    """The papers' protocol: members are the training set, non-members are the test set.

    The two sets do not come from one shuffled pool, so an attack may tell them apart by more than membership. Results are
    therefore reported as the papers' protocol, beside an honest one. `seed` has no effect.
    """
    test = np.arange(n_train, n_train + n_test)
    return Split(members=np.arange(n_train), non_members=test, test=test)


def half(n_train: int, n_test: int, seed: int) -> Split:
    """Members are a random half of the training pool; non-members are the other half."""
    members, non_members = _parts(n_train, seed, 2)
    return Split(members=members, non_members=non_members, test=np.arange(n_train, n_train + n_test))


def quarters(n_train: int, n_test: int, seed: int) -> Split:
    """Salem et al. 2018: four disjoint random parts of the training pool, in and out for the target and the shadow."""
    members, non_members, shadow_in, shadow_out = _parts(n_train, seed, 4)
    return Split(
        members=members,
        non_members=non_members,
        shadow_in=shadow_in,
        shadow_out=shadow_out,
        test=np.arange(n_train, n_train + n_test),
    )


def coins(n_train: int, n_test: int, seed: int) -> Split:
    """Steinke, Nasr & Jagielski 2023: an independent fair coin decides for each example of the pool if it is a member.

    Their audit of one training run derives a lower bound on ε from the number of right guesses, and needs independent
    coins. Halves of a fixed size are not independent: knowing some members tells something about the others. The number of
    members is binomial, n_train / 2 ± √n_train / 2, and depends on `seed`.
    """
    heads = numpy_generator(seed, Stream.SPLIT, 2).random(n_train) < 0.5
    return Split(
        members=np.flatnonzero(heads).astype(np.int64),
        non_members=np.flatnonzero(~heads).astype(np.int64),
        test=np.arange(n_train, n_train + n_test),
    )


def coin_pairs(n_train: int, n_test: int, seed: int) -> Split:
    """`coins` for even seeds; each odd seed has as members exactly the non-members of the even seed before it.

    Each run alone still tosses a fair coin for each example. Over a pair, every example is in one run and out of the other,
    which evens out a small cohort. The two runs of a pair share their coins, so neither may be a reference against the other.
    """
    split = coins(n_train, n_test, seed - seed % 2)
    return split if seed % 2 == 0 else Split(members=split.non_members, non_members=split.members, test=split.test)


def _parts(n_train: int, seed: int, parts: int) -> list[IntArray]:
    """Equal, disjoint random parts of the pool, each sorted; up to parts − 1 examples are left over."""
    shuffled = numpy_generator(seed, Stream.SPLIT).permutation(n_train)
    size = n_train // parts
    return [np.sort(shuffled[i * size : (i + 1) * size]).astype(np.int64) for i in range(parts)]


SPLITS: dict[str, Callable[[int, int, int], Split]] = {
    "official": official,
    "half": half,
    "quarters": quarters,
    "coins": coins,
    "coin_pairs": coin_pairs,
}
"""Every split, `(n_train, n_test, seed) -> Split`, by the name that users type."""

REVISIONS = dict.fromkeys(SPLITS, 1)
"""Each split's revision, raised when the same sizes and seed would give another split."""

SPLITS_WITH_SHADOW_DATA = frozenset({"quarters"})

COIN_SPLITS = frozenset({"coins", "coin_pairs"})
"""Splits that toss a coin for each example. The number of members depends on the seed, and one run can be audited."""
