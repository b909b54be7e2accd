"""Five ways to split a dataset into members, non-members, shadow data and test examples; what is set aside beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.canaries import Canaries
from models.seeds import Stream, numpy_generator

IntArray = npt.NDArray[np.int64]

_NONE: IntArray = np.empty(0, dtype=np.int64)
_TEST_BESIDE_CANARIES = 2000
_POOL = ("non_members", "members", "shadow_in", "shadow_out", "background")
"""The sets of a split that come from the pool of training examples and that coins, or another draw, decide over."""
_ROLES = ("test", *_POOL, "reference", "validation")


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Positions in a dataset, in which training examples come first and test examples after them.

    The target is trained on `members`, and on `background`, of which no attack asks. Attacks tell `members` from `non_members`.
    Accuracy is measured on `test`; under `official` these are also the non-members. `reference` are examples of other people: no
    target is trained on them, and nothing is measured on them. `validation` chooses among settings, and has no other use.
    """

    members: IntArray
    non_members: IntArray
    test: IntArray
    shadow_in: IntArray = field(default_factory=lambda: _NONE)
    shadow_out: IntArray = field(default_factory=lambda: _NONE)
    background: IntArray = field(default_factory=lambda: _NONE)
    reference: IntArray = field(default_factory=lambda: _NONE)
    validation: IntArray = field(default_factory=lambda: _NONE)

    @property
    def trained(self) -> IntArray:
        """Everything that the target is trained on, ascending."""
        return np.sort(np.concatenate([self.members, self.background]))

    def roles(self, count: int) -> list[str]:
        """The role of each of `count` examples; an example in no set is "unused"."""
        roles = ["unused"] * count
        for name in _ROLES:
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


def _drawn(count: int, n_train: int, taken: IntArray, stream: Stream) -> IntArray:
    """`count` positions of the pool that are not taken, the same for every target; fewer if there are not so many."""
    order = numpy_generator(0, stream).permutation(n_train)
    return np.sort(order[~np.isin(order, taken)][:count]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """A split by its name, with canaries or without, and the numbers of reference and validation examples.

    With `canaries`, coins decide over these alone, and all other examples of the pool are members. The `reference` and
    `validation` examples are the same for every target; they are taken out of the pool first, but are never canaries.
    """

    name: str
    canaries: Canaries | None = None
    reference: int = 0
    validation: int = 0

    def __post_init__(self) -> None:
        if self.name not in SPLITS:
            raise ValueError(f"name is {self.name!r}; allowed: {', '.join(SPLITS)}")
        if self.name not in COIN_SPLITS and (self.canaries is not None or self.reference):
            what = "canaries need coins" if self.canaries is not None else "reference examples need a pool of coins"
            raise ValueError(f"name is {self.name!r}; {what}, so it must be {' or '.join(sorted(COIN_SPLITS))}")
        for name in ("reference", "validation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be zero or more examples")

    @property
    def label(self) -> str:
        """The split's name in tables if the user gives none."""
        return self.name if self.canaries is None else self.canaries.kind

    def draw(self, n_train: int, n_test: int, seed: int) -> Split:
        """The split of a pool of `n_train` examples and of `n_test` test examples.

        Raises:
            ValueError: the pool is too small for its canaries, reference and validation examples.
        """
        split = SPLITS[self.name](n_train, n_test, seed)
        canaries = _NONE if self.canaries is None else self.canaries.positions(n_train)
        reference = _drawn(self.reference, n_train, canaries, Stream.REFERENCE)
        validation = _drawn(self.validation, n_train, np.concatenate([canaries, reference]), Stream.VALIDATION)
        wanted = len(canaries) + self.reference + self.validation
        if len(reference) + len(validation) < self.reference + self.validation or wanted >= n_train:
            kinds = {"canaries": len(canaries), "reference": self.reference, "validation": self.validation}
            asked = " and ".join(
                f"{count} {kind}{'' if kind == 'canaries' else ' examples'}" for kind, count in kinds.items() if count
            )
            raise ValueError(f"the pool has {n_train} examples, too few for {asked}; set fewer, or take more examples")
        if wanted > len(canaries):
            apart = np.concatenate([reference, validation])
            kept = {name: np.setdiff1d(getattr(split, name), apart) for name in _POOL}
            split = replace(split, **kept, reference=reference, validation=validation)
        if self.canaries is None:
            return split
        originals, copies = self.canaries.pairs(n_train)
        attacked = copies if len(copies) else canaries
        members, non_members = np.intersect1d(attacked, split.members), np.intersect1d(attacked, split.non_members)
        # An original is in or out with its copy.
        left_out = np.concatenate([attacked, reference, validation, originals[np.isin(copies, non_members)]])
        return replace(
            split,
            members=members,
            non_members=non_members,
            background=np.setdiff1d(np.arange(n_train), left_out),
        )

    def answered(self, split: Split) -> IntArray:
        """Positions of the examples whose answers attacks on cohorts need: those that coins decide over, then test examples.

        With canaries, few test examples are kept, the same for every target: answers to all would take most of the space.
        """
        tossed, test = np.sort(np.concatenate([split.members, split.non_members])), split.test
        if self.canaries is not None:
            # Drawn, because a user's files may be sorted by class.
            drawn = numpy_generator(0, Stream.CANARIES, 2).permutation(len(test))[:_TEST_BESIDE_CANARIES]
            test = test[np.sort(drawn)]
        return np.concatenate([tossed, test])
