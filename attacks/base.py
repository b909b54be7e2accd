"""Inputs and results of every attack, and their base class.

An attack is a frozen dataclass in its own file; users type the file's name. It sees an `AttackTarget`, never the code that
trained it. This module does not import torch, so an audit of stored outputs starts quickly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class AttackError(ValueError):
    """The attack cannot run on its input. The message says what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutputs:
    """A model's outputs for `n` queries, in eval mode, under one deterministic transform.

    `example_id` (n,) and `label` (n,) are int64. `values` (n, classes) holds logits, or class probabilities if
    `is_probability` is true (a model behind an API may return nothing else).
    """

    example_id: IntArray
    label: IntArray
    values: FloatArray
    is_probability: bool = False

    def __len__(self) -> int:
        return len(self.example_id)


@dataclass(frozen=True, kw_only=True, eq=False)
class Membership:
    """A model's outputs on its own members and non-members; `is_member` (n,) says which is which."""

    outputs: ModelOutputs
    is_member: BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSet:
    """Inputs of a model with their ids in the dataset: images (n, channels, height, width) uint8, or rows (n, features) float32."""

    example_id: IntArray
    inputs: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class WhiteBox:
    """White-box access to a target: its activations at named cut points, and examples for the attack.

    `activations(inputs, cut)` takes inputs and returns the trained target's activations in eval mode.
    `untrained_activations` does the same for a newly initialized model of the same architecture (the control: what the
    architecture alone reveals). `attacker` is disjoint from all training data of the target and from the three sets that
    are evaluated.
    """

    cut_points: tuple[str, ...]
    activations: Callable[[torch.Tensor, str], torch.Tensor]
    untrained_activations: Callable[[torch.Tensor, str], torch.Tensor]
    attacker: InputSet
    members: InputSet
    non_members: InputSet
    test: InputSet


@dataclass(frozen=True, kw_only=True, eq=False)
class BlackBox:
    """Black-box access to a target: its answers to inputs of the attacker's choice.

    `query(inputs)` takes inputs as in `InputSet` and returns the target's logits (n, classes) in eval mode.
    `test` holds the test examples, and `test_label` (n,) their classes. None is a member.
    """

    query: Callable[[torch.Tensor], FloatArray]
    test: InputSet
    test_label: IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackTarget:
    """A trained target as an attacker sees it.

    `population` holds the examples whose membership is to be inferred. `half` (n,), 0 or 1, splits it in two for all attacks
    fitted on its membership labels, so that they can be compared; if None, each attack draws its own halves. `train_shadow`
    trains a shadow model by the target's own recipe on data disjoint from the target's, and returns its outputs; it is None
    if the split keeps no shadow data. `black_box` and `white_box` are None for outputs without a model.
    """

    population: Membership
    half: IntArray | None = None
    train_shadow: Callable[[], Membership] | None = None
    black_box: BlackBox | None = None
    white_box: WhiteBox | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipScores:
    """One score for each example of the population. **A higher score means more likely a member.**

    An attack fitted on the target's own membership labels sets two more fields. `fold` (n,) is each example's half; its
    score comes from an attacker fitted on the other half. `selection_score` (n,) is for choosing between attacks: like
    `score`, but it uses labels of the example's own half only.
    """

    table: ClassVar[str | None] = "scores"
    ranks_examples: ClassVar[bool] = True

    name: str
    example_id: IntArray
    is_member: BoolArray
    score: npt.NDArray[np.float64]
    fold: IntArray | None = None
    selection_score: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipDecisions:
    """One decision for each example of the population, `decided` (n,): true for "member".

    Decisions are a single operating point. They have no order, so they have no ROC curve and no AUC.
    """

    table: ClassVar[str | None] = "scores"
    ranks_examples: ClassVar[bool] = False

    name: str
    example_id: IntArray
    is_member: BoolArray
    decided: BoolArray

    def as_scores(self) -> MembershipScores:
        """The decisions as scores of 1 and 0, to be stored."""
        return MembershipScores(
            name=self.name,
            example_id=self.example_id,
            is_member=self.is_member,
            score=self.decided.astype(np.float64),
        )

    def columns(self) -> dict[str, Any]:
        """What the table `attacks` has of the decisions.

        The intervals are Clopper–Pearson's, of 95 %. They take the decisions as independent of each other.
        """
        n_members, n_non_members = int(self.is_member.sum()), int((~self.is_member).sum())
        right, wrong = int(self.decided[self.is_member].sum()), int(self.decided[~self.is_member].sum())
        rates = {"tpr": right / n_members, "fpr": wrong / n_non_members}
        low, high = clopper_pearson([right, wrong], [n_members, n_non_members])
        intervals = dict(zip(rates, zip(low.tolist(), high.tolist(), strict=True), strict=True))
        return {
            "score_name": self.name,
            "n_members": n_members,
            "n_non_members": n_non_members,
            "balanced_accuracy": (1 + rates["tpr"] - rates["fpr"]) / 2,
            **rate_columns("decided_", rates, intervals),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TailEstimate:
    """The true negative rate of a target's losses at low false negative rates: a measure of the target, not of an example.

    `tnr_at_fnr` is None if there are too few members; `tnr_at_fnr_interval` is its 95 % interval.
    """

    table: ClassVar[str | None] = None
    ranks_examples: ClassVar[bool] = False

    n_members: int
    n_non_members: int
    tnr_at_fnr: Mapping[float, float | None]
    tnr_at_fnr_interval: Mapping[float, tuple[float, float] | None]

    def columns(self) -> dict[str, Any]:
        """What the table `attacks` has of the estimate."""
        return {
            "n_members": self.n_members,
            "n_non_members": self.n_non_members,
            **rate_columns("tnr_at_fnr_", self.tnr_at_fnr, self.tnr_at_fnr_interval),
        }


def rate_columns(
    prefix: str,
    rates: Mapping[Any, float | None],
    intervals: Mapping[Any, tuple[float, float] | None],
) -> dict[str, float | None]:
    """Each rate and the ends of its interval, by the names of their columns: `prefix` and the rate's key."""
    columns: dict[str, float | None] = {}
    for key, rate in rates.items():
        low, high = intervals[key] or (None, None)
        columns |= {f"{prefix}{key}": rate, f"{prefix}{key}_low": low, f"{prefix}{key}_high": high}
    return columns


def clopper_pearson(count: npt.ArrayLike, n: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Clopper and Pearson's 95 % interval of the probability behind `count` of `n`, element by element: both ends."""
    count, n = np.asarray(count), np.asarray(n)
    low = np.where(count > 0, betaincinv(np.maximum(count, 1), n - count + 1, 0.025), 0.0)
    high = np.where(count < n, betaincinv(count + 1, np.maximum(n - count, 1), 0.975), 1.0)
    return low, high


@dataclass(frozen=True, kw_only=True, eq=False)
class ReconstructedExample:
    """An image and its reconstruction, each (channels, height, width) uint8, and their mean squared error in [0, 1]."""

    example_id: int
    mse: float
    original: npt.NDArray[np.uint8]
    reconstruction: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerReconstruction:
    """Reconstruction errors from one layer. Every MSE is per pixel, on images in [0, 1]."""

    table: ClassVar[str | None] = "reconstructions"
    ranks_examples: ClassVar[bool] = False

    layer_index: int
    layer: str
    mse_members: float
    mse_non_members: float
    mse_test: float
    mse_constant: float
    mse_untrained: float | None
    n_attacker: int
    n_members: int
    n_non_members: int
    n_test: int
    examples: tuple[ReconstructedExample, ...] = ()


AttackResult = MembershipScores | MembershipDecisions | TailEstimate | LayerReconstruction
"""What an attack measures. Class constants: `table` names the table of what it has per example or layer, None if nothing;
`ranks_examples` says whether it has a score for each example, by which attacks can be compared."""


class Attack(ABC):
    """Base of all attacks: a frozen, keyword-only dataclass with one method.

    Class constants: `family` is "membership" or "inversion". `result` is the type of its results. `revision` is raised when the
    same configuration would give different results, so that old records are not mistaken for new ones. `source` cites the
    attack's origin.
    """

    family: ClassVar[str]
    result: ClassVar[type[AttackResult]] = MembershipScores
    revision: ClassVar[int] = 1
    source: ClassVar[str]
    needs_shadow_data: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    """Whether it refuses rows of a table."""
    uses_target_membership_labels: ClassVar[bool] = False
    min_per_side: ClassVar[int] = 2
    """Minimum number of members, and of non-members; with fewer, the attack refuses to run."""

    def check_population(self, n_members: int, n_non_members: int) -> None:
        """Raise `AttackError` if there are too few members or non-members."""
        for count, what in ((n_members, "members"), (n_non_members, "non-members")):
            if count < self.min_per_side:
                raise AttackError(
                    f"{type(self).__module__.rpartition('.')[2]} needs at least {self.min_per_side} {what}, got {count}. "
                    f"Give it more {what}, or leave this attack out."
                )

    @abstractmethod
    def run(self, target: AttackTarget, rng: np.random.Generator) -> Sequence[AttackResult]:
        """Attack `target`; all randomness comes from `rng`."""
